"""Redis servers of the tests: one alone, a cluster, and one that Sentinels watch."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from pathlib import Path

from redis.asyncio import Redis

from tests.servers.process import ServerProcess, free_ports

__all__ = ["RedisServer"]


class RedisServer(ServerProcess):
    """One server with a password. What it keeps is lost with it, unless told."""

    def __init__(self, *settings: str) -> None:
        """``settings`` are further words of its command line."""
        super().__init__()
        self.port = free_ports(1)[0]
        self.password = secrets.token_urlsafe(12)
        self._settings = settings

    @property
    def url(self) -> str:
        return f"redis://:{self.password}@127.0.0.1:{self.port}/0"

    def command(self) -> Sequence[str | Path]:
        return (
            *("redis-server", "--bind", "127.0.0.1", "--port", str(self.port)),
            *("--requirepass", self.password, "--save", ""),
            *("--enable-debug-command", "local", *self._settings),
        )

    def client(self) -> Redis:
        """Return a client to look into it with."""
        return Redis(port=self.port, password=self.password, protocol=2)

    async def ask(self) -> None:
        async with self.client() as client:
            await client.ping()
