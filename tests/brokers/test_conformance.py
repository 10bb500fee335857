"""Every promise of ``authws/brokers/base.py``, once, for all brokers."""

from __future__ import annotations

import asyncio
import logging

import pytest

from authws.brokers import open_broker
from authws.brokers.base import Broker
from authws.decisions.history import Position, Retention
from authws.exceptions import UnavailableError
from tests.brokers.peers import KEEP, Peer, settled
from tests.servers.brokers import BrokerServer

NAMES = ("lobby", "a.b", "a..b", "x:y-z_1", "dots.", "@all", "@n-0_1", "r" * 128)
"""What a channel may be called, with all that means something to some broker."""

Peers = list[Peer]
BINARY = bytes(range(256))

# ----------------------------------------------------------------------------- carrying


@pytest.mark.parametrize("keep", [None, KEEP], ids=["carried", "kept"])
@pytest.mark.parametrize("channel", NAMES)
async def test_what_is_published_reaches_every_subscriber_once(
    peers: Peers, channel: str, keep: Retention | None
) -> None:
    for peer in dict.fromkeys(peers):
        await peer.broker.subscribe(channel, keep)
    await peers[0].publish(channel, BINARY, keep)
    await peers[1].publish(channel, b"", keep)
    for peer in peers:
        await peer.until(lambda peer=peer: len(peer.data(channel)) >= 2)  # type: ignore[misc]
        assert sorted(peer.data(channel)) == [b"", BINARY]


async def test_a_channel_is_not_another_channel(peer: Peer) -> None:
    for channel in ("a", "a.b", "A", "a.c"):
        await peer.broker.subscribe(channel)
    await peer.publish("a.b", b"1")
    await peer.publish("a", b"2")
    await peer.publish("ab", b"3")
    await peer.publish("a.b.c", b"4")
    await peer.publish("a.c", b"5")
    await peer.hears("a.c", b"5")
    await peer.hears("a.b", b"1")
    await peer.hears("a", b"2")
    assert {name for name, _, _ in peer.heard} == {"a", "a.b", "a.c"}


@pytest.mark.parametrize("keep", [None, KEEP], ids=["carried", "kept"])
async def test_order_is_that_of_the_calls(peers: Peers, keep: Retention | None) -> None:
    """Also of calls that do not wait for one another."""
    first, second = peers
    await second.broker.subscribe("room", keep)
    said = [b"%d" % number for number in range(500)]
    # order is that of the calls, not of the waiting
    waiting = [first.broker.publish("room", data, keep) for data in said]
    await asyncio.gather(*(settled(one) for one in reversed(waiting)))
    await second.hears("room", *said)


async def test_order_holds_between_what_is_kept_and_what_is_only_carried(
    peers: Peers,
) -> None:
    first, second = peers
    await second.broker.subscribe("room", KEEP)
    said = [b"%d" % number for number in range(300)]
    waiting = [
        first.broker.publish("room", data, KEEP if number % 3 else None)
        for number, data in enumerate(said)
    ]
    await asyncio.gather(*map(settled, waiting))
    await second.hears("room", *said)


async def test_order_holds_between_what_is_kept_and_who_subscribes_later(
    peers: Peers,
) -> None:
    first, second = peers
    await first.publish("room", b"before", KEEP)
    await second.broker.subscribe("room", KEEP)
    await first.publish("room", b"after", KEEP)
    await second.hears("room", b"after")


async def test_all_subscribers_hear_two_publishers_each_in_their_order(
    peers: Peers,
) -> None:
    first, second = peers
    for peer in dict.fromkeys(peers):
        await peer.broker.subscribe("room", KEEP)
    for number in range(100):
        await asyncio.gather(
            first.publish("room", b"a%d" % number, KEEP),
            second.publish("room", b"b%d" % number, KEEP),
        )
    for peer in peers:
        await peer.until(lambda peer=peer: len(peer.data("room")) >= 200)  # type: ignore[misc]
        for publisher in (b"a", b"b"):
            heard = [data for data in peer.data("room") if data.startswith(publisher)]
            assert heard == [b"%s%d" % (publisher, number) for number in range(100)]
    # what is kept has one order for all
    assert first.data("room") == second.data("room")


async def test_nothing_arrives_after_unsubscribe_returned(peers: Peers) -> None:
    first, second = peers
    for keep, channel in ((None, "carried"), (KEEP, "kept")):
        await second.broker.subscribe(channel, keep)
        await first.publish(channel, b"1", keep)
        await second.hears(channel, b"1")
        await second.broker.unsubscribe(channel)
        await first.publish(channel, b"2", keep)
        await second.broker.subscribe(channel, keep)
        await first.publish(channel, b"3", keep)
        await second.hears(channel, b"1", b"3")


async def test_subscribing_follows_the_order_of_the_calls(peers: Peers) -> None:
    first, second = peers
    for _ in range(20):
        calls = [
            second.broker.subscribe("room", KEEP),
            second.broker.unsubscribe("room"),
            second.broker.subscribe("room", KEEP),
        ]
        await asyncio.gather(*(asyncio.ensure_future(call) for call in calls))
        heard = len(second.data("room"))
        await first.publish("room", b"x", KEEP)
        await second.until(lambda heard=heard: len(second.data("room")) > heard)  # type: ignore[misc]
        await second.broker.unsubscribe("room")
    assert second.data("room") == [b"x"] * 20


