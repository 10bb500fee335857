"""What stands in a partition, and what is made of it; no server."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from authws.brokers import open_broker
from authws.brokers.rabbitmq.layout import MIN_SEGMENT_BYTES, Layout
from authws.brokers.rabbitmq.log import Entry, StreamLog
from authws.brokers.rabbitmq.records import (
    Carried,
    Epoch,
    Kept,
    Mark,
    Record,
    decode,
)
from authws.brokers.rabbitmq.rounds import Rounds
from authws.brokers.urls import BrokerUrl
from authws.decisions.history import Position, Retention
from authws.exceptions import ConfigurationError, UnavailableError
from tests.manual_clock import ManualClock

KEEP = Retention(messages=3, seconds=60)
NAMES = st.text("abcXYZ09_.:-@", min_size=1, max_size=130)


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def log(clock: ManualClock) -> StreamLog:
    return StreamLog(KEEP, 1_000_000, clock)


def read(log: StreamLog, *records: Record, at: int = 0) -> None:
    for offset, record in enumerate(records, at):
        log.take(Entry(offset, record.encode()))


def replayed(log: StreamLog, channel: str, since: Position) -> tuple[list[bytes], bool]:
    replay = log.shelf.replay(channel, KEEP, since)
    return [data for _, data in replay.messages], replay.is_complete


# ----------------------------------------------------------------------------- records


@given(NAMES, st.binary(), st.floats(0, 2**38))
def test_a_message_is_read_as_it_was_written(
    channel: str, data: bytes, at: float
) -> None:
    read = decode(Kept(channel, data, at).encode())
    assert isinstance(read, Kept)
    assert (read.channel, read.data) == (channel, data)
    assert abs(read.at - at) < 0.002


@given(NAMES, st.binary())
def test_what_is_only_carried_is_read_as_it_was_written(
    channel: str, data: bytes
) -> None:
    assert decode(Carried(channel, data).encode()) == Carried(channel, data)


@given(NAMES, NAMES | st.just(""), st.integers(0, 2**63))
def test_an_epoch_and_a_mark_are_read_as_they_were_written(
    epoch: str, ends: str, seen: int
) -> None:
    for record in (Epoch(epoch, ends, seen), Mark(epoch)):
        assert decode(record.encode()) == record


@given(
    st.binary()
    | st.builds(
        lambda kind, rest: kind + rest,
        st.sampled_from((b"c", b"k", b"m", b"e")),
        st.binary(),
    )
)
def test_any_bytes_are_read_or_are_none_of_ours(entry: bytes) -> None:
    decode(entry)


@pytest.mark.parametrize(
    "entry",
    [
        b"",
        b"x",
        b"c",
        b"c\0data",
        b"c\5room",
        b"c\1\xff",
        b"k",
        b"k" + bytes(8) + b"\5room",
        b"k" + bytes(8) + b"\0",
        b"k" + b"\xff" * 8 + b"\4roomdata",
        b"k" + bytes(8) + b"\1\xff",
        b"m\xff",
        b"e" + bytes(8) + b"\0",
        b"e" + bytes(8) + b"\1a\xff",
    ],
)
def test_what_is_cut_or_has_no_name_is_none_of_ours(entry: bytes) -> None:
    assert decode(entry) is None


# --------------------------------------------------------------------------- the stream


def test_messages_before_the_first_word_of_an_epoch_are_in_it(
    log: StreamLog, clock: ManualClock
) -> None:
    read(log, Kept("a", b"1", clock.now()), Epoch("first", "", 0))
    assert log.epoch == "first"
    assert replayed(log, "a", Position("first", 0)) == ([b"1"], True)


def test_what_is_only_carried_is_not_kept(log: StreamLog) -> None:
    read(log, Epoch("e", "", 0), Carried("a", b"1"), at=1)
    assert replayed(log, "a", Position("e", 2)) == ([], True)


def test_the_first_of_two_epochs_is_right(log: StreamLog) -> None:
    read(log, Mark("x"), Epoch("first", "", 0), Epoch("second", "", 0))
    assert log.epoch == "first"


def test_an_epoch_ends_with_who_names_it(log: StreamLog, clock: ManualClock) -> None:
    message = Kept("a", b"1", clock.now())
    read(log, Mark("x"), Epoch("first", "", 0), message, Epoch("second", "first", 2))
    assert log.epoch == "second"
    assert replayed(log, "a", Position("first", 0)) == ([], False)
    assert replayed(log, "a", Position("second", 3)) == ([], False)
    assert replayed(log, "a", Position("second", 4)) == ([], True)
    read(log, Epoch("third", "first", 3), at=4)
    assert log.epoch == "second"


def test_an_epoch_of_another_stream_of_this_name_counts_for_nothing(
    log: StreamLog,
) -> None:
    read(log, Mark("x"), Epoch("stale", "", 1000), Epoch("own", "", 0))
    assert log.epoch == "own"


def test_what_came_before_the_first_entry_is_not_known(
    log: StreamLog, clock: ManualClock
) -> None:
    """The stream has dropped its oldest segments."""
    message = Kept("a", b"1", clock.now())
    read(log, message, Epoch("e", "", 0), at=100)
    assert replayed(log, "a", Position("e", 99)) == ([b"1"], False)
    assert replayed(log, "a", Position("e", 100)) == ([b"1"], True)
    assert replayed(log, "silent", Position("e", 99)) == ([], False)
    assert replayed(log, "silent", Position("e", 100)) == ([], True)


def test_what_lies_before_a_gap_is_not_known(
    log: StreamLog, clock: ManualClock
) -> None:
    message = Kept("a", b"1", clock.now())
    read(log, Epoch("e", "", 0), message, at=1)
    assert log.follows(Entry(3, b""))
    assert log.follows(Entry(4, b""))  # a segment ended
    assert not log.follows(Entry(5, b""))
    read(log, message, at=5)
    assert replayed(log, "a", Position("e", 3)) == ([b"1"], False)
    assert replayed(log, "a", Position("e", 5)) == ([b"1"], True)
    assert replayed(log, "silent", Position("e", 3)) == ([], False)


def test_where_a_silent_channel_stands_is_where_the_stream_does(
    log: StreamLog, clock: ManualClock
) -> None:
    read(log, Epoch("e", "", 0), *[Kept("loud", b"x", clock.now())] * 3, at=1)
    top = log.shelf.replay("silent", KEEP, None).top
    assert top == log.position == Position("e", 5)
    read(log, Kept("silent", b"1", clock.now()), at=5)
    assert replayed(log, "silent", top) == ([b"1"], True)


def test_a_message_is_as_old_as_its_publisher_says(
    log: StreamLog, clock: ManualClock
) -> None:
    now = clock.now()
    old, young = Kept("a", b"old", now - 61), Kept("a", b"young", now - 59)
    read(log, Epoch("e", "", 0), old, young, Kept("a", b"ahead", now + 9), at=1)
    assert replayed(log, "a", Position("e", 2)) == ([b"young", b"ahead"], False)
    clock.elapsed += 2
    assert replayed(log, "a", Position("e", 3)) == ([b"ahead"], False)
    assert replayed(log, "a", Position("e", 4)) == ([b"ahead"], True)


def test_how_long_nobody_said_the_epoch_is_counted(log: StreamLog) -> None:
    read(log, Mark("x"), Epoch("e", "", 0))
    assert log.bytes_since_epoch == 0
    read(log, Mark("x"), Epoch("other", "", 0), at=2)
    assert log.bytes_since_epoch > 0
    read(log, Epoch("e", "", 0), at=4)
    assert log.bytes_since_epoch == 0


# --------------------------------------------------------------------------- the layout


def test_what_is_published_where_it_is_not_known_goes_to_each_amount_of_history() -> (
    None
):
    other = Retention(messages=1, seconds=1)
    both = Layout(BrokerUrl.parse("amqp://u:p@h"), "app", (KEEP, other), 0)
    place = both.place_of("room")
    keys = [both.streams[keep][place].key for keep in (KEEP, other)]
    assert both.keys_of("room") == keys
    assert both.keys_of("@all") == []


def layout(url: str = "amqp://u:p@h", history_bytes: int = 8_000_000) -> Layout:
    return Layout(BrokerUrl.parse(url), "app", (KEEP,), history_bytes)


def test_a_channel_has_its_place_in_one_stream() -> None:
    names = {stream.name for stream in layout().streams[KEEP]}
    assert len(names) == 8
    assert {layout().place_of(f"room-{n}") for n in range(200)} == set(range(8))
    others = layout("amqp://h?partitions=3").streams[KEEP]
    assert names.isdisjoint(stream.name for stream in others)


@pytest.mark.parametrize(
    ("history_bytes", "segment"),
    [(0, 1_048_576), (64_000_000_000, 1_048_576), (1000, MIN_SEGMENT_BYTES)],
)
def test_segments_are_small_enough_to_be_dropped(
    history_bytes: int, segment: int
) -> None:
    stream = layout(history_bytes=history_bytes).streams[KEEP][0]
    assert stream.segment_bytes == segment
    assert ("x-max-length-bytes" in stream.arguments) == (history_bytes > 0)


@pytest.mark.parametrize("given", ["0", "65", "-1", "many", "٣"])
def test_a_number_of_partitions_that_is_none_is_refused(given: str) -> None:
    with pytest.raises(ConfigurationError, match="partitions is a number from 1 to 64"):
        layout(f"amqp://h?partitions={given}")


@pytest.mark.parametrize("given", ["1", "64"])
def test_a_number_of_partitions_is_taken(given: str) -> None:
    assert len(layout(f"amqp://h?partitions={given}").streams[KEEP]) == int(given)


def test_who_names_nobody_to_log_in_as_is_told() -> None:
    """Not ``guest``, whom RabbitMQ knows from the first start on."""
    with pytest.raises(ConfigurationError, match="wants a user and a password"):
        open_broker("amqp://127.0.0.1")


# ------------------------------------------------------------------------------- rounds


async def no_pause() -> None:
    pass


async def test_many_who_wait_share_a_round_that_began_after_they_came() -> None:
    runs, begun, gate = 0, asyncio.Event(), asyncio.Event()

    async def run() -> None:
        nonlocal runs
        runs += 1
        begun.set()
        await gate.wait()

    rounds = Rounds(run, no_pause)
    first = asyncio.create_task(rounds.wait())
    await begun.wait()
    late = [asyncio.create_task(rounds.wait()) for _ in range(100)]
    await asyncio.sleep(0)
    late[0].cancel()  # who gives up takes nothing from the others
    gate.set()
    await asyncio.gather(first, *late[1:])
    assert runs == 2


async def test_a_round_that_fails_fails_for_all_and_the_next_is_tried() -> None:
    results = iter([UnavailableError("gone"), None])

    async def run() -> None:
        result = next(results)
        if result is not None:
            raise result

    rounds = Rounds(run, no_pause)
    failed = await asyncio.gather(rounds.wait(), rounds.wait(), return_exceptions=True)
    assert [type(one) for one in failed] == [UnavailableError] * 2
    await rounds.wait()
