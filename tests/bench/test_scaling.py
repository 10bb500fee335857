"""The capacity model: its formulas, its simulation, and the document they make."""

from __future__ import annotations

from typing import Any

import pytest

from bench import capacity, document, fitting, scaling
from bench.capacity import Constants, Load
from bench.simulation import Prices, Setting, simulate

MICRO = 1e-6
PRICES = Prices(
    publish=(20, 40),
    arrival=(30, 10),
    delivery=(6, 1),
    broker_publish=(5, 5),
    broker_copy=(2, 1),
)


def results() -> dict[str, Any]:
    """What the benchmarks would write, had they measured these prices."""
    one = {
        "error": 0.0,
        "publish": [20, 40],
        "arrival": [30, 10],
        "delivery": [6, 1],
        "broker_publish": [5, 5],
        "broker_copy": [2, 1],
    }
    cost = {"workers": 500.0, "broker": 50, "messages": 1, "bytes": 400, "told": 10}
    return {
        "workers": {
            "costs": [
                {"broker": "redis", "history": history, **one}
                for history in ("kept", "not kept")
            ],
            "loads": [],
        },
        "presence": {
            "rooms": {"10": cost},
            "storm": {"1000": {**cost, "workers": 2000.0}},
            "alone": {"0": {"workers": 300.0}},
            "asking": {"0": {"workers": 360.0}, "3": {"workers": 660.0}},
            "kilobytes": {"10000": 9.0},
        },
        "held": {"kilobytes": 8.0, "idle_us_a_second": 5.0},
        "compare": {
            "measures": {"handshake": {"authws, query_param": {"cpu_us": [400]}}}
        },
    }


# ----------------------------------------------------------------------------- fitting


def test_what_each_part_costs_is_found_from_the_sums() -> None:
    costs = [20.0, 40.0, 7.0]
    counts = [(1, burst, burst * members) for burst in (1, 16) for members in (10, 50)]
    rows = [
        (each, sum(c * n for c, n in zip(costs, each, strict=True))) for each in counts
    ]
    assert fitting.fit(rows) == pytest.approx(costs, rel=1e-3)
    assert fitting.worst(rows, costs) == 0


def test_nothing_costs_less_than_nothing() -> None:
    assert fitting.fit([((1, 1), 10), ((1, 2), 9), ((1, 3), 8)])[1] == 0


# -------------------------------------------------------------------------- simulation


def setting(**changes: Any) -> Setting:
    return Setting(**{"workers": 2, "rooms": 1, "members": 4, "rate": 1, **changes})


@pytest.mark.parametrize(("shares_core", "turns"), [(True, 2), (False, 1)])
def test_a_message_alone_takes_what_its_steps_take(
    shares_core: bool, turns: int
) -> None:
    found = simulate(setting(shares_core=shares_core), PRICES)
    worker = 40 + 2 * 7
    assert found.p99 == pytest.approx((60 + 10 + 2 * 3 + turns * worker) * MICRO)
    assert found.deliveries == 4


def test_without_a_broker_a_message_goes_straight_to_the_members() -> None:
    prices = Prices(publish=(20, 40), arrival=(0, 0), delivery=(6, 1))
    found = simulate(setting(workers=1, has_broker=False), prices)
    assert found.p99 == pytest.approx((60 + 4 * 7) * MICRO)


def test_what_waits_is_taken_together_and_costs_less() -> None:
    alone = 60 + 10 + 2 * 3 + 2 * (40 + 2 * 7)
    rate = 1.3e6 / alone
    found = simulate(setting(rate=rate), PRICES)
    assert found.deliveries == pytest.approx(4 * rate, rel=0.01)
    assert found.p99 > 1.2 * alone * MICRO


def test_more_than_can_be_done_is_not_done() -> None:
    together = 40 + 5 + 2 * 1 + 2 * 10 + 4 * 1
    found = simulate(setting(rate=2e6 / together, seconds=0.5), PRICES)
    assert found.deliveries < 0.7 * 4 * 2e6 / together
    assert found.busy > 0.99


# ---------------------------------------------------------------------------- formulas


