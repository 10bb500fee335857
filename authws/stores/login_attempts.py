"""Failed logins, counted where every process sees them.

An attempt is written down before its password is looked at, and is a failure until it
is said to be something else. So any number of processes and hosts together allow no
more guesses than one does, and a process that dies in between leaves a failure behind.
"""

from __future__ import annotations

import base64
import hashlib
import json
from dataclasses import dataclass

from sqlalchemy import Column, delete, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from authws.clock import Clock
from authws.decisions.limits import Limit
from authws.exceptions import RateLimitedError
from authws.stores.database import CHORE_SECONDS, Database, hold, insert_once
from authws.stores.schema import known_addresses, login_attempts

__all__ = ["Attempt", "AttemptLimits", "LoginAttempts", "Window"]

SOON = 1.0
"""Seconds after which an attempt that is under way may have turned out well."""
UNDER_WAY_SECONDS = 60.0
"""How long one is taken to be under way; then the process that made it is gone."""
KNOWN_SECONDS = 90 * 86_400.0
"""How long an address is remembered after an account's last login from there."""
KNOWN_ADDRESSES = 100
"""How many are remembered of one account: those used last."""


@dataclass(frozen=True, slots=True)
class Window:
    """So many failures within any so many seconds."""

    limit: int
    seconds: float


@dataclass(frozen=True, slots=True)
class AttemptLimits:
    """How many failures there may be, by what they have in common."""

    pair: Window
    """Of one account from one address."""
    address: Window
    """From one address."""
    account: Window
    """Of one account; each address that it logged in from before counts apart."""

    @property
    def longest(self) -> float:
        """Seconds after which no window holds an attempt any more."""
        return max(self.pair.seconds, self.address.seconds, self.account.seconds)


@dataclass(frozen=True, slots=True)
class Attempt:
    """One that was let through, and is to be settled."""

    id: int
    pair: str
    account: str


class LoginAttempts:
    """The attempts of the last hour, and where accounts logged in from before."""

    def __init__(self, db: Database, clock: Clock) -> None:
        self._db = db
        self._clock = clock

    async def begin(self, account: str, address: str, limits: AttemptLimits) -> Attempt:
        """Write an attempt down, if one more failure is within all limits.

        Those under way count: where there is room for one, two at once do not both
        find it. What is refused leaves nothing behind.

        Raises:
            RateLimitedError: there is no room; with the seconds until there is.
            UnavailableError: the database failed: refuse the login.
        """
        pair = _digest("pair", account, address)
        by_address = _digest("address", address)
        by_account = _digest("account", account)
        columns = login_attempts.c
        async with self._db.begin() as connection:
            await hold(connection, pair, by_address, by_account)
            own = pair if await _is_known(connection, pair) else by_account
            now = self._clock.now()  # not before: what we waited for is older
            waits = [
                await _wait(connection, columns.pair, pair, limits.pair, now),
                await _wait(
                    connection, columns.address, by_address, limits.address, now
                ),
                await _wait(connection, columns.account, own, limits.account, now),
            ]
            if wait := max(waits):
                raise RateLimitedError("too many failed logins", Limit.LOGIN_RATE, wait)
            row = {
                "pair": pair,
                "address": by_address,
                "account": own,
                "under_way": True,
                "at": now,
                "expires_at": now + limits.longest,
            }
            begun = await connection.execute(
                insert(login_attempts).values(row).returning(columns.id)
            )
            return Attempt(begun.scalar_one(), pair, by_account)

    async def failed(self, attempt: Attempt) -> None:
        """Let it count until its windows have passed.

        Raises:
            UnavailableError: the database failed; it counts all the same.
        """
        async with self._db.begin() as connection:
            await connection.execute(
                update(login_attempts)
                .where(login_attempts.c.id == attempt.id)
                .values(under_way=False)
            )

    async def succeeded(self, attempt: Attempt) -> None:
        """Forget it and the pair's failures, and remember the address.

        The failures still count for the address and the account, where others may
        have made them.

        Raises:
            UnavailableError: the database failed; it counts as a failure.
        """
        async with self._db.begin() as connection:
            await hold(connection, attempt.pair, attempt.account)
            await _forget(connection, attempt)
            await connection.execute(
                update(login_attempts)
                .where(login_attempts.c.pair == attempt.pair)
                .where(login_attempts.c.under_way.is_(False))
                .values(pair=None)
            )
            await _remember(connection, attempt, self._clock.now())

    async def withdraw(self, attempt: Attempt) -> None:
        """Forget it: whether the password is right was not found out.

        Raises:
            UnavailableError: the database failed; it counts as a failure.
        """
        async with self._db.begin() as connection:
            await _forget(connection, attempt)

    async def prune(self, now: float) -> None:
        """Forget what counts no more, and addresses that were long not used.

        Raises:
            UnavailableError: the database failed.
        """
        seen_at = known_addresses.c.seen_at
        async with self._db.begin(seconds=CHORE_SECONDS) as connection:
            await connection.execute(
                delete(login_attempts).where(login_attempts.c.expires_at < now)
            )
            await connection.execute(
                delete(known_addresses).where(seen_at < now - KNOWN_SECONDS)
            )


async def _wait(
    connection: AsyncConnection,
    column: Column[str],
    key: str,
    window: Window,
    now: float,
) -> float:
    """Return in how many seconds a window has room; 0.0 if it has some now."""
    columns = login_attempts.c
    newest = await connection.execute(
        select(columns.at, columns.under_way)
        .where(column == key, columns.at > now - window.seconds)
        .order_by(columns.at.desc())
        .limit(window.limit)
    )
    found = newest.all()
    if len(found) < window.limit:
        return 0.0
    if any(row.under_way and row.at > now - UNDER_WAY_SECONDS for row in found):
        return SOON
    return max(SOON, float(found[-1].at) + window.seconds - now)


async def _is_known(connection: AsyncConnection, pair: str) -> bool:
    known = select(known_addresses.c.pair).where(known_addresses.c.pair == pair)
    return (await connection.execute(known)).first() is not None


async def _forget(connection: AsyncConnection, attempt: Attempt) -> None:
    statement = delete(login_attempts).where(login_attempts.c.id == attempt.id)
    await connection.execute(statement)


async def _remember(connection: AsyncConnection, attempt: Attempt, now: float) -> None:
    """Note a login of the account from the address, and keep those used last."""
    known = known_addresses.c
    row = {"pair": attempt.pair, "account": attempt.account, "seen_at": now}
    if not await insert_once(connection, known_addresses, row):
        again = update(known_addresses).where(known.pair == attempt.pair)
        await connection.execute(again.values(seen_at=now))
        return
    kept = (
        select(known.pair)
        .where(known.account == attempt.account)
        .order_by(known.seen_at.desc())
        .limit(KNOWN_ADDRESSES)
    )
    await connection.execute(
        delete(known_addresses)
        .where(known.account == attempt.account)
        .where(known.pair.not_in(kept))
    )


def _digest(*parts: str) -> str:
    # as JSON, which keeps the parts apart and takes any text, NUL and surrogates too
    digest = hashlib.sha256(json.dumps(parts).encode()).digest()
    return base64.urlsafe_b64encode(digest).rstrip(b"=").decode("ascii")
