"""Resource exhaustion.

Every bound is reached from outside, with honest users connected all the while: what
goes over it ends with a code that says so, and costs nobody else anything.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import resource
import socket
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio
from websockets.exceptions import ConnectionClosed, InvalidStatus

from authws.service.protocols import ProtocolLimits
from tests.daemon import serve
from tests.grants import Grant, ending, enter, grant, hear, knock, present, say, until
from tests.running import ENDPOINTS, STRATEGIES, Service, free_port, running
from tests.security.peers import controlled, join
from tests.wire import (
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

ROOMS = tuple(f"/ws/{strategy}" for strategy in STRATEGIES)
ANONYMOUS, KNOWN = "anonymous", "known"
MANY_RANGES = "bytes=" + ",".join(f"{first}-" for first in range(1_000))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def service(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Service]:
    async with running(tmp_path_factory.mktemp("limits")) as service:
        await service.add_user("alice")
        async with controlled(service):
            yield service
        await until(lambda: not service.house.hub.connections)
        assert service.house.hub.rooms == {}


@asynccontextmanager
async def limited(tmp_path: Path, **settings: Any) -> AsyncIterator[Service]:
    """A service of other limits, with the users alice and bob."""
    async with running(tmp_path, **settings) as service:
        for name in ("alice", "bob"):
            await service.add_user(name)
        yield service
        await until(lambda: not service.house.hub.connections)
        assert [r.getMessage() for r in service.records if r.exc_info] == []


@asynccontextmanager
async def raw(service: Service, who: str) -> AsyncIterator[WirePeer]:
    """A WebSocket made of bytes: at first-message unauthenticated, else alice's."""
    async with wire(service.port) as peer:
        if who == ANONYMOUS:
            await peer.upgrade("/ws/first-message")
            assert b"auth_required" in (await peer.frame()).payload
        else:
            granted = await grant(service, "query-param")
            await peer.upgrade(f"/ws/query-param?token={granted.access()}")
            assert b"auth_ok" in (await peer.frame()).payload
        yield peer


def publish(room: str, size: int) -> str:
    return json.dumps({"type": "publish", "room": room, "data": "x" * size})


# -------------------------------------------------------------------- sizes of messages


@pytest.mark.parametrize("path", ENDPOINTS)
@pytest.mark.parametrize("case", ["DOS-01"])
async def test_message_over_the_limit_is_1009_and_costs_nobody_else(
    service: Service, path: str, case: str
) -> None:
    alice = await grant(service, path.split("/")[2])
    async with (
        enter(service, "/ws/query-param", await grant(service, "query-param")) as other,
        enter(service, path, alice) as peer,
    ):
        await join(other, "sizes")
        await peer.send("x" * 65_537)
        assert await ending(peer) == (1009, "message_too_big")
        await say(other, type="publish", room="sizes", data="still here")
        assert (await hear(other))["data"] == "still here"


@pytest.mark.parametrize("size", [8_193, 65_536, 65_537])
@pytest.mark.parametrize("case", ["DOS-01-first-message"])
async def test_first_message_over_its_limit_is_1009(
    service: Service, size: int, case: str
) -> None:
    text = json.dumps({"type": "auth", "token": "x"})
    text = text[:-1] + " " * (size - len(text)) + "}"
    assert await present(service, "/ws/first-message", frame=text) == (
        1009,
        "message_too_big",
    )


@pytest.mark.parametrize("case", ["DOS-01-just-under"])
async def test_message_of_the_limit_is_delivered(service: Service, case: str) -> None:
    granted = await grant(service, "query-param")
    async with enter(service, "/ws/query-param/echo", granted) as peer:
        await peer.send("x" * 65_536)
        assert await peer.recv() == "x" * 65_536


LENGTHS = {
    "DOS-02": (struct.pack("!Q", 2**62), {1002, 1009}),
    "DOS-02-sign-bit": (struct.pack("!Q", 2**63), {1002, 1009}),
    "DOS-02-17-MiB": (struct.pack("!Q", 17 * 2**20), {1009}),
}


@pytest.mark.parametrize("who", [ANONYMOUS, KNOWN])
@pytest.mark.parametrize(("length", "codes"), LENGTHS.values(), ids=LENGTHS)
async def test_declared_length_is_refused_before_a_byte_of_it_came(
    service: Service, who: str, length: bytes, codes: set[int]
) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    async with raw(service, who) as peer:
        await peer.send(b"\x81\xff" + length + b"\0\0\0\0")
        assert (await peer.close_frame())[0] in codes
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 8 * 1024  # KiB: nothing of that length was set aside


