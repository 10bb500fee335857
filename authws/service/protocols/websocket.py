"""One WebSocket between the transport and an ASGI app, with deadlines and limits.

Written for many peers that are idle most of the time: no queue, no event and no task
that it could do without, nothing kept of the head once the app has it, and no reference
cycle, so that what is over is freed at once.

Every ending on this side goes one way: a close frame, then our half of the connection
is closed, then, ``close_timeout`` seconds later at most, the peer is cut off.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections import deque
from collections.abc import Callable
from enum import IntEnum
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, unquote

from uvicorn.protocols.utils import ClientDisconnected
from websockets.frames import Close
from websockets.frames import CloseCode as WireCode

from authws import close_codes
from authws.close_codes import CloseCode
from authws.decisions.frames import encode_close, encode_message
from authws.decisions.redaction import log_failure
from authws.service.protocols import frames
from authws.service.protocols.closing import end_our_half
from authws.service.protocols.frames import FrameParser
from authws.service.protocols.limits import (
    EARLY_DATA,
    RESTARTING,
    ProtocolLimits,
    Refusal,
    limits_of,
)
from authws.service.protocols.opening import (
    HttpResponse,
    accept_value,
    subprotocols,
    switching_protocols,
)
from authws.service.protocols.timers import Timers
from authws.strategies.handshake import ENDED_BY_SERVER, WIRE

if TYPE_CHECKING:
    from uvicorn.config import Config
    from uvicorn.server import ServerState

__all__ = ["WebSocketProtocol"]

Event = dict[str, Any]
Scope = dict[str, Any]

logger = logging.getLogger("uvicorn.error")


MAX_EVENTS = 32
"""Messages that wait for the app to take them."""
MAX_OVERHEARD = 4096
"""Messages after our close frame that are looked at: ten milliseconds' worth."""
MAX_WRITE_BUFFER = 65_536
"""Bytes from which on a peer takes less than we have for it."""


class Stage(IntEnum):
    """How far a connection has come."""

    ASKED = 0
    """The handshake awaits the app's answer."""
    DENYING = 1
    """The app has begun an HTTP response of its own."""
    OPEN = 2
    CLOSING = 3
    """The app has sent its close frame; the peer's is awaited, and nothing else."""
    OVER = 4
    """All is said on our side: the peer may end its half."""


