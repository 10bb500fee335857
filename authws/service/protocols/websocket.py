"""WebSocket with deadlines and limits, and an end that the peer can read.

Every ending on this side goes one way: a close frame, then our half of the connection
is closed, then, ``close_timeout`` seconds later at most, the peer is cut off.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import quote

from uvicorn.protocols.utils import ClientDisconnected, get_client_addr
from uvicorn.protocols.websockets.websockets_sansio_impl import (
    WebSocketsSansIOProtocol,
)
from websockets.frames import CloseCode as WireCode
from websockets.protocol import State

from authws import close_codes
from authws.close_codes import CloseCode
from authws.decisions.redaction import log_failure
from authws.service.protocols.closing import linger
from authws.service.protocols.frames import FrameParser
from authws.service.protocols.limits import (
    EARLY_DATA,
    RESTARTING,
    ProtocolLimits,
    Refusal,
)
from authws.strategies.handshake import ENDED_BY_SERVER, LIMIT_MESSAGES

if TYPE_CHECKING:
    from uvicorn._types import ASGIReceiveEvent, ASGISendEvent
    from uvicorn.config import Config
    from uvicorn.server import ServerState
    from websockets.frames import Frame
    from websockets.http11 import Request

__all__ = ["WebSocketProtocol"]


class WebSocketProtocol(WebSocketsSansIOProtocol):
    """Uvicorn's WebSocket protocol, with the bounds of ``config.protocol_limits``."""

    conn: FrameParser

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self.limits: ProtocolLimits = getattr(
            config, "protocol_limits", ProtocolLimits()
        )
        self.conn = FrameParser(
            max_size=config.ws_max_size,
            limits=self.limits,
            clock=self.loop.time,
            logger=logging.getLogger("uvicorn.error"),
        )
        self.close_timeout = self.limits.close_timeout
        self.is_limited = False
        """Whether the app bounds the peer's messages, as it does a stranger's."""
        self._read_on_at = 0.0
        self._watched_message = 0
        self._message_deadline: asyncio.TimerHandle | None = None
        self._cutoff: asyncio.TimerHandle | None = None

    # ----------------------------------------------------------------- the connection

    def connection_lost(self, exc: Exception | None) -> None:
        self._unwatch_message()
        if self._cutoff is not None:
            self._cutoff.cancel()
            self._cutoff = None
        super().connection_lost(exc)
        self._let_go()

    def _let_go(self) -> None:
        """Undo what refers back to us: what no cycle holds is freed at once.

        Else it waits for a full collection, which stops the whole process for as long
        as it takes to look at every object of every connection.
        """
        self.conn.let_go()
        if hasattr(self, "scope"):
            cast(dict[str, Any], self.scope["extensions"]).pop(LIMIT_MESSAGES, None)

    @property
    def is_stranger(self) -> bool:
        """Whether the app has not told us yet that it knows the peer."""
        return self.is_limited or not self.handshake_complete

    def shutdown(self) -> None:
        """End the connection for a restart of the server."""
        if self.handshake_complete:
            close = close_codes.SERVICE_RESTART
            self._end(close.code, close.reason)
        elif self.initial_response is None:
            self._refuse(RESTARTING)

    # ---------------------------------------------------------------------- receiving

    def handle_connect(self, event: Request) -> None:
        """Take a handshake whose head was parsed and held to our limits before."""
        super().handle_connect(event)
        if self.close_sent:
            self._cut_off_later()
        else:
            extensions = cast(dict[str, Any], self.scope["extensions"])
            extensions[LIMIT_MESSAGES] = {"set": self._limit_messages}

    def _limit_messages(self, max_bytes: int | None) -> None:
        """Bound the messages from the next frame on; None for the usual bound."""
        self.is_limited = max_bytes is not None
        usual = self.config.ws_max_size
        self.conn.max_message_size = min(max_bytes or usual, usual)

    def data_received(self, data: bytes) -> None:
        """Parse frames; before the handshake is answered there can be none."""
        if self.disconnected:
            return
        if not self.handshake_complete:
            # RFC 6455, 4.1: the client waits for our answer. What comes before it
            # must never pass for the message of an authenticated peer.
            if self.initial_response is None:
                self._refuse(EARLY_DATA)
            return
        self.conn.receive_data(data)
        self.handle_events()
        if self.conn.parser_exc is not None:
            self.handle_parser_exception()
        else:
            self._watch_message()

    def send_receive_event_to_app(self) -> None:
        """Pass a whole message on, and read no further until the app took it."""
        data = self.frames[0] if len(self.frames) == 1 else b"".join(self.frames)
        self.frames = []
        if self.close_sent:
            return
        if self.curr_msg_data_type == "bytes":
            self.queue.put_nowait({"type": "websocket.receive", "bytes": data})
        else:
            try:
                text = data.decode()
            except UnicodeDecodeError:  # RFC 6455, 8.1
                path = quote(self.scope["path"])
                peer = get_client_addr(self.scope)
                self.logger.info('%s - "WebSocket %s" sent invalid UTF-8', peer, path)
                self._end(CloseCode.INVALID_DATA)
                return
            self.queue.put_nowait({"type": "websocket.receive", "text": text})
        if not self.read_paused:
            self.read_paused = True
            self.transport.pause_reading()

    async def receive(self) -> ASGIReceiveEvent:
        """Give the app its next event; what we read then may be a pong."""
        event = await super().receive()
        if self.pong_timer is not None:
            self._read_on_at = self.loop.time()
        return event

    def handle_ping(self) -> None:
        """Send the pong that the parser made, unless our half is closed."""
        if not self.disconnected:
            super().handle_ping()

    def handle_close(self, event: Frame) -> None:
        """Answer the peer's close frame, unless it is itself the answer to ours.

        A peer may have sent more behind it: what comes is dropped, not left unread,
        or a reset would take our close frame away from it.
        """
        received = self.conn.close_rcvd
        if self.disconnected or self.transport.is_closing() or received is None:
            return
        self.stop_keepalive()
        if self.close_timer is not None:
            self.close_timer.cancel()
            self.close_timer = None
        last_words = b"".join(self.conn.data_to_send())
        self._finish(last_words, received.code, received.reason)

    def _watch_message(self) -> None:
        """Keep one deadline: that of the message, or frame, that is arriving."""
        if self.disconnected or not self.conn.within_message:
            self._unwatch_message()
        elif (
            self._message_deadline is None
            or self._watched_message != self.conn.messages
        ):
            self._unwatch_message()
            self._watched_message = self.conn.messages
            self._message_deadline = self.loop.call_later(
                self.limits.message_timeout, self._message_too_slow
            )

    def _unwatch_message(self) -> None:
        if self._message_deadline is not None:
            self._message_deadline.cancel()
            self._message_deadline = None

    def _message_too_slow(self) -> None:
        self._message_deadline = None
        if self.read_paused:  # it is we who do not read
            self._watch_message()
        else:
            close = close_codes.RATE_LIMITED
            self._end(close.code, close.reason)

    # ------------------------------------------------------------------------ sending

    async def send(self, message: ASGISendEvent) -> None:
        """Take an event of the app; a close does not wait for a peer to read."""
        if message["type"] == "websocket.close":
            self.writable.set()
        elif not self.writable.is_set():
            await self.writable.wait()
            if self.close_sent:  # by another task of the app, while this one waited
                raise ClientDisconnected
        await super().send(message)
        if self.close_timer is not None:
            self.close_timer.cancel()
            self.close_timer = self.loop.call_later(
                self.close_timeout, self.transport.abort
            )
        elif self.transport.is_closing():
            self._cut_off_later()

    async def run_asgi(self) -> None:
        """Run the app, and end what it leaves open: the peer gets a close frame."""
        close = close_codes.NORMAL_CLOSURE
        try:
            await self.app(self.scope, self.receive, self.send)
        except ClientDisconnected:
            pass
        except asyncio.CancelledError:
            # The app cut off a peer that does not read, or the drain is over: both
            # were said where they were decided.
            close = close_codes.SERVICE_RESTART
        except BaseException:
            close = close_codes.INTERNAL_ERROR
            log_failure(self.logger, "Exception in ASGI application")
        if not self.handshake_complete:
            # a whole response of the app's own (a denial) is an answer too
            if close is close_codes.NORMAL_CLOSURE and not self.close_sent:
                self.logger.error(
                    "ASGI callable returned without completing handshake."
                )
            self.send_500_response()
        elif not self.close_sent:
            self._end(close.code, close.reason)
        if not self.disconnected and self._cutoff is None and self.close_timer is None:
            self.transport.close()
            self._cut_off_later()

    # ---------------------------------------------------------------------- keepalive

    def keepalive_timeout(self) -> None:
        """Give up a peer that does not answer our pings, once we have listened.

        We read no message before the app took the one before: the pong of a peer
        whose handler is slow may lie behind what we have not read. So its time
        begins anew when we read on; a peer that is gone is found then.
        """
        self.pong_timer = None
        wait = self._still_to_listen()
        if wait > 0:
            self.pong_timer = self.loop.call_later(wait, self.keepalive_timeout)
        elif not self.close_sent:
            self._end(CloseCode.INTERNAL_ERROR, "keepalive ping timeout")

    def _still_to_listen(self) -> float:
        """Return for how many seconds more we owe the peer that we read."""
        patience = self.ping_timeout or 0.0
        if self.read_paused:
            return patience
        since = max(self.ping_sent_at, self._read_on_at)
        return since + patience - self.loop.time()

    # ------------------------------------------------------------------------- ending

    def handle_parser_exception(self) -> None:
        """End a connection that the frame parser has given up."""
        self._end(CloseCode.INTERNAL_ERROR)

    def _end(self, code: int, reason: str = "") -> None:
        """Send a close frame, unless one was sent, and end the connection."""
        if self.disconnected or self.transport.is_closing():
            return
        self.stop_keepalive()
        if self.conn.state is State.OPEN:
            self.conn.fail(code, reason)
        if self.conn.close_sent is not None:
            code, reason = self.conn.close_sent.code, self.conn.close_sent.reason
        self.close_sent = True
        last_words = b"".join(self.conn.data_to_send())
        self._finish(last_words, code, reason, by_us=True)

    def _refuse(self, refusal: Refusal) -> None:
        """Answer the handshake for the app, which hears that the peer is gone."""
        self.logger.info(
            '%s - "WebSocket %s" %d',
            get_client_addr(self.scope),
            quote(self.scope["path"]),
            refusal.status,
        )
        self.handshake_complete = self.close_sent = True
        self._finish(refusal.serialize(self.default_headers), WireCode.ABNORMAL_CLOSURE)

    def _finish(
        self, last_words: bytes, code: int, reason: str = "", *, by_us: bool = False
    ) -> None:
        self._unwatch_message()
        self.disconnected = True  # a send() from now on raises ClientDisconnected
        self.writable.set()
        message: dict[str, Any] = {
            "type": "websocket.disconnect",
            "code": code,
            "reason": reason,
            ENDED_BY_SERVER: reason if by_us else "",
        }
        self.queue.put_nowait(cast("ASGIReceiveEvent", message))
        self.transport.write(last_words)
        if self.read_paused:
            self.read_paused = False
            self.transport.resume_reading()
        if self._cutoff is None:
            self._cutoff = linger(self.transport, self.loop, self.close_timeout)

    def _cut_off_later(self) -> None:
        if self._cutoff is None:
            self._cutoff = self.loop.call_later(
                self.close_timeout, self.transport.abort
            )
