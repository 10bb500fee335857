"""A WebSocket client small enough to be ten thousand of them in one process.

It speaks what a benchmark needs of RFC 6455 and no more: a fixed key, a mask of
zeros, no extensions. It is not a client for anything but a loopback load test.
"""

from __future__ import annotations

import asyncio
import json
import socket
import struct
import time
from collections import deque
from collections.abc import Callable
from typing import Any, ClassVar, cast

from bench.served import Served

__all__ = ["STRATEGIES", "Credential", "Peer", "RefusedError", "connect"]

STRATEGIES = ("query-param", "first-message", "session-cookie")
TEXT, CLOSE, PING, PONG = 0x1, 0x8, 0x9, 0xA
ABNORMAL = 1006
OPEN_TIMEOUT = 60.0

OnText = Callable[[bytes, float], None]


class Credential:
    """What a peer comes in with."""

    __slots__ = ("strategy", "value")

    def __init__(self, strategy: str, value: str) -> None:
        """``value`` is an access token, or a ``Cookie`` header."""
        self.strategy = strategy
        self.value = value


class RefusedError(Exception):
    """The handshake was answered with something else than 101, or with a close."""


class Peer(asyncio.Protocol):
    """One WebSocket, from the client's side."""

    __slots__ = (
        "_answer",
        "_buffer",
        "_messages",
        "_on_text",
        "_over",
        "_request",
        "_transport",
        "_waiter",
        "close_code",
        "close_reason",
        "closed_at",
        "is_open",
    )

    everybody: ClassVar[set[Peer]] = set()
    """Those with a TCP connection."""

    def __init__(self, request: bytes, on_text: OnText | None) -> None:
        loop = asyncio.get_running_loop()
        self.is_open = False
        self.close_code = ABNORMAL
        self.close_reason = ""
        self.closed_at = 0.0
        """When its close frame, or else the end of the connection, was seen."""
        self._request = request
        self._on_text = on_text
        self._buffer = b""
        self._messages: deque[bytes] | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._answer: asyncio.Future[None] | None = loop.create_future()
        self._over: asyncio.Future[None] | None = None
        self._transport: asyncio.Transport | None = None

    # ----------------------------------------------------------------------- opening

    @classmethod
    def crash_all(cls) -> None:
        """End every connection there is, without a word."""
        for peer in tuple(cls.everybody):
            peer.crash()

    @classmethod
    async def open(
        cls,
        server: Served,
        target: str,
        *headers: str,
        on_text: OnText | None = None,
        receive_buffer: int = 0,
    ) -> Peer:
        """Connect, up to the answer to the handshake.

        With ``on_text`` each message goes there, with the moment it was seen, rather
        than to ``receive``. ``receive_buffer`` is the kernel's, in bytes.
        """
        loop = asyncio.get_running_loop()
        lines = (
            f"GET {target} HTTP/1.1",
            f"Host: 127.0.0.1:{server.port}",
            "Upgrade: websocket",
            "Connection: Upgrade",
            "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
            "Sec-WebSocket-Version: 13",
            f"Origin: {server.origin}",
            *headers,
        )
        request = "\r\n".join((*lines, "", "")).encode()
        sock = socket.socket()
        sock.setblocking(False)
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if receive_buffer:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
            async with asyncio.timeout(OPEN_TIMEOUT):
                await loop.sock_connect(sock, ("127.0.0.1", server.port))
                _, peer = await loop.create_connection(
                    lambda: cls(request, on_text), sock=sock
                )
                assert peer._answer is not None
                await peer._answer
        except BaseException:
            sock.close()
            raise
        peer._answer = None
        return peer

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is none by name
        self._transport.write(self._request)
        self.everybody.add(self)
        self._request = b""

    # --------------------------------------------------------------------- receiving

    def data_received(self, data: bytes) -> None:
        at = time.monotonic()
        if self._buffer:
            data = self._buffer + data
            self._buffer = b""
        place = 0
        if not self.is_open:
            if self._answer is None or self._answer.done():
                return
            place = self._read_answer(data)
            if not place:
                return
        self._read_frames(data, place, at)

    def _read_answer(self, data: bytes) -> int:
        end = data.find(b"\r\n\r\n")
        if end < 0:
            self._buffer = data
            return 0
        assert self._answer is not None
        status = data[9:12]
        if status != b"101":
            body = data[end + 4 :].decode("latin-1")
            self._answer.set_exception(RefusedError(f"{status.decode()} {body}"))
            self.crash()
            return 0
        self.is_open = True
        self._answer.set_result(None)
        return end + 4

    def _read_frames(self, data: bytes, place: int, at: float) -> None:
        size = len(data)
        while size - place >= 2:
            kind, length = data[place] & 0x0F, data[place + 1]
            start = place + 2
            if length == 126:
                start += 2
                if size < start:
                    break
                length = int.from_bytes(data[place + 2 : start], "big")
            elif length == 127:
                start += 8
                if size < start:
                    break
                length = int.from_bytes(data[place + 2 : start], "big")
            if size < start + length:
                break
            place = start + length
            self._take(kind, data[start:place], at)
        self._buffer = data[place:]

    def _take(self, kind: int, payload: bytes, at: float) -> None:
        if kind == TEXT:
            if self._on_text is not None:
                self._on_text(payload, at)
                return
            if self._messages is None:
                self._messages = deque()
            self._messages.append(payload)
            self._wake()
        elif kind == PING:
            self._send_frame(PONG, payload)
        elif kind == CLOSE and not self.closed_at:
            self._note_end(at, payload)
            self._send_frame(CLOSE, payload[:2])
            if self._transport is not None:
                self._transport.close()

    def _note_end(self, at: float, payload: bytes = b"") -> None:
        self.is_open = False
        self.closed_at = at
        if len(payload) >= 2:
            self.close_code = int.from_bytes(payload[:2], "big")
            self.close_reason = payload[2:].decode()
        self._wake()
        if self._over is not None and not self._over.done():
            self._over.set_result(None)

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.closed_at:
            self._note_end(time.monotonic())
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(RefusedError("the connection was dropped"))
        self.everybody.discard(self)
        self._transport = None

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def receive(self) -> dict[str, Any] | None:
        """Return the next message; None once the connection is over."""
        while not self._messages:
            if not self.is_open:
                return None
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        return dict(json.loads(self._messages.popleft()))

    async def expect(self, kind: str) -> dict[str, Any]:
        """Skip to the next message of this type.

        Raises:
            RefusedError: the connection ended instead.
        """
        while (message := await self.receive()) is not None:
            if message["type"] == kind:
                return message
        raise RefusedError(f"{self.close_code} {self.close_reason}")

    async def wait_closed(self) -> None:
        """Wait for the end of the connection, whoever brings it."""
        if self.closed_at:
            return
        if self._over is None:
            self._over = asyncio.get_running_loop().create_future()
        await asyncio.shield(self._over)

    def listen(self, on_text: OnText | None) -> None:
        """Give each message to ``on_text`` from now on; to nobody with None."""
        self._on_text = on_text or (lambda _, __: None)
        self._messages = None

    # ----------------------------------------------------------------------- sending

    def send(self, message: dict[str, Any]) -> None:
        """Send a message; into nowhere if the connection is over."""
        self.send_text(json.dumps(message, separators=(",", ":")).encode())

    def send_text(self, payload: bytes) -> None:
        """Send a message that is JSON already."""
        self._send_frame(TEXT, payload)

    def _send_frame(self, kind: int, payload: bytes) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(frame(kind, payload))

    # ------------------------------------------------------------------------ ending

    def close(self) -> None:
        """Say goodbye; the server answers and ends the connection."""
        self._send_frame(CLOSE, struct.pack("!H", 1000))

    def leave(self) -> None:
        """Close the TCP connection without a close frame."""
        if self._transport is not None:
            self._transport.close()

    def crash(self) -> None:
        """Reset the TCP connection, as a process that dies does."""
        if self._transport is not None:
            self._transport.abort()

    def stop_reading(self) -> None:
        """Take nothing from the kernel any more, and stay."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.pause_reading()


def frame(kind: int, payload: bytes) -> bytes:
    """Make a client's frame, masked with zeros, which leaves it as it is."""
    size = len(payload)
    if size < 126:
        return struct.pack("!BBI", 0x80 | kind, 0x80 | size, 0) + payload
    assert size < 65_536
    return struct.pack("!BBHI", 0x80 | kind, 0x80 | 126, size, 0) + payload


async def connect(
    server: Served,
    credential: Credential,
    *,
    on_text: OnText | None = None,
    receive_buffer: int = 0,
) -> Peer:
    """Come in by a strategy, up to ``auth_ok``.

    Raises:
        RefusedError: the server would not have it.
    """
    strategy, value = credential.strategy, credential.value
    target, headers = f"/ws/{strategy}", []
    if strategy == "query-param":
        target += f"?token={value}"
    elif strategy == "session-cookie":
        headers.append(f"Cookie: {value}")
    peer = await Peer.open(server, target, *headers, receive_buffer=receive_buffer)
    try:
        async with asyncio.timeout(OPEN_TIMEOUT):
            if strategy == "first-message":
                await peer.expect("auth_required")
                peer.send({"type": "auth", "token": value})
            await peer.expect("auth_ok")
    except BaseException:
        peer.crash()
        raise
    if on_text is not None:
        peer.listen(on_text)
    return peer
