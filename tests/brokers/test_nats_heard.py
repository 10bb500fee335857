"""What a subscriber of NATS knows, held against a stream that is known whole."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st

from authws.brokers.nats.heard import MAX_STRETCHES, Heard

MOST = 3
"""Messages of a channel that are kept."""


@dataclass
class Model:
    """A stream that drops what is first of it, and what is first of a channel; and one
    subscriber of the channel ``a``."""

    last: int = 0
    first: int = 1
    kept: dict[int, str] = field(default_factory=dict)
    ever: list[int] = field(default_factory=list)
    """Every number that channel ``a`` got."""
    told: list[bool] = field(default_factory=list)
    lost: list[int] = field(default_factory=list)
    """What was not heard since the last that was."""
    heard: Heard = field(default_factory=Heard)
    is_connected: bool = True
    is_told: bool = False
    """Whether the subscriber was told of an interruption, and reads again anyway what
    came before the next that it hears."""
    confirmed: int = 0

    def publish(self, channel: str, *, arrives: bool = True) -> None:
        before = max((n for n, of in self.kept.items() if of == channel), default=0)
        self.last += 1
        self.kept[self.last] = channel
        mine = [n for n, of in self.kept.items() if of == channel]
        for number in mine[:-MOST]:
            del self.kept[number]
        if channel != "a":
            return
        self.ever.append(self.last)
        if arrives and self.is_connected:
            is_next = self.heard.take(self.last, before)
            # a gap is seen, unless all of it is kept no longer
            if self.lost and before in self.lost:
                assert not is_next
            if not self.lost:
                assert is_next
            self.lost.clear()
            self.is_told = False
        elif self.is_connected and not self.is_told:
            self.lost.append(self.last)

    def drop(self, count: int) -> None:
        """Age and size take what is first."""
        for number in sorted(self.kept)[:count]:
            del self.kept[number]

    def disconnect(self) -> None:
        if self.is_connected:
            self.is_connected, self.is_told = False, True
            self.heard.interrupt(self.confirmed)
            self.lost.clear()

    def connect(self) -> None:
        self.is_connected = True

    def probe(self) -> None:
        if self.is_connected and not self.lost:
            self.confirmed = self.last

    @property
    def front(self) -> int:
        return min(self.kept, default=self.last + 1)

    def replay(self, since: int) -> tuple[bool, bool]:
        """Return what is said of it, and what is so."""
        found = sorted(n for n, of in self.kept.items() if of == "a" and n > since)
        said = self.heard.is_whole(since, found, MOST, self.front)
        return said, found == [number for number in self.ever if number > since]

    def know(self) -> None:
        if self.is_connected:
            self.heard.know(self.last)
            self.is_told = False


STEP = st.sampled_from(
    [
        *[("publish", "a")] * 5,
        *[("publish", "b")] * 3,
        *[("drop", count) for count in (1, 1, 2, 4)],
        *[(name,) for name in ("disconnect", "connect", "connect", "probe", "know")],
    ]
)
STEPS = st.lists(STEP, max_size=30)
Steps = Sequence[tuple[object, ...]]


@settings(max_examples=1000)
@given(steps=STEPS)
def test_it_never_says_that_a_part_is_the_whole(steps: Steps) -> None:
    model = Model()
    for name, *rest in steps:
        getattr(model, str(name))(*rest)
        for since in range(model.last + 1):
            said, is_so = model.replay(since)
            assert is_so or not said, since


@settings(max_examples=1000)
@given(
    steps=STEPS,
    losses=st.lists(st.booleans(), max_size=30),
)
def test_a_loss_is_seen_with_the_next_message(steps: Steps, losses: list[bool]) -> None:
    """The assertions are in the model."""
    model = Model()
    model.know()
    for (name, *rest), is_lost in zip(steps, losses, strict=False):
        if name == "publish":
            model.publish(str(rest[0]), arrives=not is_lost)
        else:
            getattr(model, str(name))(*rest)


def test_a_quiet_channel_is_whole_for_who_listened() -> None:
    heard = Heard()
    assert heard.take(5, 0)
    assert heard.is_whole(5, [], MOST, first=900)
    assert not Heard().is_whole(5, [], MOST, first=900)
    assert heard.take(1000, 0)
    assert heard.is_whole(5, [1000], MOST, first=900)
    assert heard.is_whole(700, [1000], MOST, first=900)
    assert not heard.is_whole(4, [1000], MOST, first=900)
    assert not heard.is_whole(5, [], MOST, first=1100)


def test_what_was_heard_before_an_interruption_is_still_known() -> None:
    heard = Heard()
    heard.take(5, 0)
    heard.interrupt(800)
    assert heard.is_whole(5, [], MOST, first=801)
    assert not heard.is_whole(5, [], MOST, first=802)
    heard.take(950, 0)
    assert heard.is_whole(5, [950], MOST, first=801)
    assert not heard.is_whole(5, [950], MOST, first=802)


def test_a_message_that_was_under_way_is_no_gap() -> None:
    heard = Heard()
    heard.know(10)
    assert heard.take(8, 7)
    assert heard.take(12, 0)
    assert heard.is_whole(10, [12], MOST, first=12)
    # whether 9 and 10 were the channel's is not known
    assert not heard.is_whole(8, [12], MOST, first=12)


def test_what_was_dropped_while_it_was_read_is_not_whole() -> None:
    heard = Heard()
    heard.take(5, 0)
    heard.take(10, 5)
    assert heard.is_whole(5, [10, 11, 12], MOST, first=1)
    assert not heard.is_whole(5, [10, 12, 13, 14], MOST, first=1)


def test_it_remembers_no_more_than_it_may() -> None:
    heard = Heard()
    for number in range(10, 1000, 10):
        heard.take(number, 0)
    oldest = 990 - 10 * (MAX_STRETCHES - 1)
    assert heard.is_whole(oldest, [oldest + 10], MOST, first=oldest + 10)
    assert not heard.is_whole(oldest - 10, [oldest], MOST, first=oldest)


def test_what_is_found_is_believed_before_what_was_heard() -> None:
    """A number may have been forged: then something is there where nothing was."""
    heard = Heard()
    heard.take(5, 0)
    heard.take(50, 5)
    assert heard.is_whole(5, [50], MOST, first=50)
    assert not heard.is_whole(5, [20, 50], MOST, first=20)
    assert heard.is_whole(5, [20, 50], MOST, first=6)
    heard.forget()
    assert heard.last == 0
    assert not heard.is_whole(5, [50], MOST, first=50)
