"""One order for what a channel is told two ways.

What is kept is heard once JetStream has kept it, what is only carried at once: sent
right behind the other it would overtake it. So it waits until what was sent before is
acknowledged; JetStream republishes before it acknowledges.
"""

from __future__ import annotations

import asyncio
from collections import deque
from functools import partial
from typing import NamedTuple

from authws.brokers.nats.connection import Connection
from authws.brokers.nats.waiting import Future
from authws.exceptions import UnavailableError

__all__ = ["Lanes"]


class _Message(NamedTuple):
    subject: str
    data: bytes
    is_kept: bool
    future: Future


class _Lane:
    """A channel of which something is being kept."""

    __slots__ = ("held", "under_way")

    def __init__(self) -> None:
        self.under_way = 0
        """How much was sent to be kept and is not acknowledged."""
        self.held: deque[_Message] = deque()


class Lanes:
    """Publishes, over one connection at a time."""

    def __init__(self) -> None:
        self._lanes: dict[str, _Lane] = {}

    def publish(
        self, link: Connection, channel: str, subject: str, data: bytes, is_kept: bool
    ) -> Future:
        """Send a message behind all others of its channel; done once the server has
        it, or has kept it.

        Raises:
            UnavailableError: too much waits, or it is too big.
        """
        link.admit(data)
        future = asyncio.get_running_loop().create_future()
        lane = self._lanes.get(channel)
        if lane is None:
            if not is_kept:
                link.carry(subject, data, future)
                return future
            lane = self._lanes[channel] = _Lane()
        lane.held.append(_Message(subject, data, is_kept, future))
        self._go_on(link, channel, lane)
        return future

    def fail(self, why: str) -> None:
        """Hear that the connection was lost."""
        for lane in self._lanes.values():
            for message in lane.held:
                if not message.future.done():
                    message.future.set_exception(UnavailableError(why))
        self._lanes.clear()

    def _go_on(self, link: Connection, channel: str, lane: _Lane) -> None:
        while lane.held and (lane.held[0].is_kept or not lane.under_way):
            subject, data, is_kept, future = lane.held.popleft()
            if is_kept:
                lane.under_way += 1
                settled = partial(self._settled, link, channel, lane)
                link.keep(subject, data, future, settled)
            else:
                link.carry(subject, data, future)
        if not lane.under_way:
            del self._lanes[channel]

    def _settled(self, link: Connection, channel: str, lane: _Lane) -> None:
        lane.under_way -= 1
        self._go_on(link, channel, lane)
