"""Protocol abuse: handshake and frames.

A peer made of bytes sends what no client library would, to strangers' sockets and to
those of a known user alike. Each violation ends with the code that RFC 6455 has for it.
"""

from __future__ import annotations

import asyncio
import json
import random
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import pytest_asyncio

from authws.close_codes import CloseCode
from tests.grants import grant, until
from tests.running import ENDPOINTS, STRATEGIES, Service, running
from tests.security.peers import controlled
from tests.wire import (
    BINARY,
    CLOSE,
    CONTINUATION,
    PING,
    PONG,
    TEXT,
    WirePeer,
    frame,
    handshake,
    request,
    wire,
)

pytestmark = pytest.mark.asyncio(loop_scope="module")

ANONYMOUS = "anonymous"
WHO = (ANONYMOUS, "query-param", "session-cookie", "query-param/echo")
"""A stranger before the first message, and a known user of three endpoints."""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def service(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Service]:
    async with running(tmp_path_factory.mktemp("protocol")) as service:
        await service.add_user("alice")
        async with controlled(service):
            yield service
        await until(lambda: not service.house.hub.connections)


@asynccontextmanager
async def raw(service: Service, who: str) -> AsyncIterator[WirePeer]:
    """A WebSocket made of bytes, after whatever the server says first."""
    async with wire(service.port) as peer:
        lines: tuple[str, ...] = ()
        target = "/ws/first-message" if who == ANONYMOUS else f"/ws/{who}"
        if who != ANONYMOUS:
            granted = await grant(service, who.removesuffix("/echo"))
            if granted.cookie:
                cookie = f"Cookie: authws={granted.cookie}"
                lines = (cookie, f"Origin: {service.origin}")
            else:
                target += f"?token={granted.access()}"
        await peer.send(handshake(target, headers=lines))
        assert (await peer.response()).status == 101
        if not who.endswith("/echo"):
            first = "auth_required" if who == ANONYMOUS else "auth_ok"
            assert json.loads((await peer.frame()).payload)["type"] == first
        yield peer


# ------------------------------------------------------------------------------- frames

VIOLATIONS: dict[str, bytes] = {
    "PRO-01": b"\x81\x01x",
    "PRO-01-control": b"\x89\x00",
    "PRO-02-rsv1": frame(TEXT | 0x40, b"x"),
    "PRO-02-rsv2": frame(TEXT | 0x20, b"x"),
    "PRO-02-rsv3": frame(TEXT | 0x10, b"x"),
    "PRO-02-rsv1-control": frame(PING | 0x40, b"x"),
    **{
        f"PRO-03-{opcode:X}": frame(opcode, b"x")
        for opcode in (3, 4, 5, 6, 7, 0xB, 0xC, 0xD, 0xE, 0xF)
    },
    "PRO-04": frame(CONTINUATION, b"x"),
    "PRO-04-unfinished": frame(CONTINUATION, b"x", fin=False),
    "PRO-04-empty": frame(CONTINUATION),
    "PRO-05": frame(TEXT, b"x", fin=False) + frame(TEXT, b"x"),
    "PRO-05-binary": frame(TEXT, b"x", fin=False) + frame(BINARY, b"x"),
    "PRO-06-fragmented-ping": frame(PING, b"x", fin=False),
    "PRO-06-fragmented-close": frame(CLOSE, struct.pack("!H", 1000), fin=False),
    "PRO-06-long-ping": frame(PING, b"x" * 126),
    "PRO-06-long-close": frame(CLOSE, struct.pack("!H", 1000) + b"x" * 124),
    "PRO-07-one-byte": frame(CLOSE, b"\x03"),
    **{
        f"PRO-07-{code}": frame(CLOSE, struct.pack("!H", code))
        for code in (0, 999, 1004, 1005, 1006, 1015, 1016, 2999, 5000, 65535)
    },
}


@pytest.mark.parametrize("who", WHO)
@pytest.mark.parametrize("sent", VIOLATIONS.values(), ids=VIOLATIONS)
async def test_violation_of_the_framing_is_1002(
    service: Service, who: str, sent: bytes
) -> None:
    async with raw(service, who) as peer:
        await peer.send(sent)
        assert (await peer.close_frame())[0] == 1002
        assert await peer.is_ended()


