"""A PostgreSQL server, and fresh databases in it."""

from __future__ import annotations

import asyncio
import os
import secrets
import shutil
import signal
import subprocess
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tests.requirements import require
from tests.servers.process import ServerProcess, free_ports, unprivileged

__all__ = ["PostgresServer"]


class PostgresServer(ServerProcess):
    """Private, on loopback only; ``stop`` is PostgreSQL's "fast shutdown"."""

    def __init__(self, certificate: tuple[Path, Path] | None = None) -> None:
        """``certificate`` and key: it offers TLS, and takes nothing else."""
        programs = _programs()
        require(
            "postgresql",
            programs is not None,
            "no initdb and postgres on PATH or in /usr/lib/postgresql/*/bin",
        )
        require(
            "postgresql",
            find_spec("asyncpg") is not None,
            "the driver asyncpg is not installed (authws[postgres])",
        )
        self._user = unprivileged("postgres", "nobody") if os.getuid() == 0 else None
        require(
            "postgresql",
            os.getuid() != 0 or self._user is not None,
            "postgres refuses to run as root, and there is no user to run it as",
        )
        assert programs is not None
        super().__init__()
        self._programs = programs
        self._data = self.directory / "data"
        self._certificate = certificate
        self.password = secrets.token_hex(16)
        (self.port,) = free_ports(1)

    def url(self, database: str = "postgres", password: str | None = None) -> str:
        """Where a database of it is."""
        password = self.password if password is None else password
        return f"postgresql://authws:{password}@127.0.0.1:{self.port}/{database}"

    @asynccontextmanager
    async def fresh_database(self) -> AsyncIterator[str]:
        """Make a database, and drop it in the end."""
        name = await self.create_database()
        yield self.url(name)
        await self.drop_database(name)

    async def create_database(self) -> str:
        """Make a database; return its name."""
        name = f"test_{secrets.token_hex(6)}"
        await self.execute(f"CREATE DATABASE {name}")
        return name

    async def drop_database(self, name: str) -> None:
        """Drop a database, with whoever is connected."""
        await self.execute(f"DROP DATABASE {name} WITH (FORCE)")

    async def execute(self, statement: str) -> None:
        """Do something that no user of it may."""
        import asyncpg

        admin = await asyncpg.connect(self.url())
        try:
            await admin.execute(statement)
        finally:
            await admin.close()

    def command(self) -> Sequence[str | Path]:
        return (
            self._programs / "postgres",
            *("-D", self._data, "-h", "127.0.0.1", "-p", str(self.port), "-k", ""),
            *("-c", "fsync=off", "-c", "max_connections=200"),
            *self._tls(),
        )

    def identity(self) -> dict[str, Any]:
        if self._user is None:
            return {}
        user, group = self._user.pw_uid, self._user.pw_gid
        return {"user": user, "group": group, "extra_groups": []}

    async def ask(self) -> None:
        await self.execute("SELECT 1")

    async def start(self) -> None:
        if not self._data.exists():
            await self._initialise()
        await super().start()

    async def kill(self) -> None:
        children = set(_children(self.pid)) if self.is_running else set()
        await super().kill()
        async with asyncio.timeout(10):
            # whose memory is shared with the next life's, which would not start
            while _processes().keys() & children:  # noqa: ASYNC110 - nothing tells
                await asyncio.sleep(0.01)

    def send(self, number: signal.Signals) -> None:
        if number == signal.SIGTERM:  # by which it would wait for its clients to leave
            os.kill(self.pid, signal.SIGINT)
            return
        # its children lead process groups of their own; stopped, it makes no more
        os.kill(self.pid, signal.SIGSTOP)
        for pid in (*_children(self.pid), self.pid):
            with suppress(ProcessLookupError):
                os.kill(pid, number)

    def _tls(self) -> list[str]:
        """Copy certificate and key to where the server may have them."""
        if self._certificate is None:
            return []
        words = ["-c", "ssl=on"]
        for name, file in zip(("cert", "key"), self._certificate, strict=True):
            copy = self.directory / name
            copy.write_bytes(file.read_bytes())
            copy.chmod(0o600)
            if self._user is not None:
                os.chown(copy, self._user.pw_uid, self._user.pw_gid)
            words += ["-c", f"ssl_{name}_file={copy}"]
        return words

    async def _initialise(self) -> None:
        password = self.directory / "password"
        password.write_text(self.password)
        if self._user is not None:
            for path in (self.directory, password):
                os.chown(path, self._user.pw_uid, self._user.pw_gid)
        initdb = await asyncio.create_subprocess_exec(
            self._programs / "initdb",
            *("--pgdata", self._data, "--username=authws", "--auth=scram-sha-256"),
            *("--pwfile", password, "--no-sync", "--encoding=UTF8", "--locale=C"),
            cwd=self.directory,
            stdout=subprocess.DEVNULL,
            **self.identity(),
        )
        assert await initdb.wait() == 0
        if self._certificate is not None:
            rules = self._data / "pg_hba.conf"
            rules.write_text("hostssl all all 127.0.0.1/32 scram-sha-256\n")


def _programs() -> Path | None:
    """Return the folder that holds ``initdb`` and ``postgres``."""
    on_path = shutil.which("initdb")
    folders = [Path(on_path).resolve().parent] if on_path else []
    folders += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    for folder in folders:
        if all((folder / name).exists() for name in ("initdb", "postgres")):
            return folder
    return None


def _children(pid: int) -> list[int]:
    return [child for child, parent in _processes().items() if parent == pid]


def _processes() -> dict[int, int]:
    """Every living process's parent; one that ended and was not buried is dead."""
    listed = subprocess.run(
        ["ps", "-A", "-o", "pid=,ppid=,stat="],
        check=True,
        capture_output=True,
        text=True,
    )
    lines = (line.split() for line in listed.stdout.splitlines())
    return {int(pid): int(parent) for pid, parent, state in lines if state[0] != "Z"}
