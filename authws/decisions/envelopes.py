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

_VERSION = b"\xa1"
_CHANNELS = 4096
"""Channels whose beginning of a MAC is remembered: 1 KiB each."""
_HEAD = Struct(f">{NODE_LENGTH}sQIB")
_BEGIN = len(_VERSION) + MAC_BYTES
_BODY = _BEGIN + _HEAD.size


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
    """When it was sent, in seconds since the epoch; 0 for what is kept."""


class Sealer:
    """Makes envelopes genuine, and tells which are (BLAKE2b, RFC 7693, keyed)."""

    def __init__(self, keys: Sequence[bytes]) -> None:
        """The newest key comes last; each is believed, so that keys can rotate.

        The last but one makes the MAC. While workers are restarted one by one with
        another key, those before do not know the newest yet; and those behind, of
        whom each keeps some, may not know the oldest any more.
        """
        # a keyed state once, and a copy of it for each message
        self._macs = tuple(
            blake2b(
                key=blake2b(key, digest_size=32, person=b"authws broker").digest(),
                digest_size=MAC_BYTES,
            )
            for key in keys
        )
        self._begun = lru_cache(maxsize=_CHANNELS)(self._begin)

    def seal(self, channel: str, envelope: Envelope) -> bytes:
        """Return what goes to the broker."""
        kind, node, number, body, at = envelope
        rest = _HEAD.pack(node.encode(), number, at, kind) + body
        mac = self._begun(channel)[-2:][0].copy()
        mac.update(rest)
        return b"%b%b%b" % (_VERSION, mac.digest(), rest)

    def open(self, channel: str, data: bytes) -> Envelope:
        """Return what came from the broker on this channel.

        Raises:
            ForgedEnvelopeError: it is not genuine.
        """
        if len(data) < _BODY or data[:1] != _VERSION:
            raise ForgedEnvelopeError("not an envelope")
        rest, genuine = data[_BEGIN:], data[1:_BEGIN]
        for begun in self._begun(channel):
            mac = begun.copy()
            mac.update(rest)
            if compare_digest(mac.digest(), genuine):
                node, number, at, kind = _HEAD.unpack_from(data, _BEGIN)
                return Envelope(kind, node.decode("ascii"), number, data[_BODY:], at)
        raise ForgedEnvelopeError("not by a key of ours, or not for this channel")

    def _begin(self, channel: str) -> tuple[blake2b, ...]:
        """Begin a MAC by each key with the channel."""
        begun = tuple(keyed.copy() for keyed in self._macs)
        for mac in begun:
            # no channel's name holds a NUL: where it ends is never in doubt
            mac.update(b"%b\0" % channel.encode())
        return begun
