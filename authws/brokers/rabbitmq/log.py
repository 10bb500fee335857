"""What a partition's entries say, in the order in which they are read. No I/O."""

from __future__ import annotations

from typing import NamedTuple

from authws.brokers.rabbitmq.records import Epoch, Kept, Record, decode
from authws.brokers.shelf import Shelf
from authws.clock import Clock
from authws.decisions.history import Position, Retention

__all__ = ["Entry", "StreamLog"]

LONGEST_STEP = 2
"""From an entry's offset to the next one's. Each new segment begins with one of
RabbitMQ's own, which has an offset and is not sent (seen with 3.10); what is dropped is
a segment at least, and so a longer step."""
ENTRY_OVERHEAD = 80
"""Bytes that RabbitMQ adds to an entry, about."""


class Entry(NamedTuple):
    """One entry of a stream."""

    offset: int
    body: bytes


class StreamLog:
    """A stream, from the first entry that it still has to the last that was read."""

    def __init__(self, keep: Retention, max_bytes: int, clock: Clock) -> None:
        self.last: Entry | None = None
        """What was read last: from there reading goes on."""
        self.bytes_since_epoch = 0
        """How much was read since the stream said in which epoch it is."""
        self._keep = keep
        self._max_bytes = max_bytes
        self._clock = clock
        self.shelf = self._new_shelf("")

    @property
    def epoch(self) -> str:
        """In which epoch the offsets are; empty: that is not known yet."""
        return self.shelf.epoch

    @property
    def position(self) -> Position:
        """The place of what was read last. Offsets begin at 1 here, and at 0 in the
        stream: 0 is before the first."""
        return Position(self.epoch, self.last.offset + 1 if self.last else 0)

    def follows(self, entry: Entry) -> bool:
        """Whether nothing lies between what was read last and this."""
        return self.last is None or entry.offset - self.last.offset <= LONGEST_STEP

    def take(self, entry: Entry) -> Record | None:
        """Take the next entry, and return what it is; None: nothing of ours."""
        if self.last is None or not self.follows(entry):
            self.shelf = self._new_shelf(self.epoch)
            self.shelf.forget_before(entry.offset)
        self.last = entry
        place = entry.offset + 1
        self.shelf.know_up_to(place)
        self.bytes_since_epoch += len(entry.body) + ENTRY_OVERHEAD
        record = decode(entry.body)
        if isinstance(record, Kept):
            age = max(0.0, self._clock.now() - record.at)
            self.shelf.put(record.channel, place, record.data, self._keep, age)
        elif isinstance(record, Epoch) and record.seen < entry.offset:
            self._enter(record, place)
        return record

    def _enter(self, record: Epoch, place: int) -> None:
        if not self.epoch:  # what was read before is in it as well
            self.shelf.epoch = record.epoch
        elif record.ends == self.epoch:
            self.shelf = self._new_shelf(record.epoch)
            self.shelf.forget_before(place)
            self.shelf.know_up_to(place)
        if record.epoch == self.epoch:
            self.bytes_since_epoch = 0

    def _new_shelf(self, epoch: str) -> Shelf:
        return Shelf(epoch, self._max_bytes, self._clock.monotonic)
