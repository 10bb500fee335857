"""No waiting for what does not answer: a circuit breaker (Nygard, "Release It!").

A database that stands still is worse than one that is gone: each call to it takes as
long as its patience lasts, and all who come meanwhile wait as well. So whoever asks in
vain opens the circuit: then one may ask now and then, which tells when it answers
again, and everybody else is refused at once.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from authws.exceptions import UnavailableError

__all__ = ["CircuitBreaker"]

QUEUE_SECONDS = 10.0
"""How long a call waits for its place: whoever comes back after a restart may."""
REST = 1.0
"""Seconds after one has asked in vain until the next may."""
FAREWELL = 0.1
"""Seconds for the driver to end what was given up; SQLAlchemy would take 2."""


class CircuitBreaker:
    """Bounds how long a call takes, and how many are made at once or in vain.

    Args:
        places: one for each call that may be made at once. Waiting for a place is our
            own doing, and no silence of the database.
    """

    def __init__(self, places: asyncio.Semaphore) -> None:
        self._places = places
        self._asking = 0
        self._in_vain_at: float | None = None
        """When it was last asked in vain; None while it answers."""

    @asynccontextmanager
    async def asking(self, seconds: float) -> AsyncIterator[None]:
        """Ask, once there is a place, within so many seconds.

        Raises:
            UnavailableError: it was asked in vain lately, or there is no place.
            TimeoutError: there was no answer.
        """
        self._check(alone=not self._asking)
        self._asking += 1
        try:
            async with self._place():
                self._check(alone=True)  # again: it may have been long until now
                # a second cancellation, since the first begins a farewell
                async with (
                    asyncio.timeout(seconds + FAREWELL),
                    asyncio.timeout(seconds),
                ):
                    yield
                self._in_vain_at = None
        except TimeoutError:
            self._in_vain_at = time.monotonic()
            raise
        finally:
            self._asking -= 1

    @asynccontextmanager
    async def _place(self) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(QUEUE_SECONDS):
                await self._places.acquire()
        except TimeoutError:
            raise UnavailableError("database: too many wait for it") from None
        try:
            yield
        finally:
            self._places.release()

    def _check(self, *, alone: bool) -> None:
        if self._in_vain_at is None:
            return
        if not alone or time.monotonic() < self._in_vain_at + REST:
            raise UnavailableError("database: it does not answer")
