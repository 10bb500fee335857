"""The service with a window into its process, for the soak and the footprint.

Started as ``python -m bench.watched SOCKET``, with the settings of the environment. On
each connection to the UNIX socket it answers one JSON object: how many tasks, open
connections and so on there are. ``collect`` collects the garbage first; ``trace``
starts tracemalloc, ``growth`` says which lines hold more than then, and ``holds`` how
many bytes more each file's lines hold.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import socket
import sys
import threading
import tracemalloc
from pathlib import Path
from typing import Any

from authws.service.app import create_app
from authws.service.house import House
from authws.service.server import Server, ServerConfig, build_config
from authws.service.settings import Settings

__all__: list[str] = []

GROWTH_LINES = 25


class Window:
    """Answers what is asked about the process."""

    def __init__(self, house: House) -> None:
        self._house = house
        self._before: tracemalloc.Snapshot | None = None
        self._open = 0

    async def answer(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self._open += 1
        question = (await reader.readline()).strip().decode()
        if question == "collect":
            gc.collect()
        answer = self._numbers()
        if question == "trace":
            gc.collect()
            tracemalloc.start(8)
            self._before = tracemalloc.take_snapshot()
        elif question == "growth":
            answer["growth"] = self._growth()
        elif question == "holds":
            answer["holds"] = self._holds()
        writer.write(json.dumps(answer).encode() + b"\n")
        await writer.drain()
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
        self._open -= 1

    def _numbers(self) -> dict[str, Any]:
        house = self._house
        return {
            # without those that are answering
            "tasks": len(asyncio.all_tasks()) - self._open,
            "windows": self._open,
            "threads": threading.active_count(),
            "connections": len(house.hub.connections),
            "present": house.door.present.inside,
            "strangers": house.door.strangers.inside,
            "rooms": len(house.hub.rooms),
            "objects": len(gc.get_objects()),
        }

    def _growth(self) -> list[str]:
        gc.collect()
        if self._before is None:
            return []
        now = tracemalloc.take_snapshot()
        statistics = now.compare_to(self._before, "lineno")
        return [str(line) for line in statistics[:GROWTH_LINES]]

    def _holds(self) -> dict[str, int]:
        gc.collect()
        assert self._before is not None, "ask it to trace first"
        now = tracemalloc.take_snapshot()
        return {
            one.traceback[0].filename: one.size_diff
            for one in now.compare_to(self._before, "filename")
        }


class WatchedServer(Server):
    """Opens the window as soon as it listens, and says where it is."""

    def __init__(self, config: ServerConfig, house: House, window: Path) -> None:
        super().__init__(config, drain=house.drain)
        self._house = house
        self._window = window
        self._answering: asyncio.Server | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        # kept: uvloop closes a server that nobody refers to
        self._answering = await asyncio.start_unix_server(
            Window(self._house).answer, self._window
        )
        print(f"authws is at http://127.0.0.1:{self._house.settings.port}", flush=True)


def serve(listener: socket.socket, window: Path) -> None:
    """Serve as ``authws serve`` does, until a signal ends it."""
    settings = Settings().model_copy(update={"port": listener.getsockname()[1]})
    app = create_app(settings)
    config = build_config(
        app,
        max_message_bytes=settings.max_message_bytes,
        drain=settings.drain,
        ping_interval=settings.ping_interval,
        ping_timeout=settings.ping_timeout,
        log_level="warning",
    )
    house: House = app.state.authws
    WatchedServer(config, house, window).run(sockets=[listener])


if __name__ == "__main__":
    with socket.create_server(("127.0.0.1", 0)) as listener:
        serve(listener, Path(sys.argv[1]))
