"""What a silent stranger costs, and whether it delays who has something to say.

Opens 2,000 sockets to `/ws/first-message` that never send their first message, at the
default `AUTHWS_AUTH_TIMEOUT`, and measures the memory of each. Then times legitimate
handshakes (TCP connect, upgrade, `auth`, `auth_ok`), one after another: alone; while
2,000 silent sockets stand in the quarantine, each replaced when its deadline has ended
it; and, to tell the price of standing there from that of coming and going, while as
many strangers per second come and leave at once. Interleaved rounds.

    python -m bench.quarantine [--strangers 2000] [--rounds 5] [--seconds 12]
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import itertools
import statistics
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from bench import document, reporting
from bench.peers import Credential, Peer, RefusedError, connect
from bench.reporting import Load, Progress, megabytes, milliseconds, percentile
from bench.served import Served, served, use_cores

AUTH_TIMEOUT = 5.0
"""The service's default, at which it is left."""
RETURN = 0.5
"""Seconds between the end of a stranger and the next one in its place: room for a
deadline that comes late, so that a delay does not gather those behind it."""
PACE = 0.02
"""Seconds between two legitimate handshakes: often enough, and no load themselves."""
WARM_UP = 300
BOUND = 3600.0

SITUATIONS = ("alone", "strangers standing", "strangers passing")


@dataclass
class Crowd:
    """Strangers: how many are here, came, and were sent away by the deadline."""

    here: set[Peer] = field(default_factory=set)
    came: int = 0
    timed_out: int = 0


@dataclass
class Memory:
    """Of the server, in bytes."""

    empty: int = 0
    full: int = 0
    after: int = 0


Times = dict[str, list[list[float]]]
"""For each situation and round, the handshakes' times in seconds."""


async def stranger(server: Served, crowd: Crowd) -> None:
    """Come, say nothing, and leave when told to."""
    peer = await Peer.open(server, "/ws/first-message")
    crowd.here.add(peer)
    crowd.came += 1
    await peer.wait_closed()
    crowd.here.discard(peer)
    if peer.close_reason == "auth_timeout":
        crowd.timed_out += 1


async def passer_by(server: Served, crowd: Crowd) -> None:
    """Come, and leave at once."""
    peer = await Peer.open(server, "/ws/first-message")
    crowd.came += 1
    peer.close()
    await peer.wait_closed()


@asynccontextmanager
async def crowd_of(
    visit: Callable[[Served, Crowd], Awaitable[None]], server: Served, count: int
) -> AsyncIterator[Crowd]:
    """Keep strangers visiting, by a timetable: as many every second as there must be
    for ``count`` to stand here if each stays until its deadline."""
    crowd = Crowd()
    per_second = count / AUTH_TIMEOUT
    places = round(per_second * (AUTH_TIMEOUT + RETURN))
    begin = time.monotonic()

    async def place(number: int) -> None:
        for turn in itertools.count():
            due = begin + (number + turn * places) / per_second
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            with contextlib.suppress(RefusedError):
                await visit(server, crowd)

    tasks = [asyncio.create_task(place(number)) for number in range(places)]
    try:
        yield crowd
    finally:
        for task in tasks:
            task.cancel()
        ended = await asyncio.gather(*tasks, return_exceptions=True)
        Peer.crash_all()
        for end in ended:
            assert isinstance(end, asyncio.CancelledError), end


async def handshakes(
    server: Served, credential: Credential, seconds: float
) -> list[float]:
    """Time one legitimate handshake after another."""
    times: list[float] = []
    until = time.monotonic() + seconds
    gc.collect()
    gc.disable()  # the generator's own pauses are no result
    while (started := time.monotonic()) < until:
        peer = await connect(server, credential)
        times.append(time.monotonic() - started)
        peer.close()
        await peer.wait_closed()
        await asyncio.sleep(PACE)
    gc.enable()
    return times


async def measure_memory(server: Served, count: int, progress: Progress) -> Memory:
    """Let ``count`` strangers in as fast as they come, and look before they go."""
    memory = Memory(empty=await server.settled_rss())
    crowd = Crowd()
    started = time.monotonic()
    here = [asyncio.create_task(stranger(server, crowd)) for _ in range(count)]
    while crowd.came < count:
        assert time.monotonic() - started < AUTH_TIMEOUT, "they come too slowly"
        progress(f"{crowd.came:,} strangers are here")
        await asyncio.sleep(0.02)
    memory.full = server.rss()
    assert len(crowd.here) == count, "some were gone before all had come"
    await asyncio.gather(*here)
    assert crowd.timed_out == count
    memory.after = await server.settled_rss()
    progress(
        f"memory: {megabytes(memory.empty)} MB, {megabytes(memory.full)} MB with "
        f"{count:,} strangers, {megabytes(memory.after)} MB after",
        always=True,
    )
    return memory


