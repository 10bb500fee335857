"""A clock that stands still until a test moves it, and all that waits for it."""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field

from authws.clock import Clock

__all__ = ["ManualClock", "settle"]

START = 1_700_000_000.0
TURNS = 12
"""Turns of the event loop after which all that a step set off has come to rest: no
chain of wake-ups in the engine is longer."""


@dataclass(order=True)
class ManualTimer:
    """One call that is yet to come."""

    at: float
    number: int
    callback: Callable[[], object] = field(compare=False)
    is_cancelled: bool = field(default=False, compare=False)

    def cancel(self) -> None:
        self.is_cancelled = True


class ManualClock(Clock):
    """Time passes in ``advance``; each timer is called at its own moment."""

    def __init__(self) -> None:
        self.elapsed = 0.0
        self.wall_offset = 0.0
        """How far somebody has set the wall clock; timers do not notice."""
        self._timers: list[ManualTimer] = []
        self._made = 0

    def now(self) -> float:
        return START + self.elapsed + self.wall_offset

    def monotonic(self) -> float:
        return self.elapsed

    @property
    def waiting(self) -> int:
        """How many timers are set."""
        return sum(not timer.is_cancelled for timer in self._timers)

    def call_later(self, delay: float, callback: Callable[[], object]) -> ManualTimer:
        self._made += 1
        timer = ManualTimer(self.elapsed + max(0.0, delay), self._made, callback)
        heapq.heappush(self._timers, timer)
        return timer

    def timeout(self, seconds: float | None) -> AbstractAsyncContextManager[object]:
        return self._timeout(seconds)

    @asynccontextmanager
    async def _timeout(self, seconds: float | None) -> AsyncIterator[None]:
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(None) as scope:
            timer = None
            if seconds is not None:
                timer = self.call_later(seconds, lambda: scope.reschedule(loop.time()))
            try:
                yield
            finally:
                if timer is not None:
                    timer.cancel()

    async def sleep(self, seconds: float) -> None:
        woken: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def wake() -> None:
            if not woken.done():
                woken.set_result(None)

        timer = self.call_later(seconds, wake)
        try:
            await woken
        finally:
            timer.cancel()

    async def advance(self, seconds: float) -> None:
        """Let time pass; what is due on the way happens at its moment."""
        until = self.elapsed + seconds
        await settle()
        while self._timers and self._timers[0].at <= until:
            timer = heapq.heappop(self._timers)
            self.elapsed = max(self.elapsed, timer.at)
            if not timer.is_cancelled:
                timer.callback()
                await settle()
        self.elapsed = until
        await settle()


async def settle() -> None:
    """Let all that can go on without time passing go on."""
    for _ in range(TURNS):
        await asyncio.sleep(0)
