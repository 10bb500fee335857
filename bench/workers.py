"""Several workers on a broker: what they deliver, how soon, and what each step costs.

Four `authws serve` share a broker and an SQLite file; the load generator talks to one
of them, to two, or to all. All servers are on one core and the generator on the other:
a rate is what one core does with all of them on it. What holds past this machine is
the processor time of each step. It comes from bursts of 1 and of 16 messages into a
room of which each worker has 10 or 50 members: a burst costs

    the publisher's worker    p0 + k p1
    each worker that hears it r0 + k r1
    each member               w + k x
    the broker                b0 + k b1, and s0 + k s1 for each worker that hears it

with k messages in it. What a step costs alone is the sum of the two; how little it may
cost where many come together, the second.

    python -m bench.workers [--rounds 2] [--seconds 1] [--only redis,nats]
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import statistics
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from bench import document, fitting, reporting
from bench.brokers import BROKERS, MEMORY, Broker, broker, why_absent
from bench.generator import Generator, LoadError, Measured, generator
from bench.measuring import Measuring
from bench.served import Cores, Served, served_by, use_cores

BOUND = 3600.0

WORKERS = (1, 2, 4)
HISTORY = {"kept": "h", "not kept": "n"}
"""What a room's name begins with, by whether its messages are kept."""
RULES = "h*=100/300,*=0"
"""AUTHWS_HISTORY: a room that begins with h keeps as much as one does by default."""
ROOMS, MEMBERS = 4, 100
"""For the rates: the rooms that are talked into at a time, and the members of each, who
are spread over the workers as the publishers are."""
WINDOW = 16
"""Messages of each publisher's that are on their way at a time."""
STEADY = 100.0
"""Messages per second into all rooms together, where it is asked how soon they come."""
BURSTS, SHARES = (1, 16), (10, 50)
"""Messages of a burst, and members that each worker has of the room."""
LOADS = (0.1, 0.3, 0.5, 0.7, 0.85)
"""Shares of the highest rate, for the simulation to be held against."""
LOADED = 2
"""Workers under these loads."""
SIZE = 128

Share = Callable[[Measured, int], float]
Key = tuple[str, str, int]
"""Broker, whether messages are kept, workers."""


@dataclass
class Result:
    """Everything that was measured, by broker, history and workers."""

    peaks: dict[Key, list[Measured]] = field(default_factory=dict)
    steady: dict[Key, list[Measured]] = field(default_factory=dict)
    bursts: dict[tuple[str, str, int, int, int], list[Measured]] = field(
        default_factory=dict
    )
    """By members of each worker and messages of a burst as well."""
    loads: dict[tuple[str, float], Measured] = field(default_factory=dict)
    """By broker and messages published per second."""
    absent: dict[str, str] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)

    def brokers(self) -> list[str]:
        return list(dict.fromkeys(name for name, _, _ in self.peaks))


# -------------------------------------------------------------------------- measuring


@dataclass
class Fleet:
    """A broker, and the workers on it."""

    broker: Broker
    workers: Sequence[Served]
    token: str

    def ask(self, history: str) -> list[str]:
        """How the generator comes into a room, and speaks there."""
        room = f"{HISTORY[history]}%r"
        return [
            *("--path", f"/ws/query-param?token={self.token}"),
            *("--first", f'{{"type":"join","room":"{room}"}}', "--wait", "joined"),
            *("--pre", f'{{"type":"publish","room":"{room}","data":"', "--post", '"}'),
        ]


@asynccontextmanager
async def fleet(name: str, workers: int, cores: Cores) -> AsyncIterator[Fleet]:
    """Run a broker and its workers."""
    async with (
        broker(name, cores.server) as carrying,
        served_by(
            workers,
            ("alice",),
            core=cores.server,
            broker_url=carrying.url,
            history=RULES,
            max_connections_per_user=0,
            message_rate=0,
            byte_rate=0,
            access_ttl=86_400,
        ) as servers,
    ):
        yield Fleet(carrying, servers, await servers[0].token("alice"))


