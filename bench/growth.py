"""How it grows: with connections, rooms, members and the size of messages.

What one operation costs must not depend on how much else there is. The steps of a curve
are measured one after another, every other round backwards, so that what drifts, drifts
for all; the medians of the rounds are shown. The cost is the server's processor time
for each operation: on a machine that others use as well it is steadier than the rate.

- connections: 100 to 10,000 idle ones are open, while others come by each strategy, and
  a room of 100 is talked into;
- rooms: 1 to 1,000 of 10 members each. First into one at a time, a window of 4 messages
  and then the next room, so that each turn of the event loop has the same to do however
  many rooms there are; then into all at once, one message on its way in each;
- members: 1 to 1,000 in one room;
- size: 16 bytes to 64 KiB, echoed and in a room of 100.

    python -m bench.growth [--rounds 3] [--seconds 1] [--only connections,rooms]
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from typing import Any

from bench import document, reporting
from bench.contending import (
    CONTENDERS,
    FLOOR,
    NATS,
    OURS,
    QUERY_PARAM,
    Started,
    started,
)
from bench.generator import Generator, LoadError, Measured, generator
from bench.measuring import Measuring
from bench.served import Cores, settled_rss, use_cores
from bench.servers import Authws

BOUND = 7200.0

CONNECTIONS = (100, 300, 1_000, 3_000, 10_000)
ROOMS = (1, 3, 10, 30, 100, 300, 1_000)
MEMBERS = (1, 3, 10, 30, 100, 300, 1_000)
SIZES = (16, 64, 256, 1_024, 4_096, 16_384, 65_536)
PER_ROOM = 10
"""Members of each of many rooms, one of whom publishes."""
FIRST_OF_ALL = 20
"""Connections that are opened and closed before memory is measured."""
HANDSHAKE = ("connect", "-c", "32")
TALK = ("fanout", "-w", "4")
TALK_ONCE = ("fanout", "-w", "1")
ECHO = ("echo", "-c", "64")

BIG = Authws(
    settings=(
        # a message of 64 KiB travels in an envelope
        ("max_message_bytes", 131_072),
        ("outbox_bytes", 16_777_216),
    )
)
"""The service with room for the largest messages of the curve."""
NEIGHBOURS = [one for one in CONTENDERS if one.name in (FLOOR, NATS)]
"""Whose curves are shown beside ours."""


@dataclass
class Curve:
    """One operation over the steps of one quantity."""

    name: str
    rounds: dict[int, list[Measured]] = field(default_factory=dict)
    """By step."""

    def add(self, step: int, found: Measured) -> None:
        self.rounds.setdefault(step, []).append(found)

    def rates(self) -> dict[int, float]:
        return {
            step: statistics.median(one.rate for one in rounds)
            for step, rounds in sorted(self.rounds.items())
        }

    def costs(self) -> dict[int, float]:
        """Microseconds of the server's processor."""
        return {
            step: statistics.median(one.cpu for one in rounds) * 1e6
            for step, rounds in sorted(self.rounds.items())
        }

    def flatness(self) -> float | None:
        """How far the cost of a step is from the median of all, at most."""
        return deviation(list(self.costs().values()))


def deviation(values: Sequence[float]) -> float | None:
    """The furthest from their median, as a share of it; None for fewer than two."""
    if len(values) < 2:
        return None
    middle = statistics.median(values)
    return max(abs(value / middle - 1) for value in values)


@dataclass
class Result:
    """Every curve, by what grows along it."""

    curves: dict[str, dict[str, Curve]] = field(default_factory=dict)
    memory: dict[int, list[float]] = field(default_factory=dict)
    """By number of connections, bytes for each of those since the step before."""
    failed: dict[str, str] = field(default_factory=dict)

    def curve(self, along: str, name: str) -> Curve:
        return self.curves.setdefault(along, {}).setdefault(name, Curve(name))

    def memory_each(self) -> dict[int, float]:
        """Kilobytes, by number of connections."""
        return {
            step: statistics.median(rounds) / 1000
            for step, rounds in sorted(self.memory.items())
        }


# -------------------------------------------------------------------------- measuring


