"""What is to be written when this turn of the event loop ends.

A write costs the system far more than what is in it, so all that one peer is told in
one turn goes out as one: for most members of a room that is the same bytes, joined once
for all of them. Nothing waits longer than for what runs already, and the order is that
in which it was said, across rooms and answers.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING

from authws.decisions.frames import TEXT, encode_frame

if TYPE_CHECKING:
    from authws.live.connection import Connection

__all__ = ["Audience", "Outgoing", "Turn"]

MAX_PENDING = 65_536
"""Bytes of one room that may be joined: more is written at once, for a transport
takes all that it is given, and must not be given more than an outbox may hold."""


class Outgoing:
    """A room's message on its way to the members, encoded once."""

    __slots__ = ("_text", "frame", "size")

    def __init__(self, data: bytes) -> None:
        self.frame = encode_frame(TEXT, data)
        self.size = len(data)
        self._text: str | None = None

    @property
    def text(self) -> str:
        """The same for a server that takes messages, not frames."""
        if self._text is None:
            self._text = self.frame[-self.size :].decode() if self.size else ""
        return self._text


class Audience:
    """Who hears a room, and what was said there in this turn."""

    __slots__ = ("members", "pending", "size")

    def __init__(self) -> None:
        self.members: dict[str, Connection] = {}
        self.pending: list[Outgoing] = []
        self.size = 0


class Turn:
    """Collects until the event loop has done what is ready, then writes."""

    def __init__(self, now: Callable[[], float]) -> None:
        """``now`` tells the time by which credentials expire."""
        self._now = now
        self._said: list[tuple[Audience, Outgoing]] = []
        """In the order in which it was said, across rooms."""
        self._audiences: dict[Audience, None] = {}
        self._apart: dict[Connection, int] = {}
        """Who is told something of their own, and up to which place of ``_said``
        they have it in their outbox."""
        self._is_scheduled = False

    def tell(self, audience: Audience, message: Outgoing) -> None:
        """Tell every member, at the end of this turn."""
        self._said.append((audience, message))
        self._audiences[audience] = None
        audience.pending.append(message)
        audience.size += message.size
        if audience.size > MAX_PENDING:
            self.finish()
        else:
            self._schedule()

    def take_apart(self, connection: Connection) -> None:
        """Let what a connection was told so far into its outbox: what it is told
        next, alone, comes behind."""
        if self._said:
            self._catch_up(connection, self._apart.get(connection, 0))
        self._apart[connection] = len(self._said)
        self._schedule()

    def forget(self, connection: Connection) -> None:
        """Write nothing more to a connection that is over."""
        self._apart.pop(connection, None)

    def finish(self) -> None:
        """Write all that was said, now."""
        if not self._said and not self._apart:
            return
        now = self._now()
        if len(self._audiences) > 1:
            self._take_apart_who_hears_several()
        for audience in self._audiences:
            self._write(audience, now)
        for connection, place in self._apart.items():
            self._catch_up(connection, place)
            connection.write_out()
        for audience in self._audiences:
            audience.pending = []
            audience.size = 0
        self._said.clear()
        self._audiences.clear()
        self._apart.clear()

    def _schedule(self) -> None:
        if not self._is_scheduled:
            self._is_scheduled = True
            asyncio.get_running_loop().call_soon(self._end)

    def _end(self) -> None:
        self._is_scheduled = False
        self.finish()

    def _take_apart_who_hears_several(self) -> None:
        """What they hear stands in no one room's bytes."""
        seen: set[Connection] = set()
        for audience in self._audiences:
            members = set(audience.members.values())
            for connection in seen & members:
                self._apart.setdefault(connection, 0)
            seen |= members

    def _write(self, audience: Audience, now: float) -> None:
        pending, apart = audience.pending, self._apart
        joined = (
            pending[0].frame
            if len(pending) == 1
            else b"".join([message.frame for message in pending])
        )
        for connection in audience.members.values():
            if connection not in apart:
                connection.hear(joined, pending, now)

    def _catch_up(self, connection: Connection, place: int) -> None:
        for audience, message in self._said[place:]:
            if connection.id in audience.members:
                connection.put(message)
