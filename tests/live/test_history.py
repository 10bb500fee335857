"""What a room keeps for those who were away: over real sockets, on the embedded broker.

What somebody heard who was there all the time is the truth that everybody who comes
back is held against: each message once, in order, and the same in every member.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import socket
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed

from authws.brokers.memory import MemoryBroker
from authws.live.connection import Connection
from tests.foreign import SERVERS
from tests.grants import Ending, Grant, ending, enter, grant, hear, knock, say, until
from tests.running import STRATEGIES, Service, running

pytestmark = pytest.mark.asyncio(loop_scope="module")

Body = dict[str, Any]
NUMBERS = itertools.count()
UNLIMITED = {"message_rate": 0, "byte_rate": 0, "max_connections_per_user": 0}
REASONS = {
    "query-param": ("token_expired", "token_revoked"),
    "first-message": ("token_expired", "token_revoked"),
    "session-cookie": ("session_expired", "session_revoked"),
}


@asynccontextmanager
async def serving_rooms(path: Path, **settings: Any) -> AsyncIterator[Service]:
    async with running(path, **{**UNLIMITED, **settings}) as service:
        for name in ("alice", "bob"):
            await service.add_user(name)
        yield service
        await until(lambda: not service.house.hub.connections)
        await until(lambda: not service.house.hub.rooms)
        assert [r.getMessage() for r in service.records if r.exc_info] == []


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=SERVERS)
async def anywhere(
    tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> AsyncIterator[Service]:
    """Under our own server, and under those that are not ours."""
    path = tmp_path_factory.mktemp(request.param)
    async with serving_rooms(path, served_by=SERVERS[request.param]) as service:
        yield service


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def service(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Service]:
    async with serving_rooms(tmp_path_factory.mktemp("history")) as service:
        yield service


@pytest.fixture
def room() -> str:
    """A room of the test's own: its history is its own as well."""
    return f"room-{next(NUMBERS)}"


class Witness:
    """Says things in a room, and hears all that is said there."""

    def __init__(self, peer: ClientConnection, room: str, start: Body) -> None:
        self.heard: list[Body] = []
        """Every message of the room since it came."""
        self.start = start
        """Where the room stood when it came."""
        self._peer = peer
        self._room = room

    async def says(self, *texts: Any) -> list[Body]:
        """Say things; return them as the room's members hear them."""
        before = len(self.heard)
        for number, text in enumerate(texts, 1):
            await say(self._peer, type="publish", room=self._room, data=text)
            if number % 8 == 0:  # not more at once than an outbox holds
                await self._hears(before + number)
        await self._hears(before + len(texts))
        assert [m["data"] for m in self.heard[before:]] == list(texts)
        return self.heard[before:]

    async def _hears(self, count: int) -> None:
        while len(self.heard) < count:
            heard = await hear(self._peer)
            assert heard["type"] in ("message", "presence"), heard
            if heard["type"] == "message":
                self.heard.append(heard)


@asynccontextmanager
async def witness(service: Service, room: str) -> AsyncIterator[Witness]:
    bob = await grant(service, "query-param", "bob")
    async with enter(service, "/ws/query-param", bob, max_queue=None) as peer:
        joined = await join(peer, room)
        yield Witness(peer, room, position(joined) if "epoch" in joined else {})


async def join(peer: ClientConnection, room: str, since: Any = None) -> Body:
    """Join, and return the answer, whatever it is."""
    more = {} if since is None else {"since": since}
    await say(peer, type="join", room=room, **more)
    while (answer := await hear(peer))["type"] not in ("joined", "error"):
        assert answer["type"] == "presence", answer  # of other rooms
    return answer


async def up_to_now(peer: ClientConnection) -> list[Body]:
    """The messages that are there: the answer to a ping comes behind them."""
    await say(peer, type="ping", id="now")
    messages = []
    while (heard := await hear(peer)) != {"type": "pong", "id": "now"}:
        if heard["type"] == "message":
            messages.append(heard)
        else:
            assert heard["type"] == "presence", heard
    return messages


async def recovers(
    service: Service, room: str, since: Body, *, who: Grant | None = None
) -> tuple[bool, list[Body]]:
    """Come back for a moment; return whether all follows, and what does."""
    who = who or await grant(service, "query-param")
    async with enter(service, f"/ws/{who.strategy}", who) as peer:
        joined = await join(peer, room, since)
        assert joined["type"] == "joined", joined
        assert isinstance(joined["recovered"], bool)
        return joined["recovered"], await up_to_now(peer)


