"""One socket, one principal, one bounded outbox.

One task always receives: a server that nobody reads from cannot see pongs or closes.
Ending is a synchronous decision that can be taken anywhere; the writer carries it out,
and a peer that does not take it in time is cut off.
"""

from __future__ import annotations

import asyncio
import json
import logging
import secrets
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeGuard

from authws import close_codes
from authws.clock import Clock, Timer
from authws.close_codes import Close, CloseCode, Retry
from authws.decisions import messages
from authws.decisions.frames import encode_close, encode_message
from authws.decisions.lifecycle import (
    Accepted,
    DeadlinePassed,
    Lifecycle,
    PeerLeft,
    Refused,
    State,
)
from authws.decisions.limits import Limit, TokenBucket, wire_size
from authws.decisions.redaction import log_failure
from authws.exceptions import AuthError, ConnectionClosed, MessageError
from authws.live.deadline import Deadline
from authws.live.inbox import Inbox
from authws.live.outbox import Outbox, OutboxPolicy
from authws.live.turn import Outgoing, Turn
from authws.live.writers import AsgiWriter, WireWriter, Writer
from authws.principal import Principal
from authws.strategies.handshake import Handshake

__all__ = ["Connection", "ConnectionLimits", "Renew", "Take"]

logger = logging.getLogger("authws")

_OPEN = State.AUTHENTICATED

MAX_IN_A_ROW = 32
"""Messages of one peer that are taken before everybody else may go on."""

Take = Callable[["Connection", str | bytes], Awaitable[None] | None]
"""Takes a message; returns what is to be waited for before the next, if anything."""
Renew = Callable[[str, Principal], Awaitable[Principal]]
"""Verify a token that a live connection presents, given who it is."""


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """What one connection may cost. A limit of 0 is off."""

    max_message_bytes: int = 65_536
    message_rate: float = 500.0
    """Messages per second on average; twice that at once."""
    byte_rate: float = 16_777_216.0
    """Bytes of messages per second on average; twice that at once."""
    outbox_messages: int = 1024
    outbox_bytes: int = 1_048_576
    outbox_policy: OutboxPolicy = "close"
    send_timeout: float = 10.0
    """Seconds that a handler waits for room before the peer counts as too slow."""
    inbox_messages: int = 64
    strikes: int = 10
    """Refused messages in a row before the connection is closed."""
    close_timeout: float = 1.0
    """Seconds that a peer has to take what is left and its close frame."""
    expiry_notice: float = 60.0
    """Seconds before its end that a peer is asked to renew; half its time if less."""


