"""A storm of logins: how many per second, and whom do they delay?

Argon2 takes as much memory and time as it was told to, so the service hashes in a
bounded pool (`AUTHWS_PASSWORD_HASH_CONCURRENCY`). Logs 200 users in at once, and times
meanwhile what others do: an echo on an open socket, and legitimate handshakes, one
after another. Server and generator have both cores, as the pool would have elsewhere.

    python -m bench.login_burst [--logins 200] [--rounds 5]
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import statistics
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import httpx

from bench import document, reporting
from bench.peers import Credential, Peer, connect
from bench.reporting import Load, Progress, milliseconds, percentile
from bench.served import PASSWORD, Cores, Served, allow_open_files, served

USERS = 20
CALM = 3.0
"""Seconds of each round before the storm."""
PAUSE = 0.002
WARM_UP = 100
BOUND = 1800.0


@dataclass
class Others:
    """How long they waited, in seconds."""

    echoes: list[float] = field(default_factory=list)
    handshakes: list[float] = field(default_factory=list)


@dataclass
class Round:
    """Others before and during a storm."""

    calm: Others
    storm: Others
    logins: list[float]
    """How long each login took, from the moment all began."""

    def rate(self) -> float:
        return len(self.logins) / max(self.logins)


class Echo:
    """One socket, on which one message after another is echoed."""

    def __init__(self, peer: Peer) -> None:
        self._peer = peer
        self._arrived: asyncio.Future[float] | None = None
        peer.listen(self._take)

    def _take(self, _: bytes, at: float) -> None:
        if self._arrived is not None and not self._arrived.done():
            self._arrived.set_result(at)

    async def round_trip(self) -> float:
        """Return the seconds that it took."""
        self._arrived = asyncio.get_running_loop().create_future()
        sent = time.monotonic()
        self._peer.send_text(b"x" * 128)
        return await self._arrived - sent


async def keep(
    times: list[float], one: Callable[[], Awaitable[float]], over: asyncio.Event
) -> None:
    """Time one after another until it is over."""
    while not over.is_set():
        times.append(await one())
        await asyncio.sleep(PAUSE)


async def handshake(server: Served, credential: Credential) -> float:
    """Return the seconds from the connection to ``auth_ok``."""
    started = time.monotonic()
    peer = await connect(server, credential)
    took = time.monotonic() - started
    peer.close()
    await peer.wait_closed()
    return took


async def watch_others(
    server: Served, credential: Credential, echo: Echo, while_: Awaitable[None]
) -> Others:
    """Time what others do while something goes on."""
    others, over = Others(), asyncio.Event()
    gc.collect()
    gc.disable()  # the generator's own pauses are no result
    tasks = [
        asyncio.create_task(keep(others.echoes, echo.round_trip, over)),
        asyncio.create_task(
            keep(others.handshakes, lambda: handshake(server, credential), over)
        ),
    ]
    await while_
    over.set()
    await asyncio.gather(*tasks)
    gc.enable()
    return others


async def storm(http: httpx.AsyncClient, logins: int, took: list[float]) -> None:
    """Log in many times at once."""
    started = time.monotonic()

    async def login(number: int) -> None:
        body = {"username": f"user{number % USERS}", "password": PASSWORD}
        answer = await http.post("/auth/login", json=body)
        answer.raise_for_status()
        took.append(time.monotonic() - started)

    await asyncio.gather(*(login(number) for number in range(logins)))


async def one_round(server: Served, credential: Credential, logins: int) -> Round:
    target = f"/ws/query-param/echo?token={credential.value}"
    echo = Echo(peer := await Peer.open(server, target))
    limits = httpx.Limits(max_connections=logins)
    took: list[float] = []
    async with server.http(limits=limits, timeout=120) as http:
        calm = await watch_others(server, credential, echo, asyncio.sleep(CALM))
        stormy = await watch_others(server, credential, echo, storm(http, logins, took))
    peer.close()
    await peer.wait_closed()
    return Round(calm, stormy, took)


# --------------------------------------------------------------------------- reporting


def medians(rounds: list[list[float]], percent: float) -> float:
    """Of the rounds' percentiles."""
    return statistics.median(percentile(times, percent) for times in rounds)


def results_table(rounds: list[Round]) -> str:
    rows: list[list[object]] = []
    for what, calm, stormy in (
        (
            "an echo on an open socket",
            [one.calm.echoes for one in rounds],
            [one.storm.echoes for one in rounds],
        ),
        (
            "a handshake, from connect to `auth_ok`",
            [one.calm.handshakes for one in rounds],
            [one.storm.handshakes for one in rounds],
        ),
    ):
        figures = [medians(times, p) for times in (calm, stormy) for p in (50, 99)]
        rows.append([what, *map(milliseconds, figures)])
    head = ["others, ms", "p50 before", "p99 before", "p50 during", "p99 during"]
    return reporting.table(head, rows)


def report(rounds: list[Round], logins: int) -> str:
    rates = sorted(one.rate() for one in rounds)
    half, last = (medians([one.logins for one in rounds], p) for p in (50, 100))
    return (
        f"**{statistics.median(rates):.1f} logins per second** ({rates[0]:.1f} to "
        f"{rates[-1]:.1f} in {len(rounds)} rounds of {logins} at once): half of them "
        f"are in after {half:.1f} s, the last after {last:.1f} s."
        f"\n\n{results_table(rounds)}"
    )


def figures(rounds: list[Round]) -> dict[str, object]:
    """As they are kept."""
    return {
        "logins_per_second": round(statistics.median(r.rate() for r in rounds), 2),
        "handshake_p99_ms": round(
            1000 * medians([one.storm.handshakes for one in rounds], 99), 2
        ),
        "echo_p99_ms": round(
            1000 * medians([one.storm.echoes for one in rounds], 99), 2
        ),
    }


async def main(arguments: argparse.Namespace) -> None:
    allow_open_files()
    load, progress = Load(), Progress()
    users = [f"user{number}" for number in range(USERS)]
    rounds: list[Round] = []
    async with (
        asyncio.timeout(BOUND),
        served(users, message_rate=0, max_connections_per_user=0) as server,
    ):
        credential = Credential("query-param", await server.token(users[0]))
        for _ in range(WARM_UP):
            await handshake(server, credential)
        while len(rounds) < arguments.rounds:
            await load.wait_for_quiet(server.cpu, progress, arguments.patience)
            with load.watching(server.cpu) as watch:
                found = await one_round(server, credential, arguments.logins)
            progress(f"{found.rate():.1f} logins per second", always=True)
            if load.is_disturbed(watch, arguments.rounds):
                progress(f"others used {watch.share:.0%} of a core: again", always=True)
                continue
            rounds.append(found)
    body = report(rounds, arguments.logins)
    print(body)
    described = load.describe()
    print(described)
    if arguments.write:
        shared = Cores(None, None)
        document.write(
            "login_burst", body, figures(rounds), cores=shared, load=described
        )


if __name__ == "__main__":
    parser = reporting.options(__doc__)
    parser.add_argument("--logins", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=5)
    reporting.run(main(parser.parse_args()))
