"""A connection ends when its credential does, whatever it is doing just then.

Real time, real sockets, credentials of a second or two. A deadline is the
``expires_at`` that the connection itself was told.
"""

# no postponed annotations here: FastAPI could not resolve the local guards in them
import asyncio
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import pytest
import pytest_asyncio
from fastapi import Depends, FastAPI
from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed

from authws import AuthWS, Connection
from authws.exceptions import ConnectionClosed as EndedByUs
from tests.grants import Grant, grant, hear, knock, say, until
from tests.machine import PROMPTLY, Machine
from tests.running import STRATEGIES, Service, TestClock, free_port, running
from tests.serving import serving

pytestmark = pytest.mark.asyncio(loop_scope="module")

LIFE = 0.9
REASONS = {
    "query-param": "token_expired",
    "first-message": "token_expired",
    "session-cookie": "session_expired",
}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def service(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Service]:
    limits = {"message_rate": 0, "byte_rate": 0, "outbox_bytes": 0}
    async with running(tmp_path_factory.mktemp("service"), **limits) as service:
        for name in ("alice", "bob"):
            await service.add_user(name)
        yield service
        await until(lambda: not service.house.hub.connections)
        assert [r.getMessage() for r in service.records if r.exc_info] == []


@dataclass
class Guest:
    """One whose credential runs out soon."""

    peer: ClientConnection
    ends_at: float
    id: str

    async def closing(self) -> tuple[int | None, str | None, float]:
        """Read to the end; return code and reason, and how late they came."""
        with suppress(ConnectionClosed):
            while True:
                await asyncio.wait_for(self.peer.recv(), 10)
        late = time.time() - self.ends_at
        return self.peer.close_code, self.peer.close_reason, late


def short_lived(granted: Grant, life: float) -> str:
    """The credential of a grant, for so long."""
    return granted.cookie or granted.access(ttl=life)


@asynccontextmanager
async def guest(
    service: Service,
    strategy: str,
    *,
    life: float = LIFE,
    subject: str = "alice",
    **options: Any,
) -> AsyncIterator[Guest]:
    """Come in with a credential that lives for so long."""
    peer, welcome = await _come_in(service, strategy, life, subject, **options)
    async with peer:
        assert welcome["type"] == "auth_ok"
        assert welcome["expires_at"] - welcome["server_time"] <= life
        yield Guest(peer, welcome["expires_at"], welcome["connection"])


async def _come_in(
    service: Service, strategy: str, life: float, subject: str, **options: Any
) -> tuple[ClientConnection, dict[str, Any]]:
    for tries_left in reversed(range(5)):
        granted = await grant(service, strategy, subject, ttl=life)
        credential = short_lived(granted, life)
        peer = await knock(service, f"/ws/{strategy}", credential, **options)
        try:
            return peer, await hear(peer)
        except ConnectionClosed:  # this machine took longer than the credential lives
            if peer.close_reason != REASONS[strategy] or not tries_left:
                raise
    raise AssertionError


async def join(peer: ClientConnection, room: str) -> None:
    await say(peer, type="join", room=room)
    while (await hear(peer))["type"] != "joined":
        pass


# ------------------------------------------------------------------------------ silent


@pytest.mark.parametrize("strategy", STRATEGIES)
async def test_a_silent_connection_ends_at_its_moment(
    service: Service, machine: Machine, strategy: str
) -> None:
    async with guest(service, strategy) as silent:
        code, reason, late = await silent.closing()
    assert (code, reason) == (1008, REASONS[strategy])
    assert machine.is_prompt(late)


