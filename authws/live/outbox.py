"""What waits to be sent to one peer: bounded in messages and in bytes.

A peer that reads slower than its rooms talk costs at most this. What happens at the
bound is a policy: end the connection, or drop what a room said and tell how much.
Only a room's messages are ever dropped; an answer to the peer itself is not.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Literal

from authws.decisions import messages

__all__ = ["Outbox", "OutboxPolicy"]

OutboxPolicy = Literal["close", "drop_oldest", "drop_newest"]


class Outbox:
    """A queue that ends, or drops, rather than grows. A limit of 0 is off."""

    __slots__ = (
        "_bytes",
        "_has_room",
        "_max_bytes",
        "_max_messages",
        "_missed",
        "_notice",
        "_queue",
        "dropped",
        "policy",
    )

    def __init__(
        self,
        max_messages: int,
        max_bytes: int,
        policy: OutboxPolicy = "close",
        notice: Callable[[int], str] = messages.dropped,
    ) -> None:
        """``notice`` makes the message that tells the peer how much it missed."""
        self.policy: OutboxPolicy = policy
        self.dropped = 0
        """How many messages were dropped so far."""
        self._max_messages = max_messages
        self._max_bytes = max_bytes
        self._notice = notice
        self._missed = 0  # dropped, and not told yet
        self._queue: deque[tuple[str | bytes, bool]] = deque()
        self._bytes = 0
        self._has_room = asyncio.Event()
        self._has_room.set()

    @property
    def has_room(self) -> bool:
        """Whether it is not, or no longer, more than half full."""
        return self._has_room.is_set()

    def put(self, payload: str | bytes, *, droppable: bool = False) -> bool:
        """Append a message; False if that is more than the outbox may hold.

        A ``droppable`` one is taken by the policies that drop, whatever becomes of it.
        """
        if droppable and self.policy == "drop_newest" and not self._takes_more(payload):
            self._count_missed()
            return True
        while not self._fits(len(payload)):
            if self.policy == "close" or not self._drop_one():
                return droppable and self._drop_itself()
        if self._missed and self.policy == "drop_newest":
            self._append(self._tell_missed(), droppable=False)
        self._append(payload, droppable=droppable)
        return True

    def take(self) -> str | bytes | None:
        """Remove and return the oldest message; None if there is none."""
        if self._missed and (self.policy == "drop_oldest" or not self._queue):
            return self._tell_missed()  # where the gap is
        if not self._queue:
            return None
        payload, _ = self._queue.popleft()
        self._bytes -= len(payload)
        self._notice_room()
        return payload

    def clear(self) -> None:
        """Forget what waits, and let nobody wait for room any longer."""
        self._queue.clear()
        self._bytes = self._missed = 0
        self._has_room.set()

    async def wait_for_room(self) -> None:
        """Wait while it is more than half full, until it is down to a quarter."""
        await self._has_room.wait()

    # ---------------------------------------------------------------------- the bound

    def _append(self, payload: str | bytes, *, droppable: bool) -> None:
        self._queue.append((payload, droppable))
        self._bytes += len(payload)
        if self._is_above(2):
            self._has_room.clear()

    def _fits(self, size: int) -> bool:
        if 0 < self._max_messages <= len(self._queue):
            return False
        return self._max_bytes <= 0 or self._bytes + size <= self._max_bytes

    def _takes_more(self, payload: str | bytes) -> bool:
        """Tell whether a message still goes in; once one did not, none goes in until
        there is room again, so that a peer misses one long run and not every other."""
        return self._fits(len(payload)) and (not self._missed or self.has_room)

    def _is_above(self, share: int) -> bool:
        """Tell whether it holds more than one ``share``-th of either limit."""
        return (
            len(self._queue) * share > self._max_messages > 0
            or self._bytes * share > self._max_bytes > 0
        )

    def _notice_room(self) -> None:
        if not self._has_room.is_set() and not self._is_above(4):
            self._has_room.set()

    # ----------------------------------------------------------------------- dropping

    def _drop_one(self) -> bool:
        """Drop a room's message, the oldest or the newest; False if none waits."""
        places = range(len(self._queue))
        for place in places if self.policy == "drop_oldest" else reversed(places):
            payload, droppable = self._queue[place]
            if droppable:
                del self._queue[place]
                self._bytes -= len(payload)
                self._count_missed()
                return True
        return False

    def _drop_itself(self) -> bool:
        """Drop what cannot fit, where that is the policy."""
        if self.policy == "close":
            return False
        self._count_missed()
        return True

    def _count_missed(self) -> None:
        self.dropped += 1
        self._missed += 1

    def _tell_missed(self) -> str:
        missed, self._missed = self._missed, 0
        return self._notice(missed)
