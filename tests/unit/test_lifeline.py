"""A connection that is kept up, on a clock moved by hand."""

from __future__ import annotations

import asyncio
import logging
import math
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from itertools import pairwise

import pytest

from authws.brokers.lifeline import (
    CONNECT_TIMEOUT,
    FIRST_DELAY,
    LATE,
    LONGEST_DELAY,
    PROBE_EVERY,
    PROBE_TIMEOUT,
    Lifeline,
    backoff,
)
from authws.exceptions import ConfigurationError, UnavailableError
from tests.manual_clock import ManualClock, settle

URL = "redis://user:hunter2@10.0.0.1:6379"


class Client:
    """Somebody's client: does what a test tells it to, and writes down what it did."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.calls: list[tuple[str, float]] = []
        self.failure: BaseException | None = None
        """What ``connect`` raises."""
        self.probe_failure: BaseException | None = None
        self.disconnect_failure: BaseException | None = None
        self.hangs: set[str] = set()
        self.lifeline = Lifeline(
            "Redis at h:6379",
            connect=self._doing("connect", lambda: self.failure),
            probe=self._doing("probe", lambda: self.probe_failure),
            disconnect=self._doing("disconnect", lambda: self.disconnect_failure),
            clock=self.clock,
        )

    def _doing(
        self, name: str, failure: Callable[[], BaseException | None]
    ) -> Callable[[], Awaitable[None]]:
        async def do() -> None:
            self.calls.append((name, self.clock.elapsed))
            if name in self.hangs:
                await asyncio.Event().wait()
            await asyncio.sleep(0)
            if (error := failure()) is not None:
                raise error

        return do

    def times(self, name: str) -> list[float]:
        return [at for call, at in self.calls if call == name]

    async def advance(self, seconds: float) -> None:
        await self.clock.advance(seconds)

    @property
    def is_up(self) -> bool:
        return self.lifeline.is_up


@asynccontextmanager
async def client(**attributes: object) -> AsyncIterator[Client]:
    """At the end nothing may be left of it."""
    before = asyncio.all_tasks()
    made = Client()
    for name, value in attributes.items():
        setattr(made, name, value)
    yield made
    made.hangs = set()
    await made.lifeline.stop()
    assert not made.is_up
    assert asyncio.all_tasks() == before
    assert made.clock.waiting == 0


@pytest.fixture
def longest(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chance has the longest of its delays."""
    monkeypatch.setattr("random.random", lambda: 1.0)


# ------------------------------------------------------------------------------ backoff


def test_delays_double_up_to_the_longest_and_stay_there(longest: None) -> None:
    delays = [backoff(attempt) for attempt in range(100)]
    assert delays[0] == FIRST_DELAY
    assert delays[:7] == [FIRST_DELAY * 2**n for n in range(7)]
    assert delays[7:] == [LONGEST_DELAY] * 93
    assert backoff(10**9) == LONGEST_DELAY


