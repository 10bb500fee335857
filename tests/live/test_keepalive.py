"""Who is gone is found, and who is only waited for is not taken for gone."""

# no postponed annotations here: FastAPI could not resolve the local guard in them
import asyncio
import json
import signal
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any

import httpx
import pytest
from fastapi import Depends, FastAPI
from websockets.asyncio.client import ClientConnection, connect

from authws import AuthWS, Connection
from authws.clock import Clock
from authws.stores.database import Database
from authws.stores.passwords import PasswordHasher
from authws.stores.users import Users
from tests.daemon import serve
from tests.grants import Grant, enter, grant, hear, say
from tests.machine import Machine, watched
from tests.running import PASSWORD, Service, free_port, running
from tests.serving import serving
from tests.wire import PING, PONG, TEXT, WirePeer, frame, wire

INTERVAL, TIMEOUT = 0.2, 0.2
PINGS: dict[str, Any] = {"ping_interval": INTERVAL, "ping_timeout": TIMEOUT}
SLACK = 0.3
"""Seconds beyond what is due, on a machine that is never late."""
SLOW = 5 * (INTERVAL + TIMEOUT)
"""Seconds that a slow handler takes: enough to be taken for dead several times."""
GONE = (1011, "keepalive ping timeout")
MANY = 300
"""Messages: more than the 64 that wait in an inbox."""


def slack(machine: Machine) -> float:
    """Seconds beyond what is due: several timers in a row may each be late."""
    return SLACK + 5 * machine.late


@asynccontextmanager
async def meeting(tmp_path: Path) -> AsyncIterator[tuple[Service, Any, Grant]]:
    """A service that pings often, and somebody in its lobby; what Alice presents."""
    # nobody is ended for reading slowly here: all clients share one busy process
    outbox = {"outbox_messages": 0, "outbox_bytes": 0}
    async with running(tmp_path, server=PINGS, **outbox) as service:
        for name in ("alice", "bob"):
            await service.add_user(name)
        alice = await grant(service, "query-param")
        bob = await grant(service, "query-param", "bob")
        async with enter(service, "/ws/query-param", bob) as witness:
            await say(witness, type="join", room="lobby")
            assert (await hear(witness))["members"] == ["bob"]
            yield service, witness, alice


async def sees(witness: Any, event: str) -> float:
    """Wait for Alice to come or go; return when that was."""
    heard = await hear(witness)
    assert (heard["subject"], heard["event"]) == ("alice", event)
    return time.monotonic()


# -------------------------------------------------------------------------- the dead


async def test_half_open_peer_is_found_and_leaves_its_rooms(tmp_path: Path) -> None:
    async with (
        watched() as machine,
        meeting(tmp_path) as (service, witness, alice),
        wire(service.port) as ghost,
    ):
        await ghost.upgrade(f"/ws/query-param?token={alice.credential}")
        await ghost.send(frame(TEXT, b'{"type":"join","room":"lobby"}'))
        came = await sees(witness, "joined")
        left = await sees(witness, "left")
        assert left - came < INTERVAL + TIMEOUT + slack(machine)
        assert not list(service.house.hub.of_subject("alice"))
        assert await ghost.close_frame() == GONE


CLIENT = """
import asyncio, contextlib, json, sys
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

async def main():
    async with connect(sys.argv[1], ping_interval=None, proxy=None) as peer:
        await peer.send(json.dumps({"type": "join", "room": "lobby"}))
        with contextlib.suppress(ConnectionClosed):
            while True:
                await peer.recv()
    print(peer.close_code, flush=True)

asyncio.run(main())
"""


