"""How a WebSocket ends below the app, as a peer on a socket sees it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import pytest
import websockets
from websockets.asyncio.client import connect

from authws.service.protocols import ProtocolLimits
from tests.serving import serving
from tests.wire import CLOSE, CONTINUATION, TEXT, frame, wire

QUICK = ProtocolLimits(close_timeout=0.3)
"""For tests about a deadline; all others keep the real one, a second."""

App = Callable[[Any, Any, Any], Awaitable[None]]


async def echo(scope: Any, receive: Any, send: Any) -> None:
    """Accept, and return each message until the peer is gone."""
    assert scope["type"] == "websocket"
    await receive()
    await send({"type": "websocket.accept"})
    while (event := await receive())["type"] == "websocket.receive":
        await send({**event, "type": "websocket.send"})


@pytest.mark.parametrize(
    ("said", "code", "reason"),
    [
        (frame(TEXT, b"\xc3("), 1007, ""),
        (
            frame(TEXT, b"\xf0\x9f", fin=False) + frame(CONTINUATION, b"\x98"),
            1007,
            "",
        ),
        (frame(TEXT, b"a" * 65_537), 1009, "message_too_big"),
        (b"\x82\xff\x40" + b"\0" * 7, 1009, "message_too_big"),
        (frame(3), 1002, "invalid opcode"),
        (frame(CONTINUATION), 1002, "unexpected continuation frame"),
        (frame(CLOSE, b"\x03"), 1002, "close frame too short"),
    ],
    ids=["utf-8", "utf-8-cut", "big", "2^62", "opcode", "continuation", "close"],
)
async def test_protocol_violation_is_closed_with_one_line_at_most_in_the_log(
    said: bytes, code: int, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    async with serving(echo) as port, wire(port) as peer:
        await peer.upgrade()
        await peer.send(said)
        got = await peer.close_frame()
        assert (got[0], got[1].partition(":")[0]) == (code, reason)
        assert await peer.is_ended()
    assert not [record for record in caplog.records if record.exc_info]
    lines = [line for line in caplog.messages if "UTF-8" in line]
    assert len(lines) == (code == 1007)


async def closes(scope: Any, receive: Any, send: Any) -> None:
    await receive()
    await send({"type": "websocket.accept"})
    await send({"type": "websocket.close", "code": 1008, "reason": "token_expired"})


async def returns(scope: Any, receive: Any, send: Any) -> None:
    await receive()
    await send({"type": "websocket.accept"})


async def raises(scope: Any, receive: Any, send: Any) -> None:
    await returns(scope, receive, send)
    raise LookupError("a bug of the app's own")


@pytest.mark.parametrize(
    ("app", "close"),
    [
        (closes, (1008, "token_expired")),
        (returns, (1000, "")),
        (raises, (1011, "internal_error")),
    ],
)
async def test_every_end_of_the_app_is_a_close_frame(
    app: App, close: tuple[int, str]
) -> None:
    async with serving(app) as port, wire(port) as peer:
        await peer.upgrade()
        assert await peer.close_frame() == close


@pytest.mark.parametrize("app", [closes, returns])
async def test_peer_that_does_not_answer_the_close_frame_is_cut_off(app: App) -> None:
    async with serving(app) as port, wire(port) as peer:
        await peer.upgrade()
        started = time.monotonic()
        await peer.close_frame()
        assert await peer.is_ended()
    assert time.monotonic() - started < 2


@pytest.mark.parametrize("says_close", [True, False])
async def test_peer_that_never_reads_is_cut_off(says_close: bool) -> None:
    gone = threading.Event()
    watchers: set[asyncio.Task[None]] = set()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        async def watch() -> None:
            # 1005 is how the loss of the connection itself is reported
            while (await receive()).get("code") != 1005:
                pass
            gone.set()

        await returns(scope, receive, send)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.3):
                while True:
                    await send({"type": "websocket.send", "bytes": b"x" * 500_000})
        watchers.add(asyncio.create_task(watch()))
        if says_close:
            await send({"type": "websocket.close", "code": 1008})

    async with serving(app, protocol_limits=QUICK) as port, wire(port) as peer:
        await peer.upgrade()
        assert await asyncio.to_thread(gone.wait, 5)


async def test_peer_that_closes_and_reads_no_more_is_cut_off() -> None:
    async with serving(echo, protocol_limits=QUICK) as port, wire(port) as peer:
        await peer.upgrade()
        await peer.send(frame(CLOSE, b"\x03\xe8bye"))
        assert await peer.close_frame() == (1000, "bye")
        assert await peer.is_ended()


async def test_peer_that_does_not_answer_pings_is_cut_off() -> None:
    async with (
        serving(echo, ping_interval=0.1, ping_timeout=0.1) as port,
        wire(port) as peer,
    ):
        await peer.upgrade()
        assert await peer.close_frame() == (1011, "keepalive ping timeout")
        assert await peer.is_ended()


async def test_restart_closes_1012_and_ends_in_time() -> None:
    ready = asyncio.Event()
    got: list[tuple[int, str]] = []

    async def stay(port: int) -> None:
        async with connect(f"ws://127.0.0.1:{port}/") as client:
            ready.set()
            with pytest.raises(websockets.ConnectionClosed) as closed:
                await client.recv()
            assert closed.value.rcvd is not None
            got.append((closed.value.rcvd.code, closed.value.rcvd.reason))

    async with serving(echo) as port:
        staying = asyncio.create_task(stay(port))
        await ready.wait()
    await staying
    assert got == [(1012, "restart")]


async def test_restart_does_not_wait_for_a_stream_without_end() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        while True:
            await send(
                {"type": "http.response.body", "body": b":\n\n", "more_body": True}
            )
            await asyncio.sleep(0.05)

    async with httpx.AsyncClient() as client:
        async with serving(app, drain=1) as port:
            request = client.build_request("GET", f"http://127.0.0.1:{port}/")
            response = await client.send(request, stream=True)
            started = time.monotonic()
        assert time.monotonic() - started < 3
        await response.aclose()
