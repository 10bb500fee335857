"""How many connections a user has, on all workers together."""

from __future__ import annotations

import pytest

from authws.decisions import gossip
from tests.cluster.workers import LEASE, Worker, Workers, settle, workers
from tests.engine import Peer

FULL = (1008, "too_many_connections")


def knock(worker: Worker, subject: str = "alice", issuer: str = "") -> Peer:
    token = worker.issue(subject, session=f"{subject}-{len(worker.peers)}", ttl=9000)
    if issuer:
        token = worker.issue(subject, session="", ttl=9000, issuer=issuer)
    return worker.knock("query-param", token)


async def enter(worker: Worker, subject: str = "alice") -> Peer:
    """Come in, or be refused; time passes, so that nobody came at the same moment."""
    peer = knock(worker, subject)
    await worker.clock.advance(0.01)
    return peer


def inside(all_of_them: Workers, subject: str = "alice") -> int:
    """How many connections of a user are open, on all workers."""
    return sum(
        connection.is_open and connection.principal.subject == subject
        for worker in all_of_them
        for connection in worker.hub.connections.values()
    )


def told(all_of_them: Workers) -> int:
    """How many messages it took so far."""
    return len(all_of_them.said(gossip.Held, gossip.HeldBy))


def agree(all_of_them: Workers, subject: str = "alice") -> bool:
    """Whether every worker that has a user knows of all that others have."""
    counts = [worker.hub._by_user.get(subject, {}) for worker in all_of_them]
    return all(
        worker.hub._quota.elsewhere(subject) == sum(map(len, counts)) - len(own)
        for worker, own in zip(all_of_them, counts, strict=True)
        if own
    )


# ------------------------------------------------------------------------- the limit


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("limit", [1, 2, 5])
async def test_one_more_than_the_limit_is_refused(limit: int, count: int) -> None:
    async with workers(count, max_connections_per_user=limit) as all_of_them:
        peers = [await enter(all_of_them[n % count]) for n in range(limit)]
        assert [peer.ending for peer in peers] == [None] * limit
        for worker in all_of_them:
            assert (await enter(worker)).ending == FULL
        assert inside(all_of_them) == limit
        assert [peer.ending for peer in peers] == [None] * limit
        # and a place that is free is free for whichever worker asks
        peers[0].leave()
        await settle()
        assert (await enter(all_of_them[-1])).ending is None
        assert (await enter(all_of_them[0])).ending == FULL
        assert (await enter(all_of_them[0], "bob")).ending is None


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("limit", [1, 2, 5])
async def test_the_oldest_has_to_go_for_the_newest(limit: int, count: int) -> None:
    async with workers(
        count, max_connections_per_user=limit, when_full="evict_oldest"
    ) as all_of_them:
        peers = [await enter(all_of_them[n % count]) for n in range(limit + 4)]
        await all_of_them.clock.advance(3)
        endings = [peer.ending for peer in peers]
        assert endings == [FULL] * 4 + [None] * limit
        assert inside(all_of_them) == limit


@pytest.mark.parametrize("when_full", ["reject_new", "evict_oldest"])
async def test_a_limit_of_zero_is_off_and_nothing_is_said(when_full: str) -> None:
    async with workers(
        2, max_connections_per_user=0, when_full=when_full
    ) as all_of_them:
        peers = [await enter(all_of_them[n % 2]) for n in range(30)]
        assert [peer.ending for peer in peers] == [None] * 30
        for peer in peers:
            peer.leave()
        await all_of_them.start()
        assert told(all_of_them) == 0


@pytest.mark.parametrize(("count", "limit", "share"), [(2, 5, 2), (3, 10, 3)])
async def test_nothing_is_said_of_who_has_no_more_than_a_share(
    count: int, limit: int, share: int
) -> None:
    async with workers(count, max_connections_per_user=limit) as all_of_them:
        peers = [await enter(worker) for worker in all_of_them for _ in range(share)]
        for peer in peers:
            peer.leave()
        await settle()
        for worker in all_of_them:
            for _ in range(share):
                await enter(worker)
        assert told(all_of_them) == 0
        await enter(all_of_them[0])
        assert told(all_of_them) > 0
        assert agree(all_of_them)


