"""Ten thousand idle connections in one process, and the end of half of them at once.

Opens the connections to one `authws serve`, measures the memory that each holds, then
takes 5,000 sockets of one user (an administrator's disconnect), and 5,000 sockets of
one session (a logout), and notes when each close frame arrives. Once with tokens in
the query, once with the three strategies mixed.

    python -m bench.held [--connections 10000] [--no-write]
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import itertools
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from bench import document, reporting
from bench.peers import STRATEGIES, Credential, Peer, connect
from bench.reporting import Load, Progress, megabytes, milliseconds, percentile
from bench.served import Cores, Served, served, use_cores

SESSIONS = 20
"""Devices of each user; its connections are spread over them."""
AT_ONCE = 64
"""Handshakes under way at one time."""
WARM_UP = 300
"""Connections opened and closed before anything is measured."""
IDLE = 20.0
"""Seconds of rest: as long as it is from one ping of a connection to the next."""
REVOCATION_TIMEOUT = 60.0
BOUND = 1200.0
"""Seconds for everything."""

MIXES: dict[str, Sequence[str]] = {
    "tokens in the query": ("query-param",),
    "three strategies mixed": STRATEGIES,
}


@dataclass
class Revocation:
    """When the close frames of one revocation arrived, in seconds from its request."""

    what: str
    arrivals: list[float]
    answered: float
    """When the REST response arrived."""
    survivors: int


@dataclass
class Held:
    """What one server showed."""

    mix: str
    connections: int
    memory: dict[str, int] = field(default_factory=dict)
    opening: float = 0.0
    idle: float = 0.0
    """Share of a processor that each connection takes in which nothing is said."""
    revocations: list[Revocation] = field(default_factory=list)
    trace: list[tuple[float, int, int]] = field(default_factory=list)
    """Seconds, connections, bytes of memory."""
    metric: tuple[float, float] = (0.0, 0.0)
    """``authws_revocation_seconds``: how many, and their mean."""

    @property
    def per_connection(self) -> float:
        return (self.memory["open"] - self.memory["empty"]) / self.connections


class Bench:
    """One server, and the peers that it holds."""

    def __init__(self, server: Served, result: Held, progress: Progress) -> None:
        self.server = server
        self.result = result
        self.progress = progress
        self.peers: dict[str, list[Peer]] = {}

    @property
    def open(self) -> int:
        return sum(peer.is_open for peers in self.peers.values() for peer in peers)

    async def trace(self) -> None:
        """Note the memory and the connections, five times a second."""
        started = time.monotonic()
        while True:
            row = (time.monotonic() - started, self.open, self.server.rss())
            self.result.trace.append(row)
            await asyncio.sleep(0.2)

    async def credentials(self, user: str, sessions: int) -> Iterator[Credential]:
        """Log in ``sessions`` times; hand the credentials out in turn, for ever."""
        strategies = MIXES[self.result.mix]
        found = []
        for number in range(sessions):
            token = await self.server.token(user)
            for strategy in strategies:
                if strategy == "session-cookie":
                    cookie = await self.server.cookie(user)
                    found.append(Credential(strategy, cookie))
                else:
                    found.append(Credential(strategy, token))
            self.progress(f"{user}: {number + 1} of {sessions} logins")
        return itertools.cycle(found)

    async def fill(
        self, group: str, count: int, credentials: Iterator[Credential]
    ) -> float:
        """Open ``count`` connections; return the seconds that took."""
        peers = self.peers.setdefault(group, [])
        left = itertools.repeat(None, count)

        async def opener() -> None:
            for _ in left:
                peers.append(await connect(self.server, next(credentials)))
                self.progress(f"{self.result.mix}: {self.open:,} connections open")

        started = time.monotonic()
        await asyncio.gather(*(opener() for _ in range(AT_ONCE)))
        return time.monotonic() - started

    async def drop(self, group: str) -> None:
        peers = self.peers.pop(group)
        for peer in peers:
            peer.close()
        await asyncio.gather(*(peer.wait_closed() for peer in peers))

    async def revoke(
        self, what: str, group: str, request: Callable[[Any], Any], **headers: str
    ) -> None:
        """Take a group's right to exist, and wait for all of its close frames."""
        others = [p for name, ps in self.peers.items() if name != group for p in ps]
        peers = self.peers[group]
        self.progress(f"{what}: {len(peers):,} connections", always=True)
        async with self.server.http(headers=headers) as http:
            await http.get("/healthz")  # the connection exists by then
            gc.collect()
            gc.disable()  # the generator's own pauses are no result
            started = time.monotonic()
            answer = await request(http)
            answered = time.monotonic()
            answer.raise_for_status()
            async with asyncio.timeout(REVOCATION_TIMEOUT):
                await asyncio.gather(*(peer.wait_closed() for peer in peers))
            gc.enable()
        endings = {(peer.close_code, peer.close_reason) for peer in peers}
        assert endings <= {(1008, "token_revoked"), (1008, "session_revoked")}, endings
        survivors = sum(peer.is_open for peer in others)
        assert survivors == len(others), "a revocation ended somebody else's connection"
        self.result.revocations.append(
            Revocation(
                what,
                sorted(peer.closed_at - started for peer in peers),
                answered - started,
                survivors,
            )
        )
        del self.peers[group]

    async def idle(self) -> None:
        """See what those cost who say nothing, and are pinged now and then."""
        self.progress(f"{self.result.mix}: {IDLE:.0f} s in which nothing is said")
        before = self.server.cpu()
        await asyncio.sleep(IDLE)
        used = self.server.cpu() - before
        self.result.idle = used / IDLE / self.open

    async def measure(self, name: str) -> None:
        self.progress(f"{self.result.mix}: waiting for the memory to settle")
        self.result.memory[name] = await self.server.settled_rss()
        self.progress(
            f"{self.result.mix}: {megabytes(self.result.memory[name])} MB with "
            f"{self.open:,} connections",
            always=True,
        )


