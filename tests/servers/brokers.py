"""The brokers' servers by name, and what each needs of the machine."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from typing import Protocol

from tests.requirements import require

__all__ = ["KINDS", "BrokerServer", "broker_server", "require_server"]

KINDS = ("redis", "redis-cluster", "redis-sentinel", "nats", "rabbitmq")
PROGRAMS = {
    "redis": ("redis-server", "redis"),
    "nats": ("nats-server", "nats"),
    "rabbitmq": ("rabbitmq-server", "pamqp"),
}
"""By the first word of a kind: the program and its client library."""
DURABLE = {"redis": ("--appendonly", "yes", "--appendfsync", "always")}
"""What makes a kind keep what it has; the others do by themselves."""


class BrokerServer(Protocol):
    """What a test may do to a broker."""

    @property
    def url(self) -> str:
        """Where it is, with the password."""

    async def start(self) -> None: ...
    async def stop(self) -> None: ...
    async def kill(self) -> None: ...
    def pause(self) -> None: ...
    def resume(self) -> None: ...
    async def __aenter__(self) -> BrokerServer: ...
    async def __aexit__(self, *_: object) -> None: ...


def require_server(kind: str) -> None:
    """Skip the test where a kind's program or its client is missing."""
    program, client = PROGRAMS[kind.partition("-")[0]]
    require(kind, shutil.which(program) is not None, f"no {program} on the PATH")
    require(kind, find_spec(client) is not None, f"{client} is not installed")


def broker_server(kind: str, *, is_durable: bool = False) -> BrokerServer:
    """Return a server of this kind, to be started with ``async with``; durable, it
    keeps what it has acknowledged when it is killed."""
    require_server(kind)
    name = kind.partition("-")[0]
    module = import_module(f"tests.servers.{name}")
    words = "".join(word.capitalize() for word in kind.split("-"))
    make: Callable[..., BrokerServer] = getattr(module, f"{words}Server")
    return make(*DURABLE.get(kind, ())) if is_durable else make()
