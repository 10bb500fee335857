"""What is peculiar to NATS."""

from __future__ import annotations

import asyncio
import json
import shutil
import socket
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import pytest
from nats.aio.client import Client

from authws.brokers import open_broker
from authws.brokers.base import Replay
from authws.brokers.lifeline import CALL_TIMEOUT
from authws.brokers.nats import connection
from authws.brokers.nats import waiting as waits
from authws.brokers.nats.broker import MAX_REPLAYS
from authws.brokers.nats.streams import FEW, Stream
from authws.decisions.history import Position, Retention
from authws.exceptions import ConfigurationError, UnavailableError
from tests.brokers.peers import KEEP, Peer, eventually, settled
from tests.certificates import Authority
from tests.servers.brokers import require_server
from tests.servers.nats import NatsServer
from tests.servers.process import free_ports

PREFIX = "t"
STREAM = "t_20-60"
NOTICED = 8.0
"""Seconds within which a server that stands still is noticed: a probe each second that
is given two, and a late machine."""

T = TypeVar("T")

Listening = Callable[..., Awaitable[Peer]]


@pytest.fixture
async def listening() -> AsyncIterator[Listening]:
    """Start a process's worth of a client, and stop it behind the test."""
    async with AsyncExitStack() as stack:

        async def start(
            url: str,
            *channels: str,
            keep: Retention | None = KEEP,
            is_up: bool = True,
            history_bytes: int = 1_000_000,
        ) -> Peer:
            kept = () if keep is None else (keep,)
            peer = Peer(
                open_broker(url, prefix=PREFIX, kept=kept, history_bytes=history_bytes)
            )
            stack.push_async_callback(peer.broker.stop)
            await peer.broker.start(peer)
            if is_up:
                await peer.until(lambda: peer.broker.is_up)
            for channel in channels:
                await peer.broker.subscribe(channel, keep)
            return peer

        yield start


@pytest.fixture
async def server() -> AsyncIterator[NatsServer]:
    async with nats_server() as running:
        yield running


@asynccontextmanager
async def nats_server(**options: Any) -> AsyncIterator[NatsServer]:
    require_server("nats")
    async with NatsServer(**options) as running:
        yield running


@asynccontextmanager
async def operator(server: NatsServer) -> AsyncIterator[Callable[..., Awaitable[Any]]]:
    """What somebody with the ``nats`` command can ask of JetStream."""
    client = Client()
    await client.connect(server.url)

    async def ask(subject: str, content: Any = None) -> Any:
        data = b"" if content is None else json.dumps(content).encode()
        answer = await client.request(f"$JS.API.{subject}", data, timeout=5)
        return json.loads(answer.data)

    try:
        yield ask
    finally:
        await client.close()


class Stranger:
    """Speaks the protocol by hand, to write what no client would."""

    def __init__(self, server: NatsServer) -> None:
        self._socket = socket.create_connection(("127.0.0.1", server.port), timeout=30)
        options = {"user": server.user, "pass": server.password, "headers": True}
        self.write(b"CONNECT %b\r\n" % json.dumps(options).encode())

    def write(self, data: bytes) -> None:
        self._socket.sendall(data)

    def publish(self, subject: str, data: bytes, headers: bytes | None = None) -> None:
        if headers is None:
            self.write(b"PUB %b %d\r\n%b\r\n" % (subject.encode(), len(data), data))
            return
        total = len(headers) + len(data)
        head = b"HPUB %b %d %d\r\n" % (subject.encode(), len(headers), total)
        self.write(head + headers + data + b"\r\n")

    def finish(self) -> None:
        """Leave once the server has had all of it."""
        self.write(b"PING\r\n")
        received = b""
        while b"PONG" not in received:
            received += self._socket.recv(65_536)
        self._socket.close()


def say(server: NatsServer, *messages: tuple[str, bytes, bytes | None]) -> None:
    stranger = Stranger(server)
    for subject, data, headers in messages:
        stranger.publish(subject, data, headers)
    stranger.finish()


def placed(number: int | bytes, before: int | bytes, stream: str = STREAM) -> bytes:
    """The headers of a message that was republished."""
    return (
        f"NATS/1.0\r\nNats-Stream: {stream}\r\nNats-Subject: x\r\n"
        f"Nats-Sequence: {_text(number)}\r\nNats-Last-Sequence: {_text(before)}\r\n\r\n"
    ).encode("latin-1")


def _text(value: int | bytes) -> str:
    return value.decode("latin-1") if isinstance(value, bytes) else str(value)


# --------------------------------------------------------- a server that goes and comes


async def test_a_restart_keeps_history_and_positions(
    server: NatsServer, listening: Listening
) -> None:
    peer = await listening(server.url, "room")
    for number in range(3):
        await peer.publish("room", b"%d" % number, KEEP)
    await peer.until(lambda: len(peer.heard) == 3)
    first, _, third = peer.positions("room")
    await server.stop()
    await peer.until(lambda: not peer.broker.is_up)
    await server.start()
    await peer.until(lambda: bool(peer.interruptions))
    await peer.publish("room", b"3", KEEP)
    await peer.until(lambda: len(peer.heard) == 4)
    fourth = peer.positions("room")[-1]
    assert fourth == Position(third.epoch, third.offset + 1)
    replay = await peer.broker.replay("room", KEEP, first)
    assert replay.is_complete
    assert [data for _, data in replay.messages] == [b"1", b"2", b"3"]
    assert replay.top == fourth


