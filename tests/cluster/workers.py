"""Several workers in one test, on one bus and one clock that a test moves."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from authws.decisions.history import HistoryRules
from tests.cluster.bus import Bus, BusBroker
from tests.engine import Engine, Peer
from tests.manual_clock import ManualClock
from tests.manual_clock import settle as settle_one

__all__ = [
    "LEASE",
    "Worker",
    "Workers",
    "here",
    "say",
    "settle",
    "texts",
    "workers",
]

LEASE = 10.0


async def settle() -> None:
    """Let all that can go on without time passing go on, on all workers: what goes
    from one to the other and back takes more turns than what stays."""
    for _ in range(5):
        await settle_one()


class Worker(Engine):
    """One worker's engine, and its way to the broker."""

    def __init__(self, bus: Bus, clock: ManualClock, **hub: Any) -> None:
        self.broker: BusBroker = bus.broker()
        super().__init__(clock=clock, broker=self.broker, lease=LEASE, **hub)

    @property
    def node(self) -> str:
        return self.hub.cluster.node

    async def guest(
        self, subject: str, *rooms: str, since: dict[str, Any] | None = None
    ) -> Peer:
        """Let somebody in, and into rooms."""
        token = self.issue(subject, session=f"{subject}-{len(self.peers)}")
        peer = await self.enter(token=token)
        for room in rooms:
            more = {} if since is None else {"since": since}
            peer.say(type="join", room=room, **more)
            await settle()
        return peer

    def die(self) -> None:
        """End as by SIGKILL: nothing is said, and nothing heard any more."""
        self.broker.cut()
        assert self.hub.cluster._living is not None
        self.hub.cluster._living.cancel()


class Workers(list[Worker]):
    """All of them, and what they share."""

    def __init__(self, clock: ManualClock, bus: Bus, **hub: Any) -> None:
        super().__init__()
        self.clock = clock
        self.bus = bus
        self._hub = hub

    async def one_more(self) -> Worker:
        worker = Worker(self.bus, self.clock, **self._hub)
        self.append(worker)
        await worker.start()
        return worker


@asynccontextmanager
async def workers(
    count: int = 2, *, history: tuple[str, ...] = ("*=20/300",), **hub: Any
) -> AsyncIterator[Workers]:
    """Start some workers; at the end all must have let go of everything."""
    clock = ManualClock()
    all_of_them = Workers(
        clock, Bus(clock.monotonic), history=HistoryRules(history), **hub
    )
    starting = [asyncio.ensure_future(all_of_them.one_more()) for _ in range(count)]
    await clock.advance(1)
    await asyncio.gather(*starting)
    yield all_of_them
    for worker in all_of_them:
        worker.broker.gate.set()
        worker.dismiss()
    await clock.advance(60)
    for worker in all_of_them:
        await worker.hub.cluster.stop()
    for worker in all_of_them:
        await worker.stop()


def texts(peer: Peer, room: str = "lobby") -> list[Any]:
    """What a peer heard said in a room."""
    return [m["data"] for m in peer.of_type("message") if m["room"] == room]


def say(peer: Peer, data: Any, room: str = "lobby", **more: Any) -> None:
    peer.say(type="publish", room=room, data=data, **more)


def here(peer: Peer, room: str = "lobby") -> set[str]:
    """Who is in a room, as a client would know that which hears everything."""
    present: set[str] = set()
    for message in peer.heard:
        if message.get("room") != room:
            continue
        if message["type"] == "joined":
            present = set(message["members"])
        elif message["type"] == "presence" and message["event"] == "joined":
            assert message["subject"] not in present, json.dumps(peer.heard)
            present.add(message["subject"])
        elif message["type"] == "presence":
            assert message["subject"] in present, json.dumps(peer.heard)
            present.discard(message["subject"])
    return present
