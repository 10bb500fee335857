"""The end of a server: what a peer, a load balancer and an operator see of it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import websockets
from websockets.asyncio.client import ClientConnection

from authws.service.watchdog import CUT_SHORT
from tests.daemon import PASSWORD, Daemon, daemon, serve, users
from tests.grants import Grant, enter, grant, hear
from tests.running import STRATEGIES, Service, running
from tests.serving import serving
from tests.wire import WirePeer, handshake, request, wire

RESTART = (1012, "restart")
SHORT = 1.0
"""Seconds of a drain that a test waits for to the end."""
LATE = 0.25
"""Seconds that a busy machine may take to tell us of the end."""

APP = """
import asyncio, signal, sys, time
from authws.service.server import Server, build_config

def is_told():
    return signal.getsignal(signal.SIGTERM) is signal.SIG_DFL

async def ignores():
    while True:
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            pass

async def blocks():
    await asyncio.sleep(0.05)  # what was sent goes out
    print("blocked", flush=True)
    while not is_told():
        time.sleep(0.01)
    print("told", flush=True)
    while True:
        time.sleep(0.01)

async def computes():
    while not is_told():
        await asyncio.sleep(0.01)
    print("told", flush=True)
    sum(range(10**15))  # holds the interpreter's lock for weeks

async def waits():
    await asyncio.to_thread(time.sleep, 3600)

async def cleans():
    try:
        await asyncio.sleep(3600)
    finally:
        print("clean", flush=True)

async def app(scope, receive, send):
    name = scope["path"][1:]
    if scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.accept"})
        await globals()[name]()
    elif scope["type"] == "http":
        await send({"type": "http.response.start", "status": 200, "headers": []})
        while True:
            event = {"type": "http.response.body", "body": b":\\n\\n"}
            await send({**event, "more_body": True})
            await asyncio.sleep(0.01)

class Told(Server):
    async def startup(self, sockets=None):
        await super().startup(sockets)
        port = self.servers[0].sockets[0].getsockname()[1]
        print(f"at http://127.0.0.1:{port}", flush=True)