async def test_a_crash_is_told_and_healed(
    server: NatsServer, listening: Listening
) -> None:
    peer = await listening(server.url, "room", "other")
    await peer.publish("room", b"before", KEEP)
    await peer.hears("room", b"before")
    await server.kill()
    await peer.until(lambda: not peer.broker.is_up)
    assert not await peer.broker.ping()
    for keep in (None, KEEP):
        with pytest.raises(UnavailableError):
            await peer.publish("room", b"meanwhile", keep)
    with pytest.raises(UnavailableError):
        await peer.broker.subscribe("third", KEEP)
    with pytest.raises(UnavailableError):
        await peer.broker.replay("room", KEEP, None)
    await peer.broker.unsubscribe("other")
    await server.start()
    await peer.until(lambda: bool(peer.interruptions))
    assert peer.broker.is_up
    assert peer.interruptions == [{"room"}]
    await peer.publish("other", b"nobody", KEEP)
    await peer.publish("third", b"nobody", KEEP)
    await peer.publish("room", b"after", KEEP)
    await peer.publish("room", b"carried")
    await peer.hears("room", b"before", b"after", b"carried")
    assert not peer.data("other") + peer.data("third")


async def test_who_waits_when_it_crashes_is_told(
    server: NatsServer, listening: Listening
) -> None:
    peer = await listening(server.url, "room")
    server.pause()
    waiting = [
        asyncio.ensure_future(settled(peer.broker.publish("room", b"x", keep)))
        for keep in (KEEP, None, KEEP)  # the second waits for the first, here
    ]
    waiting.append(asyncio.ensure_future(peer.broker.subscribe("new", KEEP)))
    waiting.append(asyncio.ensure_future(_replayed(peer)))
    await asyncio.sleep(0)
    await server.kill()
    for one in waiting:
        with pytest.raises(UnavailableError):
            await asyncio.wait_for(one, NOTICED)


async def _replayed(peer: Peer) -> None:
    await peer.broker.replay("room", KEEP, None)


async def test_a_server_that_stands_still_is_noticed(
    server: NatsServer, listening: Listening, caplog: pytest.LogCaptureFixture
) -> None:
    peer = await listening(server.url, "room")
    server.pause()
    began = time.monotonic()
    publish = asyncio.ensure_future(settled(peer.broker.publish("room", b"x", KEEP)))
    assert not await peer.broker.ping()
    assert time.monotonic() - began < NOTICED
    await peer.until(lambda: not peer.broker.is_up)
    with pytest.raises(UnavailableError):
        await publish
    assert time.monotonic() - began < NOTICED
    with pytest.raises(UnavailableError):
        await peer.publish("room", b"x")
    server.resume()
    await peer.until(lambda: bool(peer.interruptions))
    await peer.publish("room", b"again", KEEP)
    await peer.until(lambda: b"again" in peer.data("room"))
    assert "it does not answer" in caplog.text


async def test_nothing_is_left_open_towards_a_server_that_stands_still(
    server: NatsServer, listening: Listening
) -> None:
    """A connection whose other end reads no more does not drain: it is cut."""
    peer = await listening(server.url, "room")
    server.pause()
    big = b"x" * 500_000
    waiting = [
        asyncio.ensure_future(settled(peer.broker.publish("room", big)))
        for _ in range(30)
    ]
    await peer.until(lambda: not peer.broker.is_up)
    await peer.broker.stop()
    await asyncio.gather(*waiting, return_exceptions=True)
    assert all(isinstance(one.exception(), UnavailableError) for one in waiting)
    assert not _connections(server.port)
    server.resume()


def _connections(port: int) -> list[str]:
    """Return this process's sockets that are connected to a port, from /proc."""
    ours = {_target(link) for link in Path("/proc/self/fd").iterdir()}
    rows = Path("/proc/net/tcp").read_text().splitlines()[1:]
    return [
        row
        for row in rows
        if row.split()[2].endswith(f":{port:04X}")
        and f"socket:[{row.split()[9]}]" in ours
    ]


def _target(link: Path) -> str:
    try:
        return str(link.readlink())
    except OSError:
        return ""


async def test_ten_thousand_channels_are_subscribed_again(
    server: NatsServer, listening: Listening
) -> None:
    peer = await listening(server.url)
    names = [f"room-{number}" for number in range(10_000)]
    await asyncio.gather(*(peer.broker.subscribe(name, KEEP) for name in names))
    await server.kill()
    await peer.until(lambda: not peer.broker.is_up)
    await server.start()
    began = time.monotonic()
    await peer.until(lambda: bool(peer.interruptions))
    assert time.monotonic() - began < 10  # the delays between tries included
    assert peer.interruptions == [set(names)]
    for name in (names[0], names[-1]):
        await peer.publish(name, b"x", KEEP)
        await peer.hears(name, b"x")


async def test_a_slow_consumer_is_told_that_it_missed_something(
    listening: Listening,
) -> None:
    """The server drops a connection that does not read."""
    async with nats_server(more="max_pending: 1MB\nwrite_deadline: 500ms") as server:
        peer = await listening(server.url, "room", "other")
        flood = threading.Thread(target=_flood, args=(server, 64))
        flood.start()
        flood.join()  # so long this event loop stands still
        await peer.until(lambda: bool(peer.interruptions))
        assert peer.interruptions == [{"room", "other"}]
        assert len(peer.data("room")) < 64
        await peer.publish("room", b"after", KEEP)
        await peer.until(lambda: peer.data("room")[-1:] == [b"after"])


def _flood(server: NatsServer, count: int) -> None:
    say(server, *[("t.live.room", b"x" * 1_000_000, None)] * count)


# ------------------------------------------------------- a stream that is another one


async def test_a_store_that_was_wiped_begins_a_new_epoch(
    server: NatsServer, listening: Listening
) -> None:
    peer = await listening(server.url, "room")
    for number in range(3):
        await peer.publish("room", b"%d" % number, KEEP)
    await peer.until(lambda: len(peer.heard) == 3)
    old = peer.positions("room")
    await server.stop()
    shutil.rmtree(server.store)
    await server.start()
    await peer.until(lambda: bool(peer.interruptions))
    for number in range(3):
        await peer.publish("room", b"new %d" % number, KEEP)
    await peer.until(lambda: len(peer.heard) == 6)
    new = peer.positions("room")[3:]
    assert {place.epoch for place in new}.isdisjoint(place.epoch for place in old)
    assert [place.offset for place in new] == [place.offset for place in old]
    for place in old:
        assert not (await peer.broker.replay("room", KEEP, place)).is_complete
    assert (await peer.broker.replay("room", KEEP, new[0])).is_complete