@pytest.mark.parametrize("who", [ANONYMOUS, KNOWN])
@pytest.mark.parametrize("case", ["DOS-03"])
async def test_fragments_over_the_limit_together_are_1009(
    service: Service, who: str, case: str
) -> None:
    async with raw(service, who) as peer:
        middle = frame(CONTINUATION, b"x" * 20_000, fin=False)
        await peer.send(frame(TEXT, b"x" * 20_000, fin=False) + middle * 3)
        assert await peer.close_frame() == (1009, "message_too_big")


@pytest.mark.parametrize("who", [ANONYMOUS, KNOWN])
@pytest.mark.parametrize(
    "payload", [b"", b"xx"], ids=["DOS-04-empty", "DOS-04-two-bytes"]
)
async def test_very_many_fragments_are_1008(
    service: Service, who: str, payload: bytes
) -> None:
    async with raw(service, who) as peer:
        middle = frame(CONTINUATION, payload, fin=False)
        await peer.send(frame(TEXT, b"x", fin=False) + middle * 20_000)
        assert await peer.close_frame() == (1008, "rate_limited")


UNFINISHED = {
    "DOS-05": frame(TEXT, b"{", fin=False),
    "DOS-05-half-a-frame": frame(TEXT, b"{}" * 20)[:-5],
    "DOS-05-half-a-header": frame(TEXT, b"{}")[:1],
}


@pytest.mark.parametrize("begun", UNFINISHED.values(), ids=UNFINISHED)
async def test_message_that_never_ends_ends_the_connection(
    tmp_path: Path, begun: bytes
) -> None:
    quick = ProtocolLimits(message_timeout=0.5)
    async with limited(
        tmp_path, auth_timeout=0.3, server={"protocol_limits": quick}
    ) as service:
        async with raw(service, KNOWN) as peer:
            await peer.send(begun)
            assert await peer.close_frame() == (1008, "rate_limited")
        async with raw(service, ANONYMOUS) as peer:
            await peer.send(begun)
            assert await peer.close_frame() == (1008, "auth_timeout")


@pytest.mark.parametrize("who", [ANONYMOUS, KNOWN])
@pytest.mark.parametrize("case", ["DOS-06"])
async def test_compressed_frame_is_never_inflated(
    service: Service, who: str, case: str
) -> None:
    packer = zlib.compressobj(9, wbits=-15)
    bomb = packer.compress(b"\0" * 2**26) + packer.flush(zlib.Z_SYNC_FLUSH)
    assert len(bomb) < 70_000
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    async with raw(service, who) as peer:
        await peer.send(frame(TEXT | 0x40, bomb[:65_000]))
        assert (await peer.close_frame())[0] in {1002, 1009}
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 32 * 1024


# ------------------------------------------------------------------------------- floods


@pytest.mark.parametrize("path", ENDPOINTS)
@pytest.mark.parametrize("case", ["DOS-07"])
async def test_flood_of_messages_is_closed_and_a_neighbour_loses_nothing(
    tmp_path: Path, path: str, case: str
) -> None:
    async with limited(tmp_path, message_rate=10) as service:
        granted = await grant(service, path.split("/")[2])
        bob = await grant(service, "query-param", "bob")
        async with (
            enter(service, "/ws/query-param", bob) as neighbour,
            enter(service, path, granted) as flooder,
        ):
            await join(neighbour, "lobby")
            await say(neighbour, type="publish", room="lobby", data="before")
            for _ in range(60):
                await flooder.send('{"type":"ping"}')
            assert await ending(flooder) == (1008, "rate_limited")
            await say(neighbour, type="publish", room="lobby", data="after")
            heard = [(await hear(neighbour))["data"] for _ in range(2)]
            assert heard == ["before", "after"]