async def test_what_one_more_costs_once_it_is_told() -> None:
    async with workers(3, max_connections_per_user=9) as all_of_them:
        for _ in range(4):
            await enter(all_of_them[0])
        before = told(all_of_them)
        peer = await enter(all_of_them[0])
        assert told(all_of_them) == before + 1
        peer.leave()
        await settle()
        assert told(all_of_them) == before + 2


async def test_somebody_elses_alice_is_not_ours() -> None:
    async with workers(2, max_connections_per_user=2) as all_of_them:
        one, two = all_of_them
        ours = [await enter(one) for _ in range(2)]
        theirs = [knock(two, issuer="https://elsewhere.example") for _ in range(2)]
        await settle()
        assert [peer.ending for peer in (*ours, *theirs)] == [None] * 4
        for worker in all_of_them:
            assert (await enter(worker)).ending == FULL
            another = knock(worker, issuer="https://elsewhere.example")
            third = knock(worker, issuer="https://third.example")
            await settle()
            assert (another.ending, third.ending) == (FULL, None)


# ------------------------------------------------------------------ at the same moment


@pytest.mark.parametrize("when_full", ["reject_new", "evict_oldest"])
@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("limit", [1, 2, 4])
async def test_who_comes_at_the_same_moment_by_several_workers(
    limit: int, count: int, when_full: str
) -> None:
    """All workers come to the same answer, so that neither none nor all have to go."""
    async with workers(
        count, max_connections_per_user=limit, when_full=when_full
    ) as all_of_them:
        for _ in range(3):
            arrivals = [knock(worker) for worker in all_of_them for _ in range(limit)]
            await settle()
            await all_of_them.clock.advance(3)
            assert inside(all_of_them) == limit
            assert agree(all_of_them)
            endings = [peer.ending for peer in arrivals]
            assert set(endings) <= {None, FULL}


async def test_what_is_late_on_the_way_is_settled_when_it_comes() -> None:
    async with workers(2, max_connections_per_user=4) as all_of_them:
        one, two = all_of_them
        for worker in all_of_them:
            worker.broker.hold()
        first = [await enter(one) for _ in range(4)]
        second = [await enter(two) for _ in range(4)]
        assert inside(all_of_them) == 8
        for worker in all_of_them:
            worker.broker.let_go()
        await all_of_them.clock.advance(3)
        # the newest have to go
        assert [peer.ending for peer in first] == [None] * 4
        assert [peer.ending for peer in second] == [FULL] * 4
        assert agree(all_of_them)


# -------------------------------------------------------------- workers come and go


async def test_a_worker_that_dies_frees_its_places_with_its_lease() -> None:
    async with workers(2, max_connections_per_user=2) as all_of_them:
        one, two = all_of_them
        for _ in range(2):
            await enter(one)
        one.die()
        await all_of_them.clock.advance(LEASE * 0.9)
        assert (await enter(two)).ending == FULL
        await all_of_them.clock.advance(LEASE * 0.4)
        assert [(await enter(two)).ending for _ in range(3)] == [None, None, FULL]


async def test_a_worker_that_says_goodbye_frees_its_places_at_once() -> None:
    async with workers(2, max_connections_per_user=2) as all_of_them:
        one, two = all_of_them
        for _ in range(2):
            await enter(one)
        await one.hub.cluster.stop()
        await settle()
        assert (await enter(two)).ending is None


@pytest.mark.parametrize("evicts", [False, True])
async def test_the_limit_holds_with_a_worker_that_joins(evicts: bool) -> None:
    """What was a share of two is more than a share of three."""
    async with workers(
        2,
        max_connections_per_user=4,
        when_full="evict_oldest" if evicts else "reject_new",
    ) as all_of_them:
        for worker in all_of_them:
            for _ in range(2):
                await enter(worker)
        assert told(all_of_them) == 0
        await all_of_them.start()
        peer = await enter(all_of_them[-1])
        await all_of_them.clock.advance(3)
        assert peer.ending == (None if evicts else FULL)
        assert inside(all_of_them) == 4
        assert agree(all_of_them)


