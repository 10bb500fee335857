"""Tickets: one connection each, whoever races for it, and what the URL may carry."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path

import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus

from tests.grants import Ending, ending, enter, grant, hear, knock, present, say, until
from tests.live.calls import bearer, calling
from tests.running import Service, running

pytestmark = pytest.mark.usefixtures("database")

RACERS = 100
IN: Ending = (0, "in")
USED: Ending = (1008, "ticket_used")
REFUSED_BEFORE: Ending = (403, "")


async def race(
    service: Service, path: str, ticket: str, start: asyncio.Event
) -> Ending:
    """Come in and be greeted, or be refused; an echo greets with the echo."""
    await start.wait()
    try:
        async with await knock(service, path, ticket) as peer:
            await peer.send('{"type":"ping"}')
            await hear(peer)
            return IN
    except InvalidStatus as refusal:
        return refusal.response.status_code, ""
    except ConnectionClosed as closed:
        received = closed.rcvd
        return (int(received.code), received.reason) if received else (1006, "")


async def of_a_hundred(*doors: tuple[Service, str]) -> Counter[Ending]:
    """Race for one ticket, an equal share at each door; count how it ended."""
    ticket = (await grant(doors[0][0], "query-param")).ticket()
    start = asyncio.Event()
    racing = [
        asyncio.create_task(race(*doors[number % len(doors)], ticket, start))
        for number in range(RACERS)
    ]
    start.set()
    return Counter(await asyncio.gather(*racing))


@pytest.mark.parametrize("refuse", ["after_accept", "before_accept"])
async def test_of_a_hundred_at_once_one_gets_in(tmp_path: Path, refuse: str) -> None:
    async with running(tmp_path, refuse=refuse) as service:
        await service.add_user("alice")
        before = refuse == "before_accept"
        # its peer speaks after accept: there is a close frame in either mode
        refusal = {
            "/ws/query-param": REFUSED_BEFORE if before else USED,
            "/ws/query-param/echo": REFUSED_BEFORE if before else USED,
            "/ws/first-message": USED,
        }
        for path, used in refusal.items():
            outcomes = await of_a_hundred((service, path))
            assert outcomes == {IN: 1, used: RACERS - 1}, path
        events = service.security_events
        reasons = Counter(e["reason"] for e in events if e["event"] == "refused")
        assert reasons == {"ticket_used": len(refusal) * (RACERS - 1)}
        admitted = [event for event in events if event["event"] == "connected"]
        assert len(admitted) == len(refusal)
        await until(lambda: not service.house.hub.connections)


async def test_all_doors_of_all_processes_are_one_race(tmp_path: Path) -> None:
    """Two services on one database and one set of keys, as workers are."""
    settings = {"data_dir": tmp_path / "data"}
    async with (
        running(tmp_path, **settings) as one,
        running(tmp_path, **settings) as two,
    ):
        await one.add_user("alice")
        paths = ("/ws/query-param", "/ws/first-message", "/ws/query-param/echo")
        doors = [(service, path) for path in paths for service in (one, two)]
        for _ in range(3):
            assert await of_a_hundred(*doors) == {IN: 1, USED: RACERS - 1}


async def test_a_ticket_renews_once_as_well(tmp_path: Path) -> None:
    async with running(tmp_path) as service:
        await service.add_user("alice")
        one = await grant(service, "query-param")
        ticket = one.ticket()
        async with (
            enter(service, "/ws/query-param", one) as first,
            enter(service, "/ws/query-param", one) as second,
        ):
            await say(first, type="auth", token=ticket)
            assert (await hear(first))["type"] == "auth_ok"
            await say(second, type="auth", token=ticket)
            assert await ending(second) == USED
            await say(first, type="ping")
            assert (await hear(first))["type"] == "pong"


@pytest.mark.parametrize("refuse", ["after_accept", "before_accept"])
@pytest.mark.parametrize("path", ["/ws/query-param", "/ws/first-message"])
async def test_a_ticket_that_finds_no_place_is_not_used_up(
    tmp_path: Path, path: str, refuse: str
) -> None:
    settings = {"max_connections_per_user": 1, "refuse": refuse}
    async with running(tmp_path, **settings) as service:
        await service.add_user("alice")
        one = await grant(service, "query-param")
        ticket = one.ticket()
        is_told = refuse == "after_accept" or path == "/ws/first-message"
        full = (1008, "too_many_connections") if is_told else REFUSED_BEFORE
        async with enter(service, path, one) as first:
            for _ in range(2):
                assert await present(service, path, ticket) == full
            # a renewal opens nothing: there is a place for it
            await say(first, type="auth", token=one.ticket())
            assert (await hear(first))["type"] == "auth_ok"
        await until(lambda: not service.house.hub.connections)
        async with enter(service, path, ticket):
            pass
        await until(lambda: not service.house.hub.connections)
        used = USED if is_told else REFUSED_BEFORE
        assert await present(service, path, ticket) == used


async def test_a_users_last_place_is_given_to_one_ticket_of_many(
    tmp_path: Path,
) -> None:
    async with running(tmp_path, max_connections_per_user=1) as service:
        await service.add_user("alice")
        one = await grant(service, "query-param")
        peers = [
            await service.open(f"/ws/query-param?token={one.ticket()}") for _ in "123"
        ]
        assert len(service.house.hub.connections) == 1
        for peer in peers:
            await peer.close()


@pytest.mark.parametrize("end", ["logout", "expiry"])
async def test_a_connection_by_ticket_ends_with_the_session_that_drew_it(
    tmp_path: Path, end: str
) -> None:
    async with running(tmp_path, access_ttl=2 if end == "expiry" else 900) as service:
        await service.add_user("alice")
        login = await service.login()
        ticket = await service.ticket(login["access_token"])
        async with await service.open(f"/ws/query-param?token={ticket}") as peer:
            welcome = await hear(peer)
            assert welcome["expires_at"] == pytest.approx(
                service.clock.now() + (2 if end == "expiry" else 900), abs=1.9
            )
            if end == "logout":
                headers = bearer(login["access_token"])
                async with calling(service, headers=headers) as http:
                    assert (await http.post("/auth/logout")).status_code == 204
            reason = "token_revoked" if end == "logout" else "token_expired"
            assert await ending(peer) == (1008, reason)


# ----------------------------------------------------------- tickets only, in the URL


@pytest.mark.parametrize("path", ["/ws/query-param", "/ws/query-param/echo"])
async def test_where_tickets_are_the_rule_the_url_takes_no_access_token(
    tmp_path: Path, path: str
) -> None:
    async with running(tmp_path, query_param_accepts="ticket") as service:
        await service.add_user("alice")
        one = await grant(service, "query-param")
        expired = one.access(age=901)
        for token in (one.access(), expired):
            assert await present(service, path, token) == (1008, "token_invalid")
        async with enter(service, path, one.ticket()) as peer:
            await say(peer, type="ping")
            await hear(peer)
        # elsewhere a token is not in anybody's log
        async with enter(service, path.replace("query-param", "first-message"), one):
            pass


async def test_where_tickets_are_the_rule_a_token_still_renews_in_band(
    tmp_path: Path,
) -> None:
    """A renewal is a message: it is in no URL."""
    async with running(tmp_path, query_param_accepts="ticket") as service:
        await service.add_user("alice")
        one = await grant(service, "query-param")
        async with enter(service, "/ws/query-param", one.ticket(ttl=60)) as peer:
            await say(peer, type="auth", token=one.access())
            renewed = await hear(peer)
            assert renewed["type"] == "auth_ok"
            assert renewed["expires_at"] > service.clock.now() + 600
