"""What opening a room costs, and that nobody is missed where the directory is wrong."""

from __future__ import annotations

import pytest

from authws.decisions import gossip
from authws.live import directory
from authws.live.cluster import ANSWER_WITHIN
from authws.live.directory import Directory
from authws.live.presence import LEARN_AGAIN_AFTER
from tests.cluster.workers import LEASE, Worker, Workers, here, settle, workers

SETTLED = directory.SETTLE + 0.05


def directory_of(worker: Worker) -> Directory:
    return worker.hub.rooms._presence._directory


def home_of(all_of_them: Workers, name: str) -> Worker:
    (home,) = {directory_of(w).home(name) for w in all_of_them}
    return next(worker for worker in all_of_them if worker.node == home)


def away_from(worker: Worker, all_of_them: Workers, count: int = 1) -> list[str]:
    """Return names of rooms whose home is another worker."""
    names = (f"room{number}" for number in range(1000))
    found = [name for name in names if home_of(all_of_them, name) is not worker]
    return found[:count]


def told(all_of_them: Workers) -> tuple[int, ...]:
    """How often it was said that rooms were opened, who has them, and asked who is
    in them."""
    kinds = (gossip.Opened, gossip.Holders, gossip.Ask, gossip.Answer)
    return tuple(len(all_of_them.said(kind)) for kind in kinds)


