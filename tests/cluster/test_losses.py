"""What goes wrong on the way, at the worst moment: it is made good, or it is said."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from authws.decisions import gossip
from authws.decisions.complaints import COMPLAIN_EVERY
from authws.decisions.envelopes import Envelope, Kind, Sealer
from authws.decisions.history import Retention
from authws.exceptions import UnavailableError
from authws.live import carrier as carrier_module
from authws.live import rooms as rooms_module
from authws.live.carrier import FRESH_FOR
from authws.live.cluster import ANSWER_WITHIN, BEATS_PER_LEASE
from authws.live.presence import LEARN_AGAIN_AFTER
from tests.cluster.workers import (
    LEASE,
    Worker,
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
        assert two.hub.carrier.refused == {"doubled": 2}


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
        at = int(all_of_them.clock.now())
        envelope = Envelope(Kind.PRESENCE, "x" * 11, 1, body, at)
        all_of_them.bus.carry("lobby", sealer.seal("lobby", envelope), None)
        await settle()
        assert here(alice) == {"alice"}
        assert one.hub.carrier.refused["malformed"] == 1
        change = gossip.encode(gossip.Change(0, 1, "bob", True))
        envelope = Envelope(Kind.PRESENCE, "x" * 11, 2, change, at)
        all_of_them.bus.carry("lobby", sealer.seal("lobby", envelope), None)
        await settle()
        assert here(alice) == {"alice", "bob"}
        await all_of_them.clock.advance(LEASE * 1.5)  # nobody ever beats for it
        assert here(alice) == {"alice"}


def _last(peer: Peer) -> dict[str, object]:
    return peer.of_type("message")[-1]


# ---------------------------------------------------------- a broker that takes nothing


def refuse(worker: Worker) -> Callable[[], None]:
    """Have a broker that is there refuse what is published; return the end of it."""
    taking = worker.broker.publish

    def refuse(channel: str, data: bytes, keep: Retention | None = None) -> Any:
        raise UnavailableError("too much waits")

    worker.broker.publish = refuse  # type: ignore[method-assign]

    def end() -> None:
        worker.broker.publish = taking  # type: ignore[method-assign]

    return end


@pytest.mark.parametrize("is_last", [True, False])
async def test_who_left_while_nothing_was_taken_is_gone_soon_after(
    is_last: bool,
) -> None:
    async with workers(2) as all_of_them:
        one, two = all_of_them
        alice = await one.guest("alice", "lobby")
        if not is_last:
            await one.guest("carol", "lobby")
        bob = await two.guest("bob", "lobby")
        end = refuse(one)
        alice.leave()
        await settle()
        end()
        await all_of_them.clock.advance(LEASE / BEATS_PER_LEASE + LEARN_AGAIN_AFTER)
        assert here(bob) == ({"bob"} if is_last else {"bob", "carol"})
        before = len(all_of_them.bus.sent)
        await all_of_them.clock.advance(LEASE)
        # nothing but beats: it is over
        assert len(all_of_them.bus.sent) - before == 2 * BEATS_PER_LEASE


async def test_a_publish_that_fails_late_is_noted_as_well() -> None:
    async with workers(2) as (one, two):
        alice = await one.guest("alice", "lobby")
        bob = await two.guest("bob", "lobby")
        one.broker.is_unsure = True
        alice.leave()
        await settle()
        has_lost = one.hub.carrier.has_lost
        one.broker.is_unsure = False
        await one.clock.advance(LEASE)
        assert (has_lost, one.hub.carrier.has_lost) == (True, False)
        assert here(bob) == {"bob"}


async def test_all_know_each_other_again_when_a_broker_takes_what_it_refused() -> None:
    async with workers(1) as all_of_them:
        for _ in range(2):
            await all_of_them.start(1)  # each beats at another moment
        names = [f"room{number}" for number in range(12)]
        peers = [
            await worker.guest(f"u{number}", *names)
            for number, worker in enumerate(all_of_them)
        ]
        ends = [refuse(worker) for worker in all_of_them]
        await all_of_them.clock.advance(LEASE * 2)
        for end in ends:
            end()
        await all_of_them.clock.advance(LEASE)
        for name in names:
            for peer in peers:
                assert here(peer, name) == {"u0", "u1", "u2"}


# ---------------------------------------------------------------- what somebody repeats


@pytest.mark.parametrize(
    ("age", "is_heard"), [(FRESH_FOR, True), (FRESH_FOR + 1, False)]
)
@pytest.mark.parametrize("to", ["newcomer", "mourner"])
async def test_what_is_repeated_late_is_heard_by_nobody(
    to: str, age: float, is_heard: bool
) -> None:
    """By who comes later, or knew a worker that has ended: neither counted it."""
    async with workers(2, history=("*=0",)) as all_of_them:
        one, two = all_of_them
        alice = await one.guest("alice", "lobby")
        bob = await two.guest("bob", *(["lobby"] if to == "mourner" else []))
        before = len(all_of_them.bus.sent)
        say(alice, "sell")
        await settle()
        said = all_of_them.bus.sent[before:]
        heard = texts(bob)
        await all_of_them.clock.advance(age)
        if to == "mourner":
            await one.hub.cluster.stop()
            await settle()
        else:
            bob.say(type="join", room="lobby")
            await settle()
        for channel, data in said:
            all_of_them.bus.carry(channel, data, None)
        await settle()
        assert texts(bob) == heard + ["sell"] * is_heard
        assert two.hub.carrier.refused["stale"] == (not is_heard)


@pytest.mark.parametrize("offset", [FRESH_FOR + 5, -FRESH_FOR - 5])
async def test_a_worker_whose_clock_is_wrong_is_told_of(
    offset: float, caplog: pytest.LogCaptureFixture
) -> None:
    async with workers(2) as all_of_them:
        one, two = all_of_them
        await one.guest("alice", "lobby")
        bob = await two.guest("bob", "lobby")
        two.own_clock.wall_offset = offset
        await all_of_them.clock.advance(LEASE * 2)
        told = [r.getMessage() for r in caplog.records if "is not heard" in r.message]
        assert len(told) == 2  # each of the other
        assert here(bob) == {"bob"}
        assert one.hub.carrier.refused["stale"] > 1
        two.own_clock.wall_offset = 0
        await all_of_them.clock.advance(LEASE)
        assert here(bob) == {"alice", "bob"}


# ------------------------------------------------------------ workers that differ


async def test_what_was_sealed_with_another_key_is_missed_and_told_of(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Two hosts that made their secrets each for itself, on one broker."""
    async with workers(1) as all_of_them:
        await all_of_them.start(keys=(b"of its own",))
        one, two = all_of_them
        alice = await one.guest("alice", "lobby")
        bob = await two.guest("bob", "lobby")
        start = position(alice.of_type("joined")[0])
        for number in range(3):
            say(alice, number)
            say(bob, number + 10)
        await settle()
        assert texts(alice) == [0, 1, 2]
        again = await one.guest("alice", "lobby", since=start)
        assert again.of_type("joined")[0]["recovered"] is False
        told = [r.getMessage() for r in caplog.records if "AUTHWS_SECRET_KEYS" in r.msg]
        assert len(told) == 2  # by each, once
        await all_of_them.clock.advance(COMPLAIN_EVERY + LEASE)
        assert len([r for r in caplog.records if "AUTHWS_SECRET_KEYS" in r.msg]) == 4


