"""One HTTP request that asks to become a WebSocket, over plain ASGI.

It holds the credential from here on: the query string is blanked in the ASGI scope
itself, so that no log, trace or error report downstream can show it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from http import HTTPStatus
from typing import Any, Protocol

from authws import close_codes
from authws.close_codes import Close
from authws.decisions import limits
from authws.decisions.messages import SUBPROTOCOL
from authws.decisions.origins import Origin
from authws.decisions.redaction import redact_query
from authws.exceptions import ConnectionClosed

__all__ = ["ENDED_BY_SERVER", "WIRE", "Credentials", "Handshake", "Wire"]

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

_QUERY = "authws.query_string"
WIRE = "authws.wire"
"""Our server's ASGI extension, a ``Wire``: what ASGI has no messages for."""
ENDED_BY_SERVER = "authws.ended_by_server"
"""In our server's ``websocket.disconnect``: its slug, where it ended the connection
itself. A code alone does not tell: a peer may close with any."""


class Wire(Protocol):
    """What our own server lets its app do beside ASGI."""

    on_writable: Callable[[], object] | None
    """Called when the peer takes more again."""
    on_message: Callable[[str | bytes], bool] | None
    """Takes the peer's messages as they come, in place of ``receive``, which only tells
    of the end then. It returns whether it takes the next one at once; if not, nothing
    is read until ``read_on``."""

    @property
    def has_unread(self) -> bool:
        """Whether there are messages that came before ``on_message`` was there."""

    def read_on(self) -> None:
        """Let ``on_message`` have the next."""

    @property
    def is_writable(self) -> bool:
        """Whether the peer takes what is written."""

    def limit_messages(self, max_bytes: int | None) -> None:
        """Bound the messages from the next frame on; None for the usual bound."""

    def write(self, frames: bytes) -> None:
        """Write whole frames; into nowhere if the connection is over."""

    def close(self, code: int, reason: str) -> None:
        """Send a close frame, unless the connection is over."""


class Credentials:
    """What of a request may carry a credential: the query and the headers."""

    __slots__ = ("_headers", "_scheme", "_server", "address", "query_string")

    def __init__(self, scope: Scope, *, owns_scope: bool = False) -> None:
        self._headers: list[tuple[bytes, bytes]] = scope["headers"]
        self._scheme: str = scope.get("scheme", "http")
        self._server: tuple[str, int | None] | None = scope.get("server")
        client = scope.get("client")
        self.address: str = client[0] if client else ""
        """The peer's address, as the server believes it."""
        self.query_string: bytes = (
            scope.pop("query_string", b"") if owns_scope else _take_query(scope)
        )

    @property
    def here(self) -> Origin | None:
        """Where the request came in: our own socket; None if it has no port."""
        host, port = self._server or ("", None)
        if port is None:
            return None
        is_tls = self._scheme in {"https", "wss"}
        return Origin("https" if is_tls else "http", host, port)

    def forget(self) -> None:
        """Keep the address alone."""
        self._headers, self.query_string = [], b""

    def header(self, name: bytes) -> list[str]:
        """Every value of a header, in order; ``name`` in lower case."""
        return [value.decode("latin-1") for key, value in self._headers if key == name]


def _take_query(scope: Scope) -> bytes:
    """Take the query string out of the scope, leaving its parameters' names."""
    taken: bytes | None = scope.get(_QUERY)
    if taken is not None:
        return taken
    query_string: bytes = scope.get("query_string", b"")
    if query_string:
        scope["query_string"] = redact_query(query_string)
    return query_string


