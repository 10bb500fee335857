"""One socket, one principal, one bounded outbox.

One task always receives (a server that nobody reads from cannot see pongs or closes)
and one writes. Ending is a synchronous decision that can be taken anywhere; the
writer carries it out, and a peer that does not take it in time is cut off.
"""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any, TypeGuard

from authws import close_codes
from authws.clock import Clock
from authws.close_codes import Close, CloseCode, Retry
from authws.decisions import messages
from authws.decisions.lifecycle import (
    Accepted,
    DeadlinePassed,
    Lifecycle,
    PeerLeft,
    Refused,
    State,
)
from authws.decisions.limits import TokenBucket
from authws.exceptions import AuthError, ConnectionClosed, MessageError
from authws.live.outbox import Outbox
from authws.principal import Principal
from authws.strategies.handshake import Handshake

__all__ = ["Connection", "ConnectionLimits", "Renew"]

Renew = Callable[[str, Principal], Awaitable[Principal]]
"""Verify a token that a live connection presents, given who it is."""

EXPIRY_NOTICE = 60.0
"""Seconds before its end that a peer is asked to renew; half its time if that is less.
"""


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """What one connection may cost. A limit of 0 is off."""

    max_message_bytes: int = 65_536
    message_rate: float = 500.0
    """Messages per second on average; twice that at once."""
    outbox_messages: int = 1024
    outbox_bytes: int = 1_048_576
    send_timeout: float = 10.0
    """Seconds that a handler waits for room before the peer counts as too slow."""
    inbox_messages: int = 64
    strikes: int = 10
    """Refused messages in a row before the connection is closed."""
    close_timeout: float = 1.0
    """Seconds that a peer has to take what is left and its close frame."""