async def test_what_is_kept_otherwise_by_another_worker_is_heard_once_and_told_of(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """By NATS, while workers are restarted with other rules, it has no place here."""
    async with workers(2) as all_of_them:
        one, two = all_of_them
        alice = await one.guest("alice", "lobby")
        bob = await two.guest("bob", "lobby")
        two.broker.lost, two.broker.lost_on = 1, "lobby"
        before = len(all_of_them.bus.sent)
        say(alice, "hello")
        await settle()
        ((channel, data),) = all_of_them.bus.sent[before:]
        heard = texts(bob)
        for _ in range(2):
            all_of_them.bus.carry(channel, data, None)
            await settle()
        assert (heard, texts(bob)) == ([], ["hello"])
        assert "epoch" not in bob.of_type("message")[0]
        assert texts(alice) == ["hello"]  # it was heard, with its place
        assert two.hub.carrier.refused["doubled"] == 1
        assert len([r for r in caplog.records if "AUTHWS_HISTORY" in r.msg]) == 1


async def test_no_more_is_remembered_of_what_was_heard_than_may_be(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(carrier_module, "MAX_RECENT", 5)
    async with workers(2) as (one, two):
        alice = await one.guest("alice", "lobby")
        await two.guest("bob", "lobby")
        for number in range(20):
            say(alice, number)
        await settle()
        assert len(two.hub.carrier._recent) == 5
