"""Who has not said who they are is kept apart: counted, timed, and told nothing.

Peers of bytes, since a client library would answer a ping and a close frame for them.
"""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest
import pytest_asyncio
from websockets.asyncio.client import ClientConnection

from tests.grants import ending, enter, grant, hear, present, say, until
from tests.running import STRATEGIES, Service, running
from tests.wire import (
    BINARY,
    CLOSE,
    CONTINUATION,
    PING,
    PONG,
    TEXT,
    Frame,
    WirePeer,
    frame,
    wire,
)

pytestmark = pytest.mark.asyncio(loop_scope="module")

AUTH_TIMEOUT = 0.6
CLOSE_TIMEOUT = 1.0
PROMPTLY = 0.3


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def service(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Service]:
    path = tmp_path_factory.mktemp("service")
    async with running(path, auth_timeout=AUTH_TIMEOUT, message_rate=0) as service:
        for name in ("alice", "bob"):
            await service.add_user(name)
        yield service
        await until(lambda: not service.house.hub.connections)
        assert [r.getMessage() for r in service.records if r.exc_info] == []


@asynccontextmanager
async def stranger(
    service: Service, path: str = "/ws/first-message"
) -> AsyncIterator[tuple[WirePeer, float]]:
    """Open a socket and say nothing; also give the moment it was opened."""
    async with wire(service.port) as peer:
        opened = time.monotonic()
        await peer.upgrade(path)
        required = json.loads((await peer.frame()).payload)
        assert required == {"type": "auth_required", "timeout": AUTH_TIMEOUT}
        yield peer, opened


async def counted(service: Service) -> int:
    """How many are in the quarantine, as ``/metrics`` says."""
    async with service.http() as http:
        text = (await http.get("/metrics")).text
    found = re.search(r"^authws_unauthenticated (\S+)$", text, re.MULTILINE)
    assert found
    return int(float(found[1]))


async def nobody_is_left(service: Service) -> None:
    await until(lambda: not service.house.door.present.inside)
    assert await counted(service) == 0


# ----------------------------------------------------------------------------- counted