class Bench:
    """Measures one fleet after another."""

    def __init__(
        self, wsload: Generator, cores: Cores, arguments: argparse.Namespace
    ) -> None:
        self.result = Result()
        each = len(HISTORY) * (2 + len(BURSTS) * len(SHARES)) * arguments.rounds
        steps = sum(
            each * len(self._counts(name)) + len(LOADS) for name in arguments.only
        )
        self.bench = Measuring(wsload, arguments, steps)
        self._cores = cores
        self._rounds = arguments.rounds

    async def run(self, name: str) -> None:
        """Measure everything on one broker."""
        why = why_absent(name)
        if why:
            self.result.absent[name] = why
            self.bench.progress(f"*** LEFT OUT: {name}: {why}", always=True)
            return
        async with fleet(name, max(self._counts(name)), self._cores) as all_of_it:
            self.bench.among([*all_of_it.workers, all_of_it.broker])
            for number in range(self._rounds):
                await self.bench.wait_for_quiet()
                cases = list(itertools.product(HISTORY, self._counts(name)))
                for history, workers in cases[:: -1 if number % 2 else 1]:
                    await self._round(all_of_it, history, workers)
            await self._under_loads(all_of_it)

    @staticmethod
    def _counts(name: str) -> tuple[int, ...]:
        return WORKERS[:1] if name == MEMORY else WORKERS

    async def _round(self, fleet: Fleet, history: str, workers: int) -> None:
        result, key = self.result, (fleet.broker.name, history, workers)
        rooms = ("-c", str(ROOMS * (MEMBERS - 1)), "--rooms", str(ROOMS))
        window = ("-w", str(WINDOW))
        if found := await self._take(fleet, history, workers, *rooms, *window):
            result.peaks.setdefault(key, []).append(found)
        if found := await self._take(
            fleet, history, workers, *rooms, "-r", str(STEADY)
        ):
            result.steady.setdefault(key, []).append(found)
        for share, burst in itertools.product(SHARES, BURSTS):
            members = ("-c", str(share * workers - 1), "--rotate", "-w", str(burst))
            if found := await self._take(fleet, history, workers, *members):
                result.bursts.setdefault((*key, share, burst), []).append(found)

    async def _under_loads(self, fleet: Fleet) -> None:
        name = fleet.broker.name
        workers = min(LOADED, max(self._counts(name)))
        peaks = self.result.peaks.get((name, "kept", workers))
        if not peaks:
            return
        highest = statistics.median(one.published for one in peaks)
        rooms = ("-c", str(ROOMS * (MEMBERS - 1)), "--rooms", str(ROOMS))
        for load in LOADS:
            rate = round(highest * load)
            if found := await self._take(
                fleet, "kept", workers, *rooms, "-r", str(rate)
            ):
                self.result.loads[name, rate] = found

    async def _take(
        self, fleet: Fleet, history: str, workers: int, *options: str
    ) -> Measured | None:
        servers = fleet.workers[:workers]
        what = f"{fleet.broker.name}, {history}, {workers}: {' '.join(options)}"
        self.bench.progress.step()
        self.bench.progress(what)
        try:
            found = await self.bench.measure_all(
                ("fanout", "-b", str(SIZE), *options),
                fleet.ask(history),
                ports=[one.port for one in servers],
                pids=[*(one.pid for one in servers), *fleet.broker.pids()],
            )
        except LoadError as error:
            self.result.failed[what] = str(error)
            self.bench.progress(f"*** {what}: {error}", always=True)
            return None
        await self.bench.wait_until_idle()
        return found


# ------------------------------------------------------------------------ what it costs


def worker_share(found: Measured, workers: int) -> float:
    """Of a processor, that all workers used."""
    return sum(found.cpus[:workers])


def broker_share(found: Measured, workers: int) -> float:
    return sum(found.cpus[workers:])


@dataclass(frozen=True)
class Costs:
    """Microseconds of a processor: what a burst costs once, and for each message."""

    publish: tuple[float, float]
    arrival: tuple[float, float]
    delivery: tuple[float, float]
    broker_publish: tuple[float, float] = (0.0, 0.0)
    broker_copy: tuple[float, float] = (0.0, 0.0)
    error: float = 0.0
    """The largest relative error with which these make up a measured burst."""


