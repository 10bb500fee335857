"""One answer for many who ask."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from authws.brokers.rabbitmq.promises import outcome, shared

__all__ = ["Rounds"]


class Rounds:
    """Runs something for all who wait for it, one run at a time: each gets the first
    run that began after they came."""

    def __init__(
        self,
        run: Callable[[], Awaitable[None]],
        pause: Callable[[], Awaitable[None]],
    ) -> None:
        """``pause`` is waited for before each run, while others come."""
        self._run = run
        self._pause = pause
        self._running: asyncio.Task[None] | None = None
        self._next: asyncio.Task[None] | None = None

    async def wait(self) -> None:
        """Return when such a run has ended, or raise what it raises."""
        if self._next is None:
            self._next = shared(self._run_after(self._running))
        await outcome(self._next)

    async def _run_after(self, before: asyncio.Task[None] | None) -> None:
        if before is not None:
            await asyncio.wait({before})
        await self._pause()
        self._running, self._next = self._next, None
        await self._run()
