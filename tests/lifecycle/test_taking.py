"""Messages are taken one after another, whatever one of them has to wait for, and a
peer that has sent many at once leaves room for others."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from authws.brokers.memory import MemoryBroker
from authws.live import rooms
from authws.live.connection import MAX_IN_A_ROW, ConnectionLimits
from tests.engine import Engine, Peer
from tests.manual_clock import settle


class House(Engine):
    """An engine whose broker takes its time while ``gate`` is closed, or fails."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.gate = asyncio.Event()
        self.gate.set()
        self.handed_over: list[bytes] = []
        self._turn = asyncio.Lock()
        self.fault: Exception | None = None
        self._publish = MemoryBroker.publish
        self.hub.carrier.broker.publish = self._carry  # type: ignore[method-assign, assignment]

    def _carry(
        self, channel: str, data: bytes, _keep: object = None
    ) -> Awaitable[None] | None:
        if self.gate.is_set():
            self._deliver(channel, data)
            return None
        self.handed_over.append(data)
        return asyncio.ensure_future(self._carry_later(channel, data))

    async def _carry_later(self, channel: str, data: bytes) -> None:
        async with self._turn:  # in the order of the calls
            await self.gate.wait()
            self._deliver(channel, data)

    def _deliver(self, channel: str, data: bytes) -> None:
        if self.fault is not None:
            raise self.fault
        assert isinstance(self.hub.carrier.broker, MemoryBroker)
        self._publish(self.hub.carrier.broker, channel, data)

    async def guest(self, subject: str, session: str = "") -> Peer:
        token = self.issue(subject, session=session or subject)
        peer = await self.enter(token=token)
        peer.say(type="join", room="lobby")
        await settle()
        return peer


@asynccontextmanager
async def house(**options: Any) -> AsyncIterator[House]:
    here = House(**options)
    await here.start()
    try:
        yield here
    finally:
        here.gate.set()
        await here.stop()


def publish(peer: Peer, number: int) -> None:
    peer.say(type="publish", room="lobby", data=number, id=number)


def heard(peer: Peer) -> list[int]:
    return [message["data"] for message in peer.of_type("message")]


def acknowledged(peer: Peer) -> list[int]:
    return [message["id"] for message in peer.of_type("ack")]


@pytest.mark.parametrize("at_once", [0, 2])
async def test_the_next_message_waits_for_a_broker_that_has_many(
    at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rooms, "MAX_UNACKNOWLEDGED", at_once)
    async with house() as here:
        alice, bob = await here.guest("alice"), await here.guest("bob")
        here.gate.clear()
        for number in range(5):
            publish(alice, number)
        await settle()
        assert len(here.handed_over) == at_once + 1
        assert (heard(bob), acknowledged(alice)) == ([], [])
        here.gate.set()
        await settle()
        publish(alice, 5)
        await settle()
        assert heard(bob) == acknowledged(alice) == list(range(6))


async def test_others_do_not_wait_for_that() -> None:
    async with house() as here:
        alice, bob = await here.guest("alice"), await here.guest("bob")
        here.gate.clear()
        publish(alice, 1)
        await settle()
        bob.say(type="ping", id="still there?")
        await settle()
        assert bob.of_type("pong")


async def test_a_renewal_is_taken_in_its_turn() -> None:
    async with house() as here:
        alice = await here.guest("alice")
        narrow = here.issue("alice", session="alice", scopes=["join:*"])
        here.authority.gate.clear()
        publish(alice, 1)
        alice.say(type="auth", token=narrow)
        publish(alice, 2)
        await settle()
        assert acknowledged(alice) == [1]
        here.authority.gate.set()
        await settle()
        assert acknowledged(alice) == [1]
        assert alice.of_type("error")[0]["slug"] == "forbidden"