@pytest.mark.parametrize("strategy", STRATEGIES)
async def test_an_echo_ends_at_its_moment_without_a_word_before(
    service: Service, machine: Machine, strategy: str
) -> None:
    granted = await grant(service, strategy, ttl=LIFE)
    ends_at = time.time() + LIFE
    credential = short_lived(granted, LIFE)
    async with await knock(service, f"/ws/{strategy}/echo", credential) as peer:
        if strategy == "first-message":
            ends_at = (await hear(peer))["expires_at"]
        with pytest.raises(ConnectionClosed):
            await asyncio.wait_for(peer.recv(), 10)
        late = time.time() - ends_at
    assert (peer.close_code, peer.close_reason) == (1008, REASONS[strategy])
    # an echo says no expires_at: what we took for it may be a little late itself
    assert machine.is_prompt(late) or -PROMPTLY < late < 0


async def test_an_idle_session_ends_at_its_idle_limit(
    service: Service, machine: Machine
) -> None:
    granted = await grant(service, "session-cookie", idle_ttl=LIFE, ttl=900)
    async with await knock(service, "/ws/session-cookie", granted.cookie) as peer:
        welcome = await hear(peer)
        idle = Guest(peer, welcome["expires_at"], welcome["connection"])
        code, reason, late = await idle.closing()
    assert (code, reason) == (1008, "session_expired")
    assert machine.is_prompt(late)


@pytest.mark.parametrize("strategy", STRATEGIES)
async def test_many_that_end_in_one_moment_all_end_at_it(
    service: Service, machine: Machine, strategy: str
) -> None:
    ends_at = time.time() + 2.0
    peers: list[ClientConnection] = []
    for _ in range(50):
        granted = await grant(service, strategy, ttl=ends_at - time.time())
        credential = short_lived(granted, ends_at - time.time())
        peers.append(await knock(service, f"/ws/{strategy}", credential))
    welcomes = [await hear(peer) for peer in peers]
    assert time.time() < ends_at, "too slow a machine to open them in time"
    guests = [
        Guest(peer, welcome["expires_at"], welcome["connection"])
        for peer, welcome in zip(peers, welcomes, strict=True)
    ]
    endings = await asyncio.gather(*(one.closing() for one in guests))
    assert {(code, reason) for code, reason, _ in endings} == {
        (1008, REASONS[strategy])
    }
    assert all(machine.is_prompt(late) for _, _, late in endings), endings


# -------------------------------------------------------------------------------- busy


def said(messages: list[dict[str, Any]], name: str) -> list[dict[str, Any]]:
    return [message for message in messages if message.get("data") == name]


def last(messages: list[dict[str, Any]], name: str) -> float:
    """When the server took the last of somebody's messages."""
    return max((message["at"] for message in said(messages, name)), default=0.0)


@pytest.mark.parametrize("strategy", STRATEGIES)
async def test_a_busy_connection_ends_at_its_moment_and_nothing_passes_after_it(
    service: Service, machine: Machine, strategy: str
) -> None:
    room = f"busy-{strategy}"
    bob = await grant(service, "query-param", "bob")
    async with (
        await knock(service, "/ws/query-param", bob.access()) as other,
        guest(service, strategy) as busy,
    ):
        assert (await hear(other))["type"] == "auth_ok"
        await join(busy.peer, room)
        await join(other, room)
        heard: list[dict[str, Any]] = []
        heard_by_other: list[dict[str, Any]] = []

        async def listen(peer: ClientConnection, to: list[dict[str, Any]]) -> None:
            with suppress(ConnectionClosed):
                while True:
                    to.append(await hear(peer))

        async def speak(peer: ClientConnection, name: str) -> None:
            with suppress(ConnectionClosed):
                while True:
                    for _ in range(5):  # 500 a second, the default limit
                        await say(peer, type="publish", room=room, data=name)
                    await asyncio.sleep(0.01)

        listening = asyncio.create_task(listen(other, heard_by_other))
        speaking = [
            asyncio.create_task(speak(busy.peer, "busy")),
            asyncio.create_task(speak(other, "other")),
        ]
        await listen(busy.peer, heard)
        late = time.time() - busy.ends_at
        assert (busy.peer.close_code, busy.peer.close_reason) == (
            1008,
            REASONS[strategy],
        )
        assert machine.is_prompt(late)
        left = {
            "type": "presence",
            "room": room,
            "subject": "alice",
            "event": "left",
        }
        # the other is heard all the while
        await until(lambda: last(heard_by_other, "other") > busy.ends_at)
        for task in speaking:
            task.cancel()
        await asyncio.gather(*speaking, return_exceptions=True)
        await other.close()
        await listening

    assert len(said(heard, "other")) > 100
    assert len(said(heard_by_other, "busy")) > 100
    assert last(heard, "other") < busy.ends_at
    assert last(heard_by_other, "busy") < busy.ends_at
    before_left = heard_by_other[: heard_by_other.index(left)]
    assert said(before_left, "busy") == said(heard_by_other, "busy")


