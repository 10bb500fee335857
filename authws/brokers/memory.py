"""The embedded default: one process, no wire."""

from __future__ import annotations

from authws.brokers.base import Deliver

__all__ = ["MemoryBroker"]


class MemoryBroker:
    """Delivers at once, within the process that publishes."""

    def __init__(self) -> None:
        self._channels: set[str] = set()
        self._deliver: Deliver | None = None

    async def start(self, deliver: Deliver) -> None:
        self._deliver = deliver

    async def subscribe(self, channel: str) -> None:
        self._channels.add(channel)

    async def unsubscribe(self, channel: str) -> None:
        self._channels.discard(channel)

    def publish(self, channel: str, data: bytes) -> None:
        if self._deliver is not None and channel in self._channels:
            self._deliver(channel, data)

    async def ping(self) -> bool:
        return self._deliver is not None

    async def stop(self) -> None:
        self._channels.clear()
        self._deliver = None
