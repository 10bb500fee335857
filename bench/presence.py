"""What it costs to come and go: with many rooms, and with many members of one.

Two workers on Redis. One member joins a room and leaves it, again and again: what that
takes of the workers' processor time and of Redis', and how much goes through Redis,
must not depend on how many rooms there are; and on how many members a room has, only by
what it costs to tell them, as long as they are told (`AUTHWS_MAX_PRESENCE`, 1000).

- rooms: 10 to 10,000 with 10 members each, half of them by way of each worker; a room
  that is there, and one that is opened by it and closed again;
- members: 10 to 10,000 users in one room. On the way there all that are missing come at
  the same moment, as after a restart: what each of those costs is shown as well;
- holders: a room that is opened on one worker of four, while none to all of the others
  have it: only those are asked. And one on the only worker, that asks nobody.

    python -m bench.presence [--steps 10,100,1000,10000] [--times 200]
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import itertools
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from redis.asyncio import Redis

from bench import document, reporting
from bench.brokers import Broker, broker, why_absent
from bench.crowds import enrol
from bench.growth import deviation
from bench.peers import Credential, Peer, connect
from bench.reporting import Load, Progress, digits
from bench.served import Cores, Served, served_by, use_cores

BOUND = 1800.0

BROKER, WORKERS = "redis", 2
FLEETS = (1, 4)
"""Workers, of whom one opens rooms."""
STEPS = (10, 100, 1_000, 10_000)
PER_ROOM = 10
"""Members of each of many rooms."""
ROOMS_EACH = 100
"""Rooms of each of those members: the default of AUTHWS_MAX_ROOMS."""
AT_ONCE = 64
"""Handshakes under way at one time."""
PATIENCE = 60.0
CALM = 0.02
"""Share of a processor that is no work any more."""


class Reading(NamedTuple):
    """What was used so far."""

    workers: float
    """Seconds of processor time."""
    broker: float
    messages: float
    """Commands that publish."""
    bytes: float
    """That Redis has read and written."""


class Cost(NamedTuple):
    """Of one coming or going, on average."""

    workers: float
    """Microseconds of all workers."""
    broker: float
    messages: float
    bytes: float
    told: float = 0.0
    """Messages to peers."""


@dataclass
class Result:
    """Costs by step."""

    rooms: dict[int, Cost] = field(default_factory=dict)
    opening: dict[int, Cost] = field(default_factory=dict)
    members: dict[int, Cost] = field(default_factory=dict)
    storm: dict[int, Cost] = field(default_factory=dict)
    """Of each that came with all the others, at the same moment."""
    alone: dict[int, Cost] = field(default_factory=dict)
    """Of a room that is opened on the only worker."""
    asking: dict[int, Cost] = field(default_factory=dict)
    """Of a room that is opened, by how many of the other workers have it."""
    kilobytes: dict[int, float] = field(default_factory=dict)
    """Of memory of all workers for each member, by the number of members."""


# -------------------------------------------------------------------------- measuring


class Member:
    """A peer that joins and leaves, and does not keep what it hears."""

    def __init__(self, peer: Peer) -> None:
        self._peer = peer
        self._answered: asyncio.Future[None] | None = None
        peer.listen(self._hear)

    def _hear(self, text: bytes, _: float) -> None:
        if text.startswith((b'{"type":"joined"', b'{"type":"left"')):
            assert self._answered is not None
            self._answered.set_result(None)
        assert not text.startswith(b'{"type":"error"'), text

    async def _do(self, what: str, room: str) -> None:
        self._answered = asyncio.get_running_loop().create_future()
        self._peer.send({"type": what, "room": room})
        await self._answered

    async def join(self, room: str) -> None:
        await self._do("join", room)

    async def leave(self, room: str) -> None:
        await self._do("leave", room)


class Bench:
    """Two workers, and those who come and go."""

    def __init__(
        self,
        broker: Broker,
        servers: Sequence[Served],
        tokens: Sequence[str],
        progress: Progress,
    ) -> None:
        self.result = Result()
        self._broker = broker
        self._servers = servers
        self._tokens = iter(tokens)
        self._progress = progress
        self._redis: Any = Redis.from_url(broker.url)

    def cpu(self) -> float:
        """Seconds of processor time that everything used."""
        return self._broker.cpu() + sum(server.cpu() for server in self._servers)

    async def meet(self, count: int, *servers: Served) -> list[Member]:
        """Let users connect, each to the next of these workers, or of all."""
        found: list[Member] = []
        places = itertools.cycle(servers or self._servers)
        left = itertools.repeat(None, count)

        async def opener() -> None:
            for _ in left:
                credential = Credential("query-param", next(self._tokens))
                found.append(Member(await connect(next(places), credential)))
                self._progress(f"{len(found):,} of {count:,} more connections")

        await asyncio.gather(*(opener() for _ in range(AT_ONCE)))
        return found

    async def cost(self, work: Callable[[], Awaitable[None]], times: int) -> Cost:
        """Do some work; return what each of ``times`` times cost."""
        await self._until_idle()
        told, before = await self._told(), await self._read()
        gc.collect()
        await work()
        await self._until_idle()
        after, told_then = await self._read(), await self._told()
        # the first reading itself went through Redis
        used = [b - a for a, b in zip(before, after, strict=True)]
        return Cost(
            used[0] / times * 1e6,
            used[1] / times * 1e6,
            used[2] / times,
            used[3] / times,
            (told_then - told) / times,
        )

    async def come_and_go(self, one: Member, names: Sequence[str], times: int) -> Cost:
        """Join one room after another and leave it at once; a coming and a going
        count as one each."""
        rooms = list(itertools.islice(itertools.cycle(names), times))

        async def work() -> None:
            for room in rooms:
                await one.join(room)
                await one.leave(room)

        await work()  # once for the caches
        return await self.cost(work, 2 * times)

    async def _read(self) -> Reading:
        commands = await self._redis.info("commandstats")
        published = sum(
            commands.get(f"cmdstat_{name}", {}).get("calls", 0)
            for name in ("publish", "spublish", "eval", "evalsha")
        )
        stats = await self._redis.info("stats")
        return Reading(
            sum(server.cpu() for server in self._servers),
            self._broker.cpu(),
            published,
            stats["total_net_input_bytes"] + stats["total_net_output_bytes"],
        )

    async def _told(self) -> float:
        samples = [await server.metrics() for server in self._servers]
        return sum(one["authws_messages_delivered_total"] for one in samples)

    async def _until_idle(self) -> None:
        loop = asyncio.get_running_loop()
        until = loop.time() + PATIENCE
        while loop.time() < until:
            before = self.cpu()
            await asyncio.sleep(0.3)
            if self.cpu() - before < 0.3 * CALM:
                return

    # --------------------------------------------------------------------- the curves

    async def along_rooms(self, steps: Sequence[int], times: int) -> None:
        """More and more rooms of the same size."""
        [probe] = await self.meet(1)
        names: list[str] = []
        for step in steps:
            while len(names) < step:
                count = min(ROOMS_EACH, step - len(names))
                more = [f"room-{len(names) + number}" for number in range(count)]
                for one in await self.meet(PER_ROOM):
                    for room in more:
                        await one.join(room)
                names += more
                self._progress(f"{len(names):,} rooms")
            spread = names[:: max(1, len(names) // times)]
            self.result.rooms[step] = await self.come_and_go(probe, spread, times)
            new = [f"new-{number}" for number in range(times)]
            self.result.opening[step] = await self.come_and_go(probe, new, times)
            self._show("rooms", step, self.result.rooms[step])

    async def along_members(self, steps: Sequence[int], times: int) -> None:
        """More and more members of one room, of whom the one who comes and goes is
        one."""
        [probe] = await self.meet(1)
        here, empty = 0, self._memory()
        for step in steps:
            more = await self.meet(step - 1 - here)
            self.result.storm[step] = await self.cost(
                lambda more=more: self._all_join(more),  # type: ignore[misc]
                len(more),
            )
            here += len(more)
            self.result.members[step] = await self.come_and_go(probe, ["crowd"], times)
            self.result.kilobytes[step] = (self._memory() - empty) / step / 1000
            self._show("members", step, self.result.members[step])

    async def along_workers(self, _: Sequence[int], times: int) -> None:
        """One of the fleets."""
        opener, *others = self._servers
        [probe] = await self.meet(1, opener)
        found = self.result.asking if others else self.result.alone
        for holders in range(len(others) + 1):
            names = [f"held-by-{holders}-{number}" for number in range(times)]
            for some in range(0, times if holders else 0, ROOMS_EACH):
                for one in await self.meet(holders, *others[:holders]):
                    for room in names[some : some + ROOMS_EACH]:
                        await one.join(room)
            found[holders] = await self.come_and_go(probe, names, times)
            self._show("holders", holders, found[holders])

    def _memory(self) -> int:
        return sum(server.rss() for server in self._servers)

    @staticmethod
    async def _all_join(members: Sequence[Member]) -> None:
        await asyncio.gather(*(one.join("crowd") for one in members))

    def _show(self, along: str, step: int, cost: Cost) -> None:
        self._progress(
            f"{along} {step:,}: {cost.workers:,.0f} microseconds, "
            f"{cost.told:,.1f} told",
            always=True,
        )


async def run(
    along: str,
    workers: int,
    cores: Cores,
    arguments: argparse.Namespace,
    load: Load,
    result: Result,
) -> None:
    """Measure one curve, or a step of one, on a fleet of its own."""
    progress = Progress()
    steps: Sequence[int] = arguments.steps
    async with (
        broker(BROKER, cores.server) as carrying,
        served_by(
            workers,
            ("alice",),
            core=cores.server,
            broker_url=carrying.url,
            max_connections_per_user=0,
            message_rate=0,
            ping_interval=0,
            access_ttl=3600,
        ) as servers,
    ):
        token = await servers[0].token("alice")
        count = 1 + max(steps[-1], PER_ROOM * -(-steps[-1] // ROOMS_EACH) * 2)
        tokens = enrol(servers[0], "alice", token, count)
        bench = Bench(carrying, servers, tokens, progress)
        bench.result = result
        await load.wait_for_quiet(bench.cpu, progress, arguments.patience)
        with load.watching(bench.cpu):
            await getattr(bench, f"along_{along}")(steps, arguments.times)
        Peer.crash_all()


# --------------------------------------------------------------------------- reporting


def curve_table(head: str, costs: Mapping[int, Cost]) -> str:
    rows: list[list[object]] = [
        [
            f"{step:,}",
            *(digits(value) for value in (cost.workers, cost.broker)),
            f"{cost.messages:.1f}",
            f"{cost.bytes:,.0f}",
            f"{cost.told:,.1f}",
        ]
        for step, cost in costs.items()
    ]
    columns = (
        *(head, "workers, µs", "Redis, µs", "messages", "bytes through Redis"),
        "peers told",
    )
    return reporting.table(columns, rows, left=0)


def per_told(costs: Mapping[int, Cost]) -> dict[int, float]:
    """Microseconds for each member more that is told, beside the smallest room."""
    smallest, *others = costs.items()
    return {
        step: (cost.workers - smallest[1].workers) / (cost.told - smallest[1].told)
        for step, cost in others
        if cost.told > smallest[1].told
    }


def growth(result: Result) -> dict[str, float]:
    """What the goals ask."""
    found: dict[str, float] = {}
    flat = deviation([cost.workers for cost in result.rooms.values()])
    if flat is not None:
        found["rooms"] = round(flat, 3)
    each = list(per_told(result.members).values())
    if len(each) > 1:
        found["told"] = round(each[-1] / each[0], 3)
    costs = list(result.members.values())
    if len(costs) == len(STEPS):
        found["untold"] = round(costs[-1].workers / costs[0].workers, 3)
    return found


def report(result: Result) -> str:
    each = ", ".join(
        f"{digits(cost)} with {step:,}"
        for step, cost in per_told(result.members).items()
    )
    parts = [
        "Each coming or going, on average of both. Into a room of "
        f"{PER_ROOM} of so many:",
        curve_table("rooms", result.rooms),
        "Into a room that it opens, and closes again:",
        curve_table("rooms", result.opening),
        "Into a room of so many members; microseconds of the workers for each member "
        f"that is told beyond the first ten: {each}.",
        curve_table("members", result.members),
        "Each of all those who are missing from so many, when they come together:",
        curve_table("members", result.storm),
        f"Into a room that it opens, and closes again, on one worker of {FLEETS[-1]}; "
        f"so many others have it (on the only worker: "
        f"{digits(result.alone[0].workers)} µs):",
        curve_table("others", result.asking),
    ]
    return "\n\n".join(parts)


def figures(result: Result) -> dict[str, Any]:
    """As they are kept for the goals, and for the model of docs/scaling.md."""
    return {
        "growth": growth(result),
        **{
            name: {
                str(step): {
                    part: round(value, 1) for part, value in cost._asdict().items()
                }
                for step, cost in getattr(result, name).items()
            }
            for name in ("rooms", "opening", "members", "storm", "alone", "asking")
        },
        "kilobytes": {str(n): round(kb, 2) for n, kb in result.kilobytes.items()},
    }


def draw(result: Result) -> None:
    with reporting.picture("presence", columns=3, size=(13, 3.6)) as axes:
        by_rooms, by_members, traffic = axes
        for axis, name, label, colour in (
            (by_rooms, "rooms", "a room that is there", "#c2410c"),
            (by_rooms, "opening", "a room that is opened", "#0f766e"),
            (by_members, "members", "one alone", "#c2410c"),
            (by_members, "storm", "all at once", "#0f766e"),
        ):
            costs: dict[int, Cost] = getattr(result, name)
            values = [cost.workers for cost in costs.values()]
            axis.plot(
                list(costs), values, marker="o", markersize=4, color=colour, label=label
            )
        for name, colour in (("rooms", "#c2410c"), ("members", "#6d28d9")):
            costs = getattr(result, name)
            values = [cost.bytes for cost in costs.values()]
            traffic.plot(
                list(costs), values, marker="o", markersize=4, color=colour, label=name
            )
        for axis, title, words in (
            (by_rooms, "µs of the workers to come or go", f"rooms of {PER_ROOM}"),
            (by_members, "µs of the workers to come or go", "members of the room"),
            (traffic, "Bytes through Redis to come or go", "rooms, or members"),
        ):
            axis.set_xscale("log")
            axis.set_xticks(STEPS, [f"{step:,}" for step in STEPS], fontsize=8)
            axis.minorticks_off()
            axis.set(title=title, xlabel=words)
            axis.yaxis.set_major_formatter("{x:,g}")
            axis.legend(fontsize=8)
        by_members.set_yscale("log")
        for axis in (by_rooms, traffic):
            axis.set_ylim(0, max(1.0, axis.dataLim.y1) * 1.25)


async def main(arguments: argparse.Namespace) -> None:
    why = why_absent(BROKER)
    assert not why, why
    cores, load, result = use_cores(), Load(), Result()
    async with asyncio.timeout(BOUND):
        for along in ("rooms", "members"):
            await run(along, WORKERS, cores, arguments, load, result)
        for workers in FLEETS:
            await run("workers", workers, cores, arguments, load, result)
    body = report(result)
    print(body)
    described = load.describe()
    print(described)
    if arguments.write and arguments.steps == STEPS:
        document.write("presence", body, figures(result), cores=cores, load=described)
        draw(result)


if __name__ == "__main__":
    parser = reporting.options(__doc__)
    parser.add_argument(
        "--steps",
        type=lambda text: tuple(map(int, text.split(","))),
        default=STEPS,
        help="rooms and members; nothing is written but with the default",
    )
    parser.add_argument("--times", type=int, default=200, help="comings of each kind")
    reporting.run(main(parser.parse_args()))
