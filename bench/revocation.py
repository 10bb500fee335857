"""One logout after another among 10,000 open connections: how soon the sockets close.

Opens the connections to one `authws serve`, the three strategies mixed, and then to
four of them on each broker, spread evenly; 200 sessions have three each, by way of
different workers. Then logs these sessions out, one after the other, each at the next
worker, and notes when the REST response and when each close frame arrived. A response
and a close frame travel on connections of their own, so that either may be there first.

    python -m bench.revocation [--connections 10000] [--revocations 200] [--no-write]
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import itertools
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from bench import document, reporting
from bench.brokers import BROKERS, MEMORY, broker, why_absent
from bench.peers import STRATEGIES, Credential, Peer, connect
from bench.reporting import Load, Progress, milliseconds, percentile
from bench.served import Cores, Served, served_by, use_cores

WORKERS = 4
"""On each broker; over memory there is one."""
SOCKETS = 3
"""Of each session that is ended."""
SESSIONS = 20
"""Of the user who holds all other connections."""
AT_ONCE = 64
"""Handshakes under way at one time."""
CLOSE_TIMEOUT = 10.0
BOUND = 900.0
"""Seconds for everything."""


class OpenSession(NamedTuple):
    """A session that is to be ended."""

    worker: int
    """Where it is ended."""
    ending: bytes
    """The request that does it."""
    sockets: Sequence[tuple[int, Peer]]
    """Each with its worker."""


@dataclass
class Arrivals:
    """When the close frames came, in seconds."""

    stayed: int = 0
    """Others, who are still connected at the end."""
    mean: float = 0.0
    """What the service's own metric says: from the revocation to the close frame."""
    responses: list[float] = field(default_factory=list)
    since_request: list[float] = field(default_factory=list)
    since_response: list[float] = field(default_factory=list)
    elsewhere: list[float] = field(default_factory=list)
    """Since the request, of those that are connected to another worker than was asked
    to end their session."""


class Caller:
    """HTTP on one connection, with nothing between the bytes and their time."""

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self._reader = reader
        self._writer = writer

    async def end(self, request: bytes) -> tuple[float, float]:
        """Make a request that is answered 204; return when it went, and that came."""
        sent = time.monotonic()
        self._writer.write(request)
        head = await self._reader.readuntil(b"\r\n\r\n")
        answered = time.monotonic()
        assert head.startswith(b"HTTP/1.1 204 "), head
        return sent, answered


def request(server: Served, method: str, path: str, credential: str) -> bytes:
    """The bytes of a request that ends a session."""
    lines = (
        f"{method} {path} HTTP/1.1",
        f"Host: 127.0.0.1:{server.port}",
        f"Origin: {server.origin}",
        credential,
        "Content-Length: 0",
    )
    return "\r\n".join((*lines, "", "")).encode()


async def open_session(servers: Sequence[Served], number: int) -> OpenSession:
    """Log in, and open the session's sockets, each at another worker."""
    worker = number % len(servers)
    server = servers[worker]
    if number % 2:
        cookie = await server.cookie("alice")
        credentials = [Credential("session-cookie", cookie)] * SOCKETS
        ending = request(server, "DELETE", "/auth/session", f"Cookie: {cookie}")
    else:
        token = await server.token("alice")
        strategies = itertools.cycle(("query-param", "first-message"))
        credentials = [Credential(next(strategies), token) for _ in range(SOCKETS)]
        bearer = f"Authorization: Bearer {token}"
        ending = request(server, "POST", "/auth/logout", bearer)
    sockets = []
    for place, credential in enumerate(credentials):
        at = (worker + place) % len(servers)
        sockets.append((at, await connect(servers[at], credential)))
    return OpenSession(worker, ending, sockets)


async def open_crowd(
    servers: Sequence[Served], count: int, progress: Progress
) -> list[Peer]:
    """Open the connections of everybody else."""
    found = []
    for _ in range(SESSIONS):
        token, cookie = await servers[0].token("bob"), await servers[0].cookie("bob")
        for strategy in STRATEGIES:
            is_cookie = strategy == "session-cookie"
            found.append(Credential(strategy, cookie if is_cookie else token))
    credentials: Iterator[Credential] = itertools.cycle(found)
    places = itertools.cycle(servers)
    left = itertools.repeat(None, count)
    peers: list[Peer] = []

    async def opener() -> None:
        for _ in left:
            peers.append(await connect(next(places), next(credentials)))
            progress(f"{len(peers):,} other connections open")

    await asyncio.gather(*(opener() for _ in range(AT_ONCE)))
    return peers


async def revoke(
    servers: Sequence[Served], sessions: Sequence[OpenSession], progress: Progress
) -> Arrivals:
    """End one session after the other, each once the one before has ended."""
    arrivals = Arrivals()
    streams = [await asyncio.open_connection("127.0.0.1", s.port) for s in servers]
    callers = [Caller(*both) for both in streams]
    gc.collect()
    gc.disable()  # the generator's own pauses are no result
    for number, (worker, ending, sockets) in enumerate(sessions, 1):
        sent, answered = await callers[worker].end(ending)
        async with asyncio.timeout(CLOSE_TIMEOUT):
            await asyncio.gather(*(peer.wait_closed() for _, peer in sockets))
        for place, peer in sockets:
            assert peer.close_code == 1008, peer.close_code
            assert peer.close_reason.endswith("_revoked"), peer.close_reason
            arrivals.since_request.append(peer.closed_at - sent)
            arrivals.since_response.append(peer.closed_at - answered)
            if place != worker:
                arrivals.elsewhere.append(peer.closed_at - sent)
        arrivals.responses.append(answered - sent)
        progress(f"{number} of {len(sessions)} sessions ended")
    gc.enable()
    for _, writer in streams:
        writer.close()
    return arrivals


