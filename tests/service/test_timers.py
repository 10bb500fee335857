"""One timer for many deadlines of the same length."""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Callable
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from authws.service.protocols.timers import SharedTimer, Timers

WAIT = 10.0


class Loop:
    """The part of an event loop that a timer needs, with a clock moved by hand."""

    def __init__(self) -> None:
        self.now = 0.0
        self.timers: list[tuple[float, int, Callable[[], object]]] = []
        self.most_timers = 0
        self.failures: list[Any] = []

    def time(self) -> float:
        return self.now

    def call_at(self, when: float, callback: Callable[[], object]) -> object:
        heapq.heappush(self.timers, (when, len(self.timers), callback))
        self.most_timers = max(self.most_timers, len(self.timers))
        return object()

    def call_later(self, wait: float, callback: Callable[[], object]) -> object:
        return self.call_at(self.now + wait, callback)

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        self.failures.append(context["exception"])

    def advance(self, seconds: float) -> None:
        until = self.now + seconds
        while self.timers and self.timers[0][0] <= until:
            when, _, callback = heapq.heappop(self.timers)
            self.now = max(self.now, when)
            callback()
        self.now = until


class Peer:
    def __init__(self, loop: Loop) -> None:
        self.loop = loop
        self.called_at: list[float] = []

    def due(self) -> None:
        self.called_at.append(self.loop.now)


@pytest.fixture
def loop() -> Loop:
    return Loop()


def timer(loop: Loop) -> SharedTimer:
    return SharedTimer(cast(asyncio.AbstractEventLoop, loop), WAIT)


def test_each_is_called_in_its_time_and_once(loop: Loop) -> None:
    shared, one, two = timer(loop), Peer(loop), Peer(loop)
    shared.start(one.due)
    loop.advance(3)
    shared.start(two.due)
    loop.advance(100)
    assert (one.called_at, two.called_at) == ([WAIT], [3 + WAIT])
    assert len(shared) == 0
    assert loop.timers == []


def test_who_was_stopped_is_not_called(loop: Loop) -> None:
    shared, one, two = timer(loop), Peer(loop), Peer(loop)
    shared.start(one.due)
    shared.start(two.due)
    shared.stop(one.due)
    shared.stop(one.due)
    loop.advance(100)
    assert (one.called_at, two.called_at) == ([], [WAIT])


def test_a_second_start_begins_anew(loop: Loop) -> None:
    shared, one, two = timer(loop), Peer(loop), Peer(loop)
    shared.start(one.due)
    shared.start(two.due)
    loop.advance(9)
    shared.start(one.due)
    loop.advance(100)
    assert (one.called_at, two.called_at) == ([9 + WAIT], [WAIT])


def test_one_may_stop_the_next_or_start_itself(loop: Loop) -> None:
    shared, other = timer(loop), Peer(loop)
    called: list[float] = []

    def again() -> None:
        called.append(loop.now)
        shared.stop(other.due)
        if len(called) < 3:
            shared.start(again)

    shared.start(again)
    shared.start(other.due)
    loop.advance(100)
    assert called == [WAIT, 2 * WAIT, 3 * WAIT]
    assert other.called_at == []


def test_those_who_start_themselves_have_one_timer_together(loop: Loop) -> None:
    shared = timer(loop)
    called: list[tuple[str, float]] = []

    def start(name: str) -> None:
        def again() -> None:
            called.append((name, loop.now))
            shared.start(again)

        shared.start(again)

    for name in "abc":
        start(name)
        loop.advance(3)
    loop.advance(41)
    assert [at for name, at in called if name == "b"] == [13.0, 23.0, 33.0, 43.0]
    assert len(called) == 5 + 4 + 4
    assert loop.most_timers == 1


def test_one_that_fails_costs_the_others_nothing(loop: Loop) -> None:
    shared, other = timer(loop), Peer(loop)

    def fails() -> None:
        raise RuntimeError("upside down")

    shared.start(fails)
    shared.start(other.due)
    loop.advance(100)
    assert other.called_at == [WAIT]
    assert [str(failure) for failure in loop.failures] == ["upside down"]


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["start", "stop", "wait"]),
            st.integers(0, 4),
            st.integers(0, 15),
        ),
        max_size=60,
    )
)
def test_it_is_what_a_timer_for_each_would_be(
    steps: list[tuple[str, int, int]],
) -> None:
    loop = Loop()
    shared = timer(loop)
    peers = [Peer(loop) for _ in range(5)]
    due: dict[int, float] = {}
    expected: list[list[float]] = [[] for _ in peers]
    for what, which, seconds in steps:
        if what == "start":
            shared.start(peers[which].due)
            due[which] = loop.now + WAIT
        elif what == "stop":
            shared.stop(peers[which].due)
            due.pop(which, None)
        else:
            loop.advance(seconds)
            for one in [one for one, at in due.items() if at <= loop.now]:
                expected[one].append(due.pop(one))
    assert [peer.called_at for peer in peers] == expected
    assert len(shared) == len(due)
    assert loop.most_timers <= 1


def test_a_server_has_its_timers_and_a_new_loop_new_ones() -> None:
    class Config:
        ws_ping_interval = 20.0

    config = cast(Any, Config())
    one, two = cast(Any, Loop()), cast(Any, Loop())
    assert Timers.of(config, one) is Timers.of(config, one)
    assert Timers.of(config, one) is not Timers.of(config, two)
