from __future__ import annotations

import pytest

from authws.decisions.ring import Ring

NAMES = [f"room{number}" for number in range(5_000)]


def nodes(count: int) -> list[str]:
    return [f"worker{number}" for number in range(count)]


def homes(count: int) -> list[str]:
    ring = Ring(nodes(count))
    return [ring.home(name) for name in NAMES]


def test_one_alone_is_home_to_all() -> None:
    assert set(homes(1)) == {"worker0"}


def test_all_say_the_same_in_whatever_order_they_know_the_others() -> None:
    assert [Ring(reversed(nodes(7))).home(name) for name in NAMES] == homes(7)
    assert [Ring(set(nodes(7))).home(name) for name in NAMES] == homes(7)


@pytest.mark.parametrize("count", [2, 7, 40])
def test_one_more_takes_its_share_and_moves_nothing_else(count: int) -> None:
    moved = {
        (before, after)
        for before, after in zip(homes(count), homes(count + 1), strict=True)
        if before != after
    }
    assert {after for _, after in moved} == {f"worker{count}"}
    assert len({before for before, _ in moved}) > count / 2  # a little of each
    taken = homes(count + 1).count(f"worker{count}")
    assert 0.4 < taken / (len(NAMES) / (count + 1)) < 1.8


def test_shares_are_even_enough() -> None:
    found = homes(20)
    shares = [found.count(node) / (len(NAMES) / 20) for node in nodes(20)]
    assert min(shares) > 0.5
    assert max(shares) < 1.6


@pytest.mark.parametrize("name", ["", "ü", "a" * 128, "x.y:z-_"])
def test_any_name_has_a_home(name: str) -> None:
    assert Ring(nodes(3)).home(name) in nodes(3)