async def test_unsubscribing_from_what_was_never_subscribed_is_nothing(
    broker: Broker,
) -> None:
    await broker.unsubscribe("nowhere")


async def test_many_channels_are_subscribed_at_once(peers: Peers) -> None:
    first, second = peers
    names = [f"room-{number}" for number in range(300)]
    await asyncio.gather(*(second.broker.subscribe(name) for name in names))
    for name in names:
        await first.publish(name, name.encode())
    await second.until(lambda: len(second.heard) >= 300)
    # in any order: only those of one channel have one
    assert sorted(data.decode() for _, data, _ in second.heard) == sorted(names)
    assert all(channel == data.decode() for channel, data, _ in second.heard)


async def test_the_largest_message_goes_through(peers: Peers) -> None:
    """64 KiB is the default of AUTHWS_MAX_MESSAGE_BYTES; an operator may allow more."""
    first, second = peers
    await second.broker.subscribe("room", KEEP)
    big = b"x" * 512_000
    await first.publish("room", big)
    await first.publish("room", big, KEEP)
    await second.until(lambda: len(second.heard) >= 2)
    assert second.data("room") == [big, big]


# ------------------------------------------------------------------------------ keeping


async def test_what_is_kept_has_the_same_position_for_everybody(peers: Peers) -> None:
    first, second = peers
    for peer in dict.fromkeys(peers):
        await peer.broker.subscribe("room", KEEP)
    for number in range(10):
        await peers[number % 2].publish("room", b"%d" % number, KEEP)
    for peer in peers:
        await peer.hears("room", *(b"%d" % number for number in range(10)))
    positions = first.positions("room")
    assert len(positions) == 10
    assert positions == second.positions("room")
    assert len({position.epoch for position in positions}) == 1
    offsets = [position.offset for position in positions]
    assert offsets == sorted(set(offsets))


async def test_what_is_only_carried_has_no_position_and_is_not_kept(
    peer: Peer,
) -> None:
    await peer.broker.subscribe("room", KEEP)
    start = (await peer.broker.replay("room", KEEP, None)).top
    await peer.publish("room", b"kept", KEEP)
    await peer.publish("room", b"carried")
    await peer.until(lambda: len(peer.heard) >= 2)
    assert {data: position is None for _, data, position in peer.heard} == {
        b"kept": False,
        b"carried": True,
    }
    replay = await peer.broker.replay("room", KEEP, start)
    assert [data for _, data in replay.messages] == [b"kept"]


async def test_replay_returns_what_came_after_a_position(peers: Peers) -> None:
    first, second = peers
    await second.broker.subscribe("room", KEEP)
    for number in range(6):
        await first.publish("room", b"%d" % number, KEEP)
    await second.until(lambda: len(second.data("room")) >= 6)
    positions = second.positions("room")
    for peer in peers:
        for number, position in enumerate(positions):
            replay = await peer.broker.replay("room", KEEP, position)
            assert replay.is_complete
            assert replay.top == positions[-1]
            assert [data for _, data in replay.messages] == [
                b"%d" % later for later in range(number + 1, 6)
            ]
            assert [place for place, _ in replay.messages] == positions[number + 1 :]


async def test_replay_asked_without_a_position_says_where_the_channel_stands(
    peer: Peer,
) -> None:
    empty = await peer.broker.replay("room", KEEP, None)
    assert (empty.messages, empty.is_complete) == ((), True)
    await peer.publish("room", b"1", KEEP)
    replay = await peer.broker.replay("room", KEEP, empty.top)
    assert ([data for _, data in replay.messages], replay.is_complete) == ([b"1"], True)
    assert replay.top.offset > empty.top.offset


async def test_channels_keep_their_own(peers: Peers) -> None:
    first, second = peers
    start = (await second.broker.replay("one", KEEP, None)).top
    for number in range(4):
        await first.publish("one", b"1-%d" % number, KEEP)
        await first.publish("other", b"2-%d" % number, KEEP)
    replay = await second.broker.replay("one", KEEP, start)
    assert replay.is_complete
    assert [data for _, data in replay.messages] == [b"1-%d" % n for n in range(4)]


async def test_no_more_is_kept_than_was_asked_for(peer: Peer) -> None:
    await peer.broker.subscribe("room", KEEP)
    count = KEEP.messages + 5
    for number in range(count):
        await peer.publish("room", b"%d" % number, KEEP)
    await peer.until(lambda: len(peer.heard) >= count)
    positions = peer.positions("room")
    lost = await peer.broker.replay("room", KEEP, positions[0])
    assert not lost.is_complete
    assert len(lost.messages) <= KEEP.messages
    whole = await peer.broker.replay("room", KEEP, positions[-KEEP.messages])
    assert whole.is_complete
    assert len(whole.messages) == KEEP.messages - 1