class Growth:
    """Measures one curve's step after another."""

    def __init__(
        self, wsload: Generator, cores: Cores, arguments: argparse.Namespace
    ) -> None:
        rounds = arguments.rounds
        steps = {
            "connections": len(CONNECTIONS) * 2 * (len(OURS) + 1),
            "rooms": len(ROOMS) * 2,
            "members": len(MEMBERS) * (1 + len(NEIGHBOURS)),
            "size": len(SIZES) * 2 * (1 + len(NEIGHBOURS)),
        }
        self.result = Result()
        self.bench = Measuring(
            wsload, arguments, rounds * sum(steps[along] for along in arguments.only)
        )
        self._core = cores.server
        self._rounds = rounds

    async def run(self, along: str) -> None:
        """Measure everything along one quantity."""
        await getattr(self, f"_along_{along}")()

    async def _take(
        self, along: str, name: str, step: int, one: Started, *work: str
    ) -> None:
        self.bench.progress.step()
        try:
            found = await self.bench.measure(one, work)
        except LoadError as error:
            self.result.failed[f"{name}, {along} {step:,}"] = str(error)
            self.bench.progress(f"*** {name}, {along} {step:,}: {error}", always=True)
            return
        self.result.curve(along, name).add(step, found)
        self.bench.progress(
            f"{along} {step:,}: {name}: {found.rate:,.0f}/s, "
            f"{found.cpu * 1e6:,.1f} microseconds each"
        )

    # ------------------------------------------------------------------- connections

    async def _along_connections(self) -> None:
        """A new server each round: up for the memory, down and up for the rest."""
        for _ in range(self._rounds):
            async with started(OURS, self._core) as (contenders, _):
                self.bench.beside(contenders)
                await self.bench.wait_for_quiet()
                async with Crowd(self.bench, contenders[0]) as crowd:
                    await self._weigh(crowd)
                    for step in reversed(CONNECTIONS):
                        await crowd.be(step)
                        await self._beside(step, contenders)
                    for step in CONNECTIONS:
                        await crowd.be(step)
                        await self._beside(step, contenders)

    async def _weigh(self, crowd: Crowd) -> None:
        await crowd.be(FIRST_OF_ALL)
        await crowd.be(0)
        before, size = 0, await crowd.size()
        for step in CONNECTIONS:
            await crowd.be(step)
            now = await crowd.size()
            each = (now - size) / (step - before)
            self.result.memory.setdefault(step, []).append(each)
            self.bench.progress(f"{step:,} connections: {each / 1000:.1f} kB each")
            before, size = step, now

    async def _beside(self, step: int, contenders: Sequence[Started]) -> None:
        for one in contenders:
            await self._take("connections", one.name, step, one, *HANDSHAKE)
        room = contenders[0]
        await self._take("connections", "room", step, room, *TALK, "-c", "99")
        await self.bench.wait_until_idle()

    # ------------------------------------------------------------------------- rooms

    async def _along_rooms(self) -> None:
        async with started([QUERY_PARAM], self._core) as ([one], _):
            self.bench.beside([one])
            for step in self._in_rounds(ROOMS):
                subscribers = str(step * (PER_ROOM - 1))
                rooms = ("-c", subscribers, "--rooms", str(step))
                await self._take("rooms", "one", step, one, *TALK, *rooms, "--rotate")
                await self.bench.wait_until_idle()
                await self._take("rooms", "all", step, one, *TALK_ONCE, *rooms)
                await self.bench.wait_until_idle()
                await self._rest_if(step == ROOMS[0])

    # ----------------------------------------------------------------------- members

    async def _along_members(self) -> None:
        async with started([QUERY_PARAM, *NEIGHBOURS], self._core) as (everybody, _):
            self.bench.beside(everybody)
            for step in self._in_rounds(MEMBERS):
                for one in everybody:
                    members = ("-c", str(step - 1))
                    await self._take("members", one.name, step, one, *TALK, *members)
                await self._rest_if(step == MEMBERS[0])

    # -------------------------------------------------------------------------- size

    async def _along_size(self) -> None:
        big = replace(QUERY_PARAM, server=BIG)
        async with started([big, *NEIGHBOURS], self._core) as (everybody, _):
            self.bench.beside(everybody)
            for step in self._in_rounds(SIZES):
                size = ("-b", str(step))
                for one in everybody:
                    room = ("-c", "99", *size)
                    await self._take("size, echo", one.name, step, one, *ECHO, *size)
                    await self._take("size, room", one.name, step, one, *TALK, *room)
                await self._rest_if(step == SIZES[0])

    def _in_rounds(self, steps: Sequence[int]) -> Sequence[int]:
        """Every round's, every other one backwards."""
        return [
            step
            for number in range(self._rounds)
            for step in steps[:: -1 if number % 2 else 1]
        ]

    async def _rest_if(self, is_end: bool) -> None:
        if is_end:
            await self.bench.wait_for_quiet()


