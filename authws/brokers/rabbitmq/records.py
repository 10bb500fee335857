"""What is sent through RabbitMQ, as bytes: one record a message."""

from __future__ import annotations

import struct
from typing import NamedTuple

__all__ = ["Carried", "Epoch", "Kept", "Mark", "Record", "decode"]

_CARRIED = struct.Struct(">cB")
_KEPT = struct.Struct(">cQB")
_EPOCH = struct.Struct(">cQB")
_LATEST = 2**48
"""Milliseconds since 1970, by when nothing can have been written yet."""


class Carried(NamedTuple):
    """A message that nobody keeps."""

    channel: str
    data: bytes

    def encode(self) -> bytes:
        name = self.channel.encode()
        return _CARRIED.pack(b"c", len(name)) + name + self.data


class Kept(NamedTuple):
    """A message that is kept. Only in streams, as are those below."""

    channel: str
    data: bytes
    at: float
    """When it was published, in seconds since 1970 by the publisher's clock."""

    def encode(self) -> bytes:
        name = self.channel.encode()
        return _KEPT.pack(b"k", int(self.at * 1000), len(name)) + name + self.data


class Mark(NamedTuple):
    """Is read by the worker that wrote it: it has read all that came before then."""

    token: str

    def encode(self) -> bytes:
        return b"m" + self.token.encode()


class Epoch(NamedTuple):
    """In which epoch the offsets of this stream are.

    It counts for who does not know the epoch yet, and for who believes in the one that
    it ends. So of two workers that name one at the same time the first is right, for
    both.
    """

    epoch: str
    ends: str
    """The epoch that is over with this record; empty: none."""
    seen: int
    """The offset that its writer had read last: the record comes after that, or was
    written for another stream of this name, which is gone."""

    def encode(self) -> bytes:
        epoch = self.epoch.encode()
        return _EPOCH.pack(b"e", self.seen, len(epoch)) + epoch + self.ends.encode()


Record = Carried | Kept | Mark | Epoch


def decode(body: bytes) -> Record | None:
    """Read a record; None: it is none of ours in form."""
    try:
        match body[:1]:
            case b"c":
                _, length = _CARRIED.unpack_from(body)
                name, data = _split(body, _CARRIED.size, length)
                return Carried(name, data) if name else None
            case b"k":
                _, at, length = _KEPT.unpack_from(body)
                name, data = _split(body, _KEPT.size, length)
                return Kept(name, data, at / 1000) if name and at < _LATEST else None
            case b"m":
                return Mark(body[1:].decode("ascii"))
            case b"e":
                _, seen, length = _EPOCH.unpack_from(body)
                epoch, ends = _split(body, _EPOCH.size, length)
                return Epoch(epoch, ends.decode("ascii"), seen) if epoch else None
    except (struct.error, UnicodeDecodeError):
        pass
    return None


def _split(body: bytes, start: int, length: int) -> tuple[str, bytes]:
    """Return the name that stands at ``start``, and what stands behind it."""
    end = start + length
    if end > len(body):
        return "", b""
    return body[start:end].decode("ascii"), body[end:]
