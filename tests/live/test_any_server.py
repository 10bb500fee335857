"""What a connection promises, it promises under any ASGI server.

Ours offers its transport past ASGI; Hypercorn and Granian are spoken to in ASGI
messages, and each of them has ways of its own to wait, to close and to lose a peer.
What a peer on a socket sees is the same. The rooms themselves are in ``test_rooms``.
"""

from __future__ import annotations

import asyncio
import json
import logging
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import Any

import pytest
import pytest_asyncio
from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed

from tests.foreign import SERVERS
from tests.grants import Grant, ending, enter, grant, hear, knock, present, say, until
from tests.running import STRATEGIES, Service, running
from tests.wire import CLOSE, TEXT, WirePeer, frame, handshake, wire

each_strategy = pytest.mark.parametrize("strategy", STRATEGIES)
on_one_loop = pytest.mark.asyncio(loop_scope="module")

OUTBOX = 300_000
BIG = 30_000
"""Bytes of a message: a few of them fill the buffers between a server and a peer."""
SOON = 0.7
"""Seconds that a credential lives which is to run out."""
ENDED = {"session-cookie": ("session_revoked", "session_expired")}
BY_TOKEN = ("token_revoked", "token_expired")


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=SERVERS)
async def served(
    tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> AsyncIterator[Service]:
    async with running(
        tmp_path_factory.mktemp(request.param),
        served_by=SERVERS[request.param],
        outbox_messages=0,
        outbox_bytes=OUTBOX,
        message_rate=0,
        byte_rate=0,
    ) as service:
        for name in ("alice", "bob"):
            await service.add_user(name)
        yield service


@pytest_asyncio.fixture(loop_scope="module")
async def service(served: Service) -> AsyncIterator[Service]:
    """With nobody left after a test, and nothing said of a failure of ours."""
    since = len(served.records)
    yield served
    await until(lambda: not served.house.hub.connections)
    await until(lambda: served.house.door.present.inside == 0)
    failures = [
        record.getMessage()
        for record in served.records[since:]
        if record.exc_info or record.levelno >= logging.ERROR
    ]
    assert failures == []


@asynccontextmanager
async def member(
    service: Service, strategy: str, subject: str = "alice", **options: Any
) -> AsyncIterator[tuple[ClientConnection, Grant]]:
    """Somebody in the lobby."""
    granted = await grant(service, strategy, subject)
    async with enter(service, f"/ws/{strategy}", granted, **options) as peer:
        await join(peer)
        yield peer, granted


async def join(peer: ClientConnection) -> None:
    await say(peer, type="join", room="lobby")
    assert (await hear(peer))["type"] == "joined"


async def heard_of(peer: ClientConnection, count: int) -> list[tuple[str, int]]:
    """So many messages, each by who said it and which of theirs it is."""
    heard: list[tuple[str, int]] = []
    while len(heard) < count:
        message = await hear(peer)
        if message["type"] == "message":
            heard.append((message["from"], message["data"]))
    return heard


# -------------------------------------------------------------------------- the rooms


@on_one_loop
@each_strategy
async def test_what_each_says_is_heard_in_order_and_by_all_alike(
    service: Service, strategy: str
) -> None:
    each = 100
    async with (
        member(service, strategy) as (alice, _),
        member(service, strategy, "bob") as (bob, _),
        member(service, strategy) as (witness, _),
    ):

        async def speak(peer: ClientConnection) -> None:
            for number in range(each):
                await say(peer, type="publish", room="lobby", data=number)

        async with asyncio.TaskGroup() as group:
            listening = [
                group.create_task(heard_of(peer, 2 * each))
                for peer in (alice, bob, witness)
            ]
            group.create_task(speak(alice))
            group.create_task(speak(bob))
    one, two, three = (task.result() for task in listening)
    assert one == two == three
    for name in ("alice", "bob"):
        assert [n for who, n in one if who == name] == list(range(each))


@on_one_loop
@each_strategy
async def test_who_does_not_read_is_ended_and_costs_nobody_else_a_message(
    service: Service, strategy: str
) -> None:
    said: list[int] = []
    async with AsyncExitStack() as stack:
        enter_ = stack.enter_async_context
        narrow = stack.enter_context(socket.socket())
        narrow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        narrow.setblocking(False)
        address = ("127.0.0.1", service.port)
        await asyncio.get_running_loop().sock_connect(narrow, address)
        options = {"sock": narrow, "ping_interval": None, "max_queue": 1}
        deaf, _ = await enter_(member(service, strategy, "bob", **options))
        speaker, _ = await enter_(member(service, "query-param"))
        witness, _ = await enter_(member(service, "query-param"))
        (kept,) = service.house.hub.of_subject("bob")
        deaf.transport.pause_reading()

        async def until_it_ends() -> None:
            while kept.is_open:
                number = len(said)
                data = {"n": number, "x": "x" * BIG}
                await say(speaker, type="publish", room="lobby", data=data)
                while (heard := await hear(speaker))["type"] != "message":
                    pass
                said.append(heard["data"]["n"])

        await asyncio.wait_for(until_it_ends(), 20)
        assert kept.ending is not None
        assert (kept.ending.code, kept.ending.reason) == (1008, "slow_consumer")
        deaf.transport.resume_reading()
        assert await ending(deaf) == (1008, "slow_consumer")
        witnessed: list[int] = []
        while len(witnessed) < len(said):
            if (heard := await hear(witness))["type"] == "message":
                witnessed.append(heard["data"]["n"])
        assert witnessed == said == list(range(len(said)))


# ------------------------------------------------------------------------- the endings


@on_one_loop
@each_strategy
async def test_a_revocation_ends_what_it_is_about_and_nothing_else(
    service: Service, strategy: str
) -> None:
    slug, _ = ENDED.get(strategy, BY_TOKEN)
    async with (
        member(service, strategy) as (one, granted),
        member(service, strategy) as (other, _),
    ):
        await granted.end()
        assert await ending(one) == (1008, slug)
        await say(other, type="ping")
        while (heard := await hear(other))["type"] != "pong":
            assert heard["type"] == "presence"


@on_one_loop
@each_strategy
async def test_a_credential_that_runs_out_ends_its_connection(
    service: Service, strategy: str
) -> None:
    _, slug = ENDED.get(strategy, BY_TOKEN)
    granted = await grant(service, strategy, ttl=SOON)
    credential = granted.cookie or granted.access(ttl=SOON)
    async with enter(service, f"/ws/{strategy}", credential) as peer:
        await join(peer)
        assert await ending(peer) == (1008, slug)


@on_one_loop
@each_strategy
async def test_nothing_is_heard_behind_the_close_frame(
    service: Service, strategy: str
) -> None:
    """Nor anything that was said once the right to hear it was taken."""
    granted = await grant(service, strategy)
    async with (
        member(service, "query-param", "bob") as (bob, _),
        raw(service, strategy, granted) as peer,
    ):
        await peer.send(frame(TEXT, b'{"type":"join","room":"lobby"}'))
        await peer.frame()
        said, is_over = 0, False

        async def chatter() -> None:
            nonlocal said
            while not is_over:
                await say(bob, type="publish", room="lobby", data=said)
                while (await hear(bob))["type"] != "message":
                    pass
                said += 1
                await asyncio.sleep(0.001)  # one core for all: let the others speak

        async with asyncio.TaskGroup() as group:
            group.create_task(chatter())
            await until(lambda: said > 20)
            await granted.end()
            by_then = said + 1  # one may be on its way to the room
            heard: list[int] = []
            while (got := await peer.frame()).opcode != CLOSE:
                message = json.loads(got.payload)
                if message["type"] == "message":
                    heard.append(message["data"])
            assert got.close[0] == 1008
            await until(lambda: said > by_then + 20)
            await peer.send(frame(CLOSE, got.payload))  # some servers wait for it
            assert await peer.is_ended()
            is_over = True
    assert heard == list(range(len(heard)))
    assert heard[-1] <= by_then


@asynccontextmanager
async def raw(
    service: Service, strategy: str, granted: Grant
) -> AsyncIterator[WirePeer]:
    """A room's WebSocket made of bytes, past ``auth_ok``."""
    target, lines = f"/ws/{strategy}", []
    if strategy == "query-param":
        target += f"?token={granted.credential}"
    elif strategy == "session-cookie":
        lines = [f"Cookie: authws={granted.cookie}", f"Origin: {service.origin}"]
    async with wire(service.port) as peer:
        await peer.send(handshake(target, headers=tuple(lines)))
        head = await peer.response()
        assert head.status == 101
        if strategy == "first-message":
            await peer.frame()
            first = json.dumps({"type": "auth", "token": granted.credential})
            await peer.send(frame(TEXT, first.encode()))
        assert json.loads((await peer.frame()).payload)["type"] == "auth_ok"
        yield peer


@on_one_loop
@each_strategy
@pytest.mark.parametrize(
    ("said", "code", "reason"),
    [(b"\x00", 1003, "text_expected"), ("x" * 70_000, 1009, "message_too_big")],
    ids=["binary", "big"],
)
async def test_a_message_that_is_none_ends_it(
    service: Service, strategy: str, said: str | bytes, code: int, reason: str
) -> None:
    async with member(service, strategy) as (peer, _):
        with suppress(ConnectionClosed):
            await peer.send(said)
        assert await ending(peer) == (code, reason)


# --------------------------------------------------------------------------- the door


@on_one_loop
@each_strategy
async def test_a_bad_credential_is_told_after_accept(
    service: Service, strategy: str
) -> None:
    slug = "session_invalid" if strategy == "session-cookie" else "token_invalid"
    assert await present(service, f"/ws/{strategy}", "x") == (1008, slug)


@on_one_loop
@each_strategy
async def test_a_foreign_page_is_refused_before_accept(
    service: Service, strategy: str
) -> None:
    granted = await grant(service, strategy)
    opening = knock(
        service,
        f"/ws/{strategy}",
        granted.credential,
        origin="https://evil.example",
    )
    assert await ending(opening) == (403, "")


@on_one_loop
async def test_a_first_message_that_is_too_long_is_not_looked_at(
    service: Service,
) -> None:
    message = json.dumps({"type": "auth", "token": "x" * 9000})
    ended = await present(service, "/ws/first-message", "x", frame=message)
    assert ended == (1009, "message_too_big")