@pytest.mark.parametrize("path", ENDPOINTS)
@pytest.mark.parametrize("case", ["DOS-07-bytes"])
async def test_flood_of_bytes_is_closed_however_few_the_messages(
    tmp_path: Path, path: str, case: str
) -> None:
    async with limited(tmp_path, byte_rate=50_000) as service:
        granted = await grant(service, path.split("/")[2])
        bob = await grant(service, "query-param", "bob")
        async with (
            enter(service, "/ws/query-param", bob) as neighbour,
            enter(service, path, granted) as flooder,
        ):
            with contextlib.suppress(ConnectionClosed):
                for _ in range(20):  # a megabyte in all
                    await flooder.send('{"type":"ping"}' + " " * 60_000)
            assert await ending(flooder) == (1008, "rate_limited")
            await say(neighbour, type="ping")
            assert (await hear(neighbour))["type"] == "pong"


@pytest.mark.parametrize("who", [ANONYMOUS, KNOWN])
@pytest.mark.parametrize("opcode", [PING, PONG], ids=["DOS-08-ping", "DOS-08-pong"])
async def test_flood_of_control_frames_is_1008(
    service: Service, who: str, opcode: int
) -> None:
    async with raw(service, who) as peer:
        sending = peer.send(frame(opcode, b"x" * 125) * 2_000)
        _, close = await asyncio.gather(sending, peer.close_frame())
        assert close == (1008, "rate_limited")


@pytest.mark.parametrize("path", ROOMS)
@pytest.mark.parametrize(
    ("refuse", "refusal"),
    [
        ("after_accept", (1008, "too_many_connections")),
        ("before_accept", (403, "")),
    ],
    ids=["DOS-09-user", "DOS-09-user-before-accept"],
)
async def test_a_users_connections_are_counted(
    tmp_path: Path, path: str, refuse: str, refusal: tuple[int, str]
) -> None:
    async with limited(tmp_path, refuse=refuse, max_connections_per_user=2) as service:
        alice = await grant(service, path.split("/")[2])
        bob = await grant(service, "query-param", "bob")
        if "first-message" in path:  # it must accept before it can read
            refusal = (1008, "too_many_connections")
        async with enter(service, path, alice), enter(service, path, alice) as second:
            assert await present(service, path, alice.credential) == refusal
            async with enter(service, "/ws/query-param", bob):
                pass
            await second.close()
            await until(lambda: len(service.house.hub.connections) == 1)
            async with enter(service, path, alice):
                pass


@pytest.mark.parametrize("refuse", ["after_accept", "before_accept"])
@pytest.mark.parametrize("case", ["DOS-09-address"])
async def test_an_addresss_connections_are_counted_silent_ones_too(
    tmp_path: Path, refuse: str, case: str
) -> None:
    async with limited(
        tmp_path, refuse=refuse, max_connections_per_address=3
    ) as service:
        alice = await grant(service, "query-param")
        async with (
            enter(service, "/ws/query-param", alice) as first,
            await service.open("/ws/first-message"),
            await service.open("/ws/first-message"),
        ):
            for path in ENDPOINTS:
                with pytest.raises(InvalidStatus) as refused:
                    await knock(service, path, "x")
                response = refused.value.response
                assert response.status_code == 429
                assert json.loads(response.body) == {"detail": "too_many_connections"}
                assert int(response.headers["retry-after"]) >= 1
            await say(first, type="ping")
            assert (await hear(first))["type"] == "pong"
        await until(lambda: not service.house.hub.connections)
        async with enter(service, "/ws/query-param", alice):
            pass


STRANGERS = {
    "DOS-09-strangers": ({"max_unauthenticated": 3}, 503),
    "DOS-09-strangers-of-an-address": ({"max_unauthenticated_per_address": 3}, 429),
    "DOS-09-process": ({"max_connections": 4}, 503),
}


@pytest.mark.parametrize(
    ("settings", "status"), STRANGERS.values(), ids=list(STRANGERS)
)
async def test_silent_strangers_are_few_and_take_nothing_from_who_is_inside(
    tmp_path: Path, settings: dict[str, int], status: int
) -> None:
    async with limited(tmp_path, **settings) as service:
        alice = await grant(service, "query-param")
        async with enter(service, "/ws/query-param", alice) as inside:
            async with (
                await service.open("/ws/first-message"),
                await service.open("/ws/first-message/echo"),
                await service.open("/ws/first-message"),
            ):
                for path in ENDPOINTS:
                    with pytest.raises(InvalidStatus) as refused:
                        await knock(service, path, "x")
                    response = refused.value.response
                    assert response.status_code == status
                    assert json.loads(response.body) == {
                        "detail": "too_many_connections"
                    }
                    assert int(response.headers["retry-after"]) >= 1
                await join(inside, "lobby")
                await say(inside, type="publish", room="lobby", data="heard")
                assert (await hear(inside))["data"] == "heard"
            await until(lambda: service.house.door.strangers.inside == 0)
            async with enter(service, "/ws/query-param", alice):
                pass


