"""When things break: the broker, the way to it, the database, a worker. Real processes.

In each test one member publishes all the time by way of the first server, and others
listen by way of both. Nothing that was acknowledged may be missing or doubled, unless
the listener was told to resync.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import pytest_asyncio

from tests.fleet.fleet import Fleet, Talker, eventually, fleet
from tests.fleet.measures import measure, note
from tests.servers.brokers import BrokerServer, broker_server
from tests.servers.proxy import Proxy, proxy

pytestmark = pytest.mark.asyncio(loop_scope="module")

RECHECK = 1.0
"""Seconds; AUTHWS_RECHECK_INTERVAL here."""
FAIL_CLOSED_AFTER = 4.0
"""Seconds; AUTHWS_FAIL_CLOSED_AFTER here."""
NOTICED = 6.0
"""Seconds within which a server says that it cannot reach the broker."""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def broker(kind: str) -> AsyncIterator[BrokerServer]:
    """One that keeps on disk what it keeps, each in its own way."""
    async with broker_server(kind, is_durable=True) as server:
        yield server


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def way(broker: BrokerServer) -> AsyncIterator[Proxy]:
    """The way of the second server to the broker."""
    async with proxy(broker.url) as made:
        yield made


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def two(
    broker: BrokerServer, way: Proxy, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Fleet]:
    async with fleet(
        tmp_path_factory.mktemp("faults"),
        broker.url,
        own={1: {"broker_url": way.through(broker.url)}},
        recheck_interval=RECHECK,
        fail_closed_after=FAIL_CLOSED_AFTER,
        history="plain*=0,*=1000/300",
    ) as made:
        await made.add_user("alice", "bob", "carol", "dave")
        yield made


@pytest_asyncio.fixture(loop_scope="module")
async def sites(two: Fleet, broker: BrokerServer, way: Proxy) -> AsyncIterator[Fleet]:
    """Both servers, as they should be; and left as they should be."""
    await _all_ready(two)
    yield two
    broker.resume()
    way.mend()
    await two.dismiss()
    await _all_ready(two)


async def _all_ready(fleet: Fleet) -> None:
    for number in range(len(fleet.sites)):
        await eventually(lambda number=number: _is_ready(fleet, number))  # type: ignore[misc]


async def _is_ready(fleet: Fleet, number: int) -> bool:
    async with fleet.http(number) as http:
        return (await http.get("/readyz")).status_code == 200


async def _is_not_ready(fleet: Fleet, number: int) -> bool:
    """Ready it is not, and says of what; alive it is."""
    async with fleet.http(number) as http:
        alive = await http.get("/healthz")
        ready = await http.get("/readyz")
    assert alive.status_code == 200
    if ready.status_code == 200:
        return False
    return bool(ready.json()["broker"] == "unreachable")


class Traffic:
    """One who publishes all the time, and those who listen."""

    def __init__(self, speaker: Talker, listeners: list[Talker], room: str) -> None:
        self.speaker = speaker
        self.listeners = listeners
        self.room = room
        self.said = 0
        self.refused = 0
        self._numbers: dict[str, int] = {}

    @property
    def acknowledged(self) -> list[int]:
        acks = (m["id"] for m in self.speaker.of("ack"))
        return [self._numbers[name] for name in acks if name in self._numbers]

    async def run(self) -> None:
        """Publish until this is cancelled, some at once and faster than one by one."""
        while True:
            batch = []
            for _ in range(5):
                number, self.said = self.said, self.said + 1
                name = f"{number}-{secrets.token_hex(3)}"
                self._numbers[name] = number
                batch.append(name)
                await self.speaker.say(
                    type="publish", room=self.room, data=number, id=name
                )
            answered = {
                name: lambda name=name: (
                    self.speaker.of("ack", id=name) or self.speaker.of("error", id=name)
                )
                for name in batch
            }
            for is_answered in answered.values():
                await self.speaker.until(is_answered)
            await asyncio.sleep(0.02)

    async def check(self, *, may_resync: bool) -> dict[str, Any]:
        """Say one more thing, wait until all have it, and compare what they heard."""
        assert await self.speaker.publish("the end", self.room)
        results = {}
        for listener in (self.speaker, *self.listeners):
            await listener.until(
                lambda listener=listener: "the end" in listener.texts(self.room)  # type: ignore[misc]
            )
            assert listener.ending is None
            heard = [n for n in listener.texts(self.room) if isinstance(n, int)]
            assert heard == sorted(set(heard)), "doubled, or out of order"
            told = listener.of("resync", room=self.room)
            missing = set(self.acknowledged) - set(heard)
            if not told:
                assert not missing, f"{len(missing)} acknowledged and never heard"
            assert may_resync or not told, told
            results[id(listener)] = len(told)
        return {"resyncs": sum(results.values()), "acked": len(self.acknowledged)}


@asynccontextmanager
async def traffic(sites: Fleet, kept: bool = True) -> AsyncIterator[Traffic]:
    name = ("room" if kept else "plain") + secrets.token_hex(4)
    speaker = await sites.enter(0, "alice", name)
    listeners = [await sites.enter(n, "bob", name) for n in range(2)]
    made = Traffic(speaker, listeners, name)
    running = asyncio.create_task(made.run())
    await eventually(lambda: len(made.acknowledged) >= 20)
    try:
        yield made
    finally:
        running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await running


async def _goes_on(traffic: Traffic) -> None:
    """Wait until publishes are acknowledged again."""
    before = len(traffic.acknowledged)
    await eventually(lambda: len(traffic.acknowledged) > before + 10)


# --------------------------------------------------------------------------- the broker


@pytest.mark.parametrize("kept", [True, False], ids=["kept", "carried"])
async def test_the_broker_is_killed_and_returns(
    sites: Fleet, broker: BrokerServer, kind: str, kept: bool
) -> None:
    fault = f"killed, {'kept' if kept else 'carried'}"
    async with traffic(sites, kept) as going:
        await broker.kill()
        with measure(kind, fault, "readyz says so"):
            for number in range(2):
                await eventually(
                    lambda number=number: _is_not_ready(sites, number),  # type: ignore[misc]
                    NOTICED,
                )
        await eventually(lambda: going.speaker.of("error", slug="unavailable"))
        with measure(kind, fault, "ready again, from the start of the broker"):
            await broker.start()
            await _all_ready(sites)
        await _goes_on(going)
    found = await going.check(may_resync=not kept)
    note(kind, fault, "told to resync, of 3 members", found["resyncs"])
    assert all(one.is_running for one in sites.sites)
    if not kept:
        assert found["resyncs"] >= 2


async def test_the_broker_is_stopped_and_goes_on(
    sites: Fleet, broker: BrokerServer, kind: str
) -> None:
    async with traffic(sites) as going:
        broker.pause()
        with measure(kind, "SIGSTOP", "readyz says so"):
            for number in range(2):
                await eventually(
                    lambda number=number: _is_not_ready(sites, number),  # type: ignore[misc]
                    NOTICED,
                )
        with measure(kind, "SIGSTOP", "a publish is answered"):
            await eventually(lambda: going.speaker.of("error", slug="unavailable"))
        broker.resume()
        with measure(kind, "SIGSTOP", "ready again, from SIGCONT"):
            await _all_ready(sites)
        await _goes_on(going)
    found = await going.check(may_resync=False)
    note(kind, "SIGSTOP", "told to resync, of 3 members", found["resyncs"])


async def test_the_broker_flaps(sites: Fleet, broker: BrokerServer, kind: str) -> None:
    async with traffic(sites) as going:
        for _ in range(3):
            await broker.kill()
            await broker.start()
        await _all_ready(sites)
        await _goes_on(going)
    await going.check(may_resync=False)


async def test_nobody_joins_what_cannot_be_heard(
    sites: Fleet, broker: BrokerServer
) -> None:
    alice = await sites.enter(0, "alice")
    broker.pause()
    name = f"room{secrets.token_hex(4)}"
    await eventually(lambda: _is_not_ready(sites, 0), NOTICED)
    await alice.say(type="join", room=name)
    await alice.until(lambda: alice.of("error", slug="unavailable"))
    broker.resume()
    await _all_ready(sites)
    assert await alice.join(name)
    assert await alice.publish("here", name)


# ----------------------------------------------------------------------- the way to it


@pytest.mark.parametrize("how", ["swallow", "cut"])
async def test_the_way_of_one_server_to_the_broker_is_cut(
    sites: Fleet, way: Proxy, kind: str, how: str
) -> None:
    async with traffic(sites) as going:
        getattr(way, how)()
        with measure(kind, f"network {how}", "readyz says so"):
            await eventually(lambda: _is_not_ready(sites, 1), NOTICED)
        assert await _is_ready(sites, 0)
        await _goes_on(going)  # for those who are not concerned
        there = going.listeners[1]
        assert not await there.publish("lost?", going.room)
        way.mend()
        with measure(kind, f"network {how}", "ready again, from the mending"):
            await _all_ready(sites)
    found = await going.check(may_resync=False)
    note(kind, f"network {how}", "told to resync, of 3 members", found["resyncs"])


async def test_a_slow_way_is_slow_and_nothing_else(
    sites: Fleet, way: Proxy, kind: str
) -> None:
    way.delay = 0.2
    async with traffic(sites) as going:
        for _ in range(3):
            assert await _is_ready(sites, 1)
            there = going.listeners[1]
            with measure(kind, "200 ms each way", "a publish is acknowledged"):
                assert await there.publish("slow", going.room)
        await _goes_on(going)
    way.mend()
    assert "was lost" not in sites.sites[1].said.rpartition("reached again")[2]


# ------------------------------------------------------------------------- revocations


async def _ends(peer: Talker, slug: str, within: float) -> float:
    began = asyncio.get_running_loop().time()
    await peer.until(lambda: peer.ending)
    took = asyncio.get_running_loop().time() - began
    assert peer.ending == (1008, slug)
    assert took < within
    return took


async def test_a_revocation_is_read_where_it_cannot_be_told(
    sites: Fleet, broker: BrokerServer, kind: str
) -> None:
    """Bounded by AUTHWS_RECHECK_INTERVAL with the broker gone."""
    token = await sites.log_in("carol")
    peer = await sites.enter(1, "carol", token=token)
    await broker.kill()
    try:
        async with sites.http(0, authorization=f"Bearer {token}") as http:
            assert (await http.post("/auth/logout")).status_code in (200, 204)
        took = await _ends(peer, "token_revoked", RECHECK + 3)
        note(kind, "killed", "a revocation ends a socket elsewhere", round(took, 3))
    finally:
        await broker.start()


# ---------------------------------------------------------------------------- a worker


async def test_a_server_that_stands_still_falls_behind_and_catches_up(
    sites: Fleet, kind: str
) -> None:
    async with traffic(sites) as going:
        await sites.enter(1, "carol", going.room)
        speaker = going.speaker
        await speaker.until(lambda: "carol" in speaker.here(going.room))
        sites.sites[1].send(signal.SIGSTOP)
        with measure(kind, "a worker stands still", "its people are gone"):
            await speaker.until(lambda: "carol" not in speaker.here(going.room))
        await _goes_on(going)
        sites.sites[1].send(signal.SIGCONT)
        with measure(kind, "a worker stands still", "ready again, from SIGCONT"):
            await _all_ready(sites)
        await speaker.until(lambda: "carol" in speaker.here(going.room))
    found = await going.check(may_resync=False)
    note(kind, "a worker stands still", "told to resync", found["resyncs"])
    dave = await sites.enter(0, "dave", going.room)
    assert dave.here(going.room) == {"alice", "bob", "carol", "dave"}


async def test_a_server_that_is_killed_costs_the_others_nothing(
    sites: Fleet, kind: str
) -> None:
    async with traffic(sites) as going:
        carol = await sites.enter(1, "carol", going.room)
        speaker = going.speaker
        await speaker.until(lambda: "carol" in speaker.here(going.room))
        await sites.sites[1].end(signal.SIGKILL)
        with measure(kind, "a worker is killed", "its people are gone"):
            await speaker.until(lambda: "carol" not in speaker.here(going.room))
        assert carol.ending is not None
        await _goes_on(going)
        await sites.sites[1].start()
        going.listeners.pop()
        back = await sites.enter(1, "carol", going.room)
        await _goes_on(going)
        await back.until(lambda: back.texts(going.room))
    await going.check(may_resync=False)
