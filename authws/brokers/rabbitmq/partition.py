"""What is kept: a stream that many channels share.

A stream a channel would be too much, as RabbitMQ never ends one by itself. So a channel
has its place in one of a few streams, and a worker that is asked for one channel reads
all of its stream, from what that still has on, for as long as the worker lives. What it
reads it hands on, and puts on a shelf, from which ``replay`` is answered.

Where a stream ends is found out with a mark: an entry of our own, and when we read it,
we have read all that was there before.

A stream that was deleted and made again begins at offset 0 again, and RabbitMQ does not
tell it from the old one. So the stream says itself in which epoch it is; and who comes
back to it looks whether the entry that was read last is still the same.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import Callable

from authws.brokers.lifeline import CALL_TIMEOUT
from authws.brokers.rabbitmq.layout import Stream
from authws.brokers.rabbitmq.log import Entry, StreamLog
from authws.brokers.rabbitmq.promises import (
    Promise,
    break_promise,
    keep_promise,
    outcome,
    promise,
    shared,
)
from authws.brokers.rabbitmq.publisher import Publisher
from authws.brokers.rabbitmq.reader import Reader
from authws.brokers.rabbitmq.records import Carried, Epoch, Kept, Mark, Record
from authws.brokers.rabbitmq.rounds import Rounds
from authws.brokers.rabbitmq.wire import Connection
from authws.brokers.shelf import Shelf
from authws.clock import Clock
from authws.decisions.history import Position
from authws.exceptions import UnavailableError

__all__ = ["Partition"]

MARK_COST = 0.01
"""Seconds for which a stream is left in peace for each mark in it: all workers together
write a hundred a second, however many ask them where the stream ends."""
MARK_CREDIT = 0.05
"""Seconds of peace that may be made up for later."""
RESUME_TIMEOUT = 3.0
"""Seconds in which a stream that goes on shows the entry that was read last."""

LOST = "the connection to RabbitMQ was lost"


class Partition:
    """One stream, as this worker reads it."""

    def __init__(
        self,
        stream: Stream,
        *,
        clock: Clock,
        hear: Callable[[Partition, str, bytes, Position | None], None],
        miss: Callable[[Partition], None],
        drop: Callable[[], None],
        lose: Callable[[str], None],
    ) -> None:
        """``hear`` is given each message, from the first on that is new; ``miss`` told
        that some were not to be had any more, ``drop`` of what is none of ours in form,
        and ``lose`` that only a new beginning helps."""
        self._hear = hear
        self._miss = miss
        self._drop = drop
        self._lose = lose
        self._clock = clock
        self._stream = stream
        self._log = self._new_log()
        self._ended = ""
        """An epoch that is over: the stream is not any more what was read of it."""
        self._is_read = False
        """Whether this worker was ever asked for it."""
        self._is_live = False
        """Whether what is read now is new."""
        # a part of a segment, another one for each worker: one reminds for all
        self._remind_after = stream.segment_bytes * (
            0.25 + secrets.randbelow(256) / 1024
        )
        self._connection: Connection | None = None
        self._publisher: Publisher | None = None
        self._reader = Reader(self._take)
        self._opening: asyncio.Task[None] | None = None
        self._found: asyncio.Future[Entry] | None = None
        """What there is where reading goes on, until that is known."""
        self._mark = Mark("")
        self._mark_read: Promise | None = None
        self._quiet_until = 0.0
        self._rounds = Rounds(self._catch_up, self._pause)

    @property
    def shelf(self) -> Shelf:
        """What was kept, as far as it was read."""
        return self._log.shelf

    async def connect(self, connection: Connection, publisher: Publisher) -> None:
        """Use a new connection; if the stream was read before, to read on.

        Raises:
            UnavailableError: it does not go on there. The next try begins anew.
        """
        self._connection, self._publisher = connection, publisher
        if self._is_read:
            await self._opened()

    async def begun(self) -> bool:
        """Return when what is new is handed on, if the stream was read before; and
        whether some of it was not.

        Raises:
            UnavailableError: the connection was lost meanwhile.
        """
        has_gap = self._is_read and not self._is_live
        if has_gap:
            await self.caught_up()
        return has_gap

    def disconnect(self) -> None:
        """Hear that the connection is none any more."""
        self._connection = self._publisher = self._opening = None
        self._reader.close()
        for waited_for in (self._found, self._mark_read):
            if waited_for is not None:
                break_promise(waited_for, LOST)
        self._found = self._mark_read = None

    def write(self, record: Record) -> Promise:
        """Publish an entry, in the order of the calls.

        Raises:
            UnavailableError: here or where it is awaited.
        """
        if self._publisher is None:
            raise UnavailableError(LOST)
        return self._publisher.publish(
            self._stream.key, record.encode(), must_arrive=True
        )

    async def caught_up(self) -> None:
        """Return when all is read that was published before this was called.

        Raises:
            UnavailableError: the connection was lost meanwhile.
        """
        await self._opened()
        await self._rounds.wait()

    # ------------------------------------------------------------------------- reading

    async def _opened(self) -> None:
        if self._opening is None:
            self._opening = shared(self._open())
        await outcome(self._opening)

    async def _open(self) -> None:
        if self._connection is None:
            raise UnavailableError(LOST)
        self._is_read = True
        self._reader = Reader(self._take)
        last = self._log.last
        if last is None:
            await self._reader.open(self._connection, self._stream.name, None)
            return
        looking = self._found = asyncio.get_running_loop().create_future()
        await self._reader.open(self._connection, self._stream.name, last.offset)
        found = None
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(RESUME_TIMEOUT):
                found = await looking
        self._found = None
        if found != last:
            # further on, what lies between became too old: that is no other stream
            if found is None or found.offset == last.offset:
                self._ended = self._log.epoch
            self._log, self._is_live = self._new_log(), False
            raise UnavailableError(
                f"{self._stream.name} does not go on where it was left"
            )

    def _new_log(self) -> StreamLog:
        return StreamLog(self._stream.keep, self._stream.max_bytes, self._clock)

    def _take(self, entry: Entry | None) -> None:
        last = self._log.last
        if entry is None:
            self._drop()
        elif self._found is not None:
            self._compare(entry)
        elif last is None or entry.offset > last.offset:
            self._read(entry)

    def _compare(self, entry: Entry) -> None:
        looking, last = self._found, self._log.last
        assert looking is not None and last is not None  # noqa: S101, PT018
        if entry.offset < last.offset:  # some versions send all of a chunk
            return
        self._found = None
        if entry != last:
            self._reader.close()  # what comes behind a gap is not taken
        looking.set_result(entry)

    def _read(self, entry: Entry) -> None:
        if self._is_live and not self._log.follows(entry):
            self._miss(self)  # the stream drops its oldest faster than we read
        match self._log.take(entry):
            case Kept(channel, data):
                if self._is_live:
                    self._hear(self, channel, data, self._log.position)
            case Carried(channel, data):
                if self._is_live:
                    self._hear(self, channel, data, None)
            case Mark() as mark:
                now = self._clock.monotonic()
                before = max(self._quiet_until, now - MARK_CREDIT)
                self._quiet_until = before + MARK_COST
                if mark == self._mark and self._mark_read is not None:
                    keep_promise(self._mark_read)
            case None:
                self._drop()
        if self._is_live and self._log.bytes_since_epoch > self._remind_after:
            self._remind()

    # ---------------------------------------------------------------- where the end is

    async def _pause(self) -> None:
        """Leave the stream in peace for a while, if many ask it."""
        await self._clock.sleep(max(0.0, self._quiet_until - self._clock.monotonic()))

    async def _catch_up(self) -> None:
        await self._read_mark()
        if self._log.epoch in ("", self._ended):
            await self.write(self._epoch(secrets.token_urlsafe(6), self._ended))
            await self._read_mark()
        self._ended = ""
        self._is_live = True

    async def _read_mark(self) -> None:
        """Write a mark, and read until it comes: that takes as long as it takes, but
        not without anything coming."""
        self._mark, is_read = Mark(secrets.token_urlsafe(9)), promise()
        self._mark_read = is_read
        await self.write(self._mark)
        while not is_read.done():
            before = self._log.last
            await asyncio.wait({is_read}, timeout=CALL_TIMEOUT)
            if not is_read.done() and self._log.last == before:
                self._lose(f"{self._stream.name} stands still")
        await is_read

    def _remind(self) -> None:
        """Say again in which epoch the stream is, before it is forgotten where that
        was said."""
        self._log.bytes_since_epoch = 0
        with contextlib.suppress(UnavailableError):  # another one comes
            self.write(self._epoch(self._log.epoch, ""))

    def _epoch(self, epoch: str, ends: str) -> Epoch:
        last = self._log.last
        return Epoch(epoch, ends, last.offset if last is not None else 0)
