"""What one worker revoked ends on all of them: told at once, and read if that fails."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, cast

import pytest

from authws import close_codes
from authws.decisions import gossip
from authws.exceptions import UnavailableError
from authws.live.authority import SessionRecords
from authws.live.cluster import ANSWER_WITHIN
from authws.live.door import DoorStyle, NotAdmittedError
from authws.service.revocation_feed import LOOK_EVERY, RevocationFeed
from authws.stores.sessions import Revocation, Sessions
from authws.strategies.handshake import Handshake
from tests.cluster.workers import Worker, settle, workers
from tests.engine import Peer

INTERVAL = 5.0
FAIL_CLOSED_AFTER = 60.0
REVOKED = (1008, "token_revoked")
UNAVAILABLE = (1013, "unavailable")


class Table:
    """The database's revocations, which all workers share."""

    def __init__(self) -> None:
        self.rows: list[Revocation] = []


class FakeSessions:
    """One worker's way to the database."""

    def __init__(self, table: Table) -> None:
        self.failure: Exception | None = None
        self.reads = 0
        self._table = table

    async def revocations_since(self, at: float) -> list[Revocation]:
        self.reads += 1
        await asyncio.sleep(0)
        if self.failure is not None:
            raise self.failure
        return [row for row in self._table.rows if row.at >= at]

    def fail(self) -> None:
        self.failure = UnavailableError("the database is away")

    def recover(self) -> None:
        self.failure = None


class Site:
    """A worker with its feed, put together as a house does it."""

    def __init__(self, worker: Worker, table: Table) -> None:
        self.worker = worker
        self.sessions = FakeSessions(table)
        self.went_blind: list[tuple[bool, float]] = []
        self.evicted: list[str] = []
        self._table = table
        records = SessionRecords(
            cast(Sessions, self.sessions),
            worker.hub.revocations,
            worker.clock,
            on_evicted=self.evicted.append,
        )
        self.feed = RevocationFeed(
            cast(Sessions, self.sessions),
            records,
            worker.hub,
            worker.broker,
            worker.clock,
            interval=INTERVAL,
            fail_closed_after=FAIL_CLOSED_AFTER,
            went_blind=self._go_blind,
        )
        self.tasks = self.feed.start()

    def _go_blind(self, is_blind: bool) -> None:
        self.went_blind.append((is_blind, self.worker.clock.monotonic()))
        self.worker.door.is_blind = is_blind
        if is_blind:
            self.worker.hub.end_everything(close_codes.TRY_AGAIN_LATER)

    def write(self, kind: Any, key: str) -> Revocation:
        """Have the database take a revocation."""
        revocation = Revocation(kind, key, self.worker.clock.now())
        self._table.rows.append(revocation)
        return revocation

    def revoke(self, kind: Any, key: str) -> int:
        return self.feed.end(self.write(kind, key))

    def go_deaf(self) -> None:
        """Lose both ways of knowing anything."""
        self.sessions.fail()
        self.worker.broker.cut()


Sites = list[Site]


@asynccontextmanager
async def sites(count: int = 2) -> AsyncIterator[Sites]:
    async with workers(count) as all_of_them:
        table = Table()
        started = [Site(worker, table) for worker in all_of_them]
        await settle()
        yield started
        for site in started:
            for task in site.tasks:
                assert not task.done(), task.exception()
                task.cancel()
        await settle()


async def pass_time(where: Sites | Site, seconds: float) -> None:
    site = where[0] if isinstance(where, list) else where
    await site.worker.clock.advance(seconds)


async def guests(where: Sites, subject: str = "alice") -> list[Peer]:
    """One guest by way of each worker, all of one user."""
    return [await site.worker.guest(subject) for site in where]


def endings(peers: list[Peer]) -> list[tuple[int, str] | None]:
    return [peer.ending for peer in peers]


# ------------------------------------------------------------------------------ told


