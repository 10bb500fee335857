"""What goes wrong on the way, at the worst moment: it is made good, or it is said."""

from __future__ import annotations

import pytest

from authws.decisions import gossip
from authws.decisions.envelopes import Envelope, Kind, Sealer
from authws.live import rooms as rooms_module
from authws.live.cluster import ANSWER_WITHIN
from authws.live.presence import LEARN_AGAIN_AFTER
from tests.cluster.workers import (
    LEASE,
    here,
    position,
    say,
    settle,
    texts,
    workers,
)
from tests.engine import Peer


@pytest.fixture(autouse=True, params=["asgi", "wire"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(Peer, "over_wire", request.param == "wire")
    return str(request.param)


# ------------------------------------------------------------------------- what is said


async def test_a_second_interruption_while_what_was_missed_is_read() -> None:
    async with workers(2) as (one, two):
        alice = await one.guest("alice", "lobby")
        bob = await two.guest("bob", "lobby")
        two.broker.cut()
        say(alice, 1)
        await settle()
        two.broker.gate.clear()
        two.broker.mend()
        await settle()  # 1 is read, and on its way
        two.broker.cut()
        say(alice, 2)
        await settle()
        two.broker.mend()
        say(alice, 3)
        await settle()
        two.broker.gate.set()
        await settle()
        assert texts(bob) == [1, 2, 3]
        assert bob.of_type("resync") == []


@pytest.mark.parametrize("forgets", [False, True])
@pytest.mark.parametrize("waits_for", ["its place", "who is there"])
async def test_an_interruption_while_a_room_is_opened(
    forgets: bool, waits_for: str
) -> None:
    async with workers(2) as all_of_them:
        one, two = all_of_them
        alice = await one.guest("alice", "lobby")
        bob = await two.guest("bob")
        say(alice, 1)
        await settle()
        if waits_for == "its place":
            two.broker.gate.clear()
        else:
            two.broker.lost, two.broker.lost_on = 1, f"@{two.node}"  # the answer
        bob.say(type="join", room="lobby")
        await settle()
        for worker in all_of_them:
            worker.broker.cut()
        if forgets:
            all_of_them.bus.forget_all()
        one.broker.mend()
        say(alice, 2)
        await settle()
        two.broker.mend()
        two.broker.gate.set()
        await all_of_them.clock.advance(1)
        (joined,) = bob.of_type("joined")
        _, _, last = all_of_them.bus.kept[-1]
        assert position(joined) == {"epoch": last.epoch, "offset": last.offset}
        say(alice, 3)
        await settle()
        assert texts(bob) == [3]
        assert bob.of_type("resync") == []


@pytest.mark.parametrize("more", [0, 1, 30])
async def test_what_waits_is_bounded_and_the_rest_is_read_again(
    more: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rooms_module, "MAX_HELD", 10)
    async with workers(2, history=("*=1000/300",)) as (one, two):
        alice = await one.guest("alice", "lobby")
        bob = await two.guest("bob", "lobby")
        two.broker.cut()
        say(alice, "missed")
        await settle()
        two.broker.gate.clear()
        two.broker.mend()
        await settle()
        for number in range(10 + more):
            say(alice, number)
        await settle()
        room = two.hub.rooms["lobby"]
        assert 1 <= len(room.held or ()) <= 10
        replays = two.broker.replays
        two.broker.gate.set()
        await settle()
        assert two.broker.replays - replays == (1 if more else 0)
        assert texts(bob) == ["missed", *range(10 + more)]
        assert bob.of_type("resync") == []


async def test_what_waited_since_before_the_broker_forgot_is_not_told_behind_it() -> (
    None
):
    """Members were told to begin anew, from a place that it is not beyond."""
    async with workers(2) as all_of_them:
        one, two = all_of_them
        alice = await one.guest("alice", "lobby")
        bob = await two.guest("bob", "lobby")
        two.broker.gate.clear()
        two.broker.cut()
        two.broker.mend()
        await settle()
        say(alice, "waits")
        await settle()
        assert two.hub.rooms["lobby"].held
        for worker in all_of_them:
            worker.broker.cut()
        all_of_them.bus.forget_all()
        for worker in all_of_them:
            worker.broker.mend()
        two.broker.gate.set()
        await settle()
        say(alice, "new")
        await settle()
        (told,) = bob.of_type("resync")
        assert position(told) == {"epoch": "another1", "offset": 0}
        assert texts(bob) == ["new"]


async def test_a_peer_that_heard_more_than_its_new_worker_costs_nobody_a_message() -> (
    None
):
    async with workers(2) as (one, two):
        alice = await one.guest("alice", "lobby")
        bob = await two.guest("bob", "lobby")
        two.broker.hold()
        for number in range(3):
            say(alice, number)
        await settle()
        since = position(alice.of_type("message")[-1])
        say(alice, 3)
        await settle()
        ahead = await two.guest("carol", "lobby", since=since)
        level = await two.guest("dave", "lobby", since=position(_last(alice)))
        assert ahead.of_type("joined")[0]["recovered"] is True
        two.broker.let_go()
        say(alice, 4)
        await settle()
        assert texts(bob) == [0, 1, 2, 3, 4]
        assert texts(ahead) == [3, 4]
        assert texts(level) == [4]


async def test_a_peer_that_missed_too_much_costs_the_members_nothing() -> None:
    """The history reaches back to what is on its way to the members, and no further."""
    async with workers(2, history=("*=3/300",)) as (one, two):
        alice = await one.guest("alice", "lobby")
        bob = await two.guest("bob", "lobby")
        start = position(bob.of_type("joined")[0])
        for number in range(2):
            say(alice, number)
        await settle()
        two.broker.hold()
        for number in range(2, 8):
            say(alice, number)
        await settle()
        back = await two.guest("carol", "lobby", since=start)
        assert back.of_type("joined")[0]["recovered"] is False
        two.broker.let_go()
        await settle()
        assert texts(bob) == list(range(8))
        assert texts(back) == list(range(2, 8))


async def test_a_position_beyond_all_that_was_said_recovers_none() -> None:
    """Also on a worker that is behind the broker."""
    async with workers(2) as (one, two):
        alice = await one.guest("alice", "lobby")
        await two.guest("bob", "lobby")
        two.broker.hold()
        say(alice, 1)
        await settle()
        never = position(_last(alice))
        never["offset"] += 1
        back = await two.guest("carol", "lobby", since=never)
        assert back.of_type("joined")[0]["recovered"] is False
        two.broker.let_go()
        await settle()


async def test_the_first_of_a_new_count_that_is_lost_hides_nothing() -> None:
    """Whoever comes back into a room counts anew what they say there."""
    async with workers(2, history=("*=0",)) as all_of_them:
        one, two = all_of_them
        alice = await one.guest("alice", "lobby")
        bob = await two.guest("bob", "lobby")
        for number in range(10):
            say(alice, number)
        alice.say(type="leave", room="lobby")
        await settle()
        two.broker.lost, two.broker.lost_on = 1, "lobby"
        alice.say(type="join", room="lobby")
        await settle()
        assert two.broker.lost == 0
        for number in range(10, 13):
            say(alice, number)
        await all_of_them.clock.advance(LEARN_AGAIN_AFTER)
        assert texts(bob) == list(range(13))
        assert here(bob) == {"alice", "bob"}
        assert two.hub.carrier.refused["doubled"] == 0
        assert len(bob.of_type("resync")) == 1


async def test_what_was_said_once_is_not_heard_again_if_somebody_repeats_it() -> None:
    """Genuine, but not new: from before its sender counted anew, and from a history."""
    async with workers(2, history=("kept=20/300",)) as all_of_them:
        one, two = all_of_them
        alice = await one.guest("alice", "lobby", "kept")
        bob = await two.guest("bob", "lobby", "kept")
        before = len(all_of_them.bus.sent)
        say(alice, 1)
        say(alice, 2, room="kept")
        await settle()
        said = all_of_them.bus.sent[before:]
        alice.say(type="leave", room="lobby")
        alice.say(type="join", room="lobby")
        await settle()
        for channel, data in said:
            all_of_them.bus.carry(channel, data, None)
        await settle()
        assert (texts(bob), texts(bob, "kept")) == ([1], [2])
        assert two.hub.carrier.refused["doubled"] == 2


# ------------------------------------------------------------------------- who is there


async def test_who_left_a_worker_that_was_cut_off_is_gone_when_it_is_back() -> None:
    async with workers(2) as all_of_them:
        one, two = all_of_them
        alice = await one.guest("alice", "lobby")
        bob = await two.guest("bob", "lobby")
        one.broker.cut()
        alice.leave()
        await settle()
        one.broker.mend()
        await settle()
        assert here(bob) == {"bob"}


async def test_who_is_told_of_late_is_gone_with_the_worker_all_the_same() -> None:
    """Only what is on one channel has an order: a goodbye may overtake the rest."""
    async with workers(2) as all_of_them:
        one, two = all_of_them
        bob = await two.guest("bob", "lobby")
        two.broker.hold()
        alice = await one.guest("alice", "lobby")
        await all_of_them.clock.advance(1.5)
        assert alice.of_type("joined")
        await one.hub.cluster.stop()
        one.broker.cut()
        two.broker.let_go("@all")
        await settle()
        assert here(bob) == {"alice", "bob"}
        await all_of_them.clock.advance(LEASE * 1.5)
        assert here(bob) == {"bob"}


async def test_a_change_that_was_asked_for_in_vain_is_asked_for_again() -> None:
    async with workers(2) as all_of_them:
        one, two = all_of_them
        bob = await two.guest("bob", "lobby")
        await one.guest("alice", "lobby")
        two.broker.lost, two.broker.lost_on = 1, "lobby"
        await one.guest("carol", "lobby")
        two.broker.lost, two.broker.lost_on = 2, f"@{two.node}"  # the answers
        await one.guest("dave", "lobby")
        await all_of_them.clock.advance(ANSWER_WITHIN + 0.1)
        assert two.broker.lost == 0
        assert here(bob) == {"alice", "bob"}
        await one.guest("erin", "lobby")
        assert here(bob) == {"alice", "bob", "carol", "dave", "erin"}


@pytest.mark.parametrize("body", [b"", b"[]", b"{}", b'["x",1,"bob",true]', b"\xff"])
async def test_a_malformed_change_changes_nothing_and_is_counted(body: bytes) -> None:
    async with workers(1) as all_of_them:
        (one,) = all_of_them
        alice = await one.guest("alice", "lobby")
        sealer = Sealer((b"one secret",))
        envelope = Envelope(Kind.PRESENCE, "x" * 11, 1, body)
        all_of_them.bus.carry("lobby", sealer.seal("lobby", envelope), None)
        await settle()
        assert here(alice) == {"alice"}
        assert one.hub.carrier.refused["malformed"] == 1
        change = gossip.encode(gossip.Change(0, 1, "bob", True))
        envelope = Envelope(Kind.PRESENCE, "x" * 11, 2, change)
        all_of_them.bus.carry("lobby", sealer.seal("lobby", envelope), None)
        await settle()
        assert here(alice) == {"alice", "bob"}
        await all_of_them.clock.advance(LEASE * 1.5)  # nobody ever beats for it
        assert here(alice) == {"alice"}


def _last(peer: Peer) -> dict[str, object]:
    return peer.of_type("message")[-1]
