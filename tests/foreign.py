"""Servers that are not ours, in a thread with a loop of its own, as ``serving`` is.

Each knows nothing of the app but ASGI. What is a setting of our own server, such as the
interval of its pings, is none of theirs.
"""

from __future__ import annotations

import asyncio
import os
import socket
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import hypercorn.asyncio
import hypercorn.config
from granian.constants import Interfaces
from granian.server.embed import Server as Granian

from tests.serving import serving

__all__ = ["FOREIGN", "SERVERS", "granian", "hypercorn_"]

PATIENCE = 15.0

Run = Callable[[asyncio.Event], Awaitable[None]]
"""Serves until the event is set."""


@asynccontextmanager
async def in_a_thread(run: Run) -> AsyncIterator[None]:
    """Run a server beside the test; it has stopped when this ends."""
    ready: asyncio.Future[Callable[[], object]] = asyncio.Future()
    here = asyncio.get_running_loop()
    failures: list[BaseException] = []

    async def main() -> None:
        loop, stop = asyncio.get_running_loop(), asyncio.Event()
        tell = lambda: loop.call_soon_threadsafe(stop.set)  # noqa: E731
        here.call_soon_threadsafe(ready.set_result, tell)
        await run(stop)

    def work() -> None:
        try:
            asyncio.run(main())
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=work, name="server", daemon=True)
    thread.start()
    tell = await ready
    try:
        yield
    finally:
        tell()
        await asyncio.to_thread(thread.join, PATIENCE)
        assert not thread.is_alive(), "the server did not stop"
    if failures:
        raise failures[0]


@asynccontextmanager
async def hypercorn_(
    app: Any, *, listener: socket.socket, **_: Any
) -> AsyncIterator[int]:
    """Hypercorn: ASGI over asyncio streams and wsproto."""
    config = hypercorn.config.Config()
    config.bind = [f"fd://{os.dup(listener.fileno())}"]
    config.graceful_timeout = 1.0
    config.errorlog = None

    async def run(stop: asyncio.Event) -> None:
        await hypercorn.asyncio.serve(app, config, shutdown_trigger=stop.wait)

    async with in_a_thread(run):
        yield listener.getsockname()[1]


@asynccontextmanager
async def granian(app: Any, *, listener: socket.socket, **_: Any) -> AsyncIterator[int]:
    """Granian: a server in Rust that calls the app from threads of its own."""
    address, port = listener.getsockname()
    listener.close()
    server = Granian(app, address, port, interface=Interfaces.ASGI, log_enabled=False)

    async def run(stop: asyncio.Event) -> None:
        serving = asyncio.create_task(server.serve())
        await stop.wait()
        server.stop()  # type: ignore[no-untyped-call]
        await serving

    async with in_a_thread(run):
        yield port


FOREIGN = {"hypercorn": hypercorn_, "granian": granian}
SERVERS = {"ours": serving, **FOREIGN}
