"""One connection to a NATS server: what is sent through it, and what is answered.

nats-py connects, logs in, and reads. Its way of sending and of handing on is not used:
it makes a queue and an object for each subscription (4 kB and more), parses headers
that nobody looks at, ends its reading for good on a header that is malformed
(``Client._process_headers``), and its ``flush`` overtakes what was published before
(``Client._send_ping`` writes past the buffer). So commands are written to its transport
here, in the order of the calls, and each message is taken as it was parsed.
https://docs.nats.io/reference/reference-protocols/nats-protocol
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import random
import secrets
from collections.abc import Callable
from typing import Any, NamedTuple

import msgspec
from nats import errors
from nats.aio.client import Client

from authws.brokers.nats.waiting import Future, Waiting
from authws.brokers.urls import BrokerUrl
from authws.clock import Clock
from authws.decisions.redaction import log_failure
from authws.exceptions import UnavailableError

__all__ = ["NOBODY", "ApiError", "Batch", "Connection"]

logger = logging.getLogger("authws")

HOST_TIMEOUT = 2.0
"""Seconds for connecting to one of several servers, before the next is tried."""
NEVER = 10**9
"""Seconds between nats-py's own pings: whether the server is there is asked above."""

INBOX_SID = 0
"""The number of the subscription by which answers come; others begin with 1."""
FIRST_PULL_SID = 2**40
"""Where the numbers of subscriptions for one pull begin."""
STATUS = b"NATS/1.0 "
NO_RESPONDERS = STATUS + b"503"
NOBODY = 503
"""An ``ApiError.code`` that is not JetStream's: there is no JetStream, or no such
stream."""


class ApiError(UnavailableError):
    """JetStream refused; ``code`` says why, as ``err_code`` of its answer."""

    def __init__(self, code: int, description: str) -> None:
        super().__init__(f"JetStream: {description}")
        self.code = code


class Batch(NamedTuple):
    """What a consumer handed out at once."""

    messages: list[tuple[bytes, bytes]]
    """Of each JetStream's subject for an acknowledgement, which says where the message
    is kept, and its data."""
    status: bytes
    """Why there are no more of them, if that is not because there are enough."""


class _Refusal(msgspec.Struct):
    err_code: int = 0
    description: str = ""


class _Answer(msgspec.Struct):
    """What every answer of JetStream has in common."""

    error: _Refusal | None = None


_decode_answer = msgspec.json.Decoder(_Answer).decode


class _Client(Client):
    """nats-py's client, which hands on what it parsed as it is."""

    def __init__(
        self, take: Callable[[int, bytes, bytes, bytes | None, bytes], None]
    ) -> None:
        super().__init__()
        self._take = take

    async def _process_msg(
        self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: bytes | None
    ) -> None:
        try:
            self._take(sid, subject, reply, headers, data)
        except Exception:  # nats-py would read no more
            log_failure(logger, "a message from NATS could not be handled")


