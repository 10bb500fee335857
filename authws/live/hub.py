"""The hub: which connections are open, in which rooms, and who hears what.

A message is encoded once and put into each member's outbox; nothing here waits for a
peer, so one that is dead or slow costs the others nothing.
"""

from __future__ import annotations

import math
import random
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator
from typing import Literal

from authws import close_codes
from authws.brokers.base import Broker
from authws.clock import Clock
from authws.decisions import messages
from authws.decisions.history import Position
from authws.decisions.lifecycle import revocation_close
from authws.decisions.limits import Limit
from authws.decisions.revocations import RevocationSnapshot
from authws.exceptions import MessageError, TooManyConnectionsError
from authws.live.connection import Connection
from authws.live.turn import Audience, Outgoing, Turn
from authws.principal import Principal

__all__ = ["Hub", "Room", "WhenFull"]

WhenFull = Literal["reject_new", "evict_oldest"]
"""What happens to a user's new connection when they have all they may have."""

FAREWELLS_PER_SECOND = 200.0
"""A restart ends at least so many: so few at once that their return hurts nobody."""
FAREWELL_TICK = 0.05
"""Seconds between two batches of a restart's farewells."""


class Room(Audience):
    """Its members, and how many connections each subject has in it."""

    __slots__ = ("subjects",)

    def __init__(self) -> None:
        super().__init__()
        self.subjects: Counter[str] = Counter()


