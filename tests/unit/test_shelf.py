"""What is kept, and for how long; and that nobody is told of a whole that is none."""

from __future__ import annotations

from typing import NamedTuple

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from authws.brokers import shelf as shelf_module
from authws.brokers.base import Replay
from authws.brokers.shelf import CHANNEL_OVERHEAD, OVERHEAD, Shelf
from authws.decisions.history import Position, Retention

KEEP = Retention(messages=3, seconds=10)


class Now:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.time = 1000.0

    def __call__(self) -> float:
        return self.time


def make(max_bytes: int = 0) -> tuple[Shelf, Now]:
    now = Now()
    return Shelf("e", max_bytes, now), now


def data(replay: Replay) -> list[bytes]:
    return [body for _, body in replay.messages]


def fill(shelf: Shelf, *texts: str, channel: str = "a") -> list[Position]:
    return [shelf.append(channel, text.encode(), KEEP) for text in texts]


# --------------------------------------------------------------------------- positions


def test_positions_count_up_by_channel() -> None:
    shelf, _ = make()
    assert fill(shelf, "1", "2") == [Position("e", 1), Position("e", 2)]
    assert fill(shelf, "1", channel="b") == [Position("e", 1)]


def test_what_came_after_a_position_is_returned_in_order() -> None:
    shelf, _ = make()
    first, second, third = fill(shelf, "1", "2", "3")
    start = Position("e", 0)
    assert shelf.replay("a", KEEP, start) == Replay(
        ((first, b"1"), (second, b"2"), (third, b"3")), True, third
    )
    assert shelf.replay("a", KEEP, first) == Replay(
        ((second, b"2"), (third, b"3")), True, third
    )
    assert shelf.replay("a", KEEP, third) == Replay((), True, third)


def test_asked_without_a_position_it_says_where_a_channel_stands() -> None:
    shelf, _ = make()
    assert shelf.replay("a", KEEP, None) == Replay((), True, Position("e", 0))
    fill(shelf, "1", "2")
    assert shelf.replay("a", KEEP, None) == Replay((), True, Position("e", 2))
    assert shelf.replay("b", KEEP, None) == Replay((), True, Position("e", 0))


@pytest.mark.parametrize(
    "since", [Position("other", 1), Position("", 1), Position("e", 3)]
)
def test_a_position_that_never_was_is_not_whole(since: Position) -> None:
    shelf, _ = make()
    fill(shelf, "1", "2")
    assert shelf.replay("a", KEEP, since) == Replay((), False, Position("e", 2))


def test_offsets_may_be_given_and_have_gaps() -> None:
    shelf, _ = make()
    for offset in (5, 9, 20):
        assert shelf.put("a", offset, b"%d" % offset, KEEP) == Position("e", offset)
    assert data(shelf.replay("a", KEEP, Position("e", 5))) == [b"9", b"20"]
    assert data(shelf.replay("a", KEEP, Position("e", 7))) == [b"9", b"20"]
    whole = shelf.replay("a", KEEP, Position("e", 0))
    assert (data(whole), whole.is_complete) == ([b"5", b"9", b"20"], True)


def test_of_a_row_that_is_known_nothing_is_missing_where_nothing_is() -> None:
    shelf, _ = make()
    shelf.put("a", 12, b"12", KEEP)
    shelf.know_up_to(20)
    assert shelf.replay("b", KEEP, None).top == Position("e", 20)
    assert shelf.replay("b", KEEP, Position("e", 15)).is_complete
    assert data(shelf.replay("a", KEEP, Position("e", 3))) == [b"12"]
    assert shelf.replay("a", KEEP, Position("e", 20)).is_complete
    assert not shelf.replay("a", KEEP, Position("e", 21)).is_complete


@pytest.mark.parametrize(("age", "is_kept"), [(9.9, True), (10.1, False)])
def test_what_was_published_a_while_ago_is_kept_for_the_rest_of_its_time(
    age: float, is_kept: bool
) -> None:
    shelf, _ = make()
    shelf.put("a", 1, b"1", KEEP, age)
    replay = shelf.replay("a", KEEP, Position("e", 0))
    assert (data(replay), replay.is_complete) == (
        ([b"1"], True) if is_kept else ([], False)
    )


def test_of_what_came_before_all_that_is_known_nothing_is_whole() -> None:
    shelf, _ = make()
    shelf.forget_before(9)
    shelf.put("a", 12, b"12", KEEP)
    assert shelf.replay("a", KEEP, Position("e", 8)).is_complete is False
    assert shelf.replay("a", KEEP, Position("e", 9)).is_complete is True
    # and nothing that is known is forgotten by an older word
    shelf.forget_before(3)
    assert shelf.replay("b", KEEP, Position("e", 8)).is_complete is False


# ------------------------------------------------------------------------------ bounds


def test_no_more_than_so_many_are_kept() -> None:
    shelf, _ = make()
    fill(shelf, "1", "2", "3")
    assert shelf.replay("a", KEEP, Position("e", 0)).is_complete
    fill(shelf, "4")
    assert data(shelf.replay("a", KEEP, Position("e", 0))) == [b"2", b"3", b"4"]
    assert not shelf.replay("a", KEEP, Position("e", 0)).is_complete
    assert shelf.replay("a", KEEP, Position("e", 1)).is_complete