async def test_nothing_is_kept_longer_than_was_asked_for(url: str, prefix: str) -> None:
    brief = Retention(messages=20, seconds=1)
    peer = Peer(open_broker(url, prefix=prefix, kept=(brief,)))
    await peer.start()
    await peer.broker.subscribe("room", brief)
    await peer.publish("room", b"1", brief)
    await peer.publish("room", b"2", brief)
    await peer.until(lambda: len(peer.heard) >= 2)
    first, _ = peer.positions("room")
    kept = await peer.broker.replay("room", brief, first)
    assert (kept.is_complete, len(kept.messages)) == (True, 1)
    async with asyncio.timeout(10):
        while (await peer.broker.replay("room", brief, first)).is_complete:  # noqa: ASYNC110 - nothing tells
            await asyncio.sleep(0.1)
    # it went on, and what comes now is whole again
    await peer.publish("room", b"3", brief)
    await peer.until(lambda: len(peer.heard) >= 3)
    third = peer.positions("room")[-1]
    await peer.publish("room", b"4", brief)
    again = await peer.broker.replay("room", brief, third)
    assert ([data for _, data in again.messages], again.is_complete) == ([b"4"], True)
    await peer.broker.stop()


@pytest.mark.parametrize("offset", [0, 3, 10**12])
async def test_a_position_of_another_epoch_is_never_whole(
    peer: Peer, offset: int
) -> None:
    for number in range(5):
        await peer.publish("room", b"%d" % number, KEEP)
    replay = await peer.broker.replay("room", KEEP, Position("another", offset))
    assert not replay.is_complete


async def test_a_position_that_never_was_is_not_whole(peer: Peer) -> None:
    await peer.publish("room", b"1", KEEP)
    top = (await peer.broker.replay("room", KEEP, None)).top
    never = Position(top.epoch, top.offset + 1000)
    assert not (await peer.broker.replay("room", KEEP, never)).is_complete


async def test_what_is_kept_is_there_for_who_was_not(peers: Peers) -> None:
    """Nobody was subscribed anywhere when it was published."""
    first, second = peers
    start = (await first.broker.replay("room", KEEP, None)).top
    await first.publish("room", b"1", KEEP)
    replay = await second.broker.replay("room", KEEP, start)
    assert [data for _, data in replay.messages] == [b"1"]


async def test_all_that_was_published_by_then_is_in_a_replay(peers: Peers) -> None:
    """A publish that has ended well is with the broker, whoever asks for it."""
    first, second = peers
    start = (await first.broker.replay("room", KEEP, None)).top
    for number in range(15):
        await first.publish("room", b"%d" % number, KEEP)
        replay = await second.broker.replay("room", KEEP, start)
        assert len(replay.messages) == number + 1


# ------------------------------------------------------------- several on one broker


async def test_two_deployments_on_one_broker_do_not_hear_each_other(
    url: str, kind: str
) -> None:
    if kind == "memory":
        return  # it has no other process to hear
    ours = Peer(open_broker(url, prefix="ours", kept=(KEEP,)))
    theirs = Peer(open_broker(url, prefix="ours-too", kept=(KEEP,)))
    try:
        for peer in (ours, theirs):
            await peer.start()
            await peer.broker.subscribe("room", KEEP)
        start = (await theirs.broker.replay("room", KEEP, None)).top
        await ours.publish("room", b"1")
        await ours.publish("room", b"2", KEEP)
        await theirs.publish("room", b"theirs")
        await ours.hears("room", b"1", b"2")
        await theirs.hears("room", b"theirs")
        assert not (await theirs.broker.replay("room", KEEP, start)).messages
    finally:
        for peer in (ours, theirs):
            await peer.broker.stop()


# ----------------------------------------------------------------------------- the end


async def test_a_broker_that_was_stopped_refuses(peer: Peer, kind: str) -> None:
    assert await peer.broker.ping()
    await peer.broker.stop()
    assert not peer.broker.is_up
    assert not await peer.broker.ping()
    if kind != "memory":
        with pytest.raises(UnavailableError):
            await peer.publish("room", b"1")


async def test_the_password_is_nowhere(
    url: str,
    prefix: str,
    server: BrokerServer | None,
    caplog: pytest.LogCaptureFixture,
) -> None:
    if server is None:
        return  # it has none
    password = url.split("@")[0].rpartition(":")[2]
    assert len(password) >= 8
    wrong = url.replace(password, "not-the-password")
    with caplog.at_level(logging.DEBUG):
        for given in (url, wrong):
            peer = Peer(open_broker(given, prefix=prefix, kept=(KEEP,)))
            await peer.broker.start(peer)
            assert peer.broker.is_up is (given is url)
            assert password not in repr(peer.broker) + str(vars(peer.broker))
            if given is wrong:
                with pytest.raises(UnavailableError) as refused:
                    await peer.publish("room", b"1")
                assert "not-the-password" not in str(refused.value)
            await peer.broker.stop()
    assert password not in caplog.text
    assert "not-the-password" not in caplog.text
