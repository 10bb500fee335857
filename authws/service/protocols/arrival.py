"""A connection that has just come: who asks plainly for a WebSocket gets one at once.

Most connections of this service are one handshake, which came whole and is spelled the
way every browser and library spells it. To know that takes two patterns; all else, down
to the smallest doubt, is for ``HttpProtocol``, which then reads the same bytes from the
first one. A test holds what is plain against its parser.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from uvicorn.protocols.utils import get_local_addr

from authws.decisions.limits import Headcount, household
from authws.decisions.messages import SUBPROTOCOL
from authws.service.protocols.http import HttpProtocol, pending_of
from authws.service.protocols.limits import ProtocolLimits, limits_of
from authws.service.protocols.opening import is_nonce
from authws.service.protocols.timers import Timers
from authws.service.protocols.websocket import WebSocketProtocol

if TYPE_CHECKING:
    from uvicorn.config import Config
    from uvicorn.server import ServerState

__all__ = ["ArrivalProtocol", "plain_handshake"]

Head = tuple[bytes, list[tuple[bytes, bytes]]]
"""A request's target, and its headers with names in lower case."""

_PLAIN = re.compile(
    rb"GET (/[!-~]*) HTTP/1\.1\r\n"
    rb"((?:[A-Za-z][A-Za-z0-9-]*+: [!-~](?:[ -~]*+(?<! ))?\r\n)++)\r\n"
)
"""A whole head in printable ASCII: one space before a value and none after it."""
_FIELD = re.compile(rb"([^:]++): ([^\r]++)\r\n")
_CONNECTION = frozenset({b"upgrade", b"keep-alive, upgrade"})
_UNPLAIN = frozenset({b"content-length", b"transfer-encoding", b"expect"})
_SPOKEN = SUBPROTOCOL.encode()


def plain_handshake(data: bytes, limits: ProtocolLimits) -> Head | None:
    """Read a request that is nothing but a good opening handshake (RFC 6455, 4.1).

    None: it is something else, or may be.
    """
    if len(data) > limits.max_target_bytes + limits.max_header_bytes:
        return None
    plain = _PLAIN.fullmatch(data)
    if plain is None:
        return None
    target, block = plain.groups()
    if block.count(b"\n") > limits.max_headers:
        return None
    headers = [(name.lower(), value) for name, value in _FIELD.findall(block)]
    fields = dict(headers)
    is_within = (
        len(target) <= limits.max_target_bytes
        and len(block) <= limits.max_header_bytes
        and len(fields) == len(headers)  # none stands twice
    )
    return (target, headers) if is_within and _asks_to_upgrade(fields) else None


def _asks_to_upgrade(fields: Mapping[bytes, bytes]) -> bool:
    return (
        fields.get(b"connection", b"").lower() in _CONNECTION
        and fields.get(b"upgrade", b"").lower() == b"websocket"
        and fields.get(b"sec-websocket-version") == b"13"
        and is_nonce(fields.get(b"sec-websocket-key", b""))
        # a handshake has no body, and a list of tokens has its grammar elsewhere
        and fields.keys().isdisjoint(_UNPLAIN)
        and fields.get(b"sec-websocket-protocol", _SPOKEN) == _SPOKEN
    )


class ArrivalProtocol(asyncio.Protocol):
    """From the connection to the first bytes, within ``head_timeout``."""

    __slots__ = (
        "_address",
        "_app_state",
        "_came_at",
        "_client",
        "_config",
        "_limits",
        "_loop",
        "_pending",
        "_state",
        "_timers",
        "transport",
    )

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        self._config = config
        self._state = server_state
        self._app_state = app_state
        self._loop = _loop or asyncio.get_running_loop()
        self._limits: ProtocolLimits = limits_of(config)
        self._pending: Headcount | None = None
        self._client: tuple[str, int] | None = None
        self._address = ""
        self._timers = Timers.of(config, self._loop)
        self._came_at = 0.0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take a place among those of whom nothing is known, if there is one."""
        self.transport = transport
        peer = transport.get_extra_info("peername")
        if isinstance(peer, tuple):  # a path, or nothing, for a socket of this machine
            self._client = (str(peer[0]), int(peer[1]))
            self._address = household(self._client[0])
        pending = pending_of(self._config)
        if pending.is_full() or pending.is_full_for(self._address):
            # no answer: to write one for each is what a flood wants of us
            transport.abort()
            return
        self._pending = pending
        pending.enter(self._address)
        self._state.connections.add(self)  # type: ignore[arg-type]
        self._came_at = self._loop.time()
        self._timers.head.start(self._too_slow)

    def connection_lost(self, exc: Exception | None) -> None:
        self._pass_on()

    def data_received(self, data: bytes) -> None:
        """Open a WebSocket, or leave it all to ``HttpProtocol``."""
        if self._pending is None:
            return  # turned away
        head = plain_handshake(data, self._limits)
        if head is None:
            self._become_http().data_received(data)
            return
        self._pass_on()
        target, headers = head
        is_tls = self.transport.get_extra_info("sslcontext") is not None
        protocol = WebSocketProtocol(self._config, self._state)
        protocol.start(
            self.transport,
            {
                "type": "http",
                "asgi": {"version": self._config.asgi_version, "spec_version": "2.3"},
                "http_version": "1.1",
                "method": "GET",
                "server": get_local_addr(self.transport),
                "client": self._client,
                "scheme": "https" if is_tls else "http",
                "root_path": self._config.root_path,
                "headers": headers,
                "state": self._app_state.copy(),
            },
            target,
        )

    def eof_received(self) -> bool | None:
        """Nothing more will come."""
        if self._pending is not None:
            self._become_http().eof_received()
        return None

    def shutdown(self) -> None:
        """End the connection for a restart of the server: it has asked for nothing."""
        self.transport.close()

    def _become_http(self) -> HttpProtocol:
        """Let HTTP have the connection, and what is left of the time for its head."""
        self._pass_on()
        http = HttpProtocol(self._config, self._state, self._app_state, self._loop)
        http.head_due_at = self._came_at + self._limits.head_timeout
        self.transport.set_protocol(http)
        http.connection_made(self.transport)
        return http

    def _pass_on(self) -> None:
        """Let go of the place and the deadline."""
        self._state.connections.discard(self)
        if self._pending is not None:
            self._pending.leave(self._address)
            self._pending = None
        self._timers.head.stop(self._too_slow)

    def _too_slow(self) -> None:
        self._become_http().time_out()