def position(message: Body) -> Body:
    return {"epoch": message["epoch"], "offset": message["offset"]}


def offsets(messages: Sequence[Body]) -> list[int]:
    return [message["offset"] for message in messages]


# -------------------------------------------------------------------------- coming back


@pytest.mark.parametrize("strategy", STRATEGIES)
async def test_every_message_has_a_position_that_is_the_same_for_everybody(
    anywhere: Service, strategy: str, room: str
) -> None:
    alice = await grant(anywhere, strategy)
    async with (
        witness(anywhere, room) as truth,
        enter(anywhere, f"/ws/{strategy}", alice) as peer,
    ):
        assert position(await join(peer, room)) == truth.start
        said = await truth.says(1, "two", {"three": 3})
        assert await up_to_now(peer) == said
        assert {m["epoch"] for m in said} == {truth.start["epoch"]}
        places = [truth.start["offset"], *offsets(said)]
        assert places == sorted(set(places))
        assert position(await join(peer, room)) == position(said[-1])


@pytest.mark.parametrize("strategy", STRATEGIES)
async def test_who_comes_back_hears_what_was_missed_once_and_in_order(
    anywhere: Service, strategy: str, room: str
) -> None:
    alice = await grant(anywhere, strategy)
    path = f"/ws/{strategy}"
    async with witness(anywhere, room) as truth:
        async with enter(anywhere, path, alice) as peer:
            await join(peer, room)
            (*_, last) = await truth.says("heard", "and this")
            assert (await up_to_now(peer))[-1] == last
            peer.transport.abort()
        missed = await truth.says(*range(50))
        async with enter(anywhere, path, alice) as peer:
            joined = await join(peer, room, position(last))
            assert joined == {
                "type": "joined",
                "room": room,
                "members": ["alice", "bob"],
                "recovered": True,
                **position(last),
            }
            live = await truth.says("live")
            assert await up_to_now(peer) == [*missed, *live]


async def test_nothing_missed_is_recovered_as_well(service: Service, room: str) -> None:
    async with witness(service, room) as truth:
        assert await recovers(service, room, truth.start) == (True, [])
        (last,) = await truth.says("heard")
        assert await recovers(service, room, position(last)) == (True, [])
        assert await recovers(service, room, truth.start) == (True, [last])


async def test_a_position_is_the_rooms_and_not_a_connections(
    service: Service, room: str
) -> None:
    """Each of a user's tabs has its own, and any of them is good for any other."""
    async with witness(service, room) as truth:
        said = await truth.says(*range(6))
        alice = await grant(service, "first-message")
        for number in (0, 3, 5):
            found = await recovers(service, room, position(said[number]), who=alice)
            assert found == (True, said[number + 1 :])


async def test_a_member_that_joins_again_is_brought_nothing(
    service: Service, room: str
) -> None:
    alice = await grant(service, "query-param")
    async with (
        witness(service, room) as truth,
        enter(service, "/ws/query-param", alice) as peer,
    ):
        start = position(await join(peer, room))
        said = await truth.says(1, 2)
        assert await up_to_now(peer) == said
        again = await join(peer, room, start)
        assert "recovered" not in again
        assert position(again) == position(said[-1])
        assert await up_to_now(peer) == []


async def test_an_empty_room_keeps_what_was_said_while_somebody_was_there(
    service: Service, room: str
) -> None:
    async with witness(service, room) as truth:
        said = await truth.says(1, 2, 3)
    await until(lambda: room not in service.house.hub.rooms)
    assert await recovers(service, room, position(said[0])) == (True, said[1:])


async def test_who_came_while_it_was_brought_is_told_behind_it(
    service: Service, room: str
) -> None:
    await service.add_user("carol")
    alice = await grant(service, "query-param")
    carol = await grant(service, "query-param", "carol")
    async with witness(service, room) as truth:
        await truth.says(*BIG)
        async with narrow(service, "query-param", alice.credential) as (peer, kept):
            await say(peer, type="join", room=room, since=truth.start)
            await until(lambda: not kept._outbox.has_room)
            async with enter(service, "/ws/query-param", carol) as other:
                assert (await join(other, room))["members"] == ["bob", "carol"]
                heard = [await hear(peer) for _ in range(len(BIG) + 2)]
        assert heard[0]["members"] == ["alice", "bob"]
        assert heard[1:-1] == truth.heard
        assert heard[-1] == {
            "type": "presence",
            "room": room,
            "subject": "carol",
            "event": "joined",
        }


