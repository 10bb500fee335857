"""What the two kinds of endpoint do with a live connection: rooms, and an echo."""

from __future__ import annotations

from collections.abc import Awaitable

from authws import close_codes
from authws.decisions import messages
from authws.decisions.limits import Limit
from authws.exceptions import MessageError
from authws.live.connection import Connection
from authws.live.rooms import Rooms
from authws.live.security_log import SecurityLog

__all__ = ["RoomProtocol", "echo"]


def echo(connection: Connection, message: str | bytes) -> Awaitable[None] | None:
    """Return a message unchanged."""
    if not connection.has_room_for(message):
        return connection.send(message)
    connection.post(message)
    return None


class RoomProtocol:
    """Speaks ``authws.v1`` with one connection after another."""

    def __init__(self, rooms: Rooms, log: SecurityLog) -> None:
        self._rooms = rooms
        self._log = log

    def take(
        self, connection: Connection, message: str | bytes
    ) -> Awaitable[None] | None:
        """Do what a message asks for; return what the next has to wait for."""
        if isinstance(message, bytes):
            connection.end(close_codes.BINARY_UNSUPPORTED)
            return None
        parsed: messages.ClientMessage | None = None
        try:
            parsed = messages.parse(message)
            work = self._take(connection, parsed)
        except MessageError as refusal:
            self._refuse(connection, refusal, parsed)
            return None
        if work is not None:
            return self._finish(connection, work, parsed)
        connection.strikes = 0
        return None

    def _take(
        self, connection: Connection, message: messages.ClientMessage
    ) -> Awaitable[None] | None:
        match message:
            case messages.Publish():
                return self._rooms.publish(connection, message)
            case messages.Join():
                return self._rooms.join(connection, message.room, message.since)
            case messages.Leave():
                return self._rooms.leave(connection, message.room)
            case messages.Ping():
                connection.post(messages.pong(message.id))
                return None
            case messages.Auth():  # pragma: no cover - the connection takes these
                raise MessageError("malformed", "auth is not expected here")

    async def _finish(
        self,
        connection: Connection,
        work: Awaitable[None],
        message: messages.ClientMessage,
    ) -> None:
        try:
            await work
            connection.strikes = 0
        except MessageError as refusal:
            self._refuse(connection, refusal, message)

    def _refuse(
        self,
        connection: Connection,
        refusal: MessageError,
        message: messages.ClientMessage | None,
    ) -> None:
        """Answer ``error``; a peer that does little else is closed."""
        if isinstance(message, messages.Join | messages.Leave):
            refusal.room = message.room  # neither has an id by which to tell
        if refusal.slug != "unavailable":  # that is no fault of the peer's
            connection.strikes += 1
        connection.post(messages.error(refusal))
        if refusal.limit:
            self._log.count("message_refused", reason=refusal.slug, limit=refusal.limit)
        if refusal.slug == "forbidden":
            self._log.write(
                "message_forbidden",
                reason=refusal.slug,
                detail=refusal.detail,
                subject=connection.principal.subject,
                address=connection.address,
                connection=connection.id,
            )
        if connection.strikes >= connection.limits.strikes > 0:
            connection.end(close_codes.FORBIDDEN, limit=Limit.STRIKES)