options = {"lifespan": "off"}
config = build_config(app, port=0, drain=float(sys.argv[1]))
config.lifespan = "off"
Told(config).run()
"""
"""Handlers of every bad habit, by path, on our server without any house."""


async def ending(peer: ClientConnection) -> tuple[list[dict[str, Any]], Any]:
    """Read to the end; return what was said before it, and how it ended."""
    said = []
    with contextlib.suppress(websockets.ConnectionClosed):
        async with asyncio.timeout(10):
            while True:
                said.append(json.loads(await peer.recv()))
    return said, (peer.close_code, peer.close_reason)


async def token(server: Daemon) -> str:
    async with server.http() as http:
        login = {"username": "alice", "password": PASSWORD}
        answer = await http.post("/auth/login", json=login)
    return str(answer.json()["access_token"])


@contextlib.asynccontextmanager
async def held(server: Daemon) -> AsyncIterator[WirePeer]:
    """A request whose body is not whole: the drain has to wait for it."""
    async with wire(server.port) as peer:
        lines = ("Content-Type: application/json", "Content-Length: 2")
        head = request("/auth/refresh", *lines, "Expect: 100-continue", method="POST")
        await peer.send(head)
        assert (await peer.response()).status == 100  # the app waits for it
        await peer.send(b"{")
        yield peer


async def is_refused(port: int) -> bool:
    try:
        async with wire(port):
            return False
    except OSError:
        return True


async def until_refused(port: int) -> None:
    async with asyncio.timeout(5):
        while not await is_refused(port):  # noqa: ASYNC110 - nothing tells of it
            await asyncio.sleep(0.005)


# -------------------------------------------------------------------- what a peer sees


async def test_sigterm_tells_every_peer_and_ends_soon(tmp_path: Path) -> None:
    await users(tmp_path, "alice")
    async with serve(tmp_path, "--drain", "20") as server:
        access = await token(server)
        base = f"ws://127.0.0.1:{server.port}/ws"

        async def connect(path: str) -> ClientConnection:
            return await websockets.connect(f"{base}/{path}", proxy=None)

        room = await connect(f"query-param?token={access}")
        echo = await connect(f"query-param/echo?token={access}")
        stranger = await connect("first-message")
        assert [json.loads(await room.recv())["type"]] == ["auth_ok"]
        assert [json.loads(await stranger.recv())["type"]] == ["auth_required"]
        server.send()
        endings = await asyncio.gather(*map(ending, (room, echo, stranger)))
        assert time.monotonic() - server.told_at < 0.5
        status, seconds = await server.ended()
    (notice,) = endings[0][0]
    assert notice["type"] == "restarting"
    assert 0 < notice["retry_after"] < 5
    assert [said for said, _ in endings[1:]] == [[], []]
    assert [close for _, close in endings] == [RESTART] * 3
    # nothing that had ended was waited for; the signal is how a supervisor sees it
    assert status == -signal.SIGTERM
    assert seconds < 2
    assert "Traceback" not in server.errors


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize(
    ("drain", "least", "most"), [(20.0, 0.3, 2.0), (0.5, 0.05, 0.32)]
)
async def test_farewells_are_spread_over_half_of_the_drain_at_most(
    tmp_path: Path, strategy: str, drain: float, least: float, most: float
) -> None:
    """At least 200 in a second: a hundred take half a second, or what there is."""
    ended: list[float] = []
    ready = asyncio.Semaphore(0)

    async def stay(service: Service, granted: Grant) -> None:
        async with enter(service, f"/ws/{strategy}", granted) as peer:
            ready.release()
            notice = await hear(peer)
            assert 1 <= notice["retry_after"] <= 1.6
            assert (await ending(peer))[1] == RESTART
            ended.append(time.monotonic())

    server = {"drain": drain}
    async with running(tmp_path, max_connections_per_user=0, server=server) as service:
        await service.add_user()
        granted = await grant(service, strategy)
        peers = [asyncio.create_task(stay(service, granted)) for _ in range(100)]
        for _ in peers:
            await ready.acquire()
    await asyncio.gather(*peers)
    assert least < max(ended) - min(ended) < most


async def test_handshake_in_flight_is_answered_503(tmp_path: Path) -> None:
    async with wire_to_slow_service(tmp_path) as peer:
        response = await peer.response()
        assert (response.status, response.body) == (503, b'{"detail":"restart"}')
        assert await peer.is_ended()


@contextlib.asynccontextmanager
async def wire_to_slow_service(directory: Path) -> AsyncIterator[WirePeer]:
    """A peer whose token is being verified when the service is told to end."""
    asked = asyncio.Event()
    here = asyncio.get_running_loop()

    async def never(*args: Any, **options: Any) -> None:
        here.call_soon_threadsafe(asked.set)
        await asyncio.sleep(3600)

    async with contextlib.AsyncExitStack() as after:
        async with running(directory) as service:
            patch = after.enter_context(pytest.MonkeyPatch.context())
            patch.setattr(service.house.authority, "by_token", never)
            peer = await after.enter_async_context(wire(service.port))
            await peer.send(handshake("/ws/query-param?token=a.b.c"))
            await asked.wait()
        yield peer


# -------------------------------------------------------- what a load balancer sees


async def test_who_is_connected_sees_the_drain_and_who_is_not_is_refused(
    tmp_path: Path,
) -> None:
    async with (
        serve(tmp_path, "--drain", "20") as server,
        held(server) as running_request,
        wire(server.port) as idle,
        wire(server.port) as late,
    ):
        for peer in (idle, late):
            await peer.send(request("/readyz"))
            assert (await peer.response()).status == 200
        server.send()
        await until_refused(server.port)

        await idle.send(request("/readyz"))
        answer = await idle.response()
        assert answer.status == 503
        assert json.loads(answer.body) == {
            "status": "draining",
            "database": "ok",
            "broker": "ok",
        }
        await idle.send(request("/healthz"))  # it is alive, and still there
        assert (await idle.response()).status == 200

        await late.send(handshake("/ws/first-message"))
        refused = await late.response()
        assert (refused.status, refused.body) == (503, b'{"detail":"restart"}')
        assert int(refused.headers["retry-after"]) >= 1

        assert server.process.returncode is None
        await running_request.send(b"}")
        assert (await running_request.response()).status == 422
        finished = time.monotonic()
        status, _ = await server.ended()
        assert status == -signal.SIGTERM
        assert time.monotonic() - finished < 2
        assert await idle.is_ended()


# ------------------------------------------------------------- what an operator sees


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_second_signal_ends_it_at_once(
    tmp_path: Path, number: signal.Signals
) -> None:
    async with serve(tmp_path, "--drain", "20") as server, held(server):
        server.send()
        await until_refused(server.port)
        server.send(number)
        status, seconds = await server.ended()
    assert status == -number
    assert seconds < 0.5


async def test_ctrl_c_ends_it_without_an_error(tmp_path: Path) -> None:
    async with serve(tmp_path) as server:
        server.send(signal.SIGINT)
        status, seconds = await server.ended()
    assert status == 0
    assert seconds < 2
    assert "Traceback" not in server.errors


@contextlib.asynccontextmanager
async def misbehaving(
    directory: Path, habit: str, drain: float = SHORT
) -> AsyncIterator[Daemon]:
    """Our server, with one peer of a handler that has a bad habit."""
    async with daemon("-c", APP, str(drain), directory=directory) as server:
        if habit == "streams":
            async with wire(server.port) as peer:
                await peer.send(request("/stream"))
                assert (await peer.response()).status == 200
                yield server
        else:
            async with wire(server.port) as peer:
                await peer.upgrade(f"/{habit}")
                yield server


@pytest.mark.parametrize("habit", ["ignores", "waits", "streams"])
async def test_handler_that_does_not_end_is_left_behind(
    tmp_path: Path, habit: str
) -> None:
    """One that catches its cancellation, one in a thread, a response without end."""
    async with misbehaving(tmp_path, habit) as server:
        server.send()
        status, seconds = await server.ended()
    assert status == -signal.SIGTERM
    assert SHORT / 2 < seconds < SHORT + LATE
    assert "The drain is over: cutting" in server.errors


async def test_handler_that_is_cut_off_may_clean_up(tmp_path: Path) -> None:
    async with misbehaving(tmp_path, "cleans") as server:
        server.send()
        await server.says("clean")
        assert (await server.ended())[0] == -signal.SIGTERM


@pytest.mark.parametrize("habit", ["ignores", "waits"])
async def test_handler_that_outlives_ctrl_c_is_cut_off(
    tmp_path: Path, habit: str
) -> None:
    """Nothing but the process holds it: asyncio waits for every task and thread."""
    async with misbehaving(tmp_path, habit) as server:
        server.send(signal.SIGINT)
        status, seconds = await server.ended()
    assert status == CUT_SHORT
    assert seconds < SHORT + LATE
    assert "connections cut" in server.errors


async def test_blocked_event_loop_is_cut_off_in_time(tmp_path: Path) -> None:
    async with misbehaving(tmp_path, "blocks") as server:
        await server.says("blocked")
        server.send()
        status, seconds = await server.ended()
    assert status == CUT_SHORT
    assert seconds < SHORT + LATE
    (line,) = [line for line in server.errors.splitlines() if "drain is over" in line]
    assert "1 connections cut" in line


async def test_handler_that_holds_the_interpreter_is_cut_off_and_named(
    tmp_path: Path,
) -> None:
    """No thread of Python's runs any more; who holds them is told."""
    async with misbehaving(tmp_path, "computes") as server:
        server.send()
        status, seconds = await server.ended()
    assert status == CUT_SHORT
    assert seconds < SHORT + LATE
    assert "in computes" in server.errors


