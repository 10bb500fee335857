"""How a service is reached: HTTP calls and WebSocket handshakes to one origin.

Whatever goes wrong on the way is an error of ours, which says what to do next.
"""

from __future__ import annotations

import json
import logging
import ssl
from collections.abc import Mapping
from typing import Any, Literal

import httpx
from websockets.asyncio.client import connect as websocket_connect
from websockets.exceptions import InvalidHandshake, InvalidStatus, InvalidURI
from websockets.typing import Origin as OriginHeader
from websockets.typing import Subprotocol

from authws.client.connection import Connection
from authws.client.endings import RefusedError, UnreachableError
from authws.close_codes import Retry
from authws.decisions.messages import SUBPROTOCOL
from authws.decisions.origins import Origin, is_loopback
from authws.decisions.redaction import install_log_redaction, redact
from authws.exceptions import ConfigurationError

__all__ = ["Reach"]

# websockets writes frames and handshakes into its debug log, credentials included
_wire_logger = logging.getLogger("authws.client.wire")
_wire_logger.setLevel(logging.INFO)


class _Connect(websocket_connect):
    """A handshake that follows no redirect: its credential is for one server."""

    def process_redirect(self, exc: Exception) -> Exception | str:
        return exc


class Reach:
    """The way to one service. It keeps no credential."""

    def __init__(
        self,
        base_url: str,
        *,
        verify: bool | ssl.SSLContext,
        allow_plain_http: bool,
        timeout: float,
    ) -> None:
        """As ``Client``.

        Raises:
            ConfigurationError: the URL is none that a password may be sent to.
        """
        install_log_redaction()  # httpcore's debug log would show the cookie
        self.origin = _parse(base_url)
        self.timeout = timeout
        local = is_loopback(self.origin.host)
        if self.origin.scheme == "http" and not (local or allow_plain_http):
            raise ConfigurationError(
                f"{self.origin} is not encrypted: everyone on the way could read the"
                " password. Use https"
            )
        self._tls = _context(verify) if self.origin.scheme == "https" else None
        # what is on this machine is not the business of a proxy elsewhere
        self._proxy: Literal[True] | None = None if local else True
        self._http = httpx.AsyncClient(
            base_url=str(self.origin),
            verify=self._tls or False,
            timeout=timeout,
            trust_env=not local,
        )

    async def aclose(self) -> None:
        """Close the connections of HTTP; WebSockets are closed by who opened them."""
        await self._http.aclose()

    async def request(
        self,
        method: str,
        path: str,
        *,
        json: object = None,
        headers: Mapping[str, str] | None = None,
    ) -> httpx.Response:
        """Make an HTTP call.

        Raises:
            ClientError: there is no answer, or one that refuses.
        """
        self._http.cookies.clear()  # a cookie goes where it is meant to, by hand
        try:
            answer = await self._http.request(method, path, json=json, headers=headers)
        except (httpx.TransportError, OSError) as error:
            raise self.unreachable(_why(error)) from None
        if not answer.is_success:
            raise RefusedError.of(
                answer.status_code, _json(answer.content), answer.headers
            )
        return answer

    async def post(
        self, path: str, body: object, headers: Mapping[str, str] | None = None
    ) -> dict[str, Any]:
        """Make a call that is answered with a JSON object.

        Raises:
            ClientError: as ``request``, or the answer is none.
        """
        answer = await self.request("POST", path, json=body, headers=headers)
        value = _json(answer.content)
        if not isinstance(value, dict):
            raise RefusedError(answer.status_code, "", None)
        return value

    async def open(self, path: str, headers: Mapping[str, str]) -> Connection:
        """Make a WebSocket handshake.

        Raises:
            ClientError: there is no answer, or one that refuses.
        """
        scheme = "ws" if self.origin.scheme == "http" else "wss"
        base = str(self.origin).partition("://")[2]
        try:
            socket = await _Connect(
                f"{scheme}://{base}{path}",
                additional_headers=headers,
                # a cookie counts only with the origin of the service's own pages
                origin=OriginHeader(str(self.origin)) if headers else None,
                subprotocols=[Subprotocol(SUBPROTOCOL)],
                compression=None,
                ssl=self._tls,
                proxy=self._proxy,
                open_timeout=self.timeout,
                close_timeout=2.0,
                logger=_wire_logger,
            )
        except InvalidStatus as error:
            answer = error.response
            raise RefusedError.of(
                answer.status_code, _json(answer.body), _lower(answer.headers)
            ) from None
        except InvalidURI:
            raise self.unreachable("not a URL for a WebSocket") from None
        except (InvalidHandshake, OSError, EOFError) as error:
            raise self.unreachable(_why(error)) from None
        return Connection(socket)

    def unreachable(self, why: str, retry: Retry = Retry.BACKOFF) -> UnreachableError:
        """Return the error of a service that is not there, or not what it should be."""
        return UnreachableError(str(self.origin), why, retry=retry)


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
