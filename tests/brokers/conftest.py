"""The promises of ``authws/brokers/base.py``, asked of every broker there is."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from authws.brokers import open_broker
from authws.brokers.base import Broker
from tests.brokers.peers import KEEP, Peer
from tests.servers.brokers import KINDS, BrokerServer, broker_server


@pytest.fixture(params=("memory", *KINDS), scope="session")
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def server(kind: str) -> AsyncIterator[BrokerServer | None]:
    """One server for all tests of a kind; each test has a prefix of its own there."""
    if kind == "memory":
        yield None
        return
    async with broker_server(kind) as running:
        yield running


@pytest.fixture
def prefix() -> str:
    return f"t{secrets.token_hex(4)}"


@pytest.fixture
def url(server: BrokerServer | None) -> str:
    return server.url if server is not None else "memory://"


@pytest.fixture
async def peers(url: str, prefix: str) -> AsyncIterator[list[Peer]]:
    """Two processes' worth of clients; of the memory broker, which has no other
    processes, the same one twice."""
    first = Peer(open_broker(url, prefix=prefix, kept=(KEEP,)))
    second = (
        first
        if url == "memory://"
        else Peer(open_broker(url, prefix=prefix, kept=(KEEP,)))
    )
    opened = list(dict.fromkeys((first, second)))
    for peer in opened:
        await peer.start()
    yield [first, second]
    for peer in opened:
        await peer.broker.stop()


@pytest.fixture
def peer(peers: list[Peer]) -> Peer:
    return peers[0]


@pytest.fixture
def broker(peer: Peer) -> Broker:
    return peer.broker