NOT_UTF8: dict[str, bytes] = {
    "PRO-08": frame(CLOSE, struct.pack("!H", 1000) + b"\xff\xfe"),
    "PRO-09-overlong": frame(TEXT, b"\xc0\xaf"),
    "PRO-09-surrogate": frame(TEXT, b"\xed\xa0\x80"),
    "PRO-09-beyond-unicode": frame(TEXT, b"\xf4\x90\x80\x80"),
    "PRO-09-cut-short": frame(TEXT, b"abc\xe2\x82"),
    "PRO-09-lone-continuation": frame(TEXT, b"\x80"),
    "PRO-09-in-fragments": frame(TEXT, b"ok \xe2", fin=False)
    + frame(CONTINUATION, b"\x28\xa1"),
    "PRO-09-in-json": frame(TEXT, b'{"type":"auth","token":"\xff"}'),
}


@pytest.mark.parametrize("who", WHO)
@pytest.mark.parametrize("sent", NOT_UTF8.values(), ids=NOT_UTF8)
async def test_text_that_is_not_utf8_is_1007(
    service: Service, who: str, sent: bytes
) -> None:
    async with raw(service, who) as peer:
        await peer.send(sent)
        assert (await peer.close_frame())[0] == 1007
        assert await peer.is_ended()


@pytest.mark.parametrize("case", ["PRO-09-split"])
async def test_a_character_split_over_fragments_is_whole(
    service: Service, case: str
) -> None:
    euro = "€".encode()
    async with raw(service, "query-param/echo") as peer:
        await peer.send(
            frame(TEXT, euro[:1], fin=False)
            + frame(CONTINUATION, euro[1:2], fin=False)
            + frame(CONTINUATION, euro[2:])
        )
        assert (await peer.frame()).payload == euro


@pytest.mark.parametrize("width", [126, 127])
@pytest.mark.parametrize("case", ["PRO-10"])
async def test_length_in_more_bytes_than_needed_means_what_it_says(
    service: Service, width: int, case: str
) -> None:
    """A documented leniency of the library: such a length is read, never guessed."""
    length = struct.pack("!H", 2) if width == 126 else struct.pack("!Q", 2)
    async with raw(service, "query-param/echo") as peer:
        await peer.send(b"\x81" + bytes([0x80 | width]) + length + b"\0\0\0\0hi")
        got = await peer.frame()
        if got.opcode == CLOSE:
            assert got.close[0] == 1002
        else:
            assert got.payload == b"hi"


@pytest.mark.parametrize("who", WHO)
@pytest.mark.parametrize("case", ["PRO-21"])
async def test_control_frames_between_fragments_are_answered(
    service: Service, who: str, case: str
) -> None:
    async with raw(service, who) as peer:
        await peer.send(frame(TEXT, b'{"type":', fin=False) + frame(PING, b"between"))
        assert await peer.frame() == (True, PONG, b"between")
        await peer.send(frame(PONG, b"unasked") + frame(PING))
        assert await peer.frame() == (True, PONG, b"")


@pytest.mark.parametrize("who", WHO)
@pytest.mark.parametrize("case", ["PRO-07-good"])
async def test_a_good_close_is_answered_in_kind(
    service: Service, who: str, case: str
) -> None:
    for body, code in (
        (struct.pack("!H", 1000), 1000),
        (struct.pack("!H", 1001) + b"bye", 1001),
        (struct.pack("!H", 4999), 4999),
    ):
        async with raw(service, who) as peer:
            await peer.send(frame(CLOSE, body))
            assert (await peer.close_frame())[0] == code
            assert await peer.is_ended()


@pytest.mark.parametrize("who", WHO)
@pytest.mark.parametrize("case", ["PRO-07-after-close"])
async def test_nothing_is_taken_after_a_close(
    service: Service, who: str, case: str
) -> None:
    token = (await grant(service, "query-param")).access()
    message = frame(TEXT, json.dumps({"type": "auth", "token": token}).encode())
    async with raw(service, who) as peer:
        await peer.send(frame(CLOSE, struct.pack("!H", 1000)) + message)
        for _ in range(50):  # no reset may take the close frame away
            await peer.send(message)
        assert (await peer.frame()).close[0] == 1000
        assert await peer.is_ended()


