"""The table of goals is read from figures that the benchmarks do write."""

from __future__ import annotations

import tomllib
from typing import Any

import pytest

from bench import goals
from bench.compare import MEASURES, Result
from bench.contending import CONTENDERS
from bench.generator import Measured
from bench.goals import GOALS
from bench.growth import Curve, deviation


def compared() -> dict[str, Any]:
    """What the comparison writes when everybody does everything a thousand times."""
    result = Result([one.name for one in CONTENDERS], connections=10_000)
    for by_name in result.rounds.values():
        by_name |= {name: [Measured(1000, 1e-6, 1e-3)] for name in result.names}
    result.memory = dict.fromkeys(result.names, 10_000.0)
    return result.figures()


def everything() -> dict[str, dict[str, Any]]:
    flat = dict.fromkeys(("handshake", "fanout", "memory", "rooms"), 0.1)
    return {
        "compare": compared(),
        "growth": {"flatness": flat},
        "held": {"connections": 10_000, "kilobytes": 10, "last_ms": 100},
        "presence": {"growth": dict.fromkeys(("rooms", "told", "untold"), 1.0)},
        "revocation": {
            "connections": 10_000,
            "p99_ms": 1,
            "workers_p99_ms": dict.fromkeys(("redis", "nats", "rabbitmq"), 1.0),
        },
        "stalled_peer": {"p99_ratio": 1.0, "rate_ratio": 1.0},
    }


def test_every_goal_is_in_the_figures() -> None:
    figures = everything()
    missing = [
        goal.key for goal in GOALS if goal.figure(figures[goal.benchmark]) is None
    ]
    assert missing == []


def test_what_is_not_measured_is_neither_met_nor_missed() -> None:
    report = goals.report({})
    assert report.startswith(f"0 of {len(GOALS)} goals are met.")
    assert "not met" not in report


def test_a_goal_for_ten_thousand_is_not_met_by_less() -> None:
    figures = everything()
    figures["held"]["connections"] = 9_999
    (goal,) = (goal for goal in GOALS if goal.key == "memory.service")
    assert goal.figure(figures["held"]) is None


def test_a_ratio_is_the_median_of_those_within_rounds() -> None:
    figures = compared()
    by_name = figures["measures"]["handshake"]
    (goal,) = (goal for goal in GOALS if goal.key == "handshake.query_param")
    by_name["authws, query_param"]["rate"] = [300, 800, 900]
    by_name["plain FastAPI, no authentication"]["rate"] = [100, 100, 1000]
    assert goal.figure(figures) == 3


def test_why_a_goal_is_missed_is_said_as_long_as_it_is(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    reasons = tmp_path / "reasons.toml"
    reasons.write_text('"held" = ""\n"memory.service" = "Because."\n')
    monkeypatch.setattr(goals, "REASONS", reasons)
    figures = everything()
    assert "Because." not in goals.report(figures)
    figures["held"]["kilobytes"] = 13
    assert "10,000 open (13.0): Because." in goals.report(figures)


def test_every_reason_is_for_a_goal() -> None:
    reasons = tomllib.loads(goals.REASONS.read_text(encoding="utf-8"))
    assert set(reasons) <= {goal.key for goal in GOALS}


def test_goals_and_contenders_have_names_of_their_own() -> None:
    for names in ([g.key for g in GOALS], [one.name for one in CONTENDERS]):
        assert len(names) == len(set(names))


def test_everybody_is_asked_in_a_way_that_the_generator_knows() -> None:
    for one in CONTENDERS:
        for work, *_ in MEASURES.values():
            assert hasattr(one, work)


def test_flat_is_near_the_median() -> None:
    curve = Curve("handshake")
    for step, cost in ((100, 1.0), (1000, 1.1), (10_000, 1.32)):
        curve.add(step, Measured(1, cost, 0))
    assert curve.flatness() == pytest.approx(0.2)
    assert deviation([1.0]) is None