# ------------------------------------------------------------------- how far it reaches


@pytest.mark.parametrize(("missed", "is_whole"), [(100, True), (101, False)])
@pytest.mark.parametrize("strategy", STRATEGIES)
async def test_a_hundred_messages_are_kept_and_one_more_is_not(
    service: Service, strategy: str, room: str, missed: int, is_whole: bool
) -> None:
    alice = await grant(service, strategy)
    async with witness(service, room) as truth:
        said = await truth.says(*range(missed))
        brought = said if is_whole else []
        found = await recovers(service, room, truth.start, who=alice)
        assert found == (is_whole, brought)
        async with enter(service, f"/ws/{strategy}", alice) as peer:
            joined = await join(peer, room, truth.start)
            assert joined["recovered"] is is_whole
            # else the peer stands where the room does, and goes on from there
            stands_at = truth.start if is_whole else position(said[-1])
            assert position(joined) == stands_at
            live = await truth.says("live")
            assert await up_to_now(peer) == [*brought, *live]


async def test_messages_are_kept_for_so_many_seconds(tmp_path: Path) -> None:
    seconds = 2.0
    async with (
        serving_rooms(tmp_path, history=f"*=100/{seconds:.0f}") as service,
        witness(service, "lobby") as truth,
    ):
        alice = await grant(service, "query-param")
        before = time.monotonic()
        said = await truth.says("kept for a while")
        after = time.monotonic()
        seen = set()
        async with asyncio.timeout(30):
            while False not in seen:
                asked = time.monotonic()
                is_whole, brought = await recovers(
                    service, "lobby", truth.start, who=alice
                )
                answered = time.monotonic()
                seen.add(is_whole)
                if is_whole:
                    assert brought == said
                    assert asked - after <= seconds
                else:
                    assert brought == []
                    assert answered - before > seconds
        assert seen == {True, False}
        # what was forgotten is no gap for who heard it
        assert await recovers(service, "lobby", position(said[0])) == (True, [])


async def test_the_first_rule_whose_pattern_covers_a_room_decides(
    tmp_path: Path,
) -> None:
    rules = "private-*=0,lobby=5/300,l*=2/300,*=3/300"
    kept = {"lobby": 5, "lobby-2": 2, "lounge": 2, "hall": 3, "LOBBY": 3, "private": 3}
    async with serving_rooms(tmp_path, history=rules) as service:
        for name, count in kept.items():
            async with witness(service, name) as truth:
                said = await truth.says(*range(count))
                assert await recovers(service, name, truth.start) == (True, said)
                await truth.says("one more")
                assert await recovers(service, name, truth.start) == (False, [])
        async with witness(service, "private-1") as truth:
            (said_there,) = await truth.says("unkept")
            assert truth.start == {}
            assert "epoch" not in said_there
            assert "offset" not in said_there


@pytest.mark.parametrize("history", ["*=0", "lobby=0,*=100/300"])
async def test_a_room_that_keeps_nothing_says_so(tmp_path: Path, history: str) -> None:
    async with serving_rooms(tmp_path, history=history) as service:
        async with witness(service, "lobby") as truth:
            (said,) = await truth.says("unkept")
            assert not {"epoch", "offset"} & said.keys()
            for since in ({"epoch": "any", "offset": 0}, {"epoch": "", "offset": 7}):
                assert await recovers(service, "lobby", since) == (False, [])
        assert broker(service)._shelf.size == 0


