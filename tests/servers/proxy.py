"""A TCP proxy between a client and a server, that delays, swallows, or cuts."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.parse import urlsplit, urlunsplit

__all__ = ["Proxy", "proxy"]

CHUNK = 65_536


class Proxy:
    """What goes through it, goes as it is told to."""

    def __init__(self, host: str, port: int, address: str = "127.0.0.1") -> None:
        """Leads from ``address`` to a server."""
        self.address = address
        self.port = 0
        self.delay = 0.0
        """Seconds that each chunk takes longer, in each direction."""
        self._target = (host, port)
        self._writers: set[asyncio.StreamWriter] = set()
        self._open = asyncio.Event()
        self._open.set()
        self._is_cut = False
        self._left: int | None = None
        """How many bytes the server may still answer before it is cut."""
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        self._server = await asyncio.start_server(
            self._serve, self.address, self.port, limit=CHUNK
        )
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        self.cut()
        self._open.set()
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._server is not None:
            self._server.close()

    def swallow(self) -> None:
        """Let nothing through, and tell nobody: a pulled cable."""
        self._open.clear()

    def cut(self) -> None:
        """End every connection, and each new one at once: a router that resets."""
        self._is_cut = True
        for writer in tuple(self._writers):
            writer.transport.abort()

    def cut_once(self) -> None:
        """End every connection, and let new ones through."""
        self.cut()
        self.mend()

    def cut_after(self, count: int) -> None:
        """The same, once so many more bytes came from the server: as a rule that is in
        the middle of a frame."""
        self._left = count

    def mend(self) -> None:
        """Let everything through again."""
        self._is_cut = False
        self.delay = 0.0
        self._open.set()

    def through(self, url: str) -> str:
        """Return a URL of the server's that leads through here."""
        parts = urlsplit(url)
        userinfo, at, _ = parts.netloc.rpartition("@")
        return urlunsplit(
            parts._replace(netloc=f"{userinfo}{at}{self.address}:{self.port}")
        )

    async def _serve(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self._writers.add(writer)
        try:
            if self._is_cut:
                writer.transport.abort()
                return
            await self._open.wait()
            with contextlib.suppress(OSError):
                there = await asyncio.open_connection(*self._target, limit=CHUNK)
                self._writers.add(there[1])
                both = [
                    asyncio.create_task(self._pump(reader, there[1])),
                    asyncio.create_task(self._pump(there[0], writer, answers=True)),
                ]
                self._tasks.update(both)
                await asyncio.gather(*both, return_exceptions=True)
                self._tasks.difference_update(both)
                self._writers.discard(there[1])
        finally:
            self._writers.discard(writer)
            writer.close()

    async def _pump(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        *,
        answers: bool = False,
    ) -> None:
        loop = asyncio.get_running_loop()
        waiting: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(1024)

        async def read() -> None:
            while chunk := await reader.read(CHUNK):
                await waiting.put((loop.time() + self.delay, chunk))
            await waiting.put((0.0, b""))

        reading = asyncio.create_task(read())
        try:
            while True:
                due, chunk = await waiting.get()
                await asyncio.sleep(max(0.0, due - loop.time()))
                await self._open.wait()
                if not chunk:
                    break
                if answers and self._left is not None:
                    writer.write(chunk[: self._left])
                    self._left -= len(chunk)
                    if self._left <= 0:
                        self._left = None
                        self.cut_once()
                    continue
                writer.write(chunk)
                await writer.drain()
        except OSError:
            pass
        finally:
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)
            writer.close()


@asynccontextmanager
async def proxy(url: str, address: str = "127.0.0.1") -> AsyncIterator[Proxy]:
    """Stand between clients and the server of this URL."""
    parts = urlsplit(url)
    assert parts.hostname is not None
    assert parts.port is not None
    made = Proxy(parts.hostname, parts.port, address)
    await made.start()
    try:
        yield made
    finally:
        await made.stop()
