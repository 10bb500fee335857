"""A server in a process of its own: to be sent signals, stopped, killed, and outlived.

Everything else runs the server in a thread of the test (``serving``, ``running``).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import time
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from authws.cli.stores import opened
from authws.cli.user import DEFAULT_SCOPES
from authws.service.settings import Settings
from tests.databases import url_for

__all__ = ["PASSWORD", "Daemon", "daemon", "serve", "users"]

PASSWORD = "correct horse battery staple"
PATIENCE = 20.0


@dataclass(frozen=True)
class Process:
    """A process that is no child of ours, known by what no later one has."""

    pid: int
    started: str

    @classmethod
    def of(cls, pid: int) -> Process | None:
        """The process that has this pid now; None if it has ended."""
        try:
            stat = Path(f"/proc/{pid}/stat").read_text()
        except OSError:
            return None
        state, *fields = stat.rpartition(")")[2].split()
        return None if state == "Z" else cls(pid, fields[18])

    @property
    def lives(self) -> bool:
        return Process.of(self.pid) == self


def _children(pid: int) -> list[int]:
    try:
        return [*map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())]
    except OSError:
        return []


@dataclass
class Daemon:
    """A running process, its port, and what it says."""

    process: asyncio.subprocess.Process
    port: int
    _errors: Path
    told_at: float = field(default=0.0)
    _started: set[Process] = field(default_factory=set)
    """Every worker that was seen."""

    @property
    def origin(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def errors(self) -> str:
        """What it wrote to stderr so far."""
        return self._errors.read_text()

    def workers(self) -> set[int]:
        """The processes that it has started, as far as they live."""
        found = {Process.of(pid) for pid in _children(self.process.pid)}
        self._started |= {one for one in found if one is not None}
        return {one.pid for one in self._started if one.lives}

    async def until_gone(self, *pids: int) -> None:
        """Wait until none of these workers lives."""
        async with asyncio.timeout(PATIENCE):
            while self.workers() & {*pids}:  # noqa: ASYNC110 - nothing tells of it
                await asyncio.sleep(0.01)

    def end_workers(self) -> None:
        """Leave none behind: those that a parent leaves have no other."""
        for pid in self.workers():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def http(self, **options: str) -> httpx.AsyncClient:
        """An HTTP client of a page of the service's own origin."""
        headers = {"origin": self.origin, **options}
        return httpx.AsyncClient(base_url=self.origin, headers=headers, timeout=20)

    def send(self, number: signal.Signals = signal.SIGTERM) -> None:
        """Send a signal, and take the time."""
        self.told_at = time.monotonic()
        self.process.send_signal(number)

    async def says(self, line: str) -> None:
        """Wait until it prints a line."""
        assert self.process.stdout is not None
        async with asyncio.timeout(PATIENCE):
            while (
                said := await self.process.stdout.readline()
            ).decode() != f"{line}\n":
                assert said, "it ended"

    async def ended(self) -> tuple[int, float]:
        """Wait for its end; return the status, negative for a signal's number, and
        how many seconds after the last signal that was."""
        async with asyncio.timeout(PATIENCE):
            status = await self.process.wait()
        return status, time.monotonic() - self.told_at


@asynccontextmanager
async def daemon(
    *arguments: str, directory: Path, **settings: object
) -> AsyncIterator[Daemon]:
    """Run Python with ``arguments``; it says ``… at http://127.0.0.1:PORT``.

    ``settings`` go into its environment, as ``AUTHWS_*`` and in upper case.
    """
    clean = {k: v for k, v in os.environ.items() if not k.startswith("AUTHWS_")}
    settings.setdefault("database_url", await url_for(directory / "data") or "")
    given = {f"AUTHWS_{name.upper()}": str(value) for name, value in settings.items()}
    errors = directory / "stderr.txt"
    with errors.open("wb") as stderr:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *arguments,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=stderr,
            env={**clean, "AUTHWS_DATA_DIR": str(directory / "data"), **given},
        )
    running = Daemon(process, 0, errors)
    try:
        running.port = await _port(process, errors)
        yield running
    finally:
        running.workers()
        if process.returncode is None:
            process.kill()
            await process.wait()
        running.end_workers()
        await process.communicate()  # whoever lived on held its end of the pipe


async def _port(process: asyncio.subprocess.Process, errors_in: Path) -> int:
    assert process.stdout is not None
    async with asyncio.timeout(PATIENCE):
        async for line in process.stdout:
            _, found, rest = line.decode().partition("at http://127.0.0.1:")
            if found:
                return int(rest.split()[0])
    errors = await asyncio.to_thread(errors_in.read_text)
    raise AssertionError(f"it did not start: {errors}")


def serve(
    directory: Path, *options: str, port: int = 0, **settings: object
) -> AbstractAsyncContextManager[Daemon]:
    """Run ``authws serve``."""
    settings.setdefault("login_rate", 0)
    command = ("-m", "authws", "serve", "--port", str(port), *options)
    return daemon(*command, directory=directory, **settings)


async def users(directory: Path, *names: str) -> None:
    """Add users as an operator does: from a process that is not the server."""
    data_dir = directory / "data"
    settings = Settings(
        _env_file=None, data_dir=data_dir, database_url=await url_for(data_dir)
    )
    async with opened(settings) as stores:
        for name in names:
            await stores.users.add(name, PASSWORD, DEFAULT_SCOPES)
