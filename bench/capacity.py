"""How many workers, and how much of a broker: formulas, and what was measured in them.

All times are of one processor of the machine that was measured. Members are connected
to workers by chance, as by a balancer that knows nothing of rooms.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from authws.live.directory import NAMED_EACH
from bench.simulation import Prices

__all__ = ["Constants", "Demand", "Load", "Plan", "plan"]

MICRO = 1e-6
FULL = 0.6
"""Share of its time that a worker, or a broker's core, may be busy on average."""
HOLD = 0.1
"""Seconds for which one message to a room may hold up a worker."""
CONNECTIONS = 16_384
"""Of a worker: the default of AUTHWS_MAX_CONNECTIONS."""
TOLD = 1000
"""Members up to which a room is told who comes and goes: AUTHWS_MAX_PRESENCE."""
BEATS = 0.4
"""A second, of each worker: four in each AUTHWS_PRESENCE_LEASE of ten seconds."""
STAY = 600.0
"""Seconds that a connection lasts in the scenarios."""
TOGETHER = 16
"""Messages that come together where a broker is busy."""
MOST = 20_000
"""Workers with which no plan is looked for any more."""


@dataclass(frozen=True)
class Constants:
    """What was measured: microseconds of a processor, and kilobytes."""

    broker: str
    kept: Prices
    """In rooms that keep history."""
    carried: Prices
    """In those that do not; presence and what workers say go so as well."""
    handshake: float
    join: float
    """Beside what others have to be told of it."""
    storm: float
    """A join among many into a room of 1,000, all that is told included."""
    home: float
    """A room that is opened, and closed, for telling its home."""
    question: float
    """A room that is opened, for each other worker that has it."""
    idle: float
    """A connection, each second, in which it says nothing."""
    kilobytes: float
    """Of a connection."""
    name: float
    """Kilobytes for each member of a room on each worker that has the room."""
    reads_all: bool = False
    """Whether each worker reads what is kept of every room, as by RabbitMQ's streams,
    which rooms share."""
    empty: float = 60_000.0
    """Kilobytes of a worker that nobody is connected to, beside what all share."""

    @classmethod
    def read(cls, results: Mapping[str, Any], broker: str) -> Constants:
        """Read them from what the benchmarks have written (`bench/results/`)."""
        prices = {
            one["history"]: Prices.read(one)
            for one in results["workers"]["costs"]
            if one["broker"] == broker
        }
        kept, carried = prices["kept"], prices["not kept"]
        presence, held = results["presence"], results["held"]
        small = presence["rooms"]["10"]
        handshakes = results["compare"]["measures"]["handshake"]
        # of Redis, on which it was measured
        redis = next(
            Prices.read(one)
            for one in results["workers"]["costs"]
            if (one["broker"], one["history"]) == ("redis", "not kept")
        )
        told = small["told"] * alone(redis.delivery) + 2 * alone(redis.arrival)
        asked = {int(n): one["workers"] for n, one in presence["asking"].items()}
        others = max(asked)
        heard = alone(redis.arrival) + alone(redis.delivery)
        members = max(map(int, presence["kilobytes"]))
        name = presence["kilobytes"][str(members)] - held["kilobytes"]
        return cls(
            broker,
            kept,
            carried,
            handshake=float(
                statistics.median(handshakes["authws, query_param"]["cpu_us"])
            ),
            join=max(0.0, small["workers"] - told),
            storm=presence["storm"]["1000"]["workers"],
            # only the coming asks, and the figures are of a coming or a going; the
            # opener itself is the home of one room in as many as there are workers
            home=max(0.0, 2 * (asked[0] - presence["alone"]["0"]["workers"]))
            * (others + 1)
            / others,
            question=max(0.0, 2 * ((asked[others] - asked[0]) / others - heard)),
            idle=held["idle_us_a_second"],
            kilobytes=held["kilobytes"],
            name=max(0.0, name / 2),
            reads_all=broker == "rabbitmq",
        )


def alone(price: tuple[float, float]) -> float:
    """Microseconds of what comes alone."""
    return price[0] + price[1]


def together(price: tuple[float, float]) -> float:
    """The same where many come at once."""
    return price[0] / TOGETHER + price[1]


@dataclass(frozen=True)
class Load:
    """What is asked of a deployment."""

    name: str
    connections: int
    members: int
    """Of each room; each connection is in one."""
    messages: float
    """A second, in all rooms together."""
    is_kept: bool = True
    is_placed: bool = False
    """Whether a balancer puts the members of a room on one worker."""

    @property
    def changes(self) -> float:
        """Comings and goings a second."""
        return 2 * self.connections / STAY

    def hearing(self, workers: int) -> float:
        """How many workers have a member of a room, on average."""
        if self.is_placed:
            return 1.0
        return workers * (1 - (1 - 1 / workers) ** self.members)

    def openings(self, workers: int) -> float:
        """How many of those who come are the first on their worker."""
        if self.is_placed:
            return 1 / self.members
        return float((1 - 1 / workers) ** (self.members - 1))

    def asked(self, workers: int) -> float:
        """How many others a worker asks that opens a room."""
        holders = 0 if self.is_placed else min(self.hearing(workers), workers - 1)
        return holders if holders <= NAMED_EACH else workers - 1


