"""HTTP/1.1 with deadlines and limits; a WebSocket handshake passes through here too.

Uvicorn has neither: it keeps a silent connection, or half a head, for ever (measured),
and the limits of the ``websockets`` parser behind it were computed but never answered.
Here a head is bounded while it arrives, and whatever is refused gets its answer.
"""

from __future__ import annotations

import asyncio
from enum import Enum
from typing import TYPE_CHECKING, Any, cast

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from authws.decisions.limits import Headcount, household
from authws.service.protocols import limits
from authws.service.protocols.closing import end_our_half
from authws.service.protocols.limits import ProtocolLimits, Refusal, limits_of
from authws.service.protocols.opening import upgrade_refusal
from authws.service.protocols.websocket import WebSocketProtocol

if TYPE_CHECKING:
    from uvicorn.config import Config
    from uvicorn.server import ServerState

__all__ = ["HttpProtocol", "pending_of"]


class _Reading(Enum):
    """What the next byte of the peer belongs to."""

    NOTHING = "nothing"
    HEAD = "head"
    BODY = "body"


class _RefusedError(Exception):
    """Stops the parser inside a head, before the app is called."""


_UNCOUNTED = Headcount(0, 0)
"""For a configuration that is not ours."""


def pending_of(config: Config) -> Headcount:
    """Who has connected to this server and not sent a whole head yet."""
    pending: Headcount = getattr(config, "pending", _UNCOUNTED)
    return pending