class Crowd:
    """Idle connections, as many as one likes."""

    def __init__(self, bench: Measuring, one: Started) -> None:
        self._bench = bench
        self._one = one
        self._groups: list[tuple[int, AsyncExitStack]] = []

    async def __aenter__(self) -> Crowd:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.be(0)

    async def be(self, count: int) -> None:
        """Let some come, or let the last who came go, until ``count`` are here."""
        while (here := sum(size for size, _ in self._groups)) > count:
            _, group = self._groups.pop()
            await group.aclose()
            await self._bench.wait_until_idle()
        if here == count:
            return
        group = AsyncExitStack()
        self._bench.progress(f"{count - here:,} more idle connections")
        port = self._one.running.port
        holding = self._bench.wsload.holding(
            count - here, self._one.ask("connect"), port=port
        )
        await group.enter_async_context(holding)
        self._groups.append((count - here, group))
        await self._bench.wait_until_idle()

    async def size(self) -> int:
        """Of the server, in bytes."""
        return await settled_rss(self._one.running.pid, still=1)


# --------------------------------------------------------------------------- reporting

Column = tuple[str, dict[int, float], Callable[[float], str]]
"""Its head, the values by step, and how they are written."""


def short(name: str) -> str:
    """A contender's name, where there is little room."""
    names = {QUERY_PARAM.name: "authws", FLOOR: "plain FastAPI"}
    return names.get(name, name)


def curve_table(head: str, columns: Sequence[Column]) -> str:
    steps = sorted({step for _, values, _ in columns for step in values})
    rows: list[list[object]] = [
        [
            f"{step:,}",
            *(
                shown(values[step]) if step in values else ""
                for _, values, shown in columns
            ),
        ]
        for step in steps
    ]
    return reporting.table([head, *(name for name, _, _ in columns)], rows, left=0)


def rate(name: str, curve: Curve) -> Column:
    return (f"{name}/s", curve.rates(), "{:,.0f}".format)


def cost(name: str, curve: Curve) -> Column:
    return (f"{name}, µs", curve.costs(), reporting.digits)


def connections_table(result: Result) -> str:
    curves = result.curves.get("connections", {})
    names = {one.name: one.name.rpartition(" ")[2] for one in OURS}
    columns = [
        *(rate(names.get(name, "deliveries"), curve) for name, curve in curves.items()),
        *(cost(names.get(name, "a delivery"), curve) for name, curve in curves.items()),
        ("kB each", result.memory_each(), reporting.digits),
    ]
    return curve_table("connections", columns)


def rooms_table(result: Result) -> str:
    curves = result.curves.get("rooms", {})
    words = {"one": "one at a time", "all": "all at once"}
    columns = [
        column(words[name], curve)
        for name, curve in curves.items()
        for column in (rate, cost)
    ]
    return curve_table(f"rooms of {PER_ROOM}", columns)


def members_table(result: Result) -> str:
    curves = result.curves.get("members", {})
    columns = [rate(short(name), curve) for name, curve in curves.items()]
    if QUERY_PARAM.name in curves:
        columns.append(cost("authws", curves[QUERY_PARAM.name]))
    return curve_table("members", columns)


def size_table(result: Result, along: str) -> str:
    columns = []
    for name, curve in result.curves.get(f"size, {along}", {}).items():
        columns += [
            rate(short(name), curve),
            ("MB/s", megabytes_per_second(curve), reporting.digits),
        ]
    return curve_table(f"bytes, {along}", columns)