@pytest.mark.parametrize("who", WHO)
@pytest.mark.parametrize("case", ["PRO-24"])
async def test_a_second_request_after_101_is_no_request(
    service: Service, who: str, case: str
) -> None:
    async with raw(service, who) as peer:
        await peer.send(request("/healthz"))
        got = await peer.frame()
        assert got.opcode == CLOSE
        assert got.close[0] == 1002
        assert await peer.is_ended()


@pytest.mark.parametrize("together", [True, False])
@pytest.mark.parametrize("case", ["PRO-24-early"])
async def test_bytes_before_the_101_are_never_a_message(
    service: Service, together: bool, case: str
) -> None:
    token = (await grant(service, "query-param")).access()
    early = frame(TEXT, json.dumps({"type": "auth", "token": token}).encode())
    async with wire(service.port) as peer:
        opening = handshake("/ws/first-message")
        await peer.send(opening + early if together else opening)
        if together:
            assert (await peer.response()).status == 400
            assert await peer.is_ended()
        else:
            await peer.send(request("/healthz"))
            response = await peer.response()
            assert response.status in {101, 400}
            assert b"status" not in response.body


# ------------------------------------------------------------------------ the handshake

HANDSHAKES: dict[str, tuple[bytes, int]] = {
    "PRO-12-no-upgrade": (handshake("{path}", without="Upgrade"), 400),
    "PRO-12-other-upgrade": (
        handshake("{path}", without="Upgrade", headers=("Upgrade: chat",)),
        400,
    ),
    "PRO-12-no-connection": (handshake("{path}", without="Connection"), 400),
    "PRO-12-other-connection": (
        handshake("{path}", without="Connection", headers=("Connection: close",)),
        400,
    ),
    "PRO-12-no-key": (handshake("{path}", without="Sec-WebSocket-Key"), 400),
    "PRO-12-short-key": (
        handshake(
            "{path}", without="Sec-WebSocket-Key", headers=("Sec-WebSocket-Key: YQ==",)
        ),
        400,
    ),
    "PRO-12-no-base64": (
        handshake(
            "{path}",
            without="Sec-WebSocket-Key",
            headers=("Sec-WebSocket-Key: !!!!!!!!!!!!!!!!!!!!!!==",),
        ),
        400,
    ),
    "PRO-12-two-keys": (
        handshake("{path}", headers=("Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",)),
        400,
    ),
    **{
        f"PRO-13-{version or 'empty'}": (handshake("{path}", ws_version=version), 426)
        for version in ("8", "12", "99", "", "13, 8", "x")
    },
    "PRO-13-absent": (handshake("{path}", without="Sec-WebSocket-Version"), 426),
    "PRO-14": (handshake("{path}", method="POST"), 405),
    "PRO-14-head": (handshake("{path}", method="HEAD"), 405),
    "PRO-15": (handshake("{path}", version="HTTP/1.0"), 400),
    "PRO-18": (
        handshake(
            "{path}",
            without="Upgrade",
            headers=("Upgrade: h2c", "HTTP2-Settings: AAMAAABkAAQAAP__"),
        ),
        400,
    ),
}


@pytest.mark.parametrize("path", ["/ws/query-param", "/ws/first-message"])
@pytest.mark.parametrize(
    ("opening", "status"), HANDSHAKES.values(), ids=HANDSHAKES.keys()
)
async def test_handshake_that_is_none_is_refused(
    service: Service, path: str, opening: bytes, status: int
) -> None:
    token = (await grant(service, "query-param")).access()
    target = f"{path}?token={token}" if "query" in path else path
    async with wire(service.port) as peer:
        await peer.send(opening.replace(b"{path}", target.encode()))
        response = await peer.response()
        assert response.status == status
        if status == 426:
            assert response.headers["sec-websocket-version"] == "13"


