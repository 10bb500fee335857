"""A live WebSocket, as the client holds it."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from types import TracebackType
from typing import Any

from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed

from authws.client.endings import EndedError, Ending
from authws.client.events import Event, Unknown, Welcome, read_event
from authws.decisions.history import Position

__all__ = ["Connection"]


class Connection:
    """Says and hears; every ending of the server's raises ``EndedError``."""

    def __init__(self, socket: ClientConnection) -> None:
        self.welcome: Welcome | None = None
        """Who the server took us for; an echo endpoint may not say."""
        self._socket = socket

    def __repr__(self) -> str:
        # the socket's own would show the request, and with it a credential
        subject = self.welcome.subject if self.welcome else None
        return f"<{type(self).__name__} subject={subject!r}>"

    async def __aenter__(self) -> Connection:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Leave, with a close frame; twice is no error."""
        await self._socket.close()

    # ----------------------------------------------------------------- any endpoint

    async def send(self, message: str | bytes) -> None:
        """Send a message as it is: ``str`` as text, ``bytes`` as binary.

        Raises:
            EndedError: the connection has ended.
        """
        try:
            await self._socket.send(message)
        except ConnectionClosed as closed:
            raise _ended(closed) from None

    async def receive(self) -> str | bytes:
        """Return the next message as it came.

        Raises:
            EndedError: the connection has ended.
        """
        try:
            return await self._socket.recv()
        except ConnectionClosed as closed:
            raise _ended(closed) from None

    # ---------------------------------------------------------------- room protocol

    async def receive_event(self) -> Event:
        """Return the next message of the room protocol.

        Raises:
            EndedError: the connection has ended.
        """
        message = await self.receive()
        if isinstance(message, bytes):
            return Unknown(repr(message))
        event = read_event(message)
        if isinstance(event, Welcome):
            self.welcome = event
        return event

    async def events(self) -> AsyncIterator[Event]:
        """Yield the messages of the room protocol.

        Raises:
            EndedError: the connection has ended.
        """
        while True:
            yield await self.receive_event()

    async def join(self, room: str, *, since: Position | None = None) -> None:
        """Ask to become a member of a room, and for all that was said there ``since``
        a position; ``Joined.recovered`` tells whether that follows."""
        message: dict[str, Any] = {"type": "join", "room": room}
        if since is not None:
            message["since"] = {"epoch": since.epoch, "offset": since.offset}
        await self._say(**message)

    async def leave(self, room: str) -> None:
        """Ask to be one no more."""
        await self._say(type="leave", room=room)

    async def publish(
        self, room: str, data: Any, *, message_id: str | int | None = None
    ) -> None:
        """Say ``data``, any JSON value; with a ``message_id`` an ``Ack`` follows."""
        message = {"type": "publish", "room": room, "data": data}
        if message_id is not None:
            message["id"] = message_id
        await self._say(**message)

    async def ping(self, message_id: str | int | None = None) -> None:
        """Ask for a ``Pong``."""
        await self._say(type="ping", id=message_id)

    async def authenticate(self, token: str) -> None:
        """Present a token, or renew with one; a ``Welcome`` follows."""
        await self._say(type="auth", token=token)

    async def _say(self, **message: Any) -> None:
        await self.send(json.dumps(message, ensure_ascii=False))


def _ended(closed: ConnectionClosed) -> EndedError:
    received = closed.rcvd
    if received is None:
        return EndedError(Ending.of(1006, ""))
    return EndedError(Ending.of(received.code, received.reason))