class Hub:
    """Every open connection of this process."""

    def __init__(
        self,
        broker: Broker,
        *,
        clock: Clock,
        max_connections_per_user: int = 0,
        when_full: WhenFull = "reject_new",
        max_rooms: int = 100,
        on_revoked: Callable[[float], None] = lambda seconds: None,
    ) -> None:
        """Limits of 0 are off; ``max_rooms`` is per connection.

        ``on_revoked`` is told, for each connection that a revocation ended, how many
        seconds later its close frame went out.
        """
        self.connections: dict[str, Connection] = {}
        self.rooms: dict[str, Room] = {}
        self.revocations = RevocationSnapshot()
        self.messages_delivered = 0
        self.messages_dropped = 0
        self.turn = Turn(clock.now)
        self._broker = broker
        self._clock = clock
        self._max_connections_per_user = max_connections_per_user
        self._when_full = when_full
        self._on_revoked = on_revoked
        self._max_rooms = max_rooms
        self._by_user: defaultdict[str, dict[str, Connection]] = defaultdict(dict)
        self._by_session: defaultdict[str, dict[str, Connection]] = defaultdict(dict)

    async def start(self) -> None:
        """Begin to receive what the broker carries."""
        await self._broker.start(self)

    # ------------------------------------------------------------------ coming, going

    def admit(self, connection: Connection) -> None:
        """Register a connection; its user's oldest may have to go for it.

        Raises:
            TooManyConnectionsError: its user has as many as one user may have.
        """
        principal = connection.principal
        self.check_place(principal)
        of_user = self._by_user[_user(principal)]
        limit = self._max_connections_per_user
        while len(of_user) >= limit > 0:
            oldest = of_user.pop(next(iter(of_user)))
            oldest.end(
                close_codes.TOO_MANY_CONNECTIONS, limit=Limit.CONNECTIONS_PER_USER
            )
        self.connections[connection.id] = connection
        of_user[connection.id] = connection
        if principal.session and not principal.issuer:
            self._by_session[principal.session][connection.id] = connection
        connection.renewed = self._drop_forbidden_rooms

    def check_place(self, principal: Principal) -> None:
        """Refuse a user for whom ``admit`` would have no place.

        Raises:
            TooManyConnectionsError: they have as many as one user may have.
        """
        if self._when_full != "reject_new":
            return
        limit = self._max_connections_per_user
        if len(self._by_user.get(_user(principal), ())) >= limit > 0:
            raise TooManyConnectionsError(
                f"{limit} connections are open", Limit.CONNECTIONS_PER_USER
            )

    async def release(self, connection: Connection) -> None:
        """Forget a connection; whoever shares a room with it is told."""
        if self.connections.pop(connection.id, None) is None:
            return
        principal = connection.principal
        _discard(self._by_user, _user(principal), connection.id)
        _discard(self._by_session, principal.session, connection.id)
        self.messages_dropped += connection.dropped
        for name in tuple(connection.rooms):
            self._take_out(connection, name)
            await self._unsubscribe_if_empty(name)

    # -------------------------------------------------------------------------- rooms

    async def join(self, connection: Connection, name: str) -> None:
        """Make a connection a member of a room; joining twice changes nothing.

        Raises:
            MessageError: ``room_invalid``, ``forbidden``, ``too_many_rooms``.
        """
        messages.check_room(name)
        if not connection.principal.may("join", name):
            raise MessageError("forbidden", "no scope to join this room")
        if name not in connection.rooms:
            if len(connection.rooms) >= self._max_rooms > 0:
                raise MessageError(
                    "too_many_rooms",
                    f"a connection may be in {self._max_rooms} rooms",
                    limit=Limit.ROOMS,
                )
            room = self.rooms.get(name)
            if room is None:
                room = self.rooms[name] = Room()
                await self._broker.subscribe(name)
            if not connection.is_open:
                await self._unsubscribe_if_empty(name)
                return
            self._put_in(connection, name, room)
        connection.post(messages.joined(name, self.rooms[name].subjects))

    async def leave(self, connection: Connection, name: str) -> None:
        """Take a connection out of a room.

        Raises:
            MessageError: ``not_joined``.
        """
        if name not in connection.rooms:
            raise MessageError("not_joined", "not a member of this room")
        self._take_out(connection, name)
        connection.post(messages.left(name))
        await self._unsubscribe_if_empty(name)

    def publish(
        self, connection: Connection, message: messages.Publish
    ) -> Awaitable[None] | None:
        """Send a message to a room's members; None: that is done already.

        Raises:
            MessageError: ``forbidden``, ``not_joined``; nobody received it then.
        """
        name = message.room
        if name not in connection.rooms:
            raise MessageError("not_joined", "join the room first", message.id)
        if not connection.principal.may("publish", name):
            raise MessageError("forbidden", "no scope to publish here", message.id)
        at = self._clock.now()
        if not connection.lives_at(at):  # its time ran out since this was received
            return None
        body = messages.room_message(
            name, connection.principal.subject, message.data, at
        )
        handed_over = self._broker.publish(name, body)
        if handed_over is not None:
            return _acknowledge_once(handed_over, connection, message.id)
        _acknowledge(connection, message.id)
        return None

    def _put_in(self, connection: Connection, name: str, room: Room) -> None:
        subject = connection.principal.subject
        connection.rooms.add(name)
        room.subjects[subject] += 1
        if room.subjects[subject] == 1:
            self._tell(room, messages.presence(name, subject, "joined"))
        self.turn.finish()  # what was said so far was not said to the newcomer
        room.members[connection.id] = connection

    def _take_out(self, connection: Connection, name: str) -> None:
        room = self.rooms[name]
        subject = connection.principal.subject
        connection.rooms.discard(name)
        self.turn.finish()  # it was there when this was said
        del room.members[connection.id]
        room.subjects[subject] -= 1
        if room.subjects[subject] == 0:
            del room.subjects[subject]
            self._tell(room, messages.presence(name, subject, "left"))

    async def _unsubscribe_if_empty(self, name: str) -> None:
        room = self.rooms.get(name)
        if room is not None and not room.members:
            del self.rooms[name]
            await self._broker.unsubscribe(name)

    async def _drop_forbidden_rooms(self, connection: Connection) -> None:
        """After a renewal: leave the rooms that the new scopes no longer allow."""
        may = connection.principal.may
        forbidden = [name for name in connection.rooms if not may("join", name)]
        # out of all of them before the first wait, in which messages may come
        for name in forbidden:
            self._take_out(connection, name)
            connection.post(messages.left(name))
        for name in forbidden:
            await self._unsubscribe_if_empty(name)

    # ----------------------------------------------------------------------- delivery

    def deliver(self, channel: str, data: bytes, position: Position | None) -> None:
        """Hand what the broker carried to a room's members."""
        room = self.rooms.get(channel)
        if room is not None:
            self._tell(room, data)

    def interrupted(self, channels: Collection[str]) -> None:
        """Hear that something may not have arrived."""

    def _tell(self, room: Room, data: bytes) -> None:
        # a member whose outbox overflows is ended, not removed: the room stands still
        self.turn.tell(room, Outgoing(data))
        self.messages_delivered += len(room.members)

    # ------------------------------------------------------------ the right to exist

    def extend_session(self, session: str, expires_at: float) -> None:
        """A cookie's session was used again: its connections live until later."""
        for connection in self._by_session.get(session, {}).values():
            if connection.principal.strategy == "session_cookie":
                connection.extend(expires_at)

    def check_deadlines(self) -> None:
        """The wall clock was set: end what is over, and wait anew for the rest."""
        for connection in tuple(self.connections.values()):
            connection.check_deadline()

    def revoke_session(self, session: str, at: float) -> int:
        """End every connection of a session; return how many there were.

        ``at`` is when the database took the revocation, in seconds since the epoch.
        """
        self.revocations.revoke_session(session, at)
        return self._revoke(self._by_session.get(session, {}).values(), at)

    def revoke_subject(self, subject: str, at: float) -> int:
        """End what a user had opened by ``at``; return how many connections that was.

        A session that the user opened since then, after a new password, stays.
        """
        self.revocations.revoke_subject(subject, at)
        older = (
            connection
            for connection in self.of_subject(subject)
            if connection.principal.authenticated_at <= at
        )
        return self._revoke(older, at)

    def of_subject(self, subject: str) -> Iterator[Connection]:
        """The open connections of a user."""
        return iter(tuple(self._by_user.get(subject, {}).values()))

    def _revoke(self, connections: Iterable[Connection], at: float) -> int:
        ended = tuple(connections)
        for connection in ended:
            connection.end(revocation_close(connection.principal), revoked_at=at)
        return len(ended)

    def note_ending(self, connection: Connection) -> None:
        """Tell how long a revocation took, once the connection is over."""
        if connection.revoked_at is not None and connection.closed_at is not None:
            self._on_revoked(max(0.0, connection.closed_at - connection.revoked_at))

    # ------------------------------------------------------------------------ restart

    async def end_all(self, seconds: float) -> None:
        """End every connection for a restart, spread over at most ``seconds``.

        Each is told a moment of its own to come back at, so that the wave of returns
        is as flat as that of the farewells.
        """
        count = len(self.connections)
        per_second = max(FAREWELLS_PER_SECOND, count / max(seconds, FAREWELL_TICK))
        spread = count / per_second
        batch = max(1, math.ceil(per_second * FAREWELL_TICK))
        waiting = list(self.connections.values())
        while waiting:
            for connection in waiting[-batch:]:
                # when to come back is no secret
                connection.end_for_restart(round(1 + random.random() * spread, 1))  # noqa: S311
            del waiting[-batch:]
            if waiting:
                await self._clock.sleep(FAREWELL_TICK)


async def _acknowledge_once(
    handed_over: Awaitable[None], connection: Connection, message: messages.MessageId
) -> None:
    await handed_over
    _acknowledge(connection, message)


def _acknowledge(connection: Connection, message: messages.MessageId) -> None:
    if message is not None:
        connection.post(messages.ack(message))


def _user(principal: Principal) -> str:
    """The key of a user: a foreign issuer's ``alice`` is not our ``alice``."""
    if principal.issuer:
        # no user name of ours holds a space
        return f"{principal.issuer} {principal.subject}"
    return principal.subject


def _discard(
    index: defaultdict[str, dict[str, Connection]], key: str, connection: str
) -> None:
    of_key = index.get(key)
    if of_key is not None:
        of_key.pop(connection, None)
        if not of_key:
            del index[key]
