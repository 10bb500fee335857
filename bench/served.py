"""The service under load: ``authws serve`` in a process, and on a core, of its own."""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

__all__ = [
    "PASSWORD",
    "Cores",
    "Served",
    "allow_open_files",
    "cpu_of",
    "pinned",
    "rss_of",
    "served",
    "served_by",
    "settled_rss",
    "use_cores",
]

PASSWORD = "correct horse battery staple"
OPEN_FILES = 20_000
START_TIMEOUT = 30.0
STOP_TIMEOUT = 30.0
CPUCLOCK_SCHED = 2
"""As the kernel and glibc make the id of a process's clock."""


@dataclass(frozen=True, slots=True)
class Cores:
    """Where the two sides run: apart, if there are two cores to choose from."""

    server: int | None
    generator: int | None

    @property
    def are_apart(self) -> bool:
        return self.server != self.generator


def use_cores() -> Cores:
    """Pin this process, the generator, and choose the server's core."""
    allow_open_files()
    if not hasattr(os, "sched_setaffinity"):
        return Cores(None, None)
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        return Cores(None, None)
    os.sched_setaffinity(0, {cores[1]})
    return Cores(cores[0], cores[1])


def allow_open_files() -> None:
    """Raise the soft limit: each connection is a file, here and in the server."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, OPEN_FILES)
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


@dataclass
class Served:
    """A running service, seen from outside."""

    process: asyncio.subprocess.Process
    origin: str
    port: int
    data_dir: Path

    @property
    def pid(self) -> int:
        return self.process.pid

    def rss(self) -> int:
        """Bytes of memory that the server occupies."""
        return rss_of(self.pid)

    def files(self) -> Counter[str]:
        """How many file descriptors it has open: ``database``, and all the ``others``.

        The database's come and go with the pool of its connections.
        """
        found: Counter[str] = Counter()
        for descriptor in Path(f"/proc/{self.pid}/fd").iterdir():
            with contextlib.suppress(OSError):  # closed since it was listed
                is_database = "/authws.db" in os.readlink(descriptor)
                found["database" if is_database else "others"] += 1
        return found

    def cpu(self) -> float:
        """Seconds of processor time it has used."""
        return cpu_of(self.pid)

    async def settled_rss(self) -> int:
        """Wait until its memory stands still, and return it."""
        return await settled_rss(self.pid)

    def http(self, **options: Any) -> httpx.AsyncClient:
        """A client that comes from a page of the service's own origin."""
        headers = {"origin": self.origin, **options.pop("headers", {})}
        return httpx.AsyncClient(
            base_url=self.origin,
            headers=headers,
            timeout=options.pop("timeout", 60),
            trust_env=False,
            **options,
        )

    async def login(self, name: str) -> dict[str, Any]:
        """Log in over REST, for tokens."""
        async with self.http() as http:
            answer = await http.post(
                "/auth/login", json={"username": name, "password": PASSWORD}
            )
        answer.raise_for_status()
        return dict(answer.json())

    async def token(self, name: str) -> str:
        return str((await self.login(name))["access_token"])

    async def cookie(self, name: str) -> str:
        """Log in over REST, for a session cookie; return the ``Cookie`` header."""
        async with self.http() as http:
            answer = await http.post(
                "/auth/session", json={"username": name, "password": PASSWORD}
            )
        answer.raise_for_status()
        return "; ".join(f"{name}={value}" for name, value in answer.cookies.items())

    async def metrics(self) -> dict[str, float]:
        """Every sample of ``/metrics``, by its name with labels."""
        async with self.http() as http:
            answer = await http.get("/metrics")
        answer.raise_for_status()
        samples = (
            line.rpartition(" ")
            for line in answer.text.splitlines()
            if not line.startswith("#")
        )
        return {name: float(value) for name, _, value in samples}


def rss_of(pid: int) -> int:
    """Bytes of memory that a process occupies."""
    status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    for line in status.splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    return 0  # it has just ended


def cpu_of(pid: int) -> float:
    """Seconds of processor time that a process has used, in all of its threads."""
    # the clock of another process, to the nanosecond: clock_getcpuclockid(3)
    return time.clock_gettime((~pid << 3) | CPUCLOCK_SCHED)


