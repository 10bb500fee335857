"""Much of life in ten minutes: does the server end with what it began with?

Some hundred peers come by each strategy, with a token, a ticket or a cookie, join
rooms, chat, renew, and go in every way there is: politely, without a close frame, with
a reset, by reading no more, by a logout elsewhere, by staying until their token
expires; others are refused, or never say who they are (bench/lives.py). The server is
the service with a window into its process (bench/watched.py).

After a minute of that everybody goes, and a baseline is taken; at the end likewise. The
two must not differ: tasks, file descriptors, connections and rooms not at all, memory
by less than 5 %.

    python -m bench.soak [--minutes 10] [--peers 300] [--trace]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import document, reporting
from bench.lives import ACCESS_TTL, ROOMS, Town, live_in
from bench.reporting import Load, Progress, megabytes
from bench.served import Served, served, use_cores

USERS = tuple(f"user{number}" for number in range(8))
WARM_UP = 60.0
EMPTY_WITHIN = 30.0
PAUSE = 12.0
"""Seconds before a count: the longest deadline below the app has passed by then."""
TOLERANCE = 0.05
EXACT = ("tasks", "file descriptors", "connections", "sockets", "rooms")


@dataclass(frozen=True, slots=True)
class Moment:
    """What the server has at one time."""

    at: float
    numbers: dict[str, int]


class Watcher:
    """Looks at the server, from outside and through its window."""

    def __init__(self, server: Served, window: Path) -> None:
        self._server = server
        self._window = window
        self._started = time.monotonic()
        self.trace: list[Moment] = []

    async def ask(self, question: str = "") -> dict[str, Any]:
        """Ask at the window; see bench/watched.py."""
        reader, writer = await asyncio.open_unix_connection(
            str(self._window), limit=2**20
        )
        writer.write(question.encode() + b"\n")
        answer = dict(json.loads(await reader.readline()))
        writer.close()
        return answer

    async def look(self, question: str = "") -> Moment:
        """Count everything."""
        answer = await self.ask(question)
        files = self._server.files()
        numbers = {
            "tasks": answer["tasks"],
            # without the one through which it is asked, which may be closed by now
            "file descriptors": files["others"] - answer["windows"],
            "of the database": files["database"],
            "connections": answer["connections"],
            "sockets": answer["present"],
            "rooms": answer["rooms"],
            "memory": self._server.rss(),
            "objects": answer["objects"],
        }
        return Moment(time.monotonic() - self._started, numbers)

    async def keep_looking(self) -> None:
        """Note a moment every second, for ever."""
        while True:
            self.trace.append(await self.look())
            await asyncio.sleep(1)

    async def look_when_empty(self) -> Moment:
        """Wait until everybody is gone, and count what is left."""
        async with asyncio.timeout(EMPTY_WITHIN):
            while (await self.look()).numbers["sockets"]:  # noqa: ASYNC110 - another process
                await asyncio.sleep(0.2)
        await asyncio.sleep(PAUSE)
        await self.ask("collect")
        return await self.look()


async def churn(
    server: Served, peers: int, seconds: float, progress: Progress, what: str
) -> Counter[str]:
    """Let life go on for a while; return what has happened."""
    async with live_in(server, USERS, peers) as town:
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            progress(f"{what}: {left:4.0f} s left, {describe(town)}")
            await asyncio.sleep(min(1.0, left))
            town.check()
    return town.happened


def describe(town: Town) -> str:
    return f"{town.happened.total():,} lives, {town.heard:,} messages heard"


# --------------------------------------------------------------------------- reporting


def is_kept(name: str, before: int, after: int) -> bool:
    """Tell whether it came back to what it was."""
    if name in EXACT:
        return before == after
    return after <= before * (1 + TOLERANCE)


def comparison(before: Moment, after: Moment) -> str:
    rows: list[list[object]] = []
    for name, first in before.numbers.items():
        last = after.numbers[name]
        shown = [f"{number:,}" for number in (first, last)]
        if name == "memory":
            shown = [f"{megabytes(number)} MB" for number in (first, last)]
        change = f"{last / first - 1:+.1%}" if first and first != last else ""
        verdict = "kept" if is_kept(name, first, last) else "**not kept**"
        rows.append([name, *shown, change, verdict])
    return reporting.table(["", "baseline", "end", "change", ""], rows)


def lives_table(happened: Counter[str]) -> str:
    return reporting.table(
        ["how they lived, and what they were told at the end", "how many"],
        [[life, f"{count:,}"] for life, count in sorted(happened.items())],
    )


def draw(trace: Sequence[Moment], before: Moment, after: Moment) -> None:
    shown = ("memory", "file descriptors", "tasks", "connections")
    with reporting.picture("soak", rows=2, columns=2, size=(10, 5.4)) as all_axes:
        for axes, name in zip(all_axes, shown, strict=True):
            scale = 1e6 if name == "memory" else 1
            axes.plot(
                [moment.at / 60 for moment in trace],
                [moment.numbers[name] / scale for moment in trace],
                linewidth=0.9,
            )
            axes.axhline(
                before.numbers[name] / scale,
                linestyle=":",
                color="grey",
            )
            for label, moment in (("baseline", before), ("end", after)):
                place = moment.at / 60, moment.numbers[name] / scale
                axes.plot(*place, "o", clip_on=False, zorder=3, label=label)
            axes.set_title(f"{name}, MB" if name == "memory" else name)
            axes.set_ylim(0, 1.1 * max(m.numbers[name] for m in trace) / scale)
        for axes in all_axes[2:]:
            axes.set_xlabel("minutes")
        all_axes[0].legend(loc="lower right")


async def main(arguments: argparse.Namespace) -> bool:
    cores = use_cores()
    load, progress = Load(), Progress()
    seconds = arguments.minutes * 60
    with tempfile.TemporaryDirectory(prefix="authws-soak-") as directory:
        window = Path(directory, "window")
        async with (
            asyncio.timeout(seconds + WARM_UP + 300),
            served(
                USERS,
                core=cores.server,
                program=("-m", "bench.watched", str(window)),
                access_ttl=ACCESS_TTL,
                max_connections_per_user=0,
            ) as server,
        ):
            watcher = Watcher(server, window)
            looking = asyncio.create_task(watcher.keep_looking())
            await churn(server, arguments.peers, WARM_UP, progress, "warm-up")
            before = await watcher.look_when_empty()
            progress(f"baseline: {before.numbers}", always=True)
            if arguments.trace:
                await watcher.ask("trace")
            with load.watching(server.cpu):
                happened = await churn(
                    server, arguments.peers, seconds, progress, "soak"
                )
            after = await watcher.look_when_empty()
            progress(f"end: {after.numbers}", always=True)
            if arguments.trace:
                print("\n".join((await watcher.ask("growth"))["growth"]))
            looking.cancel()
            await asyncio.gather(looking, return_exceptions=True)
    kept = all(
        is_kept(name, number, after.numbers[name])
        for name, number in before.numbers.items()
    )
    crowd = max(moment.numbers["connections"] for moment in watcher.trace)
    body = (
        f"{arguments.minutes:g} minutes, {happened.total():,} lives, at most "
        f"{crowd:,} connections at a time in {ROOMS} rooms and more.\n\n"
        f"{comparison(before, after)}\n\n{lives_table(happened)}"
    )
    print(body)
    print(load.describe())
    if arguments.write:
        figures = {"kept": kept, "minutes": arguments.minutes}
        document.write("soak", body, figures, cores=cores, load=load.describe())
        draw(watcher.trace, before, after)
    return kept


if __name__ == "__main__":
    parser = reporting.options(__doc__)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--peers", type=int, default=300)
    parser.add_argument(
        "--trace", action="store_true", help="name the lines whose memory has grown"
    )
    sys.exit(not reporting.run(main(parser.parse_args())))