# ------------------------------------------------------------------------- not reading


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("waiting", ["nothing", "much"])
async def test_one_that_does_not_read_is_let_go_of_at_its_moment(
    service: Service, machine: Machine, strategy: str, waiting: str
) -> None:
    room = f"deaf-{strategy}-{waiting}"
    hub = service.house.hub
    bob = await grant(service, "query-param", "bob")
    with socket.socket() as narrow:
        narrow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        narrow.setblocking(False)
        address = ("127.0.0.1", service.port)
        await asyncio.get_running_loop().sock_connect(narrow, address)
        async with (
            await knock(service, "/ws/query-param", bob.access()) as other,
            guest(service, strategy, life=2.0, sock=narrow, max_queue=1) as deaf,
        ):
            assert (await hear(other))["type"] == "auth_ok"
            await join(deaf.peer, room)
            await join(other, room)
            deaf.peer.transport.pause_reading()
            kept = hub.connections[deaf.id]
            if waiting == "much":  # until the server itself cannot write any more
                while len(kept._outbox) < 20:
                    await say(other, type="publish", room=room, data="x" * 60_000)
                    assert (await hear(other))["type"] == "message"
                    assert time.time() < deaf.ends_at, "too slow a machine to fill it"
            left = await hear(other)
            late = time.time() - deaf.ends_at
            assert (left["subject"], left["event"]) == ("alice", "left")
            assert machine.is_prompt(late)
            assert deaf.id not in hub.connections
            assert (len(kept._outbox), kept._outbox.size) == (0, 0)
            # should it read after all, within its second, it reads why
            deaf.peer.transport.resume_reading()
            code, reason, _ = await deaf.closing()
            assert (code, reason) == (1008, REASONS[strategy])


async def test_one_that_never_reads_again_is_cut_off(
    service: Service, machine: Machine
) -> None:
    async with guest(service, "query-param") as deaf:
        deaf.peer.transport.pause_reading()
        await until(lambda: deaf.id not in service.house.hub.connections)
        async with asyncio.timeout(5):
            with suppress(ConnectionClosed):
                while True:  # that the server is gone shows when we write
                    await deaf.peer.ping()
                    await asyncio.sleep(0.02)
        assert machine.is_prompt(time.time() - deaf.ends_at - 1.0)


# ---------------------------------------------------------------------------- a notice


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize(
    ("setting", "ahead"),
    [(60, LIFE / 2), (0.3, 0.3), (0, None)],
    ids=["half-a-short-life", "as-set", "off"],
)
async def test_a_notice_comes_once_ahead_of_the_end(
    tmp_path: Path,
    machine: Machine,
    strategy: str,
    setting: float,
    ahead: float | None,
) -> None:
    async with running(tmp_path, expiry_notice=setting) as service:
        await service.add_user("alice")
        notices: list[float] = []
        async with guest(service, strategy) as asked:
            with suppress(ConnectionClosed):
                while True:
                    notice = await hear(asked.peer)
                    notices.append(asked.ends_at - time.time())
                    assert notice == {
                        "type": "auth_expiring",
                        "expires_at": asked.ends_at,
                    }
            assert asked.peer.close_reason == REASONS[strategy]
        assert len(notices) == (ahead is not None)
        assert all(machine.is_prompt((ahead or 0) - left) for left in notices), notices