async def test_histories_together_are_bounded_and_the_silent_room_gives_way(
    tmp_path: Path,
) -> None:
    most = 1_000_000
    async with (
        serving_rooms(tmp_path, history_bytes=most) as service,
        witness(service, "silent") as silent,
        witness(service, "busy") as busy,
    ):
        shelf = broker(service)._shelf
        kept = await silent.says(*("x" * 30_000 for _ in range(10)))
        sizes = [shelf.size]
        async with asyncio.timeout(60):
            while sizes[-1] > max(sizes[:-1], default=0):  # nothing has given way yet
                await busy.says("y" * 30_000)
                sizes.append(shelf.size)
                if sizes[-1] > sizes[-2]:
                    found = await recovers(service, "silent", silent.start)
                    assert found == (True, kept)
        one = sizes[1] - sizes[0]
        assert max(sizes) <= most < sizes[-2] + one
        assert await recovers(service, "silent", silent.start) == (False, [])
        assert await recovers(service, "busy", busy.start) == (True, busy.heard)
        # and what is said there from now on is kept again
        later = await silent.says("later")
        assert await recovers(service, "silent", position(kept[-1])) == (True, later)
        assert await recovers(service, "silent", position(kept[-2])) == (False, [])
        assert shelf.size <= most


async def test_one_room_alone_is_bounded_too(tmp_path: Path) -> None:
    most = 100_000
    async with (
        serving_rooms(tmp_path, history_bytes=most) as service,
        witness(service, "lobby") as truth,
    ):
        largest = 0
        for number in range(20):
            await truth.says(f"{number}" * 15_000)
            largest = max(largest, broker(service)._shelf.size)
        assert 0 < largest <= most
        assert await recovers(service, "lobby", truth.start) == (False, [])
        last = position(truth.heard[-1])
        assert await recovers(service, "lobby", last) == (True, [])


def broker(service: Service) -> MemoryBroker:
    assert isinstance(service.house.broker, MemoryBroker)
    return service.house.broker


# -------------------------------------------------------------- positions that are none


@pytest.mark.parametrize(
    "since",
    [
        {"epoch": "e"},
        {"offset": 1},
        {"epoch": 1, "offset": 1},
        {"epoch": "e", "offset": "1"},
        {"epoch": "e", "offset": -1},
        {"epoch": "e", "offset": 1.5},
        {"epoch": "e", "offset": 2**63},
        {"epoch": "e", "offset": 10**400},
        {"epoch": "e", "offset": True},
        {"epoch": "e" * 65, "offset": 1},
        {"epoch": ["e"], "offset": 1},
        {"epoch": None, "offset": None},
        {},
        [],
        "e:1",
        7,
        True,
    ],
    ids=str,
)
async def test_what_is_no_position_is_malformed_and_joins_nothing(
    service: Service, room: str, since: Any
) -> None:
    alice = await grant(service, "query-param")
    async with (
        witness(service, room) as truth,
        enter(service, "/ws/query-param", alice) as peer,
    ):
        refused = await join(peer, room, since)
        assert (refused["type"], refused["slug"]) == ("error", "malformed")
        await truth.says("not for who is not in")
        assert await up_to_now(peer) == []
        assert (await join(peer, room))["type"] == "joined"


@pytest.mark.parametrize(
    "wrong",
    [
        {"epoch": "another"},
        {"epoch": ""},
        {"epoch": "e" * 64},
        {"epoch": "\ud83d\ude00' OR 1=1 --\n\0"},
        {"offset": 2**63 - 1},
        {"offset": 10_000},
    ],
    ids=str,
)
async def test_a_position_that_never_was_recovers_nothing(
    service: Service, room: str, wrong: Body
) -> None:
    async with witness(service, room) as truth:
        await truth.says(1, 2, 3)
        since = {**truth.start, **wrong}
        assert await recovers(service, room, since) == (False, [])


async def test_no_position_is_the_same_as_none_given(
    service: Service, room: str
) -> None:
    alice = await grant(service, "query-param")
    async with (
        witness(service, room) as truth,
        enter(service, "/ws/query-param", alice) as peer,
    ):
        await truth.says("before")
        await say(peer, type="join", room=room, since=None)
        assert "recovered" not in await hear(peer)
        assert await up_to_now(peer) == []


# ---------------------------------------------------------------------- who may read it


