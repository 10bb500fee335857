"""Logging in over REST, and opening connections with what a login gave."""

from __future__ import annotations

import asyncio
import json
import logging
import ssl
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from types import TracebackType
from typing import Any, Literal
from urllib.parse import quote

import httpx
from websockets.asyncio.client import connect as websocket_connect
from websockets.exceptions import InvalidHandshake, InvalidStatus, InvalidURI
from websockets.typing import Origin as OriginHeader
from websockets.typing import Subprotocol

from authws.client.connection import Connection
from authws.client.endings import RefusedError, UnreachableError
from authws.client.events import AuthRequired, Welcome
from authws.close_codes import Retry
from authws.decisions.messages import SUBPROTOCOL
from authws.decisions.origins import Origin, is_loopback
from authws.decisions.redaction import install_log_redaction, redact
from authws.exceptions import ConfigurationError

__all__ = ["Client", "Strategy", "Tokens"]

COOKIE_NAMES = ("__Host-authws", "authws")
EARLY = 10.0
"""Seconds before its end in which an access token is no longer begun with."""

# websockets writes frames and handshakes into its debug log, credentials included
_wire_logger = logging.getLogger("authws.client.wire")
_wire_logger.setLevel(logging.INFO)


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


class _Connect(websocket_connect):
    """A handshake that follows no redirect: its credential is for one server."""

    def process_redirect(self, exc: Exception) -> Exception | str:
        return exc


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
        install_log_redaction()  # httpcore's debug log would show the cookie
        self._origin = _parse(base_url)
        local = is_loopback(self._origin.host)
        if self._origin.scheme == "http" and not (local or allow_plain_http):
            raise ConfigurationError(
                f"{self._origin} is not encrypted: everyone on the way could read the"
                " password. Use https"
            )
        self._tls = _context(verify) if self._origin.scheme == "https" else None
        self._timeout = timeout
        # what is on this machine is not the business of a proxy elsewhere
        self._proxy: Literal[True] | None = None if local else True
        self._http = httpx.AsyncClient(
            base_url=str(self._origin),
            verify=self._tls or False,
            timeout=timeout,
            trust_env=not local,
        )
        self._tokens: Tokens | None = None
        self._cookie = ""

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._origin}>"

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
        await self._http.aclose()

    # --------------------------------------------------------------------------- REST

    async def log_in(self, username: str, password: str) -> Tokens:
        """Log in for tokens (``POST /auth/login``).

        Raises:
            ClientError: it did not work; ``retry`` says what to do.
        """
        body = {"username": username, "password": password}
        return self._keep(await self._post("/auth/login", body))

    async def refresh(self) -> Tokens:
        """Exchange the refresh token for new tokens (``POST /auth/refresh``).

        Raises:
            ClientError: it did not work; log in again.
        """
        body = {"refresh_token": self._own_tokens().refresh_token}
        return self._keep(await self._post("/auth/refresh", body))

    async def open_session(self, username: str, password: str) -> None:
        """Log in for a session cookie (``POST /auth/session``).

        Raises:
            ClientError: it did not work; ``retry`` says what to do.
        """
        body = {"username": username, "password": password}
        answer = await self._request("POST", "/auth/session", json=body)
        self._cookie = _session_cookie(answer)

    async def ticket(self) -> str:
        """Get a ticket, good for one connection (``POST /auth/ticket``).

        Raises:
            ClientError: it did not work; ``retry`` says what to do.
        """
        if self._tokens is None:
            headers = {"cookie": self._own_cookie(), "origin": str(self._origin)}
        else:
            headers = {"authorization": f"Bearer {await self._access_token()}"}
        body = await self._post("/auth/ticket", None, headers)
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
            await self._request("POST", "/auth/logout", headers=headers)
        if cookie:
            headers = {"cookie": cookie, "origin": str(self._origin)}
            await self._request("DELETE", "/auth/session", headers=headers)

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
        connection = await self._open(path, headers)
        try:
            async with asyncio.timeout(self._timeout):
                await self._greet(connection, strategy, echo)
        except BaseException as error:
            await connection.close()
            if isinstance(error, TimeoutError):
                raise self._unreachable("no welcome in time") from None
            raise
        return connection

    async def renew(self, connection: Connection) -> None:
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
            raise self._unreachable("it does not speak authws.v1", Retry.NEVER)

    async def _open(self, path: str, headers: Mapping[str, str]) -> Connection:
        scheme = "ws" if self._origin.scheme == "http" else "wss"
        base = str(self._origin).partition("://")[2]
        try:
            socket = await _Connect(
                f"{scheme}://{base}{path}",
                additional_headers=headers,
                # a cookie counts only with the origin of the service's own pages
                origin=OriginHeader(str(self._origin)) if headers else None,
                subprotocols=[Subprotocol(SUBPROTOCOL)],
                compression=None,
                ssl=self._tls,
                proxy=self._proxy,
                open_timeout=self._timeout,
                close_timeout=2.0,
                logger=_wire_logger,
            )
        except InvalidStatus as error:
            answer = error.response
            raise RefusedError.of(
                answer.status_code, _json(answer.body), _lower(answer.headers)
            ) from None
        except InvalidURI:
            raise self._unreachable("not a URL for a WebSocket") from None
        except (InvalidHandshake, OSError, EOFError) as error:
            raise self._unreachable(_why(error)) from None
        return Connection(socket)

    # ------------------------------------------------------------------------ private

    async def _post(
        self, path: str, body: object, headers: Mapping[str, str] | None = None
    ) -> dict[str, Any]:
        answer = await self._request("POST", path, json=body, headers=headers)
        value = _json(answer.content)
        if not isinstance(value, dict):
            raise RefusedError(answer.status_code, "", None)
        return value

    async def _request(
        self,
        method: str,
        path: str,
        *,
        json: object = None,
        headers: Mapping[str, str] | None = None,
    ) -> httpx.Response:
        self._http.cookies.clear()  # a cookie goes where it is meant to, by hand
        try:
            answer = await self._http.request(method, path, json=json, headers=headers)
        except (httpx.TransportError, OSError) as error:
            raise self._unreachable(_why(error)) from None
        if not answer.is_success:
            raise RefusedError.of(
                answer.status_code, _json(answer.content), answer.headers
            )
        return answer

    def _keep(self, body: Mapping[str, Any]) -> Tokens:
        try:
            self._tokens = Tokens(
                str(body["access_token"]),
                str(body["refresh_token"]),
                time.time() + float(body["expires_in"]),
            )
        except (LookupError, TypeError, ValueError):
            raise self._unreachable("it does not speak authws", Retry.NEVER) from None
        return self._tokens

    async def _token(self) -> str:
        """The access token or, for who has only a session, a ticket."""
        return await (self._access_token() if self._tokens else self.ticket())

    async def _access_token(self) -> str:
        tokens = self._own_tokens()
        if tokens.expires_at - EARLY < time.time():
            tokens = await self.refresh()
        return tokens.access_token

    def _own_tokens(self) -> Tokens:
        if self._tokens is None:
            raise ConfigurationError("log in first: there is no token")
        return self._tokens

    def _own_cookie(self) -> str:
        if not self._cookie:
            raise ConfigurationError("open a session first: there is no cookie")
        return self._cookie

    def _unreachable(self, why: str, retry: Retry = Retry.BACKOFF) -> UnreachableError:
        return UnreachableError(str(self._origin), why, retry=retry)


