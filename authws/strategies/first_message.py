"""A JWT in the first frame after accept: ``{"type":"auth","token":"…"}``.

Its danger is the silent socket: accepted, unknown, holding resources. So there is one
absolute deadline, one message, and a size limit before any parsing.
"""

from __future__ import annotations

from authws.clock import Clock
from authws.close_codes import MESSAGE_TOO_BIG
from authws.decisions import carriers, messages
from authws.decisions.limits import Limit
from authws.decisions.origins import OriginPolicy
from authws.exceptions import (
    AuthTimeoutError,
    ConnectionClosed,
    MalformedCredentialError,
    MessageError,
    MissingCredentialError,
    OversizedMessageError,
)
from authws.principal import Principal
from authws.strategies.base import Authority, Strategy
from authws.strategies.handshake import Credentials, Handshake

__all__ = ["FirstMessage"]


class FirstMessage(Strategy):
    """Accept, ask, and take one ``auth`` message before the deadline."""

    name = "first_message"

    def __init__(
        self,
        authority: Authority,
        origins: OriginPolicy,
        *,
        cookie_name: str,
        clock: Clock,
        timeout: float = 5.0,
        max_bytes: int = 8192,
    ) -> None:
        """``timeout`` in seconds from accept to a verified token."""
        super().__init__(authority, origins, cookie_name=cookie_name)
        self._clock = clock
        self._timeout = timeout
        self._max_bytes = max_bytes

    async def authenticate(self, handshake: Handshake) -> Principal:
        credentials = handshake.credentials
        self._refuse_other_carriers(credentials, "authorization", "query")
        cookies = self.cookies(credentials)
        handshake.limit_messages(self._max_bytes)
        await handshake.accept()
        try:
            async with self._clock.timeout(self._timeout or None):
                await handshake.send(messages.auth_required(self._timeout))
                token = self._read(await handshake.receive(), handshake)
                return await self._authority.by_token(
                    token, strategy=self.name, cookies_beside=cookies, opening=True
                )
        except TimeoutError:
            raise AuthTimeoutError(f"no auth within {self._timeout} s") from None

    async def identify(self, credentials: Credentials) -> Principal:
        """Guard an HTTP route: its "first message" is ``Authorization: Bearer``."""
        self._refuse_other_carriers(credentials, "query")
        token = carriers.bearer(credentials.header(b"authorization"))
        if token is None:
            raise MissingCredentialError("no Authorization header")
        return await self._authority.by_token(
            token,
            strategy=self.name,
            accepts="access",
            cookies_beside=self.cookies(credentials),
        )

    def _read(self, message: str | bytes | None, handshake: Handshake) -> str:
        # a server that bounds what it assembles has closed it already
        too_big = handshake.ended_by_server == MESSAGE_TOO_BIG.reason
        if too_big or (isinstance(message, str) and _size(message) > self._max_bytes):
            raise OversizedMessageError(
                f"first message over {self._max_bytes} bytes", Limit.FIRST_MESSAGE_BYTES
            )
        if message is None:
            raise ConnectionClosed(handshake.left_with, "")
        if isinstance(message, bytes):
            raise MalformedCredentialError("a binary first message")
        try:
            return messages.parse_auth(message).token
        except MessageError as exc:
            if exc.slug == "auth_missing":
                raise MissingCredentialError(exc.detail) from None
            raise MalformedCredentialError(exc.detail) from None


def _size(text: str) -> int:
    return len(text.encode("utf-8", "surrogatepass"))
