"""Every deadline of a connection, to the moment, on a clock that is moved by hand.

What a real socket sees of them is in ``tests/live``; here hours pass in milliseconds,
and just before is told from just after.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import msgspec
import pytest

from authws.decisions import messages
from authws.exceptions import ConnectionClosed
from authws.live.connection import Connection, ConnectionLimits
from authws.live.door import DoorLimits, DoorStyle
from tests.engine import Engine, Peer
from tests.manual_clock import settle

STRATEGIES = ("query-param", "first-message", "session-cookie")
MOMENT = 0.001


@asynccontextmanager
async def engine(**options: Any) -> AsyncIterator[Engine]:
    engine = Engine(**options)
    await engine.start()
    try:
        yield engine
    finally:
        await engine.stop()


def expired(strategy: str) -> tuple[int, str]:
    return 1008, "session_expired" if strategy == "session-cookie" else "token_expired"


async def join(peer: Peer, room: str = "lobby") -> None:
    peer.say(type="join", room=room)
    await settle()
    assert peer.of_type("joined")


# ------------------------------------------------------------------------------- expiry


@pytest.mark.parametrize("strategy", STRATEGIES)
async def test_silent_connection_ends_at_its_deadline_and_not_before(
    strategy: str,
) -> None:
    async with engine() as house:
        peer = await house.enter(strategy, house.issue(ttl=900))
        await house.clock.advance(900 - MOMENT)
        assert peer.ending is None
        await house.clock.advance(MOMENT)
        assert peer.ending == expired(strategy)


@pytest.mark.parametrize("strategy", STRATEGIES)
async def test_busy_connection_hears_and_says_nothing_from_its_deadline_on(
    strategy: str,
) -> None:
    async with engine() as house:
        peer = await house.enter(strategy, house.issue(ttl=10))
        bob = await house.enter(token=house.issue("bob", session="s2"))
        await join(bob)
        await join(peer)
        for number in range(20):
            peer.say(type="publish", room="lobby", data=number)
            bob.say(type="publish", room="lobby", data=number)
            await house.clock.advance(0.5)
        assert peer.ending == expired(strategy)
        said = [m["data"] for m in bob.of_type("message") if m["from"] == "alice"]
        assert said == list(range(20))  # the last one half a second before the end
        heard = len(peer.heard)
        bob.say(type="publish", room="lobby", data="later")
        await settle()
        assert len(peer.heard) == heard


async def test_a_late_timer_lets_nothing_through() -> None:
    """The loop was busy: the deadline has passed, and its timer has not come yet."""
    async with engine() as house:
        peer = await house.enter(token=house.issue(ttl=10))
        bob = await house.enter(token=house.issue("bob", session="s2"))
        await join(bob)
        await join(peer)
        house.clock.elapsed += 11  # time passes, and nobody calls back
        bob.say(type="publish", room="lobby", data="too late to hear")
        peer.say(type="publish", room="lobby", data="too late to say")
        await settle()
        assert not peer.of_type("message")
        assert peer.ending == (1008, "token_expired")
        assert [m["data"] for m in bob.of_type("message")] == ["too late to hear"]


async def test_what_came_in_time_and_is_taken_too_late_is_not_said() -> None:
    """Between the look at a message's deadline and the stamp on it, time passes."""
    async with engine() as house:
        peer = await house.enter(token=house.issue(ttl=10))
        bob = await house.enter(token=house.issue("bob", session="s2"))
        await join(bob)
        await join(peer)
        (connection,) = house.hub.of_subject("alice")
        house.clock.elapsed += 10
        late = messages.Publish(room="lobby", data=msgspec.Raw(b'"late"'))
        house.hub.rooms.publish(connection, late)
        await settle()
        assert peer.ending == (1008, "token_expired")
        assert not bob.of_type("message")


async def test_connection_that_does_not_read_ends_at_its_deadline_too() -> None:
    async with engine() as house:
        peer = await house.enter(token=house.issue(ttl=10))
        bob = await house.enter(token=house.issue("bob", session="s2"))
        await join(peer)
        await join(bob)
        peer.reads.clear()
        bob.say(type="publish", room="lobby", data="on its way for ever")
        await house.clock.advance(10 - MOMENT)
        assert list(house.hub.of_subject("alice"))
        await house.clock.advance(MOMENT)
        assert not list(house.hub.of_subject("alice"))
        assert bob.of_type("presence")[-1]["event"] == "left"
        assert peer.ending == (1008, "token_expired")
        assert not peer.of_type("message")


# ---------------------------------------------------------------------- notice, renewal


@pytest.mark.parametrize(
    ("ttl", "ahead"), [(900, 60), (120, 60), (100, 50), (1, 0.5)], ids=str
)
async def test_notice_comes_a_minute_ahead_or_at_half_the_time(
    ttl: float, ahead: float
) -> None:
    async with engine() as house:
        peer = await house.enter(token=house.issue(ttl=ttl))
        await house.clock.advance(ttl - ahead - MOMENT)
        assert not peer.of_type("auth_expiring")
        await house.clock.advance(2 * MOMENT)
        (notice,) = peer.of_type("auth_expiring")
        assert notice["expires_at"] == peer.of_type("auth_ok")[0]["expires_at"]
        await house.clock.advance(ahead)
        assert len(peer.of_type("auth_expiring")) == 1


