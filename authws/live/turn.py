"""What is to be written when this turn of the event loop ends.

A write costs the system far more than what is in it, so all that one peer is told in
one turn goes out as one: for most members of a room that is the same bytes, joined once
for all of them. Nothing waits longer than for what runs already, and the order is that
in which it was said, across rooms and answers.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

from authws import close_codes
from authws.decisions.frames import TEXT, encode_frame
from authws.decisions.redaction import log_failure

if TYPE_CHECKING:
    from authws.live.connection import Connection

__all__ = ["Audience", "Outgoing", "Turn"]

logger = logging.getLogger("authws")

MAX_PENDING = 65_536
"""Bytes that a turn may gather: more is written at once, for a transport takes all that
it is given, and must not be given more than an outbox may hold."""
MAX_SAID = 256
"""Messages that a turn may gather, for the same reason."""


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

    __slots__ = ("members", "pending")

    def __init__(self) -> None:
        self.members: dict[str, Connection] = {}
        self.pending: list[Outgoing] = []


class Turn:
    """Collects until the event loop has done what is ready, then writes."""

    def __init__(self, now: Callable[[], float]) -> None:
        """``now`` tells the time by which credentials expire."""
        self._now = now
        self._said: list[tuple[Audience, Outgoing]] = []
        """In the order in which it was said, across rooms."""
        self._size = 0
        self._audiences: list[Audience] = []
        self._apart: dict[Connection, int] = {}
        """Who is told something of their own, and up to which place of ``_said``
        they have it in their outbox."""
        self._is_scheduled = False

    def tell(self, audience: Audience, message: Outgoing) -> None:
        """Tell every member, at the end of this turn."""
        self._said.append((audience, message))
        self._size += message.size
        if not audience.pending:
            self._audiences.append(audience)
        audience.pending.append(message)
        if self._size > MAX_PENDING or len(self._said) >= MAX_SAID:
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
        """Write all that was said, now. Whatever fails costs nobody else a message."""
        if not self._said and not self._apart:
            return
        audiences, self._audiences = self._audiences, []
        now = self._now()
        if len(audiences) > 1:
            self._take_apart_who_hears_several(audiences)
        for audience in audiences:
            self._write(audience, now)
        for connection, place in self._apart.items():
            try:
                self._catch_up(connection, place)
                connection.write_out()
            except Exception:
                _give_up(connection)
        self._said.clear()
        self._apart.clear()
        self._size = 0

    def _schedule(self) -> None:
        if not self._is_scheduled:
            self._is_scheduled = True
            asyncio.get_running_loop().call_soon(self._end)

    def _end(self) -> None:
        self._is_scheduled = False
        self.finish()

    def _take_apart_who_hears_several(self, audiences: list[Audience]) -> None:
        """What they hear stands in no one room's bytes."""
        seen: set[Connection] = set()
        for audience in audiences:
            members = set(audience.members.values())
            for connection in seen & members:
                self._apart.setdefault(connection, 0)
            seen |= members

    def _write(self, audience: Audience, now: float) -> None:
        pending, audience.pending = audience.pending, []
        apart = self._apart
        joined = (
            pending[0].frame
            if len(pending) == 1
            else b"".join([message.frame for message in pending])
        )
        for connection in audience.members.values():
            if connection not in apart:
                try:
                    connection.hear(joined, pending, now)
                except Exception:
                    _give_up(connection)

    def _catch_up(self, connection: Connection, place: int) -> None:
        for audience, message in self._said[place:]:
            if connection.id in audience.members:
                connection.put(message)


def _give_up(connection: Connection) -> None:
    """End a connection that cannot be written to, for a fault of ours."""
    log_failure(logger, "connection %s cannot be written to", connection.id)
    with contextlib.suppress(Exception):
        connection.end(close_codes.INTERNAL_ERROR)
