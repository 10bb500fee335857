"""A room of a hundred, one of whom stops reading: what do the others notice?

A publisher sends at a fixed rate into a room of 100 members; each member notes how long
each message took to arrive. Rounds with everybody reading and rounds with one member
that never reads alternate, for each outbox policy.

A peer that stops reading has some megabytes of the kernels' buffers before its outbox
begins to fill. So it sits in a second room as well, where big messages fill all of them
within seconds; they are published in the rounds without it too. Under `close` the
stalled member is ended whenever it is full, and a new one takes its place.

At a fixed rate nobody can see that the server has become slower, only that it is later.
So each round ends with the load generator in C, which publishes as fast as it goes into
a third room of 100, with the same stalled member in it or without.

    python -m bench.stalled_peer [--rate 150] [--rounds 5] [--seconds 8]
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import statistics
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from bench import document, reporting
from bench.contending import IN_ROOM
from bench.generator import Generator, generator
from bench.peers import STRATEGIES, Credential, Peer, RefusedError, connect
from bench.reporting import Load, Progress, megabytes, milliseconds, percentile
from bench.served import Cores, Served, served, use_cores

POLICIES = ("close", "drop_oldest", "drop_newest")
ROOM, FULL_ROOM = "lobby", "attic"
FAST_ROOM = "r0"
"""Where the generator in C is."""
FAST = ("fanout", "-c", "100", "-b", "128", "-w", "16")
PAYLOAD = "x" * 128
FILLING = "y" * 50_000
FILLING_RATE = 40.0
"""Messages per second: 2 MB/s."""
RECEIVE_BUFFER = 4096
WARM_UP = 3.0
"""Seconds of every round before its figures count: the stalled one is full by then."""
DRAIN = 5.0
BOUND = 3600.0
MARK = b'"t":'


@dataclass
class Round:
    """What the members who read saw."""

    delays: list[float] = field(default_factory=list)
    """Seconds from publishing to arrival, one per delivery."""
    published: int = 0
    delivered: int = 0
    seconds: float = 0.0
    closed: int = 0
    """Stalled members that the server ended."""
    highest_rate: float = 0.0
    """Deliveries per second, as many as it can."""

    @property
    def p50(self) -> float:
        return percentile(self.delays, 50)

    @property
    def p99(self) -> float:
        return percentile(self.delays, 99)

    @property
    def rate(self) -> float:
        """Deliveries per second."""
        return self.delivered / self.seconds


@dataclass
class Result:
    """Everything that was measured under one policy."""

    policy: str
    calm: list[Round] = field(default_factory=list)
    stalled: list[Round] = field(default_factory=list)
    before: int = 0
    highest: int = 0
    after: int = 0
    dropped: float = 0.0

    def ratios(self) -> list[float]:
        """How the p99 of each round changed, against the round beside it."""
        pairs = zip(self.calm, self.stalled, strict=True)
        return [stalled.p99 / calm.p99 for calm, stalled in pairs]

    def rate_ratios(self) -> list[float]:
        """How the highest rate of each round changed, likewise."""
        pairs = zip(self.calm, self.stalled, strict=True)
        return [stalled.highest_rate / calm.highest_rate for calm, stalled in pairs]


class Members:
    """Those who read, and what they have seen."""

    def __init__(self) -> None:
        self.round: Round | None = None
        self.peers: list[Peer] = []

    def take(self, payload: bytes, at: float) -> None:
        """Note one delivery."""
        if self.round is None:
            return
        place = payload.find(MARK)
        if place < 0:
            return
        place += len(MARK)
        sent = float(payload[place : payload.index(b",", place)])
        self.round.delivered += 1
        self.round.delays.append(at - sent)


async def join(
    server: Served, credentials: Sequence[Credential], members: Members, count: int
) -> None:
    for number in range(count):
        peer = await connect(server, credentials[number % len(credentials)])
        peer.send({"type": "join", "room": ROOM})
        await peer.expect("joined")
        peer.listen(members.take)
        members.peers.append(peer)


async def stall(server: Served, credential: Credential, this: Round) -> None:
    """Be in the room and never read; when that ends, be there again."""
    while True:
        peer = await connect(server, credential, receive_buffer=RECEIVE_BUFFER)
        try:
            for room in (ROOM, FULL_ROOM, FAST_ROOM):
                peer.send({"type": "join", "room": room})
                await peer.expect("joined")
            peer.stop_reading()
            # it does not read its close frame either: the server resets it
            await _is_gone(peer)
            this.closed += 1
        except RefusedError:
            pass
        finally:
            peer.crash()


async def _is_gone(peer: Peer) -> None:
    """Wait until the server has cut it off, which a peer that never reads is told by
    a write that fails."""
    while peer.is_open:
        await asyncio.sleep(0.1)
        peer.send({"type": "ping"})


async def fill(peer: Peer) -> None:
    """Publish big messages, for ever."""
    message = f'{{"type":"publish","room":"{FULL_ROOM}","data":"{FILLING}"}}'.encode()
    while True:
        peer.send_text(message)
        await asyncio.sleep(1 / FILLING_RATE)


@asynccontextmanager
async def stalling(
    server: Served, credential: Credential, this: Round, *, active: bool
) -> AsyncIterator[None]:
    filler = await connect(server, credential)
    filler.send({"type": "join", "room": FULL_ROOM})
    await filler.expect("joined")
    filler.listen(None)
    tasks = [asyncio.create_task(fill(filler))]
    if active:
        tasks.append(asyncio.create_task(stall(server, credential, this)))
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        filler.close()


async def publish(peer: Peer, rate: float, seconds: float, this: Round) -> None:
    """Publish on a timetable: who is late sends at once, and is not slower for it."""
    started = time.monotonic()
    for number in range(int(rate * seconds)):
        due = started + number / rate
        await asyncio.sleep(max(0.0, due - time.monotonic()))
        now = f"{time.monotonic():.6f}"
        peer.send_text(
            f'{{"type":"publish","room":"{ROOM}","data":{{"t":{now},"x":"{PAYLOAD}"}}}}'.encode()
        )
        this.published += 1


async def publish_fast(server: Served, wsload: Generator, token: str) -> float:
    """Publish as fast as it goes; return the deliveries per second."""
    join = f'{{"type":"join","room":"{FAST_ROOM}"}}'
    path = f"/ws/query-param?token={token}"
    ask = ("--path", path, "--first", join, "--wait", "joined", *IN_ROOM)
    found = await wsload.load(
        FAST, ask, ports=[server.port], pids=[server.pid], seconds=1
    )
    return found.rate


async def one_round(
    server: Served,
    members: Members,
    credential: Credential,
    wsload: Generator,
    arguments: argparse.Namespace,
    *,
    stalled: bool,
) -> Round:
    this = Round()
    publisher = members.peers[0]
    async with stalling(server, credential, this, active=stalled):
        await publish(publisher, arguments.rate, WARM_UP, Round())
        await asyncio.sleep(0.2)
        members.round = this
        gc.collect()
        gc.disable()  # the generator's own pauses are no result
        started = time.monotonic()
        await publish(publisher, arguments.rate, arguments.seconds, this)
        until = time.monotonic() + DRAIN
        while this.delivered < this.published * len(members.peers):
            assert time.monotonic() < until, "deliveries are missing"
            await asyncio.sleep(0.005)
        this.seconds = time.monotonic() - started
        gc.enable()
        members.round = None
        this.highest_rate = await publish_fast(server, wsload, credential.value)
    await asyncio.sleep(1.2)  # until the stalled one is cut off
    return this


async def both(
    server: Served,
    members: Members,
    credential: Credential,
    wsload: Generator,
    arguments: argparse.Namespace,
    number: int,
) -> dict[bool, Round]:
    """A round without and one with a stalled member, by whether there is one.

    Each goes first in every other pair: what drifts, drifts for both.
    """
    order = (False, True) if number % 2 else (True, False)
    return {
        stalled: await one_round(
            server, members, credential, wsload, arguments, stalled=stalled
        )
        for stalled in order
    }


async def under(
    policy: str,
    cores: Cores,
    wsload: Generator,
    arguments: argparse.Namespace,
    load: Load,
    progress: Progress,
) -> Result:
    """Measure one policy, on a server of its own."""
    result = Result(policy)
    progress(f"{policy}: the server and its members", always=True)
    async with served(
        ("alice", "bob", "stalled"),
        core=cores.server,
        outbox_policy=policy,
        message_rate=0,
        byte_rate=0,
        access_ttl=3600,
        max_connections_per_user=0,
    ) as server:
        credentials = []
        for user in ("alice", "bob"):
            token, cookie = await server.token(user), await server.cookie(user)
            credentials += [
                Credential(s, cookie if s == "session-cookie" else token)
                for s in STRATEGIES
            ]
        silent = Credential("query-param", await server.token("stalled"))
        members = Members()
        await join(server, credentials, members, arguments.members)
        # to warm up
        await one_round(server, members, silent, wsload, arguments, stalled=True)
        result.before = await server.settled_rss()
        while len(result.calm) < arguments.rounds:
            await load.wait_for_quiet(server.cpu, progress, arguments.patience)
            with load.watching(server.cpu) as watch:
                pair = await both(
                    server, members, silent, wsload, arguments, len(result.calm)
                )
            progress(
                f"{policy}, round {len(result.calm) + 1} of {arguments.rounds}: p99 "
                f"{milliseconds(pair[False].p99)} ms, with one stalled "
                f"{milliseconds(pair[True].p99)} ms",
                always=True,
            )
            result.highest = max(result.highest, server.rss())
            if load.is_disturbed(watch, arguments.rounds):
                progress(f"others used {watch.share:.0%} of a core: again", always=True)
                continue
            result.calm.append(pair[False])
            result.stalled.append(pair[True])
        result.dropped = (await server.metrics())["authws_messages_dropped_total"]
        result.after = await server.settled_rss()
    return result


def results_table(results: Sequence[Result]) -> str:
    rows: list[list[object]] = []
    for result in results:
        for name, rounds in (("none", result.calm), ("one", result.stalled)):
            ratio = statistics.median(result.ratios())
            p99 = [one.p99 for one in rounds]
            rows.append(
                [
                    f"`{result.policy}`",
                    name,
                    f"{statistics.median(one.rate for one in rounds):,.0f}",
                    milliseconds(statistics.median(one.p50 for one in rounds)),
                    milliseconds(statistics.median(p99)),
                    f"{milliseconds(min(p99))} to {milliseconds(max(p99))}",
                    f"{ratio - 1:+.1%}" if name == "one" else "",
                    f"{statistics.median(one.highest_rate for one in rounds):,.0f}",
                    f"{statistics.median(result.rate_ratios()) - 1:+.1%}"
                    if name == "one"
                    else "",
                    sum(one.closed for one in rounds) if name == "one" else "",
                    f"{result.dropped:,.0f}" if name == "one" else "",
                ]
            )
    return reporting.table(
        [
            "policy",
            "stalled",
            "deliveries/s",
            "p50, ms",
            "p99, ms",
            "p99 of rounds",
            "p99 changed",
            "highest rate",
            "changed",
            "closed",
            "dropped",
        ],
        rows,
        left=2,
    )


def figures(results: Sequence[Result]) -> dict[str, object]:
    """As they are kept for the goals: the worst of the policies."""
    p99 = [statistics.median(result.ratios()) for result in results]
    rate = [statistics.median(result.rate_ratios()) for result in results]
    return {"p99_ratio": round(max(p99), 3), "rate_ratio": round(min(rate), 3)}


def memory_table(results: Sequence[Result]) -> str:
    return reporting.table(
        ["policy", "MB before", "highest", "after"],
        [
            [f"`{r.policy}`", *map(megabytes, (r.before, r.highest, r.after))]
            for r in results
        ],
    )


def draw(results: Sequence[Result]) -> None:
    with reporting.picture(
        "stalled_peer", columns=len(results), size=(10, 3.4)
    ) as all_:
        for axes, result in zip(all_, results, strict=True):
            for label, rounds in (
                ("everybody reads", result.calm),
                ("one never reads", result.stalled),
            ):
                axes.plot(
                    range(1, len(rounds) + 1),
                    [1000 * one.p99 for one in rounds],
                    "o-",
                    label=f"p99, {label}",
                )
                axes.plot(
                    range(1, len(rounds) + 1),
                    [1000 * one.p50 for one in rounds],
                    "o:",
                    color=axes.lines[-1].get_color(),
                    label=f"p50, {label}",
                )
            axes.set(title=f"outbox_policy={result.policy}", xlabel="round")
            axes.set_ylim(bottom=0)
            axes.xaxis.get_major_locator().set_params(integer=True)
        all_[0].set_ylabel("ms from publishing to arrival")
        all_[-1].legend(fontsize=8)


async def main(arguments: argparse.Namespace) -> None:
    cores = use_cores()
    load, progress = Load(), Progress()
    results = []
    async with asyncio.timeout(BOUND):
        with generator(cores) as wsload:
            for policy in POLICIES:
                results.append(
                    await under(policy, cores, wsload, arguments, load, progress)
                )
    body = f"{results_table(results)}\n\n{memory_table(results)}"
    print(body)
    described = load.describe()
    print(described)
    if arguments.write:
        document.write(
            "stalled_peer", body, figures(results), cores=cores, load=described
        )
        draw(results)


if __name__ == "__main__":
    parser = reporting.options(__doc__)
    parser.add_argument("--members", type=int, default=100)
    parser.add_argument("--rate", type=float, default=150, help="messages per second")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=8, help="of each measurement")
    reporting.run(main(parser.parse_args()))