def more(after: tuple[int, ...], before: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(a - b for a, b in zip(after, before, strict=True))


async def test_who_opens_a_room_asks_those_who_have_it_and_nobody_else() -> None:
    async with workers(8) as all_of_them:
        (name,) = away_from(all_of_them[0], all_of_them)
        first, second, third = [
            worker for worker in all_of_them if worker is not home_of(all_of_them, name)
        ][:3]
        before = told(all_of_them)
        alice = await first.guest("alice", name)
        assert more(told(all_of_them), before) == (1, 1, 0, 0)
        before = told(all_of_them)
        bob = await second.guest("bob", name)
        assert more(told(all_of_them), before) == (1, 1, 1, 1)
        before = told(all_of_them)
        carol = await third.guest("carol", name)
        assert more(told(all_of_them), before) == (1, 1, 2, 2)
        for peer in (alice, bob, carol):
            assert here(peer, name) == {"alice", "bob", "carol"}
        assert carol.of_type("joined")[0]["members"] == ["alice", "bob", "carol"]


@pytest.mark.parametrize(("holders", "asked"), [(2, 2), (3, 1)])
async def test_where_too_many_have_it_all_are_asked_at_once(
    monkeypatch: pytest.MonkeyPatch, holders: int, asked: int
) -> None:
    monkeypatch.setattr(directory, "NAMED_EACH", 2)
    async with workers(6) as all_of_them:
        (name,) = away_from(all_of_them[-1], all_of_them)
        for number in range(holders):
            await all_of_them[number].guest(f"u{number}", name)
        before = told(all_of_them)
        last = await all_of_them[-1].guest("last", name)
        assert more(told(all_of_them), before)[2] == asked
        expected = {f"u{number}" for number in range(holders)} | {"last"}
        assert set(last.of_type("joined")[0]["members"]) == expected


async def test_what_the_home_does_not_know_is_told_at_the_first_change() -> None:
    """It was lost, or another worker was the home a moment ago."""
    async with workers(5) as all_of_them:
        (name,) = away_from(all_of_them[4], all_of_them)
        alice = await all_of_them[0].guest("alice", name)
        bob = await all_of_them[1].guest("bob", name)
        directory_of(home_of(all_of_them, name))._holders.clear()
        carol = await all_of_them[4].guest("carol", name)
        for peer in (alice, bob, carol):
            assert here(peer, name) == {"alice", "bob", "carol"}


async def test_what_was_told_already_is_not_told_again() -> None:
    async with workers(3) as all_of_them:
        for number, worker in enumerate(all_of_them):
            before = len(all_of_them.said(gossip.Answer))
            await worker.guest(f"u{number}", "lobby")
            assert len(all_of_them.said(gossip.Answer)) - before == number


async def test_a_home_that_does_not_answer_is_done_without_and_replaced() -> None:
    async with workers(4) as all_of_them:
        one, two = all_of_them[:2]
        names = [
            name
            for name in away_from(one, all_of_them, 200)
            if home_of(all_of_them, name) is all_of_them[3]
        ][:2]
        await one.guest("alice", *names)
        all_of_them[3].die()
        bob = await two.guest("bob")
        bob.say(type="join", room=names[0])
        await settle()
        assert bob.of_type("joined") == []
        await all_of_them.clock.advance(ANSWER_WITHIN + 0.1)
        assert bob.of_type("joined")[0]["members"] == ["alice", "bob"]
        await all_of_them.clock.advance(LEASE * 1.5)
        dead = all_of_them.pop()
        home = home_of(all_of_them, names[1])
        assert home is one or one.node in directory_of(home)._holders[names[1]]
        before = told(all_of_them)
        carol = await two.guest("carol", names[1])
        assert carol.of_type("joined")[0]["members"] == ["alice", "carol"]
        assert more(told(all_of_them), before)[2] == 1
        all_of_them.append(dead)


async def test_a_newcomer_is_told_what_it_is_the_home_of() -> None:
    async with workers(2) as all_of_them:
        names = [f"room{number}" for number in range(40)]
        await all_of_them[0].guest("alice", *names)
        before = told(all_of_them)
        await all_of_them.start(1)
        newcomer = all_of_them[2]
        moved = {name for name in names if home_of(all_of_them, name) is newcomer}
        assert moved
        assert set(directory_of(newcomer)._holders) == moved
        assert more(told(all_of_them), before) == (1, 0, 0, 0)
        assert moved.isdisjoint(directory_of(all_of_them[1])._holders)
        bob = await newcomer.guest("bob", *names)
        assert [m["members"] for m in bob.of_type("joined")] == [["alice", "bob"]] * 40


async def test_a_home_that_missed_something_is_told_again() -> None:
    async with workers(3) as all_of_them:
        one, two, three = all_of_them
        names = [
            name
            for name in away_from(one, all_of_them, 100)
            if home_of(all_of_them, name) is three
        ]
        three.broker.lost, three.broker.lost_on = 2, f"@{three.node}"
        peer = await one.guest("alice")
        for name in names[:2]:
            peer.say(type="join", room=name)
            await settle()
            await all_of_them.clock.advance(ANSWER_WITHIN + 0.1)
        assert not directory_of(three)._holders
        peer.say(type="join", room=names[2])  # by this it is seen that some was lost
        await settle()
        await all_of_them.clock.advance(SETTLED)
        assert set(directory_of(three)._holders) == set(names[:3])
        before = told(all_of_them)
        bob = await two.guest("bob", names[0])
        assert bob.of_type("joined")[0]["members"] == ["alice", "bob"]
        assert more(told(all_of_them), before)[2] == 1


async def test_nothing_is_remembered_of_rooms_that_are_closed() -> None:
    async with workers(3) as all_of_them:
        names = [f"room{number}" for number in range(30)]
        alice = await all_of_them[0].guest("alice", *names)
        bob = await all_of_them[1].guest("bob", *names)
        assert sum(len(directory_of(w)._holders) for w in all_of_them) >= 30
        for name in names[:10]:
            alice.say(type="leave", room=name)
        alice.say(type="join", room=names[0])  # open again, before it is told
        await settle()
        (home,) = [w for w in all_of_them if home_of(all_of_them, names[0]) is w]
        known = {home.node, *directory_of(home)._holders[names[0]]}
        assert known >= {all_of_them[0].node, all_of_them[1].node}
        alice.leave()
        bob.leave()
        await settle()
        for worker in all_of_them:
            assert not directory_of(worker)._holders
            assert not directory_of(worker)._told


async def test_a_worker_that_ended_holds_nothing() -> None:
    async with workers(3) as all_of_them:
        one, two, three = all_of_them
        names = [f"room{number}" for number in range(30)]
        await one.guest("alice", *names)
        one.die()
        await all_of_them.clock.advance(LEASE * 1.5)
        for worker in (two, three):
            assert not directory_of(worker)._holders


async def test_after_an_outage_for_all_each_asks_those_who_share_its_rooms() -> None:
    """Not everybody about everything: that is the moment when all are busy."""
    async with workers(6) as all_of_them:
        peers = [
            await worker.guest(f"u{number}", f"room{number // 2}")
            for number, worker in enumerate(all_of_them)
        ]
        for worker in all_of_them:
            worker.broker.cut()
        peers[0].leave()
        for worker in all_of_them:
            worker.broker.mend()
        before = told(all_of_them)
        await settle()
        await all_of_them.clock.advance(LEARN_AGAIN_AFTER + SETTLED)
        # each asks who shares its room, and is asked, at once and when all is settled
        assert more(told(all_of_them), before)[2] <= 2 * len(all_of_them)
        assert here(peers[1], "room0") == {"u1"}
        for number in range(2, 6):
            pair = {f"u{number - number % 2}", f"u{number - number % 2 + 1}"}
            assert here(peers[number], f"room{number // 2}") == pair


async def test_who_tells_a_home_later_hears_of_who_was_there_before() -> None:
    """Both were away, and came back one before and one behind the home."""
    async with workers(3) as all_of_them:
        early, late, home = all_of_them
        name = next(
            name
            for name in away_from(early, all_of_them, 100)
            if home_of(all_of_them, name) is home
        )
        lisa = await late.guest("lisa", name)
        late.broker.cut()
        home.broker.cut()
        erik = await early.guest("erik")
        erik.say(type="join", room=name)
        await settle()
        await all_of_them.clock.advance(2 * ANSWER_WITHIN + 0.1)
        assert erik.of_type("joined")
        late.broker.mend()
        await settle()
        await all_of_them.clock.advance(LEARN_AGAIN_AFTER - 0.05)
        home.broker.mend()
        await settle()
        await all_of_them.clock.advance(1)
        assert here(lisa, name) == here(erik, name) == {"lisa", "erik"}


async def test_rooms_that_were_closed_in_an_outage_are_forgotten() -> None:
    async with workers(2) as all_of_them:
        one, two = all_of_them
        names = away_from(one, all_of_them, 90)
        alice = await one.guest("alice", *names)
        await one.guest("bob", *names[:3])
        assert len(directory_of(two)._holders) == 90
        one.broker.cut()
        alice.leave()
        await settle()
        one.broker.mend()
        await all_of_them.clock.advance(1)
        assert set(directory_of(two)._holders) == set(names[:3])


async def test_a_closing_that_was_lost_is_told_with_the_next() -> None:
    async with workers(2) as all_of_them:
        one, two = all_of_them
        first, second = away_from(one, all_of_them, 2)
        alice = await one.guest("alice", first, second)
        two.broker.lost, two.broker.lost_on = 1, f"@{two.node}"
        for name in (first, second):
            alice.say(type="leave", room=name)
            await settle()
        await all_of_them.clock.advance(1)
        assert not directory_of(two)._holders