class HttpProtocol(HttpToolsProtocol):
    """Uvicorn's HTTP protocol, with the bounds of ``config.protocol_limits``."""

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self.limits: ProtocolLimits = limits_of(config)
        self._pending = pending_of(config)
        self._is_pending = False
        # A connection owes us a head from its first moment on.
        self._reading = _Reading.HEAD
        self._message = 0
        self._header_bytes = 0
        self._line_bytes = 0
        self._is_websocket: bool | None = None
        """Not known before the headers are there."""
        self._refusal: Refusal | None = None
        self._finished = False
        self._watched = (0, _Reading.NOTHING)
        self._deadline: asyncio.TimerHandle | None = None
        self.head_due_at: float | None = None
        """When the first head must be there, by the event loop's clock, if its time
        began before this object."""
        self._cutoff: asyncio.TimerHandle | None = None

    # ----------------------------------------------------------------- the connection

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        address = self._address
        if self._pending.is_full() or self._pending.is_full_for(address):
            # no answer: to write one for each is what a flood wants of us
            self._finished = True
            transport.abort()
            return
        self._is_pending = True
        self._pending.enter(address)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        self._finished = True
        self._be_pending_no_more()
        self._unwatch()
        if self._cutoff is not None:
            self._cutoff.cancel()
        super().connection_lost(exc)
        self._unset_keepalive_if_required()

    @property
    def _address(self) -> str:
        return household(self.client[0]) if self.client else ""

    def _be_pending_no_more(self) -> None:
        if self._is_pending:
            self._is_pending = False
            self._pending.leave(self._address)

    def data_received(self, data: bytes) -> None:
        """Parse what came, unless this connection is only waiting for its end."""
        if self._finished:
            return
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._upgrade(data[upgrade.args[0] :])
        except httptools.HttpParserError:
            self._refuse(self._refusal or limits.BAD_REQUEST)
        else:
            self._measure_line(data)
            self._watch()

    def timeout_keep_alive_handler(self) -> None:
        """Close an idle connection, and see to it that it ends."""
        super().timeout_keep_alive_handler()
        self._cut_off_later()

    def on_response_complete(self) -> None:
        """Go on with the next request; keep-alive does not replace its deadline."""
        super().on_response_complete()
        if self.transport.is_closing():
            self._cut_off_later()
        elif self._reading is _Reading.HEAD:
            self._unset_keepalive_if_required()

    # --------------------------------------------------------------- parser callbacks

    def on_message_begin(self) -> None:
        # Only a request ends the idle time: white space between requests, which the
        # parser skips (RFC 9112, 2.2), must not keep a connection alive.
        self._unset_keepalive_if_required()
        super().on_message_begin()
        self._message += 1
        self._reading = _Reading.HEAD
        self._header_bytes = self._line_bytes = 0
        self._is_websocket = None

    def on_url(self, url: bytes) -> None:
        super().on_url(url)
        if len(self.url) > self.limits.max_target_bytes:
            self._stop(limits.TARGET_TOO_LONG)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._header_bytes += len(name) + len(value) + 4
        if self._header_bytes > self.limits.max_header_bytes:
            self._stop(limits.HEADERS_TOO_LARGE)
        # A trailer is not a header (RFC 9110, 6.5.1): a proxy that guards the head
        # may let it pass, so the app never sees one.
        if self._reading is _Reading.HEAD:
            if len(self.headers) >= self.limits.max_headers:
                self._stop(limits.HEADERS_TOO_LARGE)
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._be_pending_no_more()
        version = self.parser.get_http_version()
        if version not in {"1.0", "1.1"}:  # the parser takes 0.9 and 2.0 as well
            self._stop(limits.BAD_REQUEST)
        refusal = upgrade_refusal(
            self.parser.get_method(),
            version,
            self.url,
            self.headers,
            is_upgrade=self.parser.should_upgrade() and self._should_upgrade(),
        )
        if refusal is not None:
            self._stop(refusal)
        super().on_headers_complete()
        if self.cycle is not None and getattr(self.config, "is_last_call", False):
            self.cycle.keep_alive = False
        self._reading = _Reading.BODY

    def on_message_complete(self) -> None:
        self._reading = _Reading.NOTHING
        super().on_message_complete()

    # -------------------------------------------------------------------- the upgrade

    def _should_upgrade(self) -> bool:
        """Tell whether a WebSocket is asked for; headers do not change meanwhile."""
        if self._is_websocket is None:
            self._is_websocket = super()._should_upgrade()
        return self._is_websocket

    def _get_upgrade(self) -> bytes | None:
        # Both are lists, and a list may be spread over several lines (RFC 9110, 5.3).
        connection = [
            option.strip().lower()
            for name, value in self.headers
            if name == b"connection"
            for option in value.split(b",")
        ]
        if b"upgrade" not in connection:
            return None
        upgrade = [value for name, value in self.headers if name == b"upgrade"]
        return b", ".join(upgrade).strip().lower() or None

    def _upgrade(self, rest: bytes) -> None:
        self._unwatch()
        if not self._should_upgrade():
            # RFC 9110, 7.8: a server may ignore it. What follows is in a protocol
            # we do not speak, so the connection ends with the answer.
            self.cycle.keep_alive = False
            self._finished = True
        elif rest:  # RFC 6455, 4.1: the client waits for our answer
            self._refuse(limits.EARLY_DATA)
        elif self.cycle is not None and not self.cycle.response_complete:
            self._refuse(limits.BAD_HANDSHAKE)
        else:
            self.handle_websocket_upgrade()

    def handle_websocket_upgrade(self) -> None:
        """Hand the connection over, with the head that was parsed here."""
        self._finished = True
        self._unset_keepalive_if_required()
        self.connections.discard(self)
        protocol = WebSocketProtocol(self.config, self.server_state)
        protocol.start(self.transport, cast(dict[str, Any], self.scope), self.url)
        # It holds our callbacks, and so us: without it nothing is left of this object.
        self.parser = None  # type: ignore[assignment]

    # --------------------------------------------------------------------- the bounds

    def _stop(self, refusal: Refusal) -> None:
        self._refusal = refusal
        raise _RefusedError

    def _measure_line(self, data: bytes) -> None:
        """Bound the line that has not ended yet: the parser tells of whole ones."""
        if self._reading is not _Reading.HEAD:
            return
        end = data.rfind(b"\n") + 1
        self._line_bytes = len(data) - end + (0 if end else self._line_bytes)
        if self._header_bytes + self._line_bytes > self.limits.max_header_bytes:
            self._refuse(limits.HEADERS_TOO_LARGE)

    def _watch(self) -> None:
        """Keep one deadline: that of the head or the body that is arriving."""
        stage = (self._message, self._reading)
        if stage == self._watched or self._finished:
            return
        self._unwatch()
        self._watched = stage
        if self._reading is not _Reading.NOTHING:
            timeout = (
                self._head_time
                if self._reading is _Reading.HEAD
                else self.limits.body_timeout
            )
            self._deadline = self.loop.call_later(timeout, self.time_out)

    @property
    def _head_time(self) -> float:
        """Seconds that the head that is arriving has."""
        if self._message > 1 or self.head_due_at is None:
            return self.limits.head_timeout
        return max(0.0, self.head_due_at - self.loop.time())

    def _unwatch(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def time_out(self) -> None:
        """Refuse a head or a body that did not come in time."""
        self._refuse(limits.REQUEST_TIMEOUT)

    def _refuse(self, refusal: Refusal) -> None:
        """Answer for the app, if it has not begun to, and end the connection."""
        cycle = self.cycle
        if cycle is None or cycle.response_complete:
            self._answer(refusal)
        elif self._reading is not _Reading.BODY:
            # It is about a later request, and answers keep their order (RFC 9112,
            # 9.3.2): the connection ends with the answer to the last good one.
            cycle.keep_alive = False
            self._finished = True
            self._unwatch()
        else:
            # The app may be waiting for this body: it hears that the peer is gone.
            cycle.disconnected = True
            cycle.message_event.set()
            if cycle.response_started or self.pipeline:
                self._finished = True
                self.transport.close()
                self._cut_off_later()
            else:
                self._answer(refusal)

    def _answer(self, refusal: Refusal) -> None:
        self._finished = True
        self._unwatch()
        self._unset_keepalive_if_required()
        # No target, no header: what the peer sent may hold a credential.
        peer = "{}:{}".format(*self.client) if self.client else "-"
        self.logger.info('%s - refused %d "%s"', peer, refusal.status, refusal.slug)
        self.transport.write(refusal.serialize(self.server_state.default_headers))
        self.flow.resume_reading()
        end_our_half(self.transport)
        self._cutoff = self.loop.call_later(
            self.limits.close_timeout, self.transport.abort
        )

    def _cut_off_later(self) -> None:
        """End a connection whose peer does not take its last answer."""
        if self._cutoff is None:
            self._cutoff = self.loop.call_later(
                self.limits.response_timeout, self.transport.abort
            )
