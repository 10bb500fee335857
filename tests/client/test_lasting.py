"""A client that comes back: what it hears, held against what was said, one by one."""

from __future__ import annotations

import asyncio
import json
import random
import signal
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from websockets.asyncio.client import ClientConnection

from authws.brokers.base import Replay
from authws.client import (
    Ack,
    Client,
    ClientError,
    EndedError,
    Event,
    Failure,
    Joined,
    LastingConnection,
    Left,
    Lost,
    Message,
    Restarting,
    Resync,
    Strategy,
    Welcome,
    lasting,
)
from authws.close_codes import Retry
from authws.exceptions import UnavailableError
from tests.daemon import serve, users
from tests.running import PASSWORD, Service, free_port, running
from tests.servers.proxy import Proxy, proxy

PATIENCE = 30.0
ALL = "*=5000/300"


@pytest.fixture(autouse=True)
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Come back sooner than a client should in earnest."""
    monkeypatch.setattr(lasting, "FIRST_DELAY", 0.02)
    monkeypatch.setattr(lasting, "LONGEST_DELAY", 0.1)
    monkeypatch.setattr(lasting, "JOIN_AGAIN_AFTER", 0.1)


class Listener:
    """Listens for as long as it lasts, and keeps what it is told."""

    def __init__(self, connection: LastingConnection) -> None:
        self.connection = connection
        self.heard: list[Event | Lost] = []
        self._task = asyncio.create_task(self._listen())

    async def _listen(self) -> None:
        async for event in self.connection.events():
            self.heard.append(event)

    def of(self, *kinds: type[Any]) -> list[Any]:
        return [event for event in self.heard if isinstance(event, kinds)]

    def said(self, room: str = "lobby") -> list[Any]:
        return [m.data for m in self.of(Message) if m.room == room]

    async def until(self, condition: Callable[[], object]) -> None:
        """Listen on until something holds."""
        async with asyncio.timeout(PATIENCE):
            while not condition():
                assert not self._task.done(), self._task
                await asyncio.sleep(0.005)

    async def is_back(self, times: int = 1) -> None:
        """Listen on until it is back, and in its rooms again, so many times."""
        await self.until(lambda: len(self.of(Welcome)) >= times)
        before = self.heard.index(self.of(Welcome)[times - 1])
        await self.until(
            lambda: any(isinstance(e, Joined) for e in self.heard[before:])
        )

    async def ended(self) -> ClientError:
        """Wait for the end; return the error that it is told by."""
        async with asyncio.timeout(PATIENCE):
            (error,) = await asyncio.gather(self._task, return_exceptions=True)
        assert isinstance(error, ClientError), error
        return error

    async def stop(self) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        await self.connection.close()


class Speaker:
    """Somebody else in the room, over a line that is not cut."""

    def __init__(self, peer: ClientConnection) -> None:
        self._peer = peer

    async def says(self, *texts: Any, room: str = "lobby") -> None:
        """Say things, and wait until the server has taken the last."""
        for text in texts:
            message = {"type": "publish", "room": room, "data": text, "id": "said"}
            await self._peer.send(json.dumps(message))
        acks = 0
        async with asyncio.timeout(PATIENCE):
            while acks < len(texts):
                acks += json.loads(await self._peer.recv()) == {
                    "type": "ack",
                    "id": "said",
                }


@asynccontextmanager
async def speaking(service: Service, *rooms: str) -> AsyncIterator[Speaker]:
    async with await service.connect("query-param", "bob", max_queue=None) as peer:
        for room in rooms or ("lobby",):
            await peer.send(json.dumps({"type": "join", "room": room}))
        yield Speaker(peer)


@asynccontextmanager
async def listening(
    origin: str, *rooms: str, strategy: Strategy = Strategy.FIRST_MESSAGE
) -> AsyncIterator[Listener]:
    async with Client(origin) as client:
        if strategy is Strategy.SESSION_COOKIE:
            await client.open_session("alice", PASSWORD)
        else:
            await client.log_in("alice", PASSWORD)
        listener = Listener(await client.stay_connected(strategy))
        try:
            for room in rooms:
                await listener.connection.join(room)
            await listener.until(lambda: len(listener.of(Joined)) == len(rooms))
            yield listener
        finally:
            await listener.stop()


@asynccontextmanager
async def cuttable(
    tmp_path: Path, **settings: Any
) -> AsyncIterator[tuple[Service, Proxy]]:
    """A service, and a way to it that can be cut."""
    port = free_port()
    async with proxy(f"http://127.0.0.1:{port}") as line:
        given = {
            "message_rate": 0,
            "byte_rate": 0,
            "history": ALL,
            "allowed_origins": origin(line),
            **settings,
        }
        async with running(tmp_path, port=port, **given) as service:
            for name in ("alice", "bob"):
                await service.add_user(name)
            yield service, line
            line.cut()


def origin(line: Proxy) -> str:
    return f"http://{line.address}:{line.port}"


# --------------------------------------------------------------------- nothing is lost


@pytest.mark.parametrize("strategy", Strategy)
async def test_nothing_is_lost_doubled_or_out_of_order_however_often_it_is_cut(
    tmp_path: Path, strategy: Strategy
) -> None:
    count, cuts = 1500, 8
    chance = random.Random(f"cut {strategy}")
    async with (
        cuttable(tmp_path) as (service, line),
        speaking(service) as bob,
        listening(origin(line), "lobby", strategy=strategy) as alice,
    ):
        speaking_on = asyncio.create_task(speak_on(bob, count))
        for number in range(1, cuts + 1):
            heard = len(alice.said())
            await alice.until(lambda heard=heard: len(alice.said()) > heard)  # type: ignore[misc]
            if number % 2:
                line.cut_after(chance.randrange(1, 5000))
            else:
                line.cut_once()
            await alice.is_back(number)
        await speaking_on
        await alice.until(lambda: count - 1 in alice.said())
        assert alice.said() == list(range(count))
        assert len(alice.of(Lost)) >= cuts
        assert [e.recovered for e in alice.of(Joined)] == [
            None,
            *(True for _ in alice.of(Joined)[1:]),
        ]
        assert alice.of(Resync) == []


async def speak_on(speaker: Speaker, count: int) -> None:
    """Say the numbers up to ``count``, over some seconds."""
    for first in range(0, count, 10):
        await speaker.says(*range(first, first + 10))
        await asyncio.sleep(0.01)


@pytest.mark.parametrize(("missed", "is_recovered"), [(100, True), (101, False)])
async def test_the_history_reaches_so_far_and_no_further(
    tmp_path: Path, missed: int, is_recovered: bool
) -> None:
    async with (
        cuttable(tmp_path, history="*=100/300") as (service, line),
        speaking(service) as bob,
        listening(origin(line), "lobby") as alice,
    ):
        await bob.says("before")
        await alice.until(lambda: alice.said() == ["before"])
        line.cut()
        await alice.until(lambda: alice.of(Lost))
        await bob.says(*range(missed))
        line.mend()
        await alice.is_back()
        await bob.says("after")
        await alice.until(lambda: "after" in alice.said())
        assert alice.of(Joined)[-1].recovered is is_recovered
        brought = list(range(missed)) if is_recovered else []
        assert alice.said() == ["before", *brought, "after"]


async def test_each_room_is_brought_from_where_it_stood(tmp_path: Path) -> None:
    async with (
        cuttable(tmp_path, history="plain=0,*=100/300") as (service, line),
        speaking(service, "lobby", "hall", "plain") as bob,
        listening(origin(line), "lobby", "hall", "plain") as alice,
    ):
        for room in ("lobby", "hall", "plain"):
            await bob.says(1, 2, room=room)
        await alice.until(lambda: len(alice.of(Message)) == 6)
        line.cut()
        await bob.says(3, 4)
        await bob.says(3, room="hall")
        await bob.says(3, room="plain")
        line.mend()
        await alice.until(lambda: len(alice.of(Joined)) == 6)
        recovered = {e.room: e.recovered for e in alice.of(Joined)[3:]}
        # where nothing is kept, nobody can say that nothing was missed
        assert recovered == {"lobby": True, "hall": True, "plain": False}
        await bob.says("now", room="plain")
        await alice.until(lambda: "now" in alice.said("plain"))
        assert alice.said("lobby") == [1, 2, 3, 4]
        assert alice.said("hall") == [1, 2, 3]
        assert alice.said("plain") == [1, 2, "now"]


async def test_a_position_from_an_earlier_life_is_where_it_begins(
    tmp_path: Path,
) -> None:
    async with cuttable(tmp_path) as (service, line), speaking(service) as bob:
        async with listening(origin(line), "lobby") as alice:
            await bob.says(1, 2, 3)
            await alice.until(lambda: alice.said() == [1, 2, 3])
            kept = alice.of(Message)[-1].position
        await bob.says(4, 5)
        async with listening(origin(line)) as alice:
            await alice.connection.join("lobby", since=kept)
            await alice.until(lambda: len(alice.said()) == 2)
            assert alice.of(Joined)[0].recovered is True
            assert alice.said() == [4, 5]


async def test_a_new_process_has_another_epoch_and_nothing_to_bring(
    tmp_path: Path,
) -> None:
    """Killed, so that nobody is told: the embedded broker's history dies with it."""
    await users(tmp_path, "alice")
    async with serve(tmp_path) as first:
        port = first.port
        async with listening(first.origin, "lobby") as alice:
            for number in range(3):
                await alice.connection.publish("lobby", number)
            await alice.until(lambda: alice.said() == [0, 1, 2])
            first.send(signal.SIGKILL)
            await first.ended()
            async with serve(tmp_path, port=port):
                await alice.is_back()
                for number in range(3, 6):
                    await alice.connection.publish("lobby", number)
                await alice.until(lambda: 5 in alice.said())
                assert alice.said() == [0, 1, 2, 3, 4, 5]
                before, after = alice.of(Joined)
                assert after.recovered is False
                assert after.position.epoch != before.position.epoch


