"""A broker that several workers of one test share, and that fails when told to."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from authws.brokers.base import Listener, Replay
from authws.brokers.shelf import Shelf
from authws.decisions.history import Position, Retention
from authws.exceptions import UnavailableError

__all__ = ["Bus", "BusBroker"]


class Bus:
    """Carries in the next turn of the event loop, in order."""

    def __init__(self, now: Callable[[], float]) -> None:
        self.shelf = Shelf("first", 0, now)
        self.brokers: list[BusBroker] = []
        self.sent: list[tuple[str, bytes]] = []
        """All that was published."""
        self.kept: list[tuple[str, bytes, Position]] = []
        """All of it that got a position, kept still or not."""
        self.now = now
        self._lives = 0

    def broker(self) -> BusBroker:
        made = BusBroker(self)
        self.brokers.append(made)
        return made

    def forget_all(self) -> None:
        """Lose the memory, as a broker does that kept nothing on disk."""
        self._lives += 1
        self.shelf = Shelf(f"another{self._lives}", 0, self.now)

    def carry(self, channel: str, data: bytes, position: Position | None) -> None:
        self.sent.append((channel, data))
        if position is not None:
            self.kept.append((channel, data, position))
        for broker in self.brokers:
            broker.arrive(channel, data, position)


class BusBroker:
    """One worker's client."""

    crosses_processes = True
    dropped = 0

    def __init__(self, bus: Bus) -> None:
        self.is_up = False
        self.is_away = False
        """Whether it cannot be reached at the start."""
        self.silent_since: float | None = None
        """When it was heard last, though it seems to be up."""
        self.refuses_to_subscribe = False
        self.channels: set[str] = set()
        self.lost = 0
        """How many of the messages to come are lost on their way here."""
        self.lost_on: str | None = None
        """The channel on which they are; None for whichever comes first."""
        self.held: list[tuple[str, bytes, Position | None]] | None = None
        """What is late on its way here, after ``hold``."""
        self.is_unsure = False
        """A publish arrives, and its answer does not: it seems to have failed."""
        self.suspected: set[str] = set()
        """The channels on which something was lost, and nobody told of it yet."""
        self.gate = asyncio.Event()
        self.gate.set()
        """While it is closed, no publish ends and no replay returns."""
        self.replays = 0
        self._bus = bus
        self._listener: Listener | None = None

    @property
    def heard_at(self) -> float:
        return self._bus.now() if self.silent_since is None else self.silent_since

    async def start(self, listener: Listener) -> None:
        self._listener = listener
        self.is_up = not self.is_away

    async def subscribe(self, channel: str, keep: Retention | None = None) -> None:
        self._demand()
        if self.refuses_to_subscribe:
            raise UnavailableError("the bus lets nobody hear")
        self.channels.add(channel)
        await asyncio.sleep(0)

    async def unsubscribe(self, channel: str) -> None:
        self.channels.discard(channel)

    def publish(
        self, channel: str, data: bytes, keep: Retention | None = None
    ) -> Awaitable[None]:
        self._demand()
        position = self._bus.shelf.append(channel, data, keep) if keep else None
        self._bus.carry(channel, data, position)
        return self._end(is_lost=self.is_unsure)

    async def replay(
        self, channel: str, keep: Retention, since: Position | None
    ) -> Replay:
        self._demand()
        self.replays += 1
        replay = self._bus.shelf.replay(channel, keep, since)
        await self._end()
        self._demand()
        return replay

    async def ping(self) -> bool:
        return self.is_up

    async def stop(self) -> None:
        self.is_up = False
        self._bus.brokers.remove(self)

    def arrive(self, channel: str, data: bytes, position: Position | None) -> None:
        if self.held is not None:
            self.held.append((channel, data, position))
        else:
            asyncio.get_running_loop().call_soon(self._deliver, channel, data, position)

    def hold(self) -> None:
        """Let what comes be late, until ``let_go``."""
        self.held = []

    def let_go(self, *first: str) -> None:
        """Let what was late arrive: what is on the channels ``first`` before the rest,
        for only what is on one channel has an order."""
        held, self.held = self.held or [], None
        held.sort(key=lambda late: late[0] not in first)
        for channel, data, position in held:
            self.arrive(channel, data, position)

    def cut(self) -> None:
        """Lose the connection, and what is on its way."""
        self.is_up = False
        if self.held is not None:
            self.held = []

    def mend(self) -> None:
        """Have it again, everything subscribed again."""
        self.is_up = True
        self.suspected = set(self.channels)
        self.confess()

    def confess(self, *channels: str) -> None:
        """Tell of what was lost, on these channels or on all."""
        told = self.suspected.intersection(channels or self.suspected)
        self.suspected -= told
        assert self._listener is not None
        self._listener.interrupted(tuple(told & self.channels))

    def _deliver(self, channel: str, data: bytes, position: Position | None) -> None:
        if not self.is_up or channel not in self.channels:
            return
        if self.lost and self.lost_on in (None, channel):
            self.lost -= 1
            self.suspected.add(channel)
            return
        assert self._listener is not None
        if position is not None and channel in self.suspected:
            self.confess(channel)  # what is kept comes whole, or that is told
        self._listener.deliver(channel, data, position)

    def _demand(self) -> None:
        if not self.is_up:
            raise UnavailableError("the bus is cut")

    async def _end(self, *, is_lost: bool = False) -> None:
        await self.gate.wait()
        await asyncio.sleep(0)
        if is_lost:
            raise UnavailableError("the bus did not answer")
