"""Hashing: beside the event loop, bounded, and the same work for nobody."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest

from authws.exceptions import ConfigurationError, UnavailableError
from authws.stores.passwords import PasswordHasher

PASSWORD = "a plain short sentence"


async def test_right_password_is_told_from_a_wrong_one(hasher: PasswordHasher) -> None:
    stored = await hasher.hash(PASSWORD)
    assert stored.startswith("$argon2id$v=19$m=19456,t=2,p=1$")
    assert await hasher.verify(PASSWORD, stored) == (True, None)
    assert await hasher.verify(PASSWORD + " ", stored) == (False, None)


async def test_each_hash_has_its_own_salt(hasher: PasswordHasher) -> None:
    assert await hasher.hash(PASSWORD) != await hasher.hash(PASSWORD)


@pytest.mark.parametrize("length", [64, 72, 73, 128, 1024])
async def test_no_byte_of_a_long_password_is_lost(
    hasher: PasswordHasher, length: int
) -> None:
    stored = await hasher.hash("x" * length)
    assert await hasher.verify("x" * length, stored) == (True, None)
    assert await hasher.verify("x" * (length - 1) + "y", stored) == (False, None)


async def test_password_beyond_the_limit_is_never_hashed(
    hasher: PasswordHasher,
) -> None:
    with pytest.raises(ValueError, match="1024"):
        await hasher.hash("x" * 1025)
    stored = await hasher.hash(PASSWORD)
    assert await hasher.verify("x" * 1_000_000, stored) == (False, None)


async def test_no_hash_costs_what_a_hash_costs(hasher: PasswordHasher) -> None:
    stored = await hasher.hash(PASSWORD)
    await hasher.verify(PASSWORD, None)

    async def seconds(hash: str | None) -> float:
        started = time.process_time()  # what others use of the machine is not in it
        assert await hasher.verify("wrong", hash) == (False, None)
        return time.process_time() - started

    known = min([await seconds(stored) for _ in range(7)])
    unknown = min([await seconds(None) for _ in range(7)])
    assert 0.5 < unknown / known < 2


def test_self_test_passes() -> None:
    hasher = PasswordHasher(concurrency=1)
    hasher.self_test()
    hasher.close()


def test_self_test_finds_a_library_that_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    hasher = PasswordHasher(concurrency=1)

    def fail(_: str) -> str:
        raise ValueError("password cannot be longer than 72 bytes")

    monkeypatch.setattr(hasher, "_hash", fail)
    with pytest.raises(ConfigurationError, match="reinstall"):
        hasher.self_test()
    hasher.close()


def test_self_test_finds_a_library_that_says_yes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hasher = PasswordHasher(concurrency=1)
    monkeypatch.setattr(hasher, "_verify", lambda *_: (True, None))
    with pytest.raises(ConfigurationError, match="wrong answers"):
        hasher.self_test()
    hasher.close()


class Gate:
    """Stands in for the hash: counts who is inside, and lets nobody out until told."""

    def __init__(self) -> None:
        self.open = threading.Event()
        self.inside = 0
        self.most = 0
        self._lock = threading.Lock()

    def __call__(self, password: str) -> str:
        with self._lock:
            self.inside += 1
            self.most = max(self.most, self.inside)
        assert self.open.wait(10)
        with self._lock:
            self.inside -= 1
        return password


async def settled(gate: Gate, inside: int) -> None:
    async with asyncio.timeout(10):
        while gate.inside != inside:  # noqa: ASYNC110 - a thread moves it
            await asyncio.sleep(0.01)


async def test_only_so_many_hash_at_once_and_only_so_many_wait(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hasher = PasswordHasher(concurrency=2, max_waiting=3)
    gate = Gate()
    monkeypatch.setattr(hasher, "_hash", gate)
    accepted = [asyncio.create_task(hasher.hash(str(n))) for n in range(5)]
    await settled(gate, 2)
    with pytest.raises(UnavailableError):
        await hasher.hash("one too many")
    gate.open.set()
    assert await asyncio.gather(*accepted) == ["0", "1", "2", "3", "4"]
    assert gate.most == 2
    assert await hasher.hash("welcome again") == "welcome again"
    hasher.close()


async def test_client_that_hangs_up_does_not_get_around_the_bound(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hasher = PasswordHasher(concurrency=1, max_waiting=1)
    gate = Gate()
    monkeypatch.setattr(hasher, "_hash", gate)
    running = asyncio.create_task(hasher.hash("running"))
    await settled(gate, 1)
    waiting = asyncio.create_task(hasher.hash("waiting"))
    await asyncio.sleep(0)
    running.cancel()
    await asyncio.wait([running])
    with pytest.raises(UnavailableError):  # the thread is still at it
        await hasher.hash("too early")
    waiting.cancel()
    await asyncio.wait([waiting])
    takes_its_place = asyncio.create_task(hasher.hash("next"))
    await asyncio.sleep(0)
    gate.open.set()
    assert await takes_its_place == "next"
    hasher.close()


async def test_event_loop_goes_on_while_passwords_are_hashed() -> None:
    hasher = PasswordHasher()
    work = asyncio.gather(*(hasher.hash(PASSWORD) for _ in range(12)))
    pauses = []
    while not work.done():
        started = time.perf_counter()
        await asyncio.sleep(0.002)
        pauses.append(time.perf_counter() - started)
    await work
    assert len(pauses) > 12  # it was never held for as long as one hash
    assert sorted(pauses)[len(pauses) // 2] < 0.02
    hasher.close()


async def test_closed_hasher_is_unavailable() -> None:
    hasher = PasswordHasher(concurrency=1)
    hasher.close()
    with pytest.raises(UnavailableError):
        await hasher.hash(PASSWORD)
