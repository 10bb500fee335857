"""The outbox's two limits, each on both sides, and what is lost at them."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, field
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from authws.live.outbox import Outbox, OutboxPolicy

DROPPING: tuple[OutboxPolicy, ...] = ("drop_oldest", "drop_newest")
POLICIES: tuple[OutboxPolicy, ...] = ("close", *DROPPING)


def talk(outbox: Outbox, *names: str) -> None:
    """Put what a room says."""
    for name in names:
        assert outbox.put(name, droppable=True)


def emptied(outbox: Outbox) -> list[str | bytes | int]:
    """Take everything; a number stands for so many that were dropped."""
    taken: list[str | bytes | int] = []
    while (message := outbox.take()) is not None:
        taken.append(_count(message) or message)
    return taken


def _count(message: str | bytes) -> int:
    if not str(message).startswith('{"type":"dropped"'):
        return 0
    count = json.loads(message)["count"]
    assert isinstance(count, int)
    return count


# ------------------------------------------------------------------------- the bounds


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


@pytest.mark.parametrize("letter", ["x", "é", "€", "😀", "\ud800"])
def test_bytes_are_those_of_the_wire(letter: str) -> None:
    size = len(letter.encode("utf-8", "surrogatepass"))
    outbox = Outbox(0, 3 * size)
    assert [outbox.put(letter) for _ in range(4)] == [True] * 3 + [False]
    assert outbox.size == 3 * size
    assert emptied(outbox) == [letter] * 3
    assert outbox.size == 0


def test_order_is_kept_and_an_empty_one_gives_none() -> None:
    outbox = Outbox(10, 100)
    outbox.put("first")
    outbox.put(b"second")
    assert [outbox.take(), outbox.take(), outbox.take()] == ["first", b"second", None]


# --------------------------------------------------------------------------- its room


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
    assert (outbox.has_room, outbox.take(), len(outbox)) == (True, None, 0)


@pytest.mark.parametrize("policy", POLICIES)
def test_clearing_leaves_nothing_to_send_and_nothing_to_tell(
    policy: OutboxPolicy,
) -> None:
    outbox = Outbox(2, 0, policy)
    for message in "abc":
        outbox.put(message, droppable=True)
    outbox.clear()
    assert (emptied(outbox), len(outbox), outbox.size) == ([], 0, 0)


async def test_who_waits_goes_on_when_there_is_room_for_what_it_has() -> None:
    outbox = Outbox(0, 12, "close")
    assert outbox.put("1234")
    assert outbox.has_room
    assert outbox.has_room_for("12345678")
    assert not outbox.has_room_for("123456789")
    waiting = asyncio.create_task(outbox.wait_for_room("123456789"))
    await asyncio.sleep(0)
    assert not waiting.done()
    assert outbox.take() == "1234"
    await asyncio.wait_for(waiting, 1)


async def test_who_waits_goes_on_when_dropping_made_the_room() -> None:
    outbox = Outbox(0, 10, "drop_oldest")
    talk(outbox, "1234", "5678")
    waiting = asyncio.create_task(outbox.wait_for_room("x"))
    await asyncio.sleep(0)
    talk(outbox, "longer than all")
    assert emptied(outbox) == [2, "longer than all"]
    await asyncio.wait_for(waiting, 1)


# --------------------------------------------------------------------------- policies


def test_close_drops_nothing_however_droppable() -> None:
    outbox = Outbox(2, 0, "close")
    assert [outbox.put(m, droppable=True) for m in "abc"] == [True, True, False]
    assert (emptied(outbox), outbox.dropped) == (["a", "b"], 0)


def test_the_oldest_go_and_the_gap_is_told_before_what_is_left() -> None:
    outbox = Outbox(3, 0, "drop_oldest")
    talk(outbox, *"abcde")
    assert (emptied(outbox), outbox.dropped) == ([2, "c", "d", "e"], 2)


def test_the_newest_go_and_the_gap_is_told_after_what_was_there() -> None:
    outbox = Outbox(3, 0, "drop_newest")
    talk(outbox, *"abcde")
    assert (emptied(outbox), outbox.dropped) == (["a", "b", "c", 2], 2)


def test_a_gap_among_the_newest_is_told_where_it_is() -> None:
    outbox = Outbox(4, 0, "drop_newest")
    talk(outbox, *"abcdef")
    assert [outbox.take() for _ in range(3)] == ["a", "b", "c"]
    talk(outbox, "g")
    assert emptied(outbox) == ["d", 2, "g"]


def test_once_one_was_dropped_none_goes_in_before_there_is_room_again() -> None:
    outbox = Outbox(4, 0, "drop_newest")
    talk(outbox, *"abcde")
    assert outbox.take() == "a"
    talk(outbox, "f")  # it would fit: but every other message is no use to anybody
    assert emptied(outbox) == ["b", "c", "d", 2]


def test_when_there_is_room_again_it_may_be_filled_again() -> None:
    outbox = Outbox(8, 0, "drop_newest")
    talk(outbox, *"abcdefghi")
    assert [outbox.take() for _ in range(6)] == [*"abcdef"]
    talk(outbox, *"jklmnopq")  # beside g and h there is room for six
    assert emptied(outbox) == ["g", "h", 1, *"jklmno", 2]


@pytest.mark.parametrize("policy", DROPPING)
def test_an_answer_takes_the_place_of_what_a_room_said(policy: OutboxPolicy) -> None:
    outbox = Outbox(3, 0, policy)
    talk(outbox, *"abc")
    assert outbox.put("answer")
    assert len(outbox) == 3
    if policy == "drop_oldest":
        assert emptied(outbox) == [1, "b", "c", "answer"]
    else:
        assert emptied(outbox) == ["a", "b", 1, "answer"]


@pytest.mark.parametrize("policy", DROPPING)
def test_an_answer_comes_after_the_gaps_that_were_before_it(
    policy: OutboxPolicy,
) -> None:
    outbox = Outbox(3, 0, policy)
    talk(outbox, *"abcde")
    assert outbox.put("answer")
    taken = emptied(outbox)
    assert (taken[-1], sum(n for n in taken if isinstance(n, int))) == ("answer", 3)


def test_an_answer_does_not_open_what_was_shut() -> None:
    outbox = Outbox(4, 0, "drop_newest")
    talk(outbox, *"abcde")
    assert outbox.put("answer")
    assert outbox.take() == "a"
    talk(outbox, "f")
    assert emptied(outbox) == ["b", "c", 2, "answer", 1]


@pytest.mark.parametrize("policy", DROPPING)
def test_an_outbox_full_of_answers_takes_no_more_of_them(policy: OutboxPolicy) -> None:
    outbox = Outbox(2, 0, policy)
    assert [outbox.put(m) for m in "xyz"] == [True, True, False]
    talk(outbox, "a")
    taken = [message for message in emptied(outbox) if message != 1]
    assert (taken, outbox.dropped) == (["x", "y"], 1)


@pytest.mark.parametrize("policy", POLICIES)
def test_one_message_goes_into_an_empty_outbox_however_big(
    policy: OutboxPolicy,
) -> None:
    outbox = Outbox(1, 4, policy)
    assert outbox.put("longer than four", droppable=True)
    assert emptied(outbox) == ["longer than four"]


@pytest.mark.parametrize(
    ("policy", "left"),
    [("drop_oldest", [1, "longer than four"]), ("drop_newest", ["ab", 1])],
)
def test_what_is_bigger_than_the_outbox_takes_turns_like_all_else(
    policy: OutboxPolicy, left: list[str | int]
) -> None:
    outbox = Outbox(0, 4, policy)
    talk(outbox, "ab", "longer than four")
    assert outbox.dropped == 1
    assert emptied(outbox) == left


def test_the_gap_is_told_behind_the_answers_that_came_before_it() -> None:
    """Whoever hears of a gap asks again; an answer from before it would be stale."""
    outbox = Outbox(3, 0, "drop_oldest")
    assert outbox.put("joined")
    talk(outbox, *"abc")
    assert emptied(outbox) == ["joined", 1, "b", "c"]
    talk(outbox, *"abc")
    assert outbox.put("joined")
    assert outbox.put("pong")
    assert emptied(outbox) == [2, "c", "joined", "pong"]


def test_gaps_that_meet_are_one() -> None:
    outbox = Outbox(4, 0, "drop_newest")
    talk(outbox, *"abcde")  # e is missed
    assert [outbox.take() for _ in range(3)] == ["a", "b", "c"]
    talk(outbox, "f")  # behind the gap
    for answer in "xyz":
        assert outbox.put(answer)  # and f is what has to go for the last of them
    assert emptied(outbox) == ["d", "x", "y", 2, "z"]


# ------------------------------------------------------------------------ any sequence


@dataclass
class Tally:
    """What went into an outbox, and what came out or was told."""

    outbox: Outbox
    is_over: bool = False
    said: int = 0
    answered: int = 0
    heard: list[int] = field(default_factory=list)
    gaps: dict[int, int] = field(default_factory=dict)
    """How many were told to be missing, by the message that came before them."""
    answers: list[int] = field(default_factory=list)

    def put(self, width: int, *, droppable: bool) -> None:
        name, number = ("m", self.said) if droppable else ("a", self.answered)
        if self.outbox.put(f"{name}{number}:" + "é" * width, droppable=droppable):
            self.said += droppable
            self.answered += not droppable
        else:
            self.is_over = True

    def take(self) -> bool:
        message = self.outbox.take()
        if message is None:
            return False
        assert isinstance(message, str)
        if count := _count(message):
            last = self.heard[-1] if self.heard else -1
            self.gaps[last] = self.gaps.get(last, 0) + count
        else:
            number = int(message[1:].partition(":")[0])
            (self.heard if message[0] == "m" else self.answers).append(number)
        return True

    def missing(self) -> dict[int, int]:
        """How many are missing, by the message that came before them."""
        ends = [-1, *self.heard, self.said]
        return {a: b - a - 1 for a, b in pairwise(ends) if b - a > 1}


STEPS = st.lists(
    st.one_of(
        st.just("take"),
        st.tuples(st.booleans(), st.integers(0, 12)),
    ),
    max_size=120,
)


@pytest.mark.parametrize("policy", POLICIES)
@given(max_messages=st.integers(0, 8), max_bytes=st.integers(0, 80), steps=STEPS)
def test_it_is_bounded_and_what_comes_out_and_was_told_is_what_went_in(
    policy: OutboxPolicy,
    max_messages: int,
    max_bytes: int,
    steps: list[str | tuple[bool, int]],
) -> None:
    outbox = Outbox(max_messages, max_bytes, policy)
    tally = Tally(outbox)
    for step in steps:
        if isinstance(step, tuple):
            tally.put(step[1], droppable=step[0])
        else:
            tally.take()
        assert len(outbox) <= (max_messages or len(steps))
        assert outbox.size <= (max_bytes or 40 * len(steps)) or len(outbox) == 1
        if tally.is_over:
            break
    while tally.take():
        pass
    assert tally.gaps == tally.missing()
    assert outbox.dropped == sum(tally.gaps.values())
    assert tally.heard == sorted(set(tally.heard))
    assert tally.answers == list(range(tally.answered))
    assert (len(outbox), outbox.size, outbox.has_room) == (0, 0, True)
    if policy == "close":
        assert outbox.dropped == 0
