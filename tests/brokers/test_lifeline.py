"""A connection that is kept up: what its owner and its operator are told."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Awaitable, Callable

import pytest

from authws.brokers import lifeline as module
from authws.brokers.lifeline import Lifeline
from authws.exceptions import ConfigurationError, UnavailableError
from tests.manual_clock import ManualClock, settle


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


async def test_what_can_never_work_is_raised_at_the_start() -> None:
    clock = ManualClock()
    line = lifeline(failing(ConfigurationError("no cluster")), clock)
    with pytest.raises(ConfigurationError, match="no cluster"):
        await line.start()
    await settle()
    assert not line.is_up
    assert not clock.waiting
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


@pytest.fixture
def _quick_probes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PROBE_EVERY", 0.01)
    monkeypatch.setattr(module, "PROBE_TIMEOUT", 0.1)


@pytest.mark.usefixtures("_quick_probes")
async def test_who_does_not_answer_is_lost(caplog: pytest.LogCaptureFixture) -> None:
    async def probe() -> None:
        await asyncio.Event().wait()

    line = Lifeline("it", connect=nothing, probe=probe, disconnect=nothing)
    await line.start()
    async with asyncio.timeout(20):
        while line.is_up:  # noqa: ASYNC110 - nothing tells of it
            await asyncio.sleep(0.01)
    assert "it was lost: it does not answer" in caplog.text
    await line.stop()


@pytest.mark.usefixtures("_quick_probes")
async def test_nobody_is_lost_because_we_stood_still(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The answer was there in time, and this process did not look."""
    probes = 0

    async def probe() -> None:
        nonlocal probes
        probes += 1
        if probes == 1:
            loop = asyncio.get_running_loop()
            loop.call_soon(time.sleep, module.PROBE_TIMEOUT + 2 * module.LATE)
            await loop.create_future()

    line = Lifeline("it", connect=nothing, probe=probe, disconnect=nothing)
    await line.start()
    async with asyncio.timeout(20):
        while probes < 3:  # noqa: ASYNC110 - nothing tells of it
            await asyncio.sleep(0.01)
    assert line.is_up
    assert not caplog.records
    await line.stop()


async def test_it_was_heard_last_before_the_question_that_nobody_answered() -> None:
    clock = ManualClock()
    is_answered = True

    async def probe() -> None:
        if not is_answered:
            await clock.sleep(module.PROBE_TIMEOUT - 0.1)
            raise OSError

    line = lifeline(nothing, clock, probe)
    assert line.heard_at == -math.inf
    await line.start()
    assert line.heard_at == clock.monotonic()
    await clock.advance(module.PROBE_EVERY * 3)
    heard_at = line.heard_at
    assert heard_at >= clock.monotonic() - module.PROBE_EVERY
    is_answered = False
    await clock.advance(module.PROBE_EVERY + module.PROBE_TIMEOUT / 2)
    assert (line.is_up, line.heard_at) == (True, heard_at)
    await line.stop()


async def test_it_ends_though_a_client_swallows_that_it_is_to_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "PROBE_TIMEOUT", 0.1)
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