class Connection:
    """An authenticated WebSocket.

    Iterate over it for the peer's messages (``str`` for text, ``bytes`` for binary);
    the iteration ends when the connection does. Expiry, renewal, revocation and
    limits are enforced here, with no code in the handler.
    """

    __slots__ = (
        "__weakref__",
        "_buckets",
        "_clock",
        "_cutoff",
        "_deadline",
        "_giving_up",
        "_handshake",
        "_in_a_row",
        "_inbox",
        "_lifecycle",
        "_outbox",
        "_owner",
        "_pumping",
        "_renew",
        "_take",
        "_taking",
        "_turn",
        "_was_asked",
        "_wire",
        "_writer",
        "address",
        "closed_at",
        "failed",
        "id",
        "limit",
        "limits",
        "opened_at",
        "over",
        "renewed",
        "revoked_at",
        "rooms",
        "strikes",
        "unacknowledged",
        "was_cut",
    )

    def __init__(
        self,
        handshake: Handshake,
        principal: Principal,
        *,
        clock: Clock,
        turn: Turn,
        limits: ConnectionLimits,
        renew: Renew | None = None,
    ) -> None:
        """With ``renew``, ``auth`` messages renew; without it they are messages."""
        now = clock.now()
        self.id = secrets.token_urlsafe(9)
        self.address = handshake.credentials.address
        self.limits = limits
        self.opened_at = now
        self.rooms: set[str] = set()
        self.renewed: Callable[[Connection], Awaitable[None]] | None = None
        """Told after a renewal, to leave rooms that are no longer allowed."""
        self.failed: Callable[[Connection], object] | None = None
        """Told, while the exception is handled, of a fault in taking a message."""
        self.over: Callable[[Connection], Awaitable[None]] | None = None
        """Told once nothing goes in or out any more, whatever its handler does."""
        self.strikes = 0
        self.unacknowledged = 0
        """Publishes of the peer that are on their way to the broker."""
        self._handshake = handshake
        self._clock = clock
        self._renew = renew
        self._lifecycle = Lifecycle(now)
        self._lifecycle.receive(Accepted(principal))
        self._buckets: tuple[TokenBucket, TokenBucket] | None = None
        self._turn = turn
        self._wire = handshake.wire
        self._outbox = Outbox(
            limits.outbox_messages,
            limits.outbox_bytes,
            limits.outbox_policy,
            notice=_framed_notice if self._wire is not None else messages.dropped,
        )
        self._writer: Writer = (
            WireWriter(self._wire, handshake, self._outbox, self)
            if self._wire is not None
            else AsgiWriter(handshake, self._outbox, self)
        )
        self._in_a_row = 0
        self._take: Take | None = None
        self._taking: asyncio.Task[None] | None = None
        """What the next message waits for."""
        self._inbox: Inbox | None = None
        self._deadline = Deadline(
            clock,
            due=self._expire,
            notice=self._ask_to_renew if renew is not None else None,
            lead=limits.expiry_notice,
        )
        self._was_asked = False
        self._cutoff: Timer | None = None
        self._owner: asyncio.Task[Any] | None = None
        self.was_cut = False
        """The peer did not take its close frame in time; its task was cancelled."""
        self.limit: Limit | None = None
        """The limit that ended it, if one did."""
        self.revoked_at: float | None = None
        """When its right to exist was taken, if that is what ended it."""
        self.closed_at: float | None = None
        """When its close frame was handed to the server."""
        self._pumping: asyncio.Task[None] | None = None
        self._giving_up: asyncio.Task[None] | None = None

    # ------------------------------------------------------------------ who and what

    @property
    def principal(self) -> Principal:
        """Who is on the other end, as of the last renewal."""
        principal = self._lifecycle.principal
        assert principal is not None  # noqa: S101 - accepted in the constructor
        return principal

    @property
    def is_open(self) -> bool:
        """Whether the connection may still carry messages."""
        return self._lifecycle.state is _OPEN

    @property
    def dropped(self) -> int:
        """How many messages of its rooms it missed for being slow."""
        return self._outbox.dropped

    @property
    def ending(self) -> Close | None:
        """How we ended it; None while it is open, or when the peer left by itself."""
        return self._lifecycle.close

    # ------------------------------------------------------------------------ sending

    async def send_text(self, text: str) -> None:
        """Send a text message.

        Raises:
            ConnectionClosed: the connection has ended.
        """
        await self.send(text)

    async def send_bytes(self, data: bytes) -> None:
        """Send a binary message.

        Raises:
            ConnectionClosed: the connection has ended.
        """
        await self.send(data)

    async def send_json(self, value: Any) -> None:
        """Send a value as a JSON text message.

        Raises:
            ConnectionClosed: the connection has ended.
        """
        await self.send(json.dumps(value, ensure_ascii=False, separators=(",", ":")))

    async def send(self, payload: str | bytes) -> None:
        """Send a message: ``str`` as text, ``bytes`` as binary.

        Waits while the outbox is more than half full, or too full for this message,
        so that a handler goes no faster than its peer reads; a broadcast (``post``)
        never waits.

        Raises:
            ConnectionClosed: the connection has ended; so it does when the peer
                takes nothing for ``send_timeout`` seconds.
            ValueError: text that UTF-8 cannot hold; the connection stays as it is.
        """
        if not self.has_room_for(payload):
            try:
                async with self._clock.timeout(self.limits.send_timeout or None):
                    await self._outbox.wait_for_room(payload)
            except TimeoutError:
                self.end(close_codes.SLOW_CONSUMER, limit=Limit.OUTBOX)
        self.post(payload)
        if not self.is_open:
            raise self._closed()

    def has_room_for(self, payload: str | bytes) -> bool:
        """Tell whether ``send`` would not wait."""
        return self._outbox.has_room_for(payload)

    def post(self, payload: str | bytes) -> None:
        """Put a message to this peer into the outbox, without waiting.

        A full outbox ends the connection.

        Raises:
            ValueError: text that UTF-8 cannot hold.
        """
        if not self.is_open:
            return
        frame = encode_message(payload)  # whichever way it goes, it must be sendable
        size = wire_size(payload)
        self._turn.take_apart(self)
        self._put(payload if self._wire is None else frame, size)

    def hear(self, joined: bytes, said: Sequence[Outgoing], now: float) -> None:
        """Take what a room said in this turn: one by one, and as joined frames."""
        # once for each delivery: no call that it could do without
        if self._lifecycle.state is not _OPEN:
            return
        wire = self._wire
        if (
            wire is not None
            and wire.is_writable
            and not self._outbox
            and not self._deadline.is_due(now)
        ):
            wire.write(joined)
            return
        for message in said:
            self.put(message)
        self.write_out()

    def put(self, message: Outgoing) -> None:
        """Put a room's message into the outbox.

        A full outbox ends the connection; under a policy that drops, it loses what
        rooms said, and the peer is told how much.
        """
        if self._wire is not None:
            self._put(message.frame, message.size, droppable=True)
        else:
            self._put(message.text, message.size, droppable=True)
        if not self._outbox.has_room:
            self.write_out()  # much was said in this turn: that alone is not slowness

    def _put(self, payload: str | bytes, size: int, *, droppable: bool = False) -> None:
        if self.is_open and not self._outbox.put(
            payload, size=size, droppable=droppable
        ):
            self.end(close_codes.SLOW_CONSUMER, limit=Limit.OUTBOX)

    # ---------------------------------------------------------------------- receiving

    def __aiter__(self) -> Connection:
        return self

    async def __anext__(self) -> str | bytes:
        message = await self.receive()
        if message is None:
            raise StopAsyncIteration
        return message

    async def receive(self) -> str | bytes | None:
        """Return the peer's next message, or None when the connection has ended."""
        if self._inbox is None:
            return await self._receive()
        if self.ending is not None:
            return None
        message = await self._inbox.get()
        self._deadline.enforce()
        # what we ended takes no message any more, one that came in time included
        return message if self.ending is None else None

    async def each(self, take: Take) -> None:
        """Have every message taken, one after another, until the connection ends.

        Over our own server's wire that is done as a message comes in, without waking
        a task for it.
        """
        self._take = take
        wire = self._wire
        try:
            while True:
                if wire is not None and not wire.has_unread:
                    wire.on_message = self._take_at_once
                message = await self._receive()
                if message is None:
                    break
                work = take(self, message)
                if work is not None:
                    await work
            if self._taking is not None:
                await self._taking
        finally:
            self._take = None
            if wire is not None:
                wire.on_message = None
            taking, self._taking = self._taking, None
            if taking is not None:
                taking.cancel()

    def _take_at_once(self, message: str | bytes) -> bool:
        """Take what has just come in; return whether the next may follow at once."""
        loop = asyncio.get_running_loop()
        self._deadline.enforce()
        if self.is_open and self._within_limits(message):
            work = self._begin_taking(message)
            if work is not None:
                self._taking = loop.create_task(self._finish_taking(work))
                return False
        self._in_a_row += 1  # one that came too late as well: there may be many
        if self._in_a_row < MAX_IN_A_ROW and self._outbox.has_room:
            return True
        self._in_a_row = 0
        loop.call_soon(self._read_on)
        return False

    def _begin_taking(self, message: str | bytes) -> Awaitable[None] | None:
        assert self._take is not None  # noqa: S101 - ``each`` runs
        if self._renew is not None and _is_renewal(message):
            return self.renew(message)
        try:
            return self._take(self, message)
        except Exception:
            self.fail()
            return None

    async def _finish_taking(self, work: Awaitable[None]) -> None:
        try:
            await work
        except ConnectionClosed:
            pass  # it has ended, for a reason that was told where it was found
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            self.fail()  # it is what it waited for that was cancelled
        except Exception:
            self.fail()
        finally:
            self._taking = None
        self._read_on()

    def _read_on(self) -> None:
        if self._wire is not None and self._wire.on_message is not None:
            self._wire.read_on()

    def fail(self) -> None:
        """A message could not be taken, for the fault that is being handled."""
        if self.failed is not None:
            self.failed(self)
        self.end(close_codes.INTERNAL_ERROR, flush=True)

    async def _receive(self) -> str | bytes | None:
        while self.is_open:
            await self._let_others_go_on()
            message = await self._handshake.receive()
            if message is None:
                self._lifecycle.receive(PeerLeft())
                self._writer.wake()
                break
            self._deadline.enforce()
            if not self.is_open or not self._within_limits(message):
                break
            if self._renew is None or not _is_renewal(message):
                return message
            await self.renew(message)
        return None

    async def _let_others_go_on(self) -> None:
        """Give way now and then: a segment of many messages is taken without a wait,
        and whoever shall answer them, or hear them, must write meanwhile."""
        self._in_a_row += 1
        if self._in_a_row >= MAX_IN_A_ROW or not self._outbox.has_room:
            self._in_a_row = 0
            await asyncio.sleep(0)

    def _within_limits(self, message: str | bytes) -> bool:
        limit = self.limits.max_message_bytes
        size = wire_size(message)
        now = self._clock.monotonic()
        if self._buckets is None:
            self._buckets = self._full_buckets(now)
        messages_left, bytes_left = self._buckets
        if size > limit > 0:
            self.end(close_codes.MESSAGE_TOO_BIG, limit=Limit.MESSAGE_BYTES)
        elif not messages_left.take(now):
            self.end(close_codes.RATE_LIMITED, limit=Limit.MESSAGE_RATE)
        elif not bytes_left.take(now, size):
            self.end(close_codes.RATE_LIMITED, limit=Limit.BYTE_RATE)
        return self.is_open

    def _full_buckets(self, now: float) -> tuple[TokenBucket, TokenBucket]:
        """What a peer may send at once, in messages and in bytes."""
        limits = self.limits
        at_once = max(limits.byte_rate * 2, limits.max_message_bytes)
        return (
            TokenBucket(limits.message_rate, limits.message_rate * 2, now),
            TokenBucket(limits.byte_rate, at_once, now),
        )

    # ------------------------------------------------------------------------ renewal

    async def renew(self, text: str) -> None:
        """Take an ``auth`` message on a live connection: verify it, or end."""
        assert self._renew is not None  # noqa: S101 - the caller saw it
        try:
            token = messages.parse_auth(text).token
            principal = await self._renew(token, self.principal)
            self._lifecycle.receive(Accepted(principal))
        except AuthError as error:
            self.end(error.close)
            return
        except MessageError as error:
            self.end(close_codes.BY_SLUG[error.slug])
            return
        if not self.is_open:
            return
        self.strikes = 0
        self._move_deadline()
        self.announce()
        if self.renewed is not None:
            await self.renewed(self)

    def extend(self, expires_at: float) -> None:
        """Live until later: the session behind it was used again.

        The peer is told if it was asked to renew, which it need not do any more.
        """
        if not self.is_open or expires_at <= self.principal.expires_at:
            return
        self._lifecycle.receive(
            Accepted(replace(self.principal, expires_at=expires_at))
        )
        if self._was_asked:
            self.announce()
        self._move_deadline()

    def announce(self) -> None:
        """Send ``auth_ok``."""
        self.post(messages.auth_ok(self.principal, self.id, self._clock.now()))

    # ------------------------------------------------------------------------- ending

    def end(
        self,
        close: Close,
        *,
        flush: bool = False,
        limit: Limit | None = None,
        revoked_at: float | None = None,
    ) -> None:
        """End the connection; nothing that waits is delivered, unless ``flush``.

        ``limit`` names the limit that the peer ran into, ``revoked_at`` when its
        right to exist was taken: both for the operator.
        """
        if not self.is_open:
            return
        if flush:
            self._turn.take_apart(self)
        self._lifecycle.receive(Refused(close))
        self.limit = limit
        self.revoked_at = revoked_at
        if not flush:
            self._outbox.clear()
            self._writer.overtake()
        self._arm_cutoff()

    def end_for_restart(self, retry_after: float) -> None:
        """Let what waits go out, tell the peer when to come back, and end it."""
        if self._renew is not None:  # else the server says nothing of its own here
            self.post(messages.restarting(retry_after))
        self.end(close_codes.SERVICE_RESTART, flush=True)

    async def close(self, code: int = CloseCode.NORMAL, reason: str = "") -> None:
        """Send what waits in the outbox, then close.

        Raises:
            ValueError: a code that is not for the wire, or a reason over 123 bytes
                (RFC 6455, 7.4 and 5.5).
        """
        encode_close(code, reason)  # here, and not where nobody can be told
        close = Close(code, reason, Retry.NEVER, "closed by the handler")  # type: ignore[arg-type]
        self.end(close, flush=True)

    def _arm_cutoff(self) -> None:
        """Give the peer ``close_timeout`` seconds to take its close frame."""
        self._cutoff = self._clock.call_later(self.limits.close_timeout, self._cut)

    def _cut(self) -> None:
        if self._owner is not None and not self._writer.is_done:
            self.was_cut = True
            self._owner.cancel()

    def _closed(self) -> ConnectionClosed:
        close = self.ending
        return (
            ConnectionClosed(close.code, close.reason)
            if close
            else (ConnectionClosed(1006, ""))
        )

    # ---------------------------------------------------------------- the life itself

    def start(self, *, pump: bool) -> None:
        """Start writing, and watch the deadline.

        With ``pump`` a task of its own receives into a bounded inbox, for handlers
        that may be busy elsewhere; without it the caller must always be receiving.
        """
        self._owner = asyncio.current_task()
        self._writer.start()
        if pump:
            self._inbox = Inbox(self.limits.inbox_messages)
            self._pumping = asyncio.create_task(self._pump(self._inbox))
        self._move_deadline()

    async def stop(self) -> None:
        """Finish: the close frame is sent, or the peer cut off, and no task is left."""
        self._owner = None
        self._deadline.close()
        if self.is_open:
            await self.close()
        if self._cutoff is not None:
            self._cutoff.cancel()
        patience = 0.0 if self.was_cut else self.limits.close_timeout
        try:
            await self._writer.finish(patience, self.limits.close_timeout, self._clock)
        finally:
            self._turn.forget(self)
            self._writer.let_go()
            for task in (self._pumping, self._giving_up):
                if task is not None:
                    await _end_task(task)

    def write_out(self) -> None:
        """Write what waits: the turn of the event loop is over."""
        self._writer.wake()

    def enforce_deadline(self) -> None:
        """End it if its time is over: on a busy event loop a timer comes late."""
        self._deadline.enforce()

    def lives_at(self, now: float) -> bool:
        """Tell whether what it says at this moment still counts."""
        if self._deadline.is_due(now):
            self._deadline.check()
        return self.is_open

    def note_said(self) -> None:
        """The close frame is with the server."""
        self.closed_at = self._clock.now()
        if self._inbox is not None and self._giving_up is None:
            # its handler may be busy elsewhere for long yet
            self._giving_up = asyncio.create_task(self.be_over())

    def note_left(self) -> None:
        """The peer is gone."""
        self._lifecycle.receive(PeerLeft())

    def note_failure(self) -> None:
        """It cannot be written to, for a fault of ours."""
        log_failure(logger, "connection %s cannot be written to", self.id)
        self._outbox.clear()
        if self.is_open:
            self._lifecycle.receive(Refused(close_codes.INTERNAL_ERROR))

    def check_deadline(self) -> None:
        """Compare the deadline with the wall clock again: it may have been set."""
        self._deadline.check()

    def _move_deadline(self) -> None:
        self._was_asked = False
        deadline = self._lifecycle.deadline
        if deadline is not None:
            self._deadline.set(deadline)

    def _ask_to_renew(self) -> None:
        self._was_asked = True
        self.post(messages.auth_expiring(self.principal.expires_at))

    def _expire(self) -> None:
        self._outbox.clear()
        if self.is_open:
            self._lifecycle.receive(DeadlinePassed())
            self._writer.overtake()
            self._arm_cutoff()

    async def _pump(self, inbox: Inbox) -> None:
        while (message := await self._receive()) is not None:
            await inbox.put(message)
        await self.be_over()

    async def be_over(self) -> None:
        """Nothing goes in or out any more: wake the handler, give the place back."""
        if self._inbox is not None:
            self._inbox.end()
        if self.over is not None:
            await self.over(self)


async def _end_task(task: asyncio.Task[None]) -> None:
    task.cancel()
    (result,) = await asyncio.gather(task, return_exceptions=True)
    if isinstance(result, Exception):
        raise result


def _framed_notice(missed: int) -> bytes:
    return encode_message(messages.dropped(missed))


def _is_renewal(message: str | bytes) -> TypeGuard[str]:
    return isinstance(message, str) and messages.is_auth(message)
