"""What is peculiar to RabbitMQ; its promises are asked in ``test_conformance``.

All of it is done as a user that may do nothing outside of its prefix.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import re
import shutil
import signal
import struct
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import pytest
import pytest_asyncio
import uvloop
from pamqp.body import ContentBody
from pamqp.commands import Basic, Queue
from pamqp.frame import marshal

from authws.brokers import lifeline, open_broker
from authws.brokers.lifeline import CALL_TIMEOUT
from authws.brokers.rabbitmq import inbox, partition
from authws.brokers.rabbitmq.layout import Layout, Stream
from authws.brokers.rabbitmq.partition import Partition
from authws.brokers.rabbitmq.publisher import MAX_WAITING, MAX_WAITING_BYTES, Publisher
from authws.brokers.rabbitmq.records import Carried, Kept
from authws.brokers.rabbitmq.wire import Connection, Login
from authws.brokers.urls import BrokerUrl
from authws.clock import Clock
from authws.decisions.history import Position
from authws.exceptions import UnavailableError
from tests.brokers.peers import KEEP, Peer, settled
from tests.certificates import Authority
from tests.requirements import require
from tests.servers.process import free_ports
from tests.servers.rabbitmq import RabbitmqServer

# one server for all, which is stopped, killed and started again: in one event loop
pytestmark = pytest.mark.asyncio(loop_scope="module")

NOTICED_WITHIN = 10.0
"""Seconds; it takes three, but the machine may be busy."""
BROKERS = Path(__file__).parent.parent.parent / "docs" / "brokers.md"


def least_privilege() -> dict[str, str]:
    """What the documentation grants, for the prefixes of these tests."""
    command = re.search(
        r"set_permissions authws '(\S+)' '(\S+)' '(\S+)'", BROKERS.read_text()
    )
    assert command is not None
    patterns = (one.replace("authws", "t[0-9a-f]{8}") for one in command.groups())
    return dict(zip(("configure", "write", "read"), patterns, strict=True))


class TlsServer(RabbitmqServer):
    """Listens by TLS as well, to clients with a certificate of the same authority."""

    def __init__(self, authority: Authority) -> None:
        certificate, key = authority.issue("server", "localhost")
        (self.tls_port,) = free_ports(1)
        permissions = "\n".join(
            f"default_permissions.{to} = {pattern}"
            for to, pattern in least_privilege().items()
        )
        super().__init__(
            f"""\
listeners.ssl.1 = 127.0.0.1:{self.tls_port}
ssl_options.cacertfile = {authority.path}
ssl_options.certfile = {certificate}
ssl_options.keyfile = {key}
ssl_options.verify = verify_peer
ssl_options.fail_if_no_peer_cert = true
ssl_cert_login_from = common_name
auth_mechanisms.1 = PLAIN
auth_mechanisms.2 = EXTERNAL
{permissions}
""",
            plugins=("rabbitmq_auth_mechanism_ssl",),
        )


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("tls"))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def rabbit(authority: Authority) -> AsyncIterator[TlsServer]:
    is_there = shutil.which("rabbitmq-server") is not None
    require("rabbitmq", is_there, "no rabbitmq-server on the PATH")
    async with TlsServer(authority) as server:
        yield server


@asynccontextmanager
async def joined(
    url: str, prefix: str, *rooms: str, history_bytes: int = 67_108_864
) -> AsyncIterator[Peer]:
    """A peer that is connected, and subscribed to some rooms that keep."""
    peer = Peer(
        open_broker(url, prefix=prefix, kept=(KEEP,), history_bytes=history_bytes)
    )
    try:
        await peer.start()
        for room in rooms:
            await peer.broker.subscribe(room, KEEP)
        yield peer
    finally:
        await peer.broker.stop()


def _ignore(*_: object) -> None:
    """What a connection or a partition by itself tells."""


@asynccontextmanager
async def connected(server: TlsServer) -> AsyncIterator[Connection]:
    """A connection of somebody else on the same server, with the same rights."""
    connection = Connection(_ignore)
    try:
        await connection.open(
            Login("127.0.0.1", server.port, "/", server.user, server.password, None)
        )
        yield connection
    finally:
        await connection.close()


class Stranger:
    """Writes past the broker's client, and deletes."""

    def __init__(self, connection: Connection, layout: Layout) -> None:
        self._connection = connection
        self._layout = layout
        self._publisher = Publisher(connection, layout.exchange, _ignore)

    async def open(self) -> None:
        self._channel = await self._connection.channel()
        await self._publisher.open()

    async def keep(self, room: str, data: bytes) -> None:
        entry = Kept(room, data, time.time()).encode()
        await self._publisher.publish(
            stream_of(self._layout, room).key, entry, must_arrive=True
        )

    async def delete(self, stream: Stream) -> None:
        await self._channel.call(Queue.Delete(queue=stream.name))


