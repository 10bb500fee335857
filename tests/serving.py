"""A real server for tests: our protocols, in a thread with a loop of its own."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from authws.service.server import Server, ServerConfig, build_config

__all__ = ["serving"]


class _Server(Server):
    """Tells when it listens, instead of being asked."""

    def __init__(
        self, config: ServerConfig, app: Any, tell: Callable[[], object]
    ) -> None:
        house = getattr(getattr(app, "state", None), "authws", None)
        super().__init__(config, drain=house.drain if house is not None else None)
        self._tell = tell

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._tell()

    @property
    def port(self) -> int:
        address = self.servers[0].sockets[0].getsockname()
        return int(address[1])


@asynccontextmanager
async def serving(
    app: Any, *, listener: socket.socket | None = None, **config: Any
) -> AsyncIterator[int]:
    """Serve ``app`` on a port of 127.0.0.1 that the system chooses; yield the port.

    ``listener`` is a bound socket, for an app that must know its port before;
    ``config`` goes to ``build_config``. The server has stopped when this ends, with
    every connection cut off that a test has left open.
    """
    loop = asyncio.get_running_loop()
    listening: asyncio.Future[None] = loop.create_future()
    failures: list[BaseException] = []
    sockets = None if listener is None else [listener]

    def tell() -> None:
        if not listening.done():
            listening.set_result(None)

    options: dict[str, Any] = {"port": 0, "drain": 1, "log_config": None, **config}
    server = _Server(
        build_config(app, **options), app, lambda: loop.call_soon_threadsafe(tell)
    )

    def run() -> None:
        factory = server.config.get_loop_factory()
        try:
            with asyncio.Runner(loop_factory=factory) as runner:
                runner.run(server.serve(sockets))
        except BaseException as error:  # a test must see it, SystemExit included
            failures.append(error)
            loop.call_soon_threadsafe(tell)

    thread = threading.Thread(target=run, name="server", daemon=True)
    thread.start()
    try:
        await listening
        if failures:
            raise RuntimeError("the server did not start") from failures[0]
        yield server.port
    finally:
        server.should_exit = True
        await asyncio.to_thread(thread.join, 15)
        assert not thread.is_alive(), "the server did not stop"
    if failures:
        raise failures[0]
