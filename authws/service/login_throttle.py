"""How often a login may fail: per account from an address, per address, per account.

Only failures count. The limit that a stranger can fill for somebody else, failures on
one account from anywhere, spares addresses from which that account logged in before:
so nobody can be locked out of their own account.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass

from authws.exceptions import UnavailableError
from authws.stores.login_attempts import AttemptLimits, LoginAttempts, Window

__all__ = ["LoginThrottle", "Outcome"]

MINUTE, HOUR = 60.0, 3600.0
PER_ADDRESS = 4
"""Times the rate: one address may be a whole office."""
PER_ACCOUNT_AND_HOUR = 100
"""NIST SP 800-63B, 5.2.2: no more than 100 consecutive failures on an account."""


@dataclass(slots=True)
class Outcome:
    """What came of an attempt: a failure, until it is told otherwise."""

    is_success: bool = False


class LoginThrottle:
    """Counts failed logins, for all processes on one database. A rate of 0 is off."""

    def __init__(self, rate: int, attempts: LoginAttempts) -> None:
        """``rate``: failures per minute for one account from one address."""
        self._rate = rate
        self._attempts = attempts
        self._limits = AttemptLimits(
            pair=Window(rate, MINUTE),
            address=Window(rate * PER_ADDRESS, MINUTE),
            account=Window(PER_ACCOUNT_AND_HOUR, HOUR),
        )

    @asynccontextmanager
    async def attempt(self, account: str, address: str) -> AsyncIterator[Outcome]:
        """Let an attempt be made, or refuse it before any password is looked at.

        It counts as a failure from now on: one that is counted only afterwards would
        not stop a burst of guesses. A success takes it back; so does an error, by
        which nobody learns whether the password is right. Whoever is cut off in
        between, by a cancellation or the end of the process, has failed.

        Raises:
            RateLimitedError: with the seconds to wait.
            UnavailableError: the database failed.
        """
        outcome = Outcome()
        if not self._rate:
            yield outcome
            return
        attempt = await self._attempts.begin(account, address, self._limits)
        try:
            yield outcome
        except Exception:
            with suppress(UnavailableError):
                await self._attempts.withdraw(attempt)
            raise
        if outcome.is_success:
            await self._attempts.succeeded(attempt)
        else:
            await self._attempts.failed(attempt)