async def test_no_notice_where_it_is_off() -> None:
    async with engine(limits=ConnectionLimits(expiry_notice=0)) as house:
        peer = await house.enter(token=house.issue(ttl=100))
        await house.clock.advance(100)
        assert not peer.of_type("auth_expiring")
        assert peer.ending == (1008, "token_expired")


@pytest.mark.parametrize("strategy", STRATEGIES)
async def test_renewal_moves_the_deadline_and_its_notice(strategy: str) -> None:
    async with engine() as house:
        peer = await house.enter(strategy, house.issue(ttl=100))
        await house.clock.advance(90)
        peer.say(type="auth", token=house.issue(ttl=200))
        await house.clock.advance(200 - MOMENT)
        assert peer.ending is None
        assert len(peer.of_type("auth_expiring")) == 2
        assert len(peer.of_type("auth_ok")) == 2
        await house.clock.advance(MOMENT)
        assert peer.ending == expired(strategy)


async def test_renewal_under_way_at_the_deadline_comes_too_late() -> None:
    async with engine() as house:
        peer = await house.enter(token=house.issue(ttl=10))
        house.authority.way_back.clear()  # believed in time, and heard of too late
        peer.say(type="auth", token=house.issue(ttl=200))
        await house.clock.advance(10)
        house.authority.way_back.set()
        await settle()
        assert peer.ending == (1008, "token_expired")
        assert len(peer.of_type("auth_ok")) == 1


async def test_use_of_the_session_moves_its_connections_only() -> None:
    async with engine() as house:
        mine = await house.enter("session-cookie", house.issue(ttl=900, session="s1"))
        other = await house.enter("session-cookie", house.issue(ttl=900, session="s2"))
        token = await house.enter("query-param", house.issue(ttl=900, session="s1"))
        await house.clock.advance(400)  # before the notice: nothing need be said
        house.hub.extend_session("s1", house.clock.now() + 900)
        await house.clock.advance(500)
        assert (other.ending, token.ending) == (
            (1008, "session_expired"),
            (1008, "token_expired"),
        )
        assert mine.ending is None
        assert len(mine.of_type("auth_ok")) == 1
        assert not mine.of_type("auth_expiring")
        await house.clock.advance(350)
        assert mine.of_type("auth_expiring")
        house.hub.extend_session("s1", house.clock.now() + 900)
        await settle()
        until = [welcome["expires_at"] for welcome in mine.of_type("auth_ok")]
        assert until == sorted(set(until))
        assert len(until) == 2


async def test_a_session_is_never_cut_short_by_its_use() -> None:
    async with engine() as house:
        peer = await house.enter("session-cookie", house.issue(ttl=100))
        house.hub.extend_session("s1", house.clock.now() + 5)
        await house.clock.advance(50)
        assert peer.ending is None


# ---------------------------------------------------------------------- the other waits


async def test_stranger_has_one_absolute_deadline() -> None:
    async with engine(auth_timeout=5.0) as house:
        peer = house.knock("first-message", house.issue())
        await settle()
        counts = [house.door.strangers.inside]
        await house.clock.advance(5 - MOMENT)
        assert peer.ending is None
        await house.clock.advance(2 * MOMENT)
        counts.append(house.door.strangers.inside)
        assert counts == [1, 0]
        assert peer.ending == (1008, "auth_timeout")


async def test_a_credential_that_takes_too_long_to_verify_is_too_late() -> None:
    async with engine(auth_timeout=5.0) as house:
        house.authority.gate.clear()
        token = house.issue()
        peer = house.knock("first-message", token)
        await settle()
        peer.say(type="auth", token=token)
        await house.clock.advance(5.1)
        assert peer.ending == (1008, "auth_timeout")


# over the wire it is our own server that cuts it off: tests/live/test_quarantine.py
@pytest.mark.parametrize("way", ["asgi"], indirect=True)
async def test_peer_that_does_not_take_its_close_frame_is_cut_off_after_a_second() -> (
    None
):
    async with engine() as house:
        peer = await house.enter()
        peer.takes_close_frames = False
        peer.reads.clear()
        peer.say(type="ping")
        await settle()
        house.hub.revoke_session("s1", house.clock.now())
        await house.clock.advance(1 - MOMENT)
        assert house.hub.connections
        await house.clock.advance(MOMENT)
        assert not house.hub.connections


async def test_handler_waits_for_a_slow_peer_as_long_as_it_may() -> None:
    limits = ConnectionLimits(outbox_messages=4, send_timeout=10)
    async with engine(limits=limits) as house:
        peer = await house.enter()
        (connection,) = house.hub.connections.values()
        peer.reads.clear()
        sending = asyncio.create_task(_send_many(connection))
        await house.clock.advance(10 - MOMENT)
        assert connection.is_open
        await house.clock.advance(2 * MOMENT)
        assert connection.ending is not None
        assert connection.ending.reason == "slow_consumer"
        assert connection.limit == "outbox"
        await sending


