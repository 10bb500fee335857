"""The rooms that are open on this worker: who is in, what is said, what was missed.

A room is opened with its first member here and closed with its last. What is said goes
to the broker and comes back from it, the publisher's own members included, so that all
hear it in the same order. Where the broker keeps what is said, a room has a position,
and whatever brings what lies beyond it, live or read again, is told once.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import Awaitable, Collection, Coroutine, Iterator, Mapping
from typing import Any, NamedTuple

from authws.clock import Clock
from authws.decisions import gossip, messages
from authws.decisions.envelopes import Kind
from authws.decisions.history import HistoryRules, Position
from authws.decisions.limits import Limit
from authws.exceptions import ConnectionClosed, MessageError, UnavailableError
from authws.live.carrier import Carrier
from authws.live.cluster import Cluster
from authws.live.connection import Connection
from authws.live.presence import Presence
from authws.live.room import Room
from authws.live.turn import Outgoing, Turn

__all__ = ["Rooms"]

MAX_UNACKNOWLEDGED = 64
"""Publishes of one peer that are on their way to the broker before its next message
waits for one of them."""
MAX_HELD = 1000
"""Messages of a room that wait until it is known what is missing before them."""
RESUME_EVERY = 0.25
"""Seconds between two tries to read what is missing, the broker being away."""
PASSES = 16
"""Times that a joining peer, reading what it missed, may find that more was said."""


class Missed(NamedTuple):
    """What a joining peer is to be told first."""

    messages: tuple[tuple[Position, bytes], ...]
    is_complete: bool


class Rooms(Mapping[str, Room]):
    """Every room that is open here, by its name."""

    def __init__(
        self,
        carrier: Carrier,
        cluster: Cluster,
        *,
        clock: Clock,
        turn: Turn,
        history: HistoryRules,
        max_rooms: int = 100,
        max_presence: int = 1000,
    ) -> None:
        """Limits of 0 are off.

        Args:
            carrier: brings what is said to every worker.
            cluster: the other workers.
            clock: where the time is read.
            turn: writes to members.
            history: which rooms keep how much.
            max_rooms: how many rooms a connection may be in.
            max_presence: subjects in a room up to which each coming and going is told.
        """
        self._by_name: dict[str, Room] = {}
        self.messages_delivered = 0
        self.recovered: Counter[str] = Counter()
        """How often something was missed, by what came of it."""
        self._carrier = carrier
        self._clock = clock
        self._turn = turn
        self._history = history
        self._max_rooms = max_rooms
        self._max_presence = max_presence
        self._presence = Presence(
            self._by_name, carrier, cluster, clock, self._tell_presence
        )
        self._resuming: set[asyncio.Task[None]] = set()

    def __getitem__(self, name: str) -> Room:
        return self._by_name[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._by_name)

    def __len__(self) -> int:
        return len(self._by_name)

    # ----------------------------------------------------------------- joining, leaving

    async def join(
        self, connection: Connection, name: str, since: Position | None = None
    ) -> None:
        """Make a connection a member of a room; joining twice changes nothing.

        With ``since`` it is told first what it missed, or that this cannot be known.

        Raises:
            MessageError: ``room_invalid``, ``forbidden``, ``too_many_rooms``,
                ``unavailable``.
        """
        messages.check_room(name)
        if not connection.principal.may("join", name):
            raise MessageError("forbidden", "no scope to join this room")
        if name in connection.rooms:
            connection.post(self._joined(self._by_name[name], None))
            return
        if len(connection.rooms) >= self._max_rooms > 0:
            raise MessageError(
                "too_many_rooms",
                f"a connection may be in {self._max_rooms} rooms",
                limit=Limit.ROOMS,
            )
        try:
            with self._held_open(name) as room:
                await self._open(room)
                if since is None:
                    if connection.is_open:
                        self._let_in(connection, room)
                        connection.post(self._joined(room, None))
                else:
                    await self._recover(connection, room, since)
        except UnavailableError:
            raise MessageError(
                "unavailable", "the broker does not answer, or refuses; try again later"
            ) from None
        finally:
            await self._close_if_empty(name)

    async def leave(self, connection: Connection, name: str) -> None:
        """Take a connection out of a room.

        Raises:
            MessageError: ``not_joined``.
        """
        if name not in connection.rooms:
            raise MessageError("not_joined", "not a member of this room")
        await self.leave_all(connection, (name,))

    async def leave_all(self, connection: Connection, names: Collection[str]) -> None:
        """Take a connection out of rooms, and tell it so."""
        # out of all of them before the first wait, in which messages may come
        for name in names:
            self._take_out(connection, name)
            connection.post(messages.left(name))
        for name in names:
            await self._close_if_empty(name)

    async def forget(self, connection: Connection) -> None:
        """Take a connection that is over out of its rooms."""
        for name in tuple(connection.rooms):
            self._take_out(connection, name)
            await self._close_if_empty(name)

    def _take_out(self, connection: Connection, name: str) -> None:
        room = self._by_name[name]
        connection.rooms.discard(name)
        self._turn.finish()  # it was there when this was said
        del room.members[connection.id]
        self._presence.leave(room, connection.principal.subject)

    def _let_in(self, connection: Connection, room: Room) -> None:
        connection.rooms.add(room.name)
        self._presence.arrive(room, connection.principal.subject)
        self._turn.finish()  # what was said so far was not said to the newcomer
        room.members[connection.id] = connection

    @contextlib.contextmanager
    def _held_open(self, name: str) -> Iterator[Room]:
        room = self._by_name.get(name)
        if room is None:
            room = self._by_name[name] = Room(name, self._history.of(name))
        room.joining += 1
        try:
            yield room
        finally:
            room.joining -= 1

    async def _open(self, room: Room) -> None:
        async with room.lock:
            if room.is_open:
                return
            await self._carrier.subscribe(room.name, room.keep)
            if self._carrier.is_shared:
                await self._presence.learn(room.name)
            doubts = -1
            while room.keep is not None and room.doubts != doubts:
                doubts = room.doubts  # what is lost meanwhile is not behind its place
                replay = await self._carrier.replay(room.name, room.keep, None)
                self._move(room, replay.top)
            room.is_open = True

    async def _close_if_empty(self, name: str) -> None:
        room = self._by_name.get(name)
        if room is not None and not room.members and not room.joining:
            del self._by_name[name]
            self._presence.close(name)
            await self._carrier.unsubscribe(name)

    def _joined(
        self,
        room: Room,
        is_recovered: bool | None,
        since: Position | None = None,
        members: set[str] | int | None = None,
    ) -> str:
        return messages.joined(
            room.name,
            self._here(room) if members is None else members,
            is_recovered=is_recovered,
            position=since or room.position,
        )

    def _here(self, room: Room, *also: str) -> set[str] | int:
        """Return who is in a room, these ``also``; of too many only how many."""
        count = len(room.present) + sum(one not in room.present for one in also)
        if count > self._max_presence > 0:
            return count  # a set of them would cost each who comes all who are there
        return room.present.keys() | also

    # ------------------------------------------------------------ what a peer missed

    async def _recover(
        self, connection: Connection, room: Room, since: Position
    ) -> None:
        """Let a connection in behind all that it missed, or say that it cannot be."""
        missed = await self._missed(room, since)
        if not connection.is_open:
            return
        self.recovered["whole" if missed.is_complete else "not_whole"] += 1
        if not missed.is_complete:
            self._let_in(connection, room)
            connection.post(self._joined(room, False))
            return
        told = self._here(room, connection.principal.subject)
        connection.post(self._joined(room, True, since, told))
        with contextlib.suppress(ConnectionClosed):
            await self._tell_missed(connection, room, since, missed)
        if connection.is_open:
            self._let_in(connection, room)
            self._tell_who_changed(connection, room, told)

    async def _tell_missed(
        self, connection: Connection, room: Room, since: Position, missed: Missed
    ) -> None:
        """Send what was missed as fast as the peer reads, and what was said meanwhile.

        Returns when nothing is left; the caller lets the peer in before it waits again.
        """
        for _ in range(PASSES):
            for position, body in missed.messages:
                await connection.send(messages.placed(body, position).decode())
                since = position
            if room.held is None and (since == room.position or not missed.messages):
                return
            try:
                missed = await self._missed(room, since)
            except UnavailableError:
                break
            if not missed.is_complete:
                break
        connection.post(messages.resync(room.name, room.position))

    async def _missed(self, room: Room, since: Position) -> Missed:
        """Return what was said after a position and up to where the room stands."""
        if room.keep is None:
            return Missed((), False)
        async with room.lock:  # not while it is being found out what is missing here
            if since == room.position:
                return Missed((), True)
            # a peer may come from a worker that had heard more: the members here are
            # told as well, and of what they did not hear yet nothing may be left out
            start = since
            if room.position is not None and since.epoch == room.position.epoch:
                start = min(since, room.position, key=lambda place: place.offset)
            replay = await self._carrier.replay(room.name, room.keep, start)
            if not replay.is_complete or since.offset > replay.top.offset:
                return Missed((), False)
            if room.held is None:
                for position, body in replay.messages:
                    self._say(room, body, position)
            return Missed(
                tuple(m for m in replay.messages if m[0].offset > since.offset), True
            )

    def _tell_who_changed(
        self, connection: Connection, room: Room, told: set[str] | int
    ) -> None:
        """Tell who came and went since a peer was told who is here."""
        now = self._here(room)
        if isinstance(now, int) or isinstance(told, int):
            return
        for subject in told - now:
            connection.post(messages.presence(room.name, subject, "left").decode())
        for subject in now - told:
            connection.post(messages.presence(room.name, subject, "joined").decode())

    # ----------------------------------------------------------------------- publishing

    def publish(
        self, connection: Connection, message: messages.Publish
    ) -> Awaitable[None] | None:
        """Send a message to a room's members. It is acknowledged, or answered with an
        error, once the broker has it or not; what is returned is to be waited for
        before the peer's next message, if anything.

        Raises:
            MessageError: ``forbidden``, ``not_joined``, ``unavailable``; nobody
                received it then.
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
        room = self._by_name[name]
        try:
            handed_over = self._carrier.send(name, Kind.MESSAGE, body, room.keep)
        except UnavailableError:
            raise _not_taken(message.id) from None
        if handed_over is None:
            _acknowledge(connection, message.id)
            return None
        must_wait = connection.unacknowledged >= MAX_UNACKNOWLEDGED
        connection.unacknowledged += 1
        sent = asyncio.ensure_future(handed_over)
        # so each time, also if it is waited for: acknowledged in the order of the calls
        sent.add_done_callback(
            lambda done: _acknowledge_later(done, connection, message.id)
        )
        return _end_of(sent) if must_wait else None

    # ------------------------------------------------------------------ what arrives

    def message(self, name: str, body: bytes, position: Position | None) -> None:
        """Tell the members of a room, unless they were told already."""
        room = self._by_name.get(name)
        if room is None:
            return
        if position is None:
            self._tell(room, body)
        elif room.held is not None:
            self._hold(room, body, position)
        else:
            self._say(room, body, position)

    def change(self, name: str, node: str, body: bytes) -> None:
        """Take a change of who is in a room by way of another worker."""
        try:
            self._presence.change(name, node, body)
        except gossip.GossipError:
            self._carrier.refused["malformed"] += 1

    def interrupted(self, names: Collection[str]) -> None:
        """Find out what is missing in these rooms, and bring it or say so."""
        rooms = [room for name in names if (room := self._by_name.get(name))]
        for room in rooms:
            room.doubts += 1
            if room.keep is None or not room.is_open:
                self._tell_resync(room)
            elif room.held is None:
                room.held = []
                self._start(self._resume(room))
        self._presence.learn_again(names)

    def _hold(self, room: Room, body: bytes, position: Position) -> None:
        assert room.held is not None  # noqa: S101 - the caller looked
        if len(room.held) >= MAX_HELD:
            room.held.clear()  # the history has it: read that once more
            room.doubts += 1
        room.held.append((position, body))

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._resuming.add(task)
        task.add_done_callback(self._resuming.discard)

    async def _resume(self, room: Room) -> None:
        """Bring a room what it missed, then what waited for that."""
        while room.held is not None and self._by_name.get(room.name) is room:
            try:
                async with room.lock:
                    await self._bring(room)
            except UnavailableError:
                await self._clock.sleep(RESUME_EVERY)

    async def _bring(self, room: Room) -> None:
        assert room.keep is not None  # noqa: S101 - else nothing is held
        doubts = room.doubts
        replay = await self._carrier.replay(room.name, room.keep, room.position)
        held, room.held = room.held or [], None
        if replay.is_complete:
            self.recovered["resumed"] += 1
        else:
            room.position = replay.top
            self._tell_resync(room)
            # what waited since before the broker forgot is not beyond that place
            held = [one for one in held if one[0].epoch == replay.top.epoch]
        if room.doubts != doubts:  # something was lost since: that is not all
            room.held = held
            held = []
        for position, body in (*replay.messages, *held):
            self._say(room, body, position)

    def _say(self, room: Room, body: bytes, position: Position) -> None:
        if self._is_beyond(room, position):
            room.position = position
            self._tell(room, messages.placed(body, position))

    def _move(self, room: Room, position: Position) -> None:
        if self._is_beyond(room, position):
            room.position = position

    @staticmethod
    def _is_beyond(room: Room, position: Position) -> bool:
        known = room.position
        return (
            known is None
            or position.epoch != known.epoch
            or position.offset > known.offset
        )

    def _tell_resync(self, room: Room) -> None:
        self.recovered["resync"] += 1
        self._tell(room, messages.resync(room.name, room.position).encode())

    def _tell_presence(self, room: Room, subject: str, event: str) -> None:
        if not len(room.present) > self._max_presence > 0:
            self._tell(room, messages.presence(room.name, subject, event))

    def _tell(self, room: Room, data: bytes) -> None:
        # a member whose outbox overflows is ended, not removed: the room stands still
        self._turn.tell(room, Outgoing(data))
        self.messages_delivered += len(room.members)


async def _end_of(sent: asyncio.Future[None]) -> None:
    await asyncio.wait({sent})


def _acknowledge_later(
    done: asyncio.Future[None], connection: Connection, message: messages.MessageId
) -> None:
    connection.unacknowledged -= 1
    try:
        done.result()
    except UnavailableError:
        connection.post(messages.error(_not_taken(message)))
    except BaseException:  # a cancellation of what was waited for is one as well
        connection.fail()
    else:
        _acknowledge(connection, message)


def _acknowledge(connection: Connection, message: messages.MessageId) -> None:
    if message is not None:
        connection.post(messages.ack(message))


def _not_taken(message: messages.MessageId) -> MessageError:
    return MessageError(
        "unavailable", "the message may not have arrived; try again later", message
    )
