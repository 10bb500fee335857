"""Logging in over REST, and opening connections with what a login gave."""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from types import TracebackType
from typing import Any
from urllib.parse import quote

import httpx

from authws.client.connection import Connection
from authws.client.endings import RefusedError
from authws.client.events import AuthRequired, Welcome
from authws.client.lasting import LastingConnection
from authws.client.reach import Reach
from authws.close_codes import Retry
from authws.exceptions import ConfigurationError

__all__ = ["Client", "Strategy", "Tokens"]

COOKIE_NAMES = ("__Host-authws", "authws")
EARLY = 10.0
"""Seconds before its end in which an access token is no longer begun with."""


class Strategy(StrEnum):
    """How the credential travels."""

    QUERY_PARAM = "query-param"
    FIRST_MESSAGE = "first-message"
    SESSION_COOKIE = "session-cookie"


@dataclass(frozen=True, slots=True)
class Tokens:
    """What a login gave. The representation shows neither token."""

    access_token: str = field(repr=False)
    refresh_token: str = field(repr=False)
    expires_at: float
    """When the access token ends, by the clock of this machine."""


class Client:
    """One user of one service.

    Tokens and cookies stay in here: not in a representation, an error or a log.
    """

    def __init__(
        self,
        base_url: str,
        *,
        verify: bool | ssl.SSLContext = True,
        allow_plain_http: bool = False,
        timeout: float = 10.0,
    ) -> None:
        """``base_url`` is the service's origin: ``https://chat.example.com``.

        Args:
            base_url: with ``http`` or ``https`` (``ws`` and ``wss`` mean the same),
                and without a path.
            verify: a context of one's own for TLS; False trusts anybody.
            allow_plain_http: send passwords readable for everyone on the way. A
                loopback address needs no permission.
            timeout: seconds that an answer may take.

        Raises:
            ConfigurationError: the URL is none that a password may be sent to.
        """
        self._reach = Reach(
            base_url, verify=verify, allow_plain_http=allow_plain_http, timeout=timeout
        )
        self._tokens: Tokens | None = None
        self._cookie = ""
        self._refreshing = asyncio.Lock()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._reach.origin}>"

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the connections of REST; WebSockets are closed by who opened them."""
        await self._reach.aclose()

    # --------------------------------------------------------------------------- REST

    async def log_in(self, username: str, password: str) -> Tokens:
        """Log in for tokens (``POST /auth/login``).

        Raises:
            ClientError: it did not work; ``retry`` says what to do.
        """
        body = {"username": username, "password": password}
        return self._keep(await self._reach.post("/auth/login", body))

    async def refresh(self) -> Tokens:
        """Exchange the refresh token for new tokens (``POST /auth/refresh``).

        Raises:
            ClientError: it did not work; log in again.
        """
        # a refresh token that is presented twice ends the session
        async with self._refreshing:
            return await self._refresh()

    async def open_session(self, username: str, password: str) -> None:
        """Log in for a session cookie (``POST /auth/session``).

        Raises:
            ClientError: it did not work; ``retry`` says what to do.
        """
        body = {"username": username, "password": password}
        answer = await self._reach.request("POST", "/auth/session", json=body)
        self._cookie = _session_cookie(answer)

    async def ticket(self) -> str:
        """Get a ticket, good for one connection (``POST /auth/ticket``).

        Raises:
            ClientError: it did not work; ``retry`` says what to do.
        """
        if self._tokens is None:
            headers = {"cookie": self._own_cookie(), "origin": str(self._reach.origin)}
        else:
            headers = {"authorization": f"Bearer {await self._access_token()}"}
        body = await self._reach.post("/auth/ticket", None, headers)
        return str(body["ticket"])

    async def log_out(self) -> None:
        """End the sessions that were opened here, on the server; then forget them.

        Raises:
            ClientError: it did not work; here they are forgotten all the same.
        """
        tokens, self._tokens = self._tokens, None
        cookie, self._cookie = self._cookie, ""
        if tokens is not None:
            headers = {"authorization": f"Bearer {tokens.access_token}"}
            await self._reach.request("POST", "/auth/logout", headers=headers)
        if cookie:
            headers = {"cookie": cookie, "origin": str(self._reach.origin)}
            await self._reach.request("DELETE", "/auth/session", headers=headers)

    # ---------------------------------------------------------------------- WebSocket

    async def connect(self, strategy: Strategy, *, echo: bool = False) -> Connection:
        """Open a connection, up to and including the server's welcome.

        The query takes a ticket rather than the access token, since what stands in a
        URL is written down in many places and a used ticket is worthless.

        Raises:
            ClientError: it did not work; ``retry`` says what to do.
            ConfigurationError: nobody has logged in, or not for this strategy.
        """
        if self._tokens is None and not self._cookie:
            raise ConfigurationError("log in first: there is no credential")
        path = f"/ws/{strategy}" + ("/echo" if echo else "")
        headers: dict[str, str] = {}
        match strategy:
            case Strategy.QUERY_PARAM:
                path += f"?token={quote(await self.ticket(), safe='')}"
            case Strategy.SESSION_COOKIE:
                headers = {"cookie": self._own_cookie()}
            case Strategy.FIRST_MESSAGE:
                pass
        connection = await self._reach.open(path, headers)
        try:
            async with asyncio.timeout(self._reach.timeout):
                await self._greet(connection, strategy, echo)
        except BaseException as error:
            await connection.close()
            if isinstance(error, TimeoutError):
                raise self._reach.unreachable("no welcome in time") from None
            raise
        return connection

    async def stay_connected(self, strategy: Strategy) -> LastingConnection:
        """Open a connection to the rooms that comes back by itself when it is lost.

        Raises:
            ClientError: it did not work; ``retry`` says what to do.
            ConfigurationError: nobody has logged in, or not for this strategy.
        """
        connection = await self.connect(strategy)
        return LastingConnection(connection, lambda: self.connect(strategy))

    async def renew(self, connection: Connection | LastingConnection) -> None:
        """Give a live connection a fresh token, before the old one ends.

        Raises:
            ClientError: it did not work; ``retry`` says what to do.
        """
        tokens = await self.refresh()
        await connection.authenticate(tokens.access_token)

    async def _greet(
        self, connection: Connection, strategy: Strategy, echo: bool
    ) -> None:
        if strategy is Strategy.FIRST_MESSAGE:
            await self._expect(connection, AuthRequired)
            await connection.authenticate(await self._token())
        elif echo:
            return  # these endpoints say nothing of their own
        await self._expect(connection, Welcome)

    async def _expect(
        self, connection: Connection, kind: type[AuthRequired] | type[Welcome]
    ) -> None:
        if not isinstance(await connection.receive_event(), kind):
            raise self._reach.unreachable("it does not speak authws.v1", Retry.NEVER)

    # ------------------------------------------------------------------------ private

    def _keep(self, body: Mapping[str, Any]) -> Tokens:
        try:
            self._tokens = Tokens(
                str(body["access_token"]),
                str(body["refresh_token"]),
                time.time() + float(body["expires_in"]),
            )
        except (LookupError, TypeError, ValueError):
            raise self._reach.unreachable(
                "it does not speak authws", Retry.NEVER
            ) from None
        return self._tokens

    async def _token(self) -> str:
        """The access token or, for who has only a session, a ticket."""
        return await (self._access_token() if self._tokens else self.ticket())

    async def _access_token(self) -> str:
        async with self._refreshing:
            tokens = self._own_tokens()
            if tokens.expires_at - EARLY < time.time():
                tokens = await self._refresh()
        return tokens.access_token

    async def _refresh(self) -> Tokens:
        body = {"refresh_token": self._own_tokens().refresh_token}
        return self._keep(await self._reach.post("/auth/refresh", body))

    def _own_tokens(self) -> Tokens:
        if self._tokens is None:
            raise ConfigurationError("log in first: there is no token")
        return self._tokens

    def _own_cookie(self) -> str:
        if not self._cookie:
            raise ConfigurationError("open a session first: there is no cookie")
        return self._cookie


def _session_cookie(answer: httpx.Response) -> str:
    for name in COOKIE_NAMES:
        for cookie in answer.cookies.jar:
            if cookie.name == name and cookie.value:
                return f"{name}={cookie.value}"
    raise RefusedError(answer.status_code, "", None)
