"""What was to be reached, beside what was measured: the first table of the document.

Every goal is read from the figures of the benchmark that shows it. Why a goal is not
met is a sentence in `bench/reasons.toml`, by the goal's key; it stays there however
often the figures are measured again.
"""

from __future__ import annotations

import statistics
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import reporting
from bench.brokers import BROKERS, MEMORY
from bench.contending import (
    FIRST_MESSAGE,
    FLOOR,
    FORGED_FIRST_MESSAGE,
    FORGED_QUERY_PARAM,
    IN_A_ROUTE,
    NATS,
    QUERY_PARAM,
    SESSION_COOKIE,
)

__all__ = ["GOALS", "Goal", "report"]

REASONS = Path(__file__).parent / "reasons.toml"

Figures = Mapping[str, Any]


@dataclass(frozen=True)
class Goal:
    """One thing to be reached."""

    key: str
    what: str
    wanted: str
    """With the least or the most of it in braces: ``at least {} x plain FastAPI``."""
    limit: float
    benchmark: str
    figure: Callable[[Figures], float | None]
    """Reads it from the benchmark's figures; None if that was not measured."""
    is_most: bool = False
    shown: str = "{:.2f}"

    def is_met(self, figure: float) -> bool:
        return figure <= self.limit if self.is_most else figure >= self.limit


# ------------------------------------------------------------------ reading the figures


def _ratio(measure: str, ours: str, other: str) -> Callable[[Figures], float | None]:
    """The median of the ratios within each round."""

    def figure(figures: Figures) -> float | None:
        by_name = figures["measures"].get(measure, {})
        if ours not in by_name or other not in by_name:
            return None
        pairs = zip(by_name[ours]["rate"], by_name[other]["rate"], strict=False)
        return float(statistics.median(a / b for a, b in pairs))

    return figure


def _named(*path: str, connections: int = 0) -> Callable[[Figures], float | None]:
    """A figure that the benchmark has worked out itself, with so many connections."""

    def figure(figures: Figures) -> float | None:
        if figures.get("connections", 0) < connections:
            return None
        value: Any = figures
        for name in path:
            value = value.get(name)
            if value is None:
                return None
        return float(value)

    return figure


# --------------------------------------------------------------------------- the goals

TIMES_FLOOR = "at least {} x plain FastAPI"
TIMES_NATS = "at least {} x nats-server"
TIMES_ACCEPTED = "at least {} x the accepted one"

