"""How often a login may fail: per account from an address, per address, per account.

Only failures count. The limit that a stranger can fill for somebody else, failures on
one account from anywhere, spares addresses from which that account logged in before:
so nobody can be locked out of their own account.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from limits import RateLimitItem, RateLimitItemPerHour, RateLimitItemPerMinute
from limits.aio.storage import MemoryStorage
from limits.aio.strategies import MovingWindowRateLimiter

from authws.clock import Clock
from authws.decisions.limits import Limit
from authws.exceptions import RateLimitedError

__all__ = ["LoginThrottle"]

PER_ADDRESS = 4
"""Times the rate: one address may be a whole office."""
PER_ACCOUNT_AND_HOUR = 100
"""NIST SP 800-63B, 5.2.2: no more than 100 consecutive failures on an account."""
KNOWN = 16_384


class LoginThrottle:
    """Counts failed logins. A rate of 0 is off."""

    def __init__(self, rate: int, clock: Clock) -> None:
        """``rate``: failures per minute for one account from one address."""
        self._rate = rate
        self._clock = clock
        self._limiter = MovingWindowRateLimiter(MemoryStorage())
        self._known: OrderedDict[tuple[str, str], None] = OrderedDict()
        self._under_way: Counter[tuple[str, ...]] = Counter()

    @asynccontextmanager
    async def attempt(self, account: str, address: str) -> AsyncIterator[None]:
        """Let an attempt be made, or refuse it before any password is looked at.

        While it is made it counts as a failure: one that is counted only afterwards
        would not stop a burst of guesses from many addresses.

        Raises:
            RateLimitedError: with the seconds to wait.
        """
        limits = self._limits(account, address)
        self._under_way.update(keys for _, keys in limits)
        try:
            for limit, keys in limits:
                await self._check(limit, keys)
            yield
        finally:
            for _, keys in limits:
                self._under_way[keys] -= 1
                if not self._under_way[keys]:
                    del self._under_way[keys]

    async def _check(self, limit: RateLimitItem, keys: tuple[str, ...]) -> None:
        if not await self._limiter.test(limit, *keys, cost=self._under_way[keys]):
            stats = await self._limiter.get_window_stats(limit, *keys)
            wait = max(1.0, stats.reset_time - self._clock.now())
            raise RateLimitedError("too many failed logins", Limit.LOGIN_RATE, wait)

    async def failed(self, account: str, address: str) -> None:
        """Count a failure."""
        for limit, keys in self._limits(account, address):
            await self._limiter.hit(limit, *keys)

    async def succeeded(self, account: str, address: str) -> None:
        """Remember that the account logs in from here, and forget its failures."""
        self._known[(account, address)] = None
        self._known.move_to_end((account, address))
        if len(self._known) > KNOWN:
            self._known.popitem(last=False)
        if self._rate:
            await self._limiter.clear(self._pair(), "pair", account, address)

    def _pair(self) -> RateLimitItem:
        return RateLimitItemPerMinute(self._rate)

    def _limits(
        self, account: str, address: str
    ) -> list[tuple[RateLimitItem, tuple[str, ...]]]:
        if not self._rate:
            return []
        known = (account, address) in self._known
        return [
            (self._pair(), ("pair", account, address)),
            (
                RateLimitItemPerMinute(self._rate * PER_ADDRESS),
                ("address", address),
            ),
            (
                RateLimitItemPerHour(PER_ACCOUNT_AND_HOUR),
                ("account", account, address) if known else ("account", account),
            ),
        ]
