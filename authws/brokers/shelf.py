"""The last messages of many channels, in this process's memory, within a bound."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable

from authws.brokers.base import Replay
from authws.decisions.history import Position, Retention

__all__ = ["Shelf"]

OVERHEAD = 160
"""Bytes that a message costs beyond its own, measured on CPython 3.11."""
CHANNEL_OVERHEAD = 920
"""Bytes that a channel costs beyond its name, with nothing in it; measured there."""
MAX_CHANNELS = 100_000
"""Channels whose place is remembered, with nothing of them kept any more."""


class Shelf:
    """Keeps what is put on it, per channel as long as that is to be kept.

    All channels share one bound in bytes: beyond it the channel that was silent for
    longest loses its messages, and whoever asks for them is told so.
    """

    def __init__(self, epoch: str, max_bytes: int, now: Callable[[], float]) -> None:
        """``max_bytes`` of 0 is off; ``now`` is a clock that does not jump."""
        self.epoch = epoch
        self.size = 0
        """Bytes that are kept, with what it costs to keep them."""
        self._max_bytes = max_bytes
        self._now = now
        self._channels: OrderedDict[str, _Channel] = OrderedDict()
        self._forgotten = 0
        """The highest offset of any channel that is not remembered."""
        self._known = 0
        """Up to this offset all is known, where channels share one row of offsets."""

    def append(self, channel: str, data: bytes, keep: Retention) -> Position:
        """Put a message behind the last one of its channel."""
        kept = self._of(channel)
        return self._put(kept, kept.top + 1, data, keep)

    def put(
        self,
        channel: str,
        offset: int,
        data: bytes,
        keep: Retention,
        age: float = 0.0,
    ) -> Position:
        """Put a message that has an offset already, higher than those before it, and
        was published ``age`` seconds ago."""
        return self._put(self._of(channel), offset, data, keep, age)

    def _put(
        self,
        kept: _Channel,
        offset: int,
        data: bytes,
        keep: Retention,
        age: float = 0.0,
    ) -> Position:
        now = self._now()
        kept.messages.append((offset, now - age, data))
        kept.top = offset
        self.size += len(data) + OVERHEAD
        self._trim(kept, keep, now)
        while self.size > self._max_bytes > 0 or len(self._channels) > MAX_CHANNELS:
            self._forget_oldest()
        return Position(self.epoch, offset)

    def forget_before(self, offset: int) -> None:
        """Hear that nothing is known of what came up to and with this offset."""
        self._forgotten = max(self._forgotten, offset)

    def know_up_to(self, offset: int) -> None:
        """Hear that up to and with this offset there is nothing but what was put here,
        in any channel."""
        self._known = max(self._known, offset)

    def replay(self, channel: str, keep: Retention, since: Position | None) -> Replay:
        """Return what a channel has kept since a position."""
        kept = self._channels.get(channel)
        if kept is None:
            kept = _Channel(self._forgotten)
        else:
            self._trim(kept, keep, self._now())
        known = max(kept.top, self._known)
        top = Position(self.epoch, kept.top if kept.messages else known)
        if since is None:
            return Replay((), True, top)
        if since.epoch != self.epoch or since.offset > known:
            return Replay((), False, top)
        missed = tuple(
            (Position(self.epoch, offset), data)
            for offset, _, data in kept.messages
            if offset > since.offset
        )
        return Replay(missed, since.offset >= kept.floor, top)

    def _of(self, channel: str) -> _Channel:
        kept = self._channels.get(channel)
        if kept is None:
            kept = self._channels[channel] = _Channel(self._forgotten)
            self.size += len(channel) + CHANNEL_OVERHEAD
        else:
            self._channels.move_to_end(channel)
        return kept

    def _trim(self, kept: _Channel, keep: Retention, now: float) -> None:
        messages = kept.messages
        most, oldest = keep.messages, now - keep.seconds
        while messages and (len(messages) > most or messages[0][1] < oldest):
            kept.floor, _, data = messages.popleft()
            self.size -= len(data) + OVERHEAD

    def _forget_oldest(self) -> None:
        channel, kept = self._channels.popitem(last=False)
        self.size -= len(channel) + CHANNEL_OVERHEAD
        self.size -= sum(len(data) + OVERHEAD for _, _, data in kept.messages)
        # whoever comes to this channel again begins above all that anybody may hold
        self._forgotten = max(self._forgotten, kept.top)


class _Channel:
    __slots__ = ("floor", "messages", "top")

    def __init__(self, top: int) -> None:
        self.messages: deque[tuple[int, float, bytes]] = deque()
        self.top = top
        self.floor = top
        """What came up to and with this offset is not kept."""
