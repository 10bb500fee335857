"""What the two kinds of endpoint do with a live connection: rooms, and an echo."""

from __future__ import annotations

from authws import close_codes
from authws.decisions import messages
from authws.decisions.limits import Limit
from authws.exceptions import MessageError
from authws.live.connection import Connection
from authws.live.hub import Hub
from authws.live.security_log import SecurityLog

__all__ = ["RoomProtocol", "echo"]


async def echo(connection: Connection) -> None:
    """Return every message unchanged."""
    async for message in connection:
        await connection.send(message)


class RoomProtocol:
    """Speaks ``authws.v1`` with one connection after another."""

    def __init__(self, hub: Hub, log: SecurityLog) -> None:
        self._hub = hub
        self._log = log

    async def serve(self, connection: Connection) -> None:
        """Take a connection's messages until it ends."""
        async for message in connection:
            if isinstance(message, bytes):
                connection.end(close_codes.BINARY_UNSUPPORTED)
                return
            try:
                await self._take(connection, messages.parse(message))
                connection.strikes = 0
            except MessageError as refusal:
                self._refuse(connection, refusal)

    async def _take(
        self, connection: Connection, message: messages.ClientMessage
    ) -> None:
        match message:
            case messages.Publish():
                await self._hub.publish(connection, message)
            case messages.Join():
                await self._hub.join(connection, message.room)
            case messages.Leave():
                await self._hub.leave(connection, message.room)
            case messages.Ping():
                connection.post(messages.pong(message.id))
            case messages.Auth():  # pragma: no cover - the connection takes these
                raise MessageError("malformed", "auth is not expected here")

    def _refuse(self, connection: Connection, refusal: MessageError) -> None:
        """Answer ``error``; a peer that does little else is closed."""
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