async def test_a_restart_is_come_back_from_when_the_server_said(
    tmp_path: Path,
) -> None:
    await users(tmp_path, "alice")
    async with serve(tmp_path) as first:
        port = first.port
        async with listening(first.origin, "lobby") as alice:
            first.send()
            await alice.until(lambda: alice.of(Lost))
            (told,) = alice.of(Restarting)
            lost = alice.of(Lost)[0]
            assert lost.retry_after == told.retry_after
            assert lost.error.ending.code == 1012
            await first.ended()
            async with serve(tmp_path, port=port):
                await alice.is_back()


# ---------------------------------------------------------------- what is not promised


async def test_who_left_is_brought_nothing(tmp_path: Path) -> None:
    async with (
        cuttable(tmp_path) as (service, line),
        speaking(service, "lobby", "hall") as bob,
        listening(origin(line), "lobby", "hall") as alice,
    ):
        await bob.says(1)
        await alice.until(lambda: alice.said() == [1])
        await alice.connection.leave("lobby")
        await alice.until(lambda: alice.of(Left))
        await bob.says(2)
        line.cut_once()
        await alice.is_back()
        await bob.says(3)
        assert [e.room for e in alice.of(Joined)[2:]] == ["hall"]
        await alice.connection.join("lobby")
        await alice.until(lambda: len(alice.of(Joined)) == 4)
        assert alice.of(Joined)[-1].recovered is None
        await bob.says(4)
        await alice.until(lambda: 4 in alice.said())
        assert alice.said() == [1, 4]


