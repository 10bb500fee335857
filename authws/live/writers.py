"""From the outbox to the peer, and the last word: two ways, one behaviour.

Our own server offers its transport, which takes whole frames and never waits. Any
other is spoken to in ASGI messages, whose ``send`` waits for a peer that does not
read; so there a task of its own writes.
"""

from __future__ import annotations

import asyncio
import contextlib
from abc import ABC, abstractmethod
from typing import Protocol

from authws.clock import Clock
from authws.close_codes import Close
from authws.exceptions import ConnectionClosed
from authws.live.outbox import Outbox
from authws.strategies.handshake import Handshake, Wire

__all__ = ["AsgiWriter", "Speaker", "WireWriter", "Writer"]

MAX_WRITE = 65_536
"""Bytes after which a transport is asked again whether the peer takes more."""


class Speaker(Protocol):
    """Whose outbox it is."""

    @property
    def is_open(self) -> bool:
        """Whether more may be said."""

    @property
    def ending(self) -> Close | None:
        """The last word; None if it is not ours."""

    def enforce_deadline(self) -> None:
        """End it first, if its time is over."""

    def note_said(self) -> None:
        """The last word is with the server."""

    def note_left(self) -> None:
        """The peer is gone."""

    def note_failure(self) -> None:
        """It cannot be written to, for a fault of ours: that is the last word."""

    async def be_over(self) -> None:
        """Nothing goes in or out any more."""


class Writer(ABC):
    """Writes while there is something, then says why it ends."""

    __slots__ = ("_handshake", "_outbox", "_speaker", "has_said_why")

    def __init__(self, handshake: Handshake, outbox: Outbox, speaker: Speaker) -> None:
        self._handshake = handshake
        self._outbox = outbox
        self._speaker = speaker
        self.has_said_why = False

    @property
    @abstractmethod
    def is_done(self) -> bool:
        """Whether nothing more will be written."""

    @abstractmethod
    def start(self) -> None:
        """Begin, in the task that serves the connection."""

    @abstractmethod
    def wake(self) -> None:
        """See what is in the outbox, and whether this is the end."""

    @abstractmethod
    def overtake(self) -> None:
        """Say why it ends before anything else; the outbox is void."""

    @abstractmethod
    async def finish(self, patience: float, last_word: float, clock: Clock) -> None:
        """Wait until all is said, for ``patience`` seconds at most; then say why, for
        which a server may want to wait ``last_word`` seconds."""

    def let_go(self) -> None:
        """Undo what refers to the connection, which refers to this."""
        del self._speaker


class WireWriter(Writer):
    """Writes frames to our own server's transport, at once."""

    __slots__ = ("_all_said", "_wire")

    def __init__(
        self, wire: Wire, handshake: Handshake, outbox: Outbox, speaker: Speaker
    ) -> None:
        super().__init__(handshake, outbox, speaker)
        self._wire = wire
        self._all_said: asyncio.Future[None] | None = None

    @property
    def is_done(self) -> bool:
        return self.has_said_why

    def start(self) -> None:
        self._wire.on_writable = self.wake

    def wake(self) -> None:
        self._speaker.enforce_deadline()
        frames: list[bytes] = []
        size = 0
        while self._wire.is_writable:
            frame = self._outbox.take()
            if frame is not None:
                assert isinstance(frame, bytes)  # noqa: S101 - see Connection
                frames.append(frame)
                size += len(frame)
            if frames and (frame is None or size >= MAX_WRITE):
                self._wire.write(b"".join(frames))
                frames.clear()
                size = 0
            if frame is None:
                break
        if not self._speaker.is_open and not self._outbox:
            self.overtake()

    def overtake(self) -> None:
        if self.has_said_why:
            return
        self.has_said_why = True
        close = self._speaker.ending
        if close is not None:
            self._handshake.close_at_once(close)
            self._speaker.note_said()
        if self._all_said is not None and not self._all_said.done():
            self._all_said.set_result(None)

    async def finish(self, patience: float, last_word: float, clock: Clock) -> None:
        self.wake()
        if not self.has_said_why:
            self._all_said = asyncio.get_running_loop().create_future()
            with contextlib.suppress(TimeoutError):
                async with clock.timeout(patience):
                    await self._all_said
        self._outbox.clear()
        self.overtake()

    def let_go(self) -> None:
        self._wire.on_writable = None
        super().let_go()


class AsgiWriter(Writer):
    """Writes ASGI messages, in a task of its own."""

    __slots__ = ("_is_sending", "_overtaken", "_task", "_wake")

    def __init__(self, handshake: Handshake, outbox: Outbox, speaker: Speaker) -> None:
        super().__init__(handshake, outbox, speaker)
        self._wake = asyncio.Event()
        self._is_sending = False
        self._task: asyncio.Task[None]
        self._overtaken: asyncio.Task[None] | None = None

    @property
    def is_done(self) -> bool:
        return self._task.done()

    def start(self) -> None:
        self._task = asyncio.create_task(self._write())

    def wake(self) -> None:
        self._wake.set()

    def overtake(self) -> None:
        """Let the close frame overtake a message that the peer does not take.

        The task that closes takes the writer's place; of the message nothing was
        written yet, since our server's ``send`` waits before it writes.
        """
        if self._is_sending and self._overtaken is None:
            self._overtaken = self._task
            self._overtaken.cancel()
            self._task = asyncio.create_task(self._end())
        self._wake.set()

    async def finish(self, patience: float, last_word: float, clock: Clock) -> None:
        with contextlib.suppress(TimeoutError):
            async with clock.timeout(patience):
                await asyncio.wait([self._task])
        tasks = [task for task in (self._task, self._overtaken) if task is not None]
        for task in tasks:
            task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        self._outbox.clear()
        # a writer that was stuck behind a peer that does not read: told why all the
        # same, should it read yet; some servers wait for that before they close
        with contextlib.suppress(TimeoutError):
            async with clock.timeout(last_word):
                await self._say_why()
        for result in results:
            if isinstance(result, Exception):
                raise result

    async def _write(self) -> None:
        try:
            while await self._write_one():
                pass
        except ConnectionClosed:
            self._speaker.note_left()
            self._outbox.clear()
        except Exception:
            self._speaker.note_failure()
            await self._say_why()
        await self._speaker.be_over()

    async def _end(self) -> None:
        await self._say_why()
        await self._speaker.be_over()

    async def _write_one(self) -> bool:
        """Write what is due; return False once the connection is over."""
        self._speaker.enforce_deadline()
        payload = self._outbox.take()
        if payload is not None:
            self._is_sending = True
            try:
                await self._handshake.send(payload)
            finally:
                self._is_sending = False
            return True
        if self._speaker.is_open:
            self._wake.clear()
            await self._wake.wait()
            return True
        await self._say_why()
        return False

    async def _say_why(self) -> None:
        """Send the close frame, once; it does not wait for the peer to read."""
        close = self._speaker.ending
        if close is not None and not self.has_said_why:
            await self._handshake.close(close)
            self.has_said_why = True
            self._speaker.note_said()
