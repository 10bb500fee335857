"""AMQP as RabbitMQ does not speak it; and that what is read by hand is read rightly."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pamqp.base import Frame
from pamqp.commands import Basic
from pamqp.commands import Channel as ChannelMethods
from pamqp.commands import Connection as Methods
from pamqp.frame import marshal, unmarshal
from pamqp.header import ContentHeader

from authws.brokers.rabbitmq import frames, publisher, wire
from authws.brokers.rabbitmq.channel import Channel, Delivery
from authws.brokers.rabbitmq.frames import MalformedError, Received, split
from authws.brokers.rabbitmq.publisher import Publisher
from authws.brokers.rabbitmq.wire import Connection, Login
from authws.exceptions import UnavailableError

SHORT = st.text(max_size=60)
NAME = st.text("abcABC09.-_:", max_size=60)
VALUES: Any = st.recursive(
    st.integers(-(2**63), 2**63 - 1) | SHORT | st.booleans() | st.none(),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(SHORT, inner, max_size=3)
    ),
    max_leaves=6,
)


def received(data: bytes) -> Received:
    (frame,) = split(data)
    return frame


# ------------------------------------------------------------------------------- frames


@given(SHORT, st.integers(0, 2**63 - 1), st.booleans(), NAME, SHORT)
def test_a_delivery_is_read_as_pamqp_reads_it(
    consumer: str, tag: int, is_redelivered: bool, exchange: str, key: str
) -> None:
    data = marshal(Basic.Deliver(consumer, tag, is_redelivered, exchange, key), 3)
    ours, theirs = frames.read_method(received(data)), unmarshal(data)[2]
    assert isinstance(theirs, Basic.Deliver)
    assert dict(ours) == dict(theirs)


@given(
    st.integers(0, 2**40),
    st.none() | SHORT.filter(bool),
    st.dictionaries(SHORT, VALUES, max_size=3),
    st.none() | st.integers(-(2**63), 2**63 - 1),
    st.none() | SHORT.filter(bool),
)
def test_a_header_is_read_as_pamqp_reads_it(
    size: int,
    content_type: str | None,
    headers: dict[str, Any],
    offset: int | None,
    message_id: str | None,
) -> None:
    if offset is not None:
        headers[frames.OFFSET] = offset
    properties = Basic.Properties(
        content_type=content_type,
        headers=headers or None,
        delivery_mode=2,
        message_id=message_id,
    )
    data = marshal(ContentHeader(body_size=size, properties=properties), 3)
    theirs = unmarshal(data)[2]
    assert isinstance(theirs, ContentHeader)
    ours = frames.read_header(received(data))
    assert (ours.size, ours.headers) == (size, theirs.properties.headers or {})


@given(st.integers(2**32, 2**63 - 1))
def test_an_offset_as_rabbitmq_writes_it_is_read(offset: int) -> None:
    properties = Basic.Properties(headers={frames.OFFSET: offset}, delivery_mode=2)
    data = marshal(ContentHeader(body_size=1, properties=properties), 3)
    assert frames._ONLY_OFFSET in data  # the short way, and not pamqp's
    assert frames.read_header(received(data)).headers == {frames.OFFSET: offset}


@given(st.binary(max_size=300), st.integers(9, 400))
def test_a_message_is_cut_into_frames_that_are_not_too_long(
    body: bytes, max_frame: int
) -> None:
    data = frames.publish(
        3, "x", "room", Basic.Properties(), body, is_mandatory=True, max_frame=max_frame
    )
    method, header, *parts = split(data)
    assert frames.read_header(header).size == len(body)
    assert b"".join(part.payload for part in parts) == body
    assert all(len(part.data) <= max_frame for part in parts)
    assert dict(frames.read_method(method))["routing_key"] == "room"


@given(st.binary(max_size=40))
def test_any_bytes_are_frames_or_malformed(data: bytes) -> None:
    with contextlib.suppress(MalformedError):
        for frame in split(data):
            frames.read_method(frame)
    with contextlib.suppress(MalformedError):
        length = len(data).to_bytes(4)
        for kind in (frames.METHOD, frames.HEADER):
            frame = received(bytes([kind, 0, 1]) + length + data + b"\xce")
            (frames.read_header if kind == frames.HEADER else frames.read_method)(frame)


@pytest.mark.parametrize(
    "data",
    [
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        b"AMQP\0\0\x09\1",
        b"\1\0\0" + (frames.MAX_FRAME + 1).to_bytes(4) + b"x",
        b"\1\0\0\0\0\0\1xx",
    ],
)
def test_what_is_no_frame_is_malformed(data: bytes) -> None:
    with pytest.raises(MalformedError):
        list(split(data))


def test_a_frame_of_the_greatest_length_is_one() -> None:
    data = b"\3\0\1" + frames.MAX_FRAME.to_bytes(4) + bytes(frames.MAX_FRAME) + b"\xce"
    assert [frame.data for frame in split(data)] == [data]
    assert list(split(data[:-1])) == []


# ----------------------------------------------------------------------------- channels


class Wire:
    """A connection that a test holds the other end of."""

    max_frame = frames.MAX_FRAME

    def __init__(self) -> None:
        self.blocked = ""
        self.sent: list[Frame] = []
        self.ended: list[str] = []
        self.made = Channel(self, 1, is_trial=False)

    def write(self, data: bytes) -> None:
        self.sent += [
            frames.read_method(frame)
            for frame in split(data)
            if frame.kind == frames.METHOD
        ]

    def end(self, why: str) -> None:
        self.ended.append(why)

    async def channel(self) -> Channel:
        return self.made

    def says(self, *methods: Frame) -> None:
        for method in methods:
            self.made.take(received(marshal(method, 1)))


@pytest.fixture
async def other() -> Wire:
    return Wire()


async def a_publisher(other: Wire, lost: Callable[[str], None]) -> Publisher:
    made = Publisher(other, "x", lost)
    opening = asyncio.ensure_future(made.open())
    await asyncio.sleep(0)
    other.says(ChannelMethods.OpenOk())  # whatever is answered to what is asked
    await opening
    return made


async def test_answers_come_in_the_order_of_the_calls(other: Wire) -> None:
    first = other.made.call(Basic.Qos(prefetch_count=1))
    second = other.made.call(Basic.Qos(prefetch_count=2))
    first.cancel()  # who gives up takes nobody else's answer
    answers = Basic.QosOk(), Basic.ConsumeOk("x")
    other.says(*answers)
    assert isinstance(await second, Basic.ConsumeOk)


async def test_several_messages_are_confirmed_at_once(other: Wire) -> None:
    made = await a_publisher(other, pytest.fail)
    sent = [made.publish("room", b"1") for _ in range(5)]
    other.says(Basic.Ack(2), Basic.Ack(4, multiple=True), Basic.Ack(4), Basic.Nack(5))
    assert [await one for one in sent[:4]] == [None] * 4
    with pytest.raises(UnavailableError, match="could not store"):
        await sent[4]


async def test_what_is_returned_was_not_published(other: Wire) -> None:
    lost: list[str] = []
    made = await a_publisher(other, lost.append)
    sent = [made.publish("stream", b"1", must_arrive=True) for _ in range(2)]
    header = ContentHeader(body_size=0, properties=Basic.Properties(message_id="2"))
    other.says(Basic.Return(312, "NO_ROUTE", "x", "stream"))
    other.made.take(received(marshal(header, 1)))
    other.says(Basic.Ack(2, multiple=True))
    await sent[0]
    with pytest.raises(UnavailableError, match="not there"):
        await sent[1]
    assert lost == ["a stream of ours was deleted"]


async def test_what_was_given_up_still_counts_until_it_is_confirmed(
    other: Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publisher, "CALL_TIMEOUT", 0.01)
    monkeypatch.setattr(publisher, "MAX_WAITING", 1)
    made = await a_publisher(other, pytest.fail)
    with pytest.raises(UnavailableError, match="did not confirm"):
        await made.publish("room", b"1")
    with pytest.raises(UnavailableError, match="more slowly"):
        made.publish("room", b"2")
    other.says(Basic.Ack(1))
    sent = made.publish("room", b"3")
    other.says(Basic.Ack(2))
    await sent


async def test_a_channel_that_ends_ends_all_that_waits_and_the_connection(
    other: Wire,
) -> None:
    made = await a_publisher(other, pytest.fail)
    sent = made.publish("room", b"1")
    asked = other.made.call(Basic.Qos())
    other.says(ChannelMethods.Close(404, "NOT_FOUND - no exchange 'x'", 0, 0))
    for one in (sent, asked):
        with pytest.raises(UnavailableError, match="no exchange 'x'"):
            await one
    assert other.ended == ["NOT_FOUND - no exchange 'x'"]
    assert isinstance(other.sent[-1], ChannelMethods.CloseOk)


async def test_a_message_in_many_frames_is_one(other: Wire) -> None:
    heard: list[Delivery] = []
    consuming = asyncio.ensure_future(other.made.consume("q", heard.append))
    await asyncio.sleep(0)
    other.says(Basic.QosOk(), Basic.ConsumeOk("0"))
    await consuming
    for body in (b"", b"x" * 300):
        data = frames.publish(
            1, "x", "y", Basic.Properties(), body, is_mandatory=False, max_frame=100
        )
        _, *content = split(data)
        other.says(Basic.Deliver("0", 7, False, "x", "room"))
        for frame in content:
            other.made.take(frame)
    assert heard == [Delivery(7, "room", {}, b""), Delivery(7, "room", {}, b"x" * 300)]


@pytest.mark.parametrize("kind", [frames.HEADER, frames.BODY, 9])
async def test_content_without_a_message_is_malformed(other: Wire, kind: int) -> None:
    with pytest.raises(MalformedError):
        other.made.take(Received(kind, 1, bytes(20)))


# -------------------------------------------------------------------------- connections


@asynccontextmanager
async def a_server(*says: bytes) -> AsyncIterator[Login]:
    """One that says something to each thing that it hears, and then goes on silent."""

    served = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            for words in says:
                await reader.read(4096)
                writer.write(words)
            await reader.read()
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()
        served.set()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        yield Login("127.0.0.1", port, "/", "user", "secret-word", None)
        await served.wait()


def start(mechanisms: str = "PLAIN") -> bytes:
    return marshal(Methods.Start(mechanisms=mechanisms), 0)


TUNE = marshal(Methods.Tune(2047, 4096, 60), 0)
OPEN_OK = marshal(Methods.OpenOk(), 0)
REFUSED = marshal(Methods.Close(403, "ACCESS_REFUSED - no", 0, 0), 0)


@pytest.mark.parametrize(
    ("says", "why"),
    [
        ([b"HTTP/1.1 400 Bad Request\r\n\r\n"], "is no AMQP"),
        ([b"AMQP\0\0\x09\1"], "is no AMQP"),
        ([TUNE], "not what was asked"),
        ([start("AMQPLAIN")], "no login of the kind PLAIN"),
        ([start(), REFUSED], "ACCESS_REFUSED - no"),
        ([start(), TUNE, REFUSED], "ACCESS_REFUSED - no"),
        ([marshal(Basic.Ack(1), 5)], "is no AMQP"),
    ],
)
async def test_a_server_that_is_none_of_ours_is_left(
    says: Sequence[bytes], why: str
) -> None:
    lost: list[str] = []
    async with a_server(*says) as login:
        connection = Connection(lost.append)
        with pytest.raises(UnavailableError, match=why):
            await connection.open(login)
        await connection.close()
    assert len(lost) == 1
    assert "secret-word" not in repr(login) + lost[0]


async def test_frames_are_no_longer_than_the_server_takes() -> None:
    async with a_server(start(), TUNE, OPEN_OK) as login:
        connection = Connection(pytest.fail)
        await connection.open(login)
        assert connection.max_frame == 4096
        await connection.close()  # which is not answered
        with pytest.raises(UnavailableError):
            connection.write(b"x")


async def test_a_server_that_is_silent_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "BEAT_EVERY", 0.01)
    monkeypatch.setattr(wire, "SILENT_AFTER", 0.05)
    lost: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    async with a_server(start(), TUNE, OPEN_OK) as login:
        connection = Connection(lost.set_result)
        await connection.open(login)
        async with asyncio.timeout(10):
            assert await lost == "RabbitMQ is silent"
        await connection.close()
