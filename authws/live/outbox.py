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
from authws.decisions.limits import wire_size

__all__ = ["Outbox", "OutboxPolicy"]

OutboxPolicy = Literal["close", "drop_oldest", "drop_newest"]

_Waiting = tuple[int, str | bytes, int, int]
"""A message's place in the order, itself, its size, and how many were dropped right
before it. One stands in an outbox for every delivery: a bare tuple costs least."""


class Outbox:
    """A queue that ends, or drops, rather than grows. A limit of 0 is off.

    What may be dropped has a lane of its own, so that finding it costs no more behind
    a thousand answers that may not.
    """

    __slots__ = (
        "_answers",
        "_bytes",
        "_count",
        "_droppable",
        "_is_shut",
        "_max_bytes",
        "_max_messages",
        "_missed",
        "_notice",
        "_place",
        "_room",
        "dropped",
        "policy",
    )

    def __init__(
        self,
        max_messages: int,
        max_bytes: int,
        policy: OutboxPolicy = "close",
        notice: Callable[[int], str | bytes] = messages.dropped,
    ) -> None:
        """``notice`` makes the message that tells the peer how much it missed."""
        self.policy: OutboxPolicy = policy
        self.dropped = 0
        """How many messages were dropped so far."""
        self._max_messages = max_messages
        self._max_bytes = max_bytes
        self._notice = notice
        self._missed = 0
        """How many were dropped after all that waits, and not told."""
        # most peers are idle most of the time: what they do not need is not made
        self._answers: deque[_Waiting] | None = None
        self._droppable: deque[_Waiting] | None = None
        self._is_shut = False  # to what may be dropped, until there is room again
        self._place = 0
        self._count = self._bytes = 0
        self._room: asyncio.Event | None = None
        """Set, and forgotten, when there is room again."""

    def __len__(self) -> int:
        """How many messages wait."""
        return self._count

    @property
    def size(self) -> int:
        """How many bytes wait, as they will stand on the wire."""
        return self._bytes

    @property
    def has_room(self) -> bool:
        """Whether it is not, or no longer, more than half full."""
        return self._room is None

    def put(
        self,
        payload: str | bytes,
        *,
        size: int | None = None,
        droppable: bool = False,
    ) -> bool:
        """Append a message; False if that is more than the outbox may hold.

        ``size`` is that of the message in bytes, if ``payload`` is more than that: a
        whole frame. A ``droppable`` one is taken by the policies that drop, whatever
        becomes of it.
        """
        if size is None:
            size = wire_size(payload)
        missed = 0
        if droppable and self.policy != "close":
            if not self._make_room_for_droppable(size):
                self._is_shut = True
                self._count_missed()
                return True
            if self._droppable is None:
                self._droppable = deque()
            lane = self._droppable
            self._is_shut = False
        elif self._fits(size) or self._make_room(size):
            if self._answers is None:
                self._answers = deque()
            lane = self._answers
        else:
            return False
        if self._missed:  # what was dropped stood here
            missed, self._missed = self._missed, 0
        lane.append((self._place, payload, size, missed))
        self._place += 1
        self._count += 1
        self._bytes += size
        if self._room is None and self._is_above(2):
            self._room = asyncio.Event()
        return True

    def take(self) -> str | bytes | None:
        """Remove and return the oldest message; None if there is none."""
        lane = self._answers
        if self._droppable and not (lane and lane[0][0] < self._droppable[0][0]):
            lane = self._droppable
        if self._missed and not lane:
            missed, self._missed = self._missed, 0
            return self._notice(missed)
        if not lane:
            return None
        place, payload, size, missed = lane[0]
        if missed:
            lane[0] = (place, payload, size, 0)
            return self._notice(missed)
        lane.popleft()
        self._forget(size)
        return payload

    def clear(self) -> None:
        """Forget what waits, and let nobody wait for room any longer."""
        self._answers = self._droppable = None
        self._count = self._bytes = self._missed = 0
        self._make_known_there_is_room()

    def has_room_for(self, payload: str | bytes) -> bool:
        """Tell whether a message can go in without a wait."""
        return self.has_room and self._fits(wire_size(payload))

    async def wait_for_room(self, payload: str | bytes) -> None:
        """Wait while it is more than half full, until it is down to a quarter, and
        for as long as this message would not fit."""
        size = wire_size(payload)
        while self._room is not None or not self._fits(size):
            if self._room is None:
                self._room = asyncio.Event()
            await self._room.wait()

    # ---------------------------------------------------------------------- the bound

    def _fits(self, size: int) -> bool:
        """Tell whether so much more may wait; one message alone always may."""
        if not self._count:
            return True
        if 0 < self._max_messages <= self._count:
            return False
        return self._max_bytes <= 0 or self._bytes + size <= self._max_bytes

    def _is_above(self, share: int) -> bool:
        """Tell whether it holds more than one ``share``-th of either limit."""
        return (
            self._bytes * share > self._max_bytes > 0
            or self._count * share > self._max_messages > 0
        )

    def _forget(self, size: int) -> None:
        self._count -= 1
        self._bytes -= size
        if self._room is not None and not self._is_above(4):
            self._make_known_there_is_room()
        if not self._count:
            self._answers = None

    def _make_known_there_is_room(self) -> None:
        if self._room is not None:
            self._room.set()
            self._room = None

    # ----------------------------------------------------------------------- dropping

    def _make_room(self, size: int) -> bool:
        """Drop what has to go, and may, for this much; False if it is not enough."""
        while not self._fits(size):
            if not self._drop_one():
                return False
        return True

    def _make_room_for_droppable(self, size: int) -> bool:
        if self.policy == "drop_oldest":
            return self._make_room(size)
        # once one did not fit, none goes in until there is room again, so that a peer
        # misses one long run and not every other
        return self._fits(size) and (self.has_room or not self._is_shut)

    def _drop_one(self) -> bool:
        """Drop a room's message, the oldest or the newest; False if none waits."""
        lane = self._droppable
        if not lane:
            return False
        _, _, size, missed = (
            lane.popleft() if self.policy == "drop_oldest" else lane.pop()
        )
        self._missed += missed
        self._count_missed()
        self._forget(size)
        if lane and self.policy == "drop_oldest":  # told before the next of its kind
            place, payload, size, missed = lane[0]
            lane[0] = (place, payload, size, missed + self._missed)
            self._missed = 0
        return True

    def _count_missed(self) -> None:
        self.dropped += 1
        self._missed += 1
