"""Nobody waits long, or in a long queue, for a database that does not answer."""

from __future__ import annotations

import asyncio
import time
from collections import Counter

import pytest

from authws.exceptions import UnavailableError
from authws.stores import circuit_breaker
from authws.stores.circuit_breaker import CircuitBreaker

PATIENCE = 0.2


class Silent:
    """Answers when it is told to go on."""

    def __init__(self) -> None:
        self.answers = asyncio.Event()
        self.asked = 0
        self.at_once = 0
        self.most_at_once = 0

    async def ask(self, breaker: CircuitBreaker) -> str:
        try:
            async with breaker.asking(PATIENCE):
                self.asked += 1
                self.at_once += 1
                self.most_at_once = max(self.at_once, self.most_at_once)
                try:
                    await self.answers.wait()
                finally:
                    self.at_once -= 1
        except TimeoutError:
            return "in vain"
        except UnavailableError:
            return "refused"
        return "answered"


@pytest.fixture(autouse=True)
def rest(monkeypatch: pytest.MonkeyPatch) -> float:
    monkeypatch.setattr(circuit_breaker, "REST", 0.3)
    return 0.3


async def test_whoever_asks_in_vain_keeps_the_others_from_waiting() -> None:
    breaker = CircuitBreaker(asyncio.Semaphore(2))
    silent = Silent()
    began = time.monotonic()
    # two are asking, and the others wait for a place: all are over with those two
    first = Counter(await asyncio.gather(*(silent.ask(breaker) for _ in range(50))))
    assert first == {"in vain": 2, "refused": 48}
    assert time.monotonic() - began >= PATIENCE
    began = time.monotonic()
    assert {await silent.ask(breaker) for _ in range(50)} == {"refused"}
    assert time.monotonic() - began < PATIENCE
    assert silent.asked == 2


async def test_one_asks_now_and_then(rest: float) -> None:
    breaker = CircuitBreaker(asyncio.Semaphore(5))
    silent = Silent()
    await asyncio.gather(*(silent.ask(breaker) for _ in range(5)))
    for _ in range(3):
        await asyncio.sleep(rest)
        silent.most_at_once = 0
        asking = Counter(await asyncio.gather(*(silent.ask(breaker) for _ in range(9))))
        assert asking == {"in vain": 1, "refused": 8}
        assert silent.most_at_once == 1


async def test_one_answer_is_an_answer_for_all(rest: float) -> None:
    breaker = CircuitBreaker(asyncio.Semaphore(5))
    silent = Silent()
    assert await silent.ask(breaker) == "in vain"
    await asyncio.sleep(rest)
    probe = asyncio.create_task(silent.ask(breaker))
    await asyncio.sleep(0)
    assert await silent.ask(breaker) == "refused"
    silent.answers.set()
    assert await probe == "answered"
    after = await asyncio.gather(*(silent.ask(breaker) for _ in range(50)))
    assert set(after) == {"answered"}
    assert silent.most_at_once <= 5


async def test_error_is_an_answer_and_takes_nobody_else_down() -> None:
    breaker = CircuitBreaker(asyncio.Semaphore(1))
    for _ in range(3):
        with pytest.raises(ConnectionRefusedError):
            async with breaker.asking(PATIENCE):
                raise ConnectionRefusedError
    silent = Silent()
    silent.answers.set()
    assert await silent.ask(breaker) == "answered"


async def test_waiting_for_a_place_is_bounded_and_no_silence(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(circuit_breaker, "QUEUE_SECONDS", 0.1)
    breaker = CircuitBreaker(asyncio.Semaphore(1))
    slow, quick = Silent(), Silent()
    quick.answers.set()
    busy = asyncio.create_task(slow.ask(breaker))
    await asyncio.sleep(0)
    assert await quick.ask(breaker) == "refused"
    slow.answers.set()
    assert await busy == "answered"
    assert await quick.ask(breaker) == "answered"


async def test_one_that_is_cancelled_gives_its_place_back() -> None:
    breaker = CircuitBreaker(asyncio.Semaphore(1))
    silent = Silent()
    asking = [asyncio.create_task(silent.ask(breaker)) for _ in range(3)]
    await asyncio.sleep(0.01)
    for task in asking:
        task.cancel()
    await asyncio.gather(*asking, return_exceptions=True)
    silent.answers.set()
    assert await silent.ask(breaker) == "answered"