@pytest.mark.parametrize("path", ROOMS)
@pytest.mark.parametrize("case", ["DOS-09-user-evicts"])
async def test_of_a_users_connections_the_oldest_makes_room_where_that_is_the_policy(
    tmp_path: Path, path: str, case: str
) -> None:
    async with limited(
        tmp_path, max_connections_per_user=2, when_user_is_full="evict_oldest"
    ) as service:
        alice = await grant(service, path.split("/")[2])
        bob = await grant(service, "query-param", "bob")
        async with (
            enter(service, "/ws/query-param", bob) as other,
            enter(service, path, alice) as oldest,
            enter(service, path, alice) as second,
            enter(service, path, alice) as newest,
        ):
            assert await ending(oldest) == (1008, "too_many_connections")
            for peer in (second, newest, other):
                await say(peer, type="ping")
                assert (await hear(peer))["type"] == "pong"


@pytest.mark.parametrize("path", ENDPOINTS)
@pytest.mark.parametrize("case", ["DOS-24"])
async def test_flood_of_bad_tokens_is_throttled_before_accept(
    tmp_path: Path, path: str, case: str
) -> None:
    slug = "session_invalid" if "cookie" in path else "token_invalid"
    async with limited(tmp_path, handshake_rate=0.5) as service:
        assert await present(service, path, "a.b.c") == (1008, slug)
        with pytest.raises(InvalidStatus) as throttled:
            await knock(service, path, "a.b.c")
        assert throttled.value.response.status_code == 429
        assert int(throttled.value.response.headers["retry-after"]) >= 1
        slugs = {event.get("reason") for event in service.security_events}
        assert "rate_limited" in slugs


@pytest.mark.parametrize("path", ROOMS)
@pytest.mark.parametrize("case", ["DOS-20"])
async def test_protocol_errors_leave_one_line_each_and_no_traceback(
    service: Service, path: str, case: str
) -> None:
    alice = await grant(service, path.split("/")[2])
    since = len(service.records)
    for spoiled in (b"\x81\x01x", b"\x83\x80\0\0\0\0", frame(TEXT, b"\xff")) * 10:
        async with wire(service.port) as peer:
            lines: tuple[str, ...] = ()
            target = path
            if "cookie" in path:
                lines = (f"Cookie: authws={alice.cookie}", f"Origin: {service.origin}")
            elif "query" in path:
                target += f"?token={alice.access()}"
            await peer.send(handshake(target, headers=lines))
            assert (await peer.response()).status == 101
            await peer.send(spoiled)
            assert (await peer.close_frame())[0] in {1002, 1007}
    wanted = {"disconnected", "handshake_abandoned"}

    def ended() -> int:
        return sum(
            json.loads(record.getMessage())["event"] in wanted
            for record in service.records[since:]
            if record.name == "authws.security"
        )

    await until(lambda: ended() >= 30)
    assert ended() == 30
    assert not [r for r in service.records[since:] if r.exc_info]


# ---------------------------------------------------------------------------- slow ones


SLOW = {
    "DOS-10-silent": (b"", b""),
    "DOS-10-half-a-line": (b"GET /ws/first-me", b""),
    "DOS-10-drip": (b"GET /healthz HTTP/1.1\r\n", b"X-A: b\r\n"),
    "DOS-10-drip-upgrade": (handshake("/ws/first-message")[:-2], b"X-A: b\r\n"),
    "DOS-10-body": (
        request("/auth/login", "Content-Length: 100", method="POST") + b"{",
        b" ",
    ),
}


@pytest.mark.parametrize(("start", "drip"), SLOW.values(), ids=SLOW)
async def test_slow_request_is_ended(tmp_path: Path, start: bytes, drip: bytes) -> None:
    quick = ProtocolLimits(head_timeout=0.5, body_timeout=0.5, close_timeout=0.2)
    async with (
        limited(tmp_path, server={"protocol_limits": quick}) as service,
        wire(service.port) as peer,
    ):
        begun = time.monotonic()
        await peer.send(start)

        async def go_on() -> None:
            while drip:
                await asyncio.sleep(0.05)
                await peer.send(drip)

        going_on = asyncio.create_task(go_on())
        try:
            assert (await peer.response()).status == 408
            assert await peer.is_ended()
        finally:
            going_on.cancel()
        assert time.monotonic() - begun < 3


