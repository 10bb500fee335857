"""The load generator (`bench/wsload.c`): built, run, and what it says read."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import subprocess
import tempfile
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.served import Cores, pinned

__all__ = ["Generator", "LoadError", "Measured", "generator"]

SOURCE = Path(__file__).parent / "wsload.c"
WARM_UP = 0.3
OPEN_TIMEOUT = 120.0
TROUBLES = ("io_err", "timeouts", "proto_err", "dropped", "lost")


class LoadError(Exception):
    """A server did not do what it was asked, or lost some of it."""


@dataclass(frozen=True, slots=True)
class Measured:
    """What a server did under load."""

    rate: float
    """Handshakes, or messages that arrived, per second."""
    cpu: float
    """Seconds of the server's processor time for each of them."""
    p99: float
    """Seconds that 99 % of them took at most."""
    p50: float = 0.0
    published: float = 0.0
    """Messages that publishers sent per second."""
    cpus: tuple[float, ...] = ()
    """Of each process that was watched: the share of a processor that it used."""
    generator: float = 0.0
    """The same of the generator."""


class Generator:
    """Loads one server at a time, from a core of its own."""

    def __init__(self, program: str, core: int | None) -> None:
        self._program = program
        self._core = core

    async def load(
        self,
        work: Sequence[str],
        ask: Sequence[str],
        *,
        ports: Sequence[int],
        pids: Sequence[int],
        seconds: float,
    ) -> Measured:
        """Do some work for a while, at one server or several that are one.

        ``pids`` are the processes whose use of the processor is measured.

        Raises:
            LoadError: something went wrong, so that the figures mean nothing.
        """
        process = await self._start(
            *(*work, "-p", _listed(ports), "--pid", _listed(pids)),
            *("-d", str(seconds), "--warm", str(WARM_UP), *ask),
        )
        try:
            output, errors = await process.communicate()
        finally:
            _end(process)
        if process.returncode:
            raise LoadError(errors.decode().strip() or f"exit {process.returncode}")
        result: dict[str, Any] = json.loads(output)
        troubles = {key: result[key] for key in TROUBLES if result.get(key)}
        troubles |= {f"HTTP {code}": n for code, n in result["http"].items()}
        troubles |= {f"close {code}": n for code, n in result["close"].items()}
        if troubles:
            raise LoadError(", ".join(f"{n} of {what}" for what, n in troubles.items()))
        if not result["count"]:
            raise LoadError("nothing was done")
        return Measured(
            result["rate"],
            result["server_cpu"] / result["count"],
            result["p99_us"] / 1e6,
            result["p50_us"] / 1e6,
            result.get("published", 0) / result["secs"],
            tuple(cpu / result["secs"] for cpu in result["cpus"]),
            result["gen_cpu"],
        )

    @asynccontextmanager
    async def holding(
        self, count: int, ask: Sequence[str], *, port: int
    ) -> AsyncIterator[None]:
        """Hold ``count`` idle connections open while the block runs.

        Raises:
            LoadError: they did not all open.
        """
        process = await self._start(
            *("idle", "-c", str(count), "-p", str(port), "-d", "86400", *ask)
        )
        assert process.stdout is not None
        assert process.stderr is not None
        try:
            async with asyncio.timeout(OPEN_TIMEOUT):
                line = await process.stdout.readline()
            if not line:
                raise LoadError((await process.stderr.read()).decode().strip())
            yield
            if process.returncode is not None:
                raise LoadError("the idle connections did not stay open")
        finally:
            _end(process)
            await process.wait()

    async def _start(self, *arguments: str) -> asyncio.subprocess.Process:
        return await asyncio.create_subprocess_exec(
            *(*pinned(self._core), self._program, *arguments),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )


def _listed(numbers: Sequence[int]) -> str:
    return ",".join(map(str, numbers))


def _end(process: asyncio.subprocess.Process) -> None:
    with contextlib.suppress(ProcessLookupError):
        process.terminate()


@contextmanager
def generator(cores: Cores) -> Iterator[Generator]:
    """Compile the generator, and keep it as long as the block runs."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    assert compiler, "a C compiler is needed: apt-get install gcc libc6-dev"
    with tempfile.TemporaryDirectory(prefix="authws-bench-") as directory:
        program = f"{directory}/wsload"
        command = [compiler, "-O3", "-o", program, str(SOURCE)]
        subprocess.run(command, check=True)  # noqa: S603
        yield Generator(program, cores.generator)