def costs(result: Result, name: str, history: str) -> Costs | None:
    """Take the bursts of one broker apart."""
    of_workers: list[fitting.Row] = []
    of_broker: list[fitting.Row] = []
    for (broker_name, kept, workers, share, burst), rounds in result.bursts.items():
        if (broker_name, kept) != (name, history):
            continue
        members = workers * share
        parts = (1, burst, workers, workers * burst, members, members * burst)
        of_workers.append((parts, _each_burst(rounds, burst, workers, worker_share)))
        of_broker.append((parts[:4], _each_burst(rounds, burst, workers, broker_share)))
    if not of_workers:
        return None
    if name == MEMORY:  # whoever publishes is the one worker that hears it
        alone = [((*parts[:2], *parts[4:]), total) for parts, total in of_workers]
        p0, p1, w, x = fitting.fit(alone)
        error = fitting.worst(alone, (p0, p1, w, x))
        return Costs((p0, p1), (0, 0), (w, x), error=error)
    p0, p1, r0, r1, w, x = found = fitting.fit(of_workers)
    b0, b1, s0, s1 = of = fitting.fit(of_broker)
    error = max(fitting.worst(of_workers, found), fitting.worst(of_broker, of))
    return Costs((p0, p1), (r0, r1), (w, x), (b0, b1), (s0, s1), error)


def _each_burst(
    rounds: Sequence[Measured], burst: int, workers: int, share: Share
) -> float:
    each = (share(one, workers) / one.published * burst for one in rounds)
    return statistics.median(each) * 1e6


# --------------------------------------------------------------------------- reporting


def median_of(rounds: Sequence[Measured], name: str) -> float:
    return float(statistics.median(getattr(one, name) for one in rounds))


def rates_table(result: Result) -> str:
    rows: list[list[object]] = []
    for (name, history, workers), rounds in result.peaks.items():
        steady = result.steady.get((name, history, workers), [])
        published = median_of(rounds, "published")
        used = [
            statistics.median(share(one, workers) for one in rounds) / published * 1e6
            for share in (worker_share, broker_share)
        ]
        rows.append(
            [
                *(name, history, workers),
                f"{median_of(rounds, 'rate'):,.0f}",
                f"{published:,.0f}",
                reporting.milliseconds(median_of(rounds, "p99")),
                *(
                    reporting.milliseconds(median_of(steady, quantile))
                    if steady
                    else ""
                    for quantile in ("p50", "p99")
                ),
                reporting.digits(used[0]),
                reporting.digits(used[1]) if used[1] else "",
            ]
        )
    head = [
        *("broker", "messages are", "workers", "deliveries/s", "publishes/s"),
        *("p99, ms", f"p50 at {STEADY:.0f}/s", f"p99 at {STEADY:.0f}/s"),
        *("workers, µs a publish", "broker, µs a publish"),
    ]
    return reporting.table(head, rows, left=2)


def costs_table(result: Result) -> str:
    rows: list[list[object]] = []
    for name in result.brokers():
        for history in HISTORY:
            found = costs(result, name, history)
            if found is None:
                continue
            parts = (
                *(found.publish, found.arrival, found.delivery),
                *(found.broker_publish, found.broker_copy),
            )
            shown = (
                f"{reporting.digits(sum(one))} ({reporting.digits(one[1])})"
                if any(one)
                else ""
                for one in parts
            )
            rows.append([name, history, *shown, f"{found.error:.0%}"])
    head = [
        *("broker", "messages are", "a publish", "an arrival", "a delivery"),
        *("broker: a publish", "broker: for each worker", "worst error"),
    ]
    return reporting.table(head, rows, left=2)


def report(result: Result, rounds: int) -> str:
    parts = [
        f"Medians of {rounds} rounds; {ROOMS} rooms of {MEMBERS}, whose members and "
        f"publishers are spread over the workers; {WINDOW} messages of each "
        f"publisher's on their way at a time, or {STEADY:.0f} a second into all rooms "
        f"together ({STEADY * MEMBERS:,.0f} deliveries a second).",
        rates_table(result),
        "Microseconds of a processor that each step costs alone, and in brackets where "
        "many messages come together:",
        costs_table(result),
    ]
    if result.absent:
        missing = "; ".join(f"{name} ({why})" for name, why in result.absent.items())
        parts.insert(1, f"**Not measured**: {missing}.")
    if result.failed:
        failed = "; ".join(f"{what} ({why})" for what, why in result.failed.items())
        parts.insert(1, f"**Failed**: {failed}.")
    return "\n\n".join(parts)