@pytest.mark.parametrize("case", ["DOS-10-defaults"])
async def test_default_deadlines_are_10_seconds_at_most(case: str) -> None:
    limits = ProtocolLimits()
    assert max(limits.head_timeout, limits.message_timeout) <= 10
    assert limits.close_timeout <= 10


@pytest.mark.parametrize("case", ["DOS-10-silent-after-accept"])
async def test_silence_after_accept_has_its_own_deadline(
    tmp_path: Path, case: str
) -> None:
    async with limited(tmp_path, auth_timeout=0.3) as service:
        peer = await service.open("/ws/first-message")
        assert await ending(peer) == (1008, "auth_timeout")


@pytest.mark.parametrize("path", ROOMS)
@pytest.mark.parametrize("case", ["DOS-11"])
async def test_peer_that_never_reads_is_closed_and_the_room_goes_on(
    tmp_path: Path, path: str, case: str
) -> None:
    unlimited = {"message_rate": 0, "byte_rate": 0}
    async with limited(tmp_path, outbox_bytes=200_000, **unlimited) as service:
        deaf_grant = await grant(service, path.split("/")[2], "bob")
        alice = await grant(service, "query-param")
        with socket.socket() as small:
            small.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            small.setblocking(False)
            address = ("127.0.0.1", service.port)
            await asyncio.get_running_loop().sock_connect(small, address)
            async with (
                enter(service, "/ws/query-param", alice) as speaker,
                enter(service, path, deaf_grant, sock=small, max_queue=1) as deaf,
            ):
                await join(deaf, "lobby")
                deaf.transport.pause_reading()
                await join(speaker, "lobby")
                deadline = time.monotonic() + 10
                while True:
                    await speaker.send(publish("lobby", 60_000))
                    heard = await hear(speaker)
                    if heard["type"] == "presence":
                        assert (heard["subject"], heard["event"]) == ("bob", "left")
                        break
                    assert heard["type"] == "message"
                    assert time.monotonic() < deadline, "nobody minded"
                await say(speaker, type="ping")
                while (heard := await hear(speaker))["type"] != "pong":
                    assert heard["type"] == "message"
                deaf.transport.abort()
        # the room hears of it first, and the log when the socket is gone
        await until(lambda: _endings(service, "bob"))
        assert _endings(service, "bob") == ["slow_consumer"]


@pytest.mark.parametrize(
    "policy",
    ["drop_oldest", "drop_newest"],
    ids=["DOS-11-drop-oldest", "DOS-11-drop-newest"],
)
async def test_peer_that_never_reads_misses_what_it_cannot_hold_and_is_told_so(
    tmp_path: Path, policy: str
) -> None:
    unlimited = {"message_rate": 0, "byte_rate": 0}
    bound = 200_000
    async with limited(
        tmp_path, outbox_policy=policy, outbox_bytes=bound, **unlimited
    ) as service:
        bob = await grant(service, "query-param", "bob")
        alice = await grant(service, "query-param")
        async with (
            enter(service, "/ws/query-param", alice) as speaker,
            enter(service, "/ws/query-param", bob, max_queue=1) as deaf,
        ):
            await join(deaf, "lobby")
            (kept,) = service.house.hub.of_subject("bob")
            deaf.transport.pause_reading()
            await join(speaker, "lobby")
            said = 0
            while kept.dropped < 50:
                await speaker.send(publish("lobby", 60_000))
                assert (await hear(speaker))["type"] == "message"
                said += 1
                assert kept._outbox.size <= bound
                assert said < 1_000, "nothing was dropped"
            deaf.transport.resume_reading()
            await say(deaf, type="ping")
            heard, missed = 0, 0
            while (got := await hear(deaf))["type"] != "pong":
                heard += got["type"] in ("message", "presence")
                missed += got.get("count", 0)
            assert heard + missed == said + 1  # and alice's presence


def _endings(service: Service, subject: str) -> list[str]:
    return [
        event["reason"]
        for event in service.security_events
        if event["event"] == "disconnected" and event["subject"] == subject
    ]


# ---------------------------------------------------------------------------- the rooms


