"""The two connections to a Redis server: one for commands, one that listens.

redis-py connects, logs in and parses. When to send, whose answer is whose, and what
is to be done about a loss is decided here: its own clients try again by themselves,
and would publish twice, or come back without a word of what was missed.
"""

from __future__ import annotations

import asyncio
import math
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any, NamedTuple

from redis.asyncio.connection import Connection
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError

from authws.brokers.redis.wire import EVAL_PUBLISH, EVALSHA_PUBLISH, Names, command
from authws.decisions.history import Position
from authws.exceptions import UnavailableError

__all__ = ["MAX_WAITING", "MAX_WAITING_BYTES", "CommandLine", "Events", "ListenLine"]

MAX_WAITING = 10_000
MAX_WAITING_BYTES = 8_388_608
"""What may wait here to be published, or for Redis to say that it was."""
BATCH_BYTES = 65_536
"""What is sent at once: Redis serves nobody else while it works on it."""
BATCH_NAMES = 1000
"""Channels of one SUBSCRIBE."""
TURN = 64
"""Answers that are taken before others of this process have their turn."""

LOST = "the connection to Redis was lost"

_MESSAGES = {b"message", b"smessage"}
_PONG = b"pong"


class Events(NamedTuple):
    """Whom the lines tell what happens."""

    ended: Callable[[Exception], None]
    """The connection was lost; told once."""
    refused: Callable[[ResponseError], None]
    """Redis answered with an error."""
    arrived: Callable[[bytes, bytes], None]
    """Something was published on a channel of this name."""
    moved: Callable[[bytes], None]
    """The channel of this name is not served here any more."""


class Line(ABC):
    """One connection: what is to be sent is joined, what arrives is taken in turn."""

    def __init__(self, connection: Connection, events: Events) -> None:
        self.is_open = True
        self._connection = connection
        self._events = events
        self._loop = asyncio.get_running_loop()
        self._wake = asyncio.Event()
        self._tasks = [
            self._loop.create_task(self._watch(coroutine))
            for coroutine in (self._send(), self._receive())
        ]

    async def close(self) -> None:
        """Let go of it; whoever waits for an answer is told."""
        self._end()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._connection.disconnect(nowait=True)

    @abstractmethod
    def _next_batch(self) -> bytes:
        """Take what is to be sent now; empty if there is nothing."""

    @abstractmethod
    def _take(self, answer: Any) -> None:
        """Take what arrived: a reply, or a ResponseError."""

    @abstractmethod
    def _abandon(self) -> None:
        """Tell whoever waits that no answer will come."""

    def _expect(self) -> asyncio.Future[Any]:
        if not self.is_open:
            raise UnavailableError(LOST)
        self._wake.set()
        return self._loop.create_future()

    async def _send(self) -> None:
        connection = self._connection
        while True:
            await self._wake.wait()
            self._wake.clear()
            while batch := self._next_batch():
                if not connection.is_connected:  # it would connect anew by itself
                    raise RedisConnectionError("closed")
                await connection.send_packed_command(batch, check_health=False)

    async def _receive(self) -> None:
        count = 0
        while True:
            try:
                answer = await self._connection.read_response(
                    disable_decoding=True, timeout=math.inf
                )
            except ResponseError as error:
                answer = error
            self._take(answer)
            count += 1
            if count % TURN == 0:  # what is there already is read without a wait
                await asyncio.sleep(0)

    async def _watch(self, coroutine: Coroutine[Any, Any, None]) -> None:
        try:
            await coroutine
        except Exception as error:
            if self.is_open:
                self._end()
                self._events.ended(error)

    def _end(self) -> None:
        self.is_open = False
        self._abandon()


class _Call(NamedTuple):
    """A command, and who waits for its answer."""

    packed: bytes
    is_kept: bool
    future: asyncio.Future[Any]


class CommandLine(Line):
    """Sends commands in the order of the calls; Redis answers in the same order."""

    def __init__(self, connection: Connection, events: Events) -> None:
        self._waiting: deque[_Call] = deque()
        self._sent: deque[_Call] = deque()
        self._bytes = 0
        super().__init__(connection, events)

    def publish(self, packed: bytes, *, is_kept: bool) -> asyncio.Future[Any]:
        """Send what ``Wire.carry`` or, if it is to be kept, ``Wire.keep`` returned.

        Raises:
            UnavailableError: too much waits already.
        """
        if (
            self._bytes >= MAX_WAITING_BYTES
            or len(self._waiting) + len(self._sent) >= MAX_WAITING
        ):
            raise UnavailableError("too much waits for Redis")
        return self._call(packed, is_kept)

    def ask(self, *words: bytes) -> asyncio.Future[Any]:
        """Send any other command."""
        return self._call(command(*words), False)

    def _call(self, packed: bytes, is_kept: bool) -> asyncio.Future[Any]:
        future = self._expect()
        self._waiting.append(_Call(packed, is_kept, future))
        self._bytes += len(packed)
        return future

    def _next_batch(self) -> bytes:
        parts = []
        size = 0
        # The first of each batch brings the script: whatever Redis forgot, no call is
        # answered with NOSCRIPT, to be sent again behind those that came after it.
        head = EVAL_PUBLISH
        while self._waiting and size < BATCH_BYTES:
            call = self._waiting.popleft()
            if call.is_kept:
                parts.append(head)
                head = EVALSHA_PUBLISH
            parts.append(call.packed)
            size += len(call.packed)
            self._sent.append(call)
        return b"".join(parts)

    def _take(self, answer: Any) -> None:
        call = self._sent.popleft()
        self._bytes -= len(call.packed)
        if isinstance(answer, ResponseError):
            _fail(call.future, refusal(answer))
            self._events.refused(answer)
        elif not call.future.done():
            call.future.set_result(answer)

    def _abandon(self) -> None:
        for call in (*self._sent, *self._waiting):
            _fail(call.future, UnavailableError(LOST))
        self._sent.clear()
        self._waiting.clear()


