"""Fleets of real processes, on each broker."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest
import pytest_asyncio

from tests.fleet.fleet import Fleet, fleet
from tests.fleet.hosts import missing_for_hosts, network
from tests.requirements import require
from tests.servers.brokers import BrokerServer, broker_server
from tests.servers.postgres import PostgresServer
from tests.servers.proxy import proxy

KINDS = ("redis", "nats", "rabbitmq")
LIMIT = 8
"""AUTHWS_MAX_CONNECTIONS_PER_USER of the fleets that tests share."""


@pytest.fixture(params=KINDS, scope="module")
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def broker(kind: str) -> AsyncIterator[BrokerServer]:
    async with broker_server(kind) as server:
        yield server


@pytest_asyncio.fixture(params=[*KINDS, "hosts"], scope="module", loop_scope="module")
async def two_sites(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Fleet]:
    """Two servers on one broker, for all tests of a module: each of one worker on this
    machine, or of two on a host of its own."""
    directory: Path = tmp_path_factory.mktemp("fleet")
    running = two_hosts if request.param == "hosts" else two_processes
    async with running(directory, str(request.param)) as made:
        await made.add_user("alice", "bob", "carol", "dave")
        await made.add_user("root", scopes=("admin", "join:*", "publish:*"))
        yield made


@asynccontextmanager
async def two_processes(directory: Path, kind: str) -> AsyncIterator[Fleet]:
    async with (
        broker_server(kind) as broker,
        fleet(directory, broker.url, max_connections_per_user=LIMIT) as made,
    ):
        yield made


@asynccontextmanager
async def two_hosts(directory: Path, _: str) -> AsyncIterator[Fleet]:
    """Behind a proxy that speaks TLS, which is where the test is; broker and database
    are on a third machine."""
    missing = missing_for_hosts()
    require("network namespaces", missing is None, missing or "")
    async with AsyncExitStack() as stack:
        net = stack.enter_context(network())
        broker = await stack.enter_async_context(broker_server("redis"))
        database = await stack.enter_async_context(PostgresServer())
        url = await stack.enter_async_context(database.fresh_database())
        to_broker = await stack.enter_async_context(proxy(broker.url, net.address))
        to_database = await stack.enter_async_context(proxy(url, net.address))
        yield await stack.enter_async_context(
            fleet(
                directory,
                to_broker.through(broker.url),
                "--behind-proxy",
                hosts=net.hosts,
                workers=2,
                database_url=to_database.through(url),
                public_origin="https://chat.example.com",
                allowed_hosts=",".join(host.address for host in net.hosts),
                trusted_proxies=net.address,
                max_connections_per_user=LIMIT,
                handshake_rate=0,
            )
        )
