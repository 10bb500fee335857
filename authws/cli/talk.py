"""A conversation: what ``authws connect`` does once it knows with whom.

What peers say goes one way, what happens to the connection another.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any

from authws.cli.terminal import Lines, escape, note, say
from authws.client import (
    Ack,
    AuthExpiring,
    Client,
    ClientError,
    Connection,
    Dropped,
    EndedError,
    Event,
    Failure,
    Joined,
    LastingConnection,
    Left,
    Lost,
    Message,
    Presence,
    RefusedError,
    Resync,
    Strategy,
    Unknown,
    UnreachableError,
    Welcome,
)
from authws.close_codes import CloseCode, Retry

__all__ = ["Talk"]

SETTLE_TIMEOUT = 5.0
"""Seconds without any news after which nothing more is expected at the end."""
LINES_PER_SECOND = 200
"""How fast a pipe is read; a server allows 500 messages a second by default."""
RENEW_BEFORE = 30.0
"""Seconds before the end of a token at which it is renewed."""


class Talk:
    """One conversation: lines go out, events come in, until either side is done."""

    def __init__(
        self,
        client: Client,
        strategy: Strategy,
        *,
        room: str | None,
        say: Callable[[str], None] = say,
        note: Callable[[str], None] = note,
    ) -> None:
        """Without a ``room`` it talks to the echo endpoint.

        ``say`` takes a line of what peers say, ``note`` one of what happens.
        """
        self._client = client
        self._strategy = strategy
        self._room = room
        self._say = say
        self._note = note
        self._sent = 0
        self._unacknowledged: dict[str | int, str] = {}
        self._unheard: Counter[str] = Counter()
        self._failed = False
        self._is_away = False
        self._news = asyncio.Event()
        self._in_room = asyncio.Event()
        self._welcomed = asyncio.Event()

    async def run(self, user: str, password: str, lines: Lines) -> int:
        """Log in, talk, leave; return the exit status, failures already told."""
        async with self._client:
            try:
                if self._strategy is Strategy.SESSION_COOKIE:
                    await self._client.open_session(user, password)
                else:
                    await self._client.log_in(user, password)
                if self._room is None:
                    await self._talk_to_echo(lines)
                else:
                    await self._talk_in(self._room, lines)
            except ClientError as error:
                return self._tell_ending(error)
            finally:
                await self._log_out()
        return 1 if self._failed else 0

    async def _talk_to_echo(self, lines: Lines) -> None:
        async with await self._client.connect(self._strategy, echo=True) as connection:
            self._tell_connected(connection.welcome)
            await _until_one_is_over(
                self._hear_echo(connection), self._say_to_echo(connection, lines)
            )

    async def _talk_in(self, room: str, lines: Lines) -> None:
        async with await self._client.stay_connected(self._strategy) as connection:
            self._tell_connected(connection.welcome)
            renewing = asyncio.create_task(self._renew(connection))
            try:
                await _until_one_is_over(
                    self._hear(connection), self._say_in(room, connection, lines)
                )
            finally:
                renewing.cancel()
                await asyncio.gather(renewing, return_exceptions=True)

    async def _log_out(self) -> None:
        """End the session on the server: its tokens go with this process."""
        with suppress(ClientError, TimeoutError):
            async with asyncio.timeout(2):
                await self._client.log_out()

    def _tell_connected(self, welcome: Welcome | None) -> None:
        subject = f" as {escape(welcome.subject)}" if welcome else ""
        self._note(f"connected{subject} by {self._strategy}; Ctrl-C leaves")

    def _tell_ending(self, error: ClientError) -> int:
        """Say what happened and what to do; return the exit status."""
        told = f"authws: {escape(str(error))}"
        if isinstance(error, EndedError) and error.ending.code == CloseCode.NORMAL:
            self._note(told)
            return 1 if self._failed else 0
        self._note(f"{told}. {_advice(error, self._strategy)}")
        return 1

    # ------------------------------------------------------------------------ speaking

    async def _say_to_echo(self, connection: Connection, lines: Lines) -> None:
        async for line in lines:
            self._unheard[line] += 1
            await connection.send(line)
            await asyncio.sleep(1 / LINES_PER_SECOND)
        await self._settle()

    async def _say_in(
        self, room: str, connection: LastingConnection, lines: Lines
    ) -> None:
        await connection.join(room)
        await self._in_room.wait()
        async for line in lines:
            await self._in_room.wait()
            self._sent += 1
            self._unheard[line] += 1
            self._unacknowledged[self._sent] = line
            with suppress(ClientError):  # who listens hears of the loss, and counts
                await connection.publish(room, line, message_id=self._sent)
            await asyncio.sleep(1 / LINES_PER_SECOND)
        await self._settle()

    async def _settle(self) -> None:
        """At the end of the input: wait for what was said to be taken, and heard."""
        while self._unacknowledged or self._unheard:
            self._news.clear()
            try:
                await asyncio.wait_for(self._news.wait(), SETTLE_TIMEOUT)
            except TimeoutError:
                lost = max(len(self._unacknowledged), self._unheard.total())
                self._note(f"no confirmation came for {lost} of your messages")
                self._failed = True
                return

    # ----------------------------------------------------------------------- listening

    async def _hear_echo(self, connection: Connection) -> None:
        while True:
            message = await connection.receive()
            self._say(escape(message if isinstance(message, str) else repr(message)))
            if isinstance(message, str):
                self._heard(message)

    async def _hear(self, connection: LastingConnection) -> None:
        async for event in connection.events():
            self._show(event)
            match event:
                case Welcome():
                    self._is_away = False
                    self._welcomed.set()
                case Lost():
                    self._lost()
                case Joined():
                    self._in_room.set()
                    self._news.set()
                case Message(sender=sender, data=str(data)):
                    if connection.welcome and sender == connection.welcome.subject:
                        self._heard(data)
                case Ack(id=message_id) if message_id is not None:
                    self._unacknowledged.pop(message_id, None)
                    self._news.set()
                case Failure(slug="unavailable", id=None):
                    pass  # the room is asked for again
                case Failure():
                    self._failed = True
                    if event.id is None and not self._in_room.is_set():
                        self._note(
                            "authws: not let in: ask for the scope, or name a --room"
                        )
                        return
                    self._refused(event.id)

    def _lost(self) -> None:
        """What was on its way will not be acknowledged; it is heard if it arrived."""
        self._is_away = True
        self._in_room.clear()
        if self._unacknowledged:
            count = len(self._unacknowledged)
            self._note(f"{count} of your messages may not have arrived")
            self._unacknowledged.clear()

    def _heard(self, line: str) -> None:
        self._unheard[line] -= 1
        if self._unheard[line] <= 0:
            del self._unheard[line]
        self._news.set()

    def _refused(self, message_id: str | int | None) -> None:
        """A message that was refused comes neither back nor is it acknowledged."""
        if message_id is not None and message_id in self._unacknowledged:
            self._heard(self._unacknowledged.pop(message_id))

    def _show(self, event: Event | Lost) -> None:
        match event:
            case Message():
                said = event.data
                text = said if isinstance(said, str) else json.dumps(said)
                room, sender = escape(event.room), escape(event.sender)
                self._say(f"[{room}] {sender}: {escape(text)}")
            case Presence():
                room, subject = escape(event.room), escape(event.subject)
                self._say(f"[{room}] * {subject} {escape(event.event)}")
            case Joined():
                self._show_joined(event)
            case Resync():
                self._note(f"{escape(event.room)}: something may be missing here")
            case Left():
                self._note(f"left {escape(event.room)}")
            case AuthExpiring():
                at = time.strftime("%H:%M:%S", time.localtime(event.expires_at))
                self._note(f"the credential ends at {at}")
            case Dropped():
                self._note(f"{event.count} messages missed: this line is too slow")
            case Lost() if not self._is_away:
                meaning, after = escape(event.error.meaning), event.retry_after
                self._note(f"{meaning}; coming back in {after:.1f} s")
            case Welcome() if self._is_away:
                self._tell_connected(event)
            case Failure():
                self._note(f"error {escape(event.slug)}: {escape(event.detail)}")
            case Unknown():
                self._note(f"not understood: {escape(event.text)}")

    def _show_joined(self, event: Joined) -> None:
        room = escape(event.room)
        members = ", ".join(map(escape, event.members))
        if event.count is not None:
            members = f"{event.count} members"
        self._note(f"joined {room}: {members}")
        if event.recovered is False:
            self._note(f"{room}: what was said meanwhile may be missing")

    # ------------------------------------------------------------------------- renewal

    async def _renew(self, connection: LastingConnection) -> None:
        """Keep a token connection alive; a session cookie is renewed by its use."""
        while self._strategy is not Strategy.SESSION_COOKIE:
            self._welcomed.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(_until_renewal(connection.welcome)):
                    await self._welcomed.wait()
                continue
            try:
                await self._client.renew(connection)
            except EndedError:
                pass  # who listens tells
            except ClientError as error:
                self._note(f"could not renew the credential: {escape(str(error))}")
            await self._welcomed.wait()


def _until_renewal(welcome: Welcome | None) -> float | None:
    """Return in how many seconds to renew; None while there is nothing to renew."""
    if welcome is None:
        return None
    life = welcome.expires_at - welcome.server_time
    return life - min(RENEW_BEFORE, life / 3)


async def _until_one_is_over(
    hearing: Coroutine[Any, Any, None], speaking: Coroutine[Any, Any, None]
) -> None:
    """Do both; whichever is over first ends it."""
    tasks = [asyncio.create_task(hearing), asyncio.create_task(speaking)]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        # what the server said explains why speaking failed
        for task in tasks:
            if task in done:
                task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _advice(error: ClientError, strategy: Strategy) -> str:
    if isinstance(error, UnreachableError) and error.retry is Retry.BACKOFF:
        if "certificate" in error.meaning:
            return (
                "Name the authority that signed it in SSL_CERT_FILE, or, on a test"
                " machine, say --insecure."
            )
        return "Check the URL, and that the service is running."
    if isinstance(error, RefusedError):
        if error.retry_after:
            return f"Try again in {error.retry_after:.0f} s."
        if error.slug == "host_unknown":
            return (
                "Use the name in its AUTHWS_PUBLIC_ORIGIN, or let the operator add"
                " this one to AUTHWS_ALLOWED_HOSTS."
            )
        # before accept no reason is given; who has just logged in is refused for this
        unsaid = error.status == 403 and not error.slug
        by_cookie = unsaid and strategy is Strategy.SESSION_COOKIE
        if by_cookie or error.slug == "origin_forbidden":
            return (
                "The service does not take this URL for an Origin whose pages may"
                " connect: use the URL in its AUTHWS_PUBLIC_ORIGIN, or let the operator"
                " add this one to AUTHWS_ALLOWED_ORIGINS."
            )
        if error.slug == "credentials_invalid":
            return "Check both and try again."
    return {
        Retry.NEVER: "The same attempt will fail again.",
        Retry.REAUTHENTICATE: "Run this command again, to log in afresh.",
        Retry.BACKOFF: "Try again in a moment.",
    }[error.retry]
