"""Refresh tokens: opaque, kept as a digest, and good for exactly one redemption.

A token that comes back a second time was stolen, or its answer was. Nobody can tell
which of the two parties is the thief, so the caller ends the session (RFC 9700,
4.14.2).
"""

from __future__ import annotations

import base64
import hashlib
import re
import secrets
from dataclasses import dataclass

from sqlalchemy import delete, insert, select, update

from authws.clock import Clock
from authws.stores.database import CHORE_SECONDS, Database
from authws.stores.schema import refresh_tokens

__all__ = ["RedeemedRefresh", "RefreshTokens"]

PREFIX = "rt_"
"""Lets a person, a log filter and a secret scanner see what it is."""
TOKEN = re.compile(rf"{PREFIX}[A-Za-z0-9_-]{{43}}")


@dataclass(frozen=True, slots=True)
class RedeemedRefresh:
    """What a refresh token that we did issue is worth."""

    session_id: str
    reused: bool
    """It was redeemed before: end the session."""
    expired: bool
    """It came after its time, and is of no use either way."""


class RefreshTokens:
    """The refresh tokens of all sessions, used ones included."""

    def __init__(self, db: Database, clock: Clock) -> None:
        self._db = db
        self._clock = clock

    async def issue(self, session_id: str, expires_at: float) -> str:
        """Return a new token of a session: 256 bits, to be shown once.

        Args:
            session_id: whose tokens it refreshes; the session must exist.
            expires_at: until when, in seconds since the epoch.

        Raises:
            UnavailableError: the database failed, or knows no such session.
        """
        token = PREFIX + secrets.token_urlsafe(32)
        row = {
            "digest": _digest(token),
            "session_id": session_id,
            "created_at": self._clock.now(),
            "expires_at": expires_at,
        }
        async with self._db.begin() as connection:
            await connection.execute(insert(refresh_tokens).values(row))
        return token

    async def redeem(self, token: str, now: float) -> RedeemedRefresh | None:
        """Use a token up, and say whose it is; None if we never issued it.

        Of any number of concurrent calls exactly one gets an answer that is neither
        ``reused`` nor ``expired``.

        Raises:
            UnavailableError: the database failed; the token may be tried again.
        """
        if not TOKEN.fullmatch(token):
            return None
        digest = _digest(token)
        columns = refresh_tokens.c
        async with self._db.begin() as connection:
            used = await connection.execute(
                update(refresh_tokens)
                .where(columns.digest == digest)
                .where(columns.used_at.is_(None), columns.expires_at > now)
                .values(used_at=now)
                .returning(columns.session_id)
            )
            if (row := used.first()) is not None:
                return RedeemedRefresh(row.session_id, reused=False, expired=False)
            known = await connection.execute(
                select(columns.session_id, columns.used_at, columns.expires_at).where(
                    columns.digest == digest
                )
            )
            if (row := known.first()) is None:
                return None
        return RedeemedRefresh(
            row.session_id,
            reused=row.used_at is not None,
            expired=row.expires_at <= now,
        )

    async def prune(self, now: float) -> None:
        """Forget the tokens whose time is over.

        Raises:
            UnavailableError: the database failed.
        """
        async with self._db.begin(seconds=CHORE_SECONDS) as connection:
            await connection.execute(
                delete(refresh_tokens).where(refresh_tokens.c.expires_at < now)
            )


def _digest(token: str) -> str:
    # A fast hash will do: nobody can search 256 random bits (ASVS 11.4.1).
    digest = hashlib.sha256(token.encode()).digest()
    return base64.urlsafe_b64encode(digest).rstrip(b"=").decode("ascii")
