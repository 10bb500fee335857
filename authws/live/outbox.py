"""What waits to be sent to one peer: bounded in messages and in bytes."""

from __future__ import annotations

import asyncio
from collections import deque

__all__ = ["Outbox"]


class Outbox:
    """A queue that is told to end rather than grow. A limit of 0 is off."""

    def __init__(self, max_messages: int, max_bytes: int) -> None:
        self._max_messages = max_messages
        self._max_bytes = max_bytes
        self._queue: deque[str | bytes] = deque()
        self._bytes = 0
        self._has_room = asyncio.Event()
        self._has_room.set()

    @property
    def has_room(self) -> bool:
        """Whether it is not, or no longer, more than half full."""
        return self._has_room.is_set()

    def put(self, payload: str | bytes) -> bool:
        """Append a message; False if that is more than the outbox may hold."""
        self._queue.append(payload)
        self._bytes += len(payload)
        if self._is_above(1):
            return False
        if self._is_above(2):
            self._has_room.clear()
        return True

    def take(self) -> str | bytes | None:
        """Remove and return the oldest message; None if there is none."""
        if not self._queue:
            return None
        payload = self._queue.popleft()
        self._bytes -= len(payload)
        if not self._has_room.is_set() and not self._is_above(4):
            self._has_room.set()
        return payload

    def clear(self) -> None:
        """Forget what waits, and let nobody wait for room any longer."""
        self._queue.clear()
        self._bytes = 0
        self._has_room.set()

    async def wait_for_room(self) -> None:
        """Wait while it is more than half full, until it is down to a quarter."""
        await self._has_room.wait()

    def _is_above(self, share: int) -> bool:
        """Tell whether it holds more than one ``share``-th of either limit."""
        return (
            len(self._queue) * share > self._max_messages > 0
            or self._bytes * share > self._max_bytes > 0
        )