@pytest.mark.parametrize("habit", ["blocks", "computes"])
async def test_second_signal_ends_a_blocked_loop_at_once(
    tmp_path: Path, habit: str
) -> None:
    async with misbehaving(tmp_path, habit, drain=20) as server:
        server.send()
        await server.says("told")
        server.send()
        status, seconds = await server.ended()
    assert status == -signal.SIGTERM
    assert seconds < 0.5


async def test_drain_of_zero_tells_everybody_and_waits_for_nobody(
    tmp_path: Path,
) -> None:
    async with (
        daemon("-c", APP, "0", directory=tmp_path) as server,
        wire(server.port) as peer,
    ):
        await peer.upgrade("/ignores")
        server.send()
        assert await peer.close_frame() == RESTART
        status, seconds = await server.ended()
    assert status == -signal.SIGTERM
    assert seconds < 0.5


async def test_app_that_cannot_say_goodbye_does_not_stop_the_server() -> None:
    """Its connections are told by the server itself then."""
    house = Broken()
    async with contextlib.AsyncExitStack() as after:
        async with serving(house, drain=5) as port:
            peer = await after.enter_async_context(wire(port))
            await peer.upgrade()
            started = time.monotonic()
        assert time.monotonic() - started < 3
        assert await peer.close_frame() == RESTART
    assert house.asked


class Broken:
    """An app that accepts, and fails to end what it accepted."""

    def __init__(self) -> None:
        self.asked = False
        self.state = self.authws = self

    async def drain(self, seconds: float) -> None:
        self.asked = True
        raise LookupError("a bug of the app's own")

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "websocket"
        await receive()
        await send({"type": "websocket.accept"})
        while (await receive())["type"] == "websocket.receive":
            pass