@pytest.mark.parametrize("path", ROOMS)
@pytest.mark.parametrize("case", ["DOS-14"])
async def test_rooms_of_one_connection_are_counted(
    service: Service, path: str, case: str
) -> None:
    alice = await grant(service, path.split("/")[2])
    async with enter(service, path, alice) as peer:
        for number in range(105):
            answer = await join(peer, f"many-{number}")
            if number < 100:
                assert answer["type"] == "joined"
            else:
                assert (answer["type"], answer["slug"]) == ("error", "too_many_rooms")
        await say(peer, type="leave", room="many-0")
        assert (await hear(peer))["type"] == "left"
        assert (await join(peer, "many-104"))["type"] == "joined"


JSON_BOMBS = {
    "DOS-15-keys": "{" + ",".join(f'"{n}":{n}' for n in range(5_000)) + "}",
    "DOS-15-nesting": '{"type":"publish","room":"r","data":' + "[" * 30_000,
    "DOS-15-balanced": '{"type":"publish","room":"r","data":'
    + "[" * 30_000
    + "]" * 30_000
    + "}",
    "DOS-15-number": '{"type":"ping","id":' + "9" * 60_000 + "}",
    "DOS-15-exponent": '{"type":"ping","id":1e' + "9" * 60_000 + "}",
    "DOS-15-quotes": '{"' + '\\"' * 30_000 + "[" * 100,
    "DOS-15-escapes": '{"type":"join","room":"' + "\\u0061" * 10_000 + '"}',
    "DOS-15-long-type": '{"type":"' + "x" * 60_000 + '"}',
}


@pytest.mark.parametrize("bomb", JSON_BOMBS.values(), ids=JSON_BOMBS)
async def test_json_bomb_is_answered_at_once(service: Service, bomb: str) -> None:
    async with enter(
        service, "/ws/query-param", await grant(service, "query-param")
    ) as peer:
        begun = time.thread_time(), time.process_time()
        await peer.send(bomb)
        answer = await hear(peer)
        assert answer["type"] == "error"
        assert answer["slug"] in {"malformed", "room_invalid"}
        assert len(json.dumps(answer)) < 300
        assert time.process_time() - begun[1] < 0.5  # both ends, and a debug build


@pytest.mark.parametrize(
    "bomb",
    [
        '{"a":' * 1_600,
        '{"type":"auth","token":' + "[" * 8_000,
        '{"type":"auth","token":' + "9" * 8_000 + "}",
        '{"' + '\\"' * 3_900 + "[" * 100,
        "{" + ",".join(f'"{n}":0' for n in range(1_000)) + "}",
    ],
    ids=[
        "DOS-15-anonymous-nesting",
        "DOS-15-anonymous-brackets",
        "DOS-15-anonymous-number",
        "DOS-15-anonymous-quotes",
        "DOS-15-anonymous-keys",
    ],
)
async def test_json_bomb_before_authentication_is_1008(
    service: Service, bomb: str
) -> None:
    begun = time.process_time()
    assert await present(service, "/ws/first-message", frame=bomb) == (
        1008,
        "auth_malformed",
    )
    assert time.process_time() - begun < 0.5


REDOS = {
    "DOS-16-path": (f"/{'ey' * 7_000}", ()),
    "DOS-16-token": (f"/ws/query-param?token={'ey' * 4_000}", ()),
    "DOS-16-parameters": ("/ws/query-param?" + "&".join(["token"] * 2_000), ()),
    "DOS-16-protocol": (
        "/ws/first-message",
        (f"Sec-WebSocket-Protocol: {'a, ' * 2_500}b",),
    ),
    "DOS-16-extensions": (
        "/ws/first-message",
        (f"Sec-WebSocket-Extensions: x; a={chr(34)}{chr(92) * 7_000}",),
    ),
    "DOS-16-extension-list": (
        "/ws/first-message",
        ("Sec-WebSocket-Extensions: " + "a;b;c," * 1_200,),
    ),
    "DOS-16-origin": ("/ws/session-cookie", (f"Origin: http://{'a.' * 3_900}",)),
    "DOS-16-origin-dashes": ("/ws/session-cookie", (f"Origin: http://{'a-' * 120}!",)),
    "DOS-16-cookie": ("/ws/session-cookie", ("Cookie: " + "authws=;" * 1_000,)),
    "DOS-16-language": ("/healthz", (f"Accept-Language: {'a;q=' * 1_900}",)),
}


