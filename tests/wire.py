"""A peer made of bytes: what no well-behaved client can be made to send."""

from __future__ import annotations

import asyncio
import os
import ssl
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import NamedTuple

__all__ = [
    "BINARY",
    "CLOSE",
    "CONTINUATION",
    "PING",
    "PONG",
    "TEXT",
    "Frame",
    "Response",
    "WirePeer",
    "frame",
    "handshake",
    "request",
    "wire",
]

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10
PATIENCE = 5.0


class Frame(NamedTuple):
    """A frame as it came: its whole first byte less the FIN bit, and its payload."""

    fin: bool
    opcode: int
    payload: bytes

    @property
    def close(self) -> tuple[int, str]:
        """Code and reason of a close frame."""
        assert self.opcode == CLOSE, self
        return struct.unpack("!H", self.payload[:2])[0], self.payload[2:].decode()


@dataclass
class Response:
    """An HTTP response as it came; names of headers in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes


def handshake(
    target: str = "/",
    *,
    method: str = "GET",
    version: str = "HTTP/1.1",
    headers: tuple[str, ...] = (),
    without: str = "",
    ws_version: str = "13",
) -> bytes:
    """A valid handshake; each argument spoils one thing."""
    lines = [
        f"{method} {target} {version}",
        "Host: 127.0.0.1",
        "Connection: Upgrade",
        "Upgrade: websocket",
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
        f"Sec-WebSocket-Version: {ws_version}",
        *headers,
    ]
    kept = [line for line in lines if not without or not line.startswith(f"{without}:")]
    return "\r\n".join([*kept, "", ""]).encode()


def request(target: str = "/", *lines: str, method: str = "GET") -> bytes:
    """A plain HTTP request without its body."""
    head = [f"{method} {target} HTTP/1.1", "Host: 127.0.0.1", *lines]
    return "\r\n".join([*head, "", ""]).encode()


def frame(opcode: int, payload: bytes = b"", *, fin: bool = True) -> bytes:
    """A frame with a mask, as a client sends it (RFC 6455, 5.2)."""
    head = bytes([(0x80 if fin else 0) | opcode])
    if len(payload) < 126:
        head += bytes([0x80 | len(payload)])
    elif len(payload) < 65536:
        head += struct.pack("!BH", 0x80 | 126, len(payload))
    else:
        head += struct.pack("!BQ", 0x80 | 127, len(payload))
    mask = os.urandom(4)
    repeated = mask * (len(payload) // 4 + 1)
    masked = bytes(a ^ b for a, b in zip(payload, repeated, strict=False))
    return head + mask + masked


class WirePeer:
    """One TCP connection to a server under test; every wait has an end."""

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self._reader = reader
        self._writer = writer

    async def send(self, data: bytes) -> None:
        """Send bytes; a server that has had enough may have gone already."""
        self._writer.write(data)
        try:
            async with asyncio.timeout(PATIENCE):
                await self._writer.drain()
        except ConnectionError:
            pass

    def end(self) -> None:
        """Close this half of the connection."""
        self._writer.write_eof()

    async def response(self) -> Response:
        """Read one HTTP response."""
        async with asyncio.timeout(PATIENCE):
            head = (await self._reader.readuntil(b"\r\n\r\n")).decode()
            status_line, *lines = head.rstrip().split("\r\n")
            pairs = (line.split(": ", 1) for line in lines)
            headers = {name.lower(): value for name, value in pairs}
            length = int(headers.get("content-length", "0"))
            body = await self._reader.readexactly(length)
        return Response(int(status_line.split()[1]), headers, body)

    async def frame(self) -> Frame:
        """Read one frame, which must not be masked."""
        async with asyncio.timeout(PATIENCE):
            first, second = await self._reader.readexactly(2)
            length = second
            if second == 126:
                (length,) = struct.unpack("!H", await self._reader.readexactly(2))
            elif second == 127:
                (length,) = struct.unpack("!Q", await self._reader.readexactly(8))
            payload = await self._reader.readexactly(length)
        return Frame(bool(first & 0x80), first & 0x7F, payload)

    async def close_frame(self) -> tuple[int, str]:
        """Read up to the close frame; return its code and reason."""
        while (got := await self.frame()).opcode != CLOSE:
            pass
        return got.close

    async def is_ended(self) -> bool:
        """Wait for the server's end of the connection; False if more bytes came."""
        async with asyncio.timeout(PATIENCE):
            try:
                return await self._reader.read(1) == b""
            except ConnectionError:
                return True

    async def upgrade(self, target: str = "/") -> None:
        """Make the WebSocket handshake."""
        await self.send(handshake(target))
        response = await self.response()
        assert response.status == 101, response


@asynccontextmanager
async def wire(
    port: int, *, tls: ssl.SSLContext | None = None
) -> AsyncIterator[WirePeer]:
    """Connect to a server on 127.0.0.1."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=tls)
    try:
        yield WirePeer(reader, writer)
    finally:
        writer.transport.abort()
        with suppress(ConnectionError):
            await writer.wait_closed()
