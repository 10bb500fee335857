"""Workers and their broker as what they are to a message: queues with a price.

Each process takes, in its turn, all that has come by then, and is done with it after as
long as `bench.workers` measured that a burst of that size costs. So what waits together
costs less each, as it does in service. Processes that share a core run one after
another; what leaves a process arrives at the next at once.

What is left out: the network, the time in which a processor wakes up, and whatever else
the system does. `bench.scaling` holds the outcome against measured rates and times.
"""

from __future__ import annotations

import heapq
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from bench.reporting import percentile

__all__ = ["Found", "Prices", "Setting", "simulate"]

MICRO = 1e-6


@dataclass(frozen=True)
class Prices:
    """Microseconds: what a burst costs once, and for each message in it."""

    publish: tuple[float, float]
    arrival: tuple[float, float]
    delivery: tuple[float, float]
    broker_publish: tuple[float, float] = (0.0, 0.0)
    broker_copy: tuple[float, float] = (0.0, 0.0)

    @classmethod
    def read(cls, figures: Mapping[str, Any]) -> Prices:
        """Read them as `bench.workers` has written them."""
        names = cls.__dataclass_fields__
        return cls(**{name: tuple(figures[name]) for name in names})


@dataclass(frozen=True)
class Setting:
    """What is simulated."""

    workers: int
    rooms: int
    members: int
    """Of each room, spread over the workers evenly."""
    rate: float
    """Messages per second, into one room after another, always as far apart."""
    seconds: float = 2.0
    has_broker: bool = True
    shares_core: bool = True
    """Whether all processes are on one core, or each has its own."""
    peer: float = 0.0
    """Microseconds that the one who hears all of it needs for each delivery."""


class Found(NamedTuple):
    """What came of it."""

    deliveries: float
    """Per second, of those that arrived before the last message was sent."""
    p50: float
    """Seconds from a message's time to its arrival at a member."""
    p99: float
    busy: float
    """Share of its time that the busiest core had work."""


class Message(NamedTuple):
    """One on its way."""

    room: int
    at: float
    is_said: bool = True
    """By a peer; else it has come back from the broker."""


@dataclass
class Process:
    """Takes what has come, and needs its time for it."""

    take: Callable[[Sequence[Message], float], float]
    """Does a turn's work, from a moment on; returns how many seconds it takes."""
    inbox: list[Message] = field(default_factory=list)
    is_ready: bool = False


@dataclass
class Core:
    """Runs what is ready, each for one turn."""

    ready: deque[Process] = field(default_factory=deque)
    is_busy: bool = False
    worked: float = 0.0


class _World:
    def __init__(self, setting: Setting, prices: Prices) -> None:
        self._setting = setting
        self._prices = prices
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._count = 0
        self.now = 0.0
        self.latencies: list[float] = []
        self.delivered_in_time = 0
        self._peer_free_at = 0.0
        cores = [
            Core() for _ in range(1 if setting.shares_core else setting.workers + 1)
        ]
        self.cores = cores
        self._workers = [
            Process(lambda batch, at, place=place: self._work(place, batch, at))  # type: ignore[misc]
            for place in range(setting.workers)
        ]
        self._broker = Process(self._carry)
        self._core_of = {
            id(process): cores[number % len(cores)]
            for number, process in enumerate((*self._workers, self._broker))
        }

    # ------------------------------------------------------------------------- events

    def at(self, moment: float, what: Callable[[], None]) -> None:
        self._count += 1
        heapq.heappush(self._events, (moment, self._count, what))

    def run(self, until: float) -> None:
        while self._events and self._events[0][0] <= until:
            self.now, _, what = heapq.heappop(self._events)
            what()

    def hand(self, process: Process, messages: Sequence[Message]) -> None:
        """Let messages arrive at a process."""
        process.inbox.extend(messages)
        core = self._core_of[id(process)]
        if not process.is_ready:
            process.is_ready = True
            core.ready.append(process)
        if not core.is_busy:
            self._next(core)

    def _next(self, core: Core) -> None:
        core.is_busy = bool(core.ready)
        if not core.ready:
            return
        process = core.ready.popleft()
        process.is_ready = False
        batch, process.inbox = process.inbox, []
        seconds = process.take(batch, self.now)
        core.worked += seconds
        self.at(self.now + seconds, lambda: self._next(core))

    # ---------------------------------------------------------------------- processes

    def publish(self, message: Message) -> None:
        """Let a room's publisher say something, at the worker that it has."""
        setting = self._setting
        place = (setting.members - 1 + message.room) % setting.workers
        self.hand(self._workers[place], [message])

    def _work(self, place: int, batch: Sequence[Message], at: float) -> float:
        """A worker's turn: what its peers say, and what the broker brought."""
        said = [one for one in batch if one.is_said]
        arrived = [one for one in batch if not one.is_said]
        seconds = 0.0
        for count in Counter(one.room for one in said).values():
            seconds += _price(self._prices.publish, count)
        if not self._setting.has_broker:
            arrived = said
        elif said:
            self.at(at + seconds, lambda: self.hand(self._broker, said))
        if arrived:
            seconds += _price(self._prices.arrival, len(arrived))
            seconds += self._deliver(place, arrived, at + seconds)
        return seconds

    def _carry(self, batch: Sequence[Message], at: float) -> float:
        """The broker's turn."""
        workers = self._setting.workers
        seconds = _price(self._prices.broker_publish, len(batch))
        seconds += workers * _price(self._prices.broker_copy, len(batch))

        brought = [one._replace(is_said=False) for one in batch]

        def bring() -> None:
            for worker in self._workers:
                self.hand(worker, brought)

        self.at(at + seconds, bring)
        return seconds

    def _deliver(self, place: int, batch: Sequence[Message], at: float) -> float:
        """Write to the members here, one after another; return how long that takes."""
        setting = self._setting
        by_room: dict[int, list[Message]] = {}
        for one in batch:
            by_room.setdefault(one.room, []).append(one)
        seconds = 0.0
        for room, messages in by_room.items():
            first = (place - room) % setting.workers
            here = len(range(first, setting.members, setting.workers))
            each = _price(self._prices.delivery, len(messages))
            for number in range(here):
                self._hear(messages, at + seconds + (number + 1) * each)
            seconds += here * each
        return seconds

    def _hear(self, messages: Sequence[Message], at: float) -> None:
        for one in messages:
            self._peer_free_at = (
                max(self._peer_free_at, at) + self._setting.peer * MICRO
            )
            self.latencies.append(self._peer_free_at - one.at)
            self.delivered_in_time += self._peer_free_at <= self._setting.seconds


def _price(price: tuple[float, float], count: int) -> float:
    once, each = price
    return (once + count * each) * MICRO


def simulate(setting: Setting, prices: Prices) -> Found:
    """Let messages come for a while, and see how long they take."""
    world = _World(setting, prices)
    for number in range(round(setting.rate * setting.seconds)):
        message = Message(number % setting.rooms, number / setting.rate)
        world.at(message.at, lambda one=message: world.publish(one))  # type: ignore[misc]
    world.run(until=10 * setting.seconds)
    return Found(
        world.delivered_in_time / setting.seconds,
        percentile(world.latencies, 50),
        percentile(world.latencies, 99),
        max(core.worked for core in world.cores) / setting.seconds,
    )