def _parse(url: str) -> Origin:
    scheme, separator, rest = url.strip().partition("://")
    scheme = {"ws": "http", "wss": "https"}.get(scheme.lower(), scheme)
    try:
        return Origin.parse(f"{scheme}{separator}{rest.removesuffix('/')}")
    except ValueError:
        # the URL is not repeated: it may hold a user name and a password
        raise ConfigurationError(
            "the URL is scheme, host and port, such as https://chat.example.com or"
            " http://127.0.0.1:8000, without a path or a user name"
        ) from None


def _context(verify: bool | ssl.SSLContext) -> ssl.SSLContext:
    if isinstance(verify, ssl.SSLContext):
        return verify
    return httpx.create_ssl_context(verify=verify)


def _session_cookie(answer: httpx.Response) -> str:
    for name in COOKIE_NAMES:
        for cookie in answer.cookies.jar:
            if cookie.name == name and cookie.value:
                return f"{name}={cookie.value}"
    raise RefusedError(answer.status_code, "", None)


def _json(body: bytes | bytearray | None) -> object:
    try:
        return json.loads(body or b"null")
    except (ValueError, RecursionError):
        return None


def _lower(headers: Mapping[str, str]) -> dict[str, str]:
    return {name.lower(): value for name, value in headers.items()}


def _why(error: BaseException) -> str:
    """Say what went wrong, from the innermost cause, which knows best."""
    cause = error
    while (inner := cause.__cause__ or cause.__context__) is not None:
        cause = inner
    if isinstance(error, TimeoutError | httpx.TimeoutException):
        return "no answer in time"
    if isinstance(cause, ssl.SSLCertVerificationError):
        return f"its certificate is not trusted ({cause.verify_message})"
    if isinstance(cause, OSError) and cause.strerror:
        return cause.strerror.lower()
    return redact(str(cause) or type(cause).__name__)[:200]