@pytest.mark.parametrize("attempt", [0, 3, 50])
def test_half_of_a_delay_is_chance(
    attempt: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = min(LONGEST_DELAY, FIRST_DELAY * 2**attempt)
    delays = [backoff(attempt) for _ in range(2000)]
    assert full / 2 <= min(delays) < full * 0.55
    assert full * 0.95 < max(delays) <= full
    assert len(set(delays)) > 1900
    monkeypatch.setattr("random.random", lambda: 0.0)
    assert backoff(attempt) == full / 2


# ------------------------------------------------------------------------ the first try


async def test_start_returns_once_it_is_connected() -> None:
    async with client() as one:
        await one.lifeline.start()
        assert one.is_up
        assert one.calls == [("connect", 0)]


async def test_start_returns_when_it_is_not_and_goes_on_trying() -> None:
    async with client(failure=OSError("no")) as one:
        await one.lifeline.start()
        assert not one.is_up
        assert one.calls == [("connect", 0), ("disconnect", 0)]
        one.failure = None
        await one.advance(FIRST_DELAY)
        assert one.is_up


async def test_start_waits_no_longer_than_connecting_may_take() -> None:
    async with client(hangs={"connect"}) as one:
        starting = asyncio.ensure_future(one.lifeline.start())
        await one.advance(CONNECT_TIMEOUT - 0.01)
        assert not starting.done()
        await one.advance(0.02)
        assert starting.done()
        assert one.calls[:2] == [("connect", 0), ("disconnect", CONNECT_TIMEOUT)]


async def test_what_can_never_work_is_raised_and_not_tried_again() -> None:
    refusal = ConfigurationError("no such option")
    async with client(failure=refusal) as one:
        with pytest.raises(ConfigurationError, match="no such option"):
            await one.lifeline.start()
        await one.advance(60)
        assert one.calls == [("connect", 0), ("disconnect", 0)]


async def test_what_worked_once_is_tried_again_whatever_it_says() -> None:
    async with client() as one:
        await one.lifeline.start()
        one.failure = ConfigurationError("the broker was set up anew")
        one.lifeline.lose("gone")
        await one.advance(60)
        one.failure = None
        await one.advance(LONGEST_DELAY)
        assert one.is_up


# ------------------------------------------------------------------------- trying again


async def test_it_is_tried_again_for_ever_with_growing_delays(longest: None) -> None:
    async with client(failure=OSError("no")) as one:
        await one.lifeline.start()
        await one.advance(3600)
        times = one.times("connect")
        delays = [round(later - at, 6) for at, later in pairwise(times)]
        assert delays[:8] == [0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0]
        assert set(delays[8:]) == {LONGEST_DELAY}
        assert len(delays) > 700
        assert len(one.times("disconnect")) == len(times)


async def test_after_a_loss_it_is_tried_soon_and_not_at_once(longest: None) -> None:
    async with client() as one:
        await one.lifeline.start()
        await one.advance(LONGEST_DELAY)
        one.lifeline.lose("gone")
        assert not one.is_up
        await one.advance(FIRST_DELAY * 0.99)
        assert len(one.times("connect")) == 1
        assert len(one.times("disconnect")) == 1
        await one.advance(FIRST_DELAY * 0.02)
        assert len(one.times("connect")) == 2
        assert one.is_up


async def test_one_that_is_lost_again_and_again_is_not_hurried(longest: None) -> None:
    """Such as to a broker that lets everybody in, and throws them out."""
    async with client() as one:
        await one.lifeline.start()
        for _ in range(2000):
            one.lifeline.lose("thrown out")
            await one.advance(0.05)
        assert len(one.times("connect")) < 100 / LONGEST_DELAY + 10
        # and once it holds for a while, a loss is mended soon again
        await one.advance(LONGEST_DELAY * 2)
        one.lifeline.lose("gone")
        await one.advance(FIRST_DELAY)
        assert one.is_up


@pytest.mark.parametrize("error", [OSError("no"), TimeoutError(), ValueError("x")])
async def test_whatever_is_raised_is_a_failure_and_no_end(error: Exception) -> None:
    async with client(failure=error, disconnect_failure=error) as one:
        await one.lifeline.start()
        await one.advance(10)
        assert len(one.times("connect")) > 3
        one.failure = None
        await one.advance(LONGEST_DELAY)
        assert one.is_up


@pytest.mark.parametrize("where", ["failure", "probe_failure", "disconnect_failure"])
async def test_a_cancellation_of_the_clients_own_is_a_failure_and_no_end(
    where: str,
) -> None:
    """A client may cancel what waits on its connection when that is lost."""
    async with client() as one:
        await one.lifeline.start()
        setattr(one, where, asyncio.CancelledError())
        one.lifeline.lose("gone")
        await one.advance(10)
        setattr(one, where, None)
        await one.advance(LONGEST_DELAY * 2)
        assert one.is_up


# ------------------------------------------------------------------------------ probing


async def test_it_is_probed_at_an_interval() -> None:
    async with client() as one:
        await one.lifeline.start()
        await one.advance(PROBE_EVERY * 4.5)
        assert one.times("probe") == [PROBE_EVERY * n for n in (1, 2, 3, 4)]
        assert one.is_up


async def test_a_probe_that_fails_is_a_loss() -> None:
    async with client(probe_failure=OSError("gone")) as one:
        await one.lifeline.start()
        await one.advance(PROBE_EVERY * 0.99)
        assert one.is_up
        await one.advance(PROBE_EVERY * 0.01)
        assert [name for name, _ in one.calls] == ["connect", "probe", "disconnect"]
        one.probe_failure = None
        await one.advance(FIRST_DELAY)
        assert one.is_up


async def test_a_probe_that_hangs_is_a_loss_in_time() -> None:
    async with client(hangs={"probe"}) as one:
        await one.lifeline.start()
        await one.advance(PROBE_EVERY + PROBE_TIMEOUT - 0.01)
        assert one.is_up
        await one.advance(0.01)
        assert one.times("disconnect") == [PROBE_EVERY + PROBE_TIMEOUT]


@pytest.mark.parametrize(("late", "is_up"), [(LATE, False), (LATE + 0.01, True)])
async def test_who_stood_still_itself_does_not_take_the_other_end_for_gone(
    late: float, is_up: bool
) -> None:
    async with client(hangs={"probe"}) as one:
        await one.lifeline.start()
        await one.advance(PROBE_EVERY)
        one.clock.elapsed += PROBE_TIMEOUT + late  # and no timer was called meanwhile
        await one.advance(0)
        assert one.is_up is is_up


async def test_letting_go_that_hangs_keeps_nobody_from_trying_again() -> None:
    async with client(hangs={"disconnect"}) as one:
        await one.lifeline.start()
        one.lifeline.lose("gone")
        await one.advance(PROBE_TIMEOUT + LONGEST_DELAY)
        assert one.is_up


# ------------------------------------------------------------------------------- losing


async def test_a_loss_that_is_told_twice_is_one(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with client() as one:
        await one.lifeline.start()
        one.lifeline.lose("the first word")
        one.lifeline.lose("another word")
        await one.advance(1)
        assert len(one.times("connect")) == 2
        assert "the first word" in caplog.text
        assert "another word" not in caplog.text


async def test_a_loss_before_and_after_its_life_is_nothing() -> None:
    async with client() as one:
        one.lifeline.lose("nothing was there")
        await one.lifeline.start()
        assert one.is_up
        await one.lifeline.stop()
        one.lifeline.lose("nothing is there")
        await one.advance(60)
        assert len(one.times("connect")) == 1


# ----------------------------------------------------------------------------- stopping


async def test_stop_before_start_lets_go_and_ends() -> None:
    async with client() as one:
        await one.lifeline.stop()
        assert one.calls == [("disconnect", 0)]


@pytest.mark.parametrize("stage", ["connecting", "waiting", "up", "probing", "leaving"])
async def test_stop_at_any_stage_leaves_nothing_and_tries_nothing(stage: str) -> None:
    async with client() as one:
        if stage == "connecting":
            one.hangs = {"connect"}
            starting = asyncio.ensure_future(one.lifeline.start())
            await settle()
        else:
            one.failure = OSError("no") if stage == "waiting" else None
            await one.lifeline.start()
            starting = asyncio.ensure_future(asyncio.sleep(0))
        if stage == "probing":
            one.hangs = {"probe"}
            await one.advance(PROBE_EVERY)
        elif stage == "leaving":
            one.hangs = {"disconnect"}
            one.lifeline.lose("gone")
            await settle()
        one.hangs -= {"disconnect"}
        before = len(one.times("connect"))
        await one.lifeline.stop()
        await settle()
        assert starting.done()  # whoever waited for the first try waits no more
        assert one.calls[-1][0] == "disconnect"
        await one.advance(60)
        assert len(one.times("connect")) == before


async def test_stop_waits_no_longer_than_letting_go_may_take() -> None:
    async with client(hangs={"disconnect"}) as one:
        await one.lifeline.start()
        stopping = asyncio.ensure_future(one.lifeline.stop())
        await one.advance(PROBE_TIMEOUT - 0.01)
        assert not stopping.done()
        await one.advance(0.02)
        assert stopping.done()


async def test_whoever_starts_it_may_be_cancelled() -> None:
    async with client(hangs={"connect"}) as one:
        starting = asyncio.ensure_future(one.lifeline.start())
        await settle()
        starting.cancel()
        await asyncio.gather(starting, return_exceptions=True)


# ------------------------------------------------------------------------------ the log


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.name == "authws"]


async def test_a_connection_that_works_is_not_worth_a_word(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.DEBUG):
        async with client() as one:
            await one.lifeline.start()
            await one.advance(60)
    assert lines(caplog) == []


async def test_an_outage_is_told_once_however_long_it_is(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with client(failure=ConnectionRefusedError(111, "Connection refused")) as one:
        await one.lifeline.start()
        await one.advance(600)
        unreachable = (
            "Redis at h:6379 cannot be reached: Connection refused; trying again"
        )
        assert lines(caplog) == [unreachable]
        one.failure = None
        await one.advance(LONGEST_DELAY)
        assert lines(caplog)[1:] == ["Redis at h:6379 is reached again"]
        one.failure = ConnectionRefusedError(111, "Connection refused")
        one.lifeline.lose("the other end closed")
        await one.advance(600)
        one.failure = None
        await one.advance(LONGEST_DELAY)
        assert lines(caplog)[2:] == [
            "Redis at h:6379 was lost: the other end closed",
            unreachable,
            "Redis at h:6379 is reached again",
        ]
    assert {r.levelno for r in caplog.records} == {logging.WARNING}


class ClientError(Exception):
    """As some client's, that quotes where it wanted to go."""


class SystemLikeError(OSError):
    """As some client's, that is one of the system's in form."""


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (ConnectionRefusedError(111, "Connection refused"), "Connection refused"),
        (socket.gaierror(-2, "Name or service not known"), "Name or service not known"),
        (ssl.SSLError(1, "[SSL] certificate verify failed"), "certificate verify"),
        (TimeoutError(), "it does not answer"),
        (OSError("no"), "OSError"),
        (ClientError(f"cannot connect to {URL}"), "ClientError"),
        (SystemLikeError(1, f"cannot connect to {URL}"), "SystemLikeError"),
        (SystemLikeError(1, "cannot connect to user:hunter2@h"), "SystemLikeError"),
        (SystemLikeError(1, ""), "SystemLikeError"),
        (UnavailableError("a sentence of our own"), "a sentence of our own"),
    ],
)
@pytest.mark.parametrize("how", ["connect", "probe", "lose"])
async def test_what_went_wrong_is_told_without_a_clients_own_words(
    error: Exception, told: str, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with client() as one:
        if how == "connect":
            one.failure = error
        elif how == "probe":
            one.probe_failure = error
        await one.lifeline.start()
        if how == "lose":
            one.lifeline.lose(error)
        await one.advance(PROBE_EVERY)
    assert told in lines(caplog)[0]
    assert "hunter2" not in caplog.text


# ------------------------------------------------------------ with functions of its own


async def nothing() -> None:
    pass


def failing(*errors: Exception) -> Callable[[], Awaitable[None]]:
    """A ``connect`` that fails so often, and then works."""
    left = list(errors)

    async def connect() -> None:
        if left:
            raise left.pop(0)

    return connect


def lifeline(
    connect: Callable[[], Awaitable[None]],
    clock: ManualClock,
    probe: Callable[[], Awaitable[None]] = nothing,
) -> Lifeline:
    return Lifeline("it", connect=connect, probe=probe, disconnect=nothing, clock=clock)


async def test_each_reason_is_said_once_in_an_outage(
    caplog: pytest.LogCaptureFixture,
) -> None:
    clock = ManualClock()
    away, words = (
        OSError(111, "Connection refused"),
        UnavailableError("it is a replica"),
    )
    line = lifeline(failing(away, away, words, away, words), clock)
    with caplog.at_level(logging.WARNING):
        await line.start()
        assert len(caplog.records) == 1
        await clock.advance(60)
        assert line.is_up
    assert [record.getMessage() for record in caplog.records] == [
        "it cannot be reached: Connection refused; trying again",
        "it cannot be reached: it is a replica; trying again",
        "it is reached again",
    ]
    await line.stop()


async def test_what_could_not_be_found_out_at_the_start_is_said_later(
    caplog: pytest.LogCaptureFixture,
) -> None:
    clock = ManualClock()
    line = lifeline(failing(OSError(), ConfigurationError("no cluster")), clock)
    await line.start()
    await clock.advance(60)
    assert line.is_up
    assert "no cluster" in caplog.text
    await line.stop()


async def test_it_was_heard_last_before_the_question_that_nobody_answered() -> None:
    clock = ManualClock()
    is_answered = True

    async def probe() -> None:
        if not is_answered:
            await clock.sleep(PROBE_TIMEOUT - 0.1)
            raise OSError

    line = lifeline(nothing, clock, probe)
    assert line.heard_at == -math.inf
    await line.start()
    assert line.heard_at == clock.monotonic()
    await clock.advance(PROBE_EVERY * 3)
    heard_at = line.heard_at
    assert heard_at >= clock.monotonic() - PROBE_EVERY
    is_answered = False
    await clock.advance(PROBE_EVERY + PROBE_TIMEOUT / 2)
    assert (line.is_up, line.heard_at) == (True, heard_at)
    await line.stop()


async def test_it_ends_though_a_client_swallows_that_it_is_to_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("authws.brokers.lifeline.PROBE_TIMEOUT", 0.1)
    swallowed = 0

    async def connect() -> None:
        nonlocal swallowed
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            swallowed += 1

    line = Lifeline("it", connect=connect, probe=nothing, disconnect=nothing)
    starting = asyncio.ensure_future(line.start())
    await asyncio.sleep(0.01)
    async with asyncio.timeout(20):
        await line.stop()
        await starting
    assert swallowed == 1
    assert not line.is_up
