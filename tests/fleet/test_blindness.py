"""When broker and database are both gone: nothing is known, and all is closed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import httpx
import pytest
import pytest_asyncio
from websockets.exceptions import InvalidStatus

from tests.fleet.fleet import Fleet, eventually, fleet
from tests.fleet.measures import measure, note
from tests.servers.brokers import BrokerServer
from tests.servers.postgres import PostgresServer

pytestmark = pytest.mark.asyncio(loop_scope="module")

FAIL_CLOSED_AFTER = 4.0
"""Seconds; AUTHWS_FAIL_CLOSED_AFTER here."""
LATE = 3.0
"""Seconds that it may come later: it is looked at every second, and what does not
answer is waited for a little."""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def database() -> AsyncIterator[PostgresServer]:
    async with PostgresServer() as server:
        yield server


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def two(
    broker: BrokerServer,
    database: PostgresServer,
    tmp_path_factory: pytest.TempPathFactory,
) -> AsyncIterator[Fleet]:
    async with (
        database.fresh_database() as url,
        fleet(
            tmp_path_factory.mktemp("blind"),
            broker.url,
            database_url=url,
            recheck_interval=1,
            fail_closed_after=FAIL_CLOSED_AFTER,
        ) as made,
    ):
        await made.add_user("alice", "bob")
        yield made


@pytest_asyncio.fixture(loop_scope="module")
async def sites(
    two: Fleet, broker: BrokerServer, database: PostgresServer
) -> AsyncIterator[Fleet]:
    await _all_ready(two)
    yield two
    for server in (broker, database):
        server.resume()
    await two.dismiss()


async def _all_ready(fleet: Fleet) -> None:
    for number in range(2):

        async def is_ready(number: int = number) -> bool:
            async with fleet.http(number) as http:
                return (await http.get("/readyz")).status_code == 200

        await eventually(is_ready)


@pytest.mark.parametrize("how", ["killed", "stopped"])
async def test_with_both_gone_everything_is_closed_and_opens_again(
    sites: Fleet,
    broker: BrokerServer,
    database: PostgresServer,
    kind: str,
    how: str,
) -> None:
    token = await sites.token("alice")
    peers = [await sites.enter(number, "alice", "lobby") for number in range(2)]
    loop = asyncio.get_running_loop()
    began = loop.time()
    for server in (broker, database):
        if how == "killed":
            await server.kill()
        else:
            server.pause()
    for peer in peers:
        await peer.until(lambda peer=peer: peer.ending)  # type: ignore[misc]
        assert peer.ending == (1013, "unavailable")
    took = loop.time() - began
    note(kind, f"both {how}", "every connection is closed", round(took, 2))
    assert FAIL_CLOSED_AFTER - 1.5 <= took <= FAIL_CLOSED_AFTER + LATE
    for number in range(2):
        assert sites.sites[number].is_running
        with pytest.raises(InvalidStatus) as refused:
            await sites.open(number, f"/ws/query-param?token={token}")
        assert refused.value.response.status_code == 503
        async with sites.http(number) as http:
            assert (await http.get("/healthz")).status_code == 200
            with measure(kind, f"both {how}", "readyz answers"):
                ready = await http.get("/readyz")
            assert ready.status_code == 503
            assert (ready.json()["broker"], ready.json()["database"]) == (
                "unreachable",
                "unreachable",
            )
    for server in (database, broker):
        if how == "killed":
            await server.start()
        else:
            server.resume()
    with measure(kind, f"both {how}", "ready again"):
        await _all_ready(sites)
    back = await sites.enter(1, "alice", "lobby")
    other = await sites.enter(0, "bob", "lobby")
    assert await back.publish("again")
    await other.until(lambda: other.texts() == ["again"])


@pytest.mark.parametrize("gone", ["broker", "database"])
async def test_with_one_of_them_gone_nothing_is_closed(
    sites: Fleet, broker: BrokerServer, database: PostgresServer, gone: str
) -> None:
    peers = [await sites.enter(number, "alice", "lobby") for number in range(2)]
    server = broker if gone == "broker" else database
    server.pause()
    try:
        end = asyncio.get_running_loop().time() + FAIL_CLOSED_AFTER * 2
        while asyncio.get_running_loop().time() < end:
            assert [peer.ending for peer in peers] == [None, None]
            await asyncio.sleep(0.2)
        if gone == "database":
            assert await peers[0].publish("still here")
            await peers[1].until(lambda: peers[1].texts() == ["still here"])
    finally:
        server.resume()
    await _all_ready(sites)


async def test_the_database_returns_and_what_was_revoked_meanwhile_is_known(
    sites: Fleet, database: PostgresServer
) -> None:
    token = await sites.log_in("bob")
    peer = await sites.enter(1, "bob", token=token)
    await database.kill()
    async with sites.http(0, authorization=f"Bearer {token}") as http:
        answer = await http.post("/auth/logout")
        assert answer.status_code == 503
        assert peer.ending is None
        await database.start()

        async def is_ended() -> bool:
            try:
                done = await http.post("/auth/logout")
            except httpx.HTTPError:
                return False
            return done.status_code in (200, 204)

        await eventually(is_ended)
    await peer.until(lambda: peer.ending)
    assert peer.ending == (1008, "token_revoked")