def megabytes_per_second(curve: Curve) -> dict[int, float]:
    return {step: step * rate / 1e6 for step, rate in curve.rates().items()}


def flatness(result: Result) -> dict[str, float]:
    """How far the cost of a step is from the median of its curve, at most."""
    along = result.curves.get
    connections = along("connections", {})
    found = {
        "handshake": largest(
            [connections[one.name] for one in OURS if one.name in connections]
        ),
        "fanout": largest([connections["room"]] if "room" in connections else []),
        "rooms": largest([curve for curve in [along("rooms", {}).get("one")] if curve]),
        # without the first step: it has what the first connections bring in
        "memory": deviation(list(result.memory_each().values())[1:]),
    }
    return {key: round(value, 3) for key, value in found.items() if value is not None}


def largest(curves: Sequence[Curve]) -> float | None:
    """The flatness of the least flat of them."""
    return max(
        (flat for curve in curves if (flat := curve.flatness()) is not None),
        default=None,
    )


def report(result: Result, rounds: int) -> str:
    found = flatness(result)
    words = {
        "handshake": "the cost of a handshake over connections, by the least flat "
        "strategy",
        "fanout": "the cost of a delivery over connections",
        "memory": "the memory of a connection",
        "rooms": "the cost of a delivery over rooms, one at a time",
    }
    flat = (
        f"{what}: **{found[key]:.0%}**" for key, what in words.items() if key in found
    )
    parts = [
        f"Medians of {rounds} rounds. Furthest from the median of its curve: "
        f"{'; '.join(flat)}.",
        "With connections that are open and idle:",
        connections_table(result),
        picture_of("connections", "What a handshake, a delivery and a connection cost"),
        "With rooms, and with the members of one:",
        rooms_table(result),
        members_table(result),
        picture_of("rooms", "Deliveries per second, and what each costs"),
        "With the size of messages:",
        size_table(result, "echo"),
        size_table(result, "room"),
        picture_of("size", "Messages and megabytes per second"),
    ]
    if result.failed:
        failed = "; ".join(f"{what} ({why})" for what, why in result.failed.items())
        parts.insert(1, f"**Failed**: {failed}.")
    return "\n\n".join(parts)


def picture_of(name: str, words: str) -> str:
    return f"![{words}](images/growth_{name}.svg)"


# ------------------------------------------------------------------------ the pictures

COLOURS = {
    OURS[0].name: "#c2410c",
    OURS[1].name: "#0f766e",
    OURS[2].name: "#6d28d9",
    FLOOR: "#334155",
    NATS: "#94a3b8",
}
MARKS = {OURS[1].name: "s", OURS[2].name: "^", FLOOR: "s", NATS: "^"}
TICKS = {
    "connections": (CONNECTIONS, "connections open"),
    "rooms": (ROOMS, f"rooms of {PER_ROOM} members"),
    "members": (MEMBERS, "members of the room"),
    "size": (SIZES, "bytes of a message"),
}
BAND = 0.15


def line(axes: Any, values: dict[int, float], name: str, label: str = "") -> None:
    axes.plot(
        list(values),
        list(values.values()),
        marker=MARKS.get(name, "o"),
        markersize=4,
        color=COLOURS.get(name, COLOURS[QUERY_PARAM.name]),
        label=label or short(name),
    )


def band(axes: Any, values: dict[int, float]) -> None:
    """What counts as flat."""
    if values:
        middle = statistics.median(values.values())
        axes.axhspan(
            middle * (1 - BAND), middle * (1 + BAND), color="#f1f5f9", zorder=0
        )


def finish(axes: Any, along: str, title: str, *, log: bool = False) -> None:
    ticks, words = TICKS[along]
    axes.set_xscale("log")
    labels = [
        f"{tick // 1024} k" if tick >= 1024 and along == "size" else f"{tick:,}"
        for tick in ticks
    ]
    axes.set_xticks(ticks, labels, fontsize=8)
    axes.minorticks_off()
    axes.set(xlabel=words, title=title)
    if log:
        axes.set_yscale("log", subs=[2, 5])
        axes.yaxis.set_minor_formatter(plain)
    else:
        axes.set_ylim(0, max(1.0, axes.dataLim.y1) * 1.25)
    axes.yaxis.set_major_formatter(plain)
    axes.tick_params(axis="y", which="both", labelsize=8)


