"""authws beside others: the handshake, an echo, a room and memory, each on one core.

A load generator in C (`bench/wsload.c`) on one core loads one server after another on
the other (`bench/contending.py` lists them). Interleaved rounds, every other one
backwards; ratios are medians of the ratios within a round. What is not installed here
is left out, and the document says so.

    python -m bench.compare [--rounds 5] [--seconds 1] [--only NAME]
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from bench import document, reporting
from bench.contending import (
    CONTENDERS,
    FLOOR,
    NATS,
    Contender,
    Started,
    started,
)
from bench.generator import Generator, LoadError, Measured, generator
from bench.measuring import Measuring
from bench.served import settled_rss, use_cores

BOUND = 7200.0

MEASURES: dict[str, tuple[str, ...]] = {
    "handshake": ("connect", "-c", "32"),
    "echo, 64 connections": ("echo", "-c", "64", "-b", "128"),
    **{
        f"room of 100, window {window}": (
            *("fanout", "-c", "100", "-b", "128"),
            *("-w", str(window)),
        )
        for window in (1, 4, 16, 64)
    },
    "room of 1,000, window 4": ("fanout", "-c", "1000", "-b", "128", "-w", "4"),
}
"""What the generator does; a window is how many messages of the publisher's are on
their way at a time. Handshakes, or messages that arrived, per second."""

SHORT = dict(
    zip(
        MEASURES,
        (
            "handshake",
            "echo",
            "100, w1",
            "100, w4",
            "100, w16",
            "100, w64",
            "1,000, w4",
        ),
        strict=True,
    )
)
"""As a column's head; w is the window."""

AUTHENTICATED = {one.name for one in CONTENDERS if one.is_authenticated}

Rounds = dict[str, dict[str, list[Measured]]]
"""By measure and contender, one for each round."""


@dataclass
class Result:
    """Everything that was measured."""

    names: list[str]
    rounds: Rounds = field(
        default_factory=lambda: {measure: {} for measure in MEASURES}
    )
    memory: dict[str, float] = field(default_factory=dict)
    """By contender, bytes for each idle connection."""
    connections: int = 0
    """How many of them."""
    versions: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    """What a contender could not do, and what it said."""

    def ratios(self, measure: str, name: str, base: str) -> list[float]:
        """Within each round; none if either was not measured."""
        by_name = self.rounds[measure]
        pairs = zip(by_name.get(name, ()), by_name.get(base, ()), strict=False)
        return [one.rate / other.rate for one, other in pairs]

    def cost(self, measure: str, name: str) -> float | None:
        """Microseconds of the server's processor for each of them."""
        rounds = self.rounds[measure].get(name)
        return statistics.median(one.cpu for one in rounds) * 1e6 if rounds else None

    def complete(self, rounds: int) -> None:
        """Leave out who failed in some rounds: ratios are within rounds."""
        self.rounds = {
            measure: {
                name: by_name[name]
                for name in self.names
                if len(by_name.get(name, ())) == rounds
            }
            for measure, by_name in self.rounds.items()
        }

    def figures(self) -> dict[str, object]:
        """As they are kept for the goals."""
        return {
            "measures": {
                measure: {
                    name: {
                        "rate": [round(one.rate, 1) for one in rounds],
                        "cpu_us": [round(one.cpu * 1e6, 2) for one in rounds],
                    }
                    for name, rounds in by_name.items()
                }
                for measure, by_name in self.rounds.items()
            },
            "connections": self.connections,
            "kilobytes": {
                name: round(size / 1000, 1) for name, size in self.memory.items()
            },
            "versions": self.versions,
        }


# ------------------------------------------------------------------------- measuring


