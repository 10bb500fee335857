"""``authws connect``: log in and talk, from a terminal or in a pipe.

What peers say goes to standard output, what happens to the connection to standard
error. A peer's text is untrusted: what is not printable is escaped, so that nobody
drives the terminal of somebody else.
"""

from __future__ import annotations

import asyncio
import codecs
import getpass
import json
import os
import sys
import threading
import time
import unicodedata
from collections import Counter
from collections.abc import AsyncIterator, Callable
from concurrent.futures import CancelledError
from contextlib import suppress
from typing import Annotated, Any

import typer

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
    Left,
    Message,
    Presence,
    RefusedError,
    Restarting,
    Strategy,
    Unknown,
    UnreachableError,
    Welcome,
)
from authws.close_codes import CloseCode, Retry

__all__ = ["Lines", "Talk", "connect", "escape"]

PASSWORD_VARIABLE = "AUTHWS_PASSWORD"  # noqa: S105 - the variable's name
SETTLE_TIMEOUT = 5.0
"""Seconds without any news after which nothing more is expected at the end."""
LINES_PER_SECOND = 200
"""How fast a pipe is read; a server allows 500 messages a second by default."""
MAX_LINE_BYTES = 1_048_576
RENEW_BEFORE = 30.0
"""Seconds before the end of a token at which it is renewed."""

Url = Annotated[
    str, typer.Argument(metavar="URL", help="The service, such as https://host:8000.")
]
UserName = Annotated[str, typer.Option("--user", help="The user's name.")]


def _strategy(name: str) -> Strategy:
    """Take a strategy by either spelling: the URL's, or the one of code."""
    try:
        return Strategy(name.replace("_", "-"))
    except ValueError:
        raise typer.BadParameter(f"{name!r:.40} is none of {STRATEGIES}") from None


STRATEGIES = ", ".join(Strategy)
StrategyOption = Annotated[
    Strategy,
    typer.Option(
        parser=_strategy,
        metavar="|".join(Strategy),
        help="How the credential travels to the WebSocket.",
    ),
]
Room = Annotated[str, typer.Option(help="The room to join.")]
Echo = Annotated[
    bool, typer.Option("--echo", help="Use the echo endpoint instead of a room.")
]
PasswordStdin = Annotated[
    bool,
    typer.Option(
        "--password-stdin",
        help="Read the password from the first line of standard input.",
    ),
]
Insecure = Annotated[
    bool,
    typer.Option(
        "--insecure",
        help="Trust any certificate, and allow http to other machines. For tests.",
    ),
]


def _say(line: str) -> None:
    print(line, flush=True)


