"""What the three strategies share: a shape, and the authority they all ask."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar, Literal, Protocol

from authws.decisions import carriers
from authws.decisions.origins import OriginPolicy, check_fetch_site
from authws.exceptions import MalformedCredentialError
from authws.principal import Principal
from authws.strategies.handshake import Credentials, Handshake

__all__ = ["Accepts", "Authority", "Strategy"]

Accepts = Literal["any", "access", "ticket"]
"""Which of our tokens a carrier takes."""


class Authority(Protocol):
    """Turns a credential into a principal, or raises the AuthError that says why."""

    async def by_token(
        self,
        token: str,
        *,
        strategy: str,
        accepts: Accepts = "any",
        cookies_beside: Sequence[str] = (),
        opening: bool = False,
    ) -> Principal:
        """Verify an access token or redeem a ticket.

        With ``opening`` it is to open a WebSocket: a ticket is not redeemed for a user
        who may have no more of them.

        No session cookie that came along may be of a live session of another user.
        """

    async def by_cookie(self, value: str) -> Principal:
        """Look up the session that a signed cookie names."""


class Strategy(ABC):
    """One way for a credential to travel."""

    name: ClassVar[str]
    origin_required: ClassVar[bool] = False
    """A browser always sends Origin; only a credential that a browser sends by itself
    (a cookie) makes its absence suspect (RFC 6455, 10.2)."""

    def __init__(
        self, authority: Authority, origins: OriginPolicy, *, cookie_name: str
    ) -> None:
        self._authority = authority
        self._origins = origins
        self._cookie_name = cookie_name

    def check_origin(
        self, credentials: Credentials, *, required: bool | None = None
    ) -> None:
        """Refuse a foreign page before anything else is looked at.

        ``required`` overrides, for an HTTP route, whether an Origin must be there.

        Raises:
            ForbiddenOriginError: the handshake must not be completed.
        """
        if required is None:
            required = self.origin_required
        self._origins.check(
            credentials.header(b"origin"), required=required, here=credentials.here
        )
        check_fetch_site(credentials.header(b"sec-fetch-site"))

    async def authenticate(self, handshake: Handshake) -> Principal:
        """Read exactly one credential of a WebSocket and verify it.

        Raises:
            AuthError: the refusal; ``accepted`` on the handshake tells its form.
        """
        return await self.identify(handshake.credentials)

    @abstractmethod
    async def identify(self, credentials: Credentials) -> Principal:
        """Read exactly one credential of an HTTP request and verify it."""

    def cookies(self, credentials: Credentials) -> list[str]:
        """Every session cookie that came along, whatever it is worth.

        Raises:
            MalformedCredentialError: there is more than we read.
        """
        return carriers.cookie_values(credentials.header(b"cookie"), self._cookie_name)

    def _refuse_other_carriers(self, credentials: Credentials, *names: str) -> None:
        """Refuse a credential in a place this strategy does not read."""
        if "authorization" in names and credentials.header(b"authorization"):
            raise MalformedCredentialError("a second credential: Authorization")
        if "query" in names and carriers.query_values(
            credentials.query_string, carriers.TOKEN_PARAMETER
        ):
            raise MalformedCredentialError("a second credential: token in the query")
