"""A clock to set, a PostgreSQL server of one's own, an issuer on loopback."""

from __future__ import annotations

import asyncio
import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from authws.clock import Clock

NOW = 1_800_000_000.0


class FakeClock(Clock):
    """Stands still until it is told to go on."""

    def __init__(self) -> None:
        self.time = NOW

    def now(self) -> float:
        return self.time

    def monotonic(self) -> float:
        return self.time - NOW

    def advance(self, seconds: float) -> None:
        self.time += seconds


@dataclass(frozen=True)
class Postgres:
    """A running server, for as long as the tests take."""

    port: int
    password: str

    def url(self, database: str = "postgres", password: str | None = None) -> str:
        password = self.password if password is None else password
        return f"postgresql://authws:{password}@127.0.0.1:{self.port}/{database}"

    @asynccontextmanager
    async def fresh_database(self) -> AsyncIterator[str]:
        import asyncpg

        name = f"test_{secrets.token_hex(6)}"
        admin = await asyncpg.connect(self.url())
        try:
            await admin.execute(f"CREATE DATABASE {name}")
            yield self.url(name)
            await admin.execute(f"DROP DATABASE {name} WITH (FORCE)")
        finally:
            await admin.close()


def postgres_programs() -> Path | None:
    """Return the folder that holds ``initdb`` and ``postgres``."""
    on_path = shutil.which("initdb")
    folders = [Path(on_path).resolve().parent] if on_path else []
    folders += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    for folder in folders:
        if all((folder / name).exists() for name in ("initdb", "postgres")):
            return folder
    return None


def missing_for_postgres() -> str | None:
    """Say what PostgreSQL would need here, or nothing."""
    if postgres_programs() is None:
        return "no initdb and postgres on PATH or in /usr/lib/postgresql/*/bin"
    if find_spec("asyncpg") is None:
        return "the driver asyncpg is not installed (authws[postgres])"
    if os.getuid() == 0 and _unprivileged() is None:
        return "postgres refuses to run as root, and there is no user to run it as"
    return None


@contextmanager
def running_postgres() -> Iterator[Postgres]:
    """Start a server in a folder of its own, on a free port, on loopback only."""
    programs = postgres_programs()
    assert programs is not None
    root = Path(tempfile.mkdtemp(prefix="authws-postgres-"))
    server: subprocess.Popen[bytes] | None = None
    try:
        password = secrets.token_hex(16)
        (root / "password").write_text(password)
        identity = _identity(root)
        data = root / "data"
        subprocess.run(
            [
                programs / "initdb",
                *("--pgdata", data, "--username=authws", "--auth=scram-sha-256"),
                *("--pwfile", root / "password", "--no-sync"),
                *("--encoding=UTF8", "--locale=C"),
            ],
            check=True,
            cwd=root,
            stdout=subprocess.DEVNULL,
            **identity,
        )
        port = _free_port()
        with (root / "log").open("wb") as log:
            server = subprocess.Popen(
                [
                    programs / "postgres",
                    *("-D", data, "-h", "127.0.0.1", "-p", str(port), "-k", ""),
                    *("-c", "fsync=off", "-c", "max_connections=200"),
                ],
                cwd=root,
                stdout=log,
                stderr=log,
                **identity,
            )
        _wait_until_ready(server, port, root / "log")
        yield Postgres(port, password)
    finally:
        if server is not None:
            server.send_signal(signal.SIGINT)  # PostgreSQL's "fast shutdown"
            try:
                server.wait(20)
            except subprocess.TimeoutExpired:
                server.send_signal(signal.SIGQUIT)
                server.wait(20)
        shutil.rmtree(root)


def _unprivileged() -> pwd.struct_passwd | None:
    for name in ("postgres", "nobody"):
        try:
            return pwd.getpwnam(name)
        except KeyError:
            continue
    return None


def _identity(root: Path) -> dict[str, Any]:
    """Return who runs the server, having handed the folder over."""
    user = _unprivileged()
    if os.getuid() != 0 or user is None:
        return {}
    for path in (root, root / "password"):
        os.chown(path, user.pw_uid, user.pw_gid)
    return {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    assert isinstance(port, int)
    return port


def _wait_until_ready(server: subprocess.Popen[bytes], port: int, log: Path) -> None:
    deadline = time.monotonic() + 30
    while "ready to accept connections" not in log.read_text(errors="replace"):
        if server.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"postgres did not start:\n{log.read_text()[-2000:]}")
        time.sleep(0.05)


@dataclass
class Issuer:
    """Serves one answer to everybody, and counts."""

    body: bytes = b'{"keys": []}'
    status: str = "200 OK"
    headers: tuple[str, ...] = ()
    delay: float = 0.0
    endless: bool = False
    requests: list[str] = field(default_factory=list)
    sent: int = 0
    url: str = ""

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[Issuer]:
        server = await asyncio.start_server(self._answer, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{port}/jwks.json"
        async with server:
            yield self

    async def _answer(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        try:
            request = await reader.readuntil(b"\r\n\r\n")
            self.requests.append(request.decode("latin-1"))
            await asyncio.sleep(self.delay)
            length = () if self.endless else (f"Content-Length: {len(self.body)}",)
            head = (f"HTTP/1.1 {self.status}", "Connection: close")
            lines = (*head, *length, *self.headers, "", "")
            writer.write("\r\n".join(lines).encode() + self.body)
            while self.endless:
                writer.write(b" " * 65_536)
                await writer.drain()
                self.sent += 65_536
            await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()
