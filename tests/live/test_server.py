"""The HTTP side of the server below the app, as a peer on a socket sees it."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from typing import Any

import pytest

from authws.service.protocols import ProtocolLimits
from tests.serving import serving
from tests.wire import WirePeer, handshake, request, wire

QUICK = ProtocolLimits(
    head_timeout=0.3, body_timeout=0.3, close_timeout=0.3, response_timeout=0.3
)
"""For tests about a deadline; all others keep the real ones, and must not meet them."""


class App:
    """Answers each request with what it saw, once it has read the body."""

    def __init__(self) -> None:
        self.scopes: list[dict[str, Any]] = []
        self.heard: list[str] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            raise RuntimeError("no lifespan here")
        self.scopes.append(scope)
        while True:
            event = await receive()
            self.heard.append(event["type"])
            if not event.get("more_body"):
                break
        seen = {
            "path": scope["path"],
            "query": len(scope["query_string"]),
            "headers": [name.decode() for name, _ in scope["headers"]],
        }
        body = json.dumps(seen).encode()
        length = str(len(body)).encode()
        start = {"type": "http.response.start", "status": 200}
        await send({**start, "headers": [(b"content-length", length)]})
        await send({"type": "http.response.body", "body": body})


async def websocket_app(scope: Any, receive: Any, send: Any) -> None:
    """Accept, say how long the query was, close."""
    if scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.accept"})
        length = str(len(scope["query_string"]))
        await send({"type": "websocket.send", "text": length})
        await send({"type": "websocket.close", "code": 1000})


async def assert_refused(peer: WirePeer, status: int, slug: str) -> None:
    response = await peer.response()
    assert (response.status, json.loads(response.body)) == (status, {"detail": slug})
    assert response.headers["connection"] == "close"
    assert await peer.is_ended()


# ---------------------------------------------------------------------------- deadlines


@pytest.mark.parametrize("said", [b"", b"GET / HT", b"GET / HTTP/1.1\r\nHost: a\r\n"])
async def test_head_that_does_not_end_is_answered_408(said: bytes) -> None:
    app = App()
    async with serving(app, protocol_limits=QUICK) as port, wire(port) as peer:
        await peer.send(said)
        await assert_refused(peer, 408, "request_timeout")
    assert not app.scopes


async def test_header_at_a_time_does_not_put_off_the_deadline() -> None:
    async def drip(peer: WirePeer) -> None:
        await peer.send(b"GET / HTTP/1.1\r\n")
        while True:
            await peer.send(b"X-Slow: 1\r\n")
            await asyncio.sleep(0.05)

    async with serving(App(), protocol_limits=QUICK) as port, wire(port) as peer:
        started = time.monotonic()
        dripping = asyncio.create_task(drip(peer))
        await assert_refused(peer, 408, "request_timeout")
        dripping.cancel()
    assert time.monotonic() - started < 3


async def test_second_head_on_a_connection_has_a_deadline_too() -> None:
    async with (
        serving(App(), protocol_limits=QUICK, keep_alive=60) as port,
        wire(port) as peer,
    ):
        await peer.send(request())
        assert (await peer.response()).status == 200
        await peer.send(b"GET / HT")
        await assert_refused(peer, 408, "request_timeout")


async def test_empty_lines_do_not_keep_an_idle_connection() -> None:
    async def drip(peer: WirePeer) -> None:
        while True:
            await peer.send(b"\r\n")
            await asyncio.sleep(0.05)

    async with serving(App(), keep_alive=1) as port, wire(port) as peer:
        await peer.send(request())
        assert (await peer.response()).status == 200
        dripping = asyncio.create_task(drip(peer))
        assert await peer.is_ended()
        dripping.cancel()


async def test_body_that_does_not_end_is_answered_408() -> None:
    app = App()
    async with serving(app, protocol_limits=QUICK) as port, wire(port) as peer:
        await peer.send(request("/", "Content-Length: 10", method="POST") + b"12345")
        await assert_refused(peer, 408, "request_timeout")
    assert app.heard[-1] == "http.disconnect"


# ------------------------------------------------------------------------------- limits


@pytest.mark.parametrize("size", [17_000, 70_000, 5_000_000])
@pytest.mark.parametrize("upgrade", [False, True])
async def test_long_target_is_answered_414(size: int, upgrade: bool) -> None:
    target = f"/?token={'a' * size}"
    app = App()
    async with serving(app) as port, wire(port) as peer:
        sending = peer.send(handshake(target) if upgrade else request(target))
        await asyncio.gather(sending, assert_refused(peer, 414, "uri_too_long"))
    assert not app.scopes


async def test_long_target_is_answered_before_it_ends() -> None:
    async with serving(App()) as port, wire(port) as peer:
        await peer.send(b"GET /" + b"a" * 20_000)
        await assert_refused(peer, 414, "uri_too_long")


async def test_token_of_8_kib_in_the_query_reaches_the_app() -> None:
    target = f"/?token={'a' * 8192}"
    async with serving(App()) as port, wire(port) as peer:
        await peer.send(request(target))
        assert json.loads((await peer.response()).body)["query"] == 8192 + 6
    async with serving(websocket_app) as port, wire(port) as peer:
        await peer.upgrade(target)
        assert (await peer.frame()).payload == b"8198"


@pytest.mark.parametrize(
    "head",
    [
        request("/", *["X: 1"] * 100),
        request("/", f"X: {'a' * 33_000}"),
        request("/", *[f"X: {'a' * 8_000}"] * 5),
        request("/", f"X: {'a' * 33_000}").rstrip(),
        request("/", f"X: {'a' * 5_000_000}").rstrip(),
        handshake(headers=("X: 1",) * 100),
        handshake(headers=(f"X: {'a' * 33_000}",)),
    ],
    ids=["101", "one-line", "lines", "endless", "5MB", "ws-101", "ws-one-line"],
)
async def test_too_many_or_too_large_headers_are_answered_431(head: bytes) -> None:
    app = App()
    async with serving(app) as port, wire(port) as peer:
        sending = peer.send(head)
        await asyncio.gather(sending, assert_refused(peer, 431, "headers_too_large"))
    assert not app.scopes


async def test_hundred_headers_and_a_long_cookie_reach_the_app() -> None:
    head = request("/", *["X: 1"] * 98, f"Cookie: {'a' * 16_000}")
    async with serving(App()) as port, wire(port) as peer:
        await peer.send(head)
        seen = json.loads((await peer.response()).body)
    assert len(seen["headers"]) == 100


@pytest.mark.parametrize(
    "said",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"NONSENSE\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost : a\r\n\r\n",
        b"POST / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"POST / HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"GET /\xff HTTP/1.1\r\n\r\n",
    ],
)
async def test_what_is_not_http_is_answered_400(
    said: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    async with serving(App()) as port, wire(port) as peer:
        await peer.send(said)
        await assert_refused(peer, 400, "bad_request")
    assert len([line for line in caplog.messages if "bad_request" in line]) == 1
    assert not [record for record in caplog.records if record.exc_info]


async def test_trailer_is_not_taken_for_a_header() -> None:
    body = b"1\r\na\r\n0\r\nX-Forwarded-For: 6.6.6.6\r\n\r\n"
    async with serving(App()) as port, wire(port) as peer:
        head = request("/", "Transfer-Encoding: chunked", method="POST")
        await peer.send(head + body)
        seen = json.loads((await peer.response()).body)
    assert seen["headers"] == ["host", "transfer-encoding"]


async def test_good_request_is_answered_before_a_bad_one_ends_the_connection() -> None:
    async with serving(App()) as port, wire(port) as peer:
        await peer.send(request("/good") + b"NONSENSE\r\n\r\n")
        response = await peer.response()
        assert json.loads(response.body)["path"] == "/good"
        assert await peer.is_ended()


# ---------------------------------------------------------------------------- handshake


@pytest.mark.parametrize("version", ["8", "12", "99", "", "13, 8"])
async def test_other_websocket_version_is_answered_426(version: str) -> None:
    app = App()
    async with serving(app) as port, wire(port) as peer:
        await peer.send(handshake(ws_version=version))
        response = await peer.response()
        assert response.status == 426
        assert response.headers["sec-websocket-version"] == "13"
        assert await peer.is_ended()
    assert not app.scopes


@pytest.mark.parametrize(
    "head",
    [
        handshake(version="HTTP/1.0"),
        handshake(without="Upgrade"),
        handshake(without="Connection"),
        handshake(without="Sec-WebSocket-Key"),
        handshake(headers=("Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",)),
        handshake(headers=("Content-Length: 4",)),
        handshake(headers=("Transfer-Encoding: chunked",)),
    ],
    ids=["http-1.0", "upgrade", "connection", "key", "two-keys", "body", "chunked"],
)
async def test_half_a_handshake_is_answered_400(head: bytes) -> None:
    app = App()
    async with serving(app) as port, wire(port) as peer:
        await peer.send(head)
        assert (await peer.response()).status == 400
        assert await peer.is_ended()
    assert not app.scopes


async def test_handshake_by_post_is_answered_405() -> None:
    async with serving(App()) as port, wire(port) as peer:
        await peer.send(handshake(method="POST"))
        assert (await peer.response()).status == 405
        assert await peer.is_ended()


async def test_upgrade_to_another_protocol_is_ignored_and_not_tunnelled() -> None:
    app = App()
    async with serving(app) as port, wire(port) as peer:
        upgrade = ("Connection: Upgrade", "Upgrade: h2c")
        await peer.send(request("/", *upgrade) + request("/smuggled"))
        assert (await peer.response()).status == 200
        assert await peer.is_ended()
    assert [scope["path"] for scope in app.scopes] == ["/"]