async def test_a_push_ends_what_was_revoked_on_all_workers_at_once() -> None:
    async with sites(3) as all_of_them:
        alice, bob = await guests(all_of_them), await guests(all_of_them, "bob")
        reads = [site.sessions.reads for site in all_of_them]
        assert all_of_them[0].revoke("subject", "alice") == 1
        await settle()
        assert endings(alice) == [REVOKED] * 3
        assert endings(bob) == [None] * 3
        assert [site.sessions.reads for site in all_of_them] == reads
        assert all(
            site.worker.hub.revocations.covers("any", "alice", 0)
            for site in all_of_them
        )


async def test_a_session_is_ended_by_its_id_and_nobody_else_is() -> None:
    async with sites(2) as all_of_them:
        one, two = all_of_them
        peers = [
            await two.worker.enter(token=two.worker.issue("alice", session=session))
            for session in ("tab", "tab", "phone")
        ]
        assert one.revoke("session", "tab") == 0
        await settle()
        assert endings(peers) == [REVOKED, REVOKED, None]
        assert two.evicted == ["tab"]


async def test_other_rights_end_nothing() -> None:
    async with sites(2) as all_of_them:
        peers = await guests(all_of_them)
        all_of_them[0].revoke("scopes", "alice")
        await pass_time(all_of_them, INTERVAL * 3)
        assert endings(peers) == [None, None]


async def test_what_was_opened_since_then_stays() -> None:
    async with sites(2) as all_of_them:
        one, two = all_of_them
        old = await two.worker.guest("alice")
        revocation = one.write("subject", "alice")
        await pass_time(one, 0.1)
        new = await two.worker.guest("alice")
        one.feed.end(revocation)
        await pass_time(one, INTERVAL * 3)
        assert endings([old, new]) == [REVOKED, None]


async def test_an_administrator_is_told_how_many_ended_on_all_workers() -> None:
    async with sites(3) as all_of_them:
        one, two, three = all_of_them
        peers = await guests(all_of_them)
        more = [await three.worker.guest("alice") for _ in range(2)]
        count = await one.feed.end_everywhere(one.write("subject", "alice"))
        assert count == 5
        assert endings([*peers, *more]) == [REVOKED] * 5
        # and no second time
        assert await two.feed.end_everywhere(two.write("subject", "alice")) == 0


async def test_an_administrator_does_not_wait_long_for_a_worker_that_is_dead() -> None:
    async with sites(3) as all_of_them:
        one, two, _ = all_of_them
        await guests(all_of_them)
        two.worker.stall()
        counting = asyncio.ensure_future(
            one.feed.end_everywhere(one.write("subject", "alice"))
        )
        await pass_time(one, ANSWER_WITHIN)
        assert counting.done()
        assert await counting == 2
        two.worker.go_on()
        await settle()


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"kind": "everything", "key": "x", "at": 0.0},
        {"kind": "subject", "key": 1, "at": 0.0},
        {"kind": "subject", "key": "alice", "at": "now"},
        {"kind": "subject", "key": "alice"},
    ],
)
async def test_a_malformed_request_revokes_nothing_and_is_survived(
    arguments: dict[str, Any],
) -> None:
    async with sites(2) as all_of_them:
        one, two = all_of_them
        peers = await guests(all_of_them)
        cluster = one.worker.hub.cluster
        asking = asyncio.ensure_future(cluster.request("revoke", **arguments))
        await pass_time(one, ANSWER_WITHIN)
        answers, silent = await asking
        assert (answers, set(silent)) == ({}, {two.worker.node})
        assert endings(peers) == [None, None]
        one.revoke("subject", "alice")
        await settle()
        assert endings(peers) == [REVOKED] * 2


# ----------------------------------------------------------------------- what is lost