async def test_rooms_are_joined_and_left_while_it_is_away(tmp_path: Path) -> None:
    async with (
        cuttable(tmp_path) as (service, line),
        speaking(service, "lobby", "hall") as bob,
        listening(origin(line), "lobby") as alice,
    ):
        line.cut()
        await alice.until(lambda: alice.of(Lost))
        await alice.connection.leave("lobby")
        await alice.connection.join("hall")
        await bob.says("missed", room="hall")
        line.mend()
        await alice.is_back()
        assert [(e.room, e.recovered) for e in alice.of(Joined)[1:]] == [("hall", None)]
        await bob.says("heard", room="hall")
        await alice.until(lambda: alice.said("hall") == ["heard"])


async def test_what_is_said_while_it_is_away_is_refused_and_not_said_later(
    tmp_path: Path,
) -> None:
    async with (
        cuttable(tmp_path) as (_, line),
        listening(origin(line), "lobby") as alice,
    ):
        line.cut()
        await alice.until(lambda: alice.of(Lost))
        for saying in (
            alice.connection.publish("lobby", "unsaid"),
            alice.connection.ping(),
            alice.connection.authenticate("x"),
        ):
            with pytest.raises(ClientError) as refused:
                await saying
            assert refused.value.retry is Retry.BACKOFF
        assert alice.connection.welcome is None
        line.mend()
        await alice.is_back()
        await alice.connection.publish("lobby", "said")
        await alice.until(lambda: alice.said())
        assert alice.said() == ["said"]