def _note(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def connect(
    url: Url,
    user: UserName,
    strategy: StrategyOption = Strategy.FIRST_MESSAGE,
    room: Room = "lobby",
    echo: Echo = False,
    password_stdin: PasswordStdin = False,
    insecure: Insecure = False,
) -> None:
    """Log in, connect and talk: each line of standard input is a message.

    What is said goes to standard output, what happens to the connection to standard
    error.

    The password comes from AUTHWS_PASSWORD, from --password-stdin, or is asked for.
    Ctrl-C or the end of the input leaves.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a test may have put another in its place
            stream.reconfigure(errors="backslashreplace")
    if insecure:
        _note(
            "*** INSECURE: certificates are not checked, and http is allowed: whoever"
            " is on the way can read the password and everything said. ***"
        )
    lines = Lines()
    client_options: dict[str, Any] = (
        {"verify": False, "allow_plain_http": True} if insecure else {}
    )
    client = Client(url, **client_options)
    password = _password(lines if password_stdin else None)
    talk = Talk(client, strategy, room=None if echo else room)
    try:
        status = asyncio.run(talk.run(user, password, lines))
    except KeyboardInterrupt:
        status = 0
    except BrokenPipeError:
        # nobody reads on (`… | head -1`): leave, and spare Python's own complaint
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 0
    if status:
        raise typer.Exit(status)


class Talk:
    """One conversation: lines go out, events come in, until either side is done."""

    def __init__(
        self,
        client: Client,
        strategy: Strategy,
        *,
        room: str | None,
        say: Callable[[str], None] = _say,
        note: Callable[[str], None] = _note,
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
                async with await self._connected() as connection:
                    await self._talk(connection, lines)
            except ClientError as error:
                return self._tell_ending(error)
            finally:
                await self._log_out()
        return 1 if self._failed else 0

    async def _connected(self) -> Connection:
        connection = await self._client.connect(self._strategy, echo=self._room is None)
        welcome = connection.welcome
        subject = f" as {escape(welcome.subject)}" if welcome else ""
        self._note(f"connected{subject} by {self._strategy}; Ctrl-C leaves")
        return connection

    async def _log_out(self) -> None:
        """End the session on the server: its tokens go with this process."""
        with suppress(ClientError, TimeoutError):
            async with asyncio.timeout(2):
                await self._client.log_out()

    async def _talk(self, connection: Connection, lines: Lines) -> None:
        """Speak and listen; whichever is over first ends it."""
        echo = self._room is None
        listening = self._listen_to_echo if echo else self._listen_to_room
        tasks = [
            asyncio.create_task(listening(connection)),
            asyncio.create_task(self._speak(connection, lines)),
        ]
        renewing = asyncio.create_task(self._renew(connection))
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            # what the server said explains why speaking failed
            for task in tasks:
                if task in done:
                    task.result()
        finally:
            for task in (*tasks, renewing):
                task.cancel()
            await asyncio.gather(*tasks, renewing, return_exceptions=True)

    def _tell_ending(self, error: ClientError) -> int:
        """Say what happened and what to do; return the exit status."""
        told = f"authws: {escape(str(error))}"
        if isinstance(error, EndedError) and error.ending.code == CloseCode.NORMAL:
            self._note(told)
            return 1 if self._failed else 0
        self._note(f"{told}. {_advice(error, self._strategy)}")
        return 1

    # ------------------------------------------------------------------------ speaking

    async def _speak(self, connection: Connection, lines: Lines) -> None:
        if self._room is not None:
            await connection.join(self._room)
            await self._in_room.wait()
        async for line in lines:
            self._unheard[line] += 1
            if self._room is not None:
                self._sent += 1
                self._unacknowledged[self._sent] = line
                await connection.publish(self._room, line, message_id=self._sent)
            else:
                await connection.send(line)
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

    async def _listen_to_echo(self, connection: Connection) -> None:
        while True:
            message = await connection.receive()
            self._say(escape(message if isinstance(message, str) else repr(message)))
            if isinstance(message, str):
                self._heard(message)

    async def _listen_to_room(self, connection: Connection) -> None:
        async for event in connection.events():
            self._show(event)
            match event:
                case Welcome():
                    self._welcomed.set()
                case Joined():
                    self._in_room.set()
                case Message(sender=sender, data=str(data)):
                    if connection.welcome and sender == connection.welcome.subject:
                        self._heard(data)
                case Ack(id=message_id) if message_id is not None:
                    self._unacknowledged.pop(message_id, None)
                    self._news.set()
                case Failure():
                    self._failed = True
                    if event.id is None and not self._in_room.is_set():
                        self._note(
                            "authws: not let in: ask for the scope, or name a --room"
                        )
                        return
                    self._refused(event.id)

    def _heard(self, line: str) -> None:
        self._unheard[line] -= 1
        if self._unheard[line] <= 0:
            del self._unheard[line]
        self._news.set()

    def _refused(self, message_id: str | int | None) -> None:
        """A message that was refused comes neither back nor is it acknowledged."""
        if message_id is not None and message_id in self._unacknowledged:
            self._heard(self._unacknowledged.pop(message_id))

    def _show(self, event: Event) -> None:
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
                members = ", ".join(map(escape, event.members))
                self._note(f"joined {escape(event.room)}: {members}")
            case Left():
                self._note(f"left {escape(event.room)}")
            case AuthExpiring():
                at = time.strftime("%H:%M:%S", time.localtime(event.expires_at))
                self._note(f"the credential ends at {at}")
            case Dropped():
                self._note(f"{event.count} messages missed: this line is too slow")
            case Restarting():
                self._note(f"the server restarts; try again in {event.retry_after} s")
            case Failure():
                self._note(f"error {escape(event.slug)}: {escape(event.detail)}")
            case Unknown():
                self._note(f"not understood: {escape(event.text)}")

    # ------------------------------------------------------------------------- renewal

    async def _renew(self, connection: Connection) -> None:
        """Keep a token connection alive; a session cookie is renewed by its use."""
        if self._strategy is Strategy.SESSION_COOKIE or self._room is None:
            return
        while (welcome := connection.welcome) is not None:
            life = welcome.expires_at - welcome.server_time
            await asyncio.sleep(life - min(RENEW_BEFORE, life / 3))
            self._welcomed.clear()
            try:
                await self._client.renew(connection)
            except EndedError:
                return  # the listener tells
            except ClientError as error:
                self._note(f"could not renew the credential: {escape(str(error))}")
                return
            await self._welcomed.wait()


class Lines:
    """The lines of standard input, to be read while the event loop runs.

    Read from the descriptor itself: a thread that waits in ``sys.stdin`` holds its
    lock, and a process cannot end before it is released.
    """

    def __init__(self, descriptor: int = 0) -> None:
        self._descriptor = descriptor
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._buffer = ""
        self._ended = False

    def read(self) -> str | None:
        """Return the next line without its end, or None at the end of the input."""
        while "\n" not in self._buffer and not self._ended:
            if len(self._buffer) > MAX_LINE_BYTES:
                break
            data = os.read(self._descriptor, 65_536)
            self._ended = not data
            self._buffer += self._decoder.decode(data, final=self._ended)
        if not self._buffer:
            return None
        line, _, self._buffer = self._buffer.partition("\n")
        return line.removesuffix("\r")

    async def __aiter__(self) -> AsyncIterator[str]:
        loop = asyncio.get_running_loop()
        queue: asyncio.Queue[str | None] = asyncio.Queue(1)

        def pump() -> None:
            line: str | None = ""
            # the loop is over: nobody listens
            with suppress(RuntimeError, OSError, CancelledError):
                while line is not None:
                    line = self.read()
                    put = queue.put(line)
                    try:
                        asyncio.run_coroutine_threadsafe(put, loop).result()
                    except BaseException:
                        put.close()
                        raise

        # a daemon: it may wait for a line that never comes
        threading.Thread(target=pump, name="stdin", daemon=True).start()
        while (line := await queue.get()) is not None:
            yield line


def escape(text: str) -> str:
    """Return ``text`` with everything that is not printable spelled out.

    Control characters drive a terminal; format characters (bidirectional overrides,
    zero widths) make a line read as another (Unicode TR 36).
    """
    return "".join(
        c
        if c.isprintable() or unicodedata.category(c) == "Zs"
        else c.encode("unicode_escape").decode("ascii")
        for c in text
    )


def _password(lines: Lines | None) -> str:
    """Get the password from where no other process of the machine can read it."""
    if lines is not None:
        password = lines.read()
    elif PASSWORD_VARIABLE in os.environ:
        password = os.environ[PASSWORD_VARIABLE]
    elif _has_terminal():
        password = getpass.getpass("Password: ")
    else:
        _note(
            f"authws: there is no terminal to ask for the password: set"
            f" {PASSWORD_VARIABLE}, or write it to standard input and say"
            " --password-stdin"
        )
        raise typer.Exit(1)
    if not password:
        _note("authws: the password is empty")
        raise typer.Exit(1)
    return password


def _has_terminal() -> bool:
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY))
    except OSError:
        return sys.stdin.isatty()
    return True


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
