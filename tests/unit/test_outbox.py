"""The outbox's two limits, each on both sides."""

from __future__ import annotations

import pytest

from authws.live.outbox import Outbox


@pytest.mark.parametrize(
    ("limits", "payload"), [((4, 0), "x"), ((0, 16), "four"), ((4, 16), "four")]
)
def test_what_fits_is_taken_and_one_more_is_not(
    limits: tuple[int, int], payload: str
) -> None:
    outbox = Outbox(*limits)
    assert [outbox.put(payload) for _ in range(5)] == [True] * 4 + [False]


def test_a_limit_of_zero_is_off() -> None:
    outbox = Outbox(0, 0)
    assert all(outbox.put("x" * 1000) for _ in range(10_000))
    assert outbox.has_room


def test_order_is_kept_and_an_empty_one_gives_none() -> None:
    outbox = Outbox(10, 100)
    outbox.put("first")
    outbox.put(b"second")
    assert [outbox.take(), outbox.take(), outbox.take()] == ["first", b"second", None]


def rooms_while_filling(outbox: Outbox, messages: int) -> list[bool]:
    """Whether there is room after each of some puts."""
    return [outbox.put("x") and outbox.has_room for _ in range(messages)]


def rooms_while_draining(outbox: Outbox, messages: int) -> list[bool]:
    """Whether there is room after each of some takes."""
    return [outbox.take() == "x" and outbox.has_room for _ in range(messages)]


def test_room_ends_above_a_half_and_comes_back_at_a_quarter() -> None:
    outbox = Outbox(8, 0)
    assert rooms_while_filling(outbox, 5) == [True, True, True, True, False]
    assert rooms_while_draining(outbox, 3) == [False, False, True]


def test_clearing_lets_nobody_wait_any_longer() -> None:
    outbox = Outbox(2, 0)
    assert rooms_while_filling(outbox, 2) == [True, False]
    outbox.clear()
    assert (outbox.has_room, outbox.take()) == (True, None)
