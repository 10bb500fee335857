"""The parent: it keeps every place filled, and ends when all have left theirs.

It does nothing but wait: for a signal, for what a worker says, for a moment that is
due. Each turn looks at all there is to do; nothing in it takes long.
"""

from __future__ import annotations

import gc
import logging
import math
import signal
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import wait

from authws.exceptions import ConfigurationError
from authws.service.listeners import Listeners
from authws.service.watchdog import CUT_SHORT
from authws.service.workers.process import Worker, WorkerProcess, fork
from authws.service.workers.signals import Signals

__all__ = ["restart_delay", "run"]

MARGIN = 2.0
"""Seconds beyond its drain that a worker has, which keeps to that by itself."""
YOUNG = 60.0
"""Seconds: what dies younger than this may die again at once."""
LONGEST_DELAY = 30.0

Work = Callable[[Worker], object]

logger = logging.getLogger("authws")


def restart_delay(deaths: int) -> float:
    """Return the seconds before a place is filled again after so many deaths of young
    workers in a row: none, then 1, 2, 4, … 30."""
    return 0.0 if deaths <= 1 else min(LONGEST_DELAY, 2.0 ** (min(deaths, 16) - 2))


def run(
    work: Work,
    listeners: Listeners,
    *,
    count: int,
    drain: float,
    on_listening: Callable[[], object] = lambda: None,
) -> int:
    """Run ``count`` workers until a signal ends them.

    | signal to the parent | does |
    |---|---|
    | SIGTERM, SIGINT | every worker drains |
    | a second one | ends all at once |
    | SIGHUP | every worker is replaced, one after another |

    Args:
        work: what a worker does; called in its process.
        listeners: one for each worker.
        count: how many workers.
        drain: seconds in which a worker ends once it shall.
        on_listening: called once, when all workers serve.

    Returns:
        0 if all ended as they were told, 1 if one was cut off; below 0 the signal that
        ended all at once, of which the caller shall die.

    Raises:
        ConfigurationError: a worker cannot start; none is left.
    """
    gc.collect()
    gc.freeze()  # what a worker's collector looks at is copied for it
    with Signals() as signals:
        return _Supervisor(work, listeners, signals, count, drain).run(on_listening)


@dataclass(eq=False)
class _Place:
    """What one worker after another fills."""

    number: int
    worker: WorkerProcess | None = None
    successor: WorkerProcess | None = None
    """One that starts while the worker still serves."""
    deaths: int = 0
    """Of young workers in a row."""
    due_at: float = 0.0
    """When it is to be filled, if it is empty."""

    @property
    def is_served(self) -> bool:
        return self.worker is not None and self.worker.is_ready


