"""A broker's client, and what it was told."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection

from authws.brokers.base import Broker
from authws.decisions.history import Position, Retention

__all__ = ["KEEP", "Heard", "Peer", "eventually"]

KEEP = Retention(messages=20, seconds=60)
PATIENCE = 20.0

Heard = tuple[str, bytes, Position | None]


class Peer:
    """Listens to one broker."""

    def __init__(self, broker: Broker) -> None:
        self.broker = broker
        self.heard: list[Heard] = []
        self.interruptions: list[set[str]] = []
        self._changed = asyncio.Event()

    async def start(self) -> None:
        await self.broker.start(self)
        await self.until(lambda: self.broker.is_up)

    def deliver(self, channel: str, data: bytes, position: Position | None) -> None:
        self.heard.append((channel, data, position))
        self._changed.set()

    def interrupted(self, channels: Collection[str]) -> None:
        self.interruptions.append(set(channels))
        self._changed.set()

    async def publish(
        self, channel: str, data: bytes, keep: Retention | None = None
    ) -> None:
        """Publish, and wait until the broker has it."""
        await settled(self.broker.publish(channel, data, keep))

    def data(self, channel: str) -> list[bytes]:
        return [data for name, data, _ in self.heard if name == channel]

    def positions(self, channel: str) -> list[Position]:
        return [p for name, _, p in self.heard if name == channel and p is not None]

    async def hears(self, channel: str, *expected: bytes) -> None:
        """Wait until exactly this was heard on a channel, in this order."""
        await self.until(lambda: len(self.data(channel)) >= len(expected))
        assert self.data(channel) == list(expected)

    async def until(self, condition: Callable[[], bool]) -> None:
        try:
            async with asyncio.timeout(PATIENCE):
                while not condition():
                    self._changed.clear()
                    try:
                        async with asyncio.timeout(0.05):
                            await self._changed.wait()
                    except TimeoutError:
                        continue
        except TimeoutError:
            raise AssertionError(
                f"not so: {self.heard[-5:]}, {self.interruptions}"
            ) from None


async def settled(handed_over: Awaitable[None] | None) -> None:
    if handed_over is not None:
        await handed_over


async def eventually(condition: Callable[[], bool]) -> None:
    """Wait until something is so."""
    async with asyncio.timeout(PATIENCE):
        while not condition():  # noqa: ASYNC110 - nothing tells of it
            await asyncio.sleep(0.01)