class Comparison:
    """Some servers, and the generator that goes from one to the next."""

    def __init__(
        self,
        contenders: Sequence[Started],
        wsload: Generator,
        arguments: argparse.Namespace,
    ) -> None:
        self.contenders = contenders
        versions = (one.running.version for one in contenders)
        self.result = Result(
            [one.name for one in contenders],
            connections=arguments.connections,
            versions=list(dict.fromkeys(filter(None, versions))),
        )
        self._arguments = arguments
        self._held = {one.running.pid: one for one in reversed(contenders)}
        steps = arguments.rounds * sum(
            bool(one.ask(work[0])) for work in MEASURES.values() for one in contenders
        )
        self.bench = Measuring(wsload, arguments, steps + len(self._held))
        self.bench.beside(contenders)

    async def measure_memory(self) -> None:
        """Hold many idle connections at each server, by the first way to use it."""
        count = self._arguments.connections
        for one in reversed(self._held.values()):
            self.bench.progress.step()
            if not one.ask("echo"):  # another setting of a server that is there
                continue
            running = one.running
            try:
                # what the first of all bring in
                await self.bench.measure(one, MEASURES["handshake"])
                before = await settled_rss(running.pid, still=1)
                ask = one.ask("connect")
                async with self.bench.wsload.holding(count, ask, port=running.port):
                    size = await settled_rss(running.pid, still=1) - before
            except LoadError as error:
                self._note_failure("memory", one, error)
                continue
            await self.bench.wait_until_idle()
            self.result.memory[one.name] = size / count
            each = size / count / 1000
            self.bench.progress(f"{one.name}: {each:.1f} kB each", always=True)

    async def measure(self) -> None:
        """All rounds, every other one backwards."""
        for number in range(self._arguments.rounds):
            await self.bench.wait_for_quiet()
            order = self.contenders[:: -1 if number % 2 else 1]
            for measure, work in MEASURES.items():
                for one in order:
                    if one.ask(work[0]):
                        await self._measure(number, measure, one)

    async def _measure(self, number: int, measure: str, one: Started) -> None:
        self.bench.progress.step()
        try:
            found = await self.bench.measure(one, MEASURES[measure])
        except LoadError as error:
            self._note_failure(measure, one, error)
            return
        self.result.rounds[measure].setdefault(one.name, []).append(found)
        self.bench.progress(
            f"round {number + 1} of {self._arguments.rounds}: {measure}, {one.name}: "
            f"{found.rate:,.0f}/s"
        )

    def _note_failure(self, measure: str, one: Started, error: LoadError) -> None:
        self.result.failed[f"{one.name}, {measure}"] = str(error)
        self.bench.progress(f"*** {one.name}, {measure}: {error}", always=True)


# ------------------------------------------------------------------------- the result


def shown(name: str) -> str:
    """A contender's name in a table: ours stand out."""
    return f"**{name}**" if name.startswith("authws") else name


def ratios_table(result: Result) -> str:
    """Per second, as multiples of the floor, and memory."""
    rows: list[list[object]] = []
    for name in result.names:
        row: list[object] = [shown(name), "yes" if name in AUTHENTICATED else ""]
        for measure in MEASURES:
            ratios = result.ratios(measure, name, FLOOR)
            row.append(f"{statistics.median(ratios):.2f}" if ratios else "")
        size = result.memory.get(name)
        row.append("" if size is None else f"{size / 1000:.1f}")
        rows.append(row)
    head = ["x floor", "knows who", *SHORT.values(), "kB each"]
    return reporting.table(head, rows, left=2)


def costs_table(result: Result) -> str:
    """Processor time of the server for each handshake, echo or delivery."""
    rows: list[list[object]] = []
    for name in result.names:
        costs = [result.cost(measure, name) for measure in MEASURES]
        rows.append(
            [shown(name), *("" if c is None else reporting.digits(c) for c in costs)]
        )
    return reporting.table(["microseconds", *SHORT.values()], rows)


def details_table(result: Result) -> str:
    """Every median, with the spread of its ratios."""
    rows: list[list[object]] = []
    for measure, by_name in result.rounds.items():
        for name, rounds in by_name.items():
            rates = sorted(one.rate for one in rounds)
            row: list[object] = [
                *(measure, name, f"{statistics.median(rates):,.0f}"),
                f"{rates[0]:,.0f} to {rates[-1]:,.0f}",
            ]
            for base in (FLOOR, NATS):
                ratios = sorted(result.ratios(measure, name, base))
                row.append(
                    f"{statistics.median(ratios):.2f} ({ratios[0]:.2f} to "
                    f"{ratios[-1]:.2f})"
                    if ratios and name != base
                    else ""
                )
            row.append(
                reporting.milliseconds(statistics.median(one.p99 for one in rounds))
            )
            rows.append(row)
    head = [
        *("what, per second", "server", "median", "rounds"),
        *("x floor", "x nats-server", "p99, ms"),
    ]
    return reporting.table(head, rows, left=2)


def report(result: Result, absent: Mapping[str, str], rounds: int) -> str:
    floor = (
        f"{measure} {statistics.median(one.rate for one in by_name[FLOOR]):,.0f}/s"
        for measure, by_name in result.rounds.items()
        if FLOOR in by_name
    )
    parts = [
        f"Medians of {rounds} rounds. The floor's own: {'; '.join(floor)}.",
        f"Beside these versions: {', '.join(result.versions)}.",
    ]
    if absent:
        missing = "; ".join(f"{name} ({why})" for name, why in absent.items())
        parts.append(f"**Not measured**, as it could not be had here: {missing}.")
    if result.failed:
        failed = "; ".join(f"{what} ({why})" for what, why in result.failed.items())
        parts.append(f"**Failed**: {failed}.")
    parts += [
        ratios_table(result),
        "What each of them costs the server, in microseconds of its processor:",
        costs_table(result),
        "<details><summary>Every median, with the spread of the rounds</summary>",
        details_table(result),
        "</details>",
    ]
    return "\n\n".join(parts)