@pytest.mark.parametrize("strategy", STRATEGIES)
async def test_a_renewal_takes_the_history_away_and_gives_it_back(
    service: Service, strategy: str, room: str
) -> None:
    """By scopes alone: what was missed meanwhile is for who may join again."""
    alice = await grant(service, strategy)
    async with (
        witness(service, room) as truth,
        enter(service, f"/ws/{strategy}", alice) as peer,
    ):
        await join(peer, room)
        (last,) = await truth.says("heard")
        assert await up_to_now(peer) == [last]
        await renew(peer, alice.ticket(scopes=["join:elsewhere"]))
        assert await hear(peer) == {"type": "left", "room": room}
        missed = await truth.says("missed", "and this")
        assert await up_to_now(peer) == []
        refused = await join(peer, room, position(last))
        assert (refused["type"], refused["slug"]) == ("error", "forbidden")
        assert await up_to_now(peer) == []
        await renew(peer, alice.ticket())
        assert (await join(peer, room, position(last)))["recovered"] is True
        assert await up_to_now(peer) == missed


async def renew(peer: ClientConnection, token: str) -> None:
    await say(peer, type="auth", token=token)
    assert (await hear(peer))["type"] == "auth_ok"


@pytest.mark.parametrize("way", ["expiry", "revocation"])
@pytest.mark.parametrize("strategy", STRATEGIES)
async def test_what_was_missed_is_sent_no_longer_than_its_reader_may_read(
    service: Service, strategy: str, way: str, room: str
) -> None:
    """It ends in the middle of what it is brought, with its close frame next."""
    life = 3.0 if way == "expiry" else 900.0
    async with witness(service, room) as truth:
        said = await truth.says(*BIG)
        alice = await grant(service, strategy, ttl=life)
        credential = alice.cookie or alice.access(ttl=life)
        async with narrow(service, strategy, credential) as (peer, kept):
            kept.limits = replace(kept.limits, close_timeout=30)
            await say(peer, type="join", room=room, since=truth.start)
            await until(lambda: not kept._outbox.has_room)
            if way == "revocation":
                await alice.end()
            await until(lambda: not kept.is_open)
            heard, end = await to_the_end(peer)
        assert end == (1008, REASONS[strategy][way == "revocation"])
        assert heard == said[: len(heard)]
        assert len(heard) < len(said)
        assert await ending(present(service, strategy, alice)) == end


# ---------------------------------------------------------------- sizes, speeds, crowds


async def test_what_is_brought_is_byte_for_byte_what_members_heard(
    service: Service, room: str
) -> None:
    texts = (
        r'{ "a" : [1.0, 1e3, -0, 9007199254740993], "b":"\u00e9é\/\ud83d\ude00😀" }',
        r'"\u0000\u2028\\u2028 and \u007f"',
        "null",
        f'"{"é" * 20_000}"',
    )
    alice = await grant(service, "query-param")
    async with enter(service, "/ws/query-param", alice) as peer:
        start = position(await join(peer, room))
        for text in texts:
            await peer.send(f'{{"type":"publish","room":"{room}","data":{text}}}')
        heard = [await asyncio.wait_for(peer.recv(), 10) for _ in texts]
    async with enter(service, "/ws/query-param", alice) as peer:
        assert (await join(peer, room, start))["recovered"] is True
        assert [await asyncio.wait_for(peer.recv(), 10) for _ in texts] == heard
    for text, message in zip(texts, heard, strict=True):
        assert f'"data":{text},' in str(message)


@pytest.mark.parametrize("strategy", STRATEGIES)
async def test_the_largest_message_is_kept_and_a_larger_one_is_none(
    service: Service, strategy: str, room: str
) -> None:
    frame = json.dumps({"type": "publish", "room": room, "data": ""})
    most = service.house.settings.max_message_bytes - len(frame)
    alice = await grant(service, strategy)
    async with witness(service, room) as truth:
        largest = await truth.says(*("x" * most for _ in range(5)))
        async with enter(service, f"/ws/{strategy}", alice) as peer:
            await join(peer, room)
            too_large = {"type": "publish", "room": room, "data": "x" * (most + 1)}
            with suppress(ConnectionClosed):
                await say(peer, **too_large)
            assert await ending(peer) == (1009, "message_too_big")
        assert await recovers(service, room, truth.start, who=alice) == (True, largest)