@asynccontextmanager
async def stranger(server: TlsServer, layout: Layout) -> AsyncIterator[Stranger]:
    async with connected(server) as connection:
        other = Stranger(connection, layout)
        await other.open()
        yield other


def streams(url: str, prefix: str) -> Layout:
    return Layout(BrokerUrl.parse(url), prefix, (KEEP,), 67_108_864)


def stream_of(layout: Layout, room: str) -> Stream:
    return layout.streams[KEEP][layout.place_of(room)]


async def replayed(peer: Peer, room: str, since: Position) -> tuple[list[bytes], bool]:
    replay = await peer.broker.replay(room, KEEP, since)
    return [data for _, data in replay.messages], replay.is_complete


# -------------------------------------------------------------- when the server is away


async def test_a_server_that_is_killed_and_comes_back(
    rabbit: TlsServer, prefix: str
) -> None:
    """History and positions go on, and nobody has to do anything for it."""
    async with joined(rabbit.url, prefix, "room") as peer:
        await peer.broker.subscribe("carried")
        for number in range(3):
            await peer.publish("room", b"%d" % number, KEEP)
        await peer.hears("room", b"0", b"1", b"2")
        before = peer.positions("room")
        await rabbit.has_noted_its_streams()
        await rabbit.kill()
        await peer.until(lambda: not peer.broker.is_up)
        assert not await peer.broker.ping()
        for call in (
            lambda: peer.publish("room", b"lost"),
            lambda: peer.publish("room", b"lost", KEEP),
            lambda: peer.broker.subscribe("other", KEEP),
            lambda: peer.broker.replay("room", KEEP, None),
        ):
            asked = time.monotonic()
            with pytest.raises(UnavailableError):
                await call()
            assert time.monotonic() - asked < 1
        await peer.broker.unsubscribe("nothing")

        late = Peer(open_broker(rabbit.url, prefix=prefix, kept=(KEEP,)))
        await late.broker.start(late)  # returns, though there is nothing yet
        assert not late.broker.is_up
        await rabbit.start()
        await asyncio.gather(
            peer.until(lambda: peer.broker.is_up),
            late.until(lambda: late.broker.is_up),
        )
        assert set().union(*peer.interruptions) == {"carried"}
        await late.publish("room", b"3", KEEP)
        await late.publish("carried", b"4")
        await peer.hears("room", b"0", b"1", b"2", b"3")
        await peer.hears("carried", b"4")
        assert {position.epoch for position in peer.positions("room")} == {
            before[0].epoch
        }
        for one in (peer, late):
            assert await replayed(one, "room", before[0]) == ([b"1", b"2", b"3"], True)
        await late.broker.stop()


