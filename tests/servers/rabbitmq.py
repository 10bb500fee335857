"""RabbitMQ, one node."""

from __future__ import annotations

import asyncio
import os
import secrets
from collections.abc import Sequence
from pathlib import Path

from tests.servers.process import POLL, ServerProcess, free_ports

__all__ = ["RabbitmqServer"]

PROGRAMS = Path("/usr/lib/rabbitmq/bin")
"""Not those on the PATH, which run as another user, in that one's directories."""
START = """
epmd -port "$ERL_EPMD_PORT" -address 127.0.0.1 &
exec "$@"
"""
"""Erlang's port mapper would be started by the node, and outlive it; this one ends with
the process group."""


class RabbitmqServer(ServerProcess):
    """A node of its own, with its own port mapper, directories and user."""

    patience = 90.0  # five seconds of processor time, on a machine that may be busy

    def __init__(self, settings: str = "", plugins: Sequence[str] = ()) -> None:
        """``settings`` are further lines of ``rabbitmq.conf``."""
        super().__init__()
        self.user = "authws"
        self.password = secrets.token_urlsafe(12)
        self.port, self._node_port, self._mapper_port = free_ports(3)
        for name in ("data", "logs"):
            (self.directory / name).mkdir()
        (self.directory / "enabled_plugins").write_text(f"[{','.join(plugins)}].\n")
        (self.directory / "rabbitmq.conf").write_text(
            f"""\
listeners.tcp.1 = 127.0.0.1:{self.port}
loopback_users = none
default_user = {self.user}
default_pass = {self.password}
log.console = true
log.file = false
{settings}
"""
        )

    @property
    def url(self) -> str:
        return f"amqp://{self.user}:{self.password}@127.0.0.1:{self.port}"

    def command(self) -> Sequence[str | Path]:
        return "sh", "-c", START, "sh", PROGRAMS / "rabbitmq-server"

    def environment(self) -> dict[str, str]:
        directory = self.directory
        return {
            "PATH": os.environ["PATH"],
            "HOME": str(directory),
            "LANG": "C.UTF-8",
            "ERL_EPMD_PORT": str(self._mapper_port),
            "ERL_AFLAGS": "-kernel inet_dist_use_interface {127,0,0,1}",
            "RABBITMQ_NODENAME": f"test-{self.port}@localhost",
            "RABBITMQ_DIST_PORT": str(self._node_port),
            "RABBITMQ_CONF_ENV_FILE": os.devnull,
            "RABBITMQ_CONFIG_FILE": str(directory / "rabbitmq.conf"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(directory / "enabled_plugins"),
            "RABBITMQ_MNESIA_BASE": str(directory / "data"),
            "RABBITMQ_LOG_BASE": str(directory / "logs"),
            # the node takes the script's place, and gets what is sent to it
            "RUNNING_UNDER_SYSTEMD": "true",
        }

    async def ask(self) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            writer.write(b"AMQP\0\0\x09\1")
            await reader.readexactly(1)
        finally:
            writer.close()

    async def has_noted_its_streams(self) -> None:
        """Wait until it would find its streams again if it were killed.

        That there are any it notes half a second after the first was made: Ra keeps
        its names in a table that is written so often. Killed before that, 3.10 starts
        without them, and can neither use nor make them.
        """
        (names,) = self.directory.glob("data/*/coordination/*/names.dets")
        async with asyncio.timeout(self.patience):
            while b"rabbit_stream_coordinator" not in names.read_bytes():  # noqa: ASYNC110
                await asyncio.sleep(POLL)

    async def ctl(self, *words: str) -> str:
        """Do what an operator does with ``rabbitmqctl``; return what it says."""
        process = await asyncio.create_subprocess_exec(
            PROGRAMS / "rabbitmqctl",
            "--quiet",
            *words,
            env=self.environment(),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        said, _ = await process.communicate()
        assert process.returncode == 0, said.decode()
        return said.decode()
