"""What is peculiar to Redis: its restarts and failovers, its cluster, its users."""

from __future__ import annotations

import asyncio
import re
import shutil
import struct
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from authws.brokers import open_broker
from authws.brokers.redis.lines import MAX_WAITING, MAX_WAITING_BYTES
from authws.brokers.redis.wire import LIVES, read_message
from authws.cli.broker import why_broker_is_away
from authws.decisions.history import Position, Retention
from authws.exceptions import ConfigurationError, UnavailableError
from authws.service.settings import Settings
from tests.brokers.peers import KEEP, Peer, settled
from tests.certificates import Authority
from tests.requirements import require
from tests.servers.redis import (
    SLOTS,
    RedisClusterServer,
    RedisSentinelServer,
    RedisServer,
)

BROKERS = Path(__file__).parent.parent.parent / "docs" / "brokers.md"
ROOM = b"t:0:{room}"
"""What the channel ``room`` is called in Redis, with the prefix of these tests."""


@pytest.fixture(autouse=True)
def _redis() -> None:
    has_server = shutil.which("redis-server") is not None
    require("redis", has_server, "no redis-server on the PATH")


@asynccontextmanager
async def joined(url: str, *rooms: str) -> AsyncIterator[Peer]:
    """A peer that is connected, and subscribed to some rooms."""
    peer = Peer(open_broker(url, prefix="t", kept=(KEEP,)))
    try:
        await peer.start()
        for room in rooms:
            await peer.broker.subscribe(room, KEEP)
        yield peer
    finally:
        await peer.broker.stop()


async def refuses(peer: Peer) -> bool:
    """Whether a publish fails now; and if it does, whether within seconds."""
    before = time.monotonic()
    try:
        await peer.publish("room", b"?")
    except UnavailableError:
        assert time.monotonic() - before < 8
        return True
    return False


# ------------------------------------------------------------------- restarts, failures


async def test_restart_is_survived_and_told() -> None:
    async with (
        RedisServer() as server,
        joined(server.url, "room", "other") as peer,
        joined(server.url) as publisher,
    ):
        await peer.broker.unsubscribe("other")
        await server.kill()
        await peer.until(lambda: not peer.broker.is_up)
        assert await refuses(peer)
        with pytest.raises(UnavailableError):
            await peer.broker.subscribe("third")
        with pytest.raises(UnavailableError):
            await peer.broker.replay("room", KEEP, None)
        assert not await peer.broker.ping()
        await server.start()
        await peer.until(lambda: bool(peer.interruptions))
        assert peer.interruptions == [{"room"}]
        await publisher.until(lambda: publisher.broker.is_up)
        await publisher.publish("room", b"1")
        await publisher.publish("room", b"2", KEEP)
        await peer.hears("room", b"1", b"2")
        # neither what was left before nor what was refused is subscribed again
        for name in (b"t:0:{other}", b"t:0:{third}"):
            assert await server.run("PUBSUB", "NUMSUB", name) == [name, 0]


async def test_lost_memory_is_a_new_epoch() -> None:
    async with RedisServer() as server, joined(server.url, "room") as peer:
        for _ in range(5):
            await peer.publish("room", b"x", KEEP)
        before = (await peer.broker.replay("room", KEEP, None)).top
        assert before.offset == 5
        await server.run("FLUSHALL")
        await _is_another_history(peer, before)
        before = (await peer.broker.replay("room", KEEP, None)).top
        await server.kill()
        await server.start()
        await peer.until(lambda: len(peer.interruptions) >= 2)
        await _is_another_history(peer, before)


async def _is_another_history(peer: Peer, before: Position) -> None:
    for _ in range(before.offset + 2):  # until every old offset is given out again
        assert not (await peer.broker.replay("room", KEEP, before)).is_complete
        await peer.publish("room", b"y", KEEP)
    top = (await peer.broker.replay("room", KEEP, None)).top
    assert (top.epoch != before.epoch, top.offset) == (True, before.offset + 2)


async def test_flushed_history_is_an_interruption_before_the_next_message() -> None:
    async with RedisServer() as server, joined(server.url, "room") as peer:
        await peer.publish("room", b"1", KEEP)
        await server.run("FLUSHALL")
        await peer.publish("room", b"2", KEEP)
        await peer.hears("room", b"1", b"2")
        assert peer.interruptions == [{"room"}]


