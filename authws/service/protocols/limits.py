"""How much a peer may ask of a connection, and how it is told no."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from http import HTTPStatus

__all__ = ["Headers", "ProtocolLimits", "Refusal", "limits_of"]

Headers = Sequence[tuple[bytes, bytes]]
"""Names in lower case, values as they came."""


@dataclass(frozen=True, slots=True)
class ProtocolLimits:
    """Bounds on a connection before and below the app; times in seconds.

    A request target must hold a token of 8 KiB in its query, so its bound is twice
    that; the other figures are those of widespread servers and of threats.md.
    """

    max_pending: int = 4096
    """Connections that have not sent a whole head yet. 0 is off."""
    max_pending_per_address: int = 0
    """The same, of one address as the system sees it: that of a proxy, behind one."""
    head_timeout: float = 10.0
    """From the connection, or a request's first byte, to the end of its head."""
    body_timeout: float = 30.0
    """From the end of the head to the end of the body."""
    response_timeout: float = 30.0
    """From a connection's last answer to when the peer must have taken it."""
    close_timeout: float = 1.0
    """How long a peer may take to answer a close frame, or to read a refusal."""
    message_timeout: float = 10.0
    """From a message's first byte to its last, fragments or not."""
    max_target_bytes: int = 16 * 1024
    """Of a request's target: what stands between its method and its version."""
    max_headers: int = 100
    max_header_bytes: int = 32 * 1024
    """Of a request's header block in all, each line as it stands on the wire."""
    max_fragments: int = 1024
    """Of one message, empty fragments included."""
    control_rate: float = 100.0
    """Pings and pongs per second, on average; as many at once. 0 is off."""


_DEFAULT = ProtocolLimits()


def limits_of(config: object) -> ProtocolLimits:
    """The bounds of a server's configuration; the defaults for one that is not ours."""
    limits: ProtocolLimits = getattr(config, "protocol_limits", _DEFAULT)
    return limits


@dataclass(frozen=True, slots=True)
class Refusal:
    """An answer that the app never hears of."""

    status: HTTPStatus
    slug: str
    headers: tuple[tuple[bytes, bytes], ...] = ()

    @property
    def body(self) -> bytes:
        """The JSON of this answer, in the shape of all of the service's errors."""
        return json.dumps({"detail": self.slug}, separators=(",", ":")).encode()

    def serialize(self, default_headers: Iterable[tuple[bytes, bytes]] = ()) -> bytes:
        """The whole response; the connection ends with it."""
        body = self.body
        lines = [b"HTTP/1.1 %d %s" % (self.status, self.status.phrase.encode())]
        lines += [
            name + b": " + value
            for name, value in (
                *default_headers,
                *self.headers,
                (b"content-type", b"application/json"),
                # 414 would be cacheable without (RFC 9110, 15.1)
                (b"cache-control", b"no-store"),
                (b"content-length", str(len(body)).encode()),
                (b"connection", b"close"),
            )
        ]
        return b"\r\n".join([*lines, b"", body])


BAD_REQUEST = Refusal(HTTPStatus.BAD_REQUEST, "bad_request")
REQUEST_TIMEOUT = Refusal(HTTPStatus.REQUEST_TIMEOUT, "request_timeout")
# Python 3.13 calls it URI_TOO_LONG and keeps this name
TARGET_TOO_LONG = Refusal(HTTPStatus.REQUEST_URI_TOO_LONG, "uri_too_long")
HEADERS_TOO_LARGE = Refusal(
    HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, "headers_too_large"
)
BAD_HANDSHAKE = Refusal(HTTPStatus.BAD_REQUEST, "bad_handshake")
EARLY_DATA = Refusal(HTTPStatus.BAD_REQUEST, "data_before_handshake")
VERSION_UNSUPPORTED = Refusal(
    HTTPStatus.UPGRADE_REQUIRED,
    "version_unsupported",
    # RFC 6455, 4.2.2: the answer names the versions that the server speaks
    ((b"sec-websocket-version", b"13"),),
)
METHOD_NOT_ALLOWED = Refusal(
    HTTPStatus.METHOD_NOT_ALLOWED, "method_not_allowed", ((b"allow", b"GET"),)
)
RESTARTING = Refusal(HTTPStatus.SERVICE_UNAVAILABLE, "restart")
