"""A room means the same on several workers: what is said, who is in, what is missed."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from authws.decisions import gossip
from authws.decisions.envelopes import Envelope, Kind, Sealer
from authws.live import presence
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


@pytest.mark.parametrize("history", [("*=20/300",), ("*=0",)], ids=["kept", "carried"])
async def test_members_on_all_workers_hear_the_same_in_the_same_order(
    history: tuple[str, ...],
) -> None:
    async with workers(3, history=history) as all_of_them:
        peers = [
            await worker.guest(f"user{n}", "lobby")
            for n, worker in enumerate(all_of_them)
        ]
        for number in range(10):
            say(peers[number % 3], number, id=number)
        await settle()
        for peer in peers:
            assert sorted(texts(peer)) == list(range(10))
            for publisher in range(3):
                said = [n for n in texts(peer) if n % 3 == publisher]
                assert said == sorted(said)
        acks = [[m["id"] for m in peer.of_type("ack")] for peer in peers]
        assert acks == [[0, 3, 6, 9], [1, 4, 7], [2, 5, 8]]
        assert {m["from"] for m in peers[0].of_type("message")} == {
            "user0",
            "user1",
            "user2",
        }


async def test_a_worker_hears_only_rooms_that_somebody_is_in_by_way_of_it() -> None:
    async with workers(2) as (one, other):
        await one.guest("alice", "lobby")
        assert "lobby" in one.broker.channels
        assert "lobby" not in other.broker.channels
        bob = await other.guest("bob", "lobby")
        carol = await other.guest("carol", "lobby")
        bob.say(type="leave", room="lobby")
        await settle()
        assert "lobby" in other.broker.channels
        carol.leave()
        await settle()
        assert "lobby" not in other.broker.channels
        assert "lobby" in one.broker.channels


async def test_a_publish_that_the_broker_did_not_take_is_answered_with_an_error() -> (
    None
):
    async with workers(2) as (one, other):
        alice = await one.guest("alice", "lobby")
        bob = await other.guest("bob", "lobby")
        one.broker.cut()
        for number in range(20):  # no strikes for what is not the peer's fault
            say(alice, number, id=number)
            await settle()
        assert [(e["slug"], e["id"]) for e in alice.of_type("error")] == [
            ("unavailable", number) for number in range(20)
        ]
        assert alice.ending is None
        one.broker.mend()
        await settle()
        say(alice, "again", id="again")
        await settle()
        assert texts(bob) == ["again"]
        assert alice.of_type("ack") == [{"type": "ack", "id": "again"}]


async def test_nobody_joins_while_the_broker_is_away() -> None:
    async with workers(2) as (one, _):
        alice = await one.guest("alice")
        one.broker.cut()
        alice.say(type="join", room="lobby")
        await settle()
        (error,) = alice.of_type("error")
        assert (error["slug"], error["room"]) == ("unavailable", "lobby")
        assert not one.hub.rooms
        alice.say(type="leave", room="lobby")
        alice.say(type="join", room="no room")
        await settle()
        told = [(e["slug"], e.get("room")) for e in alice.of_type("error")[1:]]
        assert told == [("not_joined", "lobby"), ("room_invalid", None)]
        one.broker.mend()
        alice.say(type="join", room="lobby")
        await settle()
        assert alice.of_type("joined")


# ------------------------------------------------------------------------- who is there


async def test_presence_is_of_all_workers_and_counts_tabs() -> None:
    async with workers(3) as (one, two, three):
        alice = await one.guest("alice", "lobby")
        bob = await two.guest("bob", "lobby")
        assert here(alice) == here(bob) == {"alice", "bob"}
        tab = await three.guest("alice", "lobby")
        assert here(tab) == {"alice", "bob"}
        alice.leave()
        await settle()
        assert here(bob) == here(tab) == {"alice", "bob"}
        tab.say(type="leave", room="lobby")
        await settle()
        assert here(bob) == {"bob"}
        assert [m["event"] for m in bob.of_type("presence")] == ["left"]


async def test_those_of_a_worker_that_died_are_gone_with_its_lease() -> None:
    async with workers(3) as all_of_them:
        one, two, three = all_of_them
        alice = await one.guest("alice", "lobby")
        await two.guest("bob", "lobby")
        tab = await two.guest("alice", "lobby")
        await three.guest("carol", "lobby")
        two.die()
        await all_of_them.clock.advance(LEASE * 0.9)
        assert here(alice) == {"alice", "bob", "carol"}
        await all_of_them.clock.advance(LEASE * 0.4)
        assert here(alice) == {"alice", "carol"}
        assert tab.ending is None
        # nobody waits for the dead any more, though it never said goodbye
        dave = await one.guest("dave", "lobby", "hall")
        assert here(dave, "hall") == {"dave"}


async def test_those_of_a_worker_that_says_goodbye_are_gone_at_once() -> None:
    async with workers(2) as (one, two):
        alice = await one.guest("alice", "lobby")
        await two.guest("bob", "lobby")
        await two.hub.cluster.stop()
        await settle()
        assert here(alice) == {"alice"}


async def test_a_worker_that_cannot_hear_does_not_take_the_others_for_dead() -> None:
    async with workers(2) as all_of_them:
        one, two = all_of_them
        alice = await one.guest("alice", "lobby")
        await two.guest("bob", "lobby")
        for worker in all_of_them:
            worker.broker.cut()
        await all_of_them.clock.advance(LEASE * 5)
        assert here(alice) == {"alice", "bob"}
        for worker in all_of_them:
            worker.broker.mend()
        await all_of_them.clock.advance(LEASE * 0.5)
        assert here(alice) == {"alice", "bob"}


async def test_who_came_and_went_while_the_broker_was_away_is_told_afterwards() -> None:
    async with workers(2) as all_of_them:
        one, two = all_of_them
        alice = await one.guest("alice", "lobby")
        bob = await two.guest("bob", "lobby")
        await two.guest("carol", "lobby")
        one.broker.cut()
        bob.leave()
        await settle()
        await two.guest("dave", "lobby")
        one.broker.mend()
        await all_of_them.clock.advance(1)
        assert here(alice) == {"alice", "carol", "dave"}


@pytest.mark.parametrize("lost", [1, 2, 3])
async def test_a_lost_change_is_asked_for_when_the_next_is_heard(lost: int) -> None:
    async with workers(2) as all_of_them:
        one, two = all_of_them
        alice = await one.guest("alice", "lobby")
        await two.guest("bob", "lobby")
        one.broker.lost = lost
        for number in range(lost):
            await two.guest(f"user{number}", "lobby")
        await two.guest("last", "lobby")
        await all_of_them.clock.advance(1)
        assert here(alice) == {"alice", "bob", "last"} | {
            f"user{number}" for number in range(lost)
        }


async def test_two_that_open_a_room_at_once_see_each_other() -> None:
    async with workers(2) as (one, two):
        alice, bob = await one.guest("alice"), await two.guest("bob")
        alice.say(type="join", room="lobby")
        bob.say(type="join", room="lobby")
        await settle()
        assert here(alice) == here(bob) == {"alice", "bob"}


async def test_a_worker_that_comes_later_is_asked_and_asks() -> None:
    async with workers(1) as all_of_them:
        alice = await all_of_them[0].guest("alice", "lobby")
        starting = asyncio.ensure_future(all_of_them.one_more())
        await all_of_them.clock.advance(1)
        bob = await (await starting).guest("bob", "lobby")
        assert here(alice) == here(bob) == {"alice", "bob"}


async def test_many_joins_in_one_turn_are_one_question() -> None:
    async with workers(2) as all_of_them:
        one, two = all_of_them
        await one.guest("alice", *(f"room{number}" for number in range(50)))
        peers = [await two.guest(f"user{number}") for number in range(50)]
        before = len(all_of_them.bus.sent)
        for number, peer in enumerate(peers):
            peer.say(type="join", room=f"room{number}")
        await settle()
        for number, peer in enumerate(peers):
            assert here(peer, f"room{number}") == {"alice", f"user{number}"}
        # a question and its answer, and what each of the fifty changes
        assert len(all_of_them.bus.sent) - before <= 50 + 4


async def test_a_long_answer_comes_in_parts_and_is_awaited_whole(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(presence, "ANSWERED_AT_ONCE", 20)
    async with workers(2) as all_of_them:
        one, two = all_of_them
        names = [f"room{number}" for number in range(12)]
        await one.guest("a-subject-of-some-length", *names[::2])
        peers = [await two.guest("bob") for _ in names]
        for peer, name in zip(peers, names, strict=True):
            peer.say(type="join", room=name)
        await settle()
        for number, peer in enumerate(peers):
            (joined,) = peer.of_type("joined")
            others = [] if number % 2 else ["a-subject-of-some-length"]
            assert joined["members"] == [*others, "bob"]
        before = len(all_of_them.said(gossip.Answer))
        two.hub.cluster.tell(one.node, gossip.Ask(7, dict.fromkeys(names, 0)))
        await settle()
        answers = all_of_them.said(gossip.Answer)[before:]
        assert [answer.id for answer in answers] == [0, 0, 0, 0, 0, 7]
        assert [name for answer in answers for name in answer.rooms] == names


@pytest.mark.parametrize("name", ["bob", "ülkü-\N{SNOWMAN}", '"quoted"'])
async def test_a_roster_that_no_message_holds_comes_in_parts(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(presence, "ANSWERED_AT_ONCE", 100)
    async with workers(2, max_presence=0) as all_of_them:
        one, two = all_of_them
        subjects = {f"{name}{number}" for number in range(25)}
        for subject in sorted(subjects):
            await one.guest(subject, "lobby")
        await one.guest("apart", "hall")
        before = len(all_of_them.said(gossip.Answer))
        alice = await two.guest("alice", "lobby")
        assert here(alice) == subjects | {"alice"}
        assert alice.of_type("presence") == []  # all of them were there already
        answers = all_of_them.said(gossip.Answer)[before:]
        parts = [answer.rosters["lobby"] for answer in answers]
        assert [part.is_part for part in parts] == [True] * (len(parts) - 1) + [False]
        assert len(parts) >= 25 * (len(name) + 2) / 100
        assert all(len(gossip.encode(part.subjects)) <= 102 for part in parts)


@pytest.mark.parametrize(("members", "is_told"), [(3, True), (4, False)])
async def test_a_big_room_tells_its_number_only(members: int, is_told: bool) -> None:
    async with workers(2, max_presence=3) as (one, two):
        alice = await one.guest("alice", "lobby")
        others = [await two.guest(f"u{n}", "lobby") for n in range(members - 1)]
        joined = others[-1].of_type("joined")[0]
        if is_told:
            assert joined["members"] == ["alice", "u0", "u1"]
            assert "count" not in joined
        else:
            assert (joined["members"], joined["count"]) == ([], members)
        told = [m["subject"] for m in alice.of_type("presence")]
        assert told == ["u0", "u1"]


async def test_its_limit_is_the_same_whichever_way_somebody_came() -> None:
    async with workers(2, max_presence=3) as (one, two):
        near = await one.guest("near", "lobby")
        far = await two.guest("far", "lobby")
        start = position(far.of_type("joined")[0])
        for name in ("third", "fourth"):
            await one.guest(name, "lobby")
        for peer in (near, far):
            subjects = [m["subject"] for m in peer.of_type("presence")]
            assert subjects[-1] == "third"
        far.leave()
        await settle()
        for count, name in ((4, "far"), (4, "far"), (5, "fifth")):
            back = await two.guest(name, "lobby", since=start)
            joined = back.of_type("joined")[0]
            assert joined["recovered"] is True
            assert (joined["members"], joined["count"]) == ([], count)
            assert not back.of_type("presence")


# ---------------------------------------------------------------------- what was missed


async def test_who_comes_back_on_another_worker_is_told_what_was_missed() -> None:
    async with workers(2) as (one, two):
        alice = await one.guest("alice", "lobby")
        bob = await one.guest("bob", "lobby")
        say(alice, "heard")
        await settle()
        (heard,) = bob.of_type("message")
        bob.leave()
        await settle()
        for number in range(5):
            say(alice, number)
        await settle()
        back = await two.guest("bob", "lobby", since=position(heard))
        (joined,) = back.of_type("joined")
        assert joined["recovered"] is True
        assert position(joined) == position(heard)
        assert texts(back) == list(range(5))
        say(alice, "now")
        await settle()
        assert texts(back) == [*range(5), "now"]
        assert back.of_type("message")[:-1] == alice.of_type("message")[1:-1]
        assert here(alice) == here(back) == {"alice", "bob"}


async def test_a_position_is_told_with_the_join_where_nothing_was_said_yet() -> None:
    async with workers(2) as (one, two):
        bob = await one.guest("bob", "lobby")
        start = position(bob.of_type("joined")[0])
        alice = await one.guest("alice", "lobby")
        bob.leave()
        say(alice, "missed")
        await settle()
        back = await two.guest("bob", "lobby", since=start)
        assert texts(back) == ["missed"]


async def test_what_is_gone_is_said_to_be_gone_and_nothing_is_replayed() -> None:
    async with workers(2) as (one, two):
        alice = await one.guest("alice", "lobby")
        start = position(alice.of_type("joined")[0])
        for number in range(25):
            say(alice, number)
            await settle()
        back = await two.guest("bob", "lobby", since=start)
        (joined,) = back.of_type("joined")
        assert joined["recovered"] is False
        assert position(joined) == position(alice.of_type("message")[-1])
        assert texts(back) == []
        say(alice, "now")
        await settle()
        assert texts(back) == ["now"]


@pytest.mark.parametrize(
    "since",
    [
        {"epoch": "another", "offset": 0},
        {"epoch": "first", "offset": 9_999},
        {"epoch": "", "offset": 0},
    ],
)
async def test_a_position_that_never_was_recovers_none(
    since: dict[str, Any],
) -> None:
    async with workers(2) as (one, two):
        alice = await one.guest("alice", "lobby")
        say(alice, "before")
        await settle()
        back = await two.guest("bob", "lobby", since=since)
        assert back.of_type("joined")[0]["recovered"] is False
        assert texts(back) == []


async def test_a_room_that_keeps_nothing_recovers_nothing() -> None:
    async with workers(2, history=("kept*=20/300", "*=0")) as (one, two):
        alice = await one.guest("alice", "lobby", "kept-1")
        assert "epoch" not in alice.of_type("joined")[0]
        assert "epoch" in alice.of_type("joined")[1]
        say(alice, "x")
        say(alice, "y", room="kept-1")
        await settle()
        assert ["epoch" in m for m in alice.of_type("message")] == [False, True]
        somewhere = {"epoch": "first", "offset": 0}
        bob = await two.guest("bob", "lobby", since=somewhere)
        assert bob.of_type("joined")[0]["recovered"] is False


@pytest.mark.parametrize(
    "since",
    [
        {"epoch": "first"},
        {"offset": 1},
        {"epoch": 1, "offset": 1},
        {"epoch": "first", "offset": -1},
        {"epoch": "first", "offset": 2**63},
        {"epoch": "first", "offset": 1.5},
        {"epoch": "e" * 65, "offset": 1},
        "first:1",
    ],
)
async def test_what_is_no_position_is_malformed(since: Any) -> None:
    async with workers(1) as (one,):
        bob = await one.guest("bob")
        bob.say(type="join", room="lobby", since=since)
        await settle()
        assert bob.of_type("error")[0]["slug"] == "malformed"
        assert not one.hub.rooms


async def test_what_is_said_while_a_peer_recovers_comes_behind_and_once() -> None:
    async with workers(2) as (one, two):
        alice = await one.guest("alice", "lobby")
        carol = await two.guest("carol", "lobby")
        start = position(alice.of_type("joined")[0])
        for number in range(5):
            say(alice, number)
        await settle()
        two.broker.gate.clear()
        back = await two.guest("bob", "lobby", since=start)
        for number in range(5, 10):
            say(alice, number)
        await settle()
        assert texts(back) == []
        two.broker.gate.set()
        await settle()
        say(alice, 10)
        await settle()
        assert texts(back) == texts(carol) == list(range(11))


async def test_a_peer_that_reads_slowly_recovers_without_being_ended() -> None:
    """More than its outbox holds: it is read for, not thrown at."""
    async with workers(2) as (one, two):
        alice = await one.guest("alice", "lobby")
        start = position(alice.of_type("joined")[0])
        for number in range(20):
            say(alice, f"{number} " + "x" * 60_000)
            await settle()
        bob = await two.guest("bob")
        bob.reads.clear()
        bob.say(type="join", room="lobby", since=start)
        await settle()
        say(alice, "meanwhile")
        await settle()
        bob.reads.set()
        for _ in range(20):
            await settle()
        assert bob.ending is None
        assert [str(text).split()[0] for text in texts(bob)] == [
            *(str(number) for number in range(20)),
            "meanwhile",
        ]
        assert here(bob) == {"alice", "bob"}


# ---------------------------------------------------------------- when things break


async def test_members_resume_without_loss_where_the_history_reaches() -> None:
    async with workers(2) as (one, two):
        alice = await one.guest("alice", "lobby")
        bob = await two.guest("bob", "lobby")
        say(alice, "before")
        await settle()
        two.broker.cut()
        for number in range(5):
            say(alice, number)
        await settle()
        two.broker.mend()
        say(alice, "after")
        await settle()
        assert texts(bob) == ["before", *range(5), "after"]
        assert bob.of_type("resync") == []
        assert two.hub.rooms.recovered["resumed"] == 1


async def test_members_are_told_to_resync_where_it_does_not() -> None:
    async with workers(2) as (one, two):
        alice = await one.guest("alice", "lobby")
        bob = await two.guest("bob", "lobby")
        two.broker.cut()
        for number in range(25):
            say(alice, number)
            await settle()
        two.broker.mend()
        await settle()
        say(alice, "after")
        await settle()
        (told,) = bob.of_type("resync")
        assert told["room"] == "lobby"
        assert position(told) == position(alice.of_type("message")[-2])
        assert bob.heard.index(told) < bob.heard.index(bob.of_type("message")[-1])
        assert texts(bob)[-1] == "after"


async def test_members_are_told_to_resync_where_nothing_is_kept() -> None:
    async with workers(2, history=("*=0",)) as (one, two):
        alice = await one.guest("alice", "lobby")
        bob = await two.guest("bob", "lobby")
        two.broker.cut()
        say(alice, "lost")
        await settle()
        two.broker.mend()
        say(alice, "after")
        await settle()
        assert [m["type"] for m in bob.heard[-2:]] == ["resync", "message"]
        assert texts(bob) == ["after"]
        assert alice.of_type("resync") == []


async def test_a_message_that_is_lost_on_the_way_is_noticed_at_the_next() -> None:
    async with workers(2, history=("*=0",)) as (one, two):
        alice = await one.guest("alice", "lobby")
        bob = await two.guest("bob", "lobby")
        say(alice, "first")
        await settle()
        two.broker.lost = 1
        say(alice, "lost")
        say(alice, "next")
        await settle()
        assert [m["type"] for m in bob.heard[-2:]] == ["resync", "message"]
        assert texts(bob) == ["first", "next"]


async def test_a_broker_that_lost_its_memory_is_another_epoch() -> None:
    async with workers(2) as all_of_them:
        one, two = all_of_them
        alice = await one.guest("alice", "lobby")
        bob = await two.guest("bob", "lobby")
        for number in range(5):
            say(alice, number)
        await settle()
        for worker in all_of_them:
            worker.broker.cut()
        all_of_them.bus.forget_all()
        for worker in all_of_them:
            worker.broker.mend()
        await settle()
        say(alice, "after")
        await settle()
        for peer in (alice, bob):
            assert len(peer.of_type("resync")) == 1
            assert texts(peer) == [*range(5), "after"]
            assert peer.of_type("message")[-1]["epoch"] == "another1"


async def test_what_is_doubled_on_the_way_is_heard_once() -> None:
    async with workers(2) as (one, two):
        alice = await one.guest("alice", "lobby")
        bob = await two.guest("bob", "lobby", "plain")
        say(alice, "once")
        await settle()
        bus = one.broker._bus
        channel, data = bus.sent[-1]
        replay = bus.shelf.replay(channel, two.hub.rooms["lobby"].keep, None)  # type: ignore[arg-type]
        bus.carry(channel, data, replay.top)
        await settle()
        assert texts(bob) == ["once"]


# ----------------------------------------------------------------- what is not genuine


@pytest.mark.parametrize("channel", ["lobby", "@all"])
@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xa1",
        b"\xa1" * 40,
        b'{"type":"message","room":"lobby","from":"admin","data":1,"at":0}',
        bytes(range(256)) * 300,
        "\N{SNOWMAN}".encode(),
    ],
    ids=["empty", "short", "zeros", "bare", "big", "utf8"],
)
async def test_what_others_write_into_the_broker_is_refused(
    channel: str, data: bytes
) -> None:
    async with workers(1) as all_of_them:
        (one,) = all_of_them
        alice = await one.guest("alice", "lobby")
        before = len(alice.heard)
        all_of_them.bus.carry(channel, data, None)
        await settle()
        assert len(alice.heard) == before
        assert one.hub.carrier.refused["forged"] == 1
        say(alice, "still here")
        await settle()
        assert texts(alice) == ["still here"]


async def test_an_envelope_for_one_channel_is_none_for_another() -> None:
    async with workers(2) as all_of_them:
        one, two = all_of_them
        alice = await one.guest("alice", "lobby", "hall")
        await two.guest("bob", "hall")
        say(alice, "for the hall", room="hall")
        await settle()
        _, data = all_of_them.bus.sent[-1]
        all_of_them.bus.carry("lobby", data, None)
        await settle()
        assert texts(alice) == []
        assert one.hub.carrier.refused["forged"] == 1


async def test_a_key_of_somebody_else_opens_nothing() -> None:
    async with workers(1) as all_of_them:
        (one,) = all_of_them
        alice = await one.guest("alice", "lobby")
        forged = Sealer([b"another secret"]).seal(
            "lobby", Envelope(Kind.MESSAGE, "x" * 11, 1, b'{"type":"message"}')
        )
        all_of_them.bus.carry("lobby", forged, None)
        await settle()
        assert alice.of_type("message") == []