async def one_round(
    server: Served, credential: Credential, arguments: argparse.Namespace
) -> tuple[dict[str, list[float]], list[str]]:
    """Time handshakes in each situation; tell too what the crowds did."""
    seconds = arguments.seconds
    times = {"alone": await handshakes(server, credential, seconds)}
    notes = []
    for situation, visit in (
        ("strangers standing", stranger),
        ("strangers passing", passer_by),
    ):
        async with crowd_of(visit, server, arguments.strangers) as crowd:
            await asyncio.sleep(AUTH_TIMEOUT + RETURN)  # until all are here
            before, standing = crowd.came, len(crowd.here)
            times[situation] = await handshakes(server, credential, seconds)
            standing = min(standing, len(crowd.here))
            came = (crowd.came - before) / seconds
            notes.append(f"{situation}: {standing:,} here, {came:,.0f}/s come")
        await asyncio.sleep(1.5)  # until the last is gone
    return times, notes


def results_table(times: Times) -> str:
    rows: list[list[object]] = []
    base = [percentile(row, 99) for row in times["alone"]]
    for situation, rounds in times.items():
        p99 = [percentile(row, 99) for row in rounds]
        ratios = [a / b for a, b in zip(p99, base, strict=True)]
        rows.append(
            [
                situation,
                f"{sum(map(len, rounds)):,}",
                milliseconds(statistics.median(percentile(r, 50) for r in rounds)),
                milliseconds(statistics.median(p99)),
                f"{milliseconds(min(p99))} to {milliseconds(max(p99))}",
                f"{statistics.median(ratios):.2f}",
            ]
        )
    return reporting.table(
        ["situation", "handshakes", "p50, ms", "p99, ms", "p99 of rounds", "p99 ratio"],
        rows,
    )


def draw(times: Times) -> None:
    with reporting.picture("quarantine", size=(7, 3.6)) as (axes,):
        for situation, rounds in times.items():
            every = sorted(itertools.chain(*rounds))
            share = [100 * n / len(every) for n in range(1, len(every) + 1)]
            axes.plot([1000 * t for t in every], share, label=situation)
        axes.set_xscale("log")
        axes.set(
            title="Legitimate handshakes that were done",
            xlabel="milliseconds, from connect to auth_ok",
            ylabel="%",
        )
        axes.xaxis.set_major_formatter("{x:g}")
        axes.legend(loc="lower right")


async def main(arguments: argparse.Namespace) -> None:
    cores = use_cores()
    load, progress = Load(), Progress()
    times: Times = {situation: [] for situation in SITUATIONS}
    count = arguments.strangers
    async with asyncio.timeout(BOUND), served(("alice",), core=cores.server) as server:
        credential = Credential("first-message", await server.token("alice"))
        for _ in range(WARM_UP):
            peer = await connect(server, credential)
            peer.close()
            await peer.wait_closed()
        memory = await measure_memory(server, count, progress)
        while len(times["alone"]) < arguments.rounds:
            await load.wait_for_quiet(server.cpu, progress, arguments.patience)
            with load.watching(server.cpu) as watch:
                found, notes = await one_round(server, credential, arguments)
            p99 = ", ".join(milliseconds(percentile(f, 99)) for f in found.values())
            progress(f"p99 {p99} ms; {'; '.join(notes)}", always=True)
            if load.is_disturbed(watch, arguments.rounds):
                progress(f"others used {watch.share:.0%} of a core: again", always=True)
                continue
            for situation, row in found.items():
                times[situation].append(row)
        end = await server.settled_rss()
    each = (memory.full - memory.empty) / count
    body = (
        f"Memory per silent socket: **{each / 1000:.1f} kB** ({count:,} of them: "
        f"{megabytes(memory.empty)} MB before, {megabytes(memory.full)} MB with them, "
        f"{megabytes(memory.after)} MB after, {megabytes(end)} MB at the end)."
        f"\n\n{results_table(times)}"
    )
    print(body)
    described = load.describe()
    print(described)
    if arguments.write:
        figures = {"kilobytes": round(each / 1000, 2)}
        document.write("quarantine", body, figures, cores=cores, load=described)
        draw(times)


if __name__ == "__main__":
    parser = reporting.options(__doc__)
    parser.add_argument("--strangers", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=12, help="of each measurement")
    reporting.run(main(parser.parse_args()))
