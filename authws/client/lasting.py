"""A connection that comes back by itself, and loses nothing where that can be.

After a loss it waits, each time longer and in step with nobody, opens another
connection, and joins its rooms again, each since the last message of it that was handed
on. What was being said is never said again: it may have arrived.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from authws.client.connection import Connection
from authws.client.endings import ClientError, EndedError, Ending, RefusedError
from authws.client.events import Event, Failure, MessageId, Restarting, Welcome
from authws.client.places import Places
from authws.close_codes import TOKEN_EXPIRED, CloseCode, Retry
from authws.decisions.history import Position

__all__ = ["LastingConnection", "Lost"]

FIRST_DELAY = 0.5
LONGEST_DELAY = 30.0
"""Seconds. A connection that lasted so long was no failed attempt."""
JOIN_AGAIN_AFTER = 1.0
"""Seconds from a join that was ``unavailable`` to the next try."""


@dataclass(frozen=True, slots=True)
class Lost:
    """The connection is gone; another one is tried in ``retry_after`` seconds."""

    error: ClientError
    retry_after: float


class LastingConnection:
    """Speaks the room protocol over one connection after another.

    Who listens hears of a loss by ``Lost``, once for each attempt that failed, and of
    the return by ``Welcome``. Then comes ``Joined`` for each room, which tells by
    ``recovered`` whether all that was missed follows. It comes back only while
    somebody listens.
    """

    def __init__(
        self, connection: Connection, again: Callable[[], Awaitable[Connection]]
    ) -> None:
        """``again`` opens another connection, up to and including the welcome."""
        self._connection: Connection | None = connection
        self._again = again
        self._places = Places()
        self._to_tell: deque[Event | Lost] = deque()
        self._why: ClientError | None = None
        """Why there is no connection."""
        self._come_back_at = 0.0
        self._attempts = 0
        self._asked_delay: float | None = None
        """Seconds that the server asked us to stay away."""
        self._opened_at = _now()
        self._join_again_at: float | None = None
        """When the rooms that are outstanding are to be asked for."""
        self._is_closed = asyncio.Event()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} over {self._connection!r}>"

    async def __aenter__(self) -> LastingConnection:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    @property
    def welcome(self) -> Welcome | None:
        """Who the server takes us for; None while there is no connection."""
        return self._connection.welcome if self._connection is not None else None

    async def close(self) -> None:
        """Leave for good, with a close frame; twice is no error."""
        self._is_closed.set()
        if self._connection is not None:
            await self._connection.close()

    # ------------------------------------------------------------------------ hearing

    async def receive_event(self) -> Event | Lost:
        """Return the next message of the room protocol, or the news of a loss.

        Raises:
            ClientError: it has ended, and coming back would not help: by the close
                table, or because it was closed here.
        """
        while not self._to_tell:
            try:
                await self._listen()
            except ClientError as error:
                self._lose(error)
        return self._to_tell.popleft()

    async def events(self) -> AsyncIterator[Event | Lost]:
        """Yield what ``receive_event`` returns.

        Raises:
            ClientError: as there.
        """
        while True:
            yield await self.receive_event()

    async def _listen(self) -> None:
        """Wait for something to tell, or to do."""
        connection = self._connection
        if connection is None:
            await self._come_back()
        elif self._join_again_at is not None and _now() >= self._join_again_at:
            await self._join_outstanding(connection)
        else:
            with suppress(TimeoutError):
                async with asyncio.timeout_at(self._join_again_at):
                    event = await connection.receive_event()
                self._take(event)

    def _take(self, event: Event) -> None:
        if isinstance(event, Restarting):
            self._asked_delay = event.retry_after
        self._to_tell += self._places.take(event)
        if (
            isinstance(event, Failure)
            and self._join_again_at is None
            and any(self._places.outstanding())
        ):
            self._join_again_at = _now() + JOIN_AGAIN_AFTER

    # ------------------------------------------------------------------------- saying

    async def join(self, room: str, *, since: Position | None = None) -> None:
        """Ask to become a member of a room, now or when the connection is back.

        ``since`` is a position from an earlier life of the program.
        """
        self._places.want(room, since)
        if self._connection is not None:
            with suppress(EndedError):  # who listens hears of it; it is asked again
                await self._connection.join(room, since=self._places.ask(room))

    async def leave(self, room: str) -> None:
        """Ask to be one no more; the position is forgotten."""
        self._places.leave(room)
        if self._connection is not None:
            with suppress(EndedError):  # it has left by that
                await self._connection.leave(room)

    async def publish(
        self, room: str, data: Any, *, message_id: MessageId = None
    ) -> None:
        """Say ``data``, any JSON value; with a ``message_id`` an ``Ack`` follows.

        Raises:
            ClientError: there is no connection, or it just ended. If that was while
                this was sent it may have arrived: it is not sent again by itself.
        """
        await self._current.publish(room, data, message_id=message_id)

    async def ping(self, message_id: MessageId = None) -> None:
        """Ask for a ``Pong``.

        Raises:
            ClientError: there is no connection.
        """
        await self._current.ping(message_id)

    async def authenticate(self, token: str) -> None:
        """Renew with a token; a ``Welcome`` follows.

        Raises:
            ClientError: there is no connection.
        """
        await self._current.authenticate(token)

    @property
    def _current(self) -> Connection:
        if self._connection is None:
            assert self._why is not None  # noqa: S101 - it was lost
            raise self._why
        return self._connection

    # ------------------------------------------------------------ losing, coming back

    def _lose(self, error: ClientError) -> None:
        """Take the loss, or raise what cannot be mended."""
        if self._is_closed.is_set() or not _is_mended_by_coming_back(error):
            raise error
        self._places.lose()
        delay = self._next_delay(error)
        self._come_back_at = _now() + delay
        self._connection = None
        self._join_again_at = None
        self._why = error
        self._to_tell.append(Lost(error, delay))

    def _next_delay(self, error: ClientError) -> float:
        was_open = self._connection is not None
        if was_open and _now() - self._opened_at > LONGEST_DELAY:
            self._attempts = 0
        delay: float = min(LONGEST_DELAY, FIRST_DELAY * 2 ** min(self._attempts, 16))
        self._attempts += 1
        asked, self._asked_delay = self._asked_delay, None
        if isinstance(error, RefusedError) and error.retry_after is not None:
            asked = error.retry_after
        if asked is not None:
            return asked
        return delay * (0.5 + random.random() / 2)  # noqa: S311 - jitter is no secret

    async def _come_back(self) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout_at(self._come_back_at):
                await self._is_closed.wait()
        self._check_open()
        connection = await self._again()
        if self._is_closed.is_set():
            await connection.close()
        self._check_open()
        self._connection = connection
        self._opened_at = self._join_again_at = _now()
        if connection.welcome is not None:
            self._to_tell.append(connection.welcome)
        await self._join_outstanding(connection)

    def _check_open(self) -> None:
        if self._is_closed.is_set():
            raise EndedError(Ending.of(CloseCode.NORMAL, ""))

    async def _join_outstanding(self, connection: Connection) -> None:
        for room in self._places.outstanding():
            await connection.join(room, since=self._places.ask(room))
        self._join_again_at = None  # and not before: who listens may be cancelled


def _is_mended_by_coming_back(error: ClientError) -> bool:
    if isinstance(error, EndedError) and error.ending.reason == TOKEN_EXPIRED.reason:
        return True  # a fresh one comes with the connection
    return error.retry is Retry.BACKOFF


def _now() -> float:
    return asyncio.get_running_loop().time()