async def test_history_goes_on_over_a_restart_with_persistence() -> None:
    async with (
        RedisServer("--appendonly", "yes") as server,
        joined(server.url, "room") as peer,
    ):
        for number in range(4):
            await peer.publish("room", b"%d" % number, KEEP)
        await peer.hears("room", b"0", b"1", b"2", b"3")
        positions = peer.positions("room")
        await server.kill()
        await server.start()
        await peer.until(lambda: bool(peer.interruptions))
        await peer.publish("room", b"4", KEEP)
        await peer.hears("room", b"0", b"1", b"2", b"3", b"4")
        assert peer.positions("room")[-1].offset == positions[-1].offset + 1
        for number, position in enumerate(positions):
            replay = await peer.broker.replay("room", KEEP, position)
            assert replay.is_complete
            assert replay.messages == tuple(
                (place, b"%d" % later)
                for later, place in enumerate(peer.positions("room"))
                if later > number
            )
        # the positions of some lives are remembered, those of the first for that long
        for life in range(LIVES):
            first = await peer.broker.replay("room", KEEP, positions[0])
            assert first.is_complete
            assert [data for _, data in first.messages] == [b"1", b"2", b"3", b"4"]
            await server.kill()
            await server.start()
            await peer.until(lambda life=life: len(peer.interruptions) >= life + 2)  # type: ignore[misc]
            last = await peer.broker.replay("room", KEEP, peer.positions("room")[-1])
            assert last[:2] == ((), True)
        assert not (await peer.broker.replay("room", KEEP, positions[0])).is_complete


async def test_history_that_went_back_is_not_whole_for_who_saw_more() -> None:
    """As after a crash with snapshots, or a failover: what came last is lost, and its
    offsets are given again to other messages."""
    async with RedisServer() as server, joined(server.url, "room") as peer:
        for number in range(3):
            await peer.publish("room", b"%d" % number, KEEP)
        await server.run("SAVE")
        for number in range(3, 6):
            await peer.publish("room", b"%d" % number, KEEP)
        await peer.until(lambda: len(peer.heard) >= 6)
        positions = peer.positions("room")
        await server.kill()
        await server.start()
        await peer.until(lambda: bool(peer.interruptions))
        for number in range(3, 9):
            await peer.publish("room", b"new-%d" % number, KEEP)
        for number, position in enumerate(positions):
            replay = await peer.broker.replay("room", KEEP, position)
            assert replay.is_complete is (number < 3)
            if number == 1:
                assert [data for _, data in replay.messages] == [
                    b"2",
                    *(b"new-%d" % later for later in range(3, 9)),
                ]


async def test_server_that_stands_still_is_noticed() -> None:
    async with RedisServer() as server, joined(server.url, "room") as peer:
        server.pause()
        before = time.monotonic()
        waiting = peer.broker.publish("room", b"1", KEEP)
        subscribing = asyncio.ensure_future(peer.broker.subscribe("third"))
        with pytest.raises(UnavailableError):
            await settled(waiting)
        with pytest.raises(UnavailableError):
            await subscribing
        assert time.monotonic() - before < 8
        await peer.until(lambda: not peer.broker.is_up)
        assert await refuses(peer)
        assert not await peer.broker.ping()
        server.resume()
        await peer.until(lambda: peer.broker.is_up)
        await peer.publish("room", b"2", KEEP)
        await peer.until(lambda: b"2" in peer.data("room"))
        assert peer.interruptions == [{"room"}]
        name = b"t:0:{third}"
        assert await server.run("PUBSUB", "NUMSUB", name) == [name, 0]


@pytest.mark.parametrize("kind", ["PUBSUB", "NORMAL"])
async def test_loss_of_either_connection_is_noticed(kind: str) -> None:
    async with RedisServer() as server, joined(server.url, "room") as peer:
        await server.run("CLIENT", "KILL", "TYPE", kind)
        await peer.until(lambda: bool(peer.interruptions))
        assert peer.interruptions == [{"room"}]
        await peer.publish("room", b"1")
        await peer.hears("room", b"1")