class Connection:
    """An authenticated WebSocket.

    Iterate over it for the peer's messages (``str`` for text, ``bytes`` for binary);
    the iteration ends when the connection does. Expiry, renewal, revocation and
    limits are enforced here, with no code in the handler.
    """

    def __init__(
        self,
        handshake: Handshake,
        principal: Principal,
        *,
        clock: Clock,
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
        self.strikes = 0
        self._handshake = handshake
        self._clock = clock
        self._renew = renew
        self._lifecycle = Lifecycle(now)
        self._lifecycle.receive(Accepted(principal))
        self._bucket = TokenBucket(
            limits.message_rate, limits.message_rate * 2, clock.monotonic()
        )
        self._outbox = Outbox(limits.outbox_messages, limits.outbox_bytes)
        self._wake = asyncio.Event()
        self._inbox: asyncio.Queue[str | bytes | None] | None = None
        self._deadline: asyncio.TimerHandle | None = None
        self._notice_at: float | None = None
        """When to send ``auth_expiring``; None once it is sent, or if none is due."""
        self._cutoff: asyncio.TimerHandle | None = None
        self._owner: asyncio.Task[Any] | None = None
        self.was_cut = False
        """The peer did not take its close frame in time; its task was cancelled."""
        self._tasks: list[asyncio.Task[None]] = []

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
        return self._lifecycle.state is State.AUTHENTICATED

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

        Waits while the outbox is more than half full, so that a handler goes no
        faster than its peer reads; a broadcast (``post``) never waits.

        Raises:
            ConnectionClosed: the connection has ended; so it does when the peer
                takes nothing for ``send_timeout`` seconds.
        """
        if not self._outbox.has_room:
            try:
                async with asyncio.timeout(self.limits.send_timeout or None):
                    await self._outbox.wait_for_room()
            except TimeoutError:
                self.end(close_codes.SLOW_CONSUMER)
        self.post(payload)
        if not self.is_open:
            raise self._closed()

    def post(self, payload: str | bytes) -> None:
        """Put a message into the outbox without waiting; a full outbox ends it."""
        if not self.is_open:
            return
        if self._outbox.put(payload):
            self._wake.set()
        else:
            self.end(close_codes.SLOW_CONSUMER)

    # ---------------------------------------------------------------------- receiving

    def __aiter__(self) -> AsyncIterator[str | bytes]:
        return self._iterate()

    async def _iterate(self) -> AsyncIterator[str | bytes]:
        while (message := await self.receive()) is not None:
            yield message

    async def receive(self) -> str | bytes | None:
        """Return the peer's next message, or None when the connection has ended."""
        if self._inbox is not None:
            message = await self._inbox.get()
            if message is None:
                self._inbox.put_nowait(None)  # every later call ends as well
            return message
        return await self._receive()

    async def _receive(self) -> str | bytes | None:
        while self.is_open:
            message = await self._handshake.receive()
            if message is None:
                self._lifecycle.receive(PeerLeft())
                self._wake.set()
                break
            if not self.is_open or not self._within_limits(message):
                break
            if self._renew is None or not _is_renewal(message):
                return message
            await self.renew(message)
        return None

    def _within_limits(self, message: str | bytes) -> bool:
        limit = self.limits.max_message_bytes
        size = len(message) if isinstance(message, bytes) else len(message.encode())
        if size > limit > 0:
            self.end(close_codes.MESSAGE_TOO_BIG)
        elif not self._bucket.take(self._clock.monotonic()):
            self.end(close_codes.RATE_LIMITED)
        return self.is_open

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
        self._plan_notice()
        self._schedule_deadline()
        self.announce()
        if self.renewed is not None:
            await self.renewed(self)

    def announce(self) -> None:
        """Send ``auth_ok``."""
        self.post(messages.auth_ok(self.principal, self.id, self._clock.now()))

    # ------------------------------------------------------------------------- ending

    def end(self, close: Close, *, flush: bool = False) -> None:
        """End the connection; nothing that waits is delivered, unless ``flush``."""
        if not self.is_open:
            return
        self._lifecycle.receive(Refused(close))
        if flush:
            self._wake.set()
        else:
            self._clear_outbox()
        self._arm_cutoff()

    async def close(self, code: int = CloseCode.NORMAL, reason: str = "") -> None:
        """Send what waits in the outbox, then close.

        Raises:
            ValueError: a reason over 123 bytes (RFC 6455, 5.5).
        """
        close = Close(code, reason, Retry.NEVER, "closed by the handler")  # type: ignore[arg-type]
        self.end(close, flush=True)

    def _arm_cutoff(self) -> None:
        """Give the peer ``close_timeout`` seconds to take its close frame."""
        loop = asyncio.get_running_loop()
        self._cutoff = loop.call_later(self.limits.close_timeout, self._cut)

    def _cut(self) -> None:
        if self._owner is not None and self._tasks and not self._tasks[0].done():
            self.was_cut = True
            self._owner.cancel()

    def _clear_outbox(self) -> None:
        self._outbox.clear()
        self._wake.set()

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
        self._tasks.append(asyncio.create_task(self._write()))
        if pump:
            self._inbox = asyncio.Queue(self.limits.inbox_messages)
            self._tasks.append(asyncio.create_task(self._pump(self._inbox)))
        self._plan_notice()
        self._schedule_deadline()

    async def stop(self) -> None:
        """Finish: the close frame is sent, or the peer cut off, and no task is left."""
        self._owner = None
        if self._deadline is not None:
            self._deadline.cancel()
        await self.close()
        if self._cutoff is not None:
            self._cutoff.cancel()
        writer, *others = self._tasks
        await asyncio.wait([writer], timeout=self.limits.close_timeout)
        for task in self._tasks:
            task.cancel()
        results = await asyncio.gather(writer, *others, return_exceptions=True)
        self._clear_outbox()
        for result in results:
            if isinstance(result, Exception):
                raise result

    def _plan_notice(self) -> None:
        """Decide when to ask for a renewal, where one would be taken."""
        deadline = self._lifecycle.deadline
        if self._renew is not None and deadline is not None:
            left = deadline - self._clock.now()
            self._notice_at = deadline - min(EXPIRY_NOTICE, left / 2)

    def _schedule_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
        deadline = self._lifecycle.deadline
        if deadline is None:
            return
        following = deadline if self._notice_at is None else self._notice_at
        # not beyond a day at once: a wall clock may be set, call_later's is not
        delay = min(max(0.0, following - self._clock.now()), 86_400.0)
        loop = asyncio.get_running_loop()
        self._deadline = loop.call_later(delay, self._check_deadline)

    def _check_deadline(self) -> None:
        deadline = self._lifecycle.deadline
        if deadline is None:
            return
        now = self._clock.now()
        if now < deadline:
            if self._notice_at is not None and now >= self._notice_at:
                self._notice_at = None
                self.post(messages.auth_expiring(deadline))
            self._schedule_deadline()
            return
        self._lifecycle.receive(DeadlinePassed())
        self._clear_outbox()
        self._arm_cutoff()

    async def _pump(self, inbox: asyncio.Queue[str | bytes | None]) -> None:
        while (message := await self._receive()) is not None:
            await inbox.put(message)
        while inbox.full():  # nobody may be waiting on what is left
            inbox.get_nowait()
        inbox.put_nowait(None)

    async def _write(self) -> None:
        try:
            while await self._write_one():
                pass
        except ConnectionClosed:
            self._lifecycle.receive(PeerLeft())
            self._clear_outbox()
        if self._inbox is not None and self._inbox.empty():
            self._inbox.put_nowait(None)

    async def _write_one(self) -> bool:
        """Write what is due; return False once the connection is over."""
        payload = self._outbox.take()
        if payload is not None:
            await self._handshake.send(payload)
            return True
        if self.is_open:
            self._wake.clear()
            await self._wake.wait()
            return True
        if self.ending is not None:
            await self._handshake.close(self.ending)
        return False


def _is_renewal(message: str | bytes) -> TypeGuard[str]:
    return isinstance(message, str) and messages.is_auth(message)