@pytest.mark.parametrize(("target", "lines"), REDOS.values(), ids=REDOS)
async def test_no_text_costs_more_than_its_length(
    service: Service, target: str, lines: tuple[str, ...]
) -> None:
    begun = time.process_time()
    async with wire(service.port) as peer:
        await peer.send(handshake(target, headers=lines))
        await peer.response()
    assert time.process_time() - begun < 0.3


# --------------------------------------------------------------------------------- HTTP


HEADS = {
    "DOS-17-headers": (("X: y",) * 129, "/healthz", 431),
    "DOS-17-header-line": ((f"X: {'y' * 40_000}",), "/healthz", 431),
    "DOS-17-header-name": ((f"{'x' * 40_000}: y",), "/healthz", 431),
    "DOS-17-target": ((), "/ws/query-param?token=" + "x" * 70_000, 414),
    "DOS-17-path": ((), "/" + "x" * 20_000, 414),
}


@pytest.mark.parametrize(("lines", "target", "status"), HEADS.values(), ids=HEADS)
async def test_head_over_its_limit_is_answered(
    service: Service, lines: tuple[str, ...], target: str, status: int
) -> None:
    for opening in (request(target, *lines), handshake(target, headers=lines)):
        async with wire(service.port) as peer:
            await peer.send(opening)
            assert (await peer.response()).status == status
            assert await peer.is_ended()


@pytest.mark.parametrize("route", ["/auth/login", "/auth/refresh", "/auth/session"])
@pytest.mark.parametrize("case", ["DOS-21-announced"])
async def test_body_that_is_announced_too_large_is_413_before_it_comes(
    service: Service, route: str, case: str
) -> None:
    async with wire(service.port) as peer:
        lines = ("Content-Type: application/json", "Content-Length: 100000000")
        await peer.send(request(route, *lines, method="POST"))
        response = await peer.response()
        assert (response.status, json.loads(response.body)) == (
            413,
            {"detail": "body_too_large"},
        )


@pytest.mark.parametrize("route", ["/auth/login", "/auth/refresh", "/auth/session"])
@pytest.mark.parametrize("case", ["DOS-21-chunked"])
async def test_body_of_unknown_length_is_413_when_it_is_too_large(
    service: Service, route: str, case: str
) -> None:
    async with wire(service.port) as peer:
        lines = ("Content-Type: application/json", "Transfer-Encoding: chunked")
        chunk = b"2000\r\n" + b" " * 0x2000 + b"\r\n"
        await peer.send(request(route, *lines, method="POST") + chunk * 16)
        response = await peer.response()
        assert (response.status, json.loads(response.body)) == (
            413,
            {"detail": "body_too_large"},
        )


@pytest.mark.parametrize("route", ["/healthz", "/docs", "/openapi.json"])
@pytest.mark.parametrize("case", ["DOS-22"])
async def test_ranges_of_answers_are_not_served(
    service: Service, route: str, case: str
) -> None:
    async with service.http() as http:
        answer = await http.get(route, headers={"range": MANY_RANGES})
    assert answer.status_code == 200
    assert "content-range" not in answer.headers


@pytest.mark.parametrize("case", ["DOS-22-file"])
async def test_many_ranges_of_a_file_cost_no_more_than_the_file(
    service: Service, case: str
) -> None:
    async with service.http() as http:
        route = "/docs/assets/docs.js"
        whole = await http.get(route)
        assert whole.status_code == 200
        begun = time.process_time()
        answer = await http.get(route, headers={"range": MANY_RANGES})
        assert time.process_time() - begun < 0.5
        assert answer.status_code in {200, 206, 400, 416}
        assert len(answer.content) < len(whole.content) + 1_000


# ----------------------------------------------------------------------- what one costs


def _resident(pid: int) -> int:
    """A process's resident memory, in bytes."""
    status = Path(f"/proc/{pid}/status").read_text()
    (line,) = [line for line in status.splitlines() if line.startswith("VmRSS:")]
    return int(line.split()[1]) * 1024


