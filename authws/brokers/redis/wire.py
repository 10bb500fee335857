"""What of ours stands in Redis: its names, the form of a message, and two scripts.

A message on a channel begins with a version and a kind: ``\\x01c`` and its bytes, if it
is only carried; ``\\x01k``, the epoch, the offset and its bytes, if it is kept too.

A channel that keeps has two keys. The stream has the messages; an entry's id is
``TIME-OFFSET``, by the clock of the Redis server: one clock, whoever publishes. The
state has the epoch and the last offset, and outlives the stream by ``STATE_EXTRA``.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Sequence
from functools import lru_cache
from struct import Struct
from typing import Any, NamedTuple

from redis.crc import key_slot

from authws.brokers.base import Replay
from authws.decisions.history import Position, Retention

__all__ = [
    "EVALSHA_PUBLISH",
    "EVAL_PUBLISH",
    "Names",
    "Wire",
    "command",
    "read_message",
    "read_replay",
]

CARRIED = b"\x01c"
KEPT = b"\x01k"
EPOCH_LENGTH = 12
HEADER = Struct(f">{len(KEPT)}s{EPOCH_LENGTH}sQ")
"""Of a message that is kept: what says so, the epoch, the offset."""
MAX_OFFSET = 2**53
"""Lua's numbers are exact up to here."""

STATE_EXTRA = 86_400
"""Seconds for which a silent channel's epoch is remembered longer than its messages.
Whoever comes back within them hears that nothing is missing; whoever comes later, that
it cannot be known."""

LIVES = 8
"""Epochs that are remembered beside the present one."""

_READ_STATE = f"""
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local life, epoch, top, last, past
local state = redis.call('GET', KEYS[2])
if state then
  life, epoch, top, last, past = cmsgpack.unpack(state)
else
  redis.call('DEL', KEYS[1])
  past = {{}}
end
if life ~= ARGV[1] then
  if life then
    for i = 2, #past, 2 do past[i] = math.min(past[i], top) end
    past[#past + 1], past[#past + 2] = epoch, top
    if #past > {2 * LIVES} then
      table.remove(past, 1)
      table.remove(past, 1)
    end
  end
  epoch = string.sub(redis.sha1hex(ARGV[1] .. clock[1] .. clock[2]), 1, {EPOCH_LENGTH})
  life, top, last = ARGV[1], top or 0, last or 0
end
"""
# A life is what Redis calls a replication id: another one after every restart and every
# promotion of a replica. Both may have lost the last messages, whose offsets are then
# given again to others. So each life begins an epoch, and those before are good only up
# to where later lives found them: whoever holds a later offset has seen what is lost.
# ``past`` has them, the oldest first: an epoch, and how far it is good.

_WRITE_STATE = f"""
state = cmsgpack.pack(life, epoch, top, last, past)
redis.call('SET', KEYS[2], state, 'PX', ARGV[2] + {STATE_EXTRA * 1000})
"""

PUBLISH = f"""{_READ_STATE}
top = top + 1
if last < now then last = now end
{_WRITE_STATE}
redis.call('XADD', KEYS[1], 'MAXLEN', '=', ARGV[3], last .. '-' .. top, 'd', ARGV[6])
redis.call('XTRIM', KEYS[1], 'MINID', '=', last - ARGV[2])
redis.call('PEXPIRE', KEYS[1], ARGV[2])
redis.call(ARGV[4], ARGV[5], '\\1k' .. epoch .. struct.pack('>I8', top) .. ARGV[6])
"""
# The time never runs backwards here, whatever the server's clock does: a stream takes
# ids that grow. All of it happens at once, or, if Redis has no memory left, nothing.

REPLAY = f"""{_READ_STATE}{_WRITE_STATE}
local since = tonumber(ARGV[4])
local known = since and since <= top and ARGV[3] == epoch
for i = 1, #past, 2 do
  known = known or since and ARGV[3] == past[i] and since <= past[i + 1]
end
local kept = {{}}
if known and since < top then
  kept = redis.call('XREVRANGE', KEYS[1], '+', now - ARGV[2], 'COUNT', top - since)
end
return {{epoch, top, known and 1 or 0, kept, past}}
"""
# Offsets have no gaps: what came after ``since`` is the last ``top - since`` entries,
# and if they are fewer, some are gone.


def command(*words: bytes) -> bytes:
    """Return a command in the form in which Redis reads it."""
    return b"*%d\r\n" % len(words) + b"".join(map(_bulk, words))


def _bulk(word: bytes) -> bytes:
    return b"$%d\r\n%b\r\n" % (len(word), word)


