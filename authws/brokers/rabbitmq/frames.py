"""AMQP 0-9-1 as bytes; the codec of methods and properties is pamqp's. No I/O."""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Iterator
from functools import lru_cache
from typing import Any, NamedTuple

from pamqp.base import Frame
from pamqp.commands import Basic
from pamqp.exceptions import PAMQPException
from pamqp.frame import marshal, unmarshal
from pamqp.header import ContentHeader, ProtocolHeader

__all__ = [
    "BEAT",
    "BODY",
    "GREETING",
    "HEADER",
    "HEARTBEAT",
    "MAX_FRAME",
    "METHOD",
    "OFFSET",
    "Content",
    "MalformedError",
    "Received",
    "marshal",
    "publish",
    "read_header",
    "read_method",
    "split",
]

MAX_FRAME = 131_072
"""Bytes; RabbitMQ's own default."""
METHOD, HEADER, BODY, HEARTBEAT = 1, 2, 3, 8
"""The kinds of frames."""

_FRAME = struct.Struct(">BHI")
"""Kind, channel, length."""
_END = b"\xce"
_OVERHEAD = _FRAME.size + len(_END)
_CONTENT = struct.Struct(">HHQH")
"""Class, weight, length of the body, which properties there are."""
_HAS_HEADERS, _HAS_MESSAGE_ID = 1 << 13, 1 << 7
_DELIVER = (Basic.Deliver.index).to_bytes(4)
_DELIVERY = struct.Struct(">QB")
OFFSET = "x-stream-offset"
"""The header by which RabbitMQ says where in its stream an entry is."""
_ONLY_OFFSET = b"\0\0\0\x19\x0f" + OFFSET.encode() + b"l"
"""A table of headers with nothing else."""
_OFFSET = struct.Struct(">q")

GREETING = ProtocolHeader().marshal()
BEAT = _FRAME.pack(HEARTBEAT, 0, 0) + _END


class MalformedError(Exception):
    """This is no AMQP 0-9-1."""


class Received(NamedTuple):
    """A frame."""

    kind: int
    channel: int
    data: bytes
    """All of it, with what is around its payload."""

    @property
    def payload(self) -> bytes:
        return self.data[_FRAME.size : -len(_END)]


class Content(NamedTuple):
    """What a message's header says."""

    size: int
    """Bytes of the body, which follows."""
    headers: dict[str, Any]
    message_id: str


def split(data: bytes) -> Iterator[Received]:
    """Yield the frames at the beginning that are there whole.

    Raises:
        MalformedError: there is something else.
    """
    start = 0
    while len(data) - start >= _OVERHEAD:
        kind, channel, length = _FRAME.unpack_from(data, start)
        end = start + _OVERHEAD + length
        if length > MAX_FRAME:
            raise MalformedError
        if end > len(data):
            return
        if data[end - 1 : end] != _END:
            raise MalformedError
        yield Received(kind, channel, data[start:end])
        start = end


def read_method(frame: Received) -> Frame:
    """Return a method.

    Raises:
        MalformedError: it is none.
    """
    try:
        if frame.data.startswith(_DELIVER, _FRAME.size):
            return _read_deliver(frame.data)
        method = unmarshal(frame.data)[2]
    except (PAMQPException, struct.error, IndexError, ValueError):
        raise MalformedError from None
    if not isinstance(method, Frame):
        raise MalformedError
    return method


def _read_deliver(data: bytes) -> Basic.Deliver:
    """Do what pamqp does in five times the time: this comes with every message."""
    consumer, end = _short_string(data, _FRAME.size + len(_DELIVER))
    tag, is_redelivered = _DELIVERY.unpack_from(data, end)
    exchange, end = _short_string(data, end + _DELIVERY.size)
    key, _ = _short_string(data, end)
    return Basic.Deliver(consumer, tag, is_redelivered, exchange, key)


def _short_string(data: bytes, start: int) -> tuple[str, int]:
    end = start + 1 + data[start]
    return data[start + 1 : end].decode(), end


def read_header(frame: Received) -> Content:
    """Return what a message's header says; of properties that cannot be decoded, none:
    that is somebody else's message, and nothing but it may be harmed by that.

    Raises:
        MalformedError: it does not even say how long the body is.
    """
    try:
        _, _, size, properties = _CONTENT.unpack_from(frame.payload)
    except struct.error:
        raise MalformedError from None
    if properties // _HAS_HEADERS == 1 and frame.payload.startswith(
        _ONLY_OFFSET, _CONTENT.size
    ):  # the headers come first, and are those of a stream's entry: a fifth of the time
        offset = _OFFSET.unpack_from(frame.payload, _CONTENT.size + len(_ONLY_OFFSET))
        return Content(size, {OFFSET: offset[0]}, "")
    if properties & (_HAS_HEADERS | _HAS_MESSAGE_ID):
        with contextlib.suppress(Exception):  # pamqp raises more than its own
            header = unmarshal(frame.data)[2]
            assert isinstance(header, ContentHeader)  # noqa: S101 - of that kind
            read = header.properties
            return Content(size, read.headers or {}, read.message_id or "")
    return Content(size, {}, "")


def publish(
    channel: int,
    exchange: str,
    key: str,
    properties: Basic.Properties,
    body: bytes,
    *,
    is_mandatory: bool,
    max_frame: int,
) -> bytes:
    """Return the frames of a message, none longer than ``max_frame``."""
    header = ContentHeader(body_size=len(body), properties=properties)
    frames = [
        _publish_method(channel, exchange, key, is_mandatory),
        marshal(header, channel),
    ]
    size = max_frame - _OVERHEAD
    for start in range(0, len(body), size):
        part = body[start : start + size]
        frames += [_FRAME.pack(BODY, channel, len(part)), part, _END]
    return b"".join(frames)


@lru_cache(maxsize=4096)
def _publish_method(channel: int, exchange: str, key: str, is_mandatory: bool) -> bytes:
    method = Basic.Publish(exchange=exchange, routing_key=key, mandatory=is_mandatory)
    return marshal(method, channel)
