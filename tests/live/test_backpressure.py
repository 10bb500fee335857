"""A member of a room that does not read costs its bound, and nobody else anything.

It misses what its policy says, is told how much and where, and never loses an answer.
What the speaker heard is the truth that every other member's hearing is held against.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed

from authws.live.connection import Connection
from authws.live.outbox import OutboxPolicy
from tests.grants import enter, grant, hear, say, until
from tests.running import STRATEGIES, Service, running

DROPPING: tuple[OutboxPolicy, ...] = ("drop_oldest", "drop_newest")
BOUNDS = {
    "by-messages": {"outbox_messages": 16, "outbox_bytes": 0},
    "by-bytes": {"outbox_messages": 0, "outbox_bytes": 500_000},
}
BIG = 30_000
"""Bytes of a message: a few of them fill the buffers between a server and a peer."""


@dataclass
class Room:
    """A room with a speaker who hears all, and one who stops reading.

    A witness is there too, and must have heard all that the speaker heard.
    """

    service: Service
    speaker: ClientConnection
    deaf: ClientConnection
    kept: Connection
    """The server's side of the deaf one."""
    truth: list[int] = field(default_factory=list)
    """The numbers that were said, in the order of the room."""
    most: tuple[int, int] = (0, 0)
    """The most messages, and bytes, that waited for the deaf one at any time."""

    async def publish(self, peer: ClientConnection, number: int, **more: Any) -> None:
        data = {"n": number, "x": "é" * (BIG // 2)}
        message = {"type": "publish", "room": "lobby", "data": data, **more}
        await peer.send(json.dumps(message, ensure_ascii=False))

    async def speak(self, count: int = 1) -> None:
        """Say something, and hear it oneself."""
        for _ in range(count):
            number = len(self.truth)
            await self.publish(self.speaker, number)
            assert await self.hears(self.speaker) == number
            outbox = self.kept._outbox
            most_messages, most_bytes = self.most
            self.most = max(most_messages, len(outbox)), max(most_bytes, outbox.size)

    async def hears(self, peer: ClientConnection) -> int:
        """The next number that somebody hears; what the speaker hears is the truth."""
        heard = await hear(peer)
        assert heard["type"] == "message", heard
        number = int(heard["data"]["n"])
        if peer is self.speaker:
            self.truth.append(number)
        return number

    async def fill(self) -> None:
        """Speak until the deaf one's outbox has no more room, and well beyond."""
        async with asyncio.timeout(20):
            while not self.kept.dropped and self.kept.is_open:
                await self.speak()
        if self.kept.is_open:
            await self.speak(20)

    def stop_reading(self) -> None:
        self.deaf.transport.pause_reading()

    def read_again(self) -> None:
        self.deaf.transport.resume_reading()


@dataclass
class Hearing:
    """What a member hears, one after the other."""

    numbers: list[int] = field(default_factory=list)
    told: list[tuple[int, int]] = field(default_factory=list)
    """How many it had heard by then, and how many it missed there."""
    answers: list[dict[str, Any]] = field(default_factory=list)
    ending: tuple[int | None, str | None] | None = None

    async def up_to_now(self, peer: ClientConnection) -> Hearing:
        """Listen until all that was said is there: an answer comes after it."""
        await say(peer, type="ping", id="now")
        return await self.listen(peer)

    async def listen(self, peer: ClientConnection) -> Hearing:
        """Listen to the end, or until somebody asks for what there is by now."""
        try:
            while True:
                heard = await hear(peer)
                if heard["type"] == "message":
                    self.numbers.append(heard["data"]["n"])
                elif heard["type"] == "dropped":
                    self.told.append((len(self.numbers), heard["count"]))
                elif heard != {"type": "pong", "id": "now"}:
                    self.answers.append(heard)
                else:
                    return self
        except ConnectionClosed:
            self.ending = peer.close_code, peer.close_reason
            return self

    @property
    def missed(self) -> int:
        return sum(count for _, count in self.told)

    def is_all_of(self, truth: list[int]) -> bool:
        """Whether each message was heard once, in order, or told to be missed there."""
        expected: list[int] = []
        place = 0
        for heard_by_then, count in [*self.told, (len(self.numbers), 0)]:
            run = heard_by_then - len(expected)
            expected += truth[place : place + run]
            place += run + count
        assert self.numbers == expected
        return place == len(truth)


@asynccontextmanager
async def room(tmp_path: Path, strategy: str, **settings: Any) -> AsyncIterator[Room]:
    unlimited = {"message_rate": 0, "byte_rate": 0}
    async with running(tmp_path, **unlimited, **settings) as service:
        for name in ("alice", "bob"):
            await service.add_user(name)
        alice = await grant(service, "query-param")
        bob = await grant(service, strategy, "bob")
        with socket.socket() as narrow:
            narrow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            narrow.setblocking(False)
            address = ("127.0.0.1", service.port)
            await asyncio.get_running_loop().sock_connect(narrow, address)
            async with (
                enter(service, "/ws/query-param", alice) as speaker,
                enter(service, "/ws/query-param", alice) as witness,
                enter(
                    service,
                    f"/ws/{strategy}",
                    bob,
                    sock=narrow,
                    ping_interval=None,
                    max_queue=1,
                ) as deaf,
            ):
                for peer in (deaf, speaker, witness):
                    await say(peer, type="join", room="lobby")
                    assert (await hear(peer))["type"] == "joined"
                assert (await hear(deaf))["event"] == "joined"
                (kept,) = service.house.hub.of_subject("bob")
                here = Room(service, speaker, deaf, kept)
                witnessing = asyncio.create_task(Hearing().listen(witness))
                try:
                    yield here
                finally:
                    deaf.transport.abort()
                await say(witness, type="ping", id="now")
                witnessed = await witnessing
                assert (witnessed.numbers, witnessed.told) == (here.truth, [])
        await until(lambda: not service.house.hub.connections)
        assert [r.getMessage() for r in service.records if r.exc_info] == []


def metric(service: Service, name: str) -> float:
    text = service.house.metrics.render().decode()
    found = re.search(rf"^{re.escape(name)} (\S+)$", text, re.MULTILINE)
    assert found, name
    return float(found[1])


def endings(service: Service, subject: str) -> list[tuple[str, str]]:
    return [
        (event["reason"], event.get("limit", ""))
        for event in service.security_events
        if event["event"] == "disconnected" and event["subject"] == subject
    ]


# ------------------------------------------------------------------------------- close


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("bound", BOUNDS.values(), ids=BOUNDS)
async def test_under_close_who_does_not_read_is_ended_and_reads_why(
    tmp_path: Path, strategy: str, bound: dict[str, int]
) -> None:
    async with room(tmp_path, strategy, outbox_policy="close", **bound) as here:
        await here.speak(3)
        here.stop_reading()
        await here.fill()
        # the room is told at once: a close frame need not wait for the peer to read
        async with asyncio.timeout(0.5):
            left = await hear(here.speaker)
        assert (left["subject"], left["event"]) == ("bob", "left")
        assert not list(here.service.house.hub.of_subject("bob"))
        here.read_again()
        hearing = await Hearing().listen(here.deaf)
        assert hearing.ending == (1008, "slow_consumer")
        assert (hearing.told, hearing.answers) == ([], [])
        assert hearing.numbers == here.truth[: len(hearing.numbers)]
        assert 3 <= len(hearing.numbers) < len(here.truth)
        await here.speak(3)  # which nobody minds
        assert is_within(here.most, bound)
        await until(lambda: endings(here.service, "bob"))
        assert endings(here.service, "bob") == [("slow_consumer", "outbox")]
        assert metric(here.service, "authws_messages_dropped_total") == 0
        assert metric(here.service, 'authws_limit_hits_total{limit="outbox"}') == 1


def is_within(most: tuple[int, int], bound: dict[str, int]) -> bool:
    """Whether no more ever waited than is allowed, and the bound was come near to."""
    messages, size = most
    max_messages, max_bytes = bound["outbox_messages"], bound["outbox_bytes"]
    if max_messages:
        return max_messages // 2 < messages <= max_messages
    return max_bytes // 2 < size <= max_bytes


# ---------------------------------------------------------------------------- dropping


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("bound", BOUNDS.values(), ids=BOUNDS)
@pytest.mark.parametrize("policy", DROPPING)
async def test_under_dropping_it_stays_and_is_told_where_and_how_much_it_missed(
    tmp_path: Path, policy: OutboxPolicy, strategy: str, bound: dict[str, int]
) -> None:
    async with room(tmp_path, strategy, outbox_policy=policy, **bound) as here:
        await here.speak(3)
        here.stop_reading()
        await here.fill()
        dropped = here.kept.dropped
        assert dropped >= 20
        assert metric(here.service, "authws_messages_dropped_total") == dropped
        here.read_again()
        hearing = await Hearing().up_to_now(here.deaf)
        assert hearing.is_all_of(here.truth)
        dropped = here.kept.dropped  # one may have gone for the pong
        assert hearing.missed == dropped
        if policy == "drop_oldest":  # what is newest is what it is for
            assert hearing.numbers[-1] == here.truth[-1]
        else:
            first_gap, _ = hearing.told[0]
            assert hearing.numbers[:first_gap] == here.truth[:first_gap]
        # and all is as if nothing had been
        await here.speak(5)
        await hearing.up_to_now(here.deaf)
        assert hearing.is_all_of(here.truth)
        assert hearing.numbers[-5:] == here.truth[-5:]
        assert (hearing.answers, hearing.ending) == ([], None)
        assert is_within(here.most, bound)
        service = here.service
    assert endings(service, "bob") == [("peer_left", "")]
    # what is counted stays counted when the connection is gone
    assert metric(service, "authws_messages_dropped_total") == dropped
    assert metric(service, 'authws_limit_hits_total{limit="outbox"}') == 0


@pytest.mark.parametrize("policy", DROPPING)
async def test_who_reads_in_between_is_told_of_each_gap(
    tmp_path: Path, policy: OutboxPolicy
) -> None:
    bound = BOUNDS["by-messages"]
    async with room(tmp_path, "query-param", outbox_policy=policy, **bound) as here:
        hearing = Hearing()
        for _ in range(3):
            here.stop_reading()
            before = here.kept.dropped
            while here.kept.dropped < before + 10:
                await here.speak()
            here.read_again()
            reading = asyncio.create_task(hearing.up_to_now(here.deaf))
            while not reading.done():  # the room does not stop for it
                await here.speak()
                await asyncio.sleep(0)
            await reading
        await hearing.up_to_now(here.deaf)
        assert hearing.is_all_of(here.truth)
        assert len(hearing.told) >= 3
        assert hearing.missed == here.kept.dropped
        assert is_within(here.most, bound)


@pytest.mark.parametrize("policy", DROPPING)
async def test_an_answer_is_never_dropped(tmp_path: Path, policy: OutboxPolicy) -> None:
    bound = {"outbox_messages": 30, "outbox_bytes": 0}
    async with room(tmp_path, "query-param", outbox_policy=policy, **bound) as here:
        here.stop_reading()
        await here.fill()
        for number in range(8):
            await say(here.deaf, type="ping", id=number)
            await here.speak(3)
            # its own message may be lost to it, the word that it was taken may not
            await here.publish(here.deaf, 10_000 + number, id=f"said {number}")
            assert await here.hears(here.speaker) == 10_000 + number
        await say(here.deaf, type="leave", room="lobby")
        left = await hear(here.speaker)
        assert (left["subject"], left["event"]) == ("bob", "left")
        here.read_again()
        hearing = await Hearing().up_to_now(here.deaf)
        expected: list[dict[str, Any]] = []
        for number in range(8):
            expected.append({"type": "pong", "id": number})
            expected.append({"type": "ack", "id": f"said {number}"})
        expected.append({"type": "left", "room": "lobby"})
        assert hearing.answers == expected
        assert hearing.is_all_of(here.truth)
        assert here.most[0] <= 30


@pytest.mark.parametrize("policy", DROPPING)
async def test_who_only_asks_and_never_reads_is_ended_all_the_same(
    tmp_path: Path, policy: OutboxPolicy
) -> None:
    """Answers are never dropped, so an outbox may be full of them."""
    bound = {"outbox_messages": 16, "outbox_bytes": 0}
    async with room(tmp_path, "query-param", outbox_policy=policy, **bound) as here:
        here.stop_reading()
        await here.fill()
        async with asyncio.timeout(10):
            while here.kept.is_open:
                with contextlib.suppress(ConnectionClosed):
                    await say(here.deaf, type="ping", id="x" * 60)
        left = await hear(here.speaker)
        assert (left["subject"], left["event"]) == ("bob", "left")
        here.read_again()
        hearing = await Hearing().listen(here.deaf)
        assert hearing.ending == (1008, "slow_consumer")
        await until(lambda: endings(here.service, "bob"))
        assert endings(here.service, "bob") == [("slow_consumer", "outbox")]


async def test_presence_may_be_dropped_and_is_counted_like_all_a_room_says(
    tmp_path: Path,
) -> None:
    bound = BOUNDS["by-messages"]
    async with room(
        tmp_path, "query-param", outbox_policy="drop_oldest", **bound
    ) as here:
        here.stop_reading()
        await here.fill()
        await here.service.add_user("carol")
        carol = await grant(here.service, "query-param", "carol")
        before = here.kept.dropped
        for _ in range(5):
            async with enter(here.service, "/ws/query-param", carol) as visitor:
                await say(visitor, type="join", room="lobby")
                assert (await hear(visitor))["type"] == "joined"
            for event in ("joined", "left"):
                assert (await hear(here.speaker))["event"] == event
        assert here.kept.dropped == before + 10


# ------------------------------------------------------------------------- the handler


async def test_a_handler_goes_as_fast_as_its_peer_reads(tmp_path: Path) -> None:
    """An echo waits for its own peer: nothing is dropped, whatever the policy."""
    async with running(
        tmp_path,
        outbox_policy="drop_oldest",
        outbox_messages=8,
        message_rate=0,
        byte_rate=0,
    ) as service:
        await service.add_user("alice")
        alice = await grant(service, "query-param")
        async with enter(service, "/ws/query-param/echo", alice) as peer:
            count = 400

            async def ask() -> None:
                for number in range(count):
                    await peer.send(f"{number}:" + "x" * BIG)

            asking = asyncio.create_task(ask())
            for number in range(count):
                text = await asyncio.wait_for(peer.recv(), 10)
                assert json.loads(str(text).partition(":")[0]) == number
            await asking
        assert metric(service, "authws_messages_dropped_total") == 0