async def test_a_room_whose_scope_is_gone_is_left_and_the_others_are_brought(
    tmp_path: Path,
) -> None:
    async with (
        cuttable(tmp_path) as (service, line),
        speaking(service, "lobby", "hall") as bob,
        listening(origin(line), "lobby", "hall") as alice,
    ):
        line.cut()
        await alice.until(lambda: alice.of(Lost))
        await service.call(grant_only(service, "alice", "join:hall"))
        await bob.says("secret")
        await bob.says("open", room="hall")
        line.mend()
        await alice.until(lambda: alice.said("hall"))
        assert [e.slug for e in alice.of(Failure)] == ["forbidden"]
        assert [e.room for e in alice.of(Left)] == ["lobby"]
        assert [(e.room, e.recovered) for e in alice.of(Joined)[2:]] == [("hall", True)]
        assert alice.said() == []


async def grant_only(service: Service, name: str, *scopes: str) -> None:
    await service.house.users.set_scopes(name, scopes)
    service.house.records.evict_subject(name)  # as it is re-read, only at once


async def test_a_broker_that_is_away_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with (
        cuttable(tmp_path) as (service, line),
        speaking(service, "lobby") as bob,
        listening(origin(line), "lobby") as alice,
    ):
        await bob.says(1)
        await alice.until(lambda: alice.said() == [1])
        line.cut()
        await alice.until(lambda: alice.of(Lost))
        await bob.says(2, 3)
        broker = service.house.broker
        replay = broker.replay

        async def fail(*_: Any) -> Replay:
            raise UnavailableError("away")

        monkeypatch.setattr(broker, "replay", fail)
        line.mend()
        await alice.until(lambda: len(alice.of(Failure)) >= 3)
        assert {e.slug for e in alice.of(Failure)} == {"unavailable"}
        monkeypatch.setattr(broker, "replay", replay)
        await alice.until(lambda: alice.said() == [1, 2, 3])
        assert [e.recovered for e in alice.of(Joined)] == [None, True]
        assert len(alice.of(Welcome)) == 1  # the connection itself was good


async def test_a_publish_that_the_broker_did_not_take_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with (
        cuttable(tmp_path) as (service, line),
        listening(origin(line), "lobby") as alice,
    ):
        broker = service.house.broker
        publish = broker.publish

        def fail(*_: Any) -> None:
            raise UnavailableError("away")

        monkeypatch.setattr(broker, "publish", fail)
        await alice.connection.publish("lobby", "lost", message_id=7)
        await alice.until(lambda: alice.of(Failure))
        (told,) = alice.of(Failure)
        assert (told.slug, told.id) == ("unavailable", 7)
        monkeypatch.setattr(broker, "publish", publish)
        await alice.connection.publish("lobby", "said", message_id=8)
        await alice.until(lambda: alice.of(Ack))
        assert alice.said() == ["said"]
        assert alice.of(Lost) == []


async def test_listening_may_be_cancelled_at_any_time(tmp_path: Path) -> None:
    """As it is by ``asyncio.timeout``: nothing is lost by that either."""
    names = [f"room-{number}" for number in range(20)]
    async with (
        cuttable(tmp_path) as (service, line),
        speaking(service, *names) as bob,
        Client(origin(line)) as client,
    ):
        await client.log_in("alice", PASSWORD)
        async with await client.stay_connected(Strategy.FIRST_MESSAGE) as connection:
            heard: list[Event | Lost] = []

            async def until(condition: Callable[[], object]) -> None:
                patience, waits = time.monotonic() + PATIENCE, 0
                while not condition():
                    assert time.monotonic() < patience
                    waits += 1
                    with suppress(TimeoutError):
                        async with asyncio.timeout(0.001 * (1 + waits % 50)):
                            heard.append(await connection.receive_event())

            def joined() -> list[Joined]:
                return [event for event in heard if isinstance(event, Joined)]

            for name in names:
                await connection.join(name)
            await until(lambda: len(joined()) == len(names))
            line.cut()
            for name in names:
                await bob.says("missed", room=name)
            line.mend()
            await until(lambda: len(joined()) == 2 * len(names))
            await until(
                lambda: sum(isinstance(e, Message) for e in heard) == len(names)
            )
            assert all(event.recovered for event in joined()[len(names) :])