class Connection:
    """A connection, for one life: once it is lost, another one is made.

    Nothing here waits to be sent: it is written in the next turn of the event loop.
    """

    def __init__(
        self,
        prefix: str,
        *,
        lost: Callable[[str], None],
        clock: Clock,
    ) -> None:
        """``lost`` is called once, with why."""
        self.arrived: Callable[[int, bytes | None, bytes], None] = _let_be
        """Takes what arrives: a subscription's number, headers, and data."""
        self.why_lost = ""
        self._lost = lost
        self._client = _Client(self._take)
        self._is_connected = False
        self._out: list[bytes] = []
        # who guesses no id cannot answer in the server's place
        self._inbox = f"{prefix}.inbox.{secrets.token_urlsafe(12)}."
        self._waiting = Waiting(clock)
        self._unfenced: list[int] = []
        self._fences: dict[int, list[int]] = {}
        self._pulls: dict[int, tuple[int, list[tuple[bytes, bytes]]]] = {}

    # ------------------------------------------------------------------ its life

    async def open(self, address: BrokerUrl) -> None:
        """Connect to any of the servers; a chance order spreads those who come.

        Raises:
            UnavailableError: none of them lets us in; says why the last did not.
        """
        hosts = random.sample(address.hosts, len(address.hosts))
        for number, (host, port) in enumerate(hosts, 1):
            try:
                async with asyncio.timeout(HOST_TIMEOUT):
                    await self._connect(address, host, port)
                break
            except (OSError, errors.Error, TimeoutError) as error:
                await self._let_go()
                if number == len(hosts):
                    raise UnavailableError(_words(error)) from None
                self._client = _Client(self._take)
        self._is_connected = True
        self.subscribe(INBOX_SID, f"{self._inbox}*")
        await self.fence()

    async def _connect(self, address: BrokerUrl, host: str, port: int) -> None:
        context = address.ssl_context()

        def secret() -> str:
            # nats-py believes a server that says it speaks no TLS, and would tell the
            # password in the clear to whoever says so
            if context is not None and not context.session_stats()["connect_good"]:
                raise OSError(errno.EPROTO, "the server does not speak TLS")
            return address.password or address.username

        credentials: dict[str, Any] = {}
        if address.password:
            credentials = {"user": address.username, "password": secret}
        elif address.username:
            credentials = {"token": secret}
        name = f"[{host}]" if ":" in host else host
        await self._client.connect(
            [f"nats://{name}:{port}"],
            name="authws",
            allow_reconnect=False,
            ping_interval=NEVER,
            tls=context,
            error_cb=self._note_error,
            closed_cb=self._note_end,
            **credentials,
        )
        if not credentials:
            secret()
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise asyncio.CancelledError  # wait_for swallows it on Python 3.11

    async def _note_error(self, error: Exception) -> None:
        if not self._is_connected:
            raise error  # else nats-py tries the same again
        self.fail(_words(error))

    async def _note_end(self) -> None:
        if self._is_connected:
            self.fail(_words(self._client.last_error))

    def fail(self, why: str) -> None:
        """End it: whoever waits is told."""
        if self.why_lost:
            return
        self.why_lost = why
        self._out.clear()
        self._waiting.fail(why)
        self._lost(why)

    async def close(self) -> None:
        """Let go of it, whatever state it is in."""
        self.fail("it was closed")
        await self._let_go()

    async def _let_go(self) -> None:
        transport = getattr(self._client._transport, "_io_writer", None)
        if transport is not None:
            # nats-py would wait for a server that reads no more, and leave it open
            transport.transport.abort()
        if self._client.is_connected:
            with contextlib.suppress(Exception):
                await self._client.close()

    # ------------------------------------------------------------------ sending

    @property
    def max_payload(self) -> int:
        """How big a message may be."""
        return self._client.max_payload

    def subscribe(self, sid: int, subject: str) -> None:
        """Have what is published on a subject arrive by this number."""
        self._write(f"SUB {subject} {sid}\r\n".encode())

    def unsubscribe(self, sid: int) -> None:
        """Have it arrive no longer."""
        self._write(b"UNSUB %d\r\n" % sid)

    def admit(self, data: bytes) -> None:
        """Count a message that is to be sent.

        Raises:
            UnavailableError: too much waits, or it is too big.
        """
        if self.why_lost:
            raise UnavailableError(self.why_lost)
        if len(data) > self.max_payload:
            raise UnavailableError(
                f"a message of {len(data)} bytes is more than the NATS server takes "
                f"(max_payload, {self.max_payload})"
            )
        self._waiting.admit(len(data))

    def carry(self, subject: str, data: bytes, future: Future) -> None:
        """Publish what was admitted; done once the server has it."""
        self._unfenced.append(self._waiting.add(future, len(data)))
        self._write(b"PUB %b %d\r\n%b\r\n" % (subject.encode(), len(data), data))

    def keep(
        self, subject: str, data: bytes, future: Future, settled: Callable[[], None]
    ) -> None:
        """Publish what was admitted into a stream; done once JetStream has kept it.
        ``settled`` is called when that is so, or is not to be hoped for."""
        number = self._waiting.add(future, len(data), settled)
        self._request(subject, f"{self._inbox}{number}", data)

    def fence(self) -> Future:
        """Return what is done once the server has done all that was sent so far."""
        future = self._future()
        self._wake()
        self._unfenced.append(self._waiting.add(future))
        return future

    def ask(self, subject: str, data: bytes = b"") -> Future:
        """Send something that JetStream answers, with bytes or an ApiError."""
        future = self._future()
        number = self._waiting.add(future)
        self._request(subject, f"{self._inbox}{number}", data)
        return future

    def tell(self, subject: str) -> None:
        """Send something whose answer nobody waits for."""
        self._write(b"PUB %b 0\r\n\r\n" % subject.encode())

    def pull(self, subject: str, data: bytes, count: int) -> Future:
        """Ask a consumer for its next messages, at most ``count``; returns a Batch."""
        future = self._future()
        number = self._waiting.add(future)
        sid = FIRST_PULL_SID + number
        # what is pulled comes under the subject that it was kept by: only the
        # subscription tells who asked
        place = f"{self._inbox}{number}.pulled"
        self._pulls[sid] = (count, [])
        future.add_done_callback(lambda _: self._end_pull(sid))
        self.subscribe(sid, place)
        self._request(subject, place, data)
        return future

    def expire(self, before: float) -> None:
        """Give up on what was sent before a moment of monotonic time."""
        self._waiting.expire(before)

    def _future(self) -> Future:
        if self.why_lost:
            raise UnavailableError(self.why_lost)
        return asyncio.get_running_loop().create_future()

    def _request(self, subject: str, reply: str, data: bytes) -> None:
        head = f"PUB {subject} {reply} {len(data)}\r\n"
        self._write(b"%b%b\r\n" % (head.encode(), data))

    def _write(self, command: bytes) -> None:
        if not self._is_connected or self.why_lost:
            return
        self._wake()
        self._out.append(command)

    def _wake(self) -> None:
        if not self._out:
            asyncio.get_running_loop().call_soon(self._flush)

    def _flush(self) -> None:
        """Write all that was sent in this turn of the loop.

        The server does what a connection says in the order in which it says it: when a
        message to ourselves comes back, it has done all before.
        """
        if self.why_lost:
            return
        if self._unfenced:
            number = next(self._waiting.numbers)
            self._fences[number], self._unfenced = self._unfenced, []
            self._out.append(b"PUB %b%d 0\r\n\r\n" % (self._inbox.encode(), number))
        out, self._out = self._out, []
        if not out:
            return
        transport = self._client._transport
        assert transport is not None  # noqa: S101 - it is connected
        try:
            transport.write(b"".join(out))
        except Exception as error:  # uvloop's, closed a moment ago
            self.fail(_words(error))

    # ------------------------------------------------------------------ arriving

    def _take(
        self, sid: int, subject: bytes, reply: bytes, headers: bytes | None, data: bytes
    ) -> None:
        if sid == INBOX_SID:
            token = subject[len(self._inbox) :]
            self._take_answer(int(token) if token.isdigit() else 0, headers, data)
        elif sid < FIRST_PULL_SID:
            self.arrived(sid, headers, data)
        elif sid in self._pulls:
            self._take_pulled(sid, reply, headers, data)

    def _take_answer(self, number: int, headers: bytes | None, data: bytes) -> None:
        if number in self._fences:
            for one in self._fences.pop(number):
                self._waiting.settle(one)
        elif number in self._waiting:
            self._waiting.settle(number, *_read_answer(headers, data))

    def _take_pulled(
        self, sid: int, reply: bytes, headers: bytes | None, data: bytes
    ) -> None:
        count, messages = self._pulls[sid]
        status = b""
        if reply:
            messages.append((reply, data))
        else:
            status = (headers or b"")[len(STATUS) :][:3]
        if status or len(messages) == count:
            self._waiting.settle(sid - FIRST_PULL_SID, None, Batch(messages, status))

    def _end_pull(self, sid: int) -> None:
        del self._pulls[sid]
        self.unsubscribe(sid)


def _let_be(sid: int, headers: bytes | None, data: bytes) -> None:
    """Take what arrives before anybody is ready for it."""


def _read_answer(
    headers: bytes | None, data: bytes
) -> tuple[UnavailableError | None, bytes]:
    if headers is not None and headers.startswith(NO_RESPONDERS):
        return ApiError(NOBODY, "nobody answers"), b""
    try:
        error = _decode_answer(data).error
    except msgspec.MsgspecError:
        return UnavailableError("JetStream's answer is none"), b""
    if error is not None:
        return ApiError(error.err_code, error.description), b""
    return None, data


def _words(error: BaseException | None) -> str:
    """Name a failure; nats-py's own words quote the server, which quotes no secret."""
    if isinstance(error, errors.Error):
        return str(error).removeprefix("nats: ").strip("'")
    if isinstance(error, TimeoutError):
        return "it does not answer"
    return getattr(error, "strerror", None) or type(error).__name__