class _Wish(NamedTuple):
    """A subscription that is to begin or to end, or a ping."""

    answer: bytes
    """The first word of what Redis confirms it with: that of the command as well."""
    name: bytes
    slot: int
    future: asyncio.Future[Any]


class ListenLine(Line):
    """Subscribes, and hears what is published."""

    def __init__(
        self,
        connection: Connection,
        events: Events,
        subscribed: dict[bytes, Position | None],
        *,
        is_sharded: bool,
    ) -> None:
        """``subscribed`` gets the channels whose subscription Redis confirms."""
        self._subscribed = subscribed
        self._shard = b"s" if is_sharded else b""
        self._waiting: deque[_Wish] = deque()
        self._sent: deque[deque[_Wish]] = deque()
        """What is to be confirmed, command by command."""
        super().__init__(connection, events)

    def subscribe(self, names: Names) -> asyncio.Future[Any]:
        """Ask for what is published on a channel; ends when Redis has confirmed it."""
        return self._wish(self._shard + b"subscribe", names.channel, names.slot)

    def unsubscribe(self, names: Names) -> asyncio.Future[Any]:
        """Ask for it no longer."""
        return self._wish(self._shard + b"unsubscribe", names.channel, names.slot)

    def ping(self) -> asyncio.Future[Any]:
        """Ask for a sign of life."""
        return self._wish(_PONG, b"", 0)

    def _wish(self, answer: bytes, name: bytes, slot: int) -> asyncio.Future[Any]:
        future = self._expect()
        self._waiting.append(_Wish(answer, name, slot, future))
        return future

    def _next_batch(self) -> bytes:
        parts = []
        while self._waiting:
            group = self._next_group()
            self._sent.append(group)
            if group[0].answer == _PONG:
                parts.append(command(b"ping"))
            else:
                parts.append(command(group[0].answer, *(wish.name for wish in group)))
        return b"".join(parts)

    def _next_group(self) -> deque[_Wish]:
        """Take what stands together and goes into one command: the same one, and, in a
        cluster, of the same slot."""
        group = deque([self._waiting.popleft()])
        limit = 1 if group[0].answer == _PONG else BATCH_NAMES
        while (
            self._waiting
            and len(group) < limit
            and self._waiting[0].answer == group[0].answer
            and self._waiting[0].slot == group[0].slot
        ):
            group.append(self._waiting.popleft())
        return group

    def _take(self, answer: Any) -> None:
        if isinstance(answer, ResponseError):
            for wish in self._sent.popleft():
                _fail(wish.future, refusal(answer))
            self._events.refused(answer)
        elif not isinstance(answer, list):
            self._confirm(_PONG, b"")  # not the usual form: nothing is subscribed yet
        elif answer[0] in _MESSAGES:
            self._events.arrived(answer[1], answer[2])
        else:
            self._confirm(answer[0], answer[1])

    def _confirm(self, answer: bytes, name: bytes) -> None:
        group = self._sent[0] if self._sent else None
        if group is None or (group[0].answer, group[0].name) != (answer, name):
            # nobody asked for it: a cluster has moved the channel's slot
            self._events.moved(name)
            return
        wish = group.popleft()
        if not group:
            self._sent.popleft()
        if answer == self._shard + b"subscribe":
            self._subscribed[name] = None
        elif answer != _PONG:
            self._subscribed.pop(name, None)
        if not wish.future.done():
            wish.future.set_result(None)

    def _abandon(self) -> None:
        for wish in (*(wish for group in self._sent for wish in group), *self._waiting):
            if wish.answer == self._shard + b"unsubscribe":
                self._subscribed.pop(wish.name, None)
            _fail(wish.future, UnavailableError(LOST))
        self._sent.clear()
        self._waiting.clear()


def code(error: ResponseError) -> str:
    """Return the word that an error of Redis begins with, such as ``OOM``."""
    return error.status_code or str(error).partition(" ")[0]


def refusal(error: ResponseError) -> UnavailableError:
    """Return what to raise; Redis' own sentences may quote what it was sent."""
    return UnavailableError(f"Redis refused it: {code(error)}")


def _fail(future: asyncio.Future[Any], error: UnavailableError) -> None:
    if not future.done():
        future.set_exception(error)
        future.exception()  # nothing is to be logged if nobody waits for it any more
