"""How much, how fast, how many at once. A limit of 0 is off."""

from __future__ import annotations

import ipaddress
import math
from collections import OrderedDict
from enum import StrEnum
from functools import lru_cache

__all__ = [
    "Headcount",
    "KeyedBuckets",
    "Limit",
    "TokenBucket",
    "household",
    "retry_after",
    "wire_size",
]


class Limit(StrEnum):
    """Every limit that a peer can run into, as the metrics and the log name it."""

    CONNECTIONS = "connections"
    CONNECTIONS_PER_ADDRESS = "connections_per_address"
    CONNECTIONS_PER_USER = "connections_per_user"
    UNAUTHENTICATED = "unauthenticated"
    UNAUTHENTICATED_PER_ADDRESS = "unauthenticated_per_address"
    HANDSHAKE_RATE = "handshake_rate"
    LOGIN_RATE = "login_rate"
    MESSAGE_RATE = "message_rate"
    BYTE_RATE = "byte_rate"
    MESSAGE_BYTES = "message_bytes"
    FIRST_MESSAGE_BYTES = "first_message_bytes"
    FRAMES = "frames"
    """Pings and pongs, fragments of a message, and the time that one may take."""
    JSON_DEPTH = "json_depth"
    ROOMS = "rooms"
    ROOM_NAME = "room_name"
    STRIKES = "strikes"
    OUTBOX = "outbox"


class TokenBucket:
    """Allows ``rate`` per second on average and ``burst`` at once."""

    __slots__ = ("_level", "_updated", "burst", "rate")

    def __init__(self, rate: float, burst: float, now: float) -> None:
        """``burst`` is at least one: a bucket that holds less never gives any."""
        self.rate = rate
        self.burst = max(1.0, burst)
        self._level = self.burst
        self._updated = now

    def take(self, now: float, amount: float = 1.0) -> bool:
        """Take ``amount`` if it is there; always true for a rate of 0 (off)."""
        if self.rate <= 0:
            return True
        # max(): a monotonic clock does not run backwards, a test's may
        elapsed = max(0.0, now - self._updated)
        self._level = min(self.burst, self._level + elapsed * self.rate)
        self._updated = now
        if self._level < amount:
            return False
        self._level -= amount
        return True

    def retry_after(self, amount: float = 1.0) -> float:
        """Seconds until ``amount`` will be there, if nobody takes any."""
        if self.rate <= 0:
            return 0.0
        return max(0.0, (amount - self._level) / self.rate)


class KeyedBuckets:
    """One bucket a key (an address), for the last ``capacity`` keys seen.

    Forgetting the longest unseen key is safe: its bucket has had the longest time to
    fill. An attacker with more addresses than ``capacity`` gains nothing by it that
    fresh addresses do not already give.
    """

    def __init__(self, rate: float, burst: float, capacity: int = 16_384) -> None:
        self._rate = rate
        self._burst = burst
        self._capacity = capacity
        self._buckets: OrderedDict[str, TokenBucket] = OrderedDict()

    def take(self, key: str, now: float) -> float:
        """Take one; return 0.0, or the seconds to wait when there is none."""
        if self._rate <= 0:
            return 0.0
        bucket = self._buckets.get(key)
        if bucket is None:
            bucket = self._buckets[key] = TokenBucket(self._rate, self._burst, now)
            if len(self._buckets) > self._capacity:
                self._buckets.popitem(last=False)
        else:
            self._buckets.move_to_end(key)
        return 0.0 if bucket.take(now) else bucket.retry_after()


class Headcount:
    """How many are inside, in all and by key (an address)."""

    def __init__(self, limit: int, limit_per_key: int) -> None:
        self.inside = 0
        self._by_key: dict[str, int] = {}
        self._limit = limit
        self._limit_per_key = limit_per_key

    def is_full(self) -> bool:
        """Tell whether nobody more may come in."""
        return self.inside >= self._limit > 0

    def is_full_for(self, key: str) -> bool:
        """Tell whether nobody more of this key may come in."""
        return self._by_key.get(key, 0) >= self._limit_per_key > 0

    def enter(self, key: str) -> None:
        """Count one in; ``leave`` must follow, once."""
        self.inside += 1
        self._by_key[key] = self._by_key.get(key, 0) + 1

    def leave(self, key: str) -> None:
        """Count one out."""
        self.inside -= 1
        left = self._by_key[key] - 1
        if left:
            self._by_key[key] = left
        else:
            del self._by_key[key]


@lru_cache(maxsize=4096)
def household(address: str) -> str:
    """Return what counts as one address: of IPv6 a /64, the least that anyone gets
    (RFC 6177), so that nobody has 2^64 of them."""
    if ":" not in address:
        return address
    try:
        return str(ipaddress.IPv6Network((address.partition("%")[0], 64), strict=False))
    except ValueError:
        return address


def retry_after(seconds: float) -> int:
    """Return a wait as ``Retry-After`` has it (RFC 9110, 10.2.3), in whole seconds:
    rounded down, it would have who waits as told come too early."""
    return max(1, math.ceil(seconds))


def wire_size(message: str | bytes) -> int:
    """Return a message's length on the wire, where text is UTF-8 (RFC 6455, 5.6)."""
    if isinstance(message, bytes) or message.isascii():
        return len(message)
    return len(message.encode("utf-8", "surrogatepass"))