async def test_a_stream_that_was_removed_is_made_anew(
    server: NatsServer, listening: Listening
) -> None:
    peer = await listening(server.url, "room")
    await peer.publish("room", b"1", KEEP)
    await peer.until(lambda: len(peer.heard) == 1)
    (old,) = peer.positions("room")
    async with operator(server) as ask:
        assert (await ask(f"STREAM.DELETE.{STREAM}"))["success"]
    await peer.until(lambda: peer.interruptions == [{"room"}])
    await peer.publish("room", b"2", KEEP)
    await peer.until(lambda: len(peer.heard) == 2)
    assert peer.positions("room")[-1].epoch != old.epoch
    assert not (await peer.broker.replay("room", KEEP, old)).is_complete


async def test_a_stream_that_somebody_else_made_anew_is_noticed_when_it_is_read(
    server: NatsServer, listening: Listening
) -> None:
    peer = await listening(server.url, "room")
    await peer.publish("room", b"1", KEEP)
    await peer.until(lambda: len(peer.heard) == 1)
    (old,) = peer.positions("room")
    async with operator(server) as ask:
        config = (await ask(f"STREAM.INFO.{STREAM}"))["config"]
        await ask(f"STREAM.DELETE.{STREAM}")
        await ask(f"STREAM.CREATE.{STREAM}", config)
    say(server, ("t.kept.20-60.room", b"2", None))
    replay = await surely(lambda: peer.broker.replay("room", KEEP, old))
    assert not replay.is_complete
    assert replay.top.epoch != old.epoch


async def test_a_backup_that_is_brought_back_begins_a_new_epoch(
    server: NatsServer, listening: Listening, tmp_path: Path
) -> None:
    """Its numbers are given again, to other messages: what a client has of the first
    may not pass for the second."""
    peer = await listening(server.url, "room")
    other = await listening(server.url, "room")
    await peer.publish("room", b"1", KEEP)
    await server.stop()
    shutil.copytree(server.store, tmp_path / "backup")
    await server.start()
    for one in (peer, other):
        await one.until(lambda one=one: bool(one.interruptions))  # type: ignore[misc]
    for data in (b"2", b"3"):
        await peer.publish("room", data, KEEP)
    await peer.until(lambda: len(peer.positions("room")) == 3)
    lost = peer.positions("room")[-1]
    await server.stop()
    shutil.rmtree(server.store)
    shutil.copytree(tmp_path / "backup", server.store)
    await server.start()
    for one in (peer, other):
        await one.until(lambda one=one: len(one.interruptions) >= 2)  # type: ignore[misc]
    for data in (b"2 again", b"3 again", b"4"):
        await surely(lambda data=data: peer.publish("room", data, KEEP))  # type: ignore[misc]
    epochs = set()
    for one in (peer, other):
        await one.until(lambda one=one: b"4" in one.data("room"))  # type: ignore[misc]
        replay = await surely(lambda one=one: one.broker.replay("room", KEEP, lost))  # type: ignore[misc]
        assert not replay.is_complete
        epochs.add(replay.top.epoch)
    assert len(epochs) == 1
    assert lost.epoch not in epochs


async def surely(call: Callable[[], Awaitable[T]]) -> T:
    """Do something, though the connection may be made anew once more."""
    async with asyncio.timeout(60):
        while True:
            try:
                return await call()
            except UnavailableError:
                await asyncio.sleep(0.05)


async def test_what_the_stream_has_to_be_is_mended(
    server: NatsServer, listening: Listening
) -> None:
    await listening(server.url, history_bytes=1_000_000)
    async with operator(server) as ask:
        config = (await ask(f"STREAM.INFO.{STREAM}"))["config"]
        assert config["max_bytes"] == 1_000_000
        await ask(f"STREAM.UPDATE.{STREAM}", {**config, "max_age": 3_600_000_000_000})
        await listening(server.url, history_bytes=2_000_000)
        config = (await ask(f"STREAM.INFO.{STREAM}"))["config"]
        assert config["max_bytes"] == 2_000_000
        assert config["max_age"] == 60_000_000_000


async def test_what_is_the_operators_is_left_as_it_is(
    server: NatsServer, listening: Listening
) -> None:
    """Such as the description, or how many servers keep a copy."""
    await listening(server.url)
    async with operator(server) as ask:
        config = (await ask(f"STREAM.INFO.{STREAM}"))["config"]
        await ask(f"STREAM.UPDATE.{STREAM}", {**config, "description": "ours"})
        await listening(server.url, history_bytes=2_000_000)
        config = (await ask(f"STREAM.INFO.{STREAM}"))["config"]
        assert (config["description"], config["max_bytes"]) == ("ours", 2_000_000)


async def test_a_stream_that_cannot_be_mended_is_named(
    server: NatsServer, listening: Listening, caplog: pytest.LogCaptureFixture
) -> None:
    async with operator(server) as ask:
        config = {"name": STREAM, "subjects": ["t.kept.20-60.*"], "sealed": False}
        made = await ask(
            f"STREAM.CREATE.{STREAM}", {**config, "retention": "workqueue"}
        )
        assert "error" not in made
        peer = await listening(server.url, is_up=False)
        assert not peer.broker.is_up
        assert f"stream {STREAM} is not as it has to be" in caplog.text
        assert f"nats stream rm {STREAM}" in caplog.text
        await ask(f"STREAM.DELETE.{STREAM}")
        await peer.until(lambda: peer.broker.is_up)


