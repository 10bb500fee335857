"""AMQP 0-9-1, as much of it as is needed here: a connection and its channels.

The codec is pamqp, on which aiormq and aio-pika stand. These two are not used: one
message with a header that they cannot decode ends the connection, and if it is in a
stream, each one after that; here it is left out. And a message costs several times as
much with them.

Calls do not wait for one another. What RabbitMQ answers on a channel, it answers in the
order in which it was asked.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar, cast

from pamqp.base import Frame
from pamqp.commands import Channel as ChannelMethods
from pamqp.commands import Connection as Methods

from authws.brokers.rabbitmq import frames
from authws.brokers.rabbitmq.channel import Channel
from authws.brokers.rabbitmq.promises import break_promise, keep_promise, promise
from authws.exceptions import UnavailableError

__all__ = ["Connection", "Login"]

F = TypeVar("F", bound=Frame)

HEARTBEAT = 10
"""Seconds: each side ends a connection on which the other is silent for twice that."""
BEAT_EVERY = HEARTBEAT / 2
SILENT_AFTER = 2 * HEARTBEAT
CLOSE_TIMEOUT = 1.0
"""Seconds in which the other end may answer a goodbye."""


@dataclass(frozen=True, slots=True)
class Login:
    """Where to, and who we are."""

    host: str
    port: int
    virtual_host: str
    username: str
    """Empty: our certificate says who we are."""
    password: str = field(repr=False)
    tls: ssl.SSLContext | None


class Connection(asyncio.Protocol):
    """A connection, and whatever hangs on it: when it ends, so does all of that."""

    def __init__(self, on_lost: Callable[[str], None]) -> None:
        """``on_lost`` is told of an end that was not ours, and why."""
        self.blocked = ""
        """Why RabbitMQ takes nothing that is published here, if it does not."""
        self.max_frame = frames.MAX_FRAME
        self._on_lost: Callable[[str], None] | None = on_lost
        self._transport: asyncio.Transport | None = None
        self._channels: dict[int, Channel] = {}
        self._answer = promise()
        """Of what comes next on channel 0."""
        self._gone = asyncio.Event()
        """Set when the socket is closed."""
        self._unread = b""
        self._heard_at = 0.0
        self._beating: asyncio.TimerHandle | None = None

    # ------------------------------------------------------------ beginning and ending

    async def open(self, login: Login) -> None:
        """Connect, and log in.

        Raises:
            OSError: RabbitMQ is not there, or not who it should be.
            UnavailableError: it does not let us in.
        """
        loop = asyncio.get_running_loop()
        try:
            await loop.create_connection(
                lambda: self, login.host, login.port, ssl=login.tls
            )
            await self._log_in(login)
        except BaseException:
            self.end("the connection could not be opened")
            raise
        self._beat()

    async def _log_in(self, login: Login) -> None:
        self.write(frames.GREETING)
        start = await self._next(Methods.Start)
        mechanism, response = "EXTERNAL", ""
        if login.username:
            mechanism, response = "PLAIN", f"\0{login.username}\0{login.password}"
        if mechanism not in start.mechanisms.split():
            raise UnavailableError(f"RabbitMQ offers no login of the kind {mechanism}")
        self._send(
            Methods.StartOk(
                {
                    "product": "authws",
                    "capabilities": {
                        "authentication_failure_close": True,
                        "connection.blocked": True,
                        "consumer_cancel_notify": True,
                    },
                },
                mechanism,
                response,
            )
        )
        tune = await self._next(Methods.Tune)
        self.max_frame = min(tune.frame_max or frames.MAX_FRAME, frames.MAX_FRAME)
        self._send(Methods.TuneOk(tune.channel_max, self.max_frame, HEARTBEAT))
        self._send(Methods.Open(login.virtual_host))
        await self._next(Methods.OpenOk)

    async def channel(self, *, is_trial: bool = False) -> Channel:
        """Open a channel. When RabbitMQ closes it, because of something that it does
        not allow, the connection ends, unless it is for a trial."""
        number = len(self._channels) + 1
        channel = self._channels[number] = Channel(self, number, is_trial=is_trial)
        await channel.call(ChannelMethods.Open())
        return channel

    async def close(self) -> None:
        """Say goodbye, and let go whether that is heard or not."""
        self._on_lost = None
        with contextlib.suppress(UnavailableError, TimeoutError):
            async with asyncio.timeout(CLOSE_TIMEOUT):
                self._send(Methods.Close(200, "goodbye", 0, 0))
                await self._next(Methods.CloseOk)
        self.end("the connection was closed")
        if self._transport is not None:
            await self._gone.wait()

    def end(self, why: str) -> None:
        """Let go at once."""
        if self._beating is not None:
            self._beating.cancel()
        if self._transport is not None:
            self._transport.abort()
        break_promise(self._answer, why)
        for channel in self._channels.values():
            channel.end(why)
        on_lost, self._on_lost = self._on_lost, None
        if on_lost is not None:
            on_lost(why)

    # -------------------------------------------------------------- what asyncio calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's is none by class
        self._transport = cast(asyncio.Transport, transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self._gone.set()
        self.end(getattr(exc, "strerror", None) or "RabbitMQ closed the connection")

    def data_received(self, data: bytes) -> None:
        self._heard_at = asyncio.get_running_loop().time()
        self._unread += data
        read = 0
        try:
            for frame in frames.split(self._unread):
                self._take(frame)
                read += len(frame.data)
        except frames.MalformedError:
            self.end("what RabbitMQ says is no AMQP 0-9-1")
        self._unread = self._unread[read:]

    # -------------------------------------------------------------------------- frames

    def write(self, data: bytes) -> None:
        """Send frames.

        Raises:
            UnavailableError: the connection has ended.
        """
        if self._transport is None or self._transport.is_closing():
            raise UnavailableError("the connection to RabbitMQ was lost")
        self._transport.write(data)

    def _send(self, method: Frame) -> None:
        self.write(frames.marshal(method, 0))

    async def _next(self, kind: type[F]) -> F:
        method = await self._answer
        self._answer = promise()
        if not isinstance(method, kind):
            raise UnavailableError("what RabbitMQ answers is not what was asked")
        return method

    def _take(self, frame: frames.Received) -> None:
        if frame.kind == frames.HEARTBEAT:
            return
        if frame.channel in self._channels:
            self._channels[frame.channel].take(frame)
        elif frame.channel == 0 and frame.kind == frames.METHOD:
            self._take_method(frames.read_method(frame))
        else:
            raise frames.MalformedError

    def _take_method(self, method: Frame) -> None:
        match method:
            case Methods.Close():
                with contextlib.suppress(UnavailableError):
                    self._send(Methods.CloseOk())
                self.end(f"RabbitMQ said goodbye: {method.reply_text}")
            case Methods.Blocked():
                self.blocked = method.reason or "it is short of something"
            case Methods.Unblocked():
                self.blocked = ""
            case _:
                keep_promise(self._answer, method)

    def _beat(self) -> None:
        """Show that we live, and look whether the other end does."""
        loop = asyncio.get_running_loop()
        if loop.time() - self._heard_at > SILENT_AFTER:
            self.end("RabbitMQ is silent")
            return
        with contextlib.suppress(UnavailableError):
            self.write(frames.BEAT)
        self._beating = loop.call_later(BEAT_EVERY, self._beat)
