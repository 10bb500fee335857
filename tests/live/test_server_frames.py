"""The WebSocket side of the server below the app, as a peer on a socket sees it."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from websockets.asyncio.client import connect

from authws.service.protocols import ProtocolLimits
from tests.grants import grant
from tests.running import running
from tests.serving import serving
from tests.wire import (
    BINARY,
    CLOSE,
    CONTINUATION,
    PING,
    PONG,
    TEXT,
    frame,
    handshake,
    wire,
)

QUICK = ProtocolLimits(message_timeout=0.3, close_timeout=0.3)
"""For tests about a deadline; all others keep the real ones."""


async def echo(scope: Any, receive: Any, send: Any) -> None:
    """Accept, and return each message until the peer is gone."""
    assert scope["type"] == "websocket"
    await receive()
    await send({"type": "websocket.accept"})
    while (event := await receive())["type"] == "websocket.receive":
        await send({**event, "type": "websocket.send"})


class Recorder:
    """Accepts when it is told to, and keeps what it receives."""

    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []
        self.accept = threading.Event()
        self.error: OSError | None = None

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "websocket"
        self.events.append(await receive())
        await asyncio.to_thread(self.accept.wait, 5)
        try:
            await send({"type": "websocket.accept"})
        except OSError as error:
            self.error = error
        while self.events[-1]["type"] != "websocket.disconnect":
            self.events.append(await receive())


async def until(condition: Callable[[], bool]) -> None:
    """Wait for what another thread brings about."""
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110 - there is no event to wait for
            await asyncio.sleep(0.01)


# ------------------------------------------------------------------------ the handshake


@pytest.mark.parametrize("together", [True, False])
async def test_bytes_before_the_101_are_answered_400(together: bool) -> None:
    app = Recorder()
    early = frame(TEXT, b'{"type":"auth"}')
    async with serving(app) as port, wire(port) as peer:
        if together:
            await peer.send(handshake() + early)
        else:
            await peer.send(handshake())
            await until(lambda: bool(app.events))
            await peer.send(early)
        response = await peer.response()
        assert response.status == 400
        assert response.body == b'{"detail":"data_before_handshake"}'
        assert await peer.is_ended()
        app.accept.set()
        if not together:
            await until(lambda: len(app.events) == 2)
    assert [event["type"] for event in app.events] == (
        [] if together else ["websocket.connect", "websocket.disconnect"]
    )
    assert together or app.error is not None


async def test_headers_reach_the_app_as_they_came() -> None:
    seen: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append(scope)
        await echo(scope, receive, send)

    async with serving(app) as port, wire(port) as peer:
        await peer.send(
            handshake("/a%20b?c=%20", headers=("X-Name: caf\u00e9", "x-name: 2"))
        )
        assert (await peer.response()).status == 101
    scope = seen[-1]
    assert scope["path"] == "/a b"
    assert (scope["raw_path"], scope["query_string"]) == (b"/a%20b", b"c=%20")
    values = [value for name, value in scope["headers"] if name == b"x-name"]
    assert values == ["caf\u00e9".encode(), b"2"]


async def test_client_that_we_did_not_write_is_served_without_compression() -> None:
    async with (
        serving(echo) as port,
        connect(f"ws://127.0.0.1:{port}/", compression="deflate") as client,
    ):
        for message in ("text", b"bytes", "", "x" * 65_536):
            await client.send(message)
            assert await client.recv() == message
        assert client.response is not None
        assert "Sec-WebSocket-Extensions" not in client.response.headers


async def test_refusal_by_the_app_is_a_403_or_what_it_says() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        if scope["path"] == "/close":
            await send({"type": "websocket.close", "code": 1008})
        else:
            start = {"type": "websocket.http.response.start", "status": 429}
            await send({**start, "headers": []})
            await send({"type": "websocket.http.response.body", "body": b"slow"})

    async with serving(app) as port:
        for path, status in (("/close", 403), ("/deny", 429)):
            async with wire(port) as peer:
                await peer.send(handshake(path))
                assert (await peer.response()).status == status
                assert await peer.is_ended()


# --------------------------------------------------------------------------- fragments


async def test_1024_fragments_are_a_message_and_one_more_is_1008() -> None:
    start = frame(TEXT, b"a", fin=False)
    async with serving(echo) as port:
        async with wire(port) as peer:
            await peer.upgrade()
            for _ in range(2):  # the count begins anew with each message
                middle = frame(CONTINUATION, fin=False) * 1022
                await peer.send(start + middle + frame(CONTINUATION, b"z"))
                assert (await peer.frame()).payload == b"az"
        async with wire(port) as peer:
            await peer.upgrade()
            await peer.send(start + frame(CONTINUATION, fin=False) * 1024)
            assert await peer.close_frame() == (1008, "rate_limited")
            assert await peer.is_ended()


@pytest.mark.parametrize(
    "begun",
    [frame(TEXT, b"a", fin=False), frame(BINARY, b"abc")[:-1], frame(PING)[:1]],
    ids=["fragment", "half-frame", "half-ping"],
)
async def test_message_that_does_not_end_is_closed_1008(begun: bytes) -> None:
    async with serving(echo, protocol_limits=QUICK) as port, wire(port) as peer:
        await peer.upgrade()
        await peer.send(begun)
        assert await peer.close_frame() == (1008, "rate_limited")
        assert await peer.is_ended()


async def test_fragments_in_time_do_not_put_off_the_deadline() -> None:
    async with serving(echo, protocol_limits=QUICK) as port, wire(port) as peer:
        await peer.upgrade()
        await peer.send(frame(TEXT, b"a", fin=False))

        async def drip() -> None:
            while True:
                await peer.send(frame(CONTINUATION, b"b", fin=False) + frame(PONG))
                await asyncio.sleep(0.05)

        dripping = asyncio.create_task(drip())
        assert await peer.close_frame() == (1008, "rate_limited")
        dripping.cancel()


async def test_slow_app_does_not_cost_the_peer_its_deadline() -> None:
    release = threading.Event()

    async def slow(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        await asyncio.to_thread(release.wait, 5)
        await send(await receive() | {"type": "websocket.send"})
        await send(await receive() | {"type": "websocket.send"})

    limits = ProtocolLimits(message_timeout=0.1)
    async with serving(slow, protocol_limits=limits) as port, wire(port) as peer:
        await peer.upgrade()
        await peer.send(frame(TEXT, b"whole") + frame(TEXT, b"a", fin=False))
        with pytest.raises(TimeoutError):  # several times the deadline: no close frame
            await asyncio.wait_for(peer.frame(), 0.4)
        await peer.send(frame(CONTINUATION, b"b"))
        release.set()
        assert (await peer.frame()).payload == b"whole"
        assert (await peer.frame()).payload == b"ab"


# ------------------------------------------------------------- the app's own, lower cap

CAP = 8192
TOO_BIG = (1009, "message_too_big")


async def careful(scope: Any, receive: Any, send: Any) -> None:
    """An echo that bounds the first message, as for a stranger, and no later one."""
    limit = scope["extensions"]["authws.wire"].limit_messages
    limit(CAP)
    await receive()
    await send({"type": "websocket.accept"})
    first = await receive()
    limit(None)
    while (event := first or await receive())["type"] == "websocket.receive":
        first = None
        await send({**event, "type": "websocket.send"})


def announced(frame_: bytes, payload: int) -> bytes:
    """The head of a frame without its payload, and with its mask."""
    return frame_[: len(frame_) - payload]


@pytest.mark.parametrize("size", [1, 5000, CAP])
async def test_message_within_the_cap_is_taken_and_lifts_it(size: int) -> None:
    async with serving(careful) as port, wire(port) as peer:
        await peer.upgrade()
        first = b"a" * size
        half = size // 2
        await peer.send(
            frame(TEXT, first[:half], fin=False) + frame(CONTINUATION, first[half:])
        )
        assert (await peer.frame()).payload == first
        await peer.send(frame(TEXT, b"b" * 65_536))
        assert (await peer.frame()).payload == b"b" * 65_536
        await peer.send(announced(frame(TEXT, b"b" * 65_537), 65_537))
        assert await peer.close_frame() == TOO_BIG  # the usual bound is back


@pytest.mark.parametrize(
    "said",
    [
        announced(frame(TEXT, b"a" * (CAP + 1)), CAP + 1),
        announced(frame(BINARY, b"a" * 65_536), 65_536),
        frame(TEXT, b"a" * CAP, fin=False) + announced(frame(CONTINUATION, b"a"), 1),
        frame(TEXT, b"a" * 4096, fin=False)
        + frame(CONTINUATION, b"a" * 4096, fin=False)
        + announced(frame(CONTINUATION, b"a" * 100), 100),
    ],
    ids=["one-more", "usual", "fragment", "fragments"],
)
async def test_message_over_the_cap_is_refused_before_it_is_there(said: bytes) -> None:
    """As soon as a frame announces too much: its payload never came."""
    async with serving(careful) as port, wire(port) as peer:
        await peer.upgrade()
        await peer.send(said)
        assert await peer.close_frame() == TOO_BIG
        assert await peer.is_ended()


async def test_no_app_lifts_the_servers_own_cap() -> None:
    async def greedy(scope: Any, receive: Any, send: Any) -> None:
        scope["extensions"]["authws.wire"].limit_messages(1 << 30)
        await echo(scope, receive, send)

    async with serving(greedy) as port, wire(port) as peer:
        await peer.upgrade()
        await peer.send(announced(frame(TEXT, b"b" * 65_537), 65_537))
        assert await peer.close_frame() == TOO_BIG


async def test_stranger_is_refused_as_soon_as_it_announces_too_much(
    tmp_path: Path,
) -> None:
    async with running(tmp_path) as service:
        await service.add_user()
        granted = await grant(service, "first-message")
        auth = json.dumps({"type": "auth", "token": granted.access()})
        async with wire(service.port) as peer:
            await peer.upgrade("/ws/first-message/echo")
            assert (await peer.frame()).opcode == TEXT
            await peer.send(frame(TEXT, auth.ljust(CAP).encode()))
            assert json.loads((await peer.frame()).payload)["type"] == "auth_ok"
            await peer.send(frame(TEXT, b"b" * 65_536))
            assert (await peer.frame()).payload == b"b" * 65_536
        async with wire(service.port) as peer:
            await peer.upgrade("/ws/first-message/echo")
            assert (await peer.frame()).opcode == TEXT
            whole = frame(TEXT, auth.ljust(CAP + 1).encode())
            await peer.send(announced(whole, CAP + 1))
            assert await peer.close_frame() == TOO_BIG

        def refusals() -> list[tuple[str, str]]:
            events = service.security_events
            refused = [event for event in events if event["event"] == "refused"]
            return [(event["reason"], event["limit"]) for event in refused]

        await until(lambda: bool(refusals()))
        assert refusals() == [("message_too_big", "first_message_bytes")]


# ------------------------------------------------------------------------------ control


@pytest.mark.parametrize("opcode", [PING, PONG])
async def test_flood_of_control_frames_is_closed_1008(opcode: int) -> None:
    async with serving(echo) as port, wire(port) as peer:
        await peer.upgrade()
        sending = peer.send(frame(opcode, b"x") * 5_000)
        _, close = await asyncio.gather(sending, peer.close_frame())
        assert close == (1008, "rate_limited")
        assert await peer.is_ended()


async def test_pings_within_the_rate_are_answered_between_fragments() -> None:
    async with serving(echo) as port, wire(port) as peer:
        await peer.upgrade()
        await peer.send(frame(TEXT, b"a", fin=False))
        for _ in range(50):
            await peer.send(frame(PING, b"p"))
            assert await peer.frame() == (True, PONG, b"p")
        await peer.send(frame(CONTINUATION, b"b"))
        assert (await peer.frame()).payload == b"ab"


# -------------------------------------------------------------------- many in one read

TINY = frame(TEXT)
MANY = 20_000


class Reader:
    """Takes messages when it is told to, and counts them."""

    def __init__(self) -> None:
        self.wire: Any = None
        self.go_on = threading.Event()
        self.taken = 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.wire = scope["extensions"]["authws.wire"]
        await receive()
        await send({"type": "websocket.accept"})
        await asyncio.to_thread(self.go_on.wait, 10)
        while (await receive())["type"] == "websocket.receive":
            self.taken += 1

    @property
    def waiting(self) -> int:
        """How many events wait for it."""
        return len(self.wire._events or ())


async def test_messages_of_one_read_stay_bytes_until_it_is_their_turn() -> None:
    """Else a read of a quarter of a megabyte becomes eight of events."""
    app = Reader()
    async with serving(app) as port, wire(port) as peer:
        await peer.upgrade()
        sending = asyncio.create_task(
            peer.send(TINY * MANY + frame(CLOSE, b"\x03\xe8"))
        )
        await until(lambda: app.waiting > 0)
        assert 0 < app.waiting <= 32
        app.go_on.set()
        await sending
        assert await peer.close_frame() == (1000, "")
    assert app.taken == MANY


async def test_flood_behind_our_close_frame_is_not_listened_to() -> None:
    async def closes(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        await receive()
        await send({"type": "websocket.close", "code": 1008, "reason": "forbidden"})

    async with serving(closes) as port, wire(port) as peer:
        await peer.upgrade()
        await peer.send(TINY * MANY)
        assert await peer.close_frame() == (1008, "forbidden")
        assert await peer.is_ended()


async def test_peer_that_reads_no_pongs_gets_one_for_all_when_it_does() -> None:
    limits = ProtocolLimits(control_rate=0)
    app = Reader()
    async with (
        serving(app, protocol_limits=limits, ping_interval=0) as port,
        wire(port) as peer,
    ):
        await peer.upgrade()
        await until(lambda: app.wire is not None)
        payload = b"p" * 125
        pings = frame(PING, payload) * 500
        async with asyncio.timeout(10):
            while app.wire.is_writable:  # until what the kernel takes is full
                await peer.send(pings)
        held = app.wire.transport.get_write_buffer_size()
        for _ in range(20):
            await peer.send(pings)
        await peer.send(frame(PING, b"last"))
        assert app.wire.transport.get_write_buffer_size() <= held + len(pings)
        while (pong := await peer.frame()).payload != b"last":
            assert pong.opcode == PONG
