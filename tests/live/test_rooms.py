"""Rooms, presence and acknowledgements: the same over all three strategies, and under
any server."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio
from websockets.asyncio.client import ClientConnection

from tests.foreign import SERVERS
from tests.grants import until
from tests.running import STRATEGIES, Service, running

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.parametrize("strategy", STRATEGIES),
]


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=SERVERS)
async def served(
    tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> AsyncIterator[Service]:
    path = tmp_path_factory.mktemp(request.param)
    async with running(path, served_by=SERVERS[request.param]) as service:
        for name in ("alice", "bob"):
            await service.add_user(name)
        yield service


@pytest_asyncio.fixture(loop_scope="module")
async def service(served: Service) -> AsyncIterator[Service]:
    """With nobody there before, and nobody after."""
    yield served
    await until(lambda: not served.house.hub.connections)


async def say(peer: ClientConnection, **message: Any) -> None:
    await peer.send(json.dumps(message))


async def hear(peer: ClientConnection) -> dict[str, Any]:
    message = json.loads(await asyncio.wait_for(peer.recv(), 5))
    assert isinstance(message, dict)
    return message


async def join(peer: ClientConnection, room: str = "lobby") -> dict[str, Any]:
    await say(peer, type="join", room=room)
    return await hear(peer)


async def test_members_hear_a_message_and_the_publisher_an_ack(
    service: Service, strategy: str
) -> None:
    async with (
        await service.connect(strategy, "alice") as alice,
        await service.connect(strategy, "bob") as bob,
    ):
        assert (await join(alice))["members"] == ["alice"]
        assert (await join(bob))["members"] == ["alice", "bob"]
        assert await hear(alice) == {
            "type": "presence",
            "room": "lobby",
            "subject": "bob",
            "event": "joined",
        }
        await say(alice, type="publish", room="lobby", data={"x": [1, "é"]}, id=7)
        own, ack = await hear(alice), await hear(alice)
        heard = await hear(bob)
        assert own == heard
        assert heard["data"] == {"x": [1, "é"]}
        assert (heard["room"], heard["from"]) == ("lobby", "alice")
        assert ack == {"type": "ack", "id": 7}


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('{"type":"publish","room":5,"data":1,"id":7}', {"id": 7}),
        ('{"type":"publish","room":"lobby","id":"a"}', {"id": "a"}),
        (r'{"type":"publish","room":"lobby","data":"\ud800","id":8}', {"id": 8}),
        (f'{{"type":"publish","room":"lobby","data":1,"id":"{"x" * 65}"}}', {}),
        ('{"type":"publish","room":5,"data":1}', {}),
    ],
)
async def test_a_refused_publish_is_named_by_its_id(
    service: Service, strategy: str, text: str, told: dict[str, Any]
) -> None:
    async with await service.connect(strategy, "alice") as alice:
        await join(alice)
        await alice.send(text)
        error = await hear(alice)
        assert error.pop("detail")
        assert error == {"type": "error", "slug": "malformed", **told}


async def test_a_crash_is_announced_like_a_leave(
    service: Service, strategy: str
) -> None:
    async with await service.connect(strategy, "alice") as alice:
        await join(alice)
        bob = await service.connect(strategy, "bob")
        await join(bob)
        assert (await hear(alice))["event"] == "joined"
        bob.transport.abort()
        assert await hear(alice) == {
            "type": "presence",
            "room": "lobby",
            "subject": "bob",
            "event": "left",
        }


async def test_echo_returns_text_and_binary_and_nothing_else(
    service: Service, strategy: str
) -> None:
    async with await service.connect(strategy, echo=True) as peer:
        for message in ("hello", b"\x00\xff", "", '{"type":"auth","token":"x"}'):
            await peer.send(message)
            assert await asyncio.wait_for(peer.recv(), 5) == message
        await peer.send(["frag", "men", "ted"])
        assert await asyncio.wait_for(peer.recv(), 5) == "fragmented"