async def test_process_that_stands_still_is_found_and_its_presence_removed(
    tmp_path: Path,
) -> None:
    """Its system still acknowledges every byte: no TCP keepalive would find it."""
    async with (
        watched() as machine,
        meeting(tmp_path) as (service, witness, alice),
    ):
        url = service.url(f"/ws/query-param?token={alice.credential}")
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", CLIENT, url, stdout=asyncio.subprocess.PIPE
        )
        try:
            came = await sees(witness, "joined")
            await lives(witness, came)  # as long as it runs, it is there
            process.send_signal(signal.SIGSTOP)
            stopped = time.monotonic()
            took = await sees(witness, "left") - stopped
            assert took < INTERVAL + TIMEOUT + slack(machine)
            process.send_signal(signal.SIGCONT)
            said, _ = await asyncio.wait_for(process.communicate(), 10)
            assert said == b"1011\n"
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()


async def lives(witness: Any, since: float) -> None:
    """Nobody is seen to leave for several times what it takes to find the dead."""
    async with asyncio.timeout(10):
        while time.monotonic() < since + 3 * (INTERVAL + TIMEOUT):
            await say(witness, type="ping")
            assert (await hear(witness)) == {"type": "pong"}
            await asyncio.sleep(0.02)


# -------------------------------------------------------------------------- the slow


@asynccontextmanager
async def working(
    tmp_path: Path, work: Callable[[], Awaitable[None]]
) -> AsyncIterator[str]:
    """A user's own app whose handler works before each message; where to connect."""
    auth = AuthWS(data_dir=tmp_path / "data", port=free_port(), login_rate=0)
    app = FastAPI(lifespan=auth.lifespan)
    auth.install(app)

    @app.websocket("/ws")
    async def ws(connection: Annotated[Connection, Depends(auth.query_param)]) -> None:
        await work()
        async for message in connection:
            await connection.send(message)

    async with serving(app, **PINGS) as port:
        database = Database(auth.house.settings.database)
        hasher = PasswordHasher()
        await Users(database, hasher, Clock()).add("alice", PASSWORD, ["join:*"])
        hasher.close()
        await database.dispose()
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as http:
            login = {"username": "alice", "password": PASSWORD}
            answer = await http.post("/auth/login", json=login)
        yield f"{port}/ws?token={answer.json()['access_token']}"


async def waits() -> None:
    await asyncio.sleep(SLOW)


async def blocks() -> None:
    """Like a handler that computes: the event loop comes around now and then."""
    for _ in range(4):
        time.sleep(INTERVAL + TIMEOUT)  # noqa: ASYNC251 - that is the point
        await asyncio.sleep(0.001)


@pytest.mark.parametrize("work", [waits, blocks])
async def test_pong_that_came_in_time_counts_however_late_it_is_read(
    tmp_path: Path, work: Callable[[], Awaitable[None]]
) -> None:
    async with (
        working(tmp_path, work) as where,
        connect(f"ws://127.0.0.1:{where}", ping_interval=None, proxy=None) as peer,
    ):
        await peer.send("still there?")
        assert json.loads(await peer.recv())["type"] == "auth_ok"
        assert await asyncio.wait_for(peer.recv(), 10) == "still there?"


@pytest.mark.parametrize("work", [waits, blocks])
async def test_slow_handler_costs_a_healthy_peer_nothing(
    tmp_path: Path, work: Callable[[], Awaitable[None]]
) -> None:
    async with (
        working(tmp_path, work) as where,
        connect(f"ws://127.0.0.1:{where}", ping_interval=None, proxy=None) as peer,
    ):
        assert json.loads(await peer.recv())["type"] == "auth_ok"
        sending = asyncio.create_task(send_all(peer))
        started = time.monotonic()
        for number in range(MANY):
            assert await asyncio.wait_for(peer.recv(), 10) == filled(number)
            if number == 0:
                assert time.monotonic() - started > SLOW / 2  # slow it was
        await sending


def filled(number: int) -> str:
    """A message so long that not all of them fit into what the system keeps."""
    return f"{number}".ljust(20_000)


async def send_all(peer: ClientConnection) -> None:
    for number in range(MANY):
        await peer.send(filled(number))


