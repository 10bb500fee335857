"""docs/scaling.md: what was measured, put into the formulas of `bench.capacity`.

Measures nothing: it reads what `bench.workers`, `bench.presence`, `bench.held` and
`bench.compare` have written, holds the simulation against it, and writes the tables and
the picture of docs/scaling.md anew. `tests/bench/test_scaling.py` holds them together.

    python -m bench.scaling [--no-write]
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench import capacity, document, reporting
from bench.capacity import Constants, Load, Plan, alone, together
from bench.reporting import digits
from bench.simulation import Prices, Setting, simulate

__all__ = ["DOCUMENT", "sections"]

DOCUMENT = Path(__file__).parent.parent / "docs" / "scaling.md"

MILLION = 1_000_000
A_MINUTE = MILLION / 60
"""Messages a second, if each of a million says one a minute."""
LOADS = (
    Load("rooms of 10, a message a minute from each", MILLION, 10, A_MINUTE),
    Load("rooms of 1,000, a message a minute from each", MILLION, 1000, A_MINUTE),
    Load("the same, each room on one worker", MILLION, 1000, A_MINUTE, is_placed=True),
    Load("one room, 1 message a second", MILLION, MILLION, 1.0),
    Load("one room, 10 messages a second", MILLION, MILLION, 10.0),
)
SIZES = (10_000, 30_000, 100_000, 300_000, MILLION)
FLEETS = (4, 16, 64, 256, 1024)
Results = Mapping[str, Any]


def brokers(results: Results) -> list[str]:
    """Those between workers that were measured with history and without."""
    found = {(one["broker"], one["history"]) for one in results["workers"]["costs"]}
    return [
        name
        for name in ("redis", "nats", "rabbitmq")
        if {(name, "kept"), (name, "not kept")} <= found
    ]


def planned(results: Results, load: Load, broker: str = "redis") -> Plan | None:
    return capacity.plan(load, Constants.read(results, broker))


# -------------------------------------------------------------------------- the tables


def constants_table(results: Results) -> str:
    """Each constant, and the benchmark that measures it."""
    rows: list[list[object]] = []
    for one in results["workers"]["costs"]:
        prices = Prices.read(one)
        shown = (
            f"{digits(alone(price))} / {digits(together(price))}" if any(price) else ""
            for price in (
                *(prices.publish, prices.arrival, prices.delivery),
                *(prices.broker_publish, prices.broker_copy),
            )
        )
        rows.append([one["broker"], one["history"], *shown])
    head = [
        *("broker", "messages are", "p: a publish", "r: an arrival", "d: a delivery"),
        *("b: the broker, a publish", "s: the broker, for each worker"),
    ]
    found = Constants.read(results, "redis")
    others = (
        ("h: a handshake, its token not seen before", found.handshake, "µs", "compare"),
        ("j: a join, but for what others are told", found.join, "µs", "presence"),
        ("a: a room opened, for asking its home", found.home, "µs", "presence"),
        ("q: and for each other that has it", found.question, "µs", "presence"),
        ("i: an idle connection, each second", found.idle, "µs", "held"),
        ("k: a connection", found.kilobytes, "kB", "held"),
        ("n: a name, on each worker with the room", found.name, "kB", "presence"),
    )
    others_rows: list[list[object]] = [
        [what, digits(value), unit, f"`make bench-{by}`"]
        for what, value, unit, by in others
    ]
    return "\n\n".join(
        (
            "Microseconds, of what comes alone / of what comes 16 at a time "
            "(`make bench-workers`):",
            reporting.table(head, rows, left=2),
            reporting.table(["", "measured", "", "by"], others_rows),
        )
    )


def check_table(results: Results) -> str:
    """What the simulation says, beside what was measured."""
    workers = results["workers"]
    prices = {
        one["broker"]: Prices.read(one)
        for one in workers["costs"]
        if one["history"] == "kept"
    }
    rows: list[list[object]] = []
    for one in workers["loads"]:
        is_alone = one["broker"] == "memory"
        found = simulate(
            Setting(
                workers=1 if is_alone else workers["workers"],
                rooms=workers["rooms"],
                members=workers["members"],
                rate=one["publishes"],
                has_broker=not is_alone,
                peer=one["generator_us"],
            ),
            prices[one["broker"]],
        )
        pairs = (
            (one["deliveries"], found.deliveries, "{:,.0f}".format),
            (one["p50_ms"], found.p50 * 1000, digits),
            (one["p99_ms"], found.p99 * 1000, digits),
            (one["core"], found.busy, "{:.0%}".format),
        )
        rows.append(
            [
                *(one["broker"], f"{one['publishes']:,.0f}"),
                *(
                    f"{shown(measured)} / {shown(said)}"
                    for measured, said, shown in pairs
                ),
                f"{found.deliveries / one['deliveries'] - 1:+.0%}",
                f"{found.p99 * 1000 / one['p99_ms'] - 1:+.0%}",
            ]
        )
    head = [
        *("broker", "messages/s", "deliveries/s", "p50, ms", "p99, ms"),
        *("of the core", "off: rate", "off: p99"),
    ]
    return (
        "Measured / simulated: four rooms of 100 on two workers (memory: on one), all "
        "on one core with their broker.\n\n" + reporting.table(head, rows)
    )


def answers_table(results: Results) -> str:
    """For each load: how many workers, and what else."""
    rows: list[list[object]] = []
    for load in LOADS:
        found = planned(results, load)
        if found is None:
            rows.append([load.name, "no number is enough", *[""] * 6])
            continue
        rows.append(
            [
                load.name,
                f"{found.workers:,}",
                found.reason,
                f"{load.connections / found.workers:,.0f}",
                f"{found.megabytes:,.0f}",
                f"{found.demand.total / found.workers:.0%}",
                reporting.milliseconds(found.hold),
                f"{found.back:,.0f}",
            ]
        )
    head = [
        *("1,000,000 connections in", "workers", "because of", "connections each"),
        *("MB each", "busy", "a message holds one up, ms", "all back, s"),
    ]
    return reporting.table(head, rows, left=1)


def broker_table(results: Results) -> str:
    """For each load and broker: how many of its processors."""
    names = brokers(results)
    rows: list[list[object]] = []
    for load in LOADS:
        row: list[object] = [load.name]
        for name in names:
            for is_kept in (True, False):
                asked = Load(
                    *(load.name, load.connections, load.members, load.messages),
                    is_kept=is_kept,
                    is_placed=load.is_placed,
                )
                found = planned(results, asked, name)
                row.append(
                    "" if found is None else " to ".join(map(digits, found.broker))
                )
        rows.append(row)
    head = ["1,000,000 connections in"]
    head += [f"{name}, {kept}" for name in names for kept in ("kept", "not")]
    return reporting.table(head, rows)


def gossip_table(results: Results) -> str:
    """What workers cost one another."""
    found = Constants.read(results, "redis")
    rows: list[list[object]] = []
    for workers in FLEETS:
        beats = capacity.BEATS * workers
        each = beats * alone(found.carried.arrival) / 1e6
        carried = found.carried
        broker = beats * (
            together(carried.broker_publish) + workers * together(carried.broker_copy)
        )
        rooms = Load("", MILLION, 10, 0)
        opened = found.home + rooms.asked(workers) * found.question
        rows.append(
            [
                f"{workers:,}",
                f"{beats:,.0f}",
                f"{each:.2%}",
                f"{broker / 1e6:.2%}",
                reporting.milliseconds(opened / 1e6),
            ]
        )
    head = [
        *("workers", "beats a second, heard by each", "of a worker's time"),
        *("of Redis' time", "to open a room of 10, ms of all workers"),
    ]
    return reporting.table(head, rows, left=0)


def sections(results: Results) -> dict[str, str]:
    """What stands between the markers of docs/scaling.md."""
    return {
        "constants": constants_table(results),
        "simulation": check_table(results),
        "answers": answers_table(results),
        "brokers": broker_table(results),
        "gossip": gossip_table(results),
    }


# ------------------------------------------------------------------------ the picture

PARTS = {
    "deliveries": ("deliveries", "#c2410c"),
    "arrivals": ("arrivals from the broker", "#fb923c"),
    "publishes": ("publishes", "#facc15"),
    "presence": ("who comes and goes", "#0f766e"),
    "questions": ("questions who is there", "#6d28d9"),
    "handshakes": ("handshakes", "#94a3b8"),
    "idle": ("pings", "#cbd5e1"),
    "beats": ("beats", "#334155"),
}


def draw(results: Results) -> None:
    """Workers over connections, and what their time goes into."""
    with reporting.picture("scaling", columns=2, size=(13, 3.8)) as (left, right):
        for members, colour in ((10, "#0f766e"), (1000, "#c2410c")):
            curve = {}
            for size in SIZES:
                found = planned(results, Load("", size, members, size / 60))
                if found is not None:
                    curve[size] = found.workers
            style = {"marker": "o", "markersize": 4, "color": colour}
            label = f"rooms of {members:,}"
            left.plot(list(curve), list(curve.values()), label=label, **style)
        left.set_xscale("log")
        left.set_yscale("log")
        left.set_xticks(SIZES, [f"{size:,}" for size in SIZES], fontsize=8)
        left.minorticks_off()
        left.yaxis.set_major_formatter("{x:,g}")
        left.set(
            title="Workers needed, a message a minute from each",
            xlabel="connections",
        )
        left.legend(fontsize=8)
        draw_parts(right, [planned(results, load) for load in LOADS])


def draw_parts(axes: Any, plans: Sequence[Plan | None]) -> None:
    found = [one for one in plans if one is not None]
    places = range(len(found), 0, -1)
    begin = [0.0] * len(found)
    for part, (label, colour) in PARTS.items():
        shares = [getattr(one.demand, part) / one.demand.total * 100 for one in found]
        axes.barh(places, shares, 0.6, left=begin, color=colour, label=label)
        begin = [a + b for a, b in zip(begin, shares, strict=True)]
    names = [one.load.name.replace(", ", ",\n", 1) for one in found]
    axes.set_yticks(places, names, fontsize=8)
    axes.grid(visible=False, axis="y")
    axes.set_xlim(0, 100)
    axes.set(title="What the workers' time goes into", xlabel="%")
    axes.legend(fontsize=7.5, ncols=1, loc="center left", bbox_to_anchor=(1.0, 0.5))


def main(arguments: argparse.Namespace) -> None:
    results = document.results()
    text = DOCUMENT.read_text(encoding="utf-8")
    for name, body in sections(results).items():
        print(f"\n=== {name}\n\n{body}")
        text = document.between(text, f"{name}: reckoned", f"{name}: end", body)
    if arguments.write:
        DOCUMENT.write_text(text, encoding="utf-8")
        draw(results)


if __name__ == "__main__":
    main(reporting.options(__doc__).parse_args())