@pytest.mark.parametrize("path", [*ENDPOINTS, "/ws", "/ws/"])
@pytest.mark.parametrize("case", ["PRO-16"])
async def test_plain_get_on_a_websocket_path(
    service: Service, path: str, case: str
) -> None:
    for method in ("GET", "POST", "OPTIONS"):
        async with wire(service.port) as peer:
            await peer.send(request(path, method=method))
            response = await peer.response()
            assert response.status in {400, 404, 405, 426}
            assert set(json.loads(response.body)) == {"detail"}


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/ws",
        "/ws/unknown",
        "/ws/query-param/",
        "/ws/query-param/other",
        "/ws//query-param",
        "/WS/query-param",
        "/ws/query%2Dparam/../x",
        "/healthz",
        "/auth/me",
    ],
)
@pytest.mark.parametrize("case", ["PRO-17"])
async def test_unknown_websocket_path_is_never_opened(
    service: Service, path: str, case: str
) -> None:
    token = (await grant(service, "query-param")).access()
    async with wire(service.port) as peer:
        await peer.send(handshake(f"{path}?token={token}"))
        response = await peer.response()
        assert response.status in {403, 404}
        assert b"Traceback" not in response.body


SMUGGLED: dict[str, bytes] = {
    "PRO-19": request(
        "/auth/login", "Content-Length: 6", "Transfer-Encoding: chunked", method="POST"
    )
    + b"0\r\n\r\nG",
    "PRO-19-two-lengths": request(
        "/auth/login", "Content-Length: 2", "Content-Length: 3", method="POST"
    )
    + b"{} ",
    "PRO-19-signed-length": request("/auth/login", "Content-Length: +2", method="POST")
    + b"{}",
    "PRO-19-chunk-size": request(
        "/auth/login", "Transfer-Encoding: chunked", method="POST"
    )
    + b"2x\r\n{}\r\n0\r\n\r\n",
    "PRO-19-chunk-end": request(
        "/auth/login", "Transfer-Encoding: chunked", method="POST"
    )
    + b"2\r\n{}XX0\r\n\r\n",
    "PRO-19-other-coding": request(
        "/auth/login", "Transfer-Encoding: chunked, identity", method="POST"
    )
    + b"0\r\n\r\n",
    "PRO-19-space-before-colon": request("/healthz", "X-A : b"),
    "PRO-19-folded": request("/healthz", "X-A: b", " c"),
    "PRO-19-nul": request("/healthz", "X-A: b\0c"),
    "PRO-19-bare-lf": b"GET /healthz HTTP/1.1\nHost: 127.0.0.1\n\n",
    "PRO-19-no-version": b"GET /healthz\r\nHost: 127.0.0.1\r\n\r\n",
    "PRO-19-version-2": b"GET /healthz HTTP/2.0\r\nHost: 127.0.0.1\r\n\r\n",
    "PRO-19-upgrade-with-body": handshake(
        "/ws/first-message", headers=("Content-Length: 5",)
    )
    + b"hello",
    "PRO-19-upgrade-chunked": handshake(
        "/ws/first-message", headers=("Transfer-Encoding: chunked",)
    )
    + b"0\r\n\r\n",
}


@pytest.mark.parametrize("sent", SMUGGLED.values(), ids=SMUGGLED.keys())
async def test_request_of_unclear_length_is_400_and_the_end(
    service: Service, sent: bytes
) -> None:
    canary = request("/auth/me", "X-Smuggled: yes")
    async with wire(service.port) as peer:
        await peer.send(sent + canary)
        response = await peer.response()
        assert response.status == 400
        assert await peer.is_ended()


OFFERS = {
    "PRO-20-bits": "permessage-deflate; client_max_window_bits=99",
    "PRO-20-zero": "permessage-deflate; server_max_window_bits=0",
    "PRO-20-twice": "permessage-deflate; server_max_window_bits=9, permessage-deflate",
    "PRO-20-unknown": "permessage-deflate; unknown=1",
    "PRO-20-empty": "permessage-deflate; client_max_window_bits=",
    "PRO-20-junk": ";;,=,;x=",
    "PRO-20-good": "permessage-deflate; client_max_window_bits",
    "PRO-20-webkit": "x-webkit-deflate-frame",
}


