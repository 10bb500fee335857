"""What a connection takes up, and when it gives it back, whatever its handler does."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from authws.live.connection import Connection, ConnectionLimits
from authws.live.door import DoorLimits, DoorStyle
from tests.engine import Engine, Peer
from tests.manual_clock import settle

BUSY = DoorStyle(pump=True)


@asynccontextmanager
async def engine(**options: Any) -> AsyncIterator[Engine]:
    engine = Engine(**options)
    await engine.start()
    try:
        yield engine
    finally:
        await engine.stop()


def handled(
    house: Engine,
    handler: Callable[[Connection], Awaitable[None]],
    peer: Peer | None = None,
    **token: Any,
) -> Peer:
    """Let in a peer whose connection a handler of a library's user has."""
    peer = peer or Peer(house.clock)
    peer.query = f"token={house.issue(**token)}".encode()
    house.peers.append(peer)

    async def work() -> None:
        strategy = house.strategies["query-param"]
        opened = house.door.open_connection(strategy, peer.handshake(), BUSY)
        async with opened as connection:
            await handler(connection)

    peer.task = asyncio.create_task(work())
    return peer


@pytest.mark.parametrize("end", ["leaves", "revoked", "expired"])
async def test_place_is_given_back_while_the_handler_is_busy_elsewhere(
    end: str,
) -> None:
    limits = DoorLimits(connections_per_address=1)
    async with engine(door_limits=limits, max_connections_per_user=1) as house:
        elsewhere = asyncio.Event()

        async def handler(_: Connection) -> None:
            await elsewhere.wait()

        peer = handled(house, handler, ttl=10)
        await settle()
        assert len(house.hub.connections) == 1
        if end == "leaves":
            peer.leave(1001)
        elif end == "revoked":
            house.hub.revoke_session("s1", house.clock.now())
        else:
            await house.clock.advance(10)
        await settle()
        assert (len(house.hub.connections), house.door.present.inside) == (0, 0)
        if end != "revoked":
            await house.enter(token=house.issue(session="s2"))
        elsewhere.set()


async def test_burst_in_one_segment_is_answered_to_the_last_message() -> None:
    async with engine() as house:
        alice = await house.enter()
        bob = await house.enter(token=house.issue("bob", session="s2"))
        for peer in (alice, bob):
            peer.say(type="join", room="lobby")
        await settle()
        for number in range(900):
            alice.say(type="publish", room="lobby", data=number, id=number)
        while len(bob.of_type("message")) < 900 and bob.ending is None:
            await settle()
        await settle()
        assert [m["data"] for m in bob.of_type("message")] == list(range(900))
        assert [m["data"] for m in alice.of_type("message")] == list(range(900))
        assert [m["id"] for m in alice.of_type("ack")] == list(range(900))


async def test_burst_lets_others_go_on_now_and_then() -> None:
    async with engine() as house:
        alice = await house.enter()
        for number in range(500):
            alice.say(type="ping", id=number)
        async with asyncio.timeout(5):
            while not alice.of_type("pong"):  # noqa: ASYNC110 - a turn at a time
                await asyncio.sleep(0)
        assert len(alice.of_type("pong")) < 500
        while len(alice.of_type("pong")) < 500:
            await settle()


async def test_handler_waits_until_a_big_message_fits() -> None:
    async with engine(limits=ConnectionLimits(outbox_bytes=1000)) as house:
        sizes = [400, 700, 5000, 900, 900]

        async def handler(connection: Connection) -> None:
            for size in sizes:
                await connection.send_json({"type": "x" * size})
            await connection.receive()

        peer = handled(house, handler)
        await settle()
        await settle()
        assert peer.ending is None
        assert [len(m["type"]) for m in peer.heard[1:]] == sizes


@pytest.mark.parametrize("code", [999, 1004, 1005, 1006, 1015, 2999, 5000])
async def test_handler_is_told_that_a_close_code_is_none(code: int) -> None:
    told: list[Exception] = []

    async def handler(connection: Connection) -> None:
        try:
            await connection.close(code)
        except ValueError as error:
            told.append(error)
        await connection.send_json({"type": "on"})
        await connection.close(4000, "as it wants")

    async with engine() as house:
        peer = handled(house, handler)
        await settle()
        assert len(told) == 1
        assert peer.of_type("on")
        assert peer.ending == (4000, "as it wants")


async def test_handler_is_told_that_text_is_none_and_the_connection_lives() -> None:
    """A peer can bring it about: JSON may escape what UTF-8 cannot hold."""
    told: list[Exception] = []

    async def handler(connection: Connection) -> None:
        async for message in connection:
            try:
                await connection.send(json.loads(message)["data"])
            except ValueError as error:
                told.append(error)

    async with engine() as house:
        peer = handled(house, handler)
        await settle()
        peer.say(data="\ud800")
        peer.say(data='{"type":"well"}')
        await settle()
        assert len(told) == 1
        assert peer.of_type("well")
        house.hub.revoke_session("s1", house.clock.now())
        await settle()
        assert peer.ending == (1008, "token_revoked")


@pytest.mark.parametrize("way", ["asgi"], indirect=True)
async def test_server_whose_close_waits_for_the_peer_is_not_waited_for() -> None:
    async def handler(connection: Connection) -> None:
        await connection.send("1")
        await connection.send("2")

    async with engine() as house:
        peer = Peer(house.clock)
        peer.reads.clear()
        peer.takes_close_frames = False
        peer = handled(house, handler, peer)
        await settle()
        await house.clock.advance(5)
        assert house.door.present.inside == 0
        assert peer.task is not None
        assert peer.task.done()


@pytest.mark.parametrize("way", ["asgi"], indirect=True)
async def test_server_that_fails_at_a_message_ends_its_connection_alone() -> None:
    async def handler(connection: Connection) -> None:
        await connection.send('{"type":"well"}')
        assert await connection.receive() is None

    async with engine() as house:
        peer = Peer(house.clock)
        peer.fails = LookupError("a fault of the server's")
        peer = handled(house, handler, peer)
        await settle()
        assert peer.ending == (1011, "internal_error")
        assert house.door.present.inside == 0
