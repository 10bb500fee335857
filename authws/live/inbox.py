"""What a handler that may be busy elsewhere has not taken yet: bounded in messages."""

from __future__ import annotations

import asyncio
from collections import deque

__all__ = ["Inbox"]


class Inbox:
    """A queue between one task that fills it and one that empties it.

    ``asyncio.Queue`` is for any number of both, and costs an idle connection 3 kB.
    """

    __slots__ = ("_capacity", "_change", "_is_over", "_messages")

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._messages: deque[str | bytes] | None = None
        self._is_over = False
        self._change: asyncio.Future[None] | None = None
        """Whichever of the two waits; never both: it is not empty and full at once."""

    async def put(self, message: str | bytes) -> None:
        """Append a message; wait while there is no room."""
        while self._messages is not None and len(self._messages) >= self._capacity:
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
        self._change = asyncio.get_running_loop().create_future()
        try:
            await self._change
        finally:
            self._change = None

    def _wake(self) -> None:
        if self._change is not None and not self._change.done():
            self._change.set_result(None)
