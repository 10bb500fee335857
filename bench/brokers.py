"""The brokers that workers are measured on: their servers, and what those use.

The servers are those of the tests (`tests/servers/`), each alone, with what it keeps
in memory or on disk as it does by itself.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

from bench.served import cpu_of

__all__ = ["BROKERS", "Broker", "broker", "why_absent"]

MEMORY = "memory"
BROKERS = (MEMORY, "redis", "nats", "rabbitmq")
NEEDS = {
    "redis": ("redis-server", "redis"),
    "nats": ("nats-server", "nats"),
    "rabbitmq": ("rabbitmq-server", "pamqp"),
}
"""The program and its client library."""


@dataclass(frozen=True)
class Broker:
    """A broker that runs."""

    name: str
    url: str
    pid: int = 0
    """The first process of its group; 0 for the one within each worker."""

    def pids(self) -> list[int]:
        """Its processes: some start others, and only those have work."""
        return [pid for pid, group in _groups() if group == self.pid and group]

    def cpu(self) -> float:
        """Seconds of processor time that it has used."""
        return sum(map(_cpu_of, self.pids()))


def why_absent(name: str) -> str:
    """Say why a broker cannot be measured here; empty if it can."""
    if name == MEMORY:
        return ""
    program, client = NEEDS[name]
    if shutil.which(program) is None:
        return f"{program} is not installed"
    if find_spec(client) is None:
        return f"{client} is not installed"
    if find_spec(f"authws.brokers.{name}") is None:
        return "this version has no such broker"
    return ""


def _cpu_of(pid: int) -> float:
    try:
        return cpu_of(pid)
    except OSError:  # it has just ended
        return 0.0


@asynccontextmanager
async def broker(name: str, core: int | None) -> AsyncIterator[Broker]:
    """Run a broker while the block does."""
    if name == MEMORY:
        yield Broker(name, "memory://")
        return
    module = import_module(f"tests.servers.{name}")
    server = getattr(module, f"{name.capitalize()}Server")()
    with _on(core):
        await server.start()
    try:
        yield Broker(name, server.url, server.pid)
    finally:
        await server.__aexit__()


@contextmanager
def _on(core: int | None) -> Iterator[None]:
    """Whatever is started in the block runs on this core."""
    if core is None:
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def _groups() -> Iterator[tuple[int, int]]:
    """Every process, and its group."""
    for path in Path("/proc").iterdir():
        if not path.name.isdigit():
            continue
        try:
            stat = (path / "stat").read_text(encoding="ascii", errors="replace")
        except OSError:  # it has just ended
            continue
        yield int(path.name), int(stat.rpartition(")")[2].split()[2])
