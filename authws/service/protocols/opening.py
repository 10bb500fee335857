"""The opening handshake (RFC 6455, section 4.2): which request may become a WebSocket,
and the bytes of every answer to it."""

from __future__ import annotations

import re
from base64 import b64decode, b64encode
from collections.abc import Iterable, Iterator
from hashlib import sha1
from http import HTTPStatus

from authws.service.protocols.limits import (
    BAD_HANDSHAKE,
    METHOD_NOT_ALLOWED,
    VERSION_UNSUPPORTED,
    Headers,
    Refusal,
)

__all__ = [
    "HttpResponse",
    "accept_value",
    "is_nonce",
    "subprotocols",
    "switching_protocols",
    "upgrade_refusal",
]

_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_KEY = re.compile(rb"[A-Za-z0-9+/]{22}==")
"""16 bytes in base64 (RFC 6455, 4.1)."""
_TOKEN = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
"""RFC 9110, 5.6.2."""
_SWITCHING = (
    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n"
    b"Connection: Upgrade\r\nSec-WebSocket-Accept: "
)
_LINE_BREAK = re.compile(rb"[\r\n\0]")


def upgrade_refusal(
    method: bytes,
    http_version: str,
    target: bytes,
    headers: Headers,
    *,
    is_upgrade: bool,
) -> Refusal | None:
    """Say why a request cannot become a WebSocket, before anything looks at it.

    A request that is no upgrade but carries a key is half a handshake: most often a
    proxy that does not pass ``Upgrade`` on.
    """
    keys = _values(headers, b"sec-websocket-key")
    if not is_upgrade:
        return BAD_HANDSHAKE if keys else None
    if method != b"GET":
        return METHOD_NOT_ALLOWED
    if http_version != "1.1":  # RFC 6455, 4.2.1: "an HTTP/1.1 or higher GET request"
        return BAD_HANDSHAKE
    # A head is ASCII (RFC 3986), and a body could only be data that came too early.
    if not target.isascii() or _has_body(headers):
        return BAD_HANDSHAKE
    if _values(headers, b"sec-websocket-version") != [b"13"]:
        return VERSION_UNSUPPORTED
    if len(keys) != 1 or not is_nonce(keys[0]):
        return BAD_HANDSHAKE
    if not all(map(_TOKEN.fullmatch, _offered(headers))):
        return BAD_HANDSHAKE
    return None


def subprotocols(headers: Headers) -> list[str]:
    """What the peer offers to speak, the most wanted first."""
    return [name.decode("ascii") for name in _offered(headers)]


def accept_value(headers: Headers) -> bytes:
    """Return what ``Sec-WebSocket-Accept`` must say (RFC 6455, 4.2.2)."""
    (key,) = _values(headers, b"sec-websocket-key")
    return b64encode(sha1(key + _GUID, usedforsecurity=False).digest())


def switching_protocols(
    accepts: bytes, headers: Iterable[tuple[bytes, bytes]]
) -> bytes:
    """The answer that completes the handshake.

    Raises:
        ValueError: a header that would not be one.
    """
    return b"".join([_SWITCHING, accepts, b"\r\n", *_lines(headers), b"\r\n"])


class HttpResponse:
    """The app's own refusal, as it comes (the ASGI extension for denials)."""

    __slots__ = ("body", "headers", "status")

    def __init__(self, status: int, headers: Iterable[tuple[bytes, bytes]]) -> None:
        if not 200 <= status < 600:
            raise RuntimeError(f"{status} is no status of a whole response")
        self.status = status
        self.headers = list(headers)
        self.body = b""

    def serialize(self, default_headers: Iterable[tuple[bytes, bytes]]) -> bytes:
        """The whole response; the connection ends with it, and no cache may answer the
        next handshake (RFC 6750, 5.3)."""
        headers = [*default_headers, *self.headers]
        given = {name.lower() for name, _ in headers}
        for name, value in (
            (b"content-length", str(len(self.body)).encode()),
            (b"cache-control", b"no-store"),
            (b"connection", b"close"),
        ):
            if name not in given:
                headers.append((name, value))
        try:
            phrase = HTTPStatus(self.status).phrase.encode()
        except ValueError:  # a status of the app's own
            phrase = b""
        return _head(b"%d %s" % (self.status, phrase), headers) + self.body


def _head(status: bytes, headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    return b"".join([b"HTTP/1.1 ", status, b"\r\n", *_lines(headers), b"\r\n"])


def _lines(headers: Iterable[tuple[bytes, bytes]]) -> Iterator[bytes]:
    for name, value in headers:
        if _LINE_BREAK.search(name) or _LINE_BREAK.search(value):
            raise ValueError(f"the response header {name!r} holds a line break")
        yield name + b": " + value + b"\r\n"


def _values(headers: Headers, wanted: bytes) -> list[bytes]:
    return [value for name, value in headers if name == wanted]


def _offered(headers: Headers) -> list[bytes]:
    """The members of a list that may be spread over several lines (RFC 9110, 5.3)."""
    return [
        name
        for value in _values(headers, b"sec-websocket-protocol")
        for part in value.split(b",")
        if (name := part.strip(b" \t"))
    ]


def is_nonce(key: bytes) -> bool:
    """Tell whether it may be a ``Sec-WebSocket-Key``: 16 bytes in base64."""
    return _KEY.fullmatch(key) is not None and len(b64decode(key)) == 16


def _has_body(headers: Headers) -> bool:
    return any(
        name == b"transfer-encoding" or (name == b"content-length" and value != b"0")
        for name, value in headers
    )
