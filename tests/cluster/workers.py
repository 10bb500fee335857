"""Several workers in one test, on one bus and one clock that a test moves."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from authws.decisions import gossip
from authws.decisions.envelopes import Kind, Sealer
from authws.decisions.history import HistoryRules
from tests.cluster.bus import Bus, BusBroker
from tests.engine import Engine, Peer
from tests.manual_clock import ManualClock, ManualTimer
from tests.manual_clock import settle as settle_one

__all__ = [
    "KEYS",
    "LEASE",
    "Worker",
    "Workers",
    "here",
    "position",
    "say",
    "settle",
    "texts",
    "workers",
]

LEASE = 10.0
KEYS = (b"one secret",)

M = TypeVar("M", bound=gossip.Gossip)


async def settle() -> None:
    """Let all that can go on without time passing go on, on all workers: what goes
    from one to the other and back takes more turns than what stays."""
    for _ in range(5):
        await settle_one()


class WorkersClock(ManualClock):
    """One worker's look at the clock that all of them share."""

    def __init__(self, shared: ManualClock) -> None:
        super().__init__()
        self.is_stopped = False
        """Time passes, and nothing that is due happens here."""
        self._shared = shared
        self._due: list[Callable[[], None]] = []

    def now(self) -> float:
        return self._shared.now() + self.wall_offset

    def monotonic(self) -> float:
        return self._shared.monotonic()

    @property
    def waiting(self) -> int:
        return self._shared.waiting

    def call_later(self, delay: float, callback: Callable[[], object]) -> ManualTimer:
        def call() -> None:
            if self.is_stopped:
                self._due.append(call)
            elif not timer.is_cancelled:
                callback()

        timer = self._shared.call_later(delay, call)
        return timer

    async def advance(self, seconds: float) -> None:
        await self._shared.advance(seconds)

    def go_on(self) -> None:
        self.is_stopped = False
        due, self._due = self._due, []
        for call in due:
            call()


class Worker(Engine):
    """One worker's engine, and its way to the broker."""

    def __init__(self, bus: Bus, clock: ManualClock, **hub: Any) -> None:
        self.broker: BusBroker = bus.broker()
        self.own_clock = WorkersClock(clock)
        keys = hub.pop("keys", KEYS)
        super().__init__(
            clock=self.own_clock, broker=self.broker, lease=LEASE, keys=keys, **hub
        )

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

    def stall(self) -> None:
        """Stand still as by SIGSTOP, until ``go_on``: what comes waits."""
        self.own_clock.is_stopped = True
        self.broker.hold()

    def go_on(self) -> None:
        self.own_clock.go_on()
        self.broker.let_go()


class Workers(list[Worker]):
    """All of them, and what they share."""

    def __init__(self, clock: ManualClock, bus: Bus, **hub: Any) -> None:
        super().__init__()
        self.clock = clock
        self.bus = bus
        self._hub = hub

    async def one_more(self, **hub: Any) -> Worker:
        """Start another; what it needs of time must be let pass meanwhile."""
        worker = Worker(self.bus, self.clock, **self._hub | hub)
        self.append(worker)
        await worker.start()
        return worker

    async def start(self, count: int = 1, **hub: Any) -> None:
        """Start some more, all at once."""
        work = (self.one_more(**hub) for _ in range(count))
        starting = [asyncio.ensure_future(one) for one in work]
        await self.clock.advance(1)
        await asyncio.gather(*starting)

    def said(self, *kinds: type[M]) -> list[M]:
        """What the workers told one another of these kinds."""
        opener = Sealer(KEYS)
        opened = [opener.open(channel, data) for channel, data in self.bus.sent]
        told = [gossip.decode(one.body) for one in opened if one.kind == Kind.CLUSTER]
        return [message for message in told if isinstance(message, kinds)]


@asynccontextmanager
async def workers(
    count: int = 2, *, history: tuple[str, ...] = ("*=20/300",), **hub: Any
) -> AsyncIterator[Workers]:
    """Start some workers; at the end all must have let go of everything."""
    clock = ManualClock()
    all_of_them = Workers(
        clock, Bus(clock.monotonic), history=HistoryRules(history), **hub
    )
    await all_of_them.start(count)
    yield all_of_them
    for worker in all_of_them:
        worker.broker.gate.set()
        worker.dismiss()
    await clock.advance(60)
    for worker in all_of_them:
        await worker.hub.cluster.stop()
    for worker in all_of_them:
        await worker.stop()


def position(message: dict[str, Any]) -> dict[str, Any]:
    """Where a message stands, or where somebody joined, as a client would send it."""
    return {"epoch": message["epoch"], "offset": message["offset"]}


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