async def test_a_worker_that_joins_knows_who_is_full() -> None:
    async with workers(1, max_connections_per_user=2) as all_of_them:
        for _ in range(2):
            await enter(all_of_them[0])
        await all_of_them.start()
        assert (await enter(all_of_them[1])).ending == FULL


async def test_the_share_is_less_than_one_where_workers_outnumber_the_limit() -> None:
    async with workers(3, max_connections_per_user=2) as all_of_them:
        for _ in range(2):
            await enter(all_of_them[0])
        for worker in all_of_them:
            assert (await enter(worker)).ending == FULL


# ------------------------------------------------------------------- what is lost


async def test_a_lost_word_of_a_user_is_made_good_with_the_next_beat() -> None:
    async with workers(2, max_connections_per_user=4) as all_of_them:
        one, two = all_of_them
        await enter(two)
        for _ in range(2):
            await enter(one)
        two.broker.lost, two.broker.lost_on = 1, "@all"
        await enter(one)
        assert two.broker.lost == 0
        assert two.hub._quota.elsewhere("alice") == 0
        await all_of_them.clock.advance(LEASE / 2)
        assert agree(all_of_them)
        assert (await enter(two)).ending == FULL
        assert inside(all_of_them) == 4


async def test_a_lost_word_of_a_departure_is_made_good_with_the_next_beat() -> None:
    """Also of a user whom nobody tells of any more."""
    async with workers(2, max_connections_per_user=2) as all_of_them:
        one, two = all_of_them
        peers = [await enter(one) for _ in range(2)]
        two.broker.lost, two.broker.lost_on = 2, "@all"
        for peer in peers:
            peer.leave()
        await settle()
        assert two.broker.lost == 0
        assert two.hub._quota.elsewhere("alice") == 2
        await all_of_them.clock.advance(LEASE / 2)
        assert two.hub._quota.elsewhere("alice") == 0
        assert (await enter(two)).ending is None


@pytest.mark.parametrize("cut", [0, 1])
async def test_what_happened_while_a_worker_was_cut_off_is_told_afterwards(
    cut: int,
) -> None:
    """Whichever of the two: the one that tells, or the one that is told."""
    async with workers(2, max_connections_per_user=4) as all_of_them:
        one, two = all_of_them
        peers = [await enter(one) for _ in range(3)]
        all_of_them[cut].broker.cut()
        peers[0].leave()
        await settle()
        for _ in range(2):
            await enter(one)
        all_of_them[cut].broker.mend()
        await settle()
        assert agree(all_of_them)
        assert two.hub._quota.elsewhere("alice") == 4
        assert (await enter(two)).ending == FULL


async def test_users_who_came_to_both_sides_of_a_cut_are_settled_behind_it() -> None:
    async with workers(2, max_connections_per_user=3) as all_of_them:
        one, two = all_of_them
        for worker in all_of_them:
            worker.broker.cut()
        first = [await enter(one) for _ in range(3)]
        second = [await enter(two) for _ in range(3)]
        assert inside(all_of_them) == 6
        for worker in all_of_them:
            worker.broker.mend()
        await all_of_them.clock.advance(3)
        assert [peer.ending for peer in first] == [None] * 3
        assert [peer.ending for peer in second] == [FULL] * 3


async def test_a_worker_that_was_taken_for_dead_counts_again_when_it_is_back() -> None:
    """It never knew: it was stopped, and went on where it was."""
    async with workers(2, max_connections_per_user=4) as all_of_them:
        one, two = all_of_them
        for _ in range(4):
            await enter(one)
        one.stall()
        await all_of_them.clock.advance(LEASE * 1.5)
        assert two.hub._quota.elsewhere("alice") == 0
        late = await enter(two)
        assert inside(all_of_them) == 5
        one.go_on()
        await all_of_them.clock.advance(LEASE / 2)
        assert late.ending == FULL
        assert inside(all_of_them) == 4
        assert agree(all_of_them)