async def hold(
    mix: str,
    cores: Cores,
    arguments: argparse.Namespace,
    load: Load,
    progress: Progress,
) -> Held:
    """Run everything on one server."""
    async with served(
        ("alice", "bob", "root"),
        admin="root",
        core=cores.server,
        max_connections_per_user=0,
        access_ttl=3600,
        session_idle_ttl=3600,
    ) as server:
        bench = Bench(server, Held(mix, arguments.connections), progress)
        tracing = asyncio.create_task(bench.trace())

        async def quiet() -> None:
            await load.wait_for_quiet(server.cpu, progress, arguments.patience)

        with load.watching(server.cpu):
            await open_and_revoke(bench, quiet)
        tracing.cancel()
        metrics = await server.metrics()
        seen = metrics["authws_revocation_seconds_count"]
        bench.result.metric = (seen, metrics["authws_revocation_seconds_sum"] / seen)
    return bench.result


async def open_and_revoke(bench: Bench, quiet: Callable[[], Awaitable[None]]) -> None:
    """Open everything, end half of it, open that again, and end it in another way."""
    count = bench.result.connections
    half = count // 2
    alice = await bench.credentials("alice", SESSIONS)
    bob = await bench.credentials("bob", SESSIONS)
    root = await bench.server.token("root")
    await bench.fill("warm-up", min(WARM_UP, count), bob)
    await bench.drop("warm-up")
    await bench.measure("empty")
    bench.result.opening = await bench.fill("alice", half, alice)
    bench.result.opening += await bench.fill("bob", count - half, bob)
    await bench.measure("open")
    await quiet()
    await bench.idle()
    await bench.revoke(
        f"one user of {SESSIONS} sessions, disconnected by an administrator",
        "alice",
        lambda http: http.post("/admin/users/alice/disconnect"),
        authorization=f"Bearer {root}",
    )
    await bench.measure("half")
    token = await bench.server.token("alice")
    strategies = [s for s in MIXES[bench.result.mix] if s != "session-cookie"]
    alone = itertools.cycle([Credential(s, token) for s in strategies])
    await bench.fill("alone", half, alone)
    await bench.measure("open again")
    await quiet()
    await bench.revoke(
        "one session, logged out",
        "alone",
        lambda http: http.post("/auth/logout"),
        authorization=f"Bearer {token}",
    )
    await bench.measure("half again")
    await bench.drop("bob")
    await bench.measure("empty again")