_SHA = hashlib.sha1(PUBLISH.encode(), usedforsecurity=False).hexdigest().encode()
EVAL_PUBLISH = b"*11\r\n" + _bulk(b"EVAL") + _bulk(PUBLISH.encode())
EVALSHA_PUBLISH = b"*11\r\n" + _bulk(b"EVALSHA") + _bulk(_SHA)
"""How a kept publish begins; what ``Wire.keep`` returns follows."""


class Names(NamedTuple):
    """What a channel is called in Redis. The braces put all of it into one slot."""

    channel: bytes
    stream: bytes
    state: bytes
    slot: int
    """Of a cluster; 0 without."""


class Wire:
    """Makes the commands of one deployment."""

    def __init__(self, prefix: str, database: int, *, is_sharded: bool) -> None:
        """``database`` is in every name: pub/sub knows no databases."""
        self._root = f"{prefix}:{database}:".encode()
        self._is_sharded = is_sharded
        self._publish = b"SPUBLISH" if is_sharded else b"PUBLISH"
        self.names = lru_cache(maxsize=16_384)(self._names)
        self._carry_head = lru_cache(maxsize=4096)(self._make_carry_head)
        self._keep_head = lru_cache(maxsize=4096)(self._make_keep_head)

    def channel(self, name: bytes) -> str:
        """Return the channel that has this name in Redis."""
        return name[len(self._root) + 1 : -1].decode()

    def carry(self, channel: str, data: bytes) -> bytes:
        """Return the command that publishes."""
        head = self._carry_head(channel)
        return b"%b$%d\r\n\x01c%b\r\n" % (head, len(data) + len(CARRIED), data)

    def keep(self, channel: str, data: bytes, keep: Retention, life: bytes) -> bytes:
        """Return the command that keeps and publishes, but for how it begins."""
        return self._keep_head(channel, keep, life) + _bulk(data)

    def replay(
        self, channel: str, keep: Retention, since: Position | None, life: bytes
    ) -> Sequence[bytes]:
        """Return the words that ask for what came after a position."""
        names = self.names(channel)
        epoch, offset = (since.epoch, since.offset) if since is not None else ("", "")
        return (
            *(b"EVAL", REPLAY.encode(), b"2", names.stream, names.state),
            *(
                life,
                _milliseconds(keep),
                epoch.encode(errors="replace"),
                str(offset).encode(),
            ),
        )

    def _names(self, channel: str) -> Names:
        name = b"%b{%b}" % (self._root, channel.encode())
        slot = key_slot(name) if self._is_sharded else 0
        return Names(name, name + b":kept", name + b":state", slot)

    def _make_carry_head(self, channel: str) -> bytes:
        name = self.names(channel).channel
        return b"*3\r\n" + _bulk(self._publish) + _bulk(name)

    def _make_keep_head(self, channel: str, keep: Retention, life: bytes) -> bytes:
        names = self.names(channel)
        words = (b"2", names.stream, names.state, life, _milliseconds(keep))
        count = str(keep.messages).encode()
        return b"".join(map(_bulk, (*words, count, self._publish, names.channel)))


def _milliseconds(keep: Retention) -> bytes:
    return str(math.ceil(keep.seconds * 1000)).encode()


def read_message(payload: bytes) -> tuple[bytes, Position | None] | None:
    """Return a message and its position, or None if that is no message of ours."""
    if payload.startswith(CARRIED):
        return payload[len(CARRIED) :], None
    if not payload.startswith(KEPT) or len(payload) < HEADER.size:
        return None
    _, written, offset = HEADER.unpack_from(payload)
    epoch = _read_epoch(written)
    if epoch is None or not 0 < offset <= MAX_OFFSET:
        return None
    return payload[HEADER.size :], Position(epoch, offset)


@lru_cache(maxsize=4096)
def _read_epoch(text: bytes) -> str | None:
    return text.decode() if re.fullmatch(b"[0-9a-f]{12}", text) else None


def read_replay(answer: Sequence[Any], since: Position | None) -> Replay:
    """Return what the script found."""
    epoch, top, is_known, kept, past = answer
    lives = [*zip(past[::2], past[1::2], strict=True), (epoch, top)]
    messages = []
    for entry, (_, data) in reversed(kept):
        offset = int(entry.partition(b"-")[2])
        # that of the life in which it was published, as who heard it then has it
        of = next((epoch for epoch, good in lives if offset <= good), epoch)
        messages.append((Position(of.decode(), offset), data))
    is_complete = since is None or (
        bool(is_known) and len(messages) == top - since.offset
    )
    return Replay(tuple(messages), is_complete, Position(epoch.decode(), top))
