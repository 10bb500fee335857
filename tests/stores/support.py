"""A clock to set, and an issuer on loopback."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from authws.clock import Clock

NOW = 1_800_000_000.0


class FakeClock(Clock):
    """Stands still until it is told to go on."""

    def __init__(self) -> None:
        self.time = NOW

    def now(self) -> float:
        return self.time

    def monotonic(self) -> float:
        return self.time - NOW

    def advance(self, seconds: float) -> None:
        self.time += seconds


@dataclass
class Issuer:
    """Serves one answer to everybody, and counts."""

    body: bytes = b'{"keys": []}'
    status: str = "200 OK"
    headers: tuple[str, ...] = ()
    delay: float = 0.0
    endless: bool = False
    requests: list[str] = field(default_factory=list)
    sent: int = 0
    url: str = ""

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[Issuer]:
        server = await asyncio.start_server(self._answer, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{port}/jwks.json"
        async with server:
            yield self

    async def _answer(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        try:
            request = await reader.readuntil(b"\r\n\r\n")
            self.requests.append(request.decode("latin-1"))
            await asyncio.sleep(self.delay)
            length = () if self.endless else (f"Content-Length: {len(self.body)}",)
            head = (f"HTTP/1.1 {self.status}", "Connection: close")
            lines = (*head, *length, *self.headers, "", "")
            writer.write("\r\n".join(lines).encode() + self.body)
            while self.endless:
                writer.write(b" " * 65_536)
                await writer.drain()
                self.sent += 65_536
            await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()