class WebSocketProtocol(asyncio.Protocol):
    """The server's side of one WebSocket, with the bounds of ``ProtocolLimits``."""

    __slots__ = (
        "__weakref__",
        "_accepts",
        "_client",
        "_config",
        "_connections",
        "_drained",
        "_events",
        "_headers",
        "_is_lost",
        "_is_reading_paused",
        "_keepalive",
        "_limits",
        "_loop",
        "_message_deadline",
        "_overheard",
        "_parser",
        "_path",
        "_ping_payload",
        "_pong_due",
        "_read_on_at",
        "_response",
        "_stage",
        "_tasks",
        "_timers",
        "_waiter",
        "_watched_message",
        "is_limited",
        "on_message",
        "on_writable",
        "transport",
    )

    def __init__(self, config: Config, state: ServerState) -> None:
        self._config = config
        self._limits: ProtocolLimits = limits_of(config)
        self._loop = asyncio.get_running_loop()
        self._connections = state.connections
        self._tasks = state.tasks
        self._headers = state.default_headers
        self._client: tuple[str, int] | None = None
        self._path = ""
        self._accepts = b""
        """What ``Sec-WebSocket-Accept`` will say."""
        self._response: HttpResponse | None = None
        """The app's own answer in place of a WebSocket, as far as it has come."""
        self._stage = Stage.ASKED
        self._is_lost = False
        self.is_limited = False
        """Whether the app bounds the peer's messages, as it does a stranger's."""
        self._parser = FrameParser(
            max_message_size=config.ws_max_size,
            limits=self._limits,
            clock=self._loop.time,
        )
        self._events: deque[Event] | None = None
        """What the app has not taken; most of the time it waits for the next."""
        self._waiter: asyncio.Future[None] | None = None
        self._is_reading_paused = False
        self.on_message: Callable[[str | bytes], bool] | None = None
        """Takes messages in place of the app's ``receive``; see ``Wire``."""
        self.on_writable: Callable[[], object] | None = None
        """Called when the peer takes more again."""
        self._drained: asyncio.Event | None = None
        """Set once a peer that takes too little has taken enough."""
        self._overheard = 0
        """Messages that came after our close frame."""
        self._pong_due: bytes | None = None
        self._watched_message = 0
        self._message_deadline: asyncio.TimerHandle | None = None
        self._keepalive: asyncio.TimerHandle | None = None
        """Runs while a pong is awaited."""
        self._ping_payload = b""
        """Of the ping whose pong is awaited."""
        self._read_on_at = 0.0
        self._timers = Timers.of(config, self._loop)

    # ----------------------------------------------------------------- the connection

    def start(
        self, transport: asyncio.Transport, request: Scope, target: bytes
    ) -> None:
        """Take over a request whose head was held to our limits, and ask the app.

        ``request`` is its HTTP scope, which becomes the WebSocket's.
        """
        self.transport = transport
        transport.set_protocol(self)
        # over TLS an event loop would take half a megabyte before it says so
        transport.set_write_buffer_limits(high=MAX_WRITE_BUFFER)
        self._connections.add(self)  # type: ignore[arg-type]
        self._client = request["client"]
        self._accepts = accept_value(request["headers"])
        raw_path, _, query_string = target.partition(b"?")
        root_path = request["root_path"]
        del request["method"]
        request |= {
            "type": "websocket",
            "asgi": request["asgi"] | {"spec_version": "2.4"},
            "scheme": "wss" if request["scheme"] == "https" else "ws",
            "path": root_path + unquote(raw_path.decode("ascii")),
            "raw_path": root_path.encode("ascii") + raw_path,
            "query_string": query_string,
            "subprotocols": subprotocols(request["headers"]),
            "extensions": {
                "websocket.http.response": {},
                WIRE: self,
            },
        }
        self._path = request["path"]
        self._tell({"type": "websocket.connect"})
        task = self._loop.create_task(self._run_app(request))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell the app, and let go of everything."""
        self._is_lost = True
        self._is_reading_paused = False
        self._stop_keepalive()
        self._unwatch_message()
        self._timers.cutoff.stop(self._cut_off)
        self._parser.stop()
        self._connections.discard(self)
        # nothing more is known of how the peer went (RFC 6455, 7.1.5)
        code = (
            WireCode.NO_STATUS_RCVD
            if self._stage >= Stage.OPEN
            else WireCode.ABNORMAL_CLOSURE
        )
        self._stage = Stage.OVER
        self._tell({"type": "websocket.disconnect", "code": int(code)})
        self.resume_writing()
        if exc is None:
            self.transport.close()

    @property
    def is_stranger(self) -> bool:
        """Whether the app has not told us yet that it knows the peer."""
        return self.is_limited or self._stage <= Stage.DENYING

    def shutdown(self) -> None:
        """End the connection for a restart of the server."""
        if self._stage is Stage.ASKED:
            self._refuse(RESTARTING)
        elif self._stage is not Stage.DENYING:
            close = close_codes.SERVICE_RESTART
            self._end(close.code, close.reason)

    def _log(self, what: str) -> None:
        client = "{}:{}".format(*self._client) if self._client else ""
        logger.info('%s - "WebSocket %s" %s', client, quote(self._path), what)

    # ---------------------------------------------------------------------- receiving

    def data_received(self, data: bytes) -> None:
        """Parse frames; before the handshake is answered there can be none."""
        if self._stage is Stage.OPEN or self._stage is Stage.CLOSING:
            self._parser.feed(data, self)
            self._watch_message()
        elif self._stage is Stage.ASKED:
            # RFC 6455, 4.1: the client waits for our answer. What comes before it
            # must never pass for the message of an authenticated peer.
            self._refuse(EARLY_DATA)

    def message_received(self, message: str | bytes) -> None:
        """Pass a whole message on, and read no further until the app took it.

        One read may hold tens of thousands of messages: they stay the bytes that they
        are until it is their turn.
        """
        if self._stage is not Stage.OPEN:
            self._overhear()
            return
        if self.on_message is not None:
            if self.on_message(message):
                return
            self._parser.pause()
        else:
            kind = "text" if isinstance(message, str) else "bytes"
            self._tell({"type": "websocket.receive", kind: message})
            if self._events is not None and len(self._events) >= MAX_EVENTS:
                self._parser.pause()
        if not self._is_reading_paused:
            self._is_reading_paused = True
            self.transport.pause_reading()

    def _overhear(self) -> None:
        """Take a message after our close frame: the peer's own may lie behind what it
        had sent by then. Behind a flood nobody listens for it any more, and the peer
        is cut off when its time is over."""
        self._overheard += 1
        if self._overheard > MAX_OVERHEARD:
            self._parser.stop()

    def ping_received(self, payload: bytes) -> None:
        """Answer with a pong; one that takes nothing gets one for all its pings.

        RFC 6455, 5.5.3 allows to answer the latest alone; 5.5.2 demands an answer until
        the peer's close frame has come, behind our own too.
        """
        if self._drained is None:
            self.transport.write(frames.pong(payload))
        else:
            self._pong_due = payload

    def pong_received(self, payload: bytes) -> None:
        """Note that the peer is there, if this answers the ping in flight."""
        if payload and payload == self._ping_payload:
            self._ping_payload = b""
            self._schedule_ping()

    def close_received(self, close: Close) -> None:
        """Answer the peer's close frame, unless it is itself the answer to ours.

        A peer may have sent more behind it: what comes is dropped, not left unread,
        or a reset would take our close frame away from it.
        """
        answer = frames.close_answer(close) if self._stage is Stage.OPEN else b""
        self._finish(answer, close.code, close.reason)

    def protocol_violated(self, code: int, reason: str) -> None:
        """Fail the connection."""
        if code == CloseCode.INVALID_DATA:
            self._log("sent invalid UTF-8")
        self._end(code, reason)

    def _tell(self, event: Event) -> None:
        if self._events is None:
            self._events = deque()
        self._events.append(event)
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def _receive(self) -> Event:
        """Give the app its next event; what we read then may be a pong."""
        while not self._events:
            self._waiter = self._loop.create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        event = self._events.popleft()
        if not self._events:
            # the last is kept for an app that asks again; nothing else will come
            self._events = deque((event,)) if self._is_lost else None
            self._read_on()
        if self._ping_payload:
            self._read_on_at = self._loop.time()
        return event

    @property
    def has_unread(self) -> bool:
        """Whether messages wait for the app's ``receive``."""
        return self._events is not None

    def read_on(self) -> None:
        """Let ``on_message`` have the next; what we read then may be a pong."""
        self._read_on()
        if self._ping_payload:
            self._read_on_at = self._loop.time()

    def _read_on(self, *, anyway: bool = False) -> None:
        """Look at more of what was read; read on once the app has taken all of that.

        ``anyway``: the app takes no more, and what comes is only overheard.
        """
        if not self._is_reading_paused:
            return
        self._parser.resume(self)
        self._watch_message()
        takes_more = self._events is None and not self._parser.is_paused
        if self._is_reading_paused and (anyway or takes_more):
            self._is_reading_paused = False
            self.transport.resume_reading()

    def limit_messages(self, max_bytes: int | None) -> None:
        """Bound the messages from the next frame on; None for the usual bound."""
        self.is_limited = max_bytes is not None
        usual = self._config.ws_max_size
        self._parser.max_message_size = min(max_bytes or usual, usual)

    def _watch_message(self) -> None:
        """Keep one deadline: that of the message, or frame, that is arriving."""
        parser = self._parser
        if not parser.within_message:
            self._unwatch_message()
        elif self._message_deadline is None or self._watched_message != parser.messages:
            self._unwatch_message()
            self._watched_message = parser.messages
            self._message_deadline = self._loop.call_later(
                self._limits.message_timeout, self._message_too_slow
            )

    def _unwatch_message(self) -> None:
        if self._message_deadline is not None:
            self._message_deadline.cancel()
            self._message_deadline = None

    def _message_too_slow(self) -> None:
        self._message_deadline = None
        if self._is_reading_paused:  # it is we who do not read
            self._watch_message()
        else:
            close = close_codes.RATE_LIMITED
            self._end(close.code, close.reason)

    # ------------------------------------------------------------------------ sending

    def pause_writing(self) -> None:
        """The peer takes less than we have for it."""
        if self._drained is None:
            self._drained = asyncio.Event()

    def resume_writing(self) -> None:
        """It has taken enough, or will never."""
        if self._drained is not None:
            self._drained.set()
            self._drained = None
            if self._pong_due is not None and self._stage is Stage.OPEN:
                self.transport.write(frames.pong(self._pong_due))
            self._pong_due = None
            if self.on_writable is not None and self._stage is Stage.OPEN:
                self.on_writable()

    @property
    def is_writable(self) -> bool:
        """Whether the peer takes what is written."""
        return self._drained is None

    def write(self, frames: bytes) -> None:
        """Write whole frames of the app's; into nowhere if the connection is over."""
        if self._stage is Stage.OPEN:
            self.transport.write(frames)

    def close(self, code: int, reason: str) -> None:
        """Send the app's close frame, unless the connection is over."""
        if self._stage is Stage.OPEN:
            self._send_close({"code": code, "reason": reason})

    async def _send(self, event: Event) -> None:
        """Take an event of the app; a close does not wait for a peer to read.

        Raises:
            ClientDisconnected: nobody is there to hear it.
            RuntimeError: it is not the time for such an event.
            ValueError: it cannot be sent.
        """
        kind = event["type"]
        while self._drained is not None and kind != "websocket.close":
            await self._drained.wait()
        if self._stage is Stage.OVER:
            raise ClientDisconnected
        steps = _STEPS.get(self._stage, {})
        if kind not in steps:
            raise RuntimeError(
                f"{kind!r} is not expected: the stage is {self._stage!r}"
            )
        steps[kind](self, event)

    def _accept(self, event: Event) -> None:
        headers = [*self._headers, *event.get("headers", ())]
        if event.get("subprotocol"):
            chosen = event["subprotocol"].encode("ascii")
            headers.append((b"Sec-WebSocket-Protocol", chosen))
        answer = switching_protocols(self._accepts, headers)
        self._stage = Stage.OPEN
        self.transport.write(answer)
        self._schedule_ping()

    def _deny(self, _: Event) -> None:
        self._respond(HttpResponse(403, ()))

    def _begin_response(self, event: Event) -> None:
        self._response = HttpResponse(event["status"], event.get("headers", ()))
        self._stage = Stage.DENYING

    def _continue_response(self, event: Event) -> None:
        assert self._response is not None  # noqa: S101 - the stage says so
        self._response.body += event.get("body", b"")
        if not event.get("more_body", False):
            self._respond(self._response)

    def _respond(self, response: HttpResponse) -> None:
        """Answer the handshake with an HTTP response, whose end is the connection's."""
        self._finish(response.serialize(self._headers), WireCode.ABNORMAL_CLOSURE)

    def _send_message(self, event: Event) -> None:
        payload = event.get("bytes")
        if payload is None:
            payload = event["text"]
        self.transport.write(encode_message(payload))

    def _send_close(self, event: Event) -> None:
        code, reason = event.get("code", 1000), event.get("reason") or ""
        frame = encode_close(code, reason)
        self._stage = Stage.CLOSING
        self._stop_keepalive()
        self.transport.write(frame)
        self.resume_writing()
        self._events = None  # who closes takes no more messages
        self._tell({"type": "websocket.disconnect", "code": code, "reason": reason})
        self._timers.cutoff.start(self._cut_off)
        self._read_on(anyway=True)

    # ----------------------------------------------------------------- the app's life

    async def _run_app(self, scope: Scope) -> None:
        """Run the app, and end what it leaves open: the peer gets a close frame."""
        close = close_codes.NORMAL_CLOSURE
        try:
            await self._config.loaded_app(scope, self._receive, self._send)
        except ClientDisconnected:
            pass
        except asyncio.CancelledError:
            # The app cut off a peer that does not read, or the drain is over: both
            # were said where they were decided.
            close = close_codes.SERVICE_RESTART
        except BaseException:
            close = close_codes.INTERNAL_ERROR
            log_failure(logger, "Exception in ASGI application")
        if self._stage <= Stage.DENYING:
            if close is close_codes.NORMAL_CLOSURE:
                logger.error("ASGI callable returned without completing handshake.")
            self._respond(HttpResponse(500, ()))
        elif self._stage is Stage.OPEN:
            self._end(close.code, close.reason)

    # ---------------------------------------------------------------------- keepalive

    def _schedule_ping(self) -> None:
        self._stop_keepalive()
        if self._config.ws_ping_interval:
            self._timers.ping.start(self._ping)

    def _stop_keepalive(self) -> None:
        self._ping_payload = b""
        self._timers.ping.stop(self._ping)
        if self._keepalive is not None:
            self._keepalive.cancel()
            self._keepalive = None

    def _ping(self) -> None:
        """Ask whether the peer is still there."""
        self._ping_payload = secrets.token_bytes(4)
        self._read_on_at = self._loop.time()
        self.transport.write(frames.ping(self._ping_payload))
        self._keepalive = self._loop.call_later(
            self._config.ws_ping_timeout or 0.0, self._give_up
        )

    def _give_up(self) -> None:
        """End a peer that does not answer our pings, once we have listened.

        We read no message before the app took the one before: the pong of a peer
        whose handler is slow may lie behind what we have not read. So its time
        begins anew when we read on; a peer that is gone is found then.
        """
        patience = self._config.ws_ping_timeout or 0.0
        wait = (
            patience
            if self._is_reading_paused
            else self._read_on_at + patience - self._loop.time()
        )
        if wait > 0:
            self._keepalive = self._loop.call_later(wait, self._give_up)
        else:
            self._end(CloseCode.INTERNAL_ERROR, "keepalive ping timeout")

    # ------------------------------------------------------------------------- ending

    def _end(self, code: int, reason: str = "") -> None:
        """Say why, unless it was said, and end the connection."""
        if self._stage is Stage.OPEN:
            self._finish(encode_close(code, reason), code, reason, by_us=True)
        elif self._stage is Stage.CLOSING:
            self._finish(b"", code, reason)

    def _refuse(self, refusal: Refusal) -> None:
        """Answer the handshake for the app, which hears that the peer is gone."""
        self._log(str(int(refusal.status)))
        self._finish(refusal.serialize(self._headers), WireCode.ABNORMAL_CLOSURE)

    def _finish(
        self, last_words: bytes, code: int, reason: str = "", *, by_us: bool = False
    ) -> None:
        self._stage = Stage.OVER  # a send from now on raises ClientDisconnected
        self._stop_keepalive()
        self._unwatch_message()
        self._parser.stop()
        self.resume_writing()
        self._tell(
            {
                "type": "websocket.disconnect",
                "code": code,
                "reason": reason,
                ENDED_BY_SERVER: reason if by_us else "",
            }
        )
        if last_words:
            self.transport.write(last_words)
        self._read_on(anyway=True)
        end_our_half(self.transport)
        self._timers.cutoff.start(self._cut_off)

    def _cut_off(self) -> None:
        """End a peer whose time to end its own half is over."""
        self.transport.abort()


_STEPS: dict[Stage, dict[str, Callable[[WebSocketProtocol, Event], None]]] = {
    Stage.ASKED: {
        "websocket.accept": WebSocketProtocol._accept,
        "websocket.close": WebSocketProtocol._deny,
        "websocket.http.response.start": WebSocketProtocol._begin_response,
    },
    Stage.DENYING: {
        "websocket.http.response.body": WebSocketProtocol._continue_response,
    },
    Stage.OPEN: {
        "websocket.send": WebSocketProtocol._send_message,
        "websocket.close": WebSocketProtocol._send_close,
    },
    Stage.CLOSING: {},
}
"""What the app may do, by stage (the ASGI specification, WebSocket)."""