def plain(value: float, _: int) -> str:
    """A figure at an axis."""
    return f"{value:,g}"


def draw_connections(result: Result) -> None:
    curves = result.curves["connections"]
    handshakes = {one.name: curves[one.name] for one in OURS if one.name in curves}
    room, memory = curves["room"], result.memory_each()
    with reporting.picture("growth_connections", columns=4, size=(14, 3.3)) as (
        rates,
        costs,
        deliveries,
        sizes,
    ):
        for name, curve in handshakes.items():
            label = name.rpartition(" ")[2]
            line(rates, curve.rates(), name, label)
            line(costs, curve.costs(), name, label)
        band(deliveries, room.costs())
        line(deliveries, room.costs(), "room")
        band(sizes, dict(list(memory.items())[1:]))
        line(sizes, memory, "memory")
        finish(rates, "connections", "Handshakes per second")
        finish(costs, "connections", "µs of the server for a handshake")
        finish(deliveries, "connections", "µs for a delivery in a room of 100")
        finish(sizes, "connections", "kB of each further connection")
        rates.legend(fontsize=8, loc="lower left")


def draw_rooms(result: Result) -> None:
    rooms, members = result.curves["rooms"], result.curves["members"]
    with reporting.picture("growth_rooms", columns=4, size=(14, 3.3)) as (
        rates,
        costs,
        of_members,
        cost_of_members,
    ):
        for name, words, colour in (
            ("one", "one at a time", OURS[0].name),
            ("all", "all at once", OURS[1].name),
        ):
            line(rates, rooms[name].rates(), colour, words)
            line(costs, rooms[name].costs(), colour, words)
        band(costs, rooms["one"].costs())
        for name, curve in members.items():
            line(of_members, curve.rates(), name)
            line(cost_of_members, curve.costs(), name)
        finish(rates, "rooms", "Deliveries per second", log=True)
        finish(costs, "rooms", "µs of the server for a delivery")
        finish(of_members, "members", "Deliveries per second", log=True)
        finish(cost_of_members, "members", "µs for a delivery", log=True)
        rates.legend(fontsize=8)
        of_members.legend(fontsize=8)


def draw_size(result: Result) -> None:
    with reporting.picture("growth_size", columns=4, size=(14, 3.3)) as all_axes:
        for pair, along, what in (
            (all_axes[:2], "echo", "Echoes"),
            (all_axes[2:], "room", "Deliveries"),
        ):
            for name, curve in result.curves[f"size, {along}"].items():
                line(pair[0], curve.rates(), name)
                line(pair[1], megabytes_per_second(curve), name)
            place = "64 connections" if along == "echo" else "a room of 100"
            finish(pair[0], "size", f"{what} per second, {place}", log=True)
            finish(pair[1], "size", f"{what}, MB per second", log=True)
        all_axes[0].legend(fontsize=8)


# ------------------------------------------------------------------------ the command


async def main(arguments: argparse.Namespace) -> None:
    cores = use_cores()
    async with asyncio.timeout(BOUND):
        with generator(cores) as wsload:
            growth = Growth(wsload, cores, arguments)
            for along in arguments.only:
                await growth.run(along)
    body = report(growth.result, arguments.rounds)
    print(body)
    described = growth.bench.load.describe()
    print(described)
    if arguments.write and arguments.only == list(TICKS):
        figures = {"flatness": flatness(growth.result)}
        document.write("growth", body, figures, cores=cores, load=described)
        for draw in (draw_connections, draw_rooms, draw_size):
            draw(growth.result)


if __name__ == "__main__":
    parser = reporting.options(__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=1, help="of each measurement")
    parser.add_argument(
        "--only",
        type=lambda text: text.split(","),
        default=list(TICKS),
        metavar="CURVES",
        help=f"some of {','.join(TICKS)}; nothing is written then",
    )
    reporting.run(main(parser.parse_args()))