GOALS = (
    *(
        Goal(
            f"handshake.{one.name.rpartition(' ')[2]}",
            f"authenticated handshake, {one.name.rpartition(' ')[2]}",
            TIMES_FLOOR,
            2.0,
            "compare",
            _ratio("handshake", one.name, FLOOR),
        )
        for one in (QUERY_PARAM, FIRST_MESSAGE, SESSION_COOKIE)
    ),
    Goal(
        "handshake.dependency",
        "the same as a dependency in a user's FastAPI route, on our server",
        TIMES_FLOOR,
        1.0,
        "compare",
        _ratio("handshake", IN_A_ROUTE.name, FLOOR),
    ),
    Goal(
        "refusal.query_param",
        "refusal of a forged token, query_param",
        TIMES_ACCEPTED,
        1.0,
        "compare",
        _ratio("handshake", FORGED_QUERY_PARAM.name, QUERY_PARAM.name),
    ),
    Goal(
        "refusal.first_message",
        "refusal of a forged token, first_message",
        TIMES_ACCEPTED,
        1.0,
        "compare",
        _ratio("handshake", FORGED_FIRST_MESSAGE.name, FIRST_MESSAGE.name),
    ),
    Goal(
        "echo",
        "echo, 64 connections",
        TIMES_FLOOR,
        1.5,
        "compare",
        _ratio("echo, 64 connections", QUERY_PARAM.name, FLOOR),
    ),
    Goal(
        "fanout.100.1",
        "room of 100, window 1",
        TIMES_FLOOR,
        1.5,
        "compare",
        _ratio("room of 100, window 1", QUERY_PARAM.name, FLOOR),
    ),
    *(
        Goal(
            f"fanout.{members.replace(',', '')}.{window}",
            f"room of {members}, window {window}",
            TIMES_NATS,
            1.2,
            "compare",
            _ratio(f"room of {members}, window {window}", QUERY_PARAM.name, NATS),
        )
        for members, window in (("100", 4), ("100", 16), ("100", 64), ("1,000", 4))
    ),
    Goal(
        "stalled.rate",
        "room with one stalled member, deliveries per second under load",
        "at least {:.0%} of without",
        0.9,
        "stalled_peer",
        _named("rate_ratio"),
        shown="{:.0%}",
    ),
    Goal(
        "stalled.p99",
        "room with one stalled member, p99 of a delivery",
        "at most {:.0%} of without",
        1.1,
        "stalled_peer",
        _named("p99_ratio"),
        is_most=True,
        shown="{:.0%}",
    ),
    Goal(
        "memory.service",
        "memory per idle connection of the service, 10,000 open",
        "at most {} kB",
        12,
        "held",
        _named("kilobytes", connections=10_000),
        is_most=True,
        shown="{:.1f}",
    ),
    Goal(
        "memory.dependency",
        "the same of a dependency in a user's FastAPI route, on our server",
        "at most {} kB",
        22,
        "compare",
        _named("kilobytes", IN_A_ROUTE.name, connections=10_000),
        is_most=True,
        shown="{:.1f}",
    ),
    Goal(
        "revocation.one",
        "one session of 10,000 connections: p99 from the REST response to the close",
        "at most {} ms",
        50,
        "revocation",
        _named("p99_ms", connections=10_000),
        is_most=True,
    ),
    Goal(
        "revocation.half",
        "5,000 of 10,000 connections at once: the last close",
        "at most {} ms",
        1000,
        "held",
        _named("last_ms", connections=10_000),
        is_most=True,
        shown="{:.0f}",
    ),
    *(
        Goal(
            f"revocation.workers.{broker}",
            f"the same on 4 workers over {broker}: p99 from the REST request to the "
            "close",
            "at most {} ms",
            100,
            "revocation",
            _named("workers_p99_ms", broker, connections=10_000),
            is_most=True,
            shown="{:.1f}",
        )
        for broker in BROKERS
        if broker != MEMORY
    ),
    *(
        Goal(
            f"growth.{key}",
            f"{what}: furthest from its median",
            "at most {:.0%}",
            0.15,
            "growth",
            _named("flatness", key),
            is_most=True,
            shown="{:.0%}",
        )
        for key, what in (
            ("handshake", "cost of a handshake, 100 to 10,000 connections"),
            ("fanout", "cost of a delivery, 100 to 10,000 connections"),
            ("memory", "memory of a connection, 100 to 10,000 connections"),
            ("rooms", "cost of a delivery, 1 to 1,000 rooms"),
        )
    ),
    Goal(
        "presence.rooms",
        "cost of coming and going, 10 to 10,000 rooms: furthest from its median",
        "at most {:.0%}",
        0.15,
        "presence",
        _named("growth", "rooms"),
        is_most=True,
        shown="{:.0%}",
    ),
    Goal(
        "presence.told",
        "the same for each member that is told, 1,000 members beside 100",
        "at most {} x",
        1.15,
        "presence",
        _named("growth", "told"),
        is_most=True,
    ),
    Goal(
        "presence.untold",
        "the same in a room of 10,000, where nobody is told, beside one of 10",
        "at most {} x",
        1.15,
        "presence",
        _named("growth", "untold"),
        is_most=True,
    ),
)


# ------------------------------------------------------------------------- the report


def report(results: Mapping[str, Figures]) -> str:
    """The table, and why what is not met is not."""
    reasons = tomllib.loads(REASONS.read_text(encoding="utf-8"))
    rows: list[list[object]] = []
    missed: list[str] = []
    met = 0
    for goal in GOALS:
        figures = results.get(goal.benchmark)
        figure = None if figures is None else goal.figure(figures)
        if figure is None:
            shown, verdict = "not measured", ""
        elif goal.is_met(figure):
            shown, verdict = goal.shown.format(figure), "met"
            met += 1
        else:
            shown, verdict = goal.shown.format(figure), "**not met**"
            reason = reasons.get(goal.key, "")
            missed.append(f"- {goal.what} ({shown}): {reason or 'not explained yet'}")
        wanted = goal.wanted.format(goal.limit)
        command = f"`make bench-{goal.benchmark.replace('_', '-')}`"
        rows.append([goal.what, wanted, shown, verdict, command])
    head = ["goal", "wanted", "measured", "", "by"]
    text = (
        f"{met} of {len(GOALS)} goals are met.\n\n{reporting.table(head, rows, left=5)}"
    )
    if missed:
        text += "\n\nNot met, and why:\n\n" + "\n".join(missed)
    return text