async def test_several_amounts_share_the_bytes(
    server: NatsServer, listening: Listening
) -> None:
    more = Retention(5, 0.5)
    peer = Peer(
        open_broker(server.url, prefix=PREFIX, kept=(KEEP, more), history_bytes=1000)
    )
    await peer.start()
    try:
        async with operator(server) as ask:
            names = (await ask("STREAM.NAMES"))["streams"]
            assert sorted(names) == [STREAM, "t_5-0%2E5"]
            for name in names:
                assert (await ask(f"STREAM.INFO.{name}"))["config"]["max_bytes"] == 500
        await peer.broker.subscribe("a", KEEP)
        await peer.broker.subscribe("b", more)
        await peer.publish("a", b"1", KEEP)
        await peer.publish("b", b"2", more)
        await peer.hears("a", b"1")
        await peer.hears("b", b"2")
    finally:
        await peer.broker.stop()


# --------------------------------------------------------------------------- replaying


@pytest.mark.parametrize("count", [1, FEW - 1, FEW, FEW + 1, 19, 20])
async def test_all_that_was_missed_is_read_one_way_or_the_other(
    server: NatsServer, listening: Listening, count: int
) -> None:
    peer = await listening(server.url)
    await peer.publish("room", b"before", KEEP)
    start = (await peer.broker.replay("room", KEEP, None)).top
    for number in range(count):
        await peer.publish("other", b"x" * number, KEEP)
        await peer.publish("room", b"%d" % number, KEEP)
    replay = await peer.broker.replay("room", KEEP, start)
    assert [data for _, data in replay.messages] == [b"%d" % n for n in range(count)]
    # as many as are kept: whether there was one more is not known
    assert replay.is_complete is (count < KEEP.messages)
    async with operator(server) as ask:
        state = (await ask(f"STREAM.INFO.{STREAM}"))["state"]
        assert state["consumer_count"] == 0