@pytest.mark.parametrize("strategy", STRATEGIES)
async def test_a_slow_reader_is_brought_all_that_is_said_and_not_ended(
    anywhere: Service, strategy: str, room: str
) -> None:
    """Several times what its outbox holds: it is read for, not thrown at."""
    async with witness(anywhere, room) as truth:
        await truth.says(*BIG)
        alice = await grant(anywhere, strategy)
        async with narrow(anywhere, strategy, alice.credential) as (peer, kept):
            await say(peer, type="join", room=room, since=truth.start)
            await until(lambda: not kept._outbox.has_room)
            await truth.says(*range(20))
            heard = [await hear(peer)]
            assert heard[0]["recovered"] is True
            most = 0
            while len(heard) <= len(BIG) + 20:
                most = max(most, kept._outbox.size)
                heard.append(await hear(peer))
                await asyncio.sleep(0.002)  # that is what is slow about it
                if len(heard) % 25 == 0:
                    await truth.says("meanwhile")
            heard += await up_to_now(peer)
            assert [m for m in heard if m["type"] == "message"] == truth.heard
            assert kept.is_open
            assert most <= kept.limits.outbox_bytes < sum(len(text) for text in BIG) / 4


@pytest.mark.parametrize("strategy", STRATEGIES)
async def test_a_reader_that_stalls_is_ended_and_hurts_nobody(
    anywhere: Service, strategy: str, room: str
) -> None:
    async with witness(anywhere, room) as truth:
        said = await truth.says(*BIG)
        alice = await grant(anywhere, strategy)
        async with narrow(anywhere, strategy, alice.credential) as (peer, kept):
            kept.limits = replace(kept.limits, send_timeout=0.3, close_timeout=30)
            await say(peer, type="join", room=room, since=truth.start)
            await until(lambda: not kept._outbox.has_room)
            stalled_at = time.monotonic()
            await truth.says("meanwhile")
            await until(lambda: not kept.is_open)
            assert time.monotonic() - stalled_at > 0.2
            assert kept.limit == "outbox"
            heard, end = await to_the_end(peer)
        assert end == (1008, "slow_consumer")
        assert heard == said[: len(heard)]
        await until(lambda: not anywhere.house.hub.rooms[room].joining)
        await truth.says("afterwards")


async def test_many_come_back_at_once_while_others_speak(tmp_path: Path) -> None:
    count = 200
    async with (
        serving_rooms(tmp_path, history="*=1000/300") as service,
        witness(service, "lobby") as truth,
    ):
        alice = await grant(service, "query-param")
        last = dict(truth.start)

        async def come_back(number: int) -> list[Body]:
            async with enter(service, "/ws/query-param", alice) as peer:
                joined = await join(peer, "lobby", last)
                assert joined["recovered"] is True, number
                heard: list[Body] = []
                while not heard or heard[-1]["data"] != "the end":
                    message = await hear(peer)
                    if message["type"] == "message":
                        heard.append(message)
                return heard

        await truth.says(*range(200))
        coming = [asyncio.create_task(come_back(number)) for number in range(count)]
        while len(service.house.hub.rooms["lobby"].members) <= count:
            assert not any(task.done() for task in coming)
            await truth.says("meanwhile")
        await truth.says("the end")
        for heard in await asyncio.gather(*coming):
            assert heard == truth.heard
        assert service.house.hub.rooms.recovered["whole"] == count


BIG = tuple(f"{number} " + "x" * 60_000 for number in range(100))
"""Six times what an outbox holds."""


@asynccontextmanager
async def narrow(
    service: Service, strategy: str, credential: str
) -> AsyncIterator[tuple[ClientConnection, Connection]]:
    """Come in over a line that holds little; yield both ends of it."""
    before = set(service.house.hub.connections)
    with socket.socket() as line:
        line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        line.setblocking(False)
        address = ("127.0.0.1", service.port)
        await asyncio.get_running_loop().sock_connect(line, address)
        async with enter(
            service,
            f"/ws/{strategy}",
            credential,
            sock=line,
            ping_interval=None,
            max_queue=1,
        ) as peer:
            (new,) = set(service.house.hub.connections) - before
            yield peer, service.house.hub.connections[new]


async def to_the_end(peer: ClientConnection) -> tuple[list[Body], Ending]:
    """Read to the end; return the messages, and how it ended."""
    heard = []
    with suppress(ConnectionClosed):
        while True:
            message = await hear(peer)
            if message["type"] == "message":
                heard.append(message)
    return heard, (peer.close_code or 0, peer.close_reason or "")


def present(service: Service, strategy: str, who: Grant) -> Any:
    return knock(service, f"/ws/{strategy}", who.cookie or who.access())