# -------------------------------------------------------------- in somebody else's app


Handler = Callable[[Connection], Awaitable[None]]


@dataclass
class Library:
    """A user's app with one route, by each strategy, to one handler after another."""

    auth: AuthWS
    port: int
    handler: Handler
    ended: list[str]
    """What the handler met at the end, as it wrote it down."""

    @property
    def origin(self) -> str:
        return f"http://127.0.0.1:{self.port}"


@asynccontextmanager
async def library(tmp_path: Path) -> AsyncIterator[tuple[Service, Library]]:
    """The same as a service, as far as ``grant`` and ``knock`` are concerned."""
    port = free_port()
    auth = AuthWS(data_dir=tmp_path / "data", port=port, login_rate=0)
    app = FastAPI(lifespan=auth.lifespan)
    auth.install(app)
    here: Library

    def add(strategy: str) -> None:
        guard = getattr(auth, strategy.replace("-", "_"))

        @app.websocket(f"/ws/{strategy}")
        async def ws(connection: Annotated[Connection, Depends(guard)]) -> None:
            await here.handler(connection)

    for strategy in STRATEGIES:
        add(strategy)

    loops: list[asyncio.AbstractEventLoop] = []

    @app.get("/loop")
    async def loop() -> None:
        loops.append(asyncio.get_running_loop())

    async def nothing(connection: Connection) -> None: ...

    async with serving(app, port=port):
        here = Library(auth, port, nothing, [])
        service = Service(
            port, app, auth.house, asyncio.get_running_loop(), TestClock()
        )
        async with service.http() as http:
            assert (await http.get("/loop")).status_code == 200
        (service.loop,) = loops
        await service.add_user("alice")
        yield service, here


async def busy_elsewhere(connection: Connection, ended: list[str]) -> None:
    """A handler that takes no notice of its connection for a long time."""
    await asyncio.sleep(LIFE + 0.5)
    ended.append(f"received {await connection.receive()!r}")
    try:
        await connection.send_text("too late")
    except EndedByUs as over:
        ended.append(f"{over.code} {over.reason}")


async def blocks_the_loop(connection: Connection, ended: list[str]) -> None:
    """A handler that lets nothing else run while its time runs out."""
    assert await connection.receive() == "block"
    while connection.principal.expires_at > time.time():
        time.sleep(0.05)  # noqa: ASYNC251 - that is what it is here for
    ended.append(f"received {await connection.receive()!r}")


async def always_sends(connection: Connection, ended: list[str]) -> None:
    try:
        while True:
            await connection.send_text("x" * 1_000)
            await asyncio.sleep(0.001)
    except EndedByUs as over:
        ended.append(f"{over.code} {over.reason}")


async def always_receives(connection: Connection, ended: list[str]) -> None:
    async for message in connection:
        assert message
    ended.append("the iteration ended")


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize(
    ("handler", "expected"),
    [
        (busy_elsewhere, ["received None", "1008 {reason}"]),
        (blocks_the_loop, ["received None"]),
        (always_sends, ["1008 {reason}"]),
        (always_receives, ["the iteration ended"]),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
async def test_a_handler_of_the_library_needs_no_code_for_it(
    tmp_path: Path,
    machine: Machine,
    strategy: str,
    handler: Callable[[Connection, list[str]], Awaitable[None]],
    expected: list[str],
) -> None:
    async with library(tmp_path) as (service, here):
        here.handler = lambda connection: handler(connection, here.ended)
        async with guest(service, strategy) as one:
            for word in ("block", "came in time, and stays untaken"):
                await one.peer.send(word)
            code, reason, late = await one.closing()
            assert (code, reason) == (1008, REASONS[strategy])
            assert machine.is_prompt(late)
            await until(lambda: len(here.ended) == len(expected))
        reason = REASONS[strategy]
        assert here.ended == [line.format(reason=reason) for line in expected]
        await until(lambda: not service.house.hub.connections)
