"""The brokers with their shipped configuration, moved to where a test is."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.deploy.shipped import DEPLOY
from tests.requirements import require
from tests.servers.nginx import moved
from tests.servers.process import ServerProcess, free_ports

__all__ = ["ShippedNats", "ShippedRedis"]


class _ShippedBroker(ServerProcess):
    """One of them; ``secrets`` is the folder that secrets.sh made."""

    program: str
    configuration: str

    def __init__(self, secrets: Path) -> None:
        found = shutil.which(self.program) is not None
        require(self.program, found, f"no {self.program} on the PATH")
        super().__init__()
        (self.port,) = free_ports(1)
        self.password = (secrets / "broker_password").read_text()
        shipped = (DEPLOY / "compose" / self.configuration).read_text()
        text = moved(shipped, self.changes(secrets))
        (self.directory / self.configuration).write_text(text)

    def changes(self, secrets: Path) -> Mapping[str, str]:
        """What differs here from the container."""
        raise NotImplementedError

    async def ask(self) -> None:
        _, writer = await asyncio.open_connection("127.0.0.1", self.port)
        writer.close()
        await writer.wait_closed()


class ShippedRedis(_ShippedBroker):
    program = "redis-server"
    configuration = "redis.conf"

    def changes(self, secrets: Path) -> Mapping[str, str]:
        return {
            "/run/secrets/redis.conf": str(secrets / "redis.conf"),
            "dir /data": f"dir {self.directory}\nbind 127.0.0.1\nport {self.port}",
        }

    def command(self) -> Sequence[str | Path]:
        return ["redis-server", self.directory / self.configuration]


class ShippedNats(_ShippedBroker):
    program = "nats-server"
    configuration = "nats.conf"

    def changes(self, secrets: Path) -> Mapping[str, str]:
        beside = self.directory / "authorization.conf"
        shutil.copy(secrets / "nats.conf", beside)
        return {
            "port: 4222": f"port: {self.port}\nhost: 127.0.0.1",
            "127.0.0.1:8222": f"127.0.0.1:{free_ports(1)[0]}",
            '"/data"': f'"{self.directory}/data"',
        }

    def command(self) -> Sequence[str | Path]:
        return ["nats-server", "--config", self.directory / self.configuration]
