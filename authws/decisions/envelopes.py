"""What travels between workers: by whom, which number, and genuine.

A broker is a shared place: whoever may write there could put words into anybody's
mouth, or end anybody's connection. So each message carries a MAC by a key that is
derived from the service's secrets, over the channel it is meant for; the number that
its sender gave it there, by which what is missing or comes twice is seen; and the time,
for who has not heard the sender before.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum
from functools import lru_cache
from hashlib import blake2b
from hmac import compare_digest
from struct import Struct
from typing import NamedTuple

from authws.exceptions import AuthwsError

__all__ = ["NODE_LENGTH", "Envelope", "ForgedEnvelopeError", "Kind", "Sealer"]

NODE_LENGTH = 11
"""Characters of a worker's id: 64 random bits in base64url."""
MAC_BYTES = 16
MAX_MACS = 2
"""Keys that seal one envelope."""

_VERSION = b"\xa1"
_CHANNELS = 4096
"""Channels whose beginning of a MAC is remembered: 1 KiB each."""
_HEAD = Struct(f">{NODE_LENGTH}sQIB")
_BEGIN = len(_VERSION) + 1


class ForgedEnvelopeError(AuthwsError):
    """None of our keys made this, or not for this channel."""


class Kind(IntEnum):
    """What is in an envelope."""

    MESSAGE = 1
    """A room's message, as its members get it."""
    PRESENCE = 2
    """A change of who is in a room by way of the sender."""
    CLUSTER = 3
    """What workers tell one another."""


class Envelope(NamedTuple):
    """A message between workers."""

    kind: int
    node: str
    """The worker that sent it."""
    number: int
    """Which of its messages on this channel, each higher than those before it; 0 for
    what is kept, which has a position instead."""
    body: bytes
    at: int = 0
    """When it was sent, in seconds since the epoch."""


class Sealer:
    """Makes envelopes genuine, and tells which are (BLAKE2b, RFC 7693, keyed)."""

    def __init__(self, keys: Sequence[bytes]) -> None:
        """The key that signs comes last; each is believed, so that keys can rotate.

        The last two both make a MAC, and one that is known is enough. While workers
        are restarted one by one with other keys, those before know the one and those
        behind the other, whether the new key signs at once or is only believed first.
        """
        # a keyed state once, and a copy of it for each message
        self._macs = tuple(
            blake2b(
                key=blake2b(key, digest_size=32, person=b"authws broker").digest(),
                digest_size=MAC_BYTES,
            )
            for key in reversed(keys)
        )
        self._begun = lru_cache(maxsize=_CHANNELS)(self._begin)

    def seal(self, channel: str, envelope: Envelope) -> bytes:
        """Return what goes to the broker."""
        kind, node, number, body, at = envelope
        rest = _HEAD.pack(node.encode(), number, at, kind) + body
        macs = b"".join(
            [_finished(begun, rest) for begun in self._begun(channel)[:MAX_MACS]]
        )
        return b"%b%c%b%b" % (_VERSION, len(macs) // MAC_BYTES, macs, rest)

    def open(self, channel: str, data: bytes) -> Envelope:
        """Return what came from the broker on this channel.

        Raises:
            ForgedEnvelopeError: it is not genuine.
        """
        count = data[1] if len(data) > 1 and data[:1] == _VERSION else 0
        begin = _BEGIN + count * MAC_BYTES
        if not 0 < count <= MAX_MACS or len(data) < begin + _HEAD.size:
            raise ForgedEnvelopeError("not an envelope")
        rest = data[begin:]
        macs = [data[at : at + MAC_BYTES] for at in range(_BEGIN, begin, MAC_BYTES)]
        for begun in self._begun(channel):
            mac = _finished(begun, rest)
            if any(compare_digest(mac, genuine) for genuine in macs):
                node, number, at, kind = _HEAD.unpack_from(rest)
                body = rest[_HEAD.size :]
                return Envelope(kind, node.decode("ascii"), number, body, at)
        raise ForgedEnvelopeError("not by a key of ours, or not for this channel")

    def _begin(self, channel: str) -> tuple[blake2b, ...]:
        """Begin a MAC by each key with the channel, the newest first."""
        begun = tuple(keyed.copy() for keyed in self._macs)
        for mac in begun:
            # no channel's name holds a NUL: where it ends is never in doubt
            mac.update(b"%b\0" % channel.encode())
        return begun


def _finished(begun: blake2b, rest: bytes) -> bytes:
    mac = begun.copy()
    mac.update(rest)
    return mac.digest()
