"""A real server under bytes that no client sends: it answers by the rules, serves on,
logs no failure, and holds nothing of those who sent them.

The streams begin as valid ones: a handshake and frames, by way of each strategy. Then
bytes in them are changed, lost, put in and doubled, and the whole is cut anywhere.
"""

from __future__ import annotations

import asyncio
import json
import logging
import random
from base64 import b64encode
from collections.abc import AsyncIterator
from hashlib import sha1

import pytest
import pytest_asyncio

from authws.close_codes import BY_SLUG
from tests.grants import Grant, grant, until
from tests.running import STRATEGIES, Service, running
from tests.wire import (
    BINARY,
    CLOSE,
    CONTINUATION,
    PING,
    PONG,
    TEXT,
    frame,
    handshake,
    request,
)

pytestmark = pytest.mark.asyncio(loop_scope="module")

STREAMS = 250
"""Of each kind and strategy: a few seconds in all."""
AT_ONCE = 25
PATIENCE = 10.0
GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
KEY = b"dGhlIHNhbXBsZSBub25jZQ=="
FOR_THE_WIRE = {*range(1000, 1004), *range(1007, 1015), *range(3000, 5000)}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def service(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Service]:
    async with running(tmp_path_factory.mktemp("streams"), auth_timeout=1) as service:
        await service.add_user("alice")
        yield service


def spoil(data: bytes, chance: random.Random) -> bytes:
    """Change a few places of something valid."""
    for _ in range(chance.choice([0, 1, 1, 2, 4])):
        at = chance.randrange(len(data) + 1)
        end = min(len(data), at + chance.randrange(5))
        new = chance.choice(
            [
                b"",
                bytes(chance.choices(range(256), k=chance.randrange(1, 5))),
                data[at:end] * 2,
                data[at : at + 1] and bytes([data[at] ^ 1 << chance.randrange(8)]),
            ]
        )
        data = data[:at] + new + data[end:]
    return data


def opening(service: Service, strategy: str, granted: Grant, path: str) -> bytes:
    target, lines = f"/ws/{strategy}{path}", []
    if strategy == "query-param":
        target += f"?token={granted.credential}"
    elif strategy == "session-cookie":
        lines = [f"Cookie: authws={granted.cookie}", f"Origin: {service.origin}"]
    return handshake(target, headers=tuple(lines))


def conversation(strategy: str, granted: Grant, chance: random.Random) -> bytes:
    """Frames as a client sends them: authentication, rooms, pings, pieces."""
    kinds = [
        frame(TEXT, b'{"type":"join","room":"lobby"}'),
        frame(TEXT, b'{"type":"publish","room":"lobby","data":[1,"x"],"id":1}'),
        frame(TEXT, b'{"type":"pi', fin=False) + frame(CONTINUATION, b'ng"}'),
        frame(TEXT, "Grüße".encode()),
        frame(BINARY, bytes(range(20))),
        frame(PING, b"there?"),
        frame(PONG),
        frame(CLOSE, b"\x03\xe8bye"),
    ]
    said = chance.choices(kinds, k=chance.randrange(1, 7))
    if strategy == "first-message" and chance.random() < 0.8:
        auth = {"type": "auth", "token": granted.credential}
        said.insert(0, frame(TEXT, json.dumps(auth).encode()))
    return b"".join(said)


async def exchange(service: Service, parts: list[bytes]) -> bytes:
    """Send each part, the second once there is an answer to the first; end our half,
    and return all that came."""
    reader, writer = await asyncio.open_connection("127.0.0.1", service.port)
    came = b""
    try:
        async with asyncio.timeout(PATIENCE):
            for number, part in enumerate(parts):
                if number:
                    came += await reader.read(65_536)
                writer.write(part)
            writer.write_eof()
            while data := await reader.read(65_536):
                came += data
    except ConnectionError:
        pass
    finally:
        writer.transport.abort()
    return came


async def exchanges(service: Service, streams: list[list[bytes]]) -> list[bytes]:
    places = asyncio.Semaphore(AT_ONCE)

    async def one(parts: list[bytes]) -> bytes:
        async with places:
            return await exchange(service, parts)

    return await asyncio.gather(*map(one, streams))