class Handshake:
    """The opening and closing of one WebSocket, each done at most once."""

    __slots__ = (
        "_owns_scope",
        "_receive",
        "_scope",
        "_send",
        "accepted",
        "closed",
        "credentials",
        "ended_by_server",
        "left_with",
        "peer_left",
        "wire",
    )

    def __init__(
        self, scope: Scope, receive: Receive, send: Send, *, owns_scope: bool = False
    ) -> None:
        """``owns_scope``: nobody else will read it."""
        self._scope = scope
        self._owns_scope = owns_scope
        self._receive = receive
        self._send = send
        self.credentials = Credentials(scope, owns_scope=owns_scope)
        self.accepted = False
        self.closed = False
        """A close frame, or an HTTP refusal, was handed to the server."""
        self.peer_left = False
        self.left_with = 1006
        """The close code, once the peer has left; the server's own for a violation."""
        self.ended_by_server = ""
        """Its reason, where the server below ended it, such as a slug of ours."""
        self.wire: Wire | None = scope.get("extensions", {}).get(WIRE)
        """The way past ASGI, where our own server offers it."""

    async def accept(self) -> None:
        """Complete the opening handshake; choose our subprotocol if it was offered.

        Raises:
            ConnectionClosed: the peer has left.
        """
        offered = self._scope.get("subprotocols") or ()
        chosen = SUBPROTOCOL if SUBPROTOCOL in offered else None
        await self._deliver(
            {"type": "websocket.accept", "subprotocol": chosen, "headers": []}
        )
        self.accepted = True

    def forget_request(self) -> None:
        """Let go of the head, and of the credential in it: the peer is known now."""
        self.credentials.forget()
        if self._owns_scope:
            self._scope.clear()

    def limit_messages(self, max_bytes: int | None) -> None:
        """Bound what the peer may send, in bytes per message; None for the usual.

        Where the server offers it, a longer message is refused while it arrives, so
        that a stranger cannot have one collected.
        """
        if self.wire is not None:
            self.wire.limit_messages(max_bytes)

    async def receive(self) -> str | bytes | None:
        """Return the next message, or None once the peer has left."""
        if self.peer_left:
            return None
        message = await self._receive()
        if message["type"] != "websocket.receive":
            self.peer_left = True
            self.left_with = message.get("code") or 1005
            self.ended_by_server = self._who_ended(message)
            return None
        text: str | None = message.get("text")
        return text if text is not None else message["bytes"]

    def _who_ended(self, message: Message) -> str:
        if self.wire is not None:
            return str(message.get(ENDED_BY_SERVER, ""))
        # another server says no more than this, and may mean the peer's own code
        too_big = self.left_with == close_codes.MESSAGE_TOO_BIG.code
        return close_codes.MESSAGE_TOO_BIG.reason if too_big else ""

    async def send(self, payload: str | bytes) -> None:
        """Send one message.

        Raises:
            ConnectionClosed: the peer has left.
        """
        kind = "text" if isinstance(payload, str) else "bytes"
        await self._deliver({"type": "websocket.send", kind: payload})

    async def close(self, close: Close) -> None:
        """End it as ``close`` says; before accept that is an HTTP 403 on the wire."""
        await self._finish(
            {
                "type": "websocket.close",
                "code": int(close.code),
                "reason": close.reason,
            }
        )

    def close_at_once(self, close: Close) -> None:
        """The same over the wire, after accept."""
        assert self.wire is not None  # noqa: S101 - the caller writes to it
        if not self.closed and not self.peer_left:
            self.closed = True
            self.wire.close(int(close.code), close.reason)

    async def deny(
        self, status: HTTPStatus, slug: str, retry_after: float = 0.0
    ) -> None:
        """Refuse before accept with an HTTP status of its own, where it can be."""
        if "websocket.http.response" not in self._scope.get("extensions", {}):
            await self._finish(
                {"type": "websocket.close", "code": 1008, "reason": slug}
            )
            return
        body = f'{{"detail":"{slug}"}}'.encode()
        headers = [
            (b"content-type", b"application/json"),
            (b"cache-control", b"no-store"),
        ]
        if retry_after:
            headers.append(
                (b"retry-after", str(limits.retry_after(retry_after)).encode())
            )
        await self._finish(
            {
                "type": "websocket.http.response.start",
                "status": int(status),
                "headers": headers,
            },
            {"type": "websocket.http.response.body", "body": body},
        )

    async def _finish(self, *messages: Message) -> None:
        if self.closed or self.peer_left:
            return
        self.closed = True
        for message in messages:
            try:
                await self._deliver(message)
            except ConnectionClosed:
                return

    async def _deliver(self, message: Message) -> None:
        try:
            await self._send(message)
        except (OSError, RuntimeError) as exc:
            # the ASGI specification: a send on a lost connection raises OSError;
            # Starlette and some servers say it with a RuntimeError
            self.peer_left = True
            raise ConnectionClosed(1006, "") from exc
        except Exception as exc:
            if type(exc).__name__ != "WebSocketDisconnect":  # Starlette's wrapper
                raise
            self.peer_left = True
            raise ConnectionClosed(1006, "") from exc