@pytest.mark.parametrize(
    ("seconds", "is_kept"), [(9.9, True), (10, True), (10.1, False)]
)
def test_nothing_is_kept_for_longer(seconds: float, is_kept: bool) -> None:
    shelf, now = make()
    first, _ = fill(shelf, "1", "2")
    now.time += seconds
    replay = shelf.replay("a", KEEP, first)
    assert (data(replay), replay.is_complete) == (
        ([b"2"], True) if is_kept else ([], False)
    )
    # where it stands is not forgotten with it
    assert replay.top == Position("e", 2)
    assert shelf.append("a", b"3", KEEP) == Position("e", 3)
    assert shelf.replay("a", KEEP, Position("e", 2)).is_complete


def test_what_is_too_old_goes_with_the_next_message_too() -> None:
    shelf, now = make()
    fill(shelf, "1", "2")
    size = shelf.size
    now.time += 11
    fill(shelf, "3")
    assert shelf.size == size - OVERHEAD - 1


COST = CHANNEL_OVERHEAD + 1 + OVERHEAD + 10
"""What a channel of one letter costs, with one message of 10 bytes."""


@pytest.mark.parametrize(
    ("bound", "is_kept"), [(2 * COST, True), (2 * COST - 1, False)]
)
def test_all_channels_share_one_bound(bound: int, is_kept: bool) -> None:
    shelf, _ = make(bound)
    fill(shelf, "x" * 10)
    fill(shelf, "x" * 10, channel="b")
    assert shelf.size <= bound
    assert shelf.replay("a", KEEP, Position("e", 0)).is_complete is is_kept
    assert shelf.replay("b", KEEP, Position("e", 0)).is_complete


def test_the_channel_that_was_silent_for_longest_goes_first() -> None:
    shelf, _ = make(3 * COST)
    for channel in ("a", "b", "c", "a", "d"):
        fill(shelf, "x" * 10, channel=channel)
    assert len(data(shelf.replay("a", KEEP, Position("e", 0)))) == 2
    assert data(shelf.replay("b", KEEP, Position("e", 0))) == []
    assert data(shelf.replay("c", KEEP, Position("e", 0))) == []


def test_a_message_beyond_the_bound_is_not_kept_and_that_is_told() -> None:
    shelf, _ = make(2 * COST)
    start = shelf.replay("a", KEEP, None).top
    top = shelf.append("a", b"x" * 10_000, KEEP)
    assert shelf.size == 0
    assert not shelf.replay("a", KEEP, start).is_complete
    assert shelf.replay("a", KEEP, top) == Replay((), True, top)


def test_a_bound_of_zero_is_off() -> None:
    shelf, _ = make(0)
    for number in range(100):
        fill(shelf, "x" * 1_000_000, channel=f"c{number}")
    assert shelf.replay("c0", KEEP, Position("e", 0)).is_complete
    assert shelf.size >= 100_000_000


@pytest.mark.parametrize(("channels", "is_kept"), [(5, True), (6, False)])
def test_channels_are_counted_whatever_is_in_them(
    channels: int, is_kept: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shelf_module, "MAX_CHANNELS", 5)
    shelf, _ = make()
    for number in range(channels):
        fill(shelf, "", channel=f"c{number}")
    assert shelf.replay("c0", KEEP, Position("e", 0)).is_complete is is_kept
    assert shelf.replay("c5", KEEP, None).top.offset == (0 if is_kept else 1)


def test_who_was_forgotten_goes_on_above_all_that_anybody_may_hold() -> None:
    shelf, _ = make(COST + OVERHEAD + 10)
    held = fill(shelf, "x" * 10, "x" * 10)[-1]
    fill(shelf, "x" * 10, channel="b")  # and a is forgotten
    again = shelf.append("a", b"new", KEEP)
    assert again.offset > held.offset
    replay = shelf.replay("a", KEEP, held)
    assert (data(replay), replay.is_complete) == ([b"new"], True)


def test_asking_costs_nothing() -> None:
    shelf, _ = make()
    for number in range(1000):
        shelf.replay(f"c{number}", KEEP, None)
        shelf.replay(f"c{number}", KEEP, Position("e", 5))
    assert shelf.size == 0


# -------------------------------------------------------- against one that keeps it all


class Said(NamedTuple):
    offset: int
    at: float
    data: bytes


KEEPS = {
    "a": Retention(3, 10),
    "b": Retention(100, 1),
    "c": Retention(1, 100),
    "d": Retention(100, 100),
}
channel = st.sampled_from(sorted(KEEPS))