async def _send_many(connection: Connection) -> None:
    with suppress(ConnectionClosed):
        while True:
            await connection.send("x")


@pytest.mark.parametrize(
    ("limits", "message", "burst"),
    [
        ({"message_rate": 2.0}, {"type": "ping"}, 4),
        (
            {"message_rate": 0.0, "byte_rate": 100.0, "max_message_bytes": 100},
            {"type": "ping", "id": "x" * 24},
            4,
        ),
    ],
    ids=["messages", "bytes"],
)
async def test_what_was_spent_comes_back_with_time(
    limits: Any, message: dict[str, Any], burst: int
) -> None:
    async with engine(limits=ConnectionLimits(**limits)) as house:
        peer = await house.enter()
        for _ in range(burst):
            peer.say(**message)
        await settle()
        assert (len(peer.of_type("pong")), peer.ending) == (burst, None)
        await house.clock.advance(1.0)
        for _ in range(burst // 2):
            peer.say(**message)
        await settle()
        assert peer.ending is None
        peer.say(**message)
        await settle()
        assert peer.ending == (1008, "rate_limited")


async def test_handshakes_come_back_with_time_as_well() -> None:
    async with engine(door_limits=DoorLimits(handshake_rate=0.5)) as house:
        await house.enter()
        refused = house.knock("query-param", house.issue())
        await settle()
        assert not refused.is_accepted
        await house.clock.advance(2)
        await house.enter()


# ----------------------------------------------------------------------- the wall clock


@pytest.mark.parametrize("strategy", STRATEGIES)
async def test_wall_clock_set_forward_ends_what_is_over_by_it(strategy: str) -> None:
    async with engine() as house:
        peer = await house.enter(strategy, house.issue(ttl=900))
        house.clock.wall_offset = 3600
        house.hub.check_deadlines()
        await settle()
        assert peer.ending == expired(strategy)


async def test_wall_clock_set_back_lets_a_token_live_as_long_as_it_says() -> None:
    async with engine() as house:
        peer = await house.enter(token=house.issue(ttl=900))
        house.clock.wall_offset = -600
        house.hub.check_deadlines()
        await house.clock.advance(1500 - MOMENT)
        assert peer.ending is None
        await house.clock.advance(MOMENT)
        assert peer.ending == (1008, "token_expired")


async def test_a_strangers_deadline_is_relative_and_heeds_no_wall_clock() -> None:
    async with engine(auth_timeout=5.0) as house:
        peer = house.knock("first-message", house.issue())
        await settle()
        house.clock.wall_offset = -3600
        await house.clock.advance(5 + MOMENT)
        assert peer.ending == (1008, "auth_timeout")


# ------------------------------------------------------------------------------ restart


async def test_farewells_of_a_restart_are_spread_evenly() -> None:
    async with engine() as house:
        peers = [
            await house.enter(token=house.issue(session=f"s{number}"))
            for number in range(600)
        ]
        draining = asyncio.create_task(house.hub.end_all(10.0))
        ended: Counter[int] = Counter()
        for tick in range(40):  # 200 a second: three seconds
            before = sum(peer.ending is not None for peer in peers)
            await house.clock.advance(0.1)
            ended[tick] = sum(peer.ending is not None for peer in peers) - before
        await draining
        assert {peer.ending for peer in peers} == {(1012, "restart")}
        assert max(ended.values()) <= 30
        assert sum(ended.values()) == 600
        hints = [peer.of_type("restarting")[0]["retry_after"] for peer in peers]
        assert 1 <= min(hints) < 1.5
        assert 3.5 < max(hints) <= 4.0  # a second, and the three that it took


async def test_farewells_are_over_in_time_however_many_they_are() -> None:
    async with engine() as house:
        peers = [
            await house.enter(token=house.issue(session=f"s{number}"))
            for number in range(400)
        ]
        draining = asyncio.create_task(house.hub.end_all(0.5))
        await house.clock.advance(0.5)
        assert draining.done()
        assert {peer.ending for peer in peers} == {(1012, "restart")}


async def test_what_waits_goes_out_before_the_farewell() -> None:
    async with engine() as house:
        peer = await house.enter()
        await join(peer)
        for number in range(5):
            peer.say(type="publish", room="lobby", data=number, id=number)
        await settle()
        await house.hub.end_all(1.0)
        await settle()
        assert [message["id"] for message in peer.of_type("ack")] == [0, 1, 2, 3, 4]
        assert [m["data"] for m in peer.of_type("message")] == [0, 1, 2, 3, 4]
        assert peer.heard[-1]["type"] == "restarting"
        assert peer.ending == (1012, "restart")


async def test_an_echo_is_told_nothing_but_the_close_frame() -> None:
    async with engine() as house:
        style = DoorStyle(announce=False, renewable=False)
        peer = house.knock("query-param", house.issue(ttl=100), style)
        await house.clock.advance(90)
        await house.hub.end_all(1.0)
        await settle()
        assert (peer.heard, peer.ending) == ([], (1012, "restart"))