# --------------------------------------------------------------------------- reporting


def memory_table(results: Sequence[Held]) -> str:
    rows: list[list[object]] = []
    for held in results:
        memory = [megabytes(held.memory[name]) for name in held.memory]
        rate = held.connections / held.opening
        per = f"{held.per_connection / 1000:.1f}"
        rows.append([held.mix, f"{held.connections:,}", f"{rate:,.0f}/s", per, *memory])
    return reporting.table(
        [
            "connections by",
            "open",
            "opened at",
            "kB each",
            "MB empty",
            "all open",
            "half revoked",
            "all open again",
            "half again",
            "empty again",
        ],
        rows,
    )


def revocation_table(results: Sequence[Held]) -> str:
    rows: list[list[object]] = []
    for held in results:
        for found in held.revocations:
            times = found.arrivals
            figures = (
                times[0],
                percentile(times, 50),
                percentile(times, 99),
                times[-1],
                found.answered,
            )
            rows.append(
                [
                    held.mix,
                    found.what,
                    f"{len(times):,}",
                    *map(milliseconds, figures),
                    f"{found.survivors:,}",
                ]
            )
    return reporting.table(
        [
            "connections by",
            "what was ended",
            "close frames",
            "first, ms",
            "p50",
            "p99",
            "last",
            "REST answered",
            "others, all open",
        ],
        rows,
        left=2,
    )


def figures(results: Sequence[Held]) -> dict[str, object]:
    """As they are kept for the goals: the worst of the mixes."""
    last = [found.arrivals[-1] for held in results for found in held.revocations]
    return {
        "connections": min(held.connections for held in results),
        "kilobytes": round(max(held.per_connection for held in results) / 1000, 2),
        "last_ms": round(max(last) * 1000, 1),
        "idle_us_a_second": round(max(held.idle for held in results) * 1e6, 2),
    }


def draw(results: Sequence[Held]) -> None:
    with reporting.picture("held", columns=2, size=(10, 3.6)) as (left, right):
        for held in results:
            moments = [row[0] for row in held.trace]
            left.plot(moments, [row[2] / 1e6 for row in held.trace], label=held.mix)
            for found, line in zip(held.revocations, ("-", "--"), strict=True):
                ended = len(found.arrivals)
                share = [100 * n / ended for n in range(1, ended + 1)]
                right.plot(
                    [1000 * arrival for arrival in found.arrivals],
                    share,
                    line,
                    color=left.lines[-1].get_color(),
                    label=f"{found.what.partition(',')[0]}, {held.mix}",
                )
        left.set(title="Memory of the server", xlabel="seconds", ylabel="MB")
        left.set_ylim(bottom=0)
        left.legend()
        right.set(
            title="Close frames that have arrived",
            xlabel="milliseconds from the REST request",
            ylabel="%",
        )
        right.set_xlim(left=0)
        right.legend(fontsize=8)


async def main(arguments: argparse.Namespace) -> None:
    cores = use_cores()
    load, progress = Load(), Progress()
    results = []
    async with asyncio.timeout(BOUND):
        for mix in MIXES:
            results.append(await hold(mix, cores, arguments, load, progress))
    tables = f"{memory_table(results)}\n\n{revocation_table(results)}"
    for held in results:
        seen, mean = held.metric
        tables += (
            f"\n\nIdle, {held.mix}: {held.idle * 1e6:.1f} microseconds of the "
            "processor for each connection and second, most of it for pings."
        )
        tables += (
            f"\n\n`authws_revocation_seconds`, {held.mix}: {seen:,.0f} connections, "
            f"{milliseconds(mean)} ms on average."
        )
    print(tables)
    described = load.describe()
    print(described)
    if arguments.write:
        document.write("held", tables, figures(results), cores=cores, load=described)
        draw(results)


if __name__ == "__main__":
    parser = reporting.options(__doc__)
    parser.add_argument("--connections", type=int, default=10_000)
    reporting.run(main(parser.parse_args()))
