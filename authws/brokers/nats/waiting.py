"""What waits for the server's word that it has it, by number, and how much may."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

from authws.clock import Clock
from authws.exceptions import UnavailableError

__all__ = ["MAX_WAITING", "MAX_WAITING_BYTES", "Future", "Waiting"]

MAX_WAITING = 10_000
"""Messages that wait at most."""
MAX_WAITING_BYTES = 16_777_216
"""Bytes of them; more than a server takes in one message, unless it was told to."""

Future = asyncio.Future[Any]


class _Waiter(NamedTuple):
    future: Future
    since: float
    size: int | None
    """Of a message; None of what is asked in between, which is not counted."""
    settled: Callable[[], None] | None


class Waiting:
    """Those who wait."""

    def __init__(self, clock: Clock) -> None:
        self.numbers = itertools.count(1)
        self._clock = clock
        self._waiters: dict[int, _Waiter] = {}
        self._messages = 0
        self._bytes = 0

    def __contains__(self, number: int) -> bool:
        return number in self._waiters

    def admit(self, size: int) -> None:
        """Count a message that will wait.

        Raises:
            UnavailableError: too much waits.
        """
        if self._messages >= MAX_WAITING or self._bytes + size > MAX_WAITING_BYTES:
            raise UnavailableError("too much waits for the NATS server")
        self._messages += 1
        self._bytes += size

    def add(
        self,
        future: Future,
        size: int | None = None,
        settled: Callable[[], None] | None = None,
    ) -> int:
        """Let somebody wait, with a message that was admitted or for an answer;
        ``settled`` is called when that is over, whoever still waits."""
        number = next(self.numbers)
        self._waiters[number] = _Waiter(future, self._clock.monotonic(), size, settled)
        return number

    def settle(
        self, number: int, error: Exception | None = None, result: Any = None
    ) -> None:
        """End the waiting; nothing happens if it is over."""
        waiter = self._waiters.pop(number, None)
        if waiter is None:
            return
        if waiter.size is not None:
            self._messages -= 1
            self._bytes -= waiter.size
        if not waiter.future.done():  # else whoever waited was cancelled
            if error is None:
                waiter.future.set_result(result)
            else:
                waiter.future.set_exception(error)
        if waiter.settled is not None:
            waiter.settled()

    def expire(self, before: float) -> None:
        """Give up on whoever waits since before a moment of monotonic time."""
        late = itertools.takewhile(
            lambda item: item[1].since < before, self._waiters.items()
        )
        for number, _ in list(late):
            self.settle(number, UnavailableError("NATS did not answer in time"))

    def fail(self, why: str) -> None:
        """Give up on all; nothing is told that it is settled."""
        for waiter in self._waiters.values():
            if not waiter.future.done():
                waiter.future.set_exception(UnavailableError(why))
        self._waiters.clear()
