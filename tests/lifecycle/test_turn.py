"""What is said in one turn of the event loop, and in which order each one hears it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import msgspec
import pytest

from authws.decisions import messages
from authws.live.connection import Connection, ConnectionLimits
from authws.live.outbox import OutboxPolicy
from authws.live.turn import MAX_PENDING
from tests.engine import Engine, Peer
from tests.manual_clock import settle

POLICIES: tuple[OutboxPolicy, ...] = ("close", "drop_oldest", "drop_newest")
OF_A_ROOM = {"message", "pong", "joined", "left", "dropped"}


class House(Engine):
    """An engine whose guests are known by their subject."""

    async def guest(self, subject: str, *rooms: str) -> tuple[Peer, Connection]:
        peer = await self.enter(token=self.issue(subject, session=subject))
        (connection,) = self.hub.of_subject(subject)
        for room in rooms:
            await self.hub.rooms.join(connection, room)
        await settle()
        return peer, connection

    async def say(self, connection: Connection, room: str, data: str) -> None:
        """Publish; with the embedded broker it waits for nothing."""
        said = messages.Publish(room=room, data=msgspec.Raw(f'"{data}"'.encode()))
        self.hub.rooms.publish(connection, said)


@asynccontextmanager
async def house(limits: ConnectionLimits | None = None) -> AsyncIterator[House]:
    house = House(limits=limits)
    await house.start()
    try:
        yield house
    finally:
        await house.stop()


def heard(peer: Peer, since: int = 0) -> list[str]:
    """Each message by its data, each answer by its id or type."""
    return [
        str(one.get("data") or one.get("id") or one.get("count") or one["type"])
        for one in peer.heard[since:]
        if one["type"] in OF_A_ROOM
    ]


async def test_an_answer_stands_between_what_was_said_before_and_after() -> None:
    async with house() as here:
        alice, her = await here.guest("alice", "lobby")
        bob, his = await here.guest("bob", "lobby")
        since = len(alice.heard), len(bob.heard)
        await here.say(his, "lobby", "m1")
        her.post(messages.pong("p1"))
        await here.say(his, "lobby", "m2")
        her.post(messages.pong("p2"))
        await here.say(his, "lobby", "m3")
        assert len(alice.heard) == since[0]  # all of it waits for the turn's end
        await settle()
        assert heard(alice, since[0]) == ["m1", "p1", "m2", "p2", "m3"]
        assert heard(bob, since[1]) == ["m1", "m2", "m3"]


async def test_who_hears_several_rooms_hears_them_in_the_order_of_speech() -> None:
    async with house() as here:
        both, _ = await here.guest("both", "one", "two")
        first, _ = await here.guest("first", "one")
        second, _ = await here.guest("second", "two")
        _, speaker = await here.guest("speaker", "one", "two", "three")
        since = [len(peer.heard) for peer in (both, first, second)]
        for room, data in (("one", "a"), ("two", "b"), ("three", "x"), ("one", "c")):
            await here.say(speaker, room, data)
        await settle()
        assert heard(both, since[0]) == ["a", "b", "c"]
        assert heard(first, since[1]) == ["a", "c"]
        assert heard(second, since[2]) == ["b"]


async def test_a_newcomer_hears_what_is_said_after_and_not_before() -> None:
    async with house() as here:
        carol, hers = await here.guest("carol")
        bob, his = await here.guest("bob", "lobby")
        await here.say(his, "lobby", "before")
        await here.hub.rooms.join(hers, "lobby")
        await here.say(his, "lobby", "after")
        await settle()
        assert heard(carol) == ["joined", "after"]
        assert heard(bob) == ["joined", "before", "after"]


async def test_who_leaves_hears_what_was_said_before_and_not_after() -> None:
    async with house() as here:
        carol, hers = await here.guest("carol", "lobby")
        _, his = await here.guest("bob", "lobby")
        await here.say(his, "lobby", "before")
        await here.hub.rooms.leave(hers, "lobby")
        await here.say(his, "lobby", "after")
        await settle()
        assert heard(carol) == ["joined", "before", "left"]


async def test_who_is_ended_hears_nothing_that_was_not_written_yet() -> None:
    async with house() as here:
        carol, _ = await here.guest("carol", "lobby")
        bob, his = await here.guest("bob", "lobby")
        await here.say(his, "lobby", "before")
        here.hub.revoke_session("carol", here.clock.now())
        await here.say(his, "lobby", "after")
        await settle()
        assert heard(carol) == ["joined"]
        assert carol.ending == (1008, "token_revoked")
        assert heard(bob) == ["joined", "before", "after"]


async def test_a_restart_lets_go_out_what_was_said_before_it() -> None:
    async with house() as here:
        carol, hers = await here.guest("carol", "lobby")
        _, his = await here.guest("bob", "lobby")
        await here.say(his, "lobby", "before")
        hers.end_for_restart(1.0)
        await here.say(his, "lobby", "after")
        await settle()
        assert heard(carol) == ["joined", "before"]
        assert carol.heard[-1]["type"] == "restarting"
        assert carol.ending == (1012, "restart")


async def test_one_that_is_behind_catches_up_in_order() -> None:
    async with house(ConnectionLimits(outbox_messages=0, outbox_bytes=0)) as here:
        slow, hers = await here.guest("slow", "lobby")
        fast, his = await here.guest("fast", "lobby")
        slow.reads.clear()
        for number in range(1, 4):
            await here.say(his, "lobby", f"m{number}")
            hers.post(messages.pong(f"p{number}"))
            await settle()
        assert heard(fast)[-3:] == ["m1", "m2", "m3"]
        slow.reads.set()
        await here.say(his, "lobby", "m4")
        await settle()
        assert heard(slow)[1:] == ["m1", "p1", "m2", "p2", "m3", "p3", "m4"]


@pytest.mark.parametrize("way", ["wire"], indirect=True)
async def test_much_said_in_one_turn_ends_nobody_who_takes_it() -> None:
    """Not even who has to be written to apart, for an answer between."""
    async with house(ConnectionLimits(outbox_messages=4)) as here:
        alice, hers = await here.guest("alice", "lobby")
        bob, his = await here.guest("bob", "lobby")
        said = [f"m{number}" for number in range(9)]
        hers.post(messages.pong("p"))
        for data in said:
            await here.say(his, "lobby", data)
        await settle()
        assert heard(alice)[1:] == ["p", *said]
        assert heard(bob)[1:] == said


@pytest.mark.parametrize("policy", POLICIES)
async def test_the_bound_of_an_outbox_holds_within_one_turn(
    policy: OutboxPolicy, way: str
) -> None:
    limits = ConnectionLimits(outbox_messages=4, outbox_policy=policy)
    async with house(limits) as here:
        slow, its = await here.guest("slow", "lobby")
        _, his = await here.guest("fast", "lobby")
        slow.reads.clear()
        await here.say(his, "lobby", "m0")
        await settle()
        for number in range(1, 9):
            await here.say(his, "lobby", f"m{number}")
        await settle()
        if policy == "close":
            assert its.ending is not None
            slow.reads.set()
            await settle()
            assert slow.ending == (1008, "slow_consumer")
        else:
            assert its.is_open
            # under any other server one message is out of the outbox, being sent
            assert its.dropped == (5 if way == "wire" else 4)


@pytest.mark.parametrize("way", ["wire"], indirect=True)
@pytest.mark.parametrize(
    ("size", "written"),
    [(MAX_PENDING // 2 - 200, [0, 0, 3]), (MAX_PENDING, [1, 2, 2])],
)
async def test_much_is_not_joined_but_written_at_once(
    size: int, written: list[int]
) -> None:
    """A transport takes all that it is given: it must not be given a whole turn's."""
    async with house() as here:
        carol, _ = await here.guest("carol", "lobby")
        _, his = await here.guest("bob", "lobby")
        there = []
        for data in ("x" * size, "y" * size, "z" * 400):
            await here.say(his, "lobby", data)
            there.append(len(carol.of_type("message")))
        # the last of the small ones goes with those that it makes too many
        assert there == written
        await settle()
        assert len(carol.of_type("message")) == 3