async def run(
    servers: Sequence[Served],
    arguments: argparse.Namespace,
    quiet: Callable[[], Awaitable[None]],
    progress: Progress,
) -> Arrivals:
    """Open everything, and end the sessions."""
    sessions = []
    for number in range(arguments.revocations):
        sessions.append(await open_session(servers, number))
        progress(f"{number + 1} of {arguments.revocations} sessions open")
    others = await open_crowd(
        servers, arguments.connections - SOCKETS * len(sessions), progress
    )
    await quiet()
    arrivals = await revoke(servers, sessions, progress)
    arrivals.stayed = sum(peer.is_open for peer in others)
    assert arrivals.stayed == len(others), "a revocation ended somebody else"
    return arrivals


async def run_on(
    name: str, cores: Cores, arguments: argparse.Namespace, load: Load
) -> Arrivals:
    """Run a broker and its workers, and everything on them."""
    progress = Progress()
    count = 1 if name == MEMORY else WORKERS
    async with (
        broker(name, cores.server) as carrying,
        served_by(
            count,
            ("alice", "bob"),
            core=cores.server,
            broker_url=carrying.url,
            max_connections_per_user=0,
            access_ttl=3600,
            session_idle_ttl=3600,
        ) as servers,
    ):

        def cpu() -> float:
            return carrying.cpu() + sum(server.cpu() for server in servers)

        async def quiet() -> None:
            await load.wait_for_quiet(cpu, progress, arguments.patience)

        with load.watching(cpu):
            arrivals = await run(servers, arguments, quiet, progress)
        metrics = [await server.metrics() for server in servers]
        Peer.crash_all()
    seen, seconds = (
        sum(one[f"authws_revocation_seconds_{what}"] for one in metrics)
        for what in ("count", "sum")
    )
    assert seen == len(arrivals.since_request), seen
    arrivals.mean = seconds / seen
    return arrivals


# --------------------------------------------------------------------------- reporting


def report(found: Mapping[str, Arrivals], absent: Mapping[str, str]) -> str:
    rows: list[list[object]] = []
    for name, arrivals in found.items():
        workers = "1 worker" if name == MEMORY else f"{WORKERS} workers, {name}"
        for what, times in (
            ("REST request to REST response", arrivals.responses),
            ("REST request to close frame", arrivals.since_request),
            ("the same, of another worker", arrivals.elsewhere),
            ("REST response to close frame", arrivals.since_response),
        ):
            if not times:
                continue
            ordered = sorted(times)
            figures = (
                ordered[0],
                percentile(ordered, 50),
                percentile(ordered, 99),
                ordered[-1],
            )
            row = [workers, what, f"{len(times):,}", *map(milliseconds, figures)]
            rows.append([*row])
    head = ["", "from … to …, ms", "n", "least", "p50", "p99", "most"]
    means = "; ".join(
        f"{name}, {milliseconds(arrivals.mean)} ms" for name, arrivals in found.items()
    )
    stayed = min(arrivals.stayed for arrivals in found.values())
    parts = [
        reporting.table(head, rows, left=2),
        f"Others, all still open: {stayed:,}. `authws_revocation_seconds` on average: "
        f"{means}.",
    ]
    if absent:
        missing = "; ".join(f"{name} ({why})" for name, why in absent.items())
        parts.append(f"**Not measured**: {missing}.")
    return "\n\n".join(parts)


def figures(
    found: Mapping[str, Arrivals], arguments: argparse.Namespace
) -> dict[str, object]:
    """As they are kept for the goals."""

    def p99(times: Sequence[float]) -> float:
        return round(percentile(times, 99) * 1000, 2)

    return {
        "connections": arguments.connections,
        "p99_ms": p99(found[MEMORY].since_response),
        "workers_p99_ms": {
            name: p99(arrivals.since_request)
            for name, arrivals in found.items()
            if name != MEMORY
        },
    }


async def main(arguments: argparse.Namespace) -> None:
    cores, load = use_cores(), Load()
    found: dict[str, Arrivals] = {}
    absent: dict[str, str] = {}
    async with asyncio.timeout(BOUND):
        for name in arguments.only:
            if why := why_absent(name):
                absent[name] = why
            else:
                found[name] = await run_on(name, cores, arguments, load)
    text = report(found, absent)
    print(text)
    described = load.describe()
    print(described)
    if arguments.write and arguments.only == list(BROKERS):
        document.write(
            "revocation", text, figures(found, arguments), cores=cores, load=described
        )


if __name__ == "__main__":
    parser = reporting.options(__doc__)
    parser.add_argument("--connections", type=int, default=10_000)
    parser.add_argument("--revocations", type=int, default=200)
    parser.add_argument(
        "--only",
        type=lambda text: text.split(","),
        default=list(BROKERS),
        metavar="BROKERS",
        help=f"some of {','.join(BROKERS)}; nothing is written then",
    )
    reporting.run(main(parser.parse_args()))
