"""How late this machine is, for tests of what must be in time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

__all__ = ["PROMPTLY", "Machine", "watched"]

PROMPTLY = 0.1
"""Seconds after a deadline by which it is over, on a machine that is never late."""


class Machine:
    """How late a timer comes here that nobody but the machine can make late.

    Two cores may be shared with a whole test suite: what they take is no lateness of
    ours, and would hide none that is.
    """

    def __init__(self) -> None:
        self.late = 0.0

    async def watch(self) -> None:
        while True:
            due = time.monotonic() + 0.01
            await asyncio.sleep(0.01)
            self.late = max(self.late, time.monotonic() - due)

    def is_prompt(self, late: float) -> bool:
        """Whether it was not early, and no later than it may be."""
        return 0 <= late < PROMPTLY + self.late


@asynccontextmanager
async def watched() -> AsyncIterator[Machine]:
    """Watch the machine meanwhile."""
    machine = Machine()
    watching = asyncio.create_task(machine.watch())
    try:
        yield machine
    finally:
        watching.cancel()
