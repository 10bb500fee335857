"""A NATS server of the tests' own."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Sequence
from pathlib import Path

from tests.servers.process import ServerProcess, free_ports

__all__ = ["NatsServer"]

CONFIGURATION = """
listen: 127.0.0.1:{port}
{jetstream}
{authorization}
{more}
"""
JETSTREAM = 'jetstream {{ store_dir: "{store}" }}'
AUTHORIZATION = "authorization {{ user: {user}, password: {password} }}"


class NatsServer(ServerProcess):
    """One ``nats-server``, which keeps its streams in a directory of its own."""

    def __init__(
        self,
        *,
        has_jetstream: bool = True,
        authorization: str = AUTHORIZATION,
        more: str = "",
    ) -> None:
        """``authorization`` and ``more`` are parts of its configuration, in which
        ``{user}``, ``{password}`` and ``{directory}`` may stand; a brace is two."""
        super().__init__()
        self.has_jetstream = has_jetstream
        self.user = "authws"
        self.password = secrets.token_hex(12)
        (self.port,) = free_ports(1)
        self.store = self.directory / "store"
        self._authorization = authorization
        self._more = more

    @property
    def url(self) -> str:
        return f"nats://{self.user}:{self.password}@127.0.0.1:{self.port}"

    def command(self) -> Sequence[str | Path]:
        words = {
            "user": self.user,
            "password": f'"{self.password}"',  # it might pass for a number
            "directory": self.directory,
            "store": self.store,
        }
        configuration = self.directory / "nats.conf"
        configuration.write_text(
            CONFIGURATION.format(
                port=self.port,
                jetstream=JETSTREAM.format(**words) if self.has_jetstream else "",
                authorization=self._authorization.format(**words),
                more=self._more.format(**words),
            )
        )
        configuration.chmod(0o600)
        return "nats-server", "--config", configuration

    async def ask(self) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            assert (await reader.readline()).startswith(b"INFO ")
        finally:
            writer.close()