async def test_big_messages_are_read_in_several_batches(
    server: NatsServer, listening: Listening, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that many who read at once do not look like a client that does not read."""
    statuses: list[bytes] = []
    take = connection.Connection._take_pulled

    def note(self: connection.Connection, sid: int, *rest: Any) -> None:
        if not rest[0]:
            statuses.append(rest[1][9:12])
        take(self, sid, *rest)

    monkeypatch.setattr(connection.Connection, "_take_pulled", note)
    peer = await listening(server.url, history_bytes=100_000_000)
    start = (await peer.broker.replay("room", KEEP, None)).top
    said = [b"%d" % number * 300_000 for number in range(FEW + 9)]
    said[-1] = b"x" * 1_048_576
    for data in said:
        await peer.publish("room", data, KEEP)
    replay = await peer.broker.replay("room", KEEP, start)
    assert [data for _, data in replay.messages] == said
    assert replay.is_complete
    assert statuses.count(b"409") >= 3


@pytest.mark.parametrize("status", [b"409", b"503", b"xyz"])
async def test_a_batch_that_ends_otherwise_is_not_taken_for_the_whole(
    server: NatsServer,
    listening: Listening,
    monkeypatch: pytest.MonkeyPatch,
    status: bytes,
) -> None:
    """Such as that of a consumer that was removed meanwhile."""
    peer = await listening(server.url)
    start = (await peer.broker.replay("room", KEEP, None)).top
    for number in range(FEW + 3):
        await peer.publish("room", b"%d" % number, KEEP)

    async def end(*_: object) -> connection.Batch:
        return connection.Batch([], status)

    monkeypatch.setattr(connection.Connection, "pull", end)
    with pytest.raises(UnavailableError, match="JetStream: status"):
        await peer.broker.replay("room", KEEP, start)


async def test_who_listened_knows_that_as_many_as_are_kept_are_all(
    server: NatsServer, listening: Listening
) -> None:
    few = Retention(4, 60)
    peer = await listening(server.url, "room", keep=few)
    for number in range(5):
        await peer.publish("room", b"%d" % number, few)
    await peer.until(lambda: len(peer.heard) == 5)
    positions = peer.positions("room")
    replay = await peer.broker.replay("room", few, positions[0])
    assert replay.is_complete
    assert len(replay.messages) == 4


async def test_all_rooms_may_ask_at_once(
    server: NatsServer, listening: Listening, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As they do behind an interruption; the probes find their way between them."""
    under_way = most = 0
    replay = Stream.replay

    async def count(self: Stream, *args: Any) -> Replay:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        try:
            return await replay(self, *args)
        finally:
            under_way -= 1

    monkeypatch.setattr(Stream, "replay", count)
    peer = await listening(server.url, "room")
    start = (await peer.broker.replay("room", KEEP, None)).top
    said = [b"%d" % number for number in range(FEW + 1)]
    for data in said:
        await peer.publish("room", data, KEEP)
    rooms = ["room" if number % 20 == 0 else f"r-{number}" for number in range(3000)]
    replays = await asyncio.gather(
        *(peer.broker.replay(room, KEEP, start) for room in rooms)
    )
    for room, one in zip(rooms, replays, strict=True):
        expected = said if room == "room" else []
        assert [data for _, data in one.messages] == expected
        assert one.is_complete
    assert most == MAX_REPLAYS
    assert not peer.interruptions


async def test_a_quiet_room_is_whole_for_who_listened_all_along(
    server: NatsServer, listening: Listening
) -> None:
    """Its last message is kept no longer, nor are others that came after it."""
    brief = Retention(20, 1)
    peer = await listening(server.url, "quiet", "busy", keep=brief)
    stranger = await listening(server.url, keep=brief)
    await peer.publish("quiet", b"1", brief)
    await peer.until(lambda: len(peer.heard) == 1)
    (quiet,) = peer.positions("quiet")

    async def is_whole(who: Peer) -> bool:
        return (await who.broker.replay("quiet", brief, quiet)).is_complete

    async with asyncio.timeout(20):
        while await is_whole(stranger):
            await peer.publish("busy", b"x", brief)
            await asyncio.sleep(0.1)
    assert await is_whole(peer)
    # what comes now comes to who was there before, and has missed nothing
    await peer.publish("quiet", b"2", brief)
    await peer.until(lambda: len(peer.data("quiet")) == 2)
    replay = await peer.broker.replay("quiet", brief, quiet)
    assert ([data for _, data in replay.messages], replay.is_complete) == (
        [b"2"],
        True,
    )
    assert not await is_whole(stranger)


async def test_a_quiet_room_is_whole_behind_a_short_interruption(
    server: NatsServer, listening: Listening
) -> None:
    keep = Retention(20, 6)
    peer = await listening(server.url, "quiet", "busy", keep=keep)
    await peer.publish("quiet", b"1", keep)
    await peer.until(lambda: len(peer.heard) == 1)
    (quiet,) = peer.positions("quiet")
    stranger = await listening(server.url, keep=keep)
    async with asyncio.timeout(40):
        while (await stranger.broker.replay("quiet", keep, quiet)).is_complete:
            await peer.publish("busy", b"x", keep)
            await asyncio.sleep(0.2)
    await server.kill()
    await server.start()
    await peer.until(lambda: bool(peer.interruptions))
    await surely(lambda: peer.publish("busy", b"x", keep))
    assert (await peer.broker.replay("quiet", keep, quiet)).is_complete
    replay = await surely(lambda: stranger.broker.replay("quiet", keep, quiet))
    assert not replay.is_complete


# ------------------------------------------------------------- what others write there


async def test_junk_on_a_channel_is_dropped_and_counted(
    server: NatsServer, listening: Listening
) -> None:
    peer = await listening(server.url, "room")
    junk = [
        b"abc",
        b"NATS/1.0",
        b"NATS/1.0\r\n\r\n",
        b"NATS/1.0 503\r\n\r\n",
        b"\xff" * 40,
        b"NATS/1.0\r\nNats-Stream\r\n\r\n",
        placed(b"", b""),
        placed(b"-1", b"0"),
        placed(b"1e3", b"0"),
        placed(b"1" * 19, b"0"),
        placed(b"1" * 5000, b"0"),
        placed(b"5", b"x"),
        placed(b"\xb2", b"0"),
    ]
    say(server, *[("t.live.room", b"junk", headers) for headers in junk])
    await eventually(lambda: peer.broker.dropped == len(junk))
    await peer.publish("room", b"1", KEEP)
    await peer.hears("room", b"1")
    assert not peer.interruptions
    assert peer.broker.is_up


async def test_bytes_of_others_are_delivered_as_they_are(
    server: NatsServer, listening: Listening
) -> None:
    peer = await listening(server.url, "room")
    say(
        server,
        ("t.live.room", b"\x80\x04pickle", None),
        ("t.live.room", b"of other rules", placed(7, 0, "t_9-9")),
        ("t.live.room", b"of no stream", placed(7, 0, "another")),
    )
    await peer.hears("room", b"\x80\x04pickle", b"of other rules", b"of no stream")
    assert not peer.positions("room")


async def test_a_place_that_is_forged_is_healed(
    server: NatsServer, listening: Listening
) -> None:
    """Whoever may write there can make us look again, and no more."""
    peer = await listening(server.url, "room")
    await peer.publish("room", b"1", KEEP)
    await peer.until(lambda: len(peer.heard) == 1)
    (first,) = peer.positions("room")
    say(server, ("t.live.room", b"forged", placed(10**17, 1)))
    await peer.until(lambda: len(peer.heard) == 2)
    await peer.publish("room", b"2", KEEP)
    await peer.until(lambda: peer.interruptions == [{"room"}])
    replay = await peer.broker.replay("room", KEEP, first)
    assert ([data for _, data in replay.messages], replay.is_complete) == ([b"2"], True)
    await peer.publish("room", b"3", KEEP)
    await peer.until(lambda: peer.data("room")[-1:] == [b"3"])
    position = peer.positions("room")[-1]
    assert position == Position(first.epoch, first.offset + 2)
    # nor is the stream taken for another one
    await asyncio.sleep(0)
    assert await peer.broker.ping()
    assert (await peer.broker.replay("room", KEEP, position)).is_complete


async def test_a_place_that_is_forged_makes_nothing_whole(
    server: NatsServer, listening: Listening
) -> None:
    """It says that nothing came between; what did, is kept no longer."""
    brief = Retention(20, 1)
    peer = await listening(server.url, "room", "busy", keep=brief)
    start = (await peer.broker.replay("room", brief, None)).top
    say(server, ("t.live.room", b"forged", placed(10**17, 0, "t_20-1")))
    await peer.until(lambda: len(peer.heard) == 1)
    stranger = await listening(server.url, keep=brief)
    async with asyncio.timeout(20):
        while (await stranger.broker.replay("room", brief, start)).is_complete:
            await peer.publish("busy", b"x", brief)
            await asyncio.sleep(0.1)
    assert not (await peer.broker.replay("room", brief, start)).is_complete


async def test_a_gap_is_told_before_what_comes_behind_it(
    server: NatsServer, listening: Listening
) -> None:
    order: list[str] = []
    peer = await listening(server.url, "room")
    deliver, interrupted = peer.deliver, peer.interrupted

    def note_message(channel: str, data: bytes, position: Position | None) -> None:
        order.append("message")
        deliver(channel, data, position)

    def note_gap(channels: Collection[str]) -> None:
        order.append("gap")
        interrupted(channels)

    peer.deliver = note_message  # type: ignore[method-assign]
    peer.interrupted = note_gap  # type: ignore[method-assign]
    await peer.publish("room", b"1", KEEP)
    await peer.until(lambda: len(peer.heard) == 1)
    say(server, ("t.live.room", b"9", placed(9, 8)))
    await peer.until(lambda: len(peer.heard) == 2)
    assert order == ["message", "gap", "message"]
    assert peer.interruptions == [{"room"}]


async def test_junk_among_the_answers_does_no_harm(
    server: NatsServer, listening: Listening
) -> None:
    """An id that nobody knows keeps others from answering; who listens to all knows
    it all the same."""
    spy = Client()
    await spy.connect(server.url)
    heard = await spy.subscribe("t.inbox.>")
    await spy.flush()
    peer = await listening(server.url, "room")
    inbox = (await heard.next_msg()).subject.rpartition(".")[0]
    await spy.close()
    tokens = ("0", "-1", "x", "9" * 30, "9" * 3000, "1.pulled", "%FF")
    say(
        server,
        *[(f"{inbox}.{token}", b"junk", None) for token in tokens],
        *[(f"{inbox}.{number}", b"junk", None) for number in range(100)],
    )
    await peer.until(lambda: peer.broker.is_up)
    await surely(lambda: peer.publish("room", b"1", KEEP))
    await peer.until(lambda: peer.data("room")[-1:] == [b"1"])


async def test_an_error_of_whoever_listens_does_not_end_the_listening(
    server: NatsServer, listening: Listening, caplog: pytest.LogCaptureFixture
) -> None:
    peer = await listening(server.url, "room")
    deliver = peer.deliver

    def stumble(channel: str, data: bytes, position: Position | None) -> None:
        if data == b"1":
            raise RuntimeError("a fault of ours")
        deliver(channel, data, position)

    peer.deliver = stumble  # type: ignore[method-assign]
    await peer.publish("room", b"1")
    await peer.publish("room", b"2")
    await peer.hears("room", b"2")
    assert "could not be handled" in caplog.text


# ------------------------------------------------------------------------------ bounds


@pytest.mark.parametrize("keep", [None, KEEP], ids=["carried", "kept"])
async def test_as_many_messages_wait_as_may(
    server: NatsServer,
    listening: Listening,
    keep: Retention | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(waits, "MAX_WAITING", 100)
    peer = await listening(server.url)
    server.pause()
    waiting = [peer.broker.publish("room", b"x", keep) for _ in range(100)]
    for each in (None, KEEP):
        with pytest.raises(UnavailableError, match="too much waits"):
            await settled(peer.broker.publish("room", b"x", each))
    server.resume()
    await asyncio.gather(*map(settled, waiting))
    await peer.publish("room", b"x", keep)


@pytest.mark.parametrize("keep", [None, KEEP], ids=["carried", "kept"])
async def test_as_many_bytes_wait_as_may(
    server: NatsServer,
    listening: Listening,
    keep: Retention | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(waits, "MAX_WAITING_BYTES", 1000)
    peer = await listening(server.url)
    server.pause()
    waiting = [peer.broker.publish("room", b"x" * 500, keep) for _ in range(2)]
    with pytest.raises(UnavailableError, match="too much waits"):
        await settled(peer.broker.publish("room", b"x", keep))
    server.resume()
    await asyncio.gather(*map(settled, waiting))
    await peer.publish("room", b"x", keep)


async def test_who_gives_up_waiting_counts_until_the_server_has_it(
    server: NatsServer, listening: Listening, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(waits, "MAX_WAITING", 10)
    peer = await listening(server.url)
    server.pause()
    waiting = [
        asyncio.ensure_future(settled(peer.broker.publish("room", b"x", keep)))
        for keep in [None, KEEP] * 5
    ]
    await asyncio.sleep(0)
    for one in waiting:
        one.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
    with pytest.raises(UnavailableError, match="too much waits"):
        await settled(peer.broker.publish("room", b"x"))
    server.resume()
    await surely(lambda: peer.publish("room", b"x", KEEP))


async def test_a_message_is_as_big_as_the_server_takes(
    server: NatsServer, listening: Listening
) -> None:
    peer = await listening(server.url, "room")
    biggest = b"x" * 1_048_576  # max_payload, unless the operator says otherwise
    await peer.publish("room", biggest)
    await peer.until(lambda: len(peer.heard) == 1)
    for keep in (None, KEEP):
        with pytest.raises(UnavailableError, match=r"\(max_payload, 1048576\)"):
            await peer.publish("room", biggest + b"x", keep)
    assert peer.broker.is_up


async def test_a_publish_that_is_never_acknowledged_raises(
    server: NatsServer, listening: Listening, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server is there, and answers all but this."""
    monkeypatch.setattr("authws.brokers.nats.broker.CALL_TIMEOUT", 0.5)
    peer = await listening(server.url)
    async with operator(server) as ask:
        config = (await ask(f"STREAM.INFO.{STREAM}"))["config"]
        await ask(f"STREAM.UPDATE.{STREAM}", {**config, "no_ack": True})
        with pytest.raises(UnavailableError, match="in time"):
            await peer.publish("room", b"x", KEEP)
    assert CALL_TIMEOUT == 5.0
    assert peer.broker.is_up


# ------------------------------------------------------------------ how it is let in


async def test_without_jetstream_nothing_can_be_kept_and_that_is_said(
    listening: Listening, caplog: pytest.LogCaptureFixture
) -> None:
    async with nats_server(has_jetstream=False, more="debug: true") as server:
        peer = await listening(server.url, is_up=False)
        assert not peer.broker.is_up
        with pytest.raises(UnavailableError):
            await peer.publish("room", b"x", KEEP)
        await eventually(lambda: server.log.count("Client connection created") >= 4)
        assert caplog.text.count("JetStream is not enabled there") == 1
        assert "write `jetstream {}`" in caplog.text
        assert "AUTHWS_HISTORY" in caplog.text
        carrying = await listening(server.url, "room", keep=None)
        await carrying.publish("room", b"x")
        await carrying.hears("room", b"x")
        assert await carrying.broker.ping()


async def test_a_token_is_a_username_without_a_password(listening: Listening) -> None:
    async with nats_server(authorization="authorization {{ token: {password} }}") as s:
        address = f"127.0.0.1:{s.port}"
        peer = await listening(f"nats://{s.password}@{address}", "room")
        await peer.publish("room", b"x")
        await peer.hears("room", b"x")
        assert s.password not in repr(peer.broker) + str(vars(peer.broker))
        refused = await listening(f"nats://wrong@{address}", is_up=False)
        assert not refused.broker.is_up


async def test_who_needs_no_password_has_none(listening: Listening) -> None:
    async with nats_server(authorization="") as server:
        peer = await listening(f"nats://127.0.0.1:{server.port}", "room")
        await peer.publish("room", b"x", KEEP)
        await peer.hears("room", b"x")


async def test_a_wrong_password_is_named_as_such(
    server: NatsServer, listening: Listening, caplog: pytest.LogCaptureFixture
) -> None:
    wrong = server.url.replace(server.password, "wrong-password")
    peer = await listening(wrong, is_up=False)
    assert not peer.broker.is_up
    assert "cannot be reached: Authorization Violation" in caplog.text
    assert "wrong-password" not in caplog.text


def documented_permissions() -> str:
    """The configuration that docs/brokers.md shows."""
    text = (Path(__file__).parents[2] / "docs" / "brokers.md").read_text()
    block = text.partition("```\nauthorization {")[2].partition("```")[0]
    assert block
    braces = block.replace("{", "{{").replace("}", "}}")
    return "authorization {{" + braces.replace("$NATS_PASSWORD", "{password}")


async def test_the_permissions_that_are_documented_are_enough() -> None:
    keep = Retention(100, 300)  # what rooms keep by default
    async with nats_server(authorization=documented_permissions()) as server:
        peers = [
            Peer(open_broker(server.url, kept=(keep,), history_bytes=size))
            for size in (1_000_000, 2_000_000)  # the second updates the stream
        ]
        for peer in peers:
            await peer.start()
            await peer.broker.subscribe("room", keep)
        start = (await peers[0].broker.replay("room", keep, None)).top
        said = [b"%d" % number for number in range(FEW + 3)]
        for data in said:
            await peers[0].publish("room", data, keep)
        await peers[0].publish("room", b"carried")
        for peer in peers:
            await peer.hears("room", *said, b"carried")
            replay = await peer.broker.replay("room", keep, start)
            assert [data for _, data in replay.messages] == said
            assert replay.is_complete
            assert await peer.broker.ping()
        assert "Violation" not in server.log
        for peer in peers:
            await peer.broker.stop()


async def test_they_allow_no_more() -> None:
    async with nats_server(authorization=documented_permissions()) as server:
        errors: list[str] = []

        async def note(error: Exception) -> None:
            errors.append(str(error))

        client = Client()
        await client.connect(server.url, error_cb=note)
        for subject in ("_INBOX.>", ">", "other.live.room", "$JS.>"):
            await client.subscribe(subject)
        for subject in (
            "other.live.room",
            "$JS.API.STREAM.DELETE.authws_100-300",
            "$JS.API.STREAM.PURGE.authws_100-300",
            "$JS.API.STREAM.CREATE.other",
            "$JS.API.STREAM.NAMES",
            "$SYS.REQ.SERVER.PING",
        ):
            await client.publish(subject)
        await client.flush()
        await eventually(lambda: len(errors) == 10)
        assert all("permissions violation" in error for error in errors)
        await client.close()


async def test_what_is_not_allowed_is_named(
    listening: Listening, caplog: pytest.LogCaptureFixture
) -> None:
    """A publish that the server drops is not taken for one that it has."""
    authorization = (
        "authorization {{ users: [ {{ user: {user}, password: {password}, permissions:"
        ' {{ publish: ["t.inbox.>"], subscribe: ["t.>"] }} }} ] }}'
    )
    async with nats_server(authorization=authorization) as server:
        peer = await listening(server.url, "room", keep=None)
        with pytest.raises(UnavailableError):
            await peer.publish("room", b"x")
        await eventually(lambda: "t.live.room" in caplog.text)
        assert "permissions violation for publish" in caplog.text


async def test_what_may_not_be_heard_is_named(
    listening: Listening, caplog: pytest.LogCaptureFixture
) -> None:
    authorization = (
        "authorization {{ users: [ {{ user: {user}, password: {password}, permissions:"
        ' {{ publish: ["t.>"], subscribe: ["t.live.>"] }} }} ] }}'
    )
    async with nats_server(authorization=authorization) as server:
        peer = await listening(server.url, keep=None, is_up=False)
        assert not peer.broker.is_up
        assert "permissions violation for subscription" in caplog.text


# --------------------------------------------------------------------------------- TLS


@asynccontextmanager
async def tls_server(
    authority: Authority, name: str, more: str = ""
) -> AsyncIterator[NatsServer]:
    cert, key = authority.issue(name)
    tls = f'tls {{{{ cert_file: "{cert}"\nkey_file: "{key}"\n{more} }}}}'
    async with nats_server(more=tls) as server:
        yield server


async def test_tls_is_believed_for_the_right_name_by_the_right_authority(
    listening: Listening, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    authority = Authority(tmp_path)
    async with tls_server(authority, "localhost") as server:
        credentials = f"{server.user}:{server.password}"
        for url in (
            f"tls://{credentials}@localhost:{server.port}?ca={authority.path}",
            f"nats://{credentials}@localhost:{server.port}?tls=1&ca={authority.path}",
        ):
            peer = await listening(url, "room")
            await peer.publish("room", b"x", KEEP)
            await peer.until(lambda peer=peer: bool(peer.heard))  # type: ignore[misc]
        another = Authority(tmp_path, "another")
        for url in (
            f"tls://{credentials}@127.0.0.1:{server.port}?ca={authority.path}",
            f"tls://{credentials}@localhost:{server.port}?ca={another.path}",
            f"tls://{credentials}@localhost:{server.port}",
        ):
            caplog.clear()
            refused = await listening(url, is_up=False)
            assert not refused.broker.is_up
            assert "certificate verify failed" in caplog.text
        plain = f"nats://{credentials}@localhost:{server.port}"
        assert not (await listening(plain, is_up=False)).broker.is_up


async def test_a_client_certificate_is_shown(
    listening: Listening, tmp_path: Path
) -> None:
    authority = Authority(tmp_path)
    more = f'ca_file: "{authority.path}"\nverify: true'
    cert, key = authority.issue("client")
    async with tls_server(authority, "localhost", more) as server:
        url = server.url.replace("nats://", "tls://").replace("127.0.0.1", "localhost")
        peer = await listening(f"{url}?ca={authority.path}&cert={cert}&key={key}", "r")
        await peer.publish("r", b"x", KEEP)
        await peer.hears("r", b"x")
        refused = await listening(f"{url}?ca={authority.path}", is_up=False)
        assert not refused.broker.is_up


async def test_a_certificate_that_cannot_be_read_is_told_at_the_start(
    server: NatsServer, tmp_path: Path
) -> None:
    url = server.url.replace("nats://", "tls://") + f"?ca={tmp_path}/none.pem"
    peer = Peer(open_broker(url, prefix=PREFIX))
    with pytest.raises(ConfigurationError, match="ca, cert or key"):
        await peer.broker.start(peer)
    await peer.broker.stop()


@pytest.mark.parametrize("credentials", ["user:pass-word@", "to-ken@", ""])
async def test_who_denies_tls_hears_no_password(
    listening: Listening, credentials: str, caplog: pytest.LogCaptureFixture
) -> None:
    """nats-py speaks TLS if the server says so; whoever sits between says it does
    not."""
    heard: list[bytes] = []

    async def deny(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        info = {"version": "2.9.10", "headers": True, "max_payload": 1_048_576}
        writer.write(b"INFO %b\r\n" % json.dumps(info).encode())
        while line := await reader.readline():
            heard.append(line)
            if line == b"PING\r\n":
                writer.write(b"PONG\r\n")
        writer.close()

    listener = await asyncio.start_server(deny, "127.0.0.1", 0)
    async with listener:
        port = listener.sockets[0].getsockname()[1]
        url = f"tls://{credentials}127.0.0.1:{port}"
        peer = await listening(url, keep=None, is_up=False)
        assert not peer.broker.is_up
        assert "does not speak TLS" in caplog.text
        await peer.broker.stop()
    said = b"".join(heard)
    assert b"pass-word" not in said
    assert b"to-ken" not in said
    assert b"PUB" not in said
    assert b"SUB" not in said


# ------------------------------------------------------------------------ many servers


async def test_any_server_of_the_url_will_do(
    server: NatsServer, listening: Listening
) -> None:
    dead, silent = free_ports(2)
    with socket.create_server(
        ("127.0.0.1", silent)
    ):  # takes a connection, says nothing
        hosts = (dead, silent, server.port)
        credentials = server.url.partition("@")[0]
        url = f"{credentials}@" + ",".join(f"127.0.0.1:{port}" for port in hosts)
        for _ in range(4):  # in a chance order
            peer = await listening(url, "room")
            await peer.publish("room", b"x", KEEP)
            await peer.until(lambda peer=peer: bool(peer.heard))  # type: ignore[misc]


CLUSTER = """
server_name: {name}
cluster {{{{ name: tests, listen: 127.0.0.1:{port}, routes: [{routes}] }}}}
"""


async def test_three_servers_keep_what_one_of_them_had(listening: Listening) -> None:
    """The one that leads is killed; another one leads, and goes on with the numbers."""
    ports = free_ports(3)
    routes = ", ".join(f'"nats://127.0.0.1:{port}"' for port in ports)
    async with AsyncExitStack() as stack:
        servers: dict[str, NatsServer] = {}
        for name, port in zip("abc", ports, strict=True):
            cluster = CLUSTER.format(name=name, port=port, routes=routes)
            one = nats_server(authorization="", more=cluster)
            servers[name] = await stack.enter_async_context(one)
        peers = {
            name: await listening(server.url, "room")
            for name, server in servers.items()
        }
        leader = await _have_three_keep_it(servers["a"])
        peer, other = (peers[name] for name in "abc" if name != leader)
        start = (await surely(lambda: peer.broker.replay("room", KEEP, None))).top
        await surely(lambda: peer.publish("room", b"before", KEEP))
        await servers[leader].kill()
        await surely(lambda: peer.publish("room", b"after", KEEP))
        for one_of_two in (peer, other):
            ask = partial(one_of_two.broker.replay, "room", KEEP, start)
            replay = await surely(ask)
            data = [data for _, data in replay.messages]
            assert (data[0], data[-1]) == (b"before", b"after")
            assert {place.epoch for place, _ in replay.messages} == {start.epoch}
            assert replay.is_complete


async def _have_three_keep_it(server: NatsServer) -> str:
    """Return the name of the server that leads them."""
    async with operator(server) as ask, asyncio.timeout(60):
        info = await ask(f"STREAM.INFO.{STREAM}")
        await ask(f"STREAM.UPDATE.{STREAM}", {**info["config"], "num_replicas": 3})
        while True:
            cluster = (await ask(f"STREAM.INFO.{STREAM}")).get("cluster", {})
            replicas = [replica["current"] for replica in cluster.get("replicas", [])]
            if cluster.get("leader") and replicas == [True, True]:
                return str(cluster["leader"])
            await asyncio.sleep(0.1)


async def test_a_timeout_that_nats_py_swallows_is_one_all_the_same(
    server: NatsServer, listening: Listening, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its ``asyncio.wait_for`` does, on Python 3.11, if what it waits for just came."""
    monkeypatch.setattr(connection, "HOST_TIMEOUT", 0.1)
    connect = Client.connect

    async def late(self: Client, *args: Any, **options: Any) -> None:
        await connect(self, *args, **options)
        with suppress(asyncio.CancelledError):
            await asyncio.Event().wait()

    monkeypatch.setattr(Client, "connect", late)
    peer = await listening(server.url, is_up=False)
    assert not peer.broker.is_up
    monkeypatch.undo()
    await peer.until(lambda: peer.broker.is_up)