def figures(result: Result) -> dict[str, Any]:
    """As they are kept, for the model of docs/scaling.md."""
    found = {
        (name, history): costs(result, name, history)
        for name in result.brokers()
        for history in HISTORY
    }
    return {
        "costs": [
            {
                "broker": name,
                "history": history,
                "error": round(one.error, 3),
                **{
                    part: [round(value, 2) for value in getattr(one, part)]
                    for part in (
                        *("publish", "arrival", "delivery"),
                        *("broker_publish", "broker_copy"),
                    )
                },
            }
            for (name, history), one in found.items()
            if one is not None
        ],
        "peaks": [
            {
                **_of(key),
                "deliveries": round(median_of(rounds, "rate")),
                "publishes": round(median_of(rounds, "published"), 1),
                "p99_ms": round(median_of(rounds, "p99") * 1000, 2),
            }
            for key, rounds in result.peaks.items()
        ],
        "steady": [
            {
                **_of(key),
                "p50_ms": round(median_of(rounds, "p50") * 1000, 2),
                "p99_ms": round(median_of(rounds, "p99") * 1000, 2),
            }
            for key, rounds in result.steady.items()
        ],
        "loads": [
            {
                "broker": name,
                "publishes": rate,
                "published": round(one.published, 1),
                "deliveries": round(one.rate),
                "p50_ms": round(one.p50 * 1000, 2),
                "p99_ms": round(one.p99 * 1000, 2),
                "core": round(sum(one.cpus), 3),
                "generator_us": round(one.generator / one.rate * 1e6, 3),
            }
            for (name, rate), one in result.loads.items()
        ],
        "rooms": ROOMS,
        "members": MEMBERS,
        "workers": LOADED,
    }


def _of(key: Key) -> dict[str, Any]:
    return dict(zip(("broker", "history", "workers"), key, strict=True))


# ------------------------------------------------------------------------ the picture

COLOURS = dict(zip(BROKERS, ("#334155", "#c2410c", "#0f766e", "#6d28d9"), strict=True))


def draw(result: Result) -> None:
    """Rates, times and costs, over the number of workers."""
    with reporting.picture("workers", columns=4, size=(14, 3.5)) as axes:
        for name, (history, line) in itertools.product(
            result.brokers(), zip(HISTORY, ("-", "--"), strict=True)
        ):
            draw_broker(axes, result, name, history, line)
        titles = (
            "Deliveries per second, all on one core",
            f"ms, p99 of a delivery at {STEADY:.0f} messages/s",
            "µs of all workers for a publish to 100",
            "µs of the broker for a publish",
        )
        for one, title in zip(axes, titles, strict=True):
            one.set(title=title, xlabel="workers")
            one.set_xticks(WORKERS)
            one.set_ylim(bottom=0)
            one.yaxis.set_major_formatter("{x:,.10g}")
        axes[0].legend(fontsize=8)


def draw_broker(
    axes: Sequence[Any], result: Result, name: str, history: str, line: str
) -> None:
    counts = [w for w in WORKERS if (name, history, w) in result.peaks]
    steady = [w for w in counts if (name, history, w) in result.steady]
    peaks = {w: result.peaks[name, history, w] for w in counts}
    published = {w: median_of(rounds, "published") for w, rounds in peaks.items()}
    curves: list[dict[int, float]] = [
        {w: median_of(rounds, "rate") for w, rounds in peaks.items()},
        {w: median_of(result.steady[name, history, w], "p99") * 1e3 for w in steady},
        *(
            {
                w: statistics.median(share(one, w) for one in rounds)
                / published[w]
                * 1e6
                for w, rounds in peaks.items()
            }
            for share in (worker_share, broker_share)
        ),
    ]
    if name == MEMORY:
        curves.pop()
    label = f"{name}, {'history' if history == 'kept' else 'none'}"
    style = {"marker": "o", "markersize": 4, "color": COLOURS[name]}
    for one, curve in zip(axes, curves, strict=False):
        one.plot(list(curve), list(curve.values()), line, label=label, **style)


# ------------------------------------------------------------------------ the command


async def main(arguments: argparse.Namespace) -> None:
    cores = use_cores()
    async with asyncio.timeout(BOUND):
        with generator(cores) as wsload:
            bench = Bench(wsload, cores, arguments)
            for name in arguments.only:
                await bench.run(name)
    result = bench.result
    body = report(result, arguments.rounds)
    print(body)
    described = bench.bench.load.describe()
    print(described)
    if arguments.write and arguments.only == list(BROKERS):
        document.write("workers", body, figures(result), cores=cores, load=described)
        draw(result)


if __name__ == "__main__":
    parser = reporting.options(__doc__)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=1, help="of each measurement")
    parser.add_argument(
        "--only",
        type=lambda text: text.split(","),
        default=list(BROKERS),
        metavar="BROKERS",
        help=f"some of {','.join(BROKERS)}; nothing is written then",
    )
    reporting.run(main(parser.parse_args()))