@dataclass(frozen=True)
class Demand:
    """Seconds of a processor that all workers need each second, by what for."""

    publishes: float
    arrivals: float
    deliveries: float
    presence: float
    handshakes: float
    questions: float
    idle: float
    beats: float

    @property
    def total(self) -> float:
        return float(sum(vars(self).values()))


def demand(load: Load, constants: Constants, workers: int) -> Demand:
    """What a load asks of so many workers.

    What a worker hears from the broker, of whichever rooms, it reads together once it
    has much to do, so that this is what arrivals need of its time at most; what it
    sends comes together only where one room speaks fast, and is reckoned alone.
    """
    prices = constants.kept if load.is_kept else constants.carried
    carried = constants.carried
    hearing = load.hearing(workers)
    arrivals = hearing * together(prices.arrival)
    if load.is_kept and constants.reads_all:
        arrivals += (workers - hearing) * together(prices.arrival)
    told = load.members if load.members <= TOLD else 0
    change = constants.join + hearing * together(carried.arrival)
    change += told * alone(carried.delivery)
    return Demand(
        publishes=load.messages * alone(prices.publish) * MICRO,
        arrivals=load.messages * arrivals * MICRO,
        deliveries=load.messages * load.members * alone(prices.delivery) * MICRO,
        presence=load.changes * change * MICRO,
        handshakes=load.changes / 2 * constants.handshake * MICRO,
        questions=load.changes / 2 * opening(load, constants, workers) * MICRO,
        idle=load.connections * constants.idle * MICRO,
        beats=BEATS * workers**2 * together(carried.arrival) * MICRO,
    )


def opening(load: Load, constants: Constants, workers: int) -> float:
    """Microseconds of all workers that go into questions for each who comes."""
    asked = load.asked(workers) * constants.question
    return load.openings(workers) * (constants.home * (1 - 1 / workers) + asked)


@dataclass(frozen=True)
class Plan:
    """What a load needs."""

    load: Load
    workers: int
    demand: Demand
    megabytes: float
    """Of each worker."""
    hold: float
    """Seconds for which a message holds up a worker."""
    broker: tuple[float, float]
    """Of the broker's processors: where messages come together, and where each comes
    alone."""
    back: float
    """Seconds in which all connections are back after all were lost."""
    reason: str
    """Why not fewer workers."""


def plan(load: Load, constants: Constants) -> Plan | None:
    """Find the fewest workers that will do; None if no number does."""
    workers, reason = least(load, constants)
    while (asked := demand(load, constants, workers)).total > FULL * workers:
        workers, reason = workers + max(1, workers // 100), "their time"
        if workers > MOST:
            return None
    hearing = load.hearing(workers)
    connection = constants.kilobytes + hearing * constants.name
    prices = constants.kept if load.is_kept else constants.carried
    return Plan(
        load,
        workers,
        asked,
        (constants.empty + load.connections / workers * connection) / 1000,
        load.members / workers * alone(prices.delivery) * MICRO,
        tuple(  # type: ignore[arg-type]
            _broker(load, constants, workers, price) for price in (together, alone)
        ),
        _back(load, constants, workers),
        reason,
    )


def least(load: Load, constants: Constants) -> tuple[int, str]:
    """How many workers there must be whatever they have to do, and why."""
    prices = constants.kept if load.is_kept else constants.carried
    bounds = {
        "connections": load.connections / CONNECTIONS,
        "how long a message holds them up": load.members
        * alone(prices.delivery)
        * MICRO
        / HOLD,
    }
    reason = max(bounds, key=lambda name: bounds[name])
    return max(1, -int(-bounds[reason] // 1)), reason


def _broker(load: Load, constants: Constants, workers: int, price: Any) -> float:
    hearing = load.hearing(workers)
    prices = constants.kept if load.is_kept else constants.carried
    carried = constants.carried
    reading = workers if load.is_kept and constants.reads_all else hearing
    said = price(prices.broker_publish) + reading * price(prices.broker_copy)
    changed = price(carried.broker_publish) + hearing * price(carried.broker_copy)
    beat = price(carried.broker_publish) + workers * price(carried.broker_copy)
    # that it is opened, who has it, that it is closed; a question and an answer of each
    one = price(carried.broker_publish) + price(carried.broker_copy)
    asked = one * (3 * (1 - 1 / workers) + 2 * load.asked(workers))
    each_second = (
        load.messages * said
        + load.changes * changed
        + load.changes / 2 * load.openings(workers) * asked
        + BEATS * workers * beat
    )
    return float(each_second * MICRO)


def _back(load: Load, constants: Constants, workers: int) -> float:
    arrivals = load.hearing(workers) * together(constants.carried.arrival)
    told = constants.storm if load.members <= TOLD else constants.join + arrivals
    each = constants.handshake + told
    each += opening(load, constants, workers)
    return load.connections * each * MICRO / workers
