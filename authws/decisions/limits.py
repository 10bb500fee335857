"""Token buckets: how much, how fast. A limit of 0 is off."""

from __future__ import annotations

from collections import OrderedDict

__all__ = ["KeyedBuckets", "TokenBucket"]


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