class Shelves(RuleBasedStateMachine):
    """A shelf, and a naive one that keeps everything: what both say must agree."""

    max_bytes = 0
    max_channels = 100

    def __init__(self) -> None:
        super().__init__()
        self.limit = shelf_module.MAX_CHANNELS
        shelf_module.MAX_CHANNELS = self.max_channels
        self.shelf, self.now = make(self.max_bytes)
        self.all: dict[str, list[Said]] = {name: [] for name in KEEPS}
        self.given: dict[str, set[int]] = {name: set() for name in KEEPS}
        """Offsets that somebody who heard all up to there may hold."""

    def teardown(self) -> None:
        shelf_module.MAX_CHANNELS = self.limit

    @rule(name=channel, size=st.sampled_from([0, 1, 50, 300, 5000]))
    def append(self, name: str, size: int) -> None:
        text = b"x" * size
        position = self._put(name, text)
        assert position.epoch == "e"
        assert all(position.offset > said.offset for said in self.all[name])
        assert all(position.offset > offset for offset in self.given[name])
        self.all[name].append(Said(position.offset, self.now.time, text))
        self.given[name].add(position.offset)

    @rule(seconds=st.sampled_from([0.1, 1.0, 1.5, 10.0, 99.0]))
    def wait(self, seconds: float) -> None:
        self.now.time += seconds

    @rule(name=channel)
    def stand(self, name: str) -> None:
        replay = self.shelf.replay(name, KEEPS[name], None)
        assert (replay.messages, replay.is_complete) == ((), True)
        assert replay.top.offset >= self._last(name)
        self.given[name].add(replay.top.offset)

    @precondition(lambda self: any(self.given.values()))
    @rule(pick=st.data(), name=channel)
    def replay(self, pick: st.DataObject, name: str) -> None:
        if not self.given[name]:
            return
        since = pick.draw(st.sampled_from(sorted(self.given[name])))
        keep = KEEPS[name]
        replay = self.shelf.replay(name, keep, Position("e", since))
        said = [one for one in self.all[name] if one.offset > since]
        kept = [(position.offset, body) for position, body in replay.messages]
        missed = [(one.offset, one.data) for one in said]
        # whatever is told is a whole end of what was said, and no more than may be
        assert kept == missed[len(missed) - len(kept) :]
        assert len(kept) <= keep.messages
        born = self.now.time - keep.seconds
        assert all(one.at >= born for one in said[len(said) - len(kept) :])
        assert replay.is_complete <= (kept == missed), "a gap that nobody is told of"
        within = len(missed) <= keep.messages and all(one.at >= born for one in said)
        if within and self._has_room:
            assert replay.is_complete, "it could have been whole"
        self.given[name].add(replay.top.offset)

    @rule(name=channel, offset=st.integers(0, 50), epoch=st.sampled_from(["e", "o"]))
    def replay_from_anywhere(self, name: str, offset: int, epoch: str) -> None:
        replay = self.shelf.replay(name, KEEPS[name], Position(epoch, offset))
        if epoch != "e":
            assert (replay.messages, replay.is_complete) == ((), False)
        elif replay.is_complete:
            assert [body for _, body in replay.messages] == [
                one.data for one in self.all[name] if one.offset > offset
            ]

    @invariant()
    def it_costs_what_it_says(self) -> None:
        kept = self.shelf._channels
        assert self.shelf.size == sum(
            CHANNEL_OVERHEAD
            + len(name)
            + sum(len(body) + OVERHEAD for _, _, body in one.messages)
            for name, one in kept.items()
        )
        assert self.shelf.size <= (self.max_bytes or self.shelf.size)
        assert len(kept) <= self.max_channels

    def _put(self, name: str, text: bytes) -> Position:
        return self.shelf.append(name, text, KEEPS[name])

    @property
    def _has_room(self) -> bool:
        return not self.max_bytes and self.max_channels >= len(KEEPS)

    def _last(self, name: str) -> int:
        return max((one.offset for one in self.all[name]), default=0)


class SmallShelves(Shelves):
    """Beyond its bytes most of the time."""

    max_bytes = 4 * CHANNEL_OVERHEAD + 3 * OVERHEAD


class FewChannels(Shelves):
    """Beyond its channels most of the time."""

    max_channels = 2


class OneRow(Shelves):
    """Channels share one row of offsets, as a stream that is read has them."""

    def __init__(self) -> None:
        super().__init__()
        self.row = 5
        self.shelf.forget_before(self.row)

    def _put(self, name: str, text: bytes) -> Position:
        self.row += 1
        return self.shelf.put(name, self.row, text, KEEPS[name])

    @rule(others=st.integers(0, 3))
    def read_on(self, others: int) -> None:
        """Past what is none of these channels'."""
        self.row += others
        self.shelf.know_up_to(self.row)


class SmallRow(OneRow):
    """Beyond its bytes most of the time."""

    max_bytes = 4 * CHANNEL_OVERHEAD + 3 * OVERHEAD


for machine in (Shelves, SmallShelves, FewChannels, OneRow, SmallRow):
    machine.TestCase.settings = settings(
        max_examples=60, stateful_step_count=40, deadline=None
    )
TestShelves = Shelves.TestCase
TestSmallShelves = SmallShelves.TestCase
TestFewChannels = FewChannels.TestCase
TestOneRow = OneRow.TestCase
TestSmallRow = SmallRow.TestCase