def check_answer(sent: bytes, came: bytes) -> bytes | None:
    """Hold an answer to HTTP; return what followed a completed handshake."""
    if not came:
        return None  # not a whole head: the server has said nothing, and may not
    head, _, rest = came.partition(b"\r\n\r\n")
    status = int(head.split()[1])
    assert head.startswith(b"HTTP/1.1 ")
    assert status < 500, (sent, came)
    if status != 101:
        assert status in range(200, 500)
        return None
    (key,) = (
        line.partition(b":")[2].strip()
        for line in sent.partition(b"\r\n\r\n")[0].split(b"\r\n")
        if line.lower().startswith(b"sec-websocket-key:")
    )
    accept = b64encode(sha1(key + GUID, usedforsecurity=False).digest())
    assert b"Sec-WebSocket-Accept: " + accept in head.split(b"\r\n")
    return rest


def check_frames(came: bytes) -> None:
    """Hold what a server said to RFC 6455: whole frames, and the close frame last.

    Only pongs may follow: each ping is owed one until the peer's own close frame is
    there (5.5.2), and the peer may have asked before it could know of ours.
    """
    at, is_closed = 0, False
    while at < len(came):
        first, size = came[at], came[at + 1]
        at += 2
        assert first & 0x70 == 0
        assert size < 0x80
        if size >= 126:
            width = 2 if size == 126 else 8
            size = int.from_bytes(came[at : at + width], "big")
            at += width
        payload = came[at : at + size]
        assert len(payload) == size
        at += size
        opcode = first & 0x0F
        assert not is_closed or opcode == PONG, "something was said behind the close"
        if opcode == TEXT:
            payload.decode()
        if opcode == CLOSE:
            is_closed = True
            check_close(payload)


def check_close(payload: bytes) -> None:
    code = int.from_bytes(payload[:2], "big")
    reason = payload[2:].decode()
    if code == 1008:
        assert reason in BY_SLUG
    # the peer's own code comes back to it; none of ours says that we have failed
    assert not payload or code in FOR_THE_WIRE
    assert (code, reason) != (1011, "internal_error")


async def nothing_is_left(service: Service, since: int) -> None:
    """And everybody is served as before."""
    await until(lambda: not service.house.hub.connections)
    await until(lambda: service.house.door.present.inside == 0)
    assert service.house.door.strangers.inside == 0
    assert not service.house.hub.rooms
    failures = [
        record.getMessage()
        for record in service.records[since:]
        if record.exc_info
        or record.levelno >= logging.ERROR
        or "Traceback" in record.getMessage()
    ]
    assert failures == []
    for strategy in STRATEGIES:
        async with await service.connect(strategy, echo=True) as peer:
            await peer.send("still there?")
            assert await asyncio.wait_for(peer.recv(), PATIENCE) == "still there?"


@pytest.mark.parametrize("strategy", STRATEGIES)
async def test_a_spoiled_handshake_is_refused_or_completed_as_it_should(
    service: Service, strategy: str
) -> None:
    chance, since = random.Random(f"handshake {strategy}"), len(service.records)
    granted = await grant(service, strategy)
    good = opening(service, strategy, granted, "")
    streams = [[spoil(good, chance)] for _ in range(STREAMS)]
    answers = await exchanges(service, streams)
    followed = [check_answer(s[0], a) for s, a in zip(streams, answers, strict=True)]
    for rest in followed:
        check_frames(rest or b"")
    assert {rest is None for rest in followed} == {True, False}, "one kind only"
    await nothing_is_left(service, since)


@pytest.mark.parametrize("path", ["", "/echo"], ids=["rooms", "echo"])
@pytest.mark.parametrize("strategy", STRATEGIES)
async def test_spoiled_frames_are_answered_by_the_rules(
    service: Service, strategy: str, path: str
) -> None:
    chance, since = random.Random(f"frames {strategy}{path}"), len(service.records)
    granted = await grant(service, strategy)
    hello = opening(service, strategy, granted, path)
    streams = [
        [hello, spoil(conversation(strategy, granted, chance), chance)]
        for _ in range(STREAMS)
    ]
    for sent, came in zip(streams, await exchanges(service, streams), strict=True):
        rest = check_answer(sent[0], came)
        assert rest is not None
        check_frames(rest)
    await nothing_is_left(service, since)


async def test_bytes_that_are_nothing_at_all_are_refused(service: Service) -> None:
    chance, since = random.Random("noise"), len(service.records)
    login = request("/auth/login", "Content-Length: 2", method="POST") + b"{}"
    streams = [
        [bytes(chance.choices(range(256), k=chance.randrange(1, 400)))]
        for _ in range(STREAMS)
    ] + [[spoil(login, chance)] for _ in range(STREAMS)]
    for sent, came in zip(streams, await exchanges(service, streams), strict=True):
        if came:
            assert check_answer(sent[0], came) is None
    await nothing_is_left(service, since)