async def test_a_lost_push_is_read_at_the_interval() -> None:
    async with sites(2) as all_of_them:
        one, two = all_of_them
        peer = await two.worker.guest("alice")
        await pass_time(one, 0.2)
        one.write("subject", "alice")  # and it died before it told anybody
        await pass_time(one, INTERVAL - 0.3)
        assert endings([peer]) == [None]
        await pass_time(one, 0.2)
        assert endings([peer]) == [REVOKED]


async def test_a_lost_push_is_read_at_once_when_it_is_noticed() -> None:
    async with sites(2) as all_of_them:
        one, two = all_of_them
        peer = await two.worker.guest("alice")
        two.worker.broker.lost, two.worker.broker.lost_on = 1, "@all"
        one.revoke("subject", "alice")
        await settle()
        assert endings([peer]) == [None]
        one.worker.hub.cluster.tell_all(gossip.Beat())
        await settle()
        assert endings([peer]) == [REVOKED]


async def test_what_was_told_while_a_worker_was_cut_off_is_read_once_it_is_back() -> (
    None
):
    async with sites(2) as all_of_them:
        one, two = all_of_them
        peer = await two.worker.guest("alice")
        two.worker.broker.cut()
        one.revoke("subject", "alice")
        await settle()
        assert endings([peer]) == [None]
        two.worker.broker.mend()
        await settle()
        assert endings([peer]) == [REVOKED]