# ------------------------------------------------------------------------ the picture

OURS_COLOUR, FLOOR_COLOUR, OTHER_COLOUR = "#c2410c", "#334155", "#94a3b8"
INK = {OTHER_COLOUR: "#475569"}
"""What is too pale for a text, as a text."""


def colour(name: str) -> str:
    if name.startswith("authws"):
        return OURS_COLOUR
    return FLOOR_COLOUR if name == FLOOR else OTHER_COLOUR


def draw(result: Result) -> None:
    """A panel for each measure: how many times the floor, and memory."""
    panels = {
        measure: {
            name: statistics.median(ratios)
            for name in result.names
            if (ratios := result.ratios(measure, name, FLOOR))
        }
        for measure in MEASURES
    }
    memory = {name: size / 1000 for name, size in result.memory.items()}
    height = 1.6 + 0.4 * len(result.names)
    with reporting.picture(
        "compare", rows=2, columns=4, size=(14, height), sharey=True
    ) as all_axes:
        for axes, (measure, values) in zip(all_axes, panels.items(), strict=False):
            draw_bars(axes, result.names, values, "{:.2f}")
            axes.set_title(measure[0].upper() + measure[1:])
            axes.axvline(1, color=FLOOR_COLOUR, linewidth=0.8)
        draw_bars(all_axes[-1], result.names, memory, "{:.1f}")
        all_axes[-1].set_title("kB a connection (shorter is better)")
        all_axes[0].figure.suptitle(
            "Per second, as a multiple of plain FastAPI without authentication "
            "(log scale; longer is better)",
            fontsize=12,
            x=0.01,
            ha="left",
        )


def draw_bars(
    axes: Any, names: Sequence[str], values: Mapping[str, float], form: str
) -> None:
    """A bar with its figure for each name that has one, the first on top."""
    places = range(len(names), 0, -1)
    axes.set_xscale("log")
    axes.set_ylim(0.4, len(names) + 0.6)
    axes.set_yticks(places, names, fontsize=9)
    for label, name in zip(axes.get_yticklabels(), names, strict=False):
        label.set_color(
            INK.get(colour(name), colour(name))
        )  # none but in the first column
    axes.grid(visible=False, axis="y")
    if not values:
        return
    least, most = min(values.values()), max(values.values())
    axes.set_xlim(least / 1.6, most * (most / least) ** 0.3 * 1.4)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter("")
    for place, name in zip(places, names, strict=True):
        if (value := values.get(name)) is not None:
            axes.barh(place, value, 0.72, color=colour(name))
            axes.annotate(
                form.format(value),
                (value, place),
                (3, 0),
                textcoords="offset points",
                va="center",
                fontsize=8,
            )


# ------------------------------------------------------------------------ the command


def is_chosen(one: Contender, only: str) -> bool:
    """Whether its name is asked for; the floor always is."""
    return one.name == FLOOR or any(part in one.name for part in only.split(","))


async def main(arguments: argparse.Namespace) -> None:
    cores = use_cores()
    chosen = [one for one in CONTENDERS if is_chosen(one, arguments.only)]
    async with asyncio.timeout(BOUND):
        with generator(cores) as wsload:
            async with started(chosen, cores.server) as (contenders, absent):
                comparison = Comparison(contenders, wsload, arguments)
                for name, why in absent.items():
                    comparison.bench.progress(
                        f"*** LEFT OUT: {name}: {why}", always=True
                    )
                await comparison.measure_memory()
                await comparison.measure()
    result = comparison.result
    result.complete(arguments.rounds)
    body = report(result, absent, arguments.rounds)
    print(body)
    described = comparison.bench.load.describe()
    print(described)
    if arguments.write:
        document.write("compare", body, result.figures(), cores=cores, load=described)
        draw(result)


if __name__ == "__main__":
    parser = reporting.options(__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1, help="of each measurement")
    parser.add_argument(
        "--connections", type=int, default=10_000, help="idle ones, for the memory"
    )
    parser.add_argument(
        "--only", default="", metavar="NAMES", help="whose names have one of these"
    )
    reporting.run(main(parser.parse_args()))
