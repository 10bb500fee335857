"""The embedded default: one process, no wire."""

from __future__ import annotations

import secrets

from authws.brokers.base import Listener, Replay
from authws.brokers.shelf import Shelf
from authws.clock import Clock
from authws.decisions.history import Position, Retention

__all__ = ["MemoryBroker"]


class MemoryBroker:
    """Delivers at once, within the process that publishes, and keeps what it may."""

    crosses_processes = False
    dropped = 0

    def __init__(
        self, *, history_bytes: int = 67_108_864, clock: Clock | None = None
    ) -> None:
        """``history_bytes`` bounds what all channels keep together; 0 is off."""
        self._clock = clock = clock or Clock()
        self._channels: set[str] = set()
        self._listener: Listener | None = None
        # what was kept ends with the process, and so does the epoch
        self._shelf = Shelf(secrets.token_urlsafe(6), history_bytes, clock.monotonic)

    @property
    def is_up(self) -> bool:
        return self._listener is not None

    @property
    def heard_at(self) -> float:
        return self._clock.monotonic()

    async def start(self, listener: Listener) -> None:
        self._listener = listener

    async def subscribe(self, channel: str, keep: Retention | None = None) -> None:
        self._channels.add(channel)

    async def unsubscribe(self, channel: str) -> None:
        self._channels.discard(channel)

    def publish(self, channel: str, data: bytes, keep: Retention | None = None) -> None:
        position = self._keep(channel, data, keep) if keep is not None else None
        if self._listener is not None and channel in self._channels:
            self._listener.deliver(channel, data, position)

    async def replay(
        self, channel: str, keep: Retention, since: Position | None
    ) -> Replay:
        return self._shelf.replay(channel, keep, since)

    async def ping(self) -> bool:
        return self.is_up

    async def stop(self) -> None:
        self._channels.clear()
        self._listener = None

    def _keep(self, channel: str, data: bytes, keep: Retention) -> Position:
        return self._shelf.append(channel, data, keep)
