"""A connection to a broker that is kept up for as long as it is wanted.

The clients' own ways of coming back differ in when they give up, what they tell and how
they wait. Here there is one: connect, ask now and then whether the other end is really
there, and after a loss try again, for ever, with growing and jittered delays, so that
forty workers do not come back to a broker in the same moment.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import random
from collections.abc import Awaitable, Callable

from authws.clock import Clock
from authws.exceptions import AuthwsError, ConfigurationError

__all__ = ["CALL_TIMEOUT", "Lifeline", "backoff"]

logger = logging.getLogger("authws")

CONNECT_TIMEOUT = 5.0
"""Seconds for connecting, logging in and subscribing again."""
CALL_TIMEOUT = 5.0
"""Seconds after which a call to a broker that is there counts as failed."""
PROBE_EVERY = 1.0
"""Seconds between two questions whether the broker is there: a process that is stopped,
or a network that is cut, sends no sign of it."""
PROBE_TIMEOUT = 2.0
LATE = 0.5
"""Seconds by which a timeout comes too late if it is this process that stood still."""
FIRST_DELAY = 0.05
LONGEST_DELAY = 5.0


def backoff(attempt: int) -> float:
    """Return the seconds to wait before try number ``attempt``, from 0 on: half fixed
    and half chance, so that it neither hurries nor comes in step with others."""
    delay: float = min(LONGEST_DELAY, FIRST_DELAY * 2 ** min(attempt, 16))
    return delay * (0.5 + random.random() / 2)  # noqa: S311 - jitter is no secret


class Lifeline:
    """Runs the life of a connection; what a connection is, three functions say."""

    def __init__(
        self,
        name: str,
        *,
        connect: Callable[[], Awaitable[None]],
        probe: Callable[[], Awaitable[None]],
        disconnect: Callable[[], Awaitable[None]],
        clock: Clock | None = None,
    ) -> None:
        """``name`` is for the log, and holds no password.

        ``connect`` makes a new connection, everything subscribed again; ``probe`` asks
        the other end for an answer; ``disconnect`` lets go of whatever there is, and
        is called after each loss and each attempt that failed. All may raise.
        """
        self.is_up = False
        self.heard_at = -math.inf
        """When it was last known to be up, in monotonic seconds."""
        self._name = name
        self._connect = connect
        self._probe = probe
        self._disconnect = disconnect
        self._clock = clock or Clock()
        self._first_try = asyncio.Event()
        self._refused: ConfigurationError | None = None
        self._lost = asyncio.Event()
        self._why = ""
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begin; returns after the first attempt, whether that worked or not.

        Raises:
            ConfigurationError: ``connect`` said so; nothing is tried any more.
        """
        self._task = asyncio.create_task(self._run())
        await self._first_try.wait()  # or ``stop``
        if self._refused is not None:
            raise self._refused

    def lose(self, error: BaseException | str) -> None:
        """Hear from whoever uses the connection that it is not one any more."""
        if self.is_up:
            self.is_up = False
            self._why = _describe(error)
            self._lost.set()

    async def stop(self) -> None:
        """End it; nothing is tried any more."""
        task, self._task = self._task, None
        while task is not None and not task.done():
            task.cancel()  # once may be lost: wait_for swallows it on Python 3.11
            await asyncio.wait((task,), timeout=PROBE_TIMEOUT)
        self.is_up = False
        self._first_try.set()
        await self._let_go()

    async def _run(self) -> None:
        attempt = 0
        told: set[str] = set()
        while True:
            self._lost.clear()
            try:
                await self._within(CONNECT_TIMEOUT, self._connect)
            except Exception as error:
                await self._let_go()
                if (
                    isinstance(error, ConfigurationError)
                    and not self._first_try.is_set()
                ):
                    self._refused = error
                    self._first_try.set()
                    return
                why = _describe(error)
                if why not in told:  # once for each outage, however long it is
                    told.add(why)
                    logger.warning(
                        "%s cannot be reached: %s; trying again", self._name, why
                    )
                self._first_try.set()
                await self._clock.sleep(backoff(attempt))
                attempt += 1
                continue
            self.is_up = True
            self.heard_at = self._clock.monotonic()
            if self._first_try.is_set():
                logger.warning("%s is reached again", self._name)
            self._first_try.set()
            told.clear()
            began = self._clock.monotonic()
            await self._watch()
            self.is_up = False
            logger.warning("%s was lost: %s", self._name, self._why)
            await self._let_go()
            # one that is lost again and again is no better than one that is away
            if self._clock.monotonic() - began >= LONGEST_DELAY:
                attempt = 0
            await self._clock.sleep(backoff(attempt))  # all workers lose it together
            attempt += 1

    async def _watch(self) -> None:
        """Return once the connection is lost."""
        while not self._lost.is_set():
            with contextlib.suppress(TimeoutError):
                async with self._clock.timeout(PROBE_EVERY):
                    await self._lost.wait()
                return
            asked_at = self._clock.monotonic()
            due = asked_at + PROBE_TIMEOUT
            try:
                await self._within(PROBE_TIMEOUT, self._probe)
            except Exception as error:
                is_late = self._clock.monotonic() > due + LATE
                if isinstance(error, TimeoutError) and is_late:
                    continue  # the answer may be there, and nobody looked
                self._why = self._why if self._lost.is_set() else _describe(error)
                return
            self.heard_at = asked_at

    async def _let_go(self) -> None:
        with contextlib.suppress(Exception):
            await self._within(PROBE_TIMEOUT, self._disconnect)

    async def _within(
        self, seconds: float, work: Callable[[], Awaitable[None]]
    ) -> None:
        """Do something of the client's, which ends in time and ends nothing else."""
        try:
            async with self._clock.timeout(seconds):
                await work()
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            raise ConnectionError("what it waited for was cancelled") from None


def _describe(error: BaseException | str) -> str:
    """Name a failure; a client's own words may quote a URL with its password."""
    if isinstance(error, str | AuthwsError):
        return str(error)
    if isinstance(error, TimeoutError):
        return "it does not answer"
    said = getattr(error, "strerror", None)
    is_harmless = isinstance(said, str) and "@" not in said and "://" not in said
    return said if said and is_harmless else type(error).__name__