async def test_strangers_are_counted_until_they_are_known_or_gone(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    path = tmp_path_factory.mktemp("counted")
    async with running(path, auth_timeout=3) as service, AsyncExitStack() as stack:
        await service.add_user("alice")
        alice = await grant(service, "first-message")
        peers: list[ClientConnection] = []
        for number, echo in enumerate(("", "/echo", "", "/echo")):
            assert await counted(service) == number
            opened = await service.open(f"/ws/first-message{echo}")
            peers.append(await stack.enter_async_context(opened))
            await hear(opened)
        known, refused, leaving, silent = peers
        assert await counted(service) == 4
        await say(known, type="auth", token=alice.access())
        assert (await hear(known))["type"] == "auth_ok"
        assert await counted(service) == 3
        await say(refused, type="auth", token="a.b.c")
        assert await ending(refused) == (1008, "token_invalid")
        assert await counted(service) == 2
        leaving.transport.abort()
        await until(lambda: service.house.door.strangers.inside == 1)
        assert await counted(service) == 1
        assert await ending(silent) == (1008, "auth_timeout")
        assert await counted(service) == 0
        assert service.house.door.present.inside == 1  # the one who is known
        await known.close()
        await nobody_is_left(service)


@pytest.mark.parametrize("strategy", STRATEGIES)
async def test_a_refused_credential_leaves_nobody_in_there(
    service: Service, strategy: str
) -> None:
    for _ in range(5):
        assert (await present(service, f"/ws/{strategy}", "a.b.c"))[0] == 1008
    await nobody_is_left(service)


@pytest.mark.parametrize("strategy", STRATEGIES)
async def test_who_is_looked_at_is_counted_meanwhile(
    service: Service, strategy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A slow store holds the socket: it is no less a stranger's."""
    granted = await grant(service, strategy)
    records = service.house.records
    load, may_go_on = records.get, asyncio.Event()

    async def slow(session: str) -> Any:
        while not may_go_on.is_set():  # noqa: ASYNC110 - set by another loop
            await asyncio.sleep(0.01)
        return await load(session)

    monkeypatch.setattr(records, "get", slow)
    entering = enter(service, f"/ws/{strategy}", granted)
    opening = asyncio.create_task(entering.__aenter__())
    await until(lambda: service.house.door.strangers.inside == 1)
    assert service.house.hub.connections == {}
    may_go_on.set()
    peer = await opening
    assert await counted(service) == 0
    await peer.close()
    await nobody_is_left(service)


# --------------------------------------------------------------- an absolute deadline


async def nothing(peer: WirePeer) -> None:
    await asyncio.sleep(0.05)


async def pings(peer: WirePeer) -> None:
    await peer.send(frame(PING, b"are you there?"))
    await asyncio.sleep(0.05)


async def pongs(peer: WirePeer) -> None:
    await peer.send(frame(PONG))
    await asyncio.sleep(0.05)


def trickle(*pieces: bytes) -> Callable[[WirePeer], Awaitable[None]]:
    """Send one piece after another, the last of them over and over."""
    waiting = list(pieces)

    async def go_on(peer: WirePeer) -> None:
        await peer.send(waiting.pop(0) if len(waiting) > 1 else waiting[0])
        await asyncio.sleep(0.05)

    return go_on


UNENDING = {
    "silence": lambda: nothing,
    "pings": lambda: pings,
    "pongs": lambda: pongs,
    "fragments": lambda: trickle(
        frame(TEXT, b'{"type":"auth","token":"', fin=False),
        frame(CONTINUATION, b"a", fin=False),
    ),
    "empty-fragments": lambda: trickle(
        frame(BINARY, b"", fin=False), frame(CONTINUATION, b"", fin=False)
    ),
    "bytes": lambda: trickle(frame(TEXT, b"x" * 5_000)[:100], b"x"),
    "fragments-and-pings": lambda: trickle(
        frame(TEXT, b"{", fin=False),
        frame(PING) + frame(CONTINUATION, b" ", fin=False),
    ),
}


@pytest.mark.parametrize("make", UNENDING.values(), ids=UNENDING)
async def test_the_deadline_is_absolute_whatever_trickles_in(
    service: Service, make: Callable[[], Callable[[WirePeer], Awaitable[None]]]
) -> None:
    go_on = make()
    async with stranger(service) as (peer, opened):

        async def keep_on() -> None:
            while True:
                await go_on(peer)

        going_on = asyncio.create_task(keep_on())
        try:
            assert await peer.close_frame() == (1008, "auth_timeout")
            took = time.monotonic() - opened
            assert AUTH_TIMEOUT <= took < AUTH_TIMEOUT + PROMPTLY
        finally:
            going_on.cancel()
    await nobody_is_left(service)


async def test_the_deadline_runs_on_while_the_credential_is_looked_at(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    alice = await grant(service, "first-message")

    async def never(session: str) -> None:
        await asyncio.sleep(60)

    async with stranger(service) as (peer, opened):
        await asyncio.sleep(AUTH_TIMEOUT / 2)
        monkeypatch.setattr(service.house.records, "get", never)
        auth = json.dumps({"type": "auth", "token": alice.access()}).encode()
        await peer.send(frame(TEXT, auth))
        assert await peer.close_frame() == (1008, "auth_timeout")
        took = time.monotonic() - opened
        assert AUTH_TIMEOUT <= took < AUTH_TIMEOUT + PROMPTLY
    await nobody_is_left(service)


# ------------------------------------------------------------------ a cap on its bytes


@pytest.mark.parametrize("size", [8_193, 65_536, 2**62])
async def test_a_message_that_announces_too_much_is_refused_before_it_comes(
    service: Service, size: int
) -> None:
    async with stranger(service) as (peer, opened):
        await peer.send(b"\x81\xff" + size.to_bytes(8, "big") + b"\0\0\0\0")
        assert await peer.close_frame() == (1009, "message_too_big")
        assert time.monotonic() - opened < AUTH_TIMEOUT
    await nobody_is_left(service)


async def test_fragments_are_added_up(service: Service) -> None:
    async with stranger(service) as (peer, opened):
        await peer.send(frame(TEXT, b"x" * 4_000, fin=False))
        await peer.send(frame(CONTINUATION, b"x" * 4_000, fin=False))
        await peer.send(frame(CONTINUATION, b"x" * 193, fin=False))
        assert await peer.close_frame() == (1009, "message_too_big")
        assert time.monotonic() - opened < AUTH_TIMEOUT


async def test_who_is_known_has_the_usual_limit(service: Service) -> None:
    alice = await grant(service, "first-message")
    async with enter(service, "/ws/first-message/echo", alice) as peer:
        await peer.send("x" * 65_536)
        assert await peer.recv() == "x" * 65_536


# ---------------------------------------------------------------- an end that is an end


ENDINGS: dict[str, tuple[str, bytes, tuple[int, str]]] = {
    "silent": ("/ws/first-message", b"", (1008, "auth_timeout")),
    "bad-token": (
        "/ws/first-message",
        frame(TEXT, b'{"type":"auth","token":"a.b.c"}'),
        (1008, "token_invalid"),
    ),
    "not-auth": (
        "/ws/first-message",
        frame(TEXT, b'{"type":"join","room":"lobby"}'),
        (1008, "auth_missing"),
    ),
    "binary": (
        "/ws/first-message",
        frame(BINARY, b"\0"),
        (1008, "auth_malformed"),
    ),
    "bad-query": ("/ws/query-param?token=a.b.c", b"", (1008, "token_invalid")),
    "no-query": ("/ws/query-param", b"", (1008, "auth_missing")),
}


MORE = {"nothing": b"", "pings": frame(PING), "messages": frame(TEXT, b"{}")}


@pytest.mark.parametrize("more", MORE.values(), ids=MORE)
async def test_who_ignores_its_close_frame_is_cut_off_after_a_second(
    service: Service, more: bytes
) -> None:
    async def ignore(path: str, first: bytes, close: tuple[int, str]) -> None:
        async with wire(service.port) as peer:
            await peer.upgrade(path)
            await peer.send(first)
            assert await peer.close_frame() == close
            closed = time.monotonic()

            async def keep_on() -> None:
                while more:
                    await peer.send(more)
                    await asyncio.sleep(0.02)

            going_on = asyncio.create_task(keep_on())
            try:
                await is_cut_off(peer)
            finally:
                going_on.cancel()
            took = time.monotonic() - closed
            assert CLOSE_TIMEOUT - 0.05 <= took < CLOSE_TIMEOUT + PROMPTLY

    await asyncio.gather(*(ignore(*ending) for ending in ENDINGS.values()))
    await nobody_is_left(service)


async def is_cut_off(peer: WirePeer) -> None:
    """Wait for the end of the connection, whatever comes before it."""
    while not await peer.is_ended():
        pass


# --------------------------------------------------------------------- told of nothing


async def test_no_word_of_a_room_ever_reaches_a_stranger(service: Service) -> None:
    alice = await grant(service, "query-param")
    frames: list[Frame] = []

    async def listen(peer: WirePeer) -> None:
        while True:
            frames.append(await peer.frame())
            if frames[-1].opcode == CLOSE:
                return

    async with (
        enter(service, "/ws/query-param", alice) as speaker,
        AsyncExitStack() as stack,
    ):
        await say(speaker, type="join", room="lobby")
        assert (await hear(speaker))["type"] == "joined"
        strangers = [
            (await stack.enter_async_context(stranger(service)))[0] for _ in range(20)
        ]
        for number, peer in enumerate(strangers):
            if number % 2:  # some try to be members before they are anybody
                await peer.send(frame(TEXT, b'{"type":"join","room":"lobby"}'))
        listening = asyncio.gather(*map(listen, strangers))
        while not listening.done():
            await say(speaker, type="publish", room="lobby", data="secret")
            assert (await hear(speaker))["data"] == "secret"
        await listening
    told = {got.close if got.opcode == CLOSE else got.payload for got in frames}
    assert told == {(1008, "auth_timeout"), (1008, "auth_missing")}
    assert len(frames) == len(strangers)
    await until(lambda: not service.house.hub.rooms)


async def test_a_full_quarantine_costs_those_inside_nothing(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    path = tmp_path_factory.mktemp("full")
    async with running(path, max_unauthenticated=20) as service:
        await service.add_user("alice")
        alice = await grant(service, "query-param")
        async with (
            enter(service, "/ws/query-param", alice) as inside,
            AsyncExitStack() as stack,
        ):
            for _ in range(20):
                await stack.enter_async_context(await service.open("/ws/first-message"))
            assert await counted(service) == 20
            assert await present(service, "/ws/query-param", alice.access()) == (
                503,
                "",
            )
            await say(inside, type="join", room="lobby")
            assert (await hear(inside))["type"] == "joined"
            await say(inside, type="publish", room="lobby", data=1, id=1)
            assert (await hear(inside))["data"] == 1
            # to renew is not to come in: it needs no place in there
            await hear(inside)
            await say(inside, type="auth", token=alice.access())
            assert (await hear(inside))["type"] == "auth_ok"
        await nobody_is_left(service)
