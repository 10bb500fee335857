"""One measurement after another, each made again if others used the machine."""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Sequence
from typing import Protocol

from bench.contending import Started
from bench.generator import Generator, Measured
from bench.reporting import Load, Progress

__all__ = ["Measuring", "Uses"]

AGAIN = 40
"""How often it measures again in all: a machine that is never quiet ends too."""
CALM, CALM_WITHIN = 0.05, 20.0


class Uses(Protocol):
    """Whatever uses the processor for what is measured."""

    def cpu(self) -> float:
        """Seconds of processor time that it has used."""


class Measuring:
    """The generator, and a look at who else is at work."""

    def __init__(self, wsload: Generator, arguments: argparse.Namespace, steps: int):
        """``arguments`` say how many seconds each measurement takes."""
        self.wsload = wsload
        self.load = Load()
        self.progress = Progress(steps)
        self._arguments = arguments
        self._servers: Sequence[Uses] = ()

    def beside(self, contenders: Sequence[Started]) -> None:
        """These run from now on: what they use is not others' work."""
        by_pid = {one.running.pid: one.running for one in contenders}
        self.among(list(by_pid.values()))

    def among(self, servers: Sequence[Uses]) -> None:
        """The same of servers of any kind."""
        self._servers = servers

    def cpu(self) -> float:
        """Seconds of processor time that the servers have used."""
        return sum(server.cpu() for server in self._servers)

    async def wait_for_quiet(self) -> None:
        """Before a round."""
        await self.load.wait_for_quiet(
            self.cpu, self.progress, self._arguments.patience
        )

    async def measure(self, one: Started, work: Sequence[str]) -> Measured:
        """Load a server with work of the generator's, of which it is told the kind.

        Raises:
            LoadError: something went wrong, so that the figures mean nothing.
        """
        running = one.running
        return await self.measure_all(
            work, one.ask(work[0]), ports=[running.port], pids=[running.pid]
        )

    async def measure_all(
        self,
        work: Sequence[str],
        ask: Sequence[str],
        *,
        ports: Sequence[int],
        pids: Sequence[int],
    ) -> Measured:
        """Load several servers that are one; ``pids`` are theirs, and others' whose use
        of the processor is to be known.

        Raises:
            LoadError: something went wrong, so that the figures mean nothing.
        """
        while True:
            with self.load.watching(self.cpu) as watch:
                found = await self.wsload.load(
                    work, ask, ports=ports, pids=pids, seconds=self._arguments.seconds
                )
            if not self.load.is_disturbed(watch, AGAIN):
                return found

    async def wait_until_idle(self) -> None:
        """Wait until the servers are done with those who have left."""
        loop = asyncio.get_running_loop()
        until = loop.time() + CALM_WITHIN
        while loop.time() < until:
            before = self.cpu()
            await asyncio.sleep(0.3)
            if self.cpu() - before < 0.3 * CALM + 0.01:  # and a tick of the clock
                return