class _Supervisor:
    def __init__(
        self,
        work: Work,
        listeners: Listeners,
        signals: Signals,
        count: int,
        drain: float,
    ) -> None:
        self._work = work
        self._listeners = listeners
        self._signals = signals
        self._end_within = drain + MARGIN
        self._places = [_Place(number) for number in range(count)]
        self._leaving: list[WorkerProcess] = []
        """Those whose place is another's."""
        self._to_replace: deque[_Place] = deque()
        self._is_replacing = False
        self._is_ending = False
        self._ended_at_once_by: int | None = None
        self._was_cut_short = False

    def run(self, on_listening: Callable[[], object]) -> int:
        try:
            self._start_all()
            if not self._is_ending:
                on_listening()
            while self._is_going_on():
                self._turn()
        finally:
            for process in self._processes():
                process.kill()
                process.is_over(wait=True)
        if self._ended_at_once_by is not None:
            return -self._ended_at_once_by
        return CUT_SHORT if self._was_cut_short else 0

    def _is_going_on(self) -> bool:
        if self._is_ending:
            return self._ended_at_once_by is None and any(self._processes())
        return True

    def _processes(self) -> Iterator[WorkerProcess]:
        """All that live, as far as is known."""
        known = [*self._leaving]
        for place in self._places:
            known += filter(None, (place.worker, place.successor))
        return (process for process in known if process.status is None)

    def _turn(self) -> None:
        self._wait()
        self._bury()
        if not self._is_ending:
            self._fill_places()
            self._replace()

    # ------------------------------------------------------------- what it waits for

    def _wait(self) -> None:
        """Wait for something to happen, and take note of it."""
        speaking = [process.report for process in self._processes()]
        wait([self._signals.readable, *speaking], self._patience())
        for process in self._processes():
            process.listen()
        for number in self._signals.take():
            self._hear(number)
        for process in self._processes():
            if time.monotonic() >= process.due_at:
                if process.is_told:
                    logger.error("%s did not end in time", process)
                process.give_up()

    def _patience(self) -> float | None:
        """Seconds until the next moment that is due."""
        moments = [process.due_at for process in self._processes()]
        if not self._is_ending:
            moments += [place.due_at for place in self._places if place.worker is None]
        next_one = min(moments, default=math.inf)
        return None if next_one == math.inf else max(0.0, next_one - time.monotonic())

    def _hear(self, number: int) -> None:
        if number == signal.SIGHUP and self._signals.is_terminal_gone():
            number = signal.SIGTERM
        if number == signal.SIGHUP and not self._is_ending:
            logger.info("Replacing all workers, one after another")
            self._to_replace = deque(self._places)
            self._is_replacing = True
        elif number in (signal.SIGTERM, signal.SIGINT):
            if self._is_ending:
                self._ended_at_once_by = number
            self._end_all()

    def _end_all(self) -> None:
        self._is_ending = True
        self._listeners.close()
        for process in self._processes():
            process.end(self._end_within)

    # ----------------------------------------------------------------- being started

    def _start_all(self) -> None:
        """Start the first worker, and the others once it serves: so what is wrong with
        all of them is told once.

        Raises:
            ConfigurationError: one cannot start.
        """
        for places in (self._places[:1], self._places[1:]):
            if self._is_ending:
                return
            for place in places:
                try:
                    place.worker = self._start(place)
                except OSError as error:
                    self._give_up(f"a worker cannot be started: {error.strerror}")
            while not (self._is_ending or all(place.is_served for place in places)):
                self._wait()
                for place in places:
                    worker = place.worker
                    if worker is not None and worker.is_over():
                        self._give_up(worker.failure or f"a worker {worker.ending}")

    def _give_up(self, why: str) -> None:
        if self._is_ending:
            return
        self._end_all()
        while self._is_going_on():
            self._wait()
            self._bury()
        raise ConfigurationError(why)

    def _start(self, place: _Place) -> WorkerProcess:
        return fork(
            self._work,
            place.number,
            self._listeners.of(place.number),
            let_go=partial(self._let_go, place.number),
            end_within=self._end_within,
        )

    def _let_go(self, number: int) -> None:
        """Close, in the worker of that number, all that is not its own."""
        for process in self._processes():
            process.close()
        self._listeners.keep_only(number)
        self._signals.close()

    # --------------------------------------------------------------- being kept alive

    def _bury(self) -> None:
        """Take note of who has ended, or is about to."""
        for process in self._leaving:
            if process.is_over():
                self._note_ending(process)
        self._leaving = [one for one in self._leaving if one.status is None]
        for place in self._places:
            if place.successor is not None and place.successor.is_over():
                self._miss(place.successor)
                place.successor = None
            worker = place.worker
            if worker is None:
                continue
            if worker.is_over():
                self._note_ending(worker)
                self._vacate(place)
                if not self._is_ending:
                    self._mourn(place, worker)
            elif worker.is_leaving and not self._is_ending:
                logger.warning("%s was told to end; starting another", worker)
                self._leaving.append(worker)
                self._vacate(place)

    def _note_ending(self, process: WorkerProcess) -> None:
        as_told = process.status in (0, -signal.SIGTERM)
        if self._is_ending and process.is_told and not as_told:
            self._was_cut_short = True

    def _vacate(self, place: _Place) -> None:
        place.worker, place.successor = place.successor, None
        place.due_at = time.monotonic()

    def _mourn(self, place: _Place, worker: WorkerProcess) -> None:
        """See to it that a place is filled again, though not over and over at once."""
        is_young = time.monotonic() - worker.started_at < YOUNG
        place.deaths = place.deaths + 1 if is_young else 1
        if place.worker is not None:
            logger.error("%s %s; its successor is starting", worker, worker.ending)
        else:
            delay = restart_delay(place.deaths)
            self._postpone(place, f"{worker} {worker.ending}", delay)

    def _fill_places(self) -> None:
        for place in self._places:
            if place.worker is None and time.monotonic() >= place.due_at:
                try:
                    place.worker = self._start(place)
                except OSError as error:
                    place.deaths += 1
                    why = f"worker {place.number} cannot be started: {error.strerror}"
                    self._postpone(place, why, restart_delay(place.deaths))

    def _postpone(self, place: _Place, why: str, delay: float) -> None:
        when = f" in {delay:g} s" if delay else ""
        logger.error("%s; starting it again%s", why, when)
        place.due_at = time.monotonic() + delay
        if delay:
            self._listeners.take_down(place.number)

    # ----------------------------------------------------------------- being replaced

    def _replace(self) -> None:
        """Go on with replacing: a successor starts, its predecessor drains, and only
        then it is the next one's turn."""
        if any(process.is_told for process in self._leaving):
            return
        for place in self._places:
            if place.successor is not None:
                if place.successor.is_ready:
                    self._retire(place)
                return
        while self._to_replace:
            place = self._to_replace[0]
            if place.worker is None:  # it starts anew in any case
                self._to_replace.popleft()
            elif not place.worker.is_ready:
                return
            else:
                self._to_replace.popleft()
                try:
                    place.successor = self._start(place)
                except OSError as error:
                    self._stop_replacing(f"no other can be started: {error.strerror}")
                return
        if self._is_replacing:
            self._is_replacing = False
            logger.info("All workers are replaced")

    def _retire(self, place: _Place) -> None:
        worker = place.worker
        if worker is not None:
            worker.retire(self._end_within)
            self._leaving.append(worker)
        self._vacate(place)
        place.deaths = 0

    def _miss(self, successor: WorkerProcess) -> None:
        self._stop_replacing(f"the new {successor} {successor.ending}")

    def _stop_replacing(self, why: str) -> None:
        logger.error("%s; the workers that are left stay as they are", why)
        self._to_replace.clear()
        self._is_replacing = False
