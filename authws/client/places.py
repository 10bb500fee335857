"""The rooms that a client is in, and how much it has of each: across connections.

Positions are the server's: within one epoch a higher offset is later, and nothing is
known of how two epochs follow each other.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import replace

from authws.client.events import Event, Failure, Joined, Left, Message, Resync
from authws.decisions.history import Position

__all__ = ["Places"]

UNAVAILABLE = "unavailable"
"""The slug of a join that may succeed later, by itself."""
NOT_JOINED = "not_joined"
"""The slug that never answers a join."""


class Places:
    """Knows what to ask for after a reconnection, and what was handed on before."""

    def __init__(self) -> None:
        self._held: dict[str, Position | None] = {}
        """By room that we want to be in: up to where we have what was said."""
        self._asked: deque[str] = deque()
        """Joins that are not answered yet; they are answered in this order."""
        self._inside: set[str] = set()
        self._left_behind: set[str] = set()
        """Where we were when a connection was lost, and are not again."""

    def want(self, room: str, since: Position | None = None) -> None:
        """Note that we want to be in a room, and have what came up to ``since``."""
        held = self._held.get(room)
        self._held[room] = since if held is None else held

    def ask(self, room: str) -> Position | None:
        """Note that a join is sent; return since when to ask for what was said."""
        self._asked.append(room)
        return self._held[room]

    def leave(self, room: str) -> None:
        """Forget a room and its position."""
        self._held.pop(room, None)
        self._inside.discard(room)
        self._left_behind.discard(room)

    def lose(self) -> None:
        """Note that the connection is gone: nothing that was asked is answered."""
        self._left_behind |= self._inside
        self._inside.clear()
        self._asked.clear()

    def outstanding(self) -> Iterator[str]:
        """The rooms that have to be joined, again or still."""
        for room in tuple(self._held):
            is_settled = room in self._inside or room in self._asked
            if room in self._held and not is_settled:  # it may be left meanwhile
                yield room

    def take(self, event: Event) -> tuple[Event, ...]:
        """Note what the server said; return what to hand on: nothing if we had it."""
        match event:
            case Message():
                return (event,) if self._is_new(event) else ()
            case Joined():
                return (self._joined(event),)
            case Resync() if event.room in self._held:
                self._held[event.room] = event.position
            case Left():
                self._left(event.room)
            case Failure(id=None):
                return (event, *self._refused(event.slug))
        return (event,)

    def _is_new(self, message: Message) -> bool:
        position = message.position
        if position is None or message.room not in self._held:
            return True
        held = self._held[message.room]
        if (
            held is not None
            and held.epoch == position.epoch
            and held.offset >= position.offset
        ):
            return False
        self._held[message.room] = position
        return True

    def _joined(self, joined: Joined) -> Joined:
        room = joined.room
        if room in self._asked:
            self._asked.remove(room)
            if room not in self._held:  # left again before this came
                return joined
        self._held[room] = joined.position
        self._inside.add(room)
        if room in self._left_behind:
            self._left_behind.discard(room)
            if joined.recovered is None:  # nothing is kept there: something may lack
                return replace(joined, recovered=False)
        return joined

    def _left(self, room: str) -> None:
        if room in self._asked:  # the next answer lets us in again
            self._held[room] = None
            self._inside.discard(room)
        else:
            self.leave(room)

    def _refused(self, slug: str) -> tuple[Left, ...]:
        """Take a refusal that names nothing for that of the oldest join, if any.

        It may be that of a publish without an id: then ``joined`` comes all the same,
        and mends this.
        """
        if slug == NOT_JOINED or not self._asked:
            return ()
        room = self._asked.popleft()
        if slug == UNAVAILABLE:
            return ()
        was_there = room in self._left_behind
        self.leave(room)
        return (Left(room),) if was_there else ()