async def test_a_reading_that_fails_is_tried_again(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with sites(1) as (one,):
        peer = await one.worker.guest("alice")
        one.sessions.fail()
        one.write("subject", "alice")
        await pass_time(one, INTERVAL * 3)
        assert endings([peer]) == [None]
        assert "revocations could not be read" in caplog.text
        one.sessions.recover()
        await pass_time(one, INTERVAL)
        assert endings([peer]) == [REVOKED]


async def test_a_fault_of_ours_in_reading_ends_no_watch(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with sites(1) as (one,):
        peer = await one.worker.guest("alice")
        one.sessions.failure = RuntimeError("a fault of ours")
        await pass_time(one, INTERVAL)
        assert any(record.levelno == logging.ERROR for record in caplog.records)
        one.sessions.recover()
        one.write("subject", "alice")
        await pass_time(one, INTERVAL)
        assert endings([peer]) == [REVOKED]


async def test_a_transaction_that_showed_late_is_found() -> None:
    """It notes its time when it begins; readers see it when it is over."""
    async with sites(2) as all_of_them:
        one, two = all_of_them
        peer = await two.worker.guest("alice")
        row = one.write("subject", "alice")
        one._table.rows.remove(row)
        await pass_time(one, 30.0)
        one._table.rows.append(row)
        await pass_time(one, INTERVAL)
        assert endings([peer]) == [REVOKED]


# --------------------------------------------------------------------- failing closed


@pytest.mark.parametrize("source", ["broker", "database"])
async def test_one_of_the_two_ways_is_enough(source: str) -> None:
    async with sites(2) as all_of_them:
        one, two = all_of_them
        peers = await guests(all_of_them)
        if source == "broker":
            two.sessions.fail()
        else:
            two.worker.broker.cut()
        await pass_time(one, FAIL_CLOSED_AFTER * 3)
        assert not two.went_blind
        one.revoke("subject", "alice")
        await pass_time(one, INTERVAL)
        assert endings(peers) == [REVOKED] * 2


async def test_who_can_neither_hear_nor_read_ends_everything_on_time() -> None:
    async with sites(2) as all_of_them:
        one, two = all_of_them
        peers = await guests(all_of_them)
        await pass_time(one, 0.5)
        two.go_deaf()
        began = two.worker.clock.monotonic()
        # what it knew last is up to a look old
        await pass_time(one, FAIL_CLOSED_AFTER - LOOK_EVERY - 0.1)
        assert two.went_blind == []
        assert endings(peers) == [None, None]
        await pass_time(one, LOOK_EVERY + 0.2)
        ((is_blind, at),) = two.went_blind
        assert is_blind
        assert FAIL_CLOSED_AFTER - LOOK_EVERY <= at - began <= FAIL_CLOSED_AFTER
        assert endings(peers) == [None, UNAVAILABLE]
        assert two.feed.is_blind
        assert one.went_blind == []
        await pass_time(one, FAIL_CLOSED_AFTER * 3)
        assert len(two.went_blind) == 1


async def test_a_broker_that_stands_still_is_no_knowledge_until_that_is_found_out() -> (
    None
):
    async with sites(1) as (one,):
        (peer,) = await guests([one])
        await pass_time(one, 0.5)
        began = one.worker.broker.silent_since = one.worker.clock.monotonic()
        one.sessions.fail()
        await pass_time(one, FAIL_CLOSED_AFTER - LOOK_EVERY)
        assert one.went_blind == []
        one.worker.broker.cut()
        await pass_time(one, LOOK_EVERY * 2)
        ((_, at),) = one.went_blind
        assert FAIL_CLOSED_AFTER <= at - began <= FAIL_CLOSED_AFTER + LOOK_EVERY
        assert endings([peer]) == [UNAVAILABLE]


async def test_a_short_outage_of_both_ends_nothing() -> None:
    async with sites(1) as (one,):
        (peer,) = await guests([one])
        for _ in range(5):
            one.go_deaf()
            await pass_time(one, FAIL_CLOSED_AFTER * 0.9)
            one.worker.broker.mend()
            one.sessions.recover()
            await pass_time(one, LOOK_EVERY * 2)
        assert one.went_blind == []
        assert endings([peer]) == [None]


@pytest.mark.parametrize("back", ["broker", "database"])
async def test_the_door_opens_again_when_either_is_back(back: str) -> None:
    async with sites(2) as all_of_them:
        one, two = all_of_them
        two.go_deaf()
        await pass_time(one, FAIL_CLOSED_AFTER + LOOK_EVERY)
        refused = two.worker.knock("query-param", two.worker.issue("alice"))
        await settle()
        assert (refused.is_accepted, refused.of_type("auth_ok")) == (False, [])
        assert refused.ending is not None
        assert refused.ending[1] == "unavailable"
        assert await _status_at(two) == 503
        if back == "broker":
            two.worker.broker.mend()
        else:
            two.sessions.recover()
        await pass_time(one, max(LOOK_EVERY, INTERVAL))
        assert [is_blind for is_blind, _ in two.went_blind] == [True, False]
        assert (await two.worker.guest("alice")).ending is None


async def _status_at(site: Site) -> int:
    """The HTTP status that a handshake is answered with."""
    sent: list[dict[str, Any]] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        raise AssertionError("nothing is asked of it")

    scope = {
        "type": "websocket",
        "headers": [],
        "query_string": b"token=" + site.worker.issue("alice").encode(),
        "client": ("192.0.2.1", 1),
        "subprotocols": [],
        "extensions": {"websocket.http.response": {}},
    }
    strategy = site.worker.strategies["query-param"]
    visit = site.worker.door.open_connection(
        strategy, Handshake(scope, receive, send), DoorStyle()
    )
    with pytest.raises(NotAdmittedError):
        await visit.__aenter__()
    return int(sent[0]["status"])


@pytest.mark.parametrize("strategy", ["query-param", "first-message"])
async def test_who_stands_at_the_door_when_it_goes_blind_is_not_let_in(
    strategy: str,
) -> None:
    """The credential was good when it was looked at; that is all that is known."""
    async with sites(1) as (one,):
        await pass_time(one, 0.5)
        one.go_deaf()
        await pass_time(one, FAIL_CLOSED_AFTER - LOOK_EVERY - 0.1)
        one.worker.authority.way_back.clear()
        token = one.worker.issue("alice")
        peer = one.worker.knock(strategy, token)
        await settle()
        if strategy == "first-message":
            peer.say(type="auth", token=token)
        await settle()
        await pass_time(one, LOOK_EVERY + 0.2)
        assert one.feed.is_blind
        one.worker.authority.way_back.set()
        await settle()
        assert peer.ending == UNAVAILABLE
        assert peer.of_type("auth_ok") == []
        assert not one.worker.hub.connections


async def test_who_hears_nobody_does_not_count_as_hearing() -> None:
    """The broker is there, and does not let us subscribe."""
    async with workers(0) as all_of_them:
        worker = Worker(all_of_them.bus, all_of_them.clock)
        all_of_them.append(worker)
        worker.broker.is_away = True
        await worker.start()
        worker.broker.refuses_to_subscribe = True
        worker.broker.mend()
        site = Site(worker, Table())
        site.sessions.fail()
        await pass_time(site, FAIL_CLOSED_AFTER + LOOK_EVERY)
        worker.broker.refuses_to_subscribe = False
        await pass_time(site, LOOK_EVERY * 2)
        assert [is_blind for is_blind, _ in site.went_blind] == [True, False]
        for task in site.tasks:
            task.cancel()
        await settle()


# -------------------------------------------------------------------------- the clock


@pytest.mark.parametrize("step", [-3600.0, -30.0, 30.0, 3600.0])
async def test_what_is_revoked_after_the_clock_was_set_is_found(step: float) -> None:
    """On all machines, as when it was wrong on all of them."""
    async with sites(2) as all_of_them:
        one, two = all_of_them
        peer = await two.worker.guest("alice")
        await pass_time(one, INTERVAL * 20)
        for site in all_of_them:
            site.worker.clock.wall_offset += step
        token = two.worker.issue("bob", ttl=9000)
        later = await two.worker.enter(token=token)
        one.write("subject", "bob")
        await pass_time(one, INTERVAL)
        assert later.ending == REVOKED
        assert peer.ending in (None, (1008, "token_expired"))


async def test_what_was_revoked_while_a_machine_was_suspended_is_found() -> None:
    """Its monotonic clock stood still meanwhile: to it, the wall clock was set."""
    async with sites(2) as all_of_them:
        one, two = all_of_them
        token = two.worker.issue("alice", ttl=9000)
        peer = await two.worker.enter(token=token)
        await pass_time(one, INTERVAL)
        two.worker.stall()
        one.worker.clock.wall_offset += 600
        one.write("subject", "alice")
        one.worker.clock.wall_offset += 3000
        two.worker.clock.wall_offset += 3600
        two.worker.broker.held = []  # and what was told meanwhile is lost
        two.worker.go_on()
        await pass_time(one, INTERVAL)
        assert peer.ending == REVOKED


@pytest.mark.parametrize("step", [-3600.0, 3600.0])
async def test_the_clock_that_is_set_makes_nobody_blind(step: float) -> None:
    async with sites(1) as (one,):
        one.sessions.fail()
        one.worker.clock.wall_offset += step
        await pass_time(one, FAIL_CLOSED_AFTER * 2)
        assert one.went_blind == []
        one.worker.broker.cut()
        await pass_time(one, FAIL_CLOSED_AFTER / 2)
        one.worker.clock.wall_offset -= 2 * step
        await pass_time(one, FAIL_CLOSED_AFTER / 2 - LOOK_EVERY * 2)
        assert one.went_blind == []
        await pass_time(one, LOOK_EVERY * 2)
        assert one.feed.is_blind


@pytest.mark.parametrize(("step", "is_set"), [(0.9, False), (1.1, True), (-1.1, True)])
async def test_deadlines_are_looked_at_when_the_clock_was_set(
    step: float, is_set: bool, caplog: pytest.LogCaptureFixture
) -> None:
    async with sites(1) as (one,):
        await pass_time(one, INTERVAL)
        one.worker.clock.wall_offset += step
        await pass_time(one, INTERVAL)
        assert ("the clock was set by" in caplog.text) is is_set
