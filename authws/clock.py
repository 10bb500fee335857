"""The one place where time is read, and where waiting for it begins.

A decision takes an explicit ``now``; whoever calls it asks a clock. Whatever waits
for a moment asks the clock as well, so that a test that replaces it walks through
every deadline in milliseconds.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Protocol

__all__ = ["Clock", "Timer"]


class Timer(Protocol):
    """A call that is yet to come."""

    def cancel(self) -> None:
        """Keep it from coming; nothing happens if it came."""


class Clock:
    """Tells the time, in seconds, as two kinds that must not be mixed."""

    def now(self) -> float:
        """Return seconds since the epoch: RFC 7519's NumericDate, for credentials."""
        return time.time()

    def monotonic(self) -> float:
        """Return seconds that never run backwards, for deadlines in this process."""
        return time.monotonic()

    def call_later(self, delay: float, callback: Callable[[], object]) -> Timer:
        """Call back after ``delay`` seconds of monotonic time."""
        return asyncio.get_running_loop().call_later(delay, callback)

    def timeout(self, seconds: float | None) -> AbstractAsyncContextManager[object]:
        """Raise ``TimeoutError`` in a block that takes longer; None is no limit."""
        return asyncio.timeout(seconds)

    async def sleep(self, seconds: float) -> None:
        """Wait."""
        await asyncio.sleep(seconds)