# ------------------------------------------------------------------------- the endings


async def test_an_ending_that_coming_back_does_not_mend_is_raised(
    tmp_path: Path,
) -> None:
    async with (
        cuttable(tmp_path) as (service, line),
        listening(origin(line), "lobby") as alice,
    ):
        (session,) = await service.call(service.house.sessions.list_for("alice"))
        await service.call(service.house.accounts.end_session(session.id, "test"))
        error = await alice.ended()
        assert isinstance(error, EndedError)
        assert error.ending.reason == "token_revoked"
        assert alice.of(Lost) == []


async def test_a_credential_that_ended_meanwhile_is_raised_at_the_return(
    tmp_path: Path,
) -> None:
    async with (
        cuttable(tmp_path) as (service, line),
        listening(origin(line), "lobby") as alice,
    ):
        line.cut()
        await alice.until(lambda: alice.of(Lost))
        (session,) = await service.call(service.house.sessions.list_for("alice"))
        await service.call(service.house.accounts.end_session(session.id, "test"))
        line.mend()
        error = await alice.ended()
        assert isinstance(error, EndedError)
        assert error.ending.reason == "token_revoked"


@pytest.mark.parametrize("strategy", [Strategy.QUERY_PARAM, Strategy.FIRST_MESSAGE])
async def test_a_token_that_ran_out_is_exchanged_and_nothing_is_lost(
    tmp_path: Path, strategy: Strategy
) -> None:
    async with (
        cuttable(tmp_path, access_ttl=2) as (service, line),
        speaking(service) as bob,
        listening(origin(line), "lobby", strategy=strategy) as alice,
    ):
        # bob's own ends as well: what he says is said before
        await bob.says(1)
        await alice.is_back(2)
        async with speaking(service) as bob:
            await bob.says(2)
            await alice.until(lambda: alice.said() == [1, 2])
        assert {e.error.ending.reason for e in alice.of(Lost)} == {"token_expired"}
        assert {e.recovered for e in alice.of(Joined)[1:]} == {True}


async def test_the_delays_grow_up_to_a_bound_and_are_in_step_with_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lasting, "FIRST_DELAY", 0.01)
    monkeypatch.setattr(lasting, "LONGEST_DELAY", 0.08)
    async with (
        cuttable(tmp_path) as (_, line),
        listening(origin(line), "lobby") as alice,
    ):
        line.cut()
        await alice.until(lambda: len(alice.of(Lost)) >= 7)
        delays = [e.retry_after for e in alice.of(Lost)[:7]]
        for delay, most in zip(delays, (1, 2, 4, 8, 8, 8, 8), strict=True):
            assert most / 200 <= delay <= most / 100
        assert len(set(delays)) == len(delays)


async def test_closing_ends_the_waiting_for_a_return(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lasting, "FIRST_DELAY", 3600.0)
    monkeypatch.setattr(lasting, "LONGEST_DELAY", 3600.0)
    async with (
        cuttable(tmp_path) as (_, line),
        listening(origin(line), "lobby") as alice,
    ):
        line.cut()
        await alice.until(lambda: alice.of(Lost))
        await alice.connection.close()
        assert isinstance(await alice.ended(), EndedError)


async def test_closing_while_it_is_open_is_no_loss(tmp_path: Path) -> None:
    async with (
        cuttable(tmp_path) as (_, line),
        listening(origin(line), "lobby") as alice,
    ):
        await alice.connection.close()
        assert isinstance(await alice.ended(), EndedError)
        assert alice.of(Lost) == []
