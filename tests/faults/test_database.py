"""PostgreSQL dies, stands still, or cannot be reached; and returns. Real processes.

One server reaches it directly, for what is done to it; another by a way of its own, for
what is done to the network.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import pytest
import pytest_asyncio

from authws.cli.stores import opened
from tests.faults.asking import (
    ANSWER,
    IN,
    LATE,
    LOGIN,
    UNAVAILABLE,
    Ending,
    draw_ticket,
    elsewhere,
    is_ready,
    present,
    status_of,
    unread,
)
from tests.fleet.fleet import Fleet, Talker, eventually, fleet
from tests.fleet.measures import note
from tests.servers.postgres import PostgresServer
from tests.servers.proxy import Proxy, proxy

pytestmark = pytest.mark.asyncio(loop_scope="module")

RECHECK = 1.0
"""Seconds; AUTHWS_RECHECK_INTERVAL here."""
READINESS = 1.5 + LATE


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def database() -> AsyncIterator[PostgresServer]:
    async with PostgresServer() as server:
        yield server


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def url(database: PostgresServer) -> AsyncIterator[str]:
    async with database.fresh_database() as fresh:
        yield fresh


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def way(url: str) -> AsyncIterator[Proxy]:
    """The way of the second server to the database."""
    async with proxy(url) as made:
        yield made


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def two(
    url: str, way: Proxy, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Fleet]:
    async with fleet(
        tmp_path_factory.mktemp("database"),
        "memory://",
        database_url=url,
        own={1: {"database_url": way.through(url)}},
        recheck_interval=RECHECK,
        login_rate=1000,
        max_connections_per_user=0,
    ) as made:
        await made.add_user("alice", "bob")
        yield made


# --------------------------------------------------------------------------- the faults


@dataclass
class Fault:
    """Something that takes the database away from a server."""

    name: str
    number: int
    """Of the server."""
    begin: Callable[[], Awaitable[None]]
    end: Callable[[], Awaitable[None]]

    @asynccontextmanager
    async def going_on(self) -> AsyncIterator[None]:
        await self.begin()
        try:
            yield
        finally:
            await self.end()

    @contextlib.contextmanager
    def measured(self, what: str, within: float) -> Any:
        began = time.monotonic()
        yield
        took = time.monotonic() - began
        note("postgresql", self.name, what, round(took, 2))
        assert took < within, what


@pytest.fixture(params=["killed", "stopped", "paused", "swallowed", "cut"])
def fault(
    request: pytest.FixtureRequest, database: PostgresServer, way: Proxy
) -> Fault:
    async def pause() -> None:
        database.pause()

    async def resume() -> None:
        database.resume()

    async def swallow() -> None:
        way.swallow()

    async def cut() -> None:
        way.cut()

    async def mend() -> None:
        way.mend()

    name = str(request.param)
    return {
        "killed": Fault(name, 0, database.kill, database.start),
        "stopped": Fault(name, 0, database.stop, database.start),
        "paused": Fault(name, 0, pause, resume),
        "swallowed": Fault(name, 1, swallow, mend),
        "cut": Fault(name, 1, cut, mend),
    }[name]


class Pulse:
    """A member's ping and pong, all the time: the event loop goes on."""

    def __init__(self, member: Talker) -> None:
        self._member = member
        self.longest = 0.0
        self.beats = 0

    async def beat(self) -> None:
        while True:
            began = time.monotonic()
            await self._member.say(type="ping", id=self.beats)
            await self._member.until(lambda: self._member.of("pong", id=self.beats))
            self.longest = max(self.longest, time.monotonic() - began)
            self.beats += 1
            await asyncio.sleep(0.02)


@asynccontextmanager
async def pulse(member: Talker) -> AsyncIterator[Pulse]:
    made = Pulse(member)
    beating = asyncio.create_task(made.beat())
    try:
        yield made
    finally:
        beating.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await beating


# ---------------------------------------------------------------------------- the tests


