"""What every request meets before any route: host, size, headers.

In the service ``Gate`` stands before all that is HTTP, and ``WebSocketGate`` holds its
WebSocket endpoints. Plain ASGI, since Starlette's ``BaseHTTPMiddleware`` does not see a
WebSocket. In somebody else's app ``HttpGate`` stands before our routes alone.
"""

from __future__ import annotations

import json
import logging
import secrets
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from authws.decisions.origins import HostPolicy
from authws.decisions.redaction import log_failure
from authws.live.security_log import SecurityLog
from authws.strategies.handshake import Handshake

__all__ = ["Endpoint", "Gate", "HttpGate", "WebSocketGate"]

MAX_BODY_BYTES = 65_536

Endpoint = Callable[[Handshake], Awaitable[None]]

logger = logging.getLogger("authws")

SECURITY_HEADERS = [
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-frame-options", b"DENY"),
    (b"cross-origin-resource-policy", b"same-origin"),
]
API_POLICY = (
    b"content-security-policy",
    b"default-src 'none'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
)
HSTS = (b"strict-transport-security", b"max-age=63072000; includeSubDomains")
NO_STORE = (b"cache-control", b"no-store")


@dataclass(frozen=True, slots=True)
class _Barrier:
    """A refusal before any route."""

    status: HTTPStatus
    slug: str
    detail: str = ""
    """For the operator."""


class HttpGate:
    """What stands before an HTTP route of ours, in whatever app it is."""

    def __init__(self, *, hosts: HostPolicy, log: SecurityLog, secure: bool) -> None:
        """``secure`` says that browsers come to the whole host over https."""
        self._hosts = hosts
        self._log = log
        self._secure = secure

    async def pass_on(
        self, app: ASGIApp, scope: Scope, receive: Receive, send: Send
    ) -> None:
        """Let a request through to ``app`` if it may pass, and see to its answer."""
        started = False
        body = _LimitedBody(receive)

        async def app_send(message: Message) -> None:
            # FastAPI takes our error for one of the body's, and would answer 400
            if started or not body.is_too_large:
                await guarded_send(message)

        async def guarded_send(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                self._add_headers(scope, message)
            await send(message)

        barrier = self.barrier(scope)
        if barrier is not None:
            self.note(scope, barrier.slug, barrier.detail)
            await _answer(guarded_send, barrier.status, barrier.slug)
            return
        if body.is_announced_too_large(scope):
            await _answer(
                guarded_send, HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "body_too_large"
            )
            return
        try:
            await app(scope, body.receive, app_send)
        except _BodyTooLargeError:
            pass
        except Exception:
            correlation = secrets.token_hex(8)
            log_failure(logger, "request failed (correlation id %s)", correlation)
            self.note(scope, "internal_error")
            if not started:
                await _answer(
                    guarded_send,
                    HTTPStatus.INTERNAL_SERVER_ERROR,
                    "internal_error",
                    correlation_id=correlation,
                )
        if body.is_too_large and not started:
            await _answer(
                guarded_send, HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "body_too_large"
            )

    def barrier(self, scope: Scope) -> _Barrier | None:
        """Tell why a request may not pass, whatever it asks for."""
        hosts = _header(scope, b"host")
        if not self._hosts.allows(hosts):
            told = f"not among AUTHWS_ALLOWED_HOSTS: {', '.join(hosts)!r:.200}"
            return _Barrier(HTTPStatus.BAD_REQUEST, "host_unknown", told)
        # an https service met without TLS: the proxy in front says so itself. Without
        # its word, a plain connection comes from the proxy or from this machine.
        plain = scope["scheme"] in {"http", "ws"}
        if self._secure and plain and _header(scope, b"x-forwarded-proto"):
            return _Barrier(HTTPStatus.FORBIDDEN, "tls_required")
        return None

    def note(self, scope: Scope, reason: str, detail: str = "") -> None:
        """Write a refusal to the security log."""
        client = scope.get("client")
        address = client[0] if client else ""
        self._log.write("refused", reason=reason, detail=detail, address=address)

    def _add_headers(self, scope: Scope, message: Message) -> None:
        headers = list(message.get("headers", []))
        present = {name.lower() for name, _ in headers}
        wanted = [*SECURITY_HEADERS, API_POLICY]
        if not scope["path"].startswith("/.well-known/"):
            wanted.append(NO_STORE)
        if self._secure:
            wanted.append(HSTS)
        headers += [header for header in wanted if header[0] not in present]
        message["headers"] = headers


class Gate:
    """ASGI middleware: the outermost of ours, for HTTP."""

    def __init__(self, app: ASGIApp, *, http: HttpGate) -> None:
        self._app = app
        self._gate = http

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await self._gate.pass_on(self._app, scope, receive, send)
        else:
            await self._app(scope, receive, send)


class WebSocketGate:
    """The service's WebSocket endpoints, before any middleware and any router: those
    cost more than the whole handshake does, and 12 kB of each open socket."""

    def __init__(
        self, app: ASGIApp, *, http: HttpGate, endpoints: Mapping[str, Endpoint]
    ) -> None:
        """``endpoints`` by path; everything else is for ``app``."""
        self._app = app
        self._gate = http
        self._endpoints = endpoints

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        barrier = self._gate.barrier(scope)
        endpoint = self._endpoints.get(scope["path"])
        if barrier is not None:
            await receive()  # websocket.connect
            self._gate.note(scope, barrier.slug, barrier.detail)
            await Handshake(scope, receive, send).deny(barrier.status, barrier.slug)
        elif endpoint is not None:
            await receive()
            await endpoint(Handshake(scope, receive, send, owns_scope=True))
        else:
            await self._app(scope, receive, send)


class _BodyTooLargeError(Exception):
    """The peer sent more than it announced, or announced nothing."""


class _LimitedBody:
    """Receives a request's body up to the limit, whatever its length header said."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._received = 0

    @property
    def is_too_large(self) -> bool:
        return self._received > MAX_BODY_BYTES

    def is_announced_too_large(self, scope: Scope) -> bool:
        for name, value in scope["headers"]:
            if name == b"content-length":
                return not value.isdigit() or int(value[:12]) > MAX_BODY_BYTES
        return False

    async def receive(self) -> Message:
        message = await self._receive()
        self._received += len(message.get("body", b""))
        if self.is_too_large:
            raise _BodyTooLargeError
        return message


def _header(scope: Scope, wanted: bytes) -> list[str]:
    return [
        value.decode("latin-1") for name, value in scope["headers"] if name == wanted
    ]


async def _answer(send: Send, status: HTTPStatus, slug: str, **more: Any) -> None:
    body = json.dumps({"detail": slug, **more}).encode()
    await send(
        {
            "type": "http.response.start",
            "status": int(status),
            "headers": [
                (b"content-type", b"application/json"),
                (b"content-length", str(len(body)).encode()),
                (b"connection", b"close"),
            ],
        }
    )
    await send({"type": "http.response.body", "body": body})
