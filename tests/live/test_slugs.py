"""Every slug of the contract, on every endpoint where it can occur, off the wire.

``TABLE`` is the reading matter: one row is one way to provoke one ending. Each row is
run on both endpoints of each of its strategies, in both ``refuse`` modes, and what the
``websockets`` client received is compared.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed

from authws import close_codes
from authws.exceptions import UnavailableError
from authws.live.connection import Connection
from authws.service.protocols import ProtocolLimits
from tests.grants import (
    PATIENCE,
    Ending,
    ending,
    enter,
    grant,
    hear,
    present,
    random_text,
    say,
    strategy_of,
    until,
)
from tests.running import ENDPOINTS, STRATEGIES, Service, running

on_one_loop = pytest.mark.asyncio(loop_scope="module")

Provoke = Callable[[Service, str], Awaitable[Ending]]

# ---------------------------------------------------------------------- at the door


async def nothing(service: Service, path: str) -> Ending:
    return await present(service, path)


async def empty(service: Service, path: str) -> Ending:
    return await present(service, path, "")


async def another_message_first(service: Service, path: str) -> Ending:
    join = '{"type":"join","room":"lobby"}'
    return await present(service, path, frame=join)


async def silence(service: Service, path: str) -> Ending:
    return await ending(service.open(path))


async def twice(service: Service, path: str) -> Ending:
    one = (await grant(service, strategy_of(path))).credential
    if strategy_of(path) == "query-param":
        return await present(service, path, query=f"?token={one}&token={one}")
    if strategy_of(path) == "session-cookie":
        cookie = ("cookie", f"authws={one}; authws={one}")
        return await present(service, path, headers=[cookie])
    frame = f'{{"type":"auth","token":"{one}","token":"{one}"}}'
    return await present(service, path, frame=frame)


async def authorization_beside(service: Service, path: str) -> Ending:
    one = await grant(service, strategy_of(path))
    header = ("authorization", f"Bearer {one.access()}")
    return await present(service, path, one.credential, headers=[header])


async def token_in_query_beside(service: Service, path: str) -> Ending:
    one = await grant(service, strategy_of(path))
    query = f"?token={one.access()}"
    return await present(service, path, one.credential, query=query)


async def foreign_cookie_beside(service: Service, path: str) -> Ending:
    one = await grant(service, strategy_of(path))
    other = await grant(service, "session-cookie", "bob")
    cookie = ("cookie", f"authws={other.cookie}")
    return await present(service, path, one.credential, headers=[cookie])


async def not_json(service: Service, path: str) -> Ending:
    return await present(service, path, frame="auth me")


async def binary_first(service: Service, path: str) -> Ending:
    one = await grant(service, strategy_of(path))
    frame = json.dumps({"type": "auth", "token": one.access()}).encode()
    return await present(service, path, frame=frame)


async def garbage(service: Service, path: str) -> Ending:
    return await present(service, path, "abc")


async def tampered(service: Service, path: str) -> Ending:
    head, body, signature = (
        (await grant(service, strategy_of(path))).access().split(".")
    )
    first = "A" if signature[0] != "A" else "B"
    return await present(service, path, f"{head}.{body}.{first}{signature[1:]}")


async def token_of_no_session(service: Service, path: str) -> Ending:
    one = await grant(service, strategy_of(path))
    return await present(service, path, one.access(session=random_text()))


async def token_of_another_subject(service: Service, path: str) -> Ending:
    one = await grant(service, strategy_of(path))
    return await present(service, path, one.access(subject="bob"))


async def access_token_where_tickets_only(service: Service, path: str) -> Ending:
    return await present(service, path, (await grant(service, "query-param")).access())


async def expired_token(service: Service, path: str) -> Ending:
    one = await grant(service, strategy_of(path))
    return await present(service, path, one.access(age=901))


async def token_of_ended_session(service: Service, path: str) -> Ending:
    one = await grant(service, strategy_of(path))
    token = one.access()
    await one.end()
    return await present(service, path, token)


async def ticket_again(service: Service, path: str) -> Ending:
    ticket = (await grant(service, strategy_of(path))).ticket()
    async with enter(service, path, ticket):
        return await present(service, path, ticket)


async def forged_cookie(service: Service, path: str) -> Ending:
    return await present(service, path, f"{random_text()}.{random_text()}")


async def cookie_of_no_session(service: Service, path: str) -> Ending:
    cookies = service.house.cookies
    return await present(service, path, cookies.sign(cookies.new()))


async def idle_session(service: Service, path: str) -> Ending:
    one = await grant(service, strategy_of(path), idle_ttl=0.001)
    await until(_passed(service, 0.002))
    return await present(service, path, one.cookie)


async def old_session(service: Service, path: str) -> Ending:
    one = await grant(service, strategy_of(path), ttl=0.001)
    await until(_passed(service, 0.002))
    return await present(service, path, one.cookie)


async def ended_session(service: Service, path: str) -> Ending:
    one = await grant(service, strategy_of(path))
    await one.end()
    return await present(service, path, one.cookie)


async def foreign_origin(service: Service, path: str) -> Ending:
    one = await grant(service, strategy_of(path))
    return await present(service, path, one.credential, origin="https://evil.example")


async def null_origin(service: Service, path: str) -> Ending:
    one = await grant(service, strategy_of(path))
    return await present(service, path, one.credential, origin="null")


async def two_origins(service: Service, path: str) -> Ending:
    one = await grant(service, strategy_of(path))
    again = [("origin", service.origin)]
    return await present(
        service, path, one.credential, origin=service.origin, headers=again
    )


async def no_origin(service: Service, path: str) -> Ending:
    one = await grant(service, strategy_of(path))
    return await present(service, path, one.credential, origin=None)


async def cross_site_fetch(service: Service, path: str) -> Ending:
    one = await grant(service, strategy_of(path))
    header = ("sec-fetch-site", "cross-site")
    return await present(service, path, one.credential, headers=[header])


async def many_handshakes(service: Service, path: str) -> Ending:
    one = await grant(service, strategy_of(path))
    here = f"127.{random.randrange(1, 255)}.{random.randrange(255)}.2"
    async with enter(service, path, one, local_addr=(here, 0)):
        return await present(service, path, one.credential, local_addr=(here, 0))


async def second_connection(service: Service, path: str) -> Ending:
    await until(lambda: not service.house.hub.connections)  # of the case before
    one = await grant(service, strategy_of(path))
    async with enter(service, path, one):
        return await present(service, path, one.credential)


async def second_handshake_at_once(service: Service, path: str) -> Ending:
    one = await grant(service, strategy_of(path))
    here = f"127.{random.randrange(1, 255)}.{random.randrange(255)}.3"
    async with await service.open("/ws/first-message", local_addr=(here, 0)) as peer:
        assert (await hear(peer))["type"] == "auth_required"
        return await present(service, path, one.credential, local_addr=(here, 0))


async def long_first_message(service: Service, path: str) -> Ending:
    return await present(service, path, "a" * 8192)


async def no_database(service: Service, path: str) -> Ending:
    one = await grant(service, strategy_of(path))
    sessions = service.house.sessions

    async def load(_: str) -> None:
        raise UnavailableError("the database is away")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sessions, "load", load)
        return await present(service, path, one.credential)


# ----------------------------------------------------------------- once connected


async def token_runs_out(service: Service, path: str) -> Ending:
    one = await grant(service, strategy_of(path))
    async with enter(service, path, one.access(ttl=0.7)) as peer:
        return await ending(peer)


async def session_runs_out(service: Service, path: str) -> Ending:
    one = await grant(service, strategy_of(path), ttl=0.7)
    async with enter(service, path, one) as peer:
        return await ending(peer)


async def logged_out_elsewhere(service: Service, path: str) -> Ending:
    one = await grant(service, strategy_of(path))
    async with enter(service, path, one) as peer:
        await one.end()
        return await ending(peer)


async def user_cut_off(service: Service, path: str) -> Ending:
    one = await grant(service, strategy_of(path))
    async with enter(service, path, one) as peer:
        now = service.clock.now()
        service.loop.call_soon_threadsafe(
            service.house.hub.revoke_subject, "alice", now
        )
        return await ending(peer)


async def _renew(service: Service, path: str, **message: Any) -> Ending:
    one = await grant(service, strategy_of(path))
    async with enter(service, path, one) as peer:
        await say(peer, type="auth", **message)
        return await ending(peer)


async def renewal_without_token(service: Service, path: str) -> Ending:
    return await _renew(service, path)


async def renewal_with_a_number(service: Service, path: str) -> Ending:
    return await _renew(service, path, token=7)


async def renewal_with_garbage(service: Service, path: str) -> Ending:
    return await _renew(service, path, token="abc")


async def renewal_with_expired_token(service: Service, path: str) -> Ending:
    one = await grant(service, "query-param")
    return await _renew(service, path, token=one.access(age=901))


async def renewal_from_ended_session(service: Service, path: str) -> Ending:
    one = await grant(service, "query-param")
    token = one.access()
    await one.end()
    return await _renew(service, path, token=token)


async def renewal_with_used_ticket(service: Service, path: str) -> Ending:
    one = await grant(service, strategy_of(path))
    ticket = one.ticket()
    async with enter(service, path, one) as peer:
        await say(peer, type="auth", token=ticket)
        assert (await hear(peer))["type"] == "auth_ok"
        await say(peer, type="auth", token=ticket)
        return await ending(peer)


async def renewal_from_another_session(service: Service, path: str) -> Ending:
    other = await grant(service, "query-param")
    return await _renew(service, path, token=other.access())


async def renewal_by_another_user(service: Service, path: str) -> Ending:
    other = await grant(service, "query-param", "bob")
    return await _renew(service, path, token=other.access())


async def forbidden_over_and_over(service: Service, path: str) -> Ending:
    one = await grant(service, strategy_of(path), "carol")
    async with enter(service, path, one) as peer:
        for _ in range(service.house.settings.strikes):
            await say(peer, type="join", room="lobby")
        return await ending(peer)


async def malformed_over_and_over(service: Service, path: str) -> Ending:
    one = await grant(service, strategy_of(path))
    async with enter(service, path, one) as peer:
        for _ in range(service.house.settings.strikes):
            await peer.send("{")
        return await ending(peer)


async def message_flood(service: Service, path: str) -> Ending:
    one = await grant(service, strategy_of(path))
    async with enter(service, path, one) as peer:
        with suppress(ConnectionClosed):
            for _ in range(8):
                await say(peer, type="ping")
        return await ending(peer)


async def reads_nothing(service: Service, path: str) -> Ending:
    await until(lambda: not service.house.hub.connections)
    one = await grant(service, strategy_of(path))
    async with enter(service, path, one, max_queue=1) as peer:
        if not path.endswith("/echo"):
            await say(peer, type="join", room="lobby")
        (connection,) = service.house.hub.connections.values()
        # an echo waits for its peer: not for as long here as for a slow network
        connection.limits = replace(
            connection.limits, close_timeout=PATIENCE, send_timeout=0.2
        )
        flood = asyncio.create_task(_flood(peer, connection))
        await until(lambda: not connection.is_open)
        last = await ending(peer)  # what the kernel held, and then the close frame
        await flood
        return last


async def _flood(peer: ClientConnection, connection: Connection) -> None:
    message = json.dumps({"type": "publish", "room": "lobby", "data": "a" * 60_000})
    with suppress(ConnectionClosed):
        while connection.is_open:
            await peer.send(message)
            # a send that need not wait lets nobody else on: a server that takes
            # everything, as ours does once it has ended, would keep us from reading
            await asyncio.sleep(0)


async def binary_where_json_is_spoken(service: Service, path: str) -> Ending:
    one = await grant(service, strategy_of(path))
    async with enter(service, path, one) as peer:
        await peer.send(b'{"type":"ping"}')
        return await ending(peer)


async def message_over_64_kib(service: Service, path: str) -> Ending:
    one = await grant(service, strategy_of(path))
    async with enter(service, path, one) as peer:
        with suppress(ConnectionClosed):
            await peer.send("a" * 65_537)
        return await ending(peer)


async def broker_fails(service: Service, path: str) -> Ending:
    async def publish(*_: object) -> None:
        raise OSError("the broker is away")

    one = await grant(service, strategy_of(path))
    async with enter(service, path, one) as peer:
        await say(peer, type="join", room="lobby")
        assert (await hear(peer))["type"] == "joined"
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(service.house.broker, "publish", publish)
            await say(peer, type="publish", room="lobby", data=1)
            return await ending(peer)


def _passed(service: Service, seconds: float) -> Callable[[], bool]:
    then = service.clock.now() + seconds
    return lambda: service.clock.now() > then


# ------------------------------------------------------------------------ the table

ALL = STRATEGIES
QUERY, FIRST, COOKIE = STRATEGIES
TOKENS = (QUERY, FIRST)
FRESH: dict[str, Any] = {}

# How a refusal shows, by the place where it is decided:
HEAD = "head"  # from the request alone: 403 in `before_accept`, else 1008 + slug
DOOR = "door"  # the same, but first-message accepted to hear a message: 1008 always
PAGE = "page"  # of a foreign page: 403 in both modes, its handshake never completes
RATE = "rate"  # a limit of the address: 429 in both modes
LIVE = "live"  # of a connection that was in: always a close frame


@dataclass(frozen=True)
class Row:
    """One way to provoke one ending."""

    slug: str
    how: Provoke
    strategies: tuple[str, ...]
    where: str
    rooms_only: bool = False
    code: int = 1008
    status: int = 403
    settings: dict[str, Any] = field(default_factory=dict)

    def expected(self, strategy: str, refuse: str) -> Ending:
        if self.where == PAGE:
            return 403, ""
        if self.where == RATE:
            return 429, ""
        unseen = self.where == HEAD or (self.where == DOOR and strategy != FIRST)
        if refuse == "before_accept" and unseen:
            return self.status, ""
        return self.code, self.slug


SLOW = {
    "outbox_messages": 8,
    "message_rate": 0,
    # what the kernel holds must be read first, on a machine that may be busy
    "server": {"protocol_limits": ProtocolLimits(close_timeout=PATIENCE)},
}
ONE_EACH = {"max_connections_per_user": 1}

# fmt: off
TABLE = [
    #   slug               provoked by                    on        where  more
    Row("auth_missing",    nothing,                       ALL,      DOOR),
    Row("auth_missing",    empty,                         ALL,      DOOR),
    Row("auth_missing",    another_message_first,         (FIRST,), DOOR),
    Row("auth_missing",    renewal_without_token,         ALL,      LIVE, True),
    Row("auth_timeout",    silence,                       (FIRST,), LIVE,
        settings={"auth_timeout": 0.1}),
    Row("auth_malformed",  twice,                         ALL,      DOOR),
    Row("auth_malformed",  authorization_beside,          ALL,      HEAD),
    Row("auth_malformed",  token_in_query_beside,         (FIRST, COOKIE), HEAD),
    Row("auth_malformed",  foreign_cookie_beside,         TOKENS,   DOOR),
    Row("auth_malformed",  not_json,                      (FIRST,), DOOR),
    Row("auth_malformed",  binary_first,                  (FIRST,), DOOR),
    Row("auth_malformed",  renewal_with_a_number,         ALL,      LIVE, True),
    Row("token_invalid",   garbage,                       TOKENS,   DOOR),
    Row("token_invalid",   tampered,                      TOKENS,   DOOR),
    Row("token_invalid",   token_of_no_session,           TOKENS,   DOOR),
    Row("token_invalid",   token_of_another_subject,      TOKENS,   DOOR),
    Row("token_invalid",   access_token_where_tickets_only, (QUERY,), DOOR,
        settings={"query_param_accepts": "ticket"}),
    Row("token_invalid",   renewal_with_garbage,          ALL,      LIVE, True),
    Row("token_expired",   expired_token,                 TOKENS,   DOOR),
    Row("token_expired",   token_runs_out,                TOKENS,   LIVE),
    Row("token_expired",   renewal_with_expired_token,    ALL,      LIVE, True),
    Row("token_revoked",   token_of_ended_session,        TOKENS,   DOOR),
    Row("token_revoked",   logged_out_elsewhere,          TOKENS,   LIVE),
    Row("token_revoked",   user_cut_off,                  TOKENS,   LIVE),
    Row("token_revoked",   renewal_from_ended_session,    ALL,      LIVE, True),
    Row("ticket_used",     ticket_again,                  TOKENS,   DOOR),
    Row("ticket_used",     renewal_with_used_ticket,      ALL,      LIVE, True),
    Row("session_invalid", garbage,                       (COOKIE,), DOOR),
    Row("session_invalid", forged_cookie,                 (COOKIE,), DOOR),
    Row("session_invalid", cookie_of_no_session,          (COOKIE,), DOOR),
    Row("session_expired", idle_session,                  (COOKIE,), DOOR),
    Row("session_expired", old_session,                   (COOKIE,), DOOR),
    Row("session_expired", session_runs_out,              (COOKIE,), LIVE),
    Row("session_revoked", ended_session,                 (COOKIE,), DOOR),
    Row("session_revoked", logged_out_elsewhere,          (COOKIE,), LIVE),
    Row("session_revoked", user_cut_off,                  (COOKIE,), LIVE),
    Row("subject_changed", renewal_from_another_session,  ALL,      LIVE, True),
    Row("subject_changed", renewal_by_another_user,       ALL,      LIVE, True),
    Row("origin_forbidden", foreign_origin,               ALL,      PAGE),
    Row("origin_forbidden", null_origin,                  ALL,      PAGE),
    Row("origin_forbidden", two_origins,                  ALL,      PAGE),
    Row("origin_forbidden", no_origin,                    (COOKIE,), PAGE),
    Row("origin_forbidden", cross_site_fetch,             ALL,      PAGE),
    Row("forbidden",       forbidden_over_and_over,       ALL,      LIVE, True),
    Row("forbidden",       malformed_over_and_over,       ALL,      LIVE, True),
    Row("rate_limited",    many_handshakes,               ALL,      RATE,
        settings={"handshake_rate": 0.01}),
    Row("rate_limited",    message_flood,                 ALL,      LIVE,
        settings={"message_rate": 2}),
    Row("slow_consumer",   reads_nothing,                 ALL,      LIVE,
        settings=SLOW),
    Row("too_many_connections", second_connection,        ALL,      DOOR,
        settings=ONE_EACH),
    Row("too_many_connections", second_handshake_at_once, ALL,      RATE,
        settings={"max_connections_per_address": 1}),
    Row("text_expected",   binary_where_json_is_spoken,   ALL,      LIVE, True, 1003),
    Row("message_too_big", long_first_message,            (FIRST,), DOOR, code=1009),
    Row("message_too_big", message_over_64_kib,           ALL,      LIVE, code=1009),
    Row("internal_error",  broker_fails,                  ALL,      LIVE, True, 1011),
    Row("unavailable",     no_database,                   ALL,      DOOR, code=1013,
        status=503),
]
# fmt: on

ELSEWHERE = {"restart": "test_a_restart_closes_1012 below: it takes the service down"}

CONTRACT = {
    "auth_missing",
    "auth_timeout",
    "auth_malformed",
    "token_invalid",
    "token_expired",
    "token_revoked",
    "ticket_used",
    "session_invalid",
    "session_expired",
    "session_revoked",
    "subject_changed",
    "origin_forbidden",
    "forbidden",
    "rate_limited",
    "slow_consumer",
    "too_many_connections",
}
"""The sixteen of design section 3: clients outside this repository know them."""


def _cases() -> list[Any]:
    return [
        pytest.param(
            row, path, refuse, id=f"{row.slug}-{row.how.__name__}-{path}-{refuse}"
        )
        for refuse in ("after_accept", "before_accept")
        for row in TABLE
        for strategy in row.strategies
        for path in (f"/ws/{strategy}", f"/ws/{strategy}/echo")
        if not (row.rooms_only and path.endswith("/echo"))
    ]


Serve = Callable[..., Awaitable[Service]]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def serve(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Serve]:
    """Start a service for each set of settings, once."""
    services: dict[str, Service] = {}
    async with AsyncExitStack() as stack:

        async def get(**settings: Any) -> Service:
            key = repr(settings)
            if key not in services:
                started = running(tmp_path_factory.mktemp("service"), **settings)
                service = services[key] = await stack.enter_async_context(started)
                await service.add_user("alice")
                await service.add_user("bob")
                await service.add_user("carol", scopes=())
            return services[key]

        yield get


@on_one_loop
@pytest.mark.parametrize(("row", "path", "refuse"), _cases())
async def test_slug(row: Row, path: str, refuse: str, serve: Serve) -> None:
    service = await serve(refuse=refuse, **row.settings)
    ended = await row.how(service, path)
    assert ended == row.expected(strategy_of(path), refuse)


@on_one_loop
async def test_a_restart_closes_1012(tmp_path: Path) -> None:
    async with AsyncExitStack() as peers:
        async with running(tmp_path) as service:
            await service.add_user("alice")
            listening = []
            for path in ENDPOINTS:
                one = await grant(service, strategy_of(path))
                peer = await peers.enter_async_context(enter(service, path, one))
                listening.append(asyncio.create_task(ending(peer)))
        assert await asyncio.gather(*listening) == [(1012, "restart")] * 6


@on_one_loop
async def test_every_refusal_of_the_door_is_logged_by_its_slug(serve: Serve) -> None:
    service = await serve(refuse="after_accept")
    before = len(service.security_events)
    await present(service, "/ws/query-param", "abc")
    last = service.security_events[before:][-1]
    assert last["event"] == "refused"
    assert (last["reason"], last["strategy"]) == ("token_invalid", "query_param")


def test_the_table_is_complete() -> None:
    slugs = {row.slug for row in TABLE}
    assert slugs | ELSEWHERE.keys() == close_codes.BY_SLUG.keys()
    assert slugs.isdisjoint(ELSEWHERE)
    assert slugs >= CONTRACT


def test_the_contract_closes_1008_with_its_slugs() -> None:
    policy = {c.reason for c in close_codes.BY_SLUG.values() if c.code == 1008}
    assert policy == CONTRACT