@pytest.mark.parametrize("offer", OFFERS.values(), ids=OFFERS.keys())
async def test_no_extension_is_ever_agreed(service: Service, offer: str) -> None:
    async with wire(service.port) as peer:
        line = f"Sec-WebSocket-Extensions: {offer}"
        await peer.send(handshake("/ws/first-message", headers=(line,)))
        response = await peer.response()
        assert response.status in {101, 400}
        assert "sec-websocket-extensions" not in response.headers


PROTOCOLS = {
    "PRO-22": ("chat", None),
    "PRO-22-other-version": ("authws.v2, authws.v10", None),
    "PRO-22-case": ("AUTHWS.V1", None),
    "PRO-22-credential": ("bearer, eyJhbGciOiJub25lIn0.e30.", None),
    "PRO-22-ours-among-others": ("chat, authws.v1", "authws.v1"),
}


@pytest.mark.parametrize(
    ("offered", "chosen"), PROTOCOLS.values(), ids=PROTOCOLS.keys()
)
async def test_only_our_subprotocol_is_chosen(
    service: Service, offered: str, chosen: str | None
) -> None:
    async with wire(service.port) as peer:
        line = f"Sec-WebSocket-Protocol: {offered}"
        await peer.send(handshake("/ws/first-message", headers=(line,)))
        response = await peer.response()
        assert response.status == 101
        assert response.headers.get("sec-websocket-protocol") == chosen


# ----------------------------------------------------------------------------- anything

CODES = {int(code) for code in CloseCode} | {1000, 1001, 1002}


def mutated(chance: random.Random) -> bytes:
    """Some frames, a byte or two of which are not what they were."""
    payloads = (
        b'{"type":"ping","id":1}',
        b'{"type":"join","room":"fuzz"}',
        b'{"type":"publish","room":"fuzz","data":[1,2]}',
        b'{"type":"auth","token":"a.b.c"}',
        b"",
        b"\xff\xfe",
        bytes(chance.randrange(256) for _ in range(chance.randrange(200))),
    )
    opcodes = (TEXT, TEXT, TEXT, BINARY, CONTINUATION, PING, PONG, 3)
    sent = bytearray()
    for _ in range(chance.randrange(1, 6)):
        fin = chance.random() < 0.8
        sent += frame(chance.choice(opcodes), chance.choice(payloads), fin=fin)
    for _ in range(chance.choice((0, 0, 1, 1, 2, 8))):
        sent[chance.randrange(len(sent))] = chance.randrange(256)
    return bytes(sent)


@pytest.mark.parametrize("who", WHO)
@pytest.mark.parametrize("case", ["PRO-26"])
async def test_mutated_frames_end_in_a_close_of_the_table(
    service: Service, who: str, case: str
) -> None:
    since = len(service.records)
    chance = random.Random(f"{who} 26")
    for number in range(60):
        sent = mutated(chance)
        async with raw(service, who) as peer:
            await peer.send(sent)
            # what the mutation made of the last length is beyond the end: so ends it
            peer.end()
            try:
                code, _ = await peer.close_frame()
            except asyncio.IncompleteReadError:
                continue  # the server met the end of the stream first
            assert code in CODES or 3000 <= code < 5000, (number, sent)
            assert code != 1011, (number, sent)
    assert [r.getMessage() for r in service.records[since:] if r.exc_info] == []


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("case", ["PRO-26-requests"])
async def test_mutated_requests_are_answered_or_ended(
    service: Service, strategy: str, case: str
) -> None:
    since = len(service.records)
    chance = random.Random(f"{strategy} 26")
    for number in range(60):
        sent = bytearray(handshake(f"/ws/{strategy}?token=a.b.c"))
        for _ in range(chance.randrange(1, 6)):
            sent[chance.randrange(len(sent))] = chance.randrange(256)
        async with wire(service.port) as peer:
            await peer.send(bytes(sent))
            peer.end()
            try:
                response = await peer.response()
            except asyncio.IncompleteReadError:
                continue
            assert response.status != 500, (number, sent)
    assert [r.getMessage() for r in service.records[since:] if r.exc_info] == []