@pytest.mark.skipif(sys.platform != "linux", reason="reads the memory in /proc")
@pytest.mark.parametrize("case", ["DOS-19"])
async def test_idle_sockets_cost_little_memory(tmp_path: Path, case: str) -> None:
    budget, count = 40 * 1024, 1_000
    async with serve(tmp_path, auth_timeout=60) as server, AsyncExitStack() as stack:

        async def silent() -> None:
            peer = await stack.enter_async_context(wire(server.port))
            await peer.upgrade("/ws/first-message")
            assert b"auth_required" in (await peer.frame()).payload

        await asyncio.gather(*(silent() for _ in range(50)))  # made once, kept for all
        before = _resident(server.process.pid)
        for _ in range(0, count, 50):
            await asyncio.gather(*(silent() for _ in range(50)))
        grown = _resident(server.process.pid) - before
        assert grown < count * budget, f"{grown / count / 1024:.1f} KiB each"


# ------------------------------------------------------------------------- nothing left


async def baseline(service: Service) -> tuple[int, int]:
    """Tasks of the server's loop, and open files of the process."""

    async def tasks() -> int:
        return len(asyncio.all_tasks())

    return await service.call(tasks()), len(os.listdir("/proc/self/fd"))


@pytest.mark.skipif(sys.platform != "linux", reason="counts files in /proc")
@pytest.mark.parametrize("case", ["DOS-23"])
async def test_nothing_is_left_of_connections_of_any_state(
    service: Service, case: str
) -> None:
    grants: dict[str, Grant] = {s: await grant(service, s) for s in STRATEGIES}

    async def one_round() -> None:
        for strategy, granted in grants.items():
            path = f"/ws/{strategy}"
            await present(service, path, "bad")
            (await knock(service, path, granted.credential)).transport.abort()
            async with enter(service, path, granted) as peer:
                await join(peer, "states")
            async with enter(service, path, granted) as peer:
                await join(peer, "states")
                peer.transport.abort()
            async with wire(service.port) as half:
                await half.send(handshake(path)[:-10])
            async with wire(service.port) as unheard:
                await unheard.send(handshake(path))

    house = service.house
    witnesses = len(house.hub.connections)
    await one_round()
    await until(lambda: len(house.hub.connections) == witnesses)
    before = await baseline(service)
    for _ in range(12):
        await one_round()
    await until(lambda: len(house.hub.connections) == witnesses)
    assert "states" not in house.hub.rooms
    deadline = time.monotonic() + 5
    while any(a > b for a, b in zip(await baseline(service), before, strict=True)):
        assert time.monotonic() < deadline, (await baseline(service), before)
        await asyncio.sleep(0.05)


@pytest.mark.parametrize("path", ["/ws/query-param", "/ws/first-message"])
@pytest.mark.parametrize("case", ["DOS-23-renewal"])
async def test_nothing_is_left_of_a_room_that_a_renewal_took_away(
    service: Service, path: str, case: str
) -> None:
    granted = await grant(service, "query-param")
    async with enter(service, path, granted) as peer:
        await join(peer, "taken-away")
        await say(peer, type="auth", token=granted.access(scopes=["join:other"]))
        answers = {(await hear(peer))["type"] for _ in range(2)}
        assert answers == {"left", "auth_ok"}
        await until(lambda: "taken-away" not in service.house.hub.rooms)


STARVING = """
import resource, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (60, 60))
from authws.service.app import create_app
from authws.service.server import Server, build_config
from authws.service.settings import Settings
settings = Settings(_env_file=None, data_dir=sys.argv[1], port=int(sys.argv[2]))
Server(build_config(create_app(settings), port=settings.port)).run()
"""


@pytest.mark.parametrize("case", ["DOS-18"])
async def test_server_out_of_file_descriptors_recovers(
    tmp_path: Path, case: str
) -> None:
    port = free_port()
    with subprocess.Popen(  # noqa: ASYNC220 - nothing here waits for it
        [sys.executable, "-c", STARVING, str(tmp_path / "data"), str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        try:
            async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as http:
                await answers(http, within=20)
            hoard = [
                await asyncio.open_connection("127.0.0.1", port) for _ in range(80)
            ]
            for _, writer in hoard:
                writer.transport.abort()
            async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as http:
                await answers(http, within=20)
            assert process.poll() is None
        finally:
            process.terminate()


async def answers(http: httpx.AsyncClient, within: float) -> None:
    deadline = time.monotonic() + within
    while time.monotonic() < deadline:
        with contextlib.suppress(httpx.HTTPError):
            if (await http.get("/healthz", timeout=2)).status_code == 200:
                return
        await asyncio.sleep(0.1)
    raise AssertionError("the server does not answer")