async def test_service_says_so_refuses_in_time_goes_on_and_comes_back(
    two: Fleet, fault: Fault
) -> None:
    number = fault.number
    member = await two.enter(number, "alice", "lobby")
    other = await two.enter(number, "bob", "lobby")
    new = await unread(two)
    known = await two.token("alice")
    ticket = await draw_ticket(two, number, known)
    async with two.http(number) as http:
        login = await http.post("/auth/login", json=LOGIN)
        refresh = {"refresh_token": login.json()["refresh_token"]}

    async def is_refused(doing: Awaitable[Ending], what: str) -> None:
        with fault.measured(f"{what} is refused", ANSWER):
            assert await doing == UNAVAILABLE

    async def is_unavailable(path: str, body: dict[str, str], what: str) -> None:
        with fault.measured(f"{what} is refused", ANSWER):
            answer = await status_of(two, number, path, body)
        assert answer == (503, {"detail": "unavailable"})

    async with pulse(member) as going, fault.going_on():
        with fault.measured("readyz says so", READINESS):
            assert not await is_ready(two, number)
        await asyncio.gather(
            is_refused(present(two, number, "query-param", new.token), "query-param"),
            is_refused(
                present(two, number, "first-message", new.token), "first-message"
            ),
            is_refused(
                present(two, number, "session-cookie", new.cookie), "session-cookie"
            ),
            is_refused(present(two, number, "query-param", ticket), "a ticket"),
            is_unavailable("/auth/login", LOGIN, "a login"),
            is_unavailable("/auth/refresh", refresh, "a refresh"),
        )
        # what the documents say of a session that was read before
        assert await present(two, number, "query-param", known) == IN
        assert await status_of(two, number, "/healthz") == (200, {"status": "ok"})
        assert await member.publish(f"while {fault.name}")
        await other.until(lambda: f"while {fault.name}" in other.texts())
    note("postgresql", fault.name, "longest ping and pong", round(going.longest, 2))
    assert going.longest < LATE
    assert going.beats

    with fault.measured("ready again", LATE + RECHECK):
        await eventually(lambda: is_ready(two, number))
    for strategy, credential in (
        ("query-param", new.token),
        ("first-message", new.token),
        ("session-cookie", new.cookie),
        ("query-param", ticket),  # it was refused, and is not used up
    ):
        assert await present(two, number, strategy, credential) == IN
    assert await present(two, number, "query-param", ticket) == (1008, "ticket_used")
    assert (await status_of(two, number, "/auth/login", LOGIN))[0] == 200
    assert (await status_of(two, number, "/auth/refresh", refresh))[0] == 200
    assert [one.ending for one in (member, other)] == [None, None]
    assert two.sites[number].is_running
    assert "Traceback" not in two.sites[number].said
    await two.dismiss()


async def test_crowd_is_refused_as_fast_as_one(two: Fleet, fault: Fault) -> None:
    """Nobody queues behind others who wait in vain."""
    number = fault.number
    new = await unread(two)
    async with fault.going_on():
        with fault.measured("100 handshakes and 20 logins at once", ANSWER + LATE):
            endings, logins = await asyncio.gather(
                asyncio.gather(
                    *(
                        present(two, number, "query-param", new.token)
                        for _ in range(100)
                    )
                ),
                asyncio.gather(
                    *(
                        status_of(two, number, "/auth/login", {**LOGIN, "password": n})
                        for n in map(str, range(20))
                    )
                ),
            )
        assert Counter(endings) == {UNAVAILABLE: 100}
        assert Counter(status for status, _ in logins) == {503: 20}
    await eventually(lambda: is_ready(two, number))
    assert await present(two, number, "query-param", new.token) == IN


async def test_cookie_whose_use_is_to_be_noted_is_refused(
    two: Fleet, database: PostgresServer
) -> None:
    new = await unread(two, idle_ttl=20)  # to be noted after a tenth of that
    assert await present(two, 0, "session-cookie", new.cookie) == IN
    database.pause()
    try:
        assert await present(two, 0, "session-cookie", new.cookie) == IN
        endings: list[Ending] = []

        async def is_refused() -> bool:
            endings.append(await present(two, 0, "session-cookie", new.cookie))
            return endings[-1] != IN

        await eventually(is_refused)
        assert endings[-1] == UNAVAILABLE
    finally:
        database.resume()
    await eventually(lambda: is_ready(two, 0))


@pytest.mark.parametrize("how", ["swallow", "cut"])
async def test_what_was_revoked_meanwhile_is_known_on_return(
    two: Fleet, way: Proxy, how: str
) -> None:
    """By another process, which reaches the database all the time."""
    name = f"carol-{how}"
    await two.add_user(name)
    token = await two.log_in(name)
    peer = await two.enter(1, name, "lobby", token=token)
    getattr(way, how)()
    try:
        await eventually(lambda: _is_not_ready(two, 1))
        async with opened(elsewhere(two)) as stores:
            await stores.users.disable(name)
        # nobody could tell: it may still come in, and stays
        assert await present(two, 1, "query-param", token) == IN
        assert await peer.publish("still here")
    finally:
        way.mend()
    began = time.monotonic()
    await peer.until(lambda: peer.ending)
    took = time.monotonic() - began
    note("postgresql", how, "a revocation made meanwhile takes effect", round(took, 2))
    assert peer.ending == (1008, "token_revoked")
    assert took < RECHECK + 1 + LATE  # a second's rest after the last vain question
    assert await present(two, 1, "query-param", token) == (1008, "token_revoked")


async def _is_not_ready(fleet: Fleet, number: int) -> bool:
    return not await is_ready(fleet, number)


async def test_process_ends_in_time_while_the_database_stands_still(
    two: Fleet, database: PostgresServer
) -> None:
    site = two.sites[0]
    await two.enter(0, "alice", "lobby")
    database.pause()
    try:
        began = time.monotonic()
        status = await site.end()
        took = time.monotonic() - began
    finally:
        database.resume()
    note("postgresql", "paused", "the process ends", round(took, 2))
    assert status == -signal.SIGTERM, site.said  # not 1: nothing was cut short
    assert took < 3 + LATE  # AUTHWS_DRAIN here
    assert "Traceback" not in site.said
    await site.start()
