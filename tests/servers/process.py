"""A server process that can be killed, stopped, and started again where it was."""

from __future__ import annotations

import asyncio
import contextlib
import os
import pwd
import shutil
import signal
import socket
import tempfile
import time
from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

__all__ = ["ServerProcess", "free_ports", "unprivileged"]

PATIENCE = 30.0
POLL = 0.02
STOPPED = {"T", "Z", "X"}
"""States of a thread that does nothing, in ``proc_pid_stat(5)``."""


class ServerProcess:
    """One server: the same directory, ports and password in each of its lives.

    Subclasses say what is run, and when it is ready. ``async with`` starts it, and
    leaves nothing behind.
    """

    patience = PATIENCE
    """Seconds in which it starts, and ends."""

    def __init__(self) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="authws-server-"))
        self._process: asyncio.subprocess.Process | None = None

    @abstractmethod
    def command(self) -> Sequence[str | Path]:
        """Return what to run."""

    @abstractmethod
    async def ask(self) -> None:
        """Ask it for a sign of life; raise anything if there is none yet."""

    def environment(self) -> dict[str, str]:
        """Return its environment."""
        return dict(os.environ)

    def identity(self) -> dict[str, Any]:
        """Return who runs it, as ``subprocess`` takes that."""
        return {}

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.returncode is None

    @property
    def log(self) -> str:
        """What it wrote so far, in all of its lives."""
        path = self.directory / "log"
        return path.read_text(errors="replace") if path.exists() else ""

    async def start(self) -> None:
        """Start it, and wait until it answers."""
        with (self.directory / "log").open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *map(str, self.command()),
                cwd=self.directory,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self.environment(),
                start_new_session=True,
                **self.identity(),
            )
        try:
            async with asyncio.timeout(self.patience):
                while True:
                    if self._process.returncode is not None:
                        raise AssertionError(f"it ended: {self.log[-2000:]}")
                    try:
                        async with asyncio.timeout(5):
                            await self.ask()
                        return
                    except Exception:
                        await asyncio.sleep(POLL)
        except TimeoutError:
            raise AssertionError(f"it does not answer: {self.log[-2000:]}") from None

    async def stop(self) -> None:
        """End it as an operator does."""
        await self._end(signal.SIGTERM)

    async def kill(self) -> None:
        """End it as a crash does."""
        await self._end(signal.SIGKILL)

    def pause(self) -> None:
        """Let it stand still, its connections open."""
        self.send(signal.SIGSTOP)
        # its threads go on for a moment, and may still answer
        for thread in Path(f"/proc/{self.pid}/task").glob("*/stat"):
            with contextlib.suppress(OSError):  # it has ended
                while thread.read_text().rpartition(")")[2].split()[0] not in STOPPED:
                    time.sleep(POLL)

    def resume(self) -> None:
        """Let it go on."""
        self.send(signal.SIGCONT)

    def send(self, number: signal.Signals) -> None:
        """Send a signal to the process, and to those that it started."""
        os.killpg(self.pid, number)

    async def __aenter__(self) -> Self:
        try:
            await self.start()
        except BaseException:
            await self.__aexit__()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        if self.is_running:
            self.resume()
            await self.kill()
        shutil.rmtree(self.directory, ignore_errors=True)

    async def _end(self, number: signal.Signals) -> None:
        if self._process is None or self._process.returncode is not None:
            return
        self.send(number)
        try:
            async with asyncio.timeout(self.patience):
                await self._process.wait()
        finally:
            if self._process.returncode is None:
                self.send(signal.SIGKILL)
                await self._process.wait()


def free_ports(count: int) -> list[int]:
    """Return ports of 127.0.0.1 that nobody listens on, each another one."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [int(one.getsockname()[1]) for one in sockets]
    finally:
        for one in sockets:
            one.close()


def unprivileged(*names: str) -> pwd.struct_passwd | None:
    """Return the first of these users that exists here."""
    for name in names:
        try:
            return pwd.getpwnam(name)
        except KeyError:
            continue
    return None