async def test_nothing_behind_a_revocation_is_taken(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(rooms, "MAX_UNACKNOWLEDGED", 0)
    async with house() as here:
        alice, bob = await here.guest("alice"), await here.guest("bob")
        here.gate.clear()
        publish(alice, 1)
        publish(alice, 2)
        await settle()
        here.hub.revoke_subject("alice", here.clock.now())
        await settle()
        assert alice.ending == (1008, "token_revoked")
        here.gate.set()
        await settle()
        assert heard(bob) == [1]  # it was on its way before
        assert acknowledged(alice) == []


async def test_a_peer_that_leaves_meanwhile_is_gone_when_that_is_over() -> None:
    async with house() as here:
        alice, bob = await here.guest("alice"), await here.guest("bob")
        here.gate.clear()
        publish(alice, 1)
        await settle()
        alice.leave()
        here.gate.set()
        await settle()
        assert alice.task is not None
        assert alice.task.done()
        assert heard(bob) == [1]
        assert bob.of_type("presence")[-1]["event"] == "left"


@pytest.mark.parametrize("is_slow", [False, True], ids=["at once", "later"])
async def test_a_fault_of_ours_ends_that_connection_and_no_other(
    is_slow: bool, caplog: pytest.LogCaptureFixture
) -> None:
    async with house() as here:
        alice, bob = await here.guest("alice"), await here.guest("bob")
        here.fault = RuntimeError("the broker is upside down")
        if is_slow:
            here.gate.clear()
        with caplog.at_level(logging.ERROR, "authws"):
            publish(alice, 1)
            publish(alice, 2)
            await settle()
            here.gate.set()
            await settle()
        assert alice.ending == (1011, "internal_error")
        assert "upside down" in caplog.text
        assert ("handler_failed", "internal_error", "") in here.counted
        assert acknowledged(alice) == []
        here.fault = None
        publish(bob, 3)
        await settle()
        assert heard(bob) == [3]


async def test_a_fault_is_told_even_if_the_peer_takes_nothing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with house() as here:
        alice, bob = await here.guest("alice"), await here.guest("bob")
        alice.reads.clear()
        publish(bob, 0)  # it waits in her outbox
        await settle()
        here.fault = RuntimeError("the broker is upside down")
        with caplog.at_level(logging.ERROR, "authws"):
            publish(alice, 1)
            await here.clock.advance(30.0)
            await settle()
        here.fault = None
        assert alice.task is not None
        assert alice.task.done()
        assert caplog.text.count("upside down") == 1
        assert here.counted.count(("handler_failed", "internal_error", "")) == 1


@pytest.mark.parametrize("way", ["wire"], indirect=True)
async def test_a_wait_that_others_cancel_ends_the_connection(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The way in is not blocked for ever by what it waited for."""
    async with house() as here:
        alice = await here.guest("alice")
        waits = asyncio.get_running_loop().create_future()

        async def carry(_: str, __: bytes) -> None:
            await asyncio.shield(waits)

        here.hub.carrier.broker.publish = carry  # type: ignore[method-assign, assignment]
        publish(alice, 1)
        publish(alice, 2)
        await settle()
        with caplog.at_level(logging.ERROR, "authws"):
            waits.cancel()
            await settle()
        assert alice.ending == (1011, "internal_error")


@pytest.mark.parametrize("way", ["wire"], indirect=True)
async def test_a_flood_into_a_connection_that_ends_is_taken_in_turns() -> None:
    async with house() as here:
        alice, bob = await here.guest("alice"), await here.guest("bob")
        alice.reads.clear()
        publish(bob, 0)
        await settle()
        (connection,) = here.hub.of_subject("alice")
        connection.end_for_restart(1.0)  # what waits for her goes out before
        assert alice.wire is not None
        for number in range(MAX_IN_A_ROW * 3):
            publish(alice, number)
        assert alice.wire._is_paused


async def test_many_messages_at_once_leave_a_turn_to_others() -> None:
    async with house() as here:
        alice, bob = await here.guest("alice"), await here.guest("bob")
        at_first: list[int] = []
        asyncio.get_running_loop().call_soon(
            lambda: at_first.append(here.hub.rooms.messages_delivered)
        )
        before = here.hub.rooms.messages_delivered
        for number in range(MAX_IN_A_ROW * 3):
            publish(alice, number)
        await settle()
        assert at_first[0] - before <= 2 * MAX_IN_A_ROW
        assert heard(bob) == list(range(MAX_IN_A_ROW * 3))


async def test_a_small_outbox_is_emptied_between_the_answers() -> None:
    """What one peer asks for at once is no sign that it does not read."""
    async with house(limits=ConnectionLimits(outbox_messages=4)) as here:
        alice = await here.guest("alice")
        for number in range(100):
            alice.say(type="ping", id=number)
        for _ in range(10):
            await settle()
        assert alice.ending is None
        assert [pong["id"] for pong in alice.of_type("pong")] == list(range(100))