def test_the_constants_are_what_was_measured_less_what_is_in_it() -> None:
    found = Constants.read(results(), "redis")
    assert found.join == 500 - 10 * 7 - 2 * 40
    assert found.home == 2 * (360 - 300) * 4 / 3
    assert found.question == 2 * ((660 - 360) / 3 - 40 - 7)
    assert found.name == 0.5
    assert found.handshake == 400


def test_a_room_is_heard_by_no_more_workers_than_have_a_member() -> None:
    assert Load("", 100, 1, 1).hearing(50) == pytest.approx(1)
    assert 9 < Load("", 100, 10, 1).hearing(100) < 10
    assert Load("", 100, 10_000, 1).hearing(50) == pytest.approx(50)


def test_only_who_has_a_room_is_asked_when_it_is_opened() -> None:
    constants = Constants.read(results(), "redis")
    small, big = Load("", 100, 10, 1), Load("", 100, 10_000, 1)
    for workers in (2, 100, 2_000):
        asked = capacity.opening(small, constants, workers)
        assert asked <= constants.home + 10 * constants.question
    assert small.asked(100) == small.hearing(100)
    assert big.asked(51) == pytest.approx(50)
    assert big.asked(200) == 199  # too many to be named
    assert small.asked(1) == big.asked(1) == 0


def test_a_room_that_is_on_one_worker_is_heard_by_one_and_asks_nobody() -> None:
    load = Load("", 100_000, 1000, 100, is_placed=True)
    assert (load.hearing(50), load.asked(50)) == (1, 0)
    constants = Constants.read(results(), "redis")
    here, apart = (
        capacity.demand(load_, constants, 50)
        for load_ in (load, Load("", 100_000, 1000, 100))
    )
    assert here.arrivals < apart.arrivals / 40
    assert here.deliveries == apart.deliveries


def test_a_load_is_paid_for_by_each_of_its_parts() -> None:
    constants = Constants.read(results(), "redis")
    asked = capacity.demand(Load("", 600, 2, 10), constants, 1)
    assert asked.publishes == pytest.approx(10 * 60 * MICRO)
    assert asked.arrivals == pytest.approx(10 * (30 / 16 + 10) * MICRO)
    assert asked.deliveries == pytest.approx(10 * 2 * 7 * MICRO)
    assert asked.handshakes == pytest.approx(1 * 400 * MICRO)
    assert asked.presence == pytest.approx(2 * (350 + 30 / 16 + 10 + 2 * 7) * MICRO)
    assert asked.questions == 0
    assert asked.idle == pytest.approx(600 * 5 * MICRO)


def test_nobody_is_told_who_comes_into_a_room_above_the_limit() -> None:
    constants = Constants.read(results(), "redis")
    told, untold = (
        capacity.demand(Load("", 600, members, 0), constants, 1).presence
        for members in (1000, 1001)
    )
    assert told - untold == pytest.approx(2 * 1000 * 7 * MICRO)


@pytest.mark.parametrize("load", scaling.LOADS, ids=lambda load: load.name)
def test_a_plan_has_no_worker_too_many(load: Load) -> None:
    constants = Constants.read(results(), "redis")
    found = capacity.plan(load, constants)
    assert found is not None
    assert found.demand.total <= capacity.FULL * found.workers
    fewer = int(found.workers / 1.02) - 1
    least, _ = capacity.least(load, constants)
    busy = capacity.demand(load, constants, fewer).total > capacity.FULL * fewer
    assert fewer < least or busy


def test_some_loads_are_too_much_for_any_number_of_workers() -> None:
    """Where each message goes to each worker, more of them are no help."""
    constants = Constants.read(results(), "redis")
    assert capacity.plan(Load("", 1_000_000, 1_000_000, 50_000), constants) is None


# ---------------------------------------------------------------------------- document


def test_the_document_says_what_was_measured() -> None:
    text = scaling.DOCUMENT.read_text(encoding="utf-8")
    for name, body in scaling.sections(document.results()).items():
        marked = document.between(text, f"{name}: reckoned", f"{name}: end", body)
        assert marked == text, f"{name} is another: python -m bench.scaling"