async def settled_rss(pid: int, *, still: float = 2.0, within: float = 20.0) -> int:
    """Wait until a process's memory stands ``still`` for a while, and return it.

    Nothing can make another process collect its garbage; it does so as it works, and
    what it frees in the background it frees in the first seconds.
    """
    loop = asyncio.get_running_loop()
    until = loop.time() + within
    before, same_since = rss_of(pid), loop.time()
    while loop.time() < until and loop.time() - same_since < still:
        await asyncio.sleep(0.25)
        now = rss_of(pid)
        if abs(now - before) > 128 * 1024:
            before, same_since = now, loop.time()
    return rss_of(pid)


@asynccontextmanager
async def served(
    users: Sequence[str],
    *,
    core: int | None = None,
    admin: str = "",
    program: Sequence[str] = ("-m", "authws", "serve", "--port", "0"),
    **settings: Any,
) -> AsyncIterator[Served]:
    """Run the service in a directory of its own, with these users and settings.

    ``admin`` names the user who gets the scope of that name as well. ``program`` is
    what Python runs; it says where it is the way ``authws serve`` does.
    """
    async with served_by(
        1, users, core=core, admin=admin, program=program, **settings
    ) as [server]:
        yield server


@asynccontextmanager
async def served_by(
    workers: int,
    users: Sequence[str],
    *,
    core: int | None = None,
    admin: str = "",
    program: Sequence[str] = ("-m", "authws", "serve", "--port", "0"),
    **settings: Any,
) -> AsyncIterator[list[Served]]:
    """The same by several workers, each on a port of its own: so it is known who is
    connected to which."""
    async with AsyncExitStack() as stack:
        directory = stack.enter_context(
            tempfile.TemporaryDirectory(prefix="authws-bench-")
        )
        environment = {
            **{k: v for k, v in os.environ.items() if not k.startswith("AUTHWS_")},
            "AUTHWS_DATA_DIR": f"{directory}/data",
            "AUTHWS_LOGIN_RATE": "0",
            **{f"AUTHWS_{k.upper()}": str(v) for k, v in settings.items()},
        }
        # one after the other: the first makes the data directory
        for name in users:
            await _add_user(name, environment, is_admin=name == admin)
        yield [
            await stack.enter_async_context(
                _served(Path(directory), environment, (*pinned(core), *command))
            )
            for command in [(sys.executable, *program)] * workers
        ]


@asynccontextmanager
async def _served(
    directory: Path, environment: dict[str, str], command: Sequence[str]
) -> AsyncIterator[Served]:
    log = _log(directory)
    process = await asyncio.create_subprocess_exec(
        *command, env=environment, stdout=asyncio.subprocess.PIPE, stderr=log
    )
    os.close(log)
    try:
        async with asyncio.timeout(START_TIMEOUT):
            origin = await _origin(process)
        port = int(origin.rpartition(":")[2])
        yield Served(process, origin, port, directory / "data")
    finally:
        await _stop(process)


def pinned(core: int | None) -> list[str]:
    """What a command begins with that runs on this core."""
    return [] if core is None else ["taskset", "-c", str(core)]


async def _add_user(name: str, environment: dict[str, str], *, is_admin: bool) -> None:
    scopes = ["join:*", "publish:*", *(["admin"] if is_admin else [])]
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "authws", "user", "add", name, "--password-stdin"),
        *(option for scope in scopes for option in ("--scope", scope)),
        env=environment,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    _, errors = await process.communicate(PASSWORD.encode())
    assert process.returncode == 0, f"user {name}: {errors.decode()}"


def _log(directory: Path) -> int:
    """Open a file for the server's log, which its operator would keep as well."""
    return os.open(directory / "server.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)


async def _origin(process: asyncio.subprocess.Process) -> str:
    """Read the line in which the server says where it is."""
    assert process.stdout is not None
    while line := await process.stdout.readline():
        if line.startswith(b"authws is at "):
            return line.split()[3].decode()
    raise RuntimeError("the server did not start; `authws doctor` may say why")


async def _stop(process: asyncio.subprocess.Process) -> None:
    if process.returncode is not None:
        return
    process.terminate()
    try:
        async with asyncio.timeout(STOP_TIMEOUT):
            await process.wait()
    except TimeoutError:
        process.kill()
        await process.wait()
