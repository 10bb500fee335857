"""Fleets of real processes, on each broker."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from tests.fleet.fleet import Fleet, fleet
from tests.servers.brokers import BrokerServer, broker_server

KINDS = ("redis", "nats", "rabbitmq")


@pytest.fixture(params=KINDS, scope="module")
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def broker(kind: str) -> AsyncIterator[BrokerServer]:
    async with broker_server(kind) as server:
        yield server


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def two_sites(
    broker: BrokerServer, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Fleet]:
    """Two servers on one broker, for all tests of a module."""
    directory: Path = tmp_path_factory.mktemp("fleet")
    async with fleet(directory, broker.url, max_connections_per_user=8) as made:
        await made.add_user("alice", "bob", "carol", "dave")
        await made.add_user("root", scopes=("admin", "join:*", "publish:*"))
        yield made
