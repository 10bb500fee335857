"""One logout after another among 10,000 open connections: how soon the sockets close.

Opens the connections to one `authws serve`, the three strategies mixed; 200 sessions
have three of them each. Then logs these sessions out, one after the other, and notes
when the REST response and when each close frame arrived. A response and a close frame
travel on connections of their own, so that either may be there first.

    python -m bench.revocation [--connections 10000] [--revocations 200] [--no-write]
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import itertools
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field

from bench import document, reporting
from bench.peers import STRATEGIES, Credential, Peer, connect
from bench.reporting import Load, Progress, milliseconds, percentile
from bench.served import Served, served, use_cores

SOCKETS = 3
"""Of each session that is ended."""
SESSIONS = 20
"""Of the user who holds all other connections."""
AT_ONCE = 64
"""Handshakes under way at one time."""
CLOSE_TIMEOUT = 10.0
BOUND = 900.0
"""Seconds for everything."""

OpenSession = tuple[bytes, list[Peer]]
"""The request that ends a session, and its sockets."""


@dataclass
class Arrivals:
    """When the close frames came, in seconds."""

    since_request: list[float] = field(default_factory=list)
    since_response: list[float] = field(default_factory=list)
    responses: list[float] = field(default_factory=list)


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


async def open_session(server: Served, by_cookie: bool) -> OpenSession:
    """Log in, and open the session's sockets."""
    if by_cookie:
        cookie = await server.cookie("alice")
        credentials = [Credential("session-cookie", cookie)] * SOCKETS
        ending = request(server, "DELETE", "/auth/session", f"Cookie: {cookie}")
    else:
        token = await server.token("alice")
        strategies = itertools.cycle(("query-param", "first-message"))
        credentials = [Credential(next(strategies), token) for _ in range(SOCKETS)]
        bearer = f"Authorization: Bearer {token}"
        ending = request(server, "POST", "/auth/logout", bearer)
    return ending, [await connect(server, one) for one in credentials]


async def open_crowd(server: Served, count: int, progress: Progress) -> list[Peer]:
    """Open the connections of everybody else."""
    found = []
    for _ in range(SESSIONS):
        token, cookie = await server.token("bob"), await server.cookie("bob")
        for strategy in STRATEGIES:
            is_cookie = strategy == "session-cookie"
            found.append(Credential(strategy, cookie if is_cookie else token))
    credentials: Iterator[Credential] = itertools.cycle(found)
    left = itertools.repeat(None, count)
    peers: list[Peer] = []

    async def opener() -> None:
        for _ in left:
            peers.append(await connect(server, next(credentials)))
            progress(f"{len(peers):,} other connections open")

    await asyncio.gather(*(opener() for _ in range(AT_ONCE)))
    return peers


async def revoke(
    server: Served, sessions: Sequence[OpenSession], progress: Progress
) -> Arrivals:
    """End one session after the other, each once the one before has ended."""
    arrivals = Arrivals()
    streams = await asyncio.open_connection("127.0.0.1", server.port)
    caller = Caller(*streams)
    gc.collect()
    gc.disable()  # the generator's own pauses are no result
    for number, (ending, peers) in enumerate(sessions, 1):
        sent, answered = await caller.end(ending)
        async with asyncio.timeout(CLOSE_TIMEOUT):
            await asyncio.gather(*(peer.wait_closed() for peer in peers))
        for peer in peers:
            assert peer.close_code == 1008, peer.close_code
            assert peer.close_reason.endswith("_revoked"), peer.close_reason
            arrivals.since_request.append(peer.closed_at - sent)
            arrivals.since_response.append(peer.closed_at - answered)
        arrivals.responses.append(answered - sent)
        progress(f"{number} of {len(sessions)} sessions ended")
    gc.enable()
    streams[1].close()
    return arrivals


async def run(
    server: Served,
    arguments: argparse.Namespace,
    quiet: Callable[[], Awaitable[None]],
    progress: Progress,
) -> tuple[Arrivals, int]:
    """Open everything, end the sessions; return also how many others stayed."""
    sessions = []
    for number in range(arguments.revocations):
        sessions.append(await open_session(server, by_cookie=number % 2 == 1))
        progress(f"{number + 1} of {arguments.revocations} sessions open")
    others = await open_crowd(
        server, arguments.connections - SOCKETS * len(sessions), progress
    )
    await quiet()
    arrivals = await revoke(server, sessions, progress)
    stayed = sum(peer.is_open for peer in others)
    assert stayed == len(others), "a revocation ended somebody else's connection"
    return arrivals, stayed


def report(arrivals: Arrivals, stayed: int) -> str:
    rows: list[list[object]] = []
    for what, times in (
        ("REST request to REST response", arrivals.responses),
        ("REST request to close frame", arrivals.since_request),
        ("REST response to close frame", arrivals.since_response),
    ):
        ordered = sorted(times)
        figures = (
            ordered[0],
            percentile(ordered, 50),
            percentile(ordered, 99),
            ordered[-1],
        )
        rows.append([what, f"{len(times):,}", *map(milliseconds, figures)])
    head = ["from … to …, ms", "n", "least", "p50", "p99", "most"]
    return f"{reporting.table(head, rows)}\n\nOthers, all still open: {stayed:,}."


async def main(arguments: argparse.Namespace) -> None:
    cores = use_cores()
    load, progress = Load(), Progress()
    async with (
        asyncio.timeout(BOUND),
        served(
            ("alice", "bob"),
            core=cores.server,
            max_connections_per_user=0,
            access_ttl=3600,
            session_idle_ttl=3600,
        ) as server,
    ):

        async def quiet() -> None:
            await load.wait_for_quiet(server.cpu, progress, arguments.patience)

        with load.watching(server.cpu):
            arrivals, stayed = await run(server, arguments, quiet, progress)
        metrics = await server.metrics()
    seen = metrics["authws_revocation_seconds_count"]
    mean = metrics["authws_revocation_seconds_sum"] / seen
    text = (
        f"{report(arrivals, stayed)}\n\n`authws_revocation_seconds`: {seen:,.0f} "
        f"connections, {milliseconds(mean)} ms on average."
    )
    print(text)
    described = load.describe()
    print(described)
    if arguments.write:
        p99 = percentile(arrivals.since_response, 99)
        figures = {"connections": arguments.connections, "p99_ms": round(p99 * 1000, 2)}
        document.write("revocation", text, figures, cores=cores, load=described)


if __name__ == "__main__":
    parser = reporting.options(__doc__)
    parser.add_argument("--connections", type=int, default=10_000)
    parser.add_argument("--revocations", type=int, default=200)
    reporting.run(main(parser.parse_args()))
