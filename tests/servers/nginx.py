"""nginx with the configuration that is shipped in deploy/, moved to where a test is."""

from __future__ import annotations

import asyncio
import getpass
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.certificates import Certificates
from tests.requirements import require
from tests.servers.process import ServerProcess, free_ports

__all__ = ["NginxServer", "moved"]

DEPLOY = Path(__file__).parents[2] / "deploy"
UPSTREAMS = ("10.89.47.11:8000", "10.89.47.12:8000")
"""As in deploy/compose/upstream.conf."""


def moved(text: str, changes: Mapping[str, str]) -> str:
    """Replace what differs in a test, and nothing that is not there."""
    for shipped, here in changes.items():
        assert shipped in text, shipped
        text = text.replace(shipped, here)
    return text


class NginxServer(ServerProcess):
    """The proxy of deploy/compose in front of two services on this machine."""

    def __init__(
        self,
        certificates: Certificates,
        services: tuple[int, int],
        changes: Mapping[str, str] | None = None,
    ) -> None:
        """``services`` are their ports; ``changes`` are made to authws.conf."""
        require("nginx", shutil.which("nginx") is not None, "no nginx on the PATH")
        super().__init__()
        (self.port,) = free_ports(1)
        self.logs = self.directory / "logs"
        self.logs.mkdir()
        (self.directory / "authws").mkdir()
        here = f"{self.directory}/"
        site = {
            "listen 443 ssl": f"listen 127.0.0.1:{self.port} ssl",
            "/etc/nginx/tls/fullchain.pem": str(certificates.certificate),
            "/etc/nginx/tls/privkey.pem": str(certificates.key),
            "/var/log/nginx/": f"{self.logs}/",
            **(changes or {}),
        }
        upstream = {
            shipped: f"127.0.0.1:{port}"
            for shipped, port in zip(UPSTREAMS, services, strict=True)
        }
        main = {
            "/tmp/": here,  # noqa: S108 - what is replaced, not what is used
            "/etc/nginx/": here,
            "/var/log/nginx/": f"{self.logs}/",
        }
        self._write("authws/authws.conf", "nginx/authws.conf", site)
        self._write("authws/upstream.conf", "compose/upstream.conf", upstream)
        self._write("nginx.conf", "compose/nginx.conf", main)

    def command(self) -> Sequence[str | Path]:
        return [*self._nginx, "-g", f"daemon off; {self._user}"]

    def tested(self) -> Sequence[str | Path]:
        """Return the command that tells whether the configuration is one."""
        return [*self._nginx, "-t", "-g", self._user]

    async def ask(self) -> None:
        _, writer = await asyncio.open_connection("127.0.0.1", self.port)
        writer.close()
        await writer.wait_closed()

    @property
    def written(self) -> str:
        """All that it wrote to any log so far."""
        files = sorted(self.logs.iterdir())
        return self.log + "".join(file.read_text(errors="replace") for file in files)

    @property
    def _nginx(self) -> list[str | Path]:
        errors = self.logs / "start.log"
        return ["nginx", "-e", errors, "-c", self.directory / "nginx.conf"]

    @property
    def _user(self) -> str:
        """Root's workers become somebody else, whose the directory is not."""
        return f"user {getpass.getuser()};" if os.geteuid() == 0 else ""

    def _write(self, name: str, shipped: str, changes: Mapping[str, str]) -> None:
        text = (DEPLOY / shipped).read_text(encoding="utf-8")
        (self.directory / name).write_text(moved(text, changes), encoding="utf-8")