@pytest.mark.parametrize("way", ["wire"], indirect=True)
async def test_bursts_in_several_rooms_end_nobody_who_hears_them_all() -> None:
    """Each is within its limits; together they are more than an outbox may hold."""
    async with house() as here:
        rooms = [f"room{number}" for number in range(4)]
        all_ears, _ = await here.guest("all", *rooms)
        speakers = [await here.guest(f"speaker{room}", room) for room in rooms]
        for _ in range(500):
            for room, (_, speaker) in zip(rooms, speakers, strict=True):
                await here.say(speaker, room, "x")
        await settle()
        assert all_ears.ending is None
        assert len(all_ears.of_type("message")) == 2000


@pytest.mark.parametrize("alone", [True, False], ids=["alone", "apart"])
@pytest.mark.parametrize("way", ["wire"], indirect=True)
async def test_one_that_cannot_be_written_to_costs_nobody_else_a_message(
    alone: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "hear" if alone else "write_out"
    works = getattr(Connection, name)

    def fails(connection: Connection, *arguments: object) -> None:
        if connection is its:
            raise LookupError("a fault of ours")
        works(connection, *arguments)

    async with house() as here:
        broken, its = await here.guest("broken", "lobby")
        well, _ = await here.guest("well", "lobby")
        _, his = await here.guest("bob", "lobby")
        monkeypatch.setattr(Connection, name, fails)
        if not alone:
            its.post(messages.pong("p"))
        await here.say(his, "lobby", "first")
        await settle()
        await here.say(his, "lobby", "second")
        await settle()
        assert heard(well)[1:] == ["first", "second"]
        assert its.ending is not None
        assert its.ending.reason == "internal_error"
        assert broken.ending == (1011, "internal_error")