class Relay:
    """Stands between a client and a server, and can leave a connection hanging."""

    def __init__(self, port: int) -> None:
        self.streams: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []
        self._port = port
        self._tasks: set[asyncio.Task[None]] = set()

    @asynccontextmanager
    async def open(self) -> AsyncIterator[int]:
        listening = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        yield listening.sockets[0].getsockname()[1]
        listening.close()
        for task in self._tasks:
            task.cancel()
        for _, writer in self.streams:
            writer.close()

    def hang(self, connection: int) -> None:
        """Carry nothing more over this connection, and leave it open."""
        for task in self._tasks:
            if task.get_name() == str(connection):
                task.cancel()

    async def _accept(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        ahead = await asyncio.open_connection("127.0.0.1", self._port)
        name = str(len(self.streams) // 2)
        self.streams += [(reader, writer), ahead]
        for source, target in ((reader, ahead[1]), (ahead[0], writer)):
            carrying = asyncio.create_task(_carry(source, target), name=name)
            self._tasks.add(carrying)


async def _carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65_536):
        writer.write(data)
    writer.close()


async def test_either_connection_that_hangs_is_noticed() -> None:
    async with RedisServer() as server:
        await asyncio.gather(*(_hangs(server, connection) for connection in (0, 1)))


async def _hangs(server: RedisServer, connection: int) -> None:
    relay = Relay(server.port)
    async with relay.open() as port:
        url = server.url.replace(str(server.port), str(port))
        async with joined(url, "room") as peer:
            relay.hang(connection)
            assert not await peer.broker.ping()
            await peer.until(lambda: bool(peer.interruptions))
            assert peer.interruptions == [{"room"}]
            await peer.publish("room", b"1")
            await peer.until(lambda: b"1" in peer.data("room"))


async def test_ten_thousand_channels_are_subscribed_again_in_few_round_trips() -> None:
    names = [f"room-{number}" for number in range(10_000)]
    async with RedisServer() as server, joined(server.url) as peer:
        await asyncio.gather(*(peer.broker.subscribe(name) for name in names))
        await server.kill()
        await server.start()
        await peer.until(lambda: bool(peer.interruptions))
        assert peer.interruptions == [set(names)]
        stats = (await server.run("INFO", "commandstats")).decode()
        assert int(re.findall(r"cmdstat_subscribe:calls=(\d+)", stats)[0]) <= 20
        assert await server.run("PUBSUB", "NUMSUB", b"t:0:{room-9999}") == [
            b"t:0:{room-9999}",
            1,
        ]


async def test_no_gap_comes_unannounced_whatever_is_said_meanwhile() -> None:
    names = [f"room-{number}" for number in range(3000)]
    async with (
        RedisServer() as server,
        joined(server.url, "room") as peer,
        joined(server.url) as publisher,
    ):
        events: list[Any] = peer.heard
        peer.interrupted = lambda channels: events.append(set(channels))  # type: ignore[method-assign]
        await asyncio.gather(*(peer.broker.subscribe(name) for name in names))
        talking = asyncio.ensure_future(_talk(publisher))
        for _ in range(3):
            before = len(events)
            await peer.until(lambda before=before: len(events) > before + 20)  # type: ignore[misc]
            for line in (
                await server.run("CLIENT", "LIST", "TYPE", "PUBSUB")
            ).splitlines():
                if b" sub=3001 " in line:
                    await server.run("CLIENT", "KILL", "ID", line.split()[0][3:])
        before = len(events)
        await peer.until(lambda: len(events) > before + 50)
        talking.cancel()
        assert sum(isinstance(event, set) for event in events) == 3
        last = 0
        for event in events:
            if isinstance(event, set):
                assert event == {"room", *names}
                last = -1
            else:
                assert last in {-1, event[2].offset - 1}
                last = event[2].offset


async def _talk(peer: Peer) -> None:
    while True:
        await peer.publish("room", b"x", KEEP)


async def test_what_is_left_during_an_outage_is_not_subscribed_again() -> None:
    """At whatever moment: before, while and after all is subscribed again."""
    names = [f"room-{number}" for number in range(2000)]
    async with RedisServer() as server, joined(server.url) as peer:
        await asyncio.gather(*(peer.broker.subscribe(name) for name in names))
        await server.kill()
        starting = asyncio.ensure_future(server.start())
        leaving = iter(names[:-500])
        while not peer.interruptions:
            await peer.broker.unsubscribe(next(leaving))
            await asyncio.sleep(0.001)
        left = set(names) - {*leaving, *names[-500:]}
        await starting
        channels = await server.run("PUBSUB", "CHANNELS", "t:*")
        assert {name.decode()[5:-1] for name in channels} == set(names) - left
        assert 10 < len(left) < 1500


async def test_forgotten_script_is_sent_again() -> None:
    async with RedisServer() as server, joined(server.url, "room") as peer:
        await peer.publish("room", b"1", KEEP)
        await server.run("SCRIPT", "FLUSH")
        await peer.publish("room", b"2", KEEP)
        await peer.hears("room", b"1", b"2")


async def test_full_redis_refuses_and_the_broker_stays_up(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with RedisServer() as server, joined(server.url, "room") as peer:
        await peer.publish("room", b"1", KEEP)
        await server.run("CONFIG", "SET", "maxmemory", 1)
        for _ in range(3):
            with pytest.raises(UnavailableError, match="OOM"):
                await peer.publish("room", b"2", KEEP)
        (told,) = [r.getMessage() for r in caplog.records if "refuses" in r.msg]
        assert "OOM (it is full" in told
        await peer.publish("room", b"carried")
        await server.run("CONFIG", "SET", "maxmemory", 0)
        await peer.publish("room", b"3", KEEP)
        await peer.hears("room", b"1", b"carried", b"3")
        first, third = peer.positions("room")
        assert third.offset == first.offset + 1
        assert peer.broker.is_up


AHEAD = """
local state = redis.call('GET', KEYS[1])
local life, epoch, top, last, before, bound = cmsgpack.unpack(state)
top, last = top + 1, last + 3600000
redis.call('XADD', KEYS[2], last .. '-' .. top, 'd', 'ahead')
redis.call('SET', KEYS[1], cmsgpack.pack(life, epoch, top, last, before, bound))
"""
"""Keeps a message as if the clock went an hour ahead."""


async def test_clock_that_was_set_back_keeps_nothing_from_being_kept() -> None:
    """A stream takes ids that grow, and they begin with the time."""
    async with RedisServer() as server, joined(server.url, "room") as peer:
        await peer.publish("room", b"1", KEEP)
        await server.run("EVAL", AHEAD, 2, ROOM + b":state", ROOM + b":kept")
        await peer.publish("room", b"2", KEEP)
        await peer.publish("room", b"3", KEEP)
        await peer.hears("room", b"1", b"2", b"3")
        replay = await peer.broker.replay("room", KEEP, peer.positions("room")[0])
        assert [data for _, data in replay.messages] == [b"ahead", b"2", b"3"]
        assert replay.is_complete
        await server.run("DEL", ROOM + b":state")  # as an eviction may
        await peer.publish("room", b"4", KEEP)
        assert await server.run("XLEN", ROOM + b":kept") == 1


# ------------------------------------------------------------------------ what is there


async def test_nothing_stays_for_ever() -> None:
    brief = Retention(messages=20, seconds=1)
    async with RedisServer() as server, joined(server.url) as peer:
        await peer.broker.replay("asked", brief, None)
        await peer.publish("said", b"1", brief)
        await peer.publish("room", b"1")
        assert sorted(await server.run("KEYS", "*")) == [
            b"t:0:{asked}:state",
            b"t:0:{said}:kept",
            b"t:0:{said}:state",
        ]
        assert 0 < await server.run("PTTL", b"t:0:{said}:kept") <= 1000
        for channel in (b"asked", b"said"):
            left = await server.run("PTTL", b"t:0:{%b}:state" % channel)
            assert 86_000_000 < left <= 86_401_000
        before = (await peer.broker.replay("said", brief, None)).top
        while await server.run("EXISTS", b"t:0:{said}:kept"):  # noqa: ASYNC110 - nothing tells
            await asyncio.sleep(0.05)
        assert (await peer.broker.replay("said", brief, before)).is_complete
        # the end of the epoch: nothing was missed, and nobody can know that
        await server.run("DEL", b"t:0:{said}:state")
        assert not (await peer.broker.replay("said", brief, before)).is_complete


async def test_what_is_too_old_is_gone_though_the_room_goes_on() -> None:
    brief = Retention(messages=1000, seconds=1)
    async with RedisServer() as server, joined(server.url) as peer:
        began = time.monotonic()
        while time.monotonic() - began < 1.5:
            await peer.publish("room", b"x", brief)
            await asyncio.sleep(0.1)
        assert 1 <= await server.run("XLEN", ROOM + b":kept") <= 12


async def test_databases_do_not_hear_each_other() -> None:
    async with (
        RedisServer() as server,
        joined(server.url, "room") as zero,
        joined(server.url.removesuffix("0") + "1", "room") as one,
    ):
        await one.publish("room", b"1", KEEP)
        await zero.publish("room", b"0", KEEP)
        await one.hears("room", b"1")
        await zero.hears("room", b"0")


async def test_two_workers_hear_what_is_kept_in_one_order() -> None:
    said = 300
    async with (
        RedisServer() as server,
        joined(server.url, "room") as first,
        joined(server.url, "room") as second,
    ):
        await asyncio.gather(
            *(
                peer.publish("room", b"%d-%d" % (number, index), KEEP)
                for index in range(said)
                for number, peer in enumerate((first, second))
            )
        )
        for peer in (first, second):
            await peer.until(lambda peer=peer: len(peer.heard) >= 2 * said)  # type: ignore[misc]
        assert first.heard == second.heard
        offsets = [position.offset for position in first.positions("room")]
        assert offsets == list(range(1, 2 * said + 1))
        assert not first.interruptions + second.interruptions


def kept(epoch: bytes, offset: int, data: bytes = b"") -> bytes:
    return b"\x01k" + epoch + struct.pack(">Q", offset) + data


JUNK = (
    b"",
    b"\x01",
    b"\x01x1",
    b"\x00c1",
    b"\x02c1",
    b"c1",
    b"\x01k",
    kept(b"0123456789ab", 1)[:-1],
    kept(b"0123456789aB", 1),
    kept(b"0123456789a\n", 1),
    kept(b"0123456789a\xff", 1),
    kept(b"0123456789ab", 0),
    kept(b"0123456789ab", 2**53 + 1),
    b"\xff" * 100,
    b"\x00" * 3_000_000,
    b"*3\r\n$7\r\nmessage\r\n",
)


async def test_what_is_no_message_is_dropped_and_counted() -> None:
    async with RedisServer() as server, joined(server.url, "room") as peer:
        for junk in JUNK:
            await server.run("PUBLISH", ROOM, junk)
        await server.run("PUBLISH", ROOM, b"\x01cgood")
        await peer.hears("room", b"good")
        assert peer.broker.dropped == len(JUNK)
        # and what others wrote where we keep does not end us either
        for key in (ROOM + b":state", ROOM + b":kept"):
            await server.run("SET", key, b"junk")
        with pytest.raises(UnavailableError):
            await peer.publish("room", b"1", KEEP)
        with pytest.raises(UnavailableError):
            await peer.broker.replay("room", KEEP, None)
        assert peer.broker.is_up
        assert not peer.interruptions


async def test_gap_is_told_before_what_comes_behind_it() -> None:
    async with RedisServer() as server, joined(server.url, "room") as peer:
        events: list[Any] = peer.heard
        peer.interrupted = lambda channels: events.append(set(channels))  # type: ignore[method-assign]
        epoch = b"0123456789ab"
        for offset in (7, 8, 10, 11, 3):
            await server.run("PUBLISH", ROOM, kept(epoch, offset, b"%d" % offset))
        await server.run("PUBLISH", ROOM, kept(b"ba9876543210", 4, b"4"))
        await peer.until(lambda: len(events) >= 9)
        heard = [one if isinstance(one, set) else one[1] for one in events]
        gap = {"room"}
        assert heard == [b"7", b"8", gap, b"10", b"11", gap, b"3", gap, b"4"]


@pytest.mark.parametrize(
    ("payload", "message"),
    [
        (b"\x01c", (b"", None)),
        (b"\x01c\x01c", (b"\x01c", None)),
        (kept(b"0123456789ab", 1), (b"", Position("0123456789ab", 1))),
        (kept(b"0123456789ab", 2**53, b"x"), (b"x", Position("0123456789ab", 2**53))),
        *((junk, None) for junk in JUNK),
    ],
)
def test_message_is_read(payload: bytes, message: object) -> None:
    assert read_message(payload) == message


# ------------------------------------------------------------------------------- bounds


@pytest.mark.parametrize("keep", [None, KEEP], ids=["carried", "kept"])
async def test_what_waits_is_bounded_in_number(keep: Retention | None) -> None:
    async with RedisServer() as server, joined(server.url) as peer:
        server.pause()
        waiting = [
            asyncio.ensure_future(settled(peer.broker.publish("room", b"x", keep)))
            for _ in range(MAX_WAITING)
        ]
        with pytest.raises(UnavailableError, match="too much waits"):
            peer.broker.publish("room", b"x", keep)
        server.resume()
        await asyncio.gather(*waiting)
        await peer.publish("room", b"x", keep)


async def test_what_waits_is_bounded_in_bytes() -> None:
    piece = 1_048_576
    async with RedisServer() as server, joined(server.url) as peer:
        server.pause()
        waiting = [
            asyncio.ensure_future(settled(peer.broker.publish("room", b"x" * piece)))
            for _ in range(MAX_WAITING_BYTES // piece)
        ]
        with pytest.raises(UnavailableError, match="too much waits"):
            peer.broker.publish("room", b"x")
        server.resume()
        await asyncio.gather(*waiting)
        await peer.publish("room", b"x" * 2 * MAX_WAITING_BYTES)  # one always may


# ---------------------------------------------------------------------------- Sentinels


async def test_failover_is_followed() -> None:
    """Here the Sentinels want a password; in the conformance suite they have none."""
    async with (
        RedisSentinelServer(sentinels_want_password=True) as group,
        joined(group.url, "room") as peer,
    ):
        for number in range(3):
            await peer.publish("room", b"%d" % number, KEEP)
        await peer.until(lambda: len(peer.heard) >= 3)
        positions = peer.positions("room")
        await eventually_replicated(group)
        await group.sentinels[2].kill()  # two are enough
        await group.primary.kill()
        await peer.until(lambda: not peer.broker.is_up)
        assert await refuses(peer)
        await peer.until(lambda: peer.interruptions == [{"room"}])
        await peer.publish("room", b"3", KEEP)
        await peer.until(lambda: len(peer.heard) >= 4)
        assert peer.data("room") == [b"0", b"1", b"2", b"3"]
        # what the replica had is whole
        replay = await peer.broker.replay("room", KEEP, positions[0])
        assert [data for _, data in replay.messages] == [b"1", b"2", b"3"]
        assert replay.is_complete
        assert await group.sentinels[0].master_port() == group.replica.port


async def eventually_replicated(group: RedisSentinelServer) -> None:
    while await group.primary.run("WAIT", 1, 1000) != 1:
        pass


async def test_replica_is_no_broker(caplog: pytest.LogCaptureFixture) -> None:
    async with RedisServer("--replicaof", "127.0.0.1 1") as replica:
        broker = open_broker(replica.url, prefix="t")
        await broker.start(Peer(broker))
        assert not broker.is_up
        assert "is a replica" in caplog.text
        await broker.stop()


async def test_demotion_is_noticed_though_no_connection_is_lost() -> None:
    async with RedisServer() as server, joined(server.url, "room") as peer:
        await peer.publish("room", b"1", KEEP)
        await peer.hears("room", b"1")
        position = peer.positions("room")[0]
        await server.run("REPLICAOF", "127.0.0.1", "1")
        with pytest.raises(UnavailableError, match="READONLY"):
            await peer.publish("room", b"?", KEEP)
        await peer.until(lambda: not peer.broker.is_up)
        await server.run("REPLICAOF", "NO", "ONE")
        await peer.until(lambda: bool(peer.interruptions))
        # to and fro before anybody published
        await server.run("REPLICAOF", "127.0.0.1", "1")
        await server.run("REPLICAOF", "NO", "ONE")
        await peer.until(lambda: len(peer.interruptions) >= 2)
        await peer.publish("room", b"2", KEEP)
        await peer.until(lambda: len(peer.heard) >= 2)
        replay = await peer.broker.replay("room", KEEP, position)
        assert [data for _, data in replay.messages] == [b"2"]
        assert replay.is_complete
        assert peer.positions("room")[1].epoch != position.epoch


# ----------------------------------------------------------------------------- clusters


async def test_slot_that_moves_is_followed() -> None:
    async with (
        RedisClusterServer() as cluster,
        joined(cluster.url, "room", "other") as peer,
        joined(cluster.url) as publisher,
    ):
        await publisher.publish("room", b"0", KEEP)
        await peer.hears("room", b"0")
        slot = await cluster.nodes[0].run("CLUSTER", "KEYSLOT", ROOM)
        source = await cluster.owner(slot)
        target = next(node for node in cluster.nodes if node is not source)
        await cluster.move(slot, target)
        # the listener is told of this channel alone, and nothing else was interrupted
        await peer.until(lambda: bool(peer.interruptions))
        assert peer.interruptions == [{"room"}]
        assert peer.broker.is_up
        await _publish_until_it_goes(publisher, b"1")
        await peer.until(lambda: b"1" in peer.data("room"))
        await peer.publish("room", b"2", KEEP)
        await peer.until(lambda: b"2" in peer.data("room"))
        replay = await publisher.broker.replay("room", KEEP, peer.positions("room")[0])
        assert [data for _, data in replay.messages] == [b"1", b"2"]
        await peer.publish("other", b"3")
        await peer.hears("other", b"3")


async def _publish_until_it_goes(peer: Peer, data: bytes) -> None:
    async with asyncio.timeout(20):
        while True:
            try:
                await peer.publish("room", data, KEEP)
                return
            except UnavailableError:
                await asyncio.sleep(0.05)


async def test_replica_that_takes_over_in_a_cluster_is_followed() -> None:
    """Once as an operator has it, and once after a crash."""
    async with (
        RedisClusterServer(replicas=1) as cluster,
        joined(cluster.url, "room", "other") as peer,
    ):
        slot = await cluster.nodes[0].run("CLUSTER", "KEYSLOT", ROOM)
        replica = await cluster.replica(slot)
        await peer.publish("room", b"first", KEEP)
        await replica.run("CLUSTER", "FAILOVER")
        said: list[bytes] = []
        while not peer.interruptions:  # before, while and after it happens
            said.append(b"%d" % len(said))
            await _publish_until_it_goes(peer, said[-1])
        await peer.publish("room", b"last", KEEP)
        await peer.until(lambda: b"last" in peer.data("room"))
        assert len(set(peer.heard)) == len(peer.heard)
        assert await cluster.owner(slot) is replica
        replay = await peer.broker.replay("room", KEEP, peer.positions("room")[0])
        assert [data for _, data in replay.messages] == [*said, b"last"][-20:]
        peer.heard.clear()
        peer.interruptions.clear()
        await peer.publish("room", b"0", KEEP)
        await peer.until(lambda: b"0" in peer.data("room"))
        owner = await cluster.owner(slot)
        while await owner.run("WAIT", 1, 1000) != 1:
            pass
        await owner.kill()
        await peer.until(lambda: not peer.broker.is_up)
        await peer.until(lambda: bool(peer.interruptions))
        assert set().union(*peer.interruptions) == {"room", "other"}
        await _publish_until_it_goes(peer, b"1")
        await peer.until(lambda: b"1" in peer.data("room"))
        replay = await peer.broker.replay("room", KEEP, peer.positions("room")[0])
        assert [data for _, data in replay.messages] == [b"1"]


# ------------------------------------------------------------------------------ the URL


async def test_cluster_has_to_be_named_and_so_does_none() -> None:
    node = RedisServer("--cluster-enabled", "yes")
    node.settings += ("--cluster-port", str(node.bus))
    async with node, RedisServer() as single:
        for url, why in (
            (node.url, r"add \?cluster=1"),
            (single.url.removesuffix("/0") + "?cluster=1", r"leave out \?cluster=1"),
        ):
            settings = Settings(broker_url=url)
            with pytest.raises(ConfigurationError, match=why):
                await asyncio.to_thread(why_broker_is_away, settings)
            broker = open_broker(url, prefix="t")
            with pytest.raises(ConfigurationError, match=why):
                await broker.start(Peer(broker))
            assert not broker.is_up
            await broker.stop()
        settings = Settings(broker_url=single.url)
        assert await asyncio.to_thread(why_broker_is_away, settings) == ""


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("redis://a,b/0", "several hosts"),
        ("redis://a/0?cluster=yes", "cluster=1"),
        ("redis://a/1?cluster=1", "number of a database"),
        ("redis://a/one", "number of a database"),
        ("redis://a?cluster=1&sentinel=m", "no Sentinels"),
        ("redis://a?sentinel=", "as name=value"),
        ("rediss://a?ca=/nowhere.pem", "PEM"),
    ],
)
def test_url_that_means_nothing_is_refused(url: str, why: str) -> None:
    with pytest.raises(ConfigurationError, match=why):
        open_broker(url, prefix="t")


# ----------------------------------------------------------------------------- security


async def test_tls_is_verified(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ours, other = Authority(tmp_path), Authority(tmp_path, "other")
    certificate, key = ours.issue("server", "127.0.0.1")
    shown, shown_key = ours.issue("client")
    misnamed, misnamed_key = ours.issue("misnamed", "redis.example.com", "127.0.0.2")

    def server(certificate: Path, key: Path) -> RedisServer:
        return TlsServer(certificate, key, ours.path)

    async with (
        server(certificate, key) as right,
        server(misnamed, misnamed_key) as wrong,
    ):
        mine = f"&cert={shown}&key={shown_key}"
        async with joined(f"{right.url}?ca={ours.path}{mine}", "room") as peer:
            await peer.publish("room", b"1", KEEP)
            await peer.hears("room", b"1")
        for url, why in (
            (f"{right.url}?ca={other.path}{mine}", "another authority"),
            (f"{right.url}?cert={shown}&key={shown_key}", "the system's authorities"),
            (f"{wrong.url}?ca={ours.path}{mine}", "a certificate for another name"),
            (f"{right.url}?ca={ours.path}", "no certificate of ours"),
            (f"{right.url.replace('rediss', 'redis')}", "no TLS"),
        ):
            broker = open_broker(url, prefix="t")
            await broker.start(Peer(broker))
            assert not broker.is_up, why
            await broker.stop()
        assert right.password not in caplog.text


class TlsServer(RedisServer):
    """Speaks TLS alone, and wants a certificate of its clients."""

    def __init__(self, certificate: Path, key: Path, authority: Path) -> None:
        super().__init__(
            *("--tls-cert-file", str(certificate), "--tls-key-file", str(key)),
            *("--tls-ca-cert-file", str(authority)),
        )

    @property
    def url(self) -> str:
        return super().url.replace("redis://", "rediss://")

    def command(self) -> list[str | Path]:
        words = list(super().command())
        port = words.index("--port")
        return [*words[:port], "--port", "0", "--tls-port", *words[port + 1 :]]

    async def ask(self) -> None:
        _, writer = await asyncio.open_connection("127.0.0.1", self.port)
        writer.close()
        await writer.wait_closed()


def least(*, in_a_cluster: bool = False) -> list[str]:
    """The words of the ACL rule in the documentation, a user's name before them."""
    text = BROKERS.read_text()
    rule = re.search(r"^ACL SETUSER (.*)$", text, re.MULTILINE)
    other = re.search(r"A cluster needs `([^`]*)` in place of `([^`]*)`", text)
    assert rule is not None
    assert other is not None
    words = rule[1].replace("PASSWORD", "its-password").split()
    if in_a_cluster:
        return [word for word in words if word not in other[2].split()] + other[
            1
        ].split()
    return words


async def test_documented_privileges_suffice_and_each_is_needed() -> None:
    async with RedisServer() as server:
        rules = least()
        assert await works_for(server, *rules)
        for command in (word for word in rules if word.startswith("+")):
            assert not await works_for(server, *rules, f"-{command[1:]}"), command
        for more in ("resetkeys", "resetchannels"):
            assert not await works_for(server, *rules, more), more


async def test_documented_privileges_suffice_in_a_cluster() -> None:
    server = RedisServer("--cluster-enabled", "yes")
    server.settings += ("--cluster-port", str(server.bus))
    async with server:
        await server.run("CLUSTER", "ADDSLOTSRANGE", 0, SLOTS - 1)
        rules = least(in_a_cluster=True)
        async with joined(server.url.removesuffix("/0") + "?cluster=1"):
            assert await works_for(server, *rules)
        for command in ("spublish", "ssubscribe", "sunsubscribe", "cluster"):
            assert not await works_for(server, *rules, f"-{command}"), command


async def works_for(server: RedisServer, name: str, *rules: str) -> bool:
    """Whether all of it works for a user with these privileges."""
    is_cluster = "--cluster-enabled" in server.settings
    await server.run("ACL", "SETUSER", name, "reset", *rules)
    url = server.url.replace(f":{server.password}", f"{name}:its-password")
    if is_cluster:
        url = url.removesuffix("/0") + "?cluster=1"
    peer = Peer(open_broker(url, prefix="authws", kept=(KEEP,)))
    try:
        await peer.broker.start(peer)
        await peer.broker.subscribe("room", KEEP)
        keeps = (None, KEEP, KEEP)
        waiting = [peer.broker.publish("room", b"x", keep) for keep in keeps]
        for one in waiting:
            await settled(one)
        top = (await peer.broker.replay("room", KEEP, None)).top
        await peer.broker.replay("room", KEEP, Position(top.epoch, top.offset - 1))
        await peer.until(lambda: len(peer.heard) >= 3)
        await peer.broker.unsubscribe("room")
        ask = "SHARDNUMSUB" if is_cluster else "NUMSUB"
        told = await server.run("PUBSUB", ask, b"authws:0:{room}")
        return told[1] == 0 and await peer.broker.ping()
    except UnavailableError:
        return False
    finally:
        await peer.broker.stop()
        await server.run("DEL", b"authws:0:{room}:kept", b"authws:0:{room}:state")