async def test_slow_room_costs_a_healthy_peer_nothing(tmp_path: Path) -> None:
    """The service's own endpoints receive and work in one task."""
    async with meeting(tmp_path) as (service, witness, alice):
        broker = service.house.broker
        publish = broker.publish
        asked: list[float] = []
        last: asyncio.Task[None] | None = None

        async def carry(before: asyncio.Task[None] | None, *message: Any) -> None:
            await (before or asyncio.sleep(SLOW))
            publish(*message)

        def slowly(*message: Any) -> asyncio.Task[None]:
            """The first takes long, and the others their turn, as a broker promises."""
            nonlocal last
            if last is None:
                asked.append(time.monotonic())
            last = asyncio.create_task(carry(last, *message))
            return last

        broker.publish = slowly  # type: ignore[method-assign, assignment]
        async with enter(service, "/ws/query-param", alice) as peer:
            await say(peer, type="join", room="lobby")
            await sees(witness, "joined")

            async def speak() -> None:
                for number in range(MANY):
                    data = filled(number)
                    await say(peer, type="publish", room="lobby", data=data)

            async def listen(member: Any) -> None:
                for number in range(MANY):
                    while (heard := await hear(member))["type"] != "message":
                        pass
                    assert heard["data"] == filled(number)

            await asyncio.gather(speak(), listen(peer), listen(witness))
            assert time.monotonic() - asked[0] > SLOW


async def test_peer_that_died_behind_a_slow_handler_is_found_when_it_reads_on(
    tmp_path: Path,
) -> None:
    async with (
        watched() as machine,
        working(tmp_path, waits) as where,
        wire(int(where[:5])) as peer,
    ):
        started = time.monotonic()
        await peer.upgrade(where[5:].lstrip("0123456789"))
        await peer.send(frame(TEXT, b"x" * 1000) * 80)  # then it answers nothing
        assert await peer.close_frame() == GONE
        late = time.monotonic() - started - SLOW
        # not before the handler was done, and soon after that
        assert 0 < late < 2 * (INTERVAL + TIMEOUT) + slack(machine)


async def test_peer_that_talks_is_not_taken_for_dead_and_found_when_it_stops(
    tmp_path: Path,
) -> None:
    """Its pong may lie behind what it said: nothing tells until it says no more."""
    async with (
        watched() as machine,
        meeting(tmp_path) as (service, _, alice),
        wire(service.port) as peer,
    ):
        await peer.upgrade(f"/ws/query-param/echo?token={alice.credential}")
        closed = asyncio.create_task(peer.close_frame())
        until = time.monotonic() + SLOW
        while time.monotonic() < until:
            await peer.send(frame(TEXT, b"x"))
            assert not closed.done()
            await asyncio.sleep(0.002)
        assert await closed == GONE
        assert time.monotonic() - until < INTERVAL + TIMEOUT + slack(machine)


# ---------------------------------------------------------------------- both kinds


async def test_json_ping_is_answered_beside_the_protocols_own(tmp_path: Path) -> None:
    """For browsers, whose pages can send no ping frame and see none."""
    async with (
        meeting(tmp_path) as (service, _, alice),
        wire(service.port) as peer,
    ):
        await peer.upgrade(f"/ws/query-param?token={alice.credential}")
        pings = 0
        while pings < 3:
            got = await peer.frame()
            if got.opcode == PING:
                pings += 1
                await peer.send(frame(PONG, got.payload))
                await peer.send(frame(TEXT, b'{"type":"ping","id":%d}' % pings))
                assert await text(peer) == {"type": "pong", "id": pings}


async def text(peer: WirePeer) -> Any:
    while (got := await peer.frame()).opcode != TEXT:
        assert got.opcode == PING
    return json.loads(got.payload)


@pytest.mark.parametrize("interval", [0.1, 0])
async def test_serve_pings_as_it_is_set(tmp_path: Path, interval: float) -> None:
    served = serve(tmp_path, ping_interval=interval, ping_timeout=0.1, auth_timeout=1)
    async with served as server, wire(server.port) as peer:
        await peer.upgrade("/ws/first-message")
        close = await peer.close_frame()
    # it says nothing: without pings it is the strategy that ends it, later
    assert close == (GONE if interval else (1008, "auth_timeout"))