async def test_a_server_that_is_stopped_says_goodbye(
    rabbit: TlsServer, prefix: str
) -> None:
    async with joined(rabbit.url, prefix, "room") as peer:
        await peer.publish("room", b"1", KEEP)
        await rabbit.stop()
        await peer.until(lambda: not peer.broker.is_up)
        await rabbit.start()
        await peer.until(lambda: peer.broker.is_up)
        await peer.publish("room", b"2", KEEP)
        await peer.hears("room", b"1", b"2")


async def test_a_server_that_stands_still_is_noticed(
    rabbit: TlsServer, prefix: str
) -> None:
    async with joined(rabbit.url, prefix, "room") as peer:
        rabbit.pause()
        try:
            began = time.monotonic()
            sent = peer.broker.publish("room", b"?", KEEP)
            assert not await peer.broker.ping()
            with pytest.raises(UnavailableError):
                await settled(sent)
            await peer.until(lambda: not peer.broker.is_up)
            assert time.monotonic() - began < NOTICED_WITHIN
        finally:
            rabbit.resume()
        await peer.until(lambda: peer.broker.is_up)
        await peer.publish("room", b"!", KEEP)
        await peer.until(lambda: b"!" in peer.data("room"))


async def test_what_is_kept_while_a_worker_is_away_arrives_when_it_is_back(
    rabbit: TlsServer, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    layout = streams(rabbit.url, prefix)
    async with joined(rabbit.url, prefix, "room") as peer:
        await peer.publish("room", b"0", KEEP)
        await peer.hears("room", b"0")
        monkeypatch.setattr(lifeline, "FIRST_DELAY", 2.0)
        await rabbit.ctl("close_all_connections", "a test")
        await peer.until(lambda: not peer.broker.is_up)
        async with stranger(rabbit, layout) as other:
            for number in range(1, 50):
                await other.keep("room", b"%d" % number)
        assert not peer.broker.is_up
        await peer.hears("room", *(b"%d" % number for number in range(50)))
        offsets = [position.offset for position in peer.positions("room")]
        assert offsets == sorted(set(offsets))


async def test_the_next_host_is_tried(rabbit: TlsServer, prefix: str) -> None:
    (nobody,) = free_ports(1)
    url = rabbit.url.replace("127.0.0.1:", f"127.0.0.1:{nobody},127.0.0.1:")
    async with joined(url, prefix, "room") as peer:
        await peer.publish("room", b"1", KEEP)
        await peer.hears("room", b"1")


async def test_thousands_of_channels_are_subscribed_again(
    rabbit: TlsServer, prefix: str
) -> None:
    names = [f"room-{number}" for number in range(2000)]
    async with joined(rabbit.url, prefix) as peer:
        for start in range(0, len(names), 500):
            batch = names[start : start + 500]
            await asyncio.gather(*map(peer.broker.subscribe, batch))
        await rabbit.ctl("close_all_connections", "a test")
        began = time.monotonic()
        await peer.until(lambda: len(set().union(*peer.interruptions)) == len(names))
        await peer.until(lambda: peer.broker.is_up)
        assert time.monotonic() - began < 15
        for name in (names[0], names[-1]):
            await peer.publish(name, b"1")
            await peer.hears(name, b"1")


# ----------------------------------------------------------- streams that are not there


async def test_streams_that_are_deleted_begin_anew(
    rabbit: TlsServer, prefix: str
) -> None:
    layout = streams(rabbit.url, prefix)
    async with joined(rabbit.url, prefix, "room") as peer:
        for number in range(5):
            await peer.publish("room", b"old-%d" % number, KEEP)
        await peer.until(lambda: len(peer.heard) >= 5)
        before = peer.positions("room")
        async with stranger(rabbit, layout) as operator:
            await operator.delete(stream_of(layout, "room"))
        await peer.until(lambda: bool(peer.interruptions))
        for number in range(9):
            await peer.publish("room", b"new-%d" % number, KEEP)
        await peer.until(lambda: len(peer.heard) >= 14)
        after = peer.positions("room")[5:]
        assert {position.epoch for position in after}.isdisjoint(
            position.epoch for position in before
        )
        for position in before:
            assert not (await replayed(peer, "room", position))[1]
        whole = [b"new-%d" % number for number in range(1, 9)]
        assert await replayed(peer, "room", after[0]) == (whole, True)


async def test_streams_that_were_deleted_while_nobody_looked(
    rabbit: TlsServer, prefix: str
) -> None:
    layout = streams(rabbit.url, prefix)
    async with joined(rabbit.url, prefix, "room") as peer:
        for number in range(5):
            await peer.publish("room", b"old-%d" % number, KEEP)
        await peer.until(lambda: len(peer.heard) >= 5)
        before = peer.positions("room")
    async with stranger(rabbit, layout) as operator:
        await operator.delete(stream_of(layout, "room"))
    async with joined(rabbit.url, prefix, "room") as peer:
        for number in range(9):
            await peer.publish("room", b"new-%d" % number, KEEP)
        for position in before:
            assert not (await replayed(peer, "room", position))[1]


class Reading:
    """A partition by itself, to be connected when a test says so."""

    def __init__(self, server: TlsServer, layout: Layout) -> None:
        self.server = server
        self.layout = layout
        (self.stream,) = layout.streams[KEEP]
        self.heard: list[bytes] = []
        self.partition = Partition(
            self.stream,
            clock=Clock(),
            hear=lambda _, channel, data, position: self.heard.append(data),
            miss=lambda _: self.heard.append(b"(something is missing)"),
            drop=_ignore,
            lose=_ignore,
        )

    @asynccontextmanager
    async def connected(self) -> AsyncIterator[Partition]:
        async with connected(self.server) as connection:
            publisher = Publisher(connection, self.layout.exchange, _ignore)
            await publisher.open()
            await self.layout.declare(connection)
            try:
                await self.partition.connect(connection, publisher)
                yield self.partition
            finally:
                self.partition.disconnect()


@pytest.mark.parametrize("count", [3, 8], ids=["shorter", "longer"])
async def test_a_stream_that_is_another_one_is_not_gone_on_with(
    rabbit: TlsServer, prefix: str, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Deleted and made again while a worker was away; also with more in it by now."""
    monkeypatch.setattr(partition, "RESUME_TIMEOUT", 1.0)
    url = f"{rabbit.url}?partitions=1"
    layout = Layout(BrokerUrl.parse(url), prefix, (KEEP,), 0)
    reading = Reading(rabbit, layout)
    async with reading.connected() as one:
        await one.caught_up()
        for number in range(3):
            await one.write(Kept("room", b"old-%d" % number, time.time()))
        await one.caught_up()
        before = one.shelf.replay("room", KEEP, None).top
    async with stranger(rabbit, layout) as operator, connected(rabbit) as connection:
        await operator.delete(reading.stream)
        await layout.declare(connection)
        for number in range(count):
            await operator.keep("room", b"new-%d" % number)
        with pytest.raises(UnavailableError, match="does not go on where it was left"):
            async with reading.connected():
                pytest.fail("it went on")
        async with reading.connected() as one:
            await one.caught_up()
            assert not one.shelf.replay("room", KEEP, before).is_complete
            new = one.shelf.replay("room", KEEP, None).top
            assert new.epoch != before.epoch
            await one.write(Kept("room", b"live", time.time()))
            await one.caught_up()
    assert reading.heard == [b"old-0", b"old-1", b"old-2", b"live"]


async def test_a_stream_of_which_the_end_was_lost_is_in_another_epoch(
    rabbit: TlsServer, prefix: str
) -> None:
    """As after a power cut: what a worker read last is not in it, but what came before.
    To those who did not notice it, it is said in the stream."""
    layout = Layout(BrokerUrl.parse(f"{rabbit.url}?partitions=1"), prefix, (KEEP,), 0)
    witness, other = (Reading(rabbit, layout) for _ in range(2))
    async with witness.connected() as one, other.connected() as two:
        await one.caught_up()
        await two.caught_up()
        await one.write(Kept("room", b"1", time.time()))
        await asyncio.gather(one.caught_up(), two.caught_up())
        before = one.shelf.replay("room", KEEP, None).top
        assert two.shelf.replay("room", KEEP, before).is_complete
    last = witness.partition._log.last
    assert last is not None
    # what is true of a stream that was cut is that this entry is another one
    witness.partition._log.last = last._replace(body=b"what was lost")
    with pytest.raises(UnavailableError):
        async with witness.connected():
            pytest.fail("it went on")
    async with other.connected() as two, witness.connected() as one:
        await one.caught_up()
        await two.caught_up()
        tops = [each.shelf.replay("room", KEEP, None).top for each in (one, two)]
        assert tops[0].epoch == tops[1].epoch != before.epoch
        for each in (one, two):
            assert not each.shelf.replay("room", KEEP, before).is_complete


async def test_a_stream_that_drops_faster_than_we_read_is_noticed(
    rabbit: TlsServer, prefix: str
) -> None:
    layout = Layout(BrokerUrl.parse(f"{rabbit.url}?partitions=1"), prefix, (KEEP,), 0)
    reading = Reading(rabbit, layout)
    async with reading.connected() as one:
        await one.caught_up()
        await one.write(Kept("room", b"1", time.time()))
        await one.caught_up()
        last = one._log.last
        assert last is not None
        # what is true then is that the next entry is not the next
        one._log.last = last._replace(offset=last.offset - 2)
        await one.write(Kept("room", b"2", time.time()))
        await one.caught_up()
    assert reading.heard == [b"1", b"(something is missing)", b"2"]


# -------------------------------------------------------------------------- how much


async def test_a_partition_that_is_full_is_read_before_the_first_subscribe_returns(
    rabbit: TlsServer, prefix: str
) -> None:
    url = f"{rabbit.url}?partitions=1"
    layout = streams(url, prefix)
    async with joined(url, prefix) as first:
        start = (await first.broker.replay("room", KEEP, None)).top
        await first.publish("room", b"1", KEEP)
        for _ in range(10):
            sent = [
                first.broker.publish(f"other-{number % 100}", b"x" * 300, KEEP)
                for number in range(400)
            ]
            await asyncio.gather(*map(settled, sent))
        await first.publish("room", b"2", KEEP)
        async with joined(url, prefix) as second, stranger(rabbit, layout) as other:
            began = time.monotonic()
            await second.broker.subscribe("room", KEEP)
            took = time.monotonic() - began
            assert await replayed(second, "room", start) == ([b"1", b"2"], True)
            await other.keep("room", b"3")
            await second.hears("room", b"3")  # and nothing of what was there before
    assert took < CALL_TIMEOUT


async def test_what_a_stream_dropped_is_not_claimed_and_its_epoch_is_remembered(
    rabbit: TlsServer, prefix: str
) -> None:
    """Half a megabyte in segments of 64 KiB, and four times as much is said."""
    url = f"{rabbit.url}?partitions=1"
    async with joined(url, prefix, "room", history_bytes=524_288) as reader:
        await reader.publish("room", b"1", KEEP)
        await reader.hears("room", b"1")
        start = (await reader.broker.replay("silent", KEEP, None)).top
        for _ in range(200):
            await asyncio.gather(
                *(reader.publish("other", b"x" * 1000, KEEP) for _ in range(10))
            )
        top = (await reader.broker.replay("silent", KEEP, None)).top
        assert await replayed(reader, "silent", start) == ([], True)
        async with joined(url, prefix, history_bytes=524_288) as fresh:
            assert await replayed(fresh, "silent", top) == ([], True)
            assert await replayed(fresh, "silent", start) == ([], False)
            assert await replayed(fresh, "room", reader.positions("room")[0]) == (
                [],
                False,
            )


async def test_bounds_that_are_changed_count_for_new_streams(
    rabbit: TlsServer, prefix: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with joined(rabbit.url, prefix, "room") as peer:
        await peer.publish("room", b"1", KEEP)
    caplog.clear()
    async with joined(rabbit.url, prefix, "room", history_bytes=1_000_000) as peer:
        await peer.publish("room", b"2", KEEP)
        await peer.hears("room", b"2")
    assert "with other bounds, and they stay as they are" in caplog.text


@asynccontextmanager
async def slow_worker(
    url: str, prefix: str
) -> AsyncIterator[asyncio.subprocess.Process]:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "tests.brokers.slow_worker",
        url,
        prefix,
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


async def until_told(
    process: asyncio.subprocess.Process, heard: int, interruptions: int
) -> tuple[int, int]:
    """Wait until it heard so much, and return what it says then."""
    assert process.stdout is not None
    async with asyncio.timeout(30):
        while True:
            told = json.loads(await process.stdout.readline())
            if told[0] >= heard and told[1] >= interruptions:
                return told[0], told[1]


@pytest.mark.parametrize(
    ("count", "size", "is_too_much"), [(600, 10_000, False), (900, 60_000, True)]
)
async def test_a_worker_that_reads_too_slowly_loses_the_oldest_and_hears_of_it(
    rabbit: TlsServer, prefix: str, count: int, size: int, is_too_much: bool
) -> None:
    async with (
        joined(rabbit.url, prefix) as peer,
        slow_worker(rabbit.url, prefix) as worker,
    ):
        assert worker.stdout is not None
        assert await worker.stdout.readline() == b"ready\n"
        worker.send_signal(signal.SIGSTOP)
        for start in range(0, count, 50):
            await asyncio.gather(
                *(peer.publish("room", bytes(size)) for _ in range(start, start + 50))
            )
        worker.send_signal(signal.SIGCONT)
        if not is_too_much:
            assert await until_told(worker, count, 0) == (count, 0)
            return
        least = inbox.MAX_BYTES // size
        heard, _ = await until_told(worker, least, 1)
        assert least <= heard < count
        await peer.publish("room", b"and on")
        await until_told(worker, heard + 1, 1)


async def test_what_waits_for_the_server_is_bounded(
    rabbit: TlsServer, prefix: str
) -> None:
    async with joined(rabbit.url, prefix) as peer:
        rabbit.pause()
        try:
            sent = [peer.broker.publish("room", b"x") for _ in range(MAX_WAITING)]
            with pytest.raises(UnavailableError, match="more slowly than"):
                peer.broker.publish("room", b"x")
        finally:
            rabbit.resume()
        await asyncio.gather(*map(settled, sent), return_exceptions=True)
        await peer.until(lambda: peer.broker.is_up)
        rabbit.pause()
        try:
            half = bytes(MAX_WAITING_BYTES // 2 - len(Carried("room", b"").encode()))
            sent = [peer.broker.publish("room", half) for _ in range(2)]
            with pytest.raises(UnavailableError, match="more slowly than"):
                peer.broker.publish("room", b"x")
        finally:
            rabbit.resume()
        await asyncio.gather(*map(settled, sent), return_exceptions=True)
        await peer.until(lambda: peer.broker.is_up)
        await peer.publish("room", b"x")


async def test_a_server_that_is_out_of_memory_takes_nothing_and_gives_what_it_has(
    rabbit: TlsServer, prefix: str
) -> None:
    async with joined(rabbit.url, prefix, "room") as peer:
        await rabbit.ctl("set_vm_memory_high_watermark", "absolute", "1")
        try:
            began = time.monotonic()
            with pytest.raises(UnavailableError, match="did not confirm within"):
                await peer.publish("room", b"1")
            assert time.monotonic() - began < CALL_TIMEOUT + 2
            with pytest.raises(UnavailableError, match="takes no messages: low on mem"):
                peer.broker.publish("room", b"2")
            assert not await peer.broker.ping()
            assert not peer.broker.is_up  # nobody else is heard either, or soon will be
            await peer.broker.subscribe("carried")
        finally:
            await rabbit.ctl("set_vm_memory_high_watermark", "0.4")
        async with asyncio.timeout(20):
            while not await peer.broker.ping():  # noqa: ASYNC110 - nothing tells
                await asyncio.sleep(0.1)
        await peer.publish("room", b"2", KEEP)
        await peer.until(lambda: b"2" in peer.data("room"))


async def test_a_channel_that_is_subscribed_otherwise_is_heard_so_and_once(
    rabbit: TlsServer, prefix: str
) -> None:
    async with joined(rabbit.url, prefix) as peer, joined(rabbit.url, prefix) as other:
        await peer.broker.subscribe("room")
        await peer.broker.subscribe("room", KEEP)
        await other.publish("room", b"carried")  # by both ways: it knows of no history
        await other.publish("room", b"kept", KEEP)
        await peer.hears("room", b"carried", b"kept")
        await peer.broker.replay("room", KEEP, None)
        assert peer.data("room") == [b"carried", b"kept"]


# -------------------------------------------------------------------- what others write


ODD = Basic.Properties(
    content_type="application/x-nonsense",
    content_encoding="gzip",
    headers={"x-stream-offset": "no number", "nested": {"a": [1, None]}},
    priority=9,
    expiration="60000",
)


def poison(channel: int, exchange: str, key: str) -> bytes:
    """A message with a header's name that is no UTF-8: pamqp cannot decode it."""
    table = b"\2\xff\xfe" + b"S" + (1).to_bytes(4) + b"x"
    table = len(table).to_bytes(4) + table
    header = struct.pack(">HHQH", 60, 0, 4, 1 << 13) + table
    return (
        marshal(Basic.Publish(exchange=exchange, routing_key=key), channel)
        + struct.pack(">BHI", 2, channel, len(header))
        + header
        + b"\xce"
        + marshal(ContentBody(b"oops"), channel)
    )


async def test_what_others_write_is_handed_on_or_counted(
    rabbit: TlsServer, prefix: str
) -> None:
    layout = streams(rabbit.url, prefix)
    key = stream_of(layout, "kept").key
    async with (
        joined(rabbit.url, prefix, "kept") as peer,
        connected(rabbit) as connection,
        stranger(rabbit, layout) as other,
    ):
        await peer.broker.subscribe("room")
        channel = await connection.channel()
        publish = partial(
            channel.publish, layout.exchange, properties=ODD, is_mandatory=False
        )
        publish("room", body=Carried("room", b"\xff\0").encode())
        publish("room", body=Carried("elsewhere", b"x").encode())
        publish(key, body=Carried("kept", b"").encode())
        publish(key, body=Carried("room", b"not from there").encode())
        junk = (b"", b"junk", b"c", b"k", b"m\xff", b"e" + bytes(30))
        for body in junk:
            publish(key, body=body)
            publish("room", body=body)
        publish("room", body=Kept("room", b"not there", 0).encode())
        connection.write(poison(1, layout.exchange, key))
        connection.write(poison(1, layout.exchange, "room"))
        await channel.call(Basic.Qos(prefetch_count=1))  # answered behind all that
        await other.keep("elsewhere", b"x")
        await other.keep("kept", b"in form")
        await peer.publish("room", b"and on")
        await peer.until(lambda: len(peer.heard) >= 4)
        assert peer.data("room") == [b"\xff\0", b"and on"]
        assert peer.data("kept") == [b"", b"in form"]
        assert peer.broker.dropped == 2 * len(junk) + 3
        assert peer.interruptions == []
        async with joined(rabbit.url, prefix, "kept") as fresh:
            assert fresh.broker.dropped == len(junk) + 1  # it has read all that
            await peer.publish("kept", b"and on", KEEP)
            await fresh.hears("kept", b"and on")


# ------------------------------------------------------------------------ who may what


async def test_a_user_of_one_prefix_has_no_other(
    rabbit: TlsServer, prefix: str, caplog: pytest.LogCaptureFixture
) -> None:
    """So all the other tests, whose prefix it is, do without any more rights."""
    peer = Peer(open_broker(rabbit.url, prefix=f"other-{prefix}", kept=(KEEP,)))
    await peer.broker.start(peer)
    assert not peer.broker.is_up
    await peer.broker.stop()
    assert "cannot be reached: ACCESS_REFUSED" in caplog.text


async def test_nothing_is_left_when_a_worker_stops(
    rabbit: TlsServer, prefix: str
) -> None:
    tasks = asyncio.all_tasks()
    async with joined(rabbit.url, prefix, "room") as peer:
        await peer.broker.subscribe("carried")
        assert f"{prefix}.worker." in await rabbit.ctl("list_queues", "name")
    assert f"{prefix}.worker." not in await rabbit.ctl("list_queues", "name")
    assert asyncio.all_tasks() == tasks


@pytest.fixture
def tls(rabbit: TlsServer, authority: Authority) -> str:
    """A URL by which TLS works: each test spoils one thing."""
    certificate, key = authority.issue("client")
    secret = f"{rabbit.user}:{rabbit.password}"
    files = f"ca={authority.path}&cert={certificate}&key={key}"
    return f"amqps://{secret}@localhost:{rabbit.tls_port}?{files}"


async def test_tls_both_ways(tls: str, prefix: str) -> None:
    async with joined(tls, prefix, "room") as peer:
        await peer.publish("room", b"1", KEEP)
        await peer.hears("room", b"1")


async def test_a_certificate_says_who_we_are(
    rabbit: TlsServer, tls: str, prefix: str, authority: Authority
) -> None:
    certificate, key = authority.issue(rabbit.user)
    url = (
        f"amqps://localhost:{rabbit.tls_port}"
        f"?ca={authority.path}&cert={certificate}&key={key}"
    )
    async with joined(url, prefix, "room") as peer:
        await peer.publish("room", b"1", KEEP)
        await peer.hears("room", b"1")


async def test_under_uvloop(rabbit: TlsServer, tls: str, prefix: str) -> None:
    """The event loop of the service; its transports are of other classes."""

    async def walk() -> None:
        for url in (rabbit.url, tls):
            async with joined(url, prefix, "room") as peer:
                await peer.publish("room", b"1", KEEP)
                await peer.publish("room", bytes(300_000))
                await peer.until(lambda peer=peer: len(peer.heard) >= 2)  # type: ignore[misc]
                await peer.broker.unsubscribe("room")

    await asyncio.to_thread(uvloop.run, walk())


@pytest.mark.parametrize("wrong", ["authority", "name", "no certificate"])
async def test_tls_that_is_not_as_it_should_be_is_refused(
    tls: str,
    prefix: str,
    wrong: str,
    authority: Authority,
    tmp_path_factory: pytest.TempPathFactory,
    caplog: pytest.LogCaptureFixture,
) -> None:
    if wrong == "authority":
        other = Authority(tmp_path_factory.mktemp("other"))
        tls = tls.replace(f"ca={authority.path}", f"ca={other.path}")
    elif wrong == "name":
        tls = tls.replace("localhost", "127.0.0.1")
    else:
        tls = tls.partition("&cert")[0]
    peer = Peer(open_broker(tls, prefix=prefix, kept=(KEEP,)))
    with caplog.at_level(logging.DEBUG):
        await peer.broker.start(peer)
        assert not peer.broker.is_up
        with pytest.raises(UnavailableError):
            await peer.publish("room", b"1")
        await peer.broker.stop()
    assert "cannot be reached" in caplog.text
