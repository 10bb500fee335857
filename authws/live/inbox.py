"""What a handler that may be busy elsewhere has not taken yet: bounded in messages."""

from __future__ import annotations

import asyncio
from collections import deque

__all__ = ["Inbox"]


class Inbox:
    """A queue with an end. A capacity of 0 is none.

    ``asyncio.Queue`` costs an idle connection 3 kB more; here whoever waits, for a
    message or for room, is woken by every change and looks again.
    """

    __slots__ = ("_capacity", "_is_over", "_messages", "_waiting")

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._messages: deque[str | bytes] | None = None
        self._is_over = False
        self._waiting: list[asyncio.Future[None]] | None = None

    async def put(self, message: str | bytes) -> None:
        """Append a message; wait while there is no room."""
        while self._messages and len(self._messages) >= self._capacity > 0:
            await self._wait()
        if self._messages is None:
            self._messages = deque()
        self._messages.append(message)
        self._wake()

    async def get(self) -> str | bytes | None:
        """Take the oldest message; None once it is over and empty."""
        while self._messages is None:
            if self._is_over:
                return None
            await self._wait()
        message = self._messages.popleft()
        if not self._messages:
            self._messages = None
        self._wake()
        return message

    def end(self) -> None:
        """Nothing will come any more."""
        self._is_over = True
        self._wake()

    async def _wait(self) -> None:
        change = asyncio.get_running_loop().create_future()
        if self._waiting is None:
            self._waiting = []
        self._waiting.append(change)
        try:
            await change
        finally:
            if self._waiting is not None and change in self._waiting:
                self._waiting.remove(change)

    def _wake(self) -> None:
        waiting, self._waiting = self._waiting, None
        for change in waiting or ():
            if not change.done():
                change.set_result(None)
