"""A deadline on a clock moved by hand: the notice once, the end once, both on time."""

from __future__ import annotations

import pytest

from authws.live.deadline import MAX_WAIT, Deadline
from tests.manual_clock import ManualClock


class Watched:
    """A deadline that writes down when it called, in seconds from the start."""

    def __init__(self, *, lead: float = 0.0, with_notice: bool = True) -> None:
        self.clock = ManualClock()
        self.start = self.clock.now()
        self.calls: list[tuple[str, float]] = []
        self.deadline = Deadline(
            self.clock,
            due=lambda: self._note("due"),
            notice=(lambda: self._note("notice")) if with_notice else None,
            lead=lead,
        )

    def _note(self, what: str) -> None:
        self.calls.append((what, self.clock.elapsed))

    def set(self, seconds: float) -> None:
        """Set it to so many seconds of wall-clock time after the start."""
        self.deadline.set(self.start + seconds)

    async def pass_to(self, elapsed: float) -> list[tuple[str, float]]:
        """Let time pass up to a moment; return all calls so far."""
        await self.clock.advance(elapsed - self.clock.elapsed)
        return self.calls


# --------------------------------------------------------------------------- in order


async def test_it_is_due_once_at_its_moment_and_not_before() -> None:
    watched = Watched()
    watched.set(10)
    assert await watched.pass_to(9.999) == []
    assert await watched.pass_to(1_000) == [("due", 10)]
    assert watched.clock.waiting == 0


async def test_the_notice_comes_once_ahead_of_the_end() -> None:
    watched = Watched(lead=60)
    watched.set(900)
    assert await watched.pass_to(2_000) == [("notice", 840), ("due", 900)]


@pytest.mark.parametrize(("life", "notice"), [(121, 61), (120, 60), (20, 10), (1, 0.5)])
async def test_the_notice_of_a_short_life_comes_at_half_of_it(
    life: float, notice: float
) -> None:
    watched = Watched(lead=60)
    watched.set(life)
    assert await watched.pass_to(200) == [("notice", notice), ("due", life)]


@pytest.mark.parametrize(("lead", "with_notice"), [(0, True), (60, False)])
async def test_without_a_lead_or_a_notice_there_is_none(
    lead: float, with_notice: bool
) -> None:
    watched = Watched(lead=lead, with_notice=with_notice)
    watched.set(100)
    assert await watched.pass_to(200) == [("due", 100)]


async def test_a_moment_that_is_past_is_due_at_once() -> None:
    watched = Watched(lead=60)
    watched.set(-5)
    assert await watched.pass_to(0) == [("due", 0)]


async def test_years_are_waited_for_in_days() -> None:
    watched = Watched()
    watched.set(10 * MAX_WAIT + 7)
    assert max(timer.at for timer in watched.clock._timers) == MAX_WAIT
    assert await watched.pass_to(20 * MAX_WAIT) == [("due", 10 * MAX_WAIT + 7)]


# ------------------------------------------------------------------------ moved, ended


async def test_set_moves_both_and_leaves_one_timer() -> None:
    watched = Watched(lead=10)
    watched.set(100)
    await watched.pass_to(50)
    watched.set(200)
    assert watched.clock.waiting == 1
    assert await watched.pass_to(500) == [("notice", 190), ("due", 200)]


async def test_set_after_the_notice_brings_another() -> None:
    watched = Watched(lead=10)
    watched.set(100)
    assert await watched.pass_to(95) == [("notice", 90)]
    watched.set(200)
    assert await watched.pass_to(500) == [("notice", 90), ("notice", 190), ("due", 200)]


async def test_set_may_bring_it_nearer() -> None:
    watched = Watched(lead=10)
    watched.set(1_000)
    await watched.pass_to(50)
    watched.set(60)
    assert await watched.pass_to(2_000) == [("notice", 55), ("due", 60)]


@pytest.mark.parametrize("moment", [0, 92])
async def test_cancelled_it_calls_nobody(moment: float) -> None:
    watched = Watched(lead=10)
    watched.set(100)
    before = list(await watched.pass_to(moment))
    watched.deadline.cancel()
    watched.deadline.cancel()
    watched.deadline.check()
    watched.deadline.enforce()
    assert await watched.pass_to(1_000) == before
    assert watched.clock.waiting == 0


async def test_never_set_it_waits_for_nothing() -> None:
    watched = Watched(lead=10)
    watched.deadline.check()
    watched.deadline.enforce()
    watched.deadline.cancel()
    assert await watched.pass_to(1_000) == []


async def test_it_can_be_set_again_after_it_was_due() -> None:
    watched = Watched()
    watched.set(10)
    await watched.pass_to(20)
    watched.set(30)
    assert await watched.pass_to(100) == [("due", 10), ("due", 30)]


async def test_what_is_due_may_set_it_again() -> None:
    clock = ManualClock()
    moments = [clock.now() + 30, clock.now() + 20]
    called: list[float] = []

    def again() -> None:
        called.append(clock.elapsed)
        if moments:
            deadline.set(moments.pop())

    deadline = Deadline(clock, due=again)
    deadline.set(clock.now() + 10)
    await clock.advance(100)
    assert called == [10, 20, 30]


# ------------------------------------------------------------------ the wall clock set


async def test_a_clock_set_forward_is_noticed_when_it_is_asked_again() -> None:
    watched = Watched(lead=10)
    watched.set(3_600)
    await watched.pass_to(5)
    watched.clock.wall_offset = 3_600
    watched.deadline.check()
    assert await watched.pass_to(10_000) == [("due", 5)]


async def test_a_clock_set_forward_into_the_lead_brings_the_notice_now() -> None:
    watched = Watched(lead=60)
    watched.set(3_600)
    await watched.pass_to(5)
    watched.clock.wall_offset = 3_545
    watched.deadline.check()
    assert await watched.pass_to(10_000) == [("notice", 5), ("due", 55)]


async def test_a_clock_set_back_ends_nothing_early() -> None:
    watched = Watched(lead=10)
    watched.set(100)
    watched.clock.wall_offset = -50
    assert await watched.pass_to(1_000) == [("notice", 140), ("due", 150)]


async def test_a_clock_set_back_after_the_notice_brings_no_second() -> None:
    watched = Watched(lead=10)
    watched.set(100)
    await watched.pass_to(95)
    watched.clock.wall_offset = -50
    watched.deadline.check()
    assert await watched.pass_to(1_000) == [("notice", 90), ("due", 150)]


async def test_checking_changes_nothing_while_the_clock_is_right() -> None:
    watched = Watched(lead=10)
    watched.set(100)
    for moment in range(0, 300, 7):
        await watched.pass_to(moment)
        watched.deadline.check()
        assert watched.clock.waiting <= 1
    assert watched.calls == [("notice", 90), ("due", 100)]


# --------------------------------------------------------------------- enforced by use


async def test_enforced_it_does_not_wait_for_a_timer_that_is_late() -> None:
    watched = Watched(lead=10)
    watched.set(100)
    watched.clock.elapsed = 100  # the event loop is busy: no timer was called
    watched.deadline.enforce()
    assert watched.calls == [("due", 100)]
    assert await watched.pass_to(1_000) == [("due", 100)]


async def test_enforced_before_its_moment_it_does_nothing() -> None:
    watched = Watched(lead=10)
    watched.set(100)
    watched.clock.elapsed = 99.9
    watched.deadline.enforce()
    assert watched.calls == []
