"""A single-use ticket is an insert that can succeed once.

The ticket itself is a signed token; what is kept is that its ``jti`` was seen, until
the ticket has expired and needs no memory any more.
"""

from __future__ import annotations

from sqlalchemy import delete

from authws.stores.database import CHORE_SECONDS, Database, insert_once
from authws.stores.schema import used_tickets

__all__ = ["UsedTickets"]


class UsedTickets:
    """The tickets that were redeemed and have not expired yet."""

    def __init__(self, db: Database) -> None:
        self._db = db

    async def redeem(self, jti: str, expires_at: float) -> bool:
        """Use a ticket up; tell whether this call was the first to do so.

        Args:
            jti: the id of a ticket whose signature and times were checked before.
            expires_at: when the ticket ends, in seconds since the epoch.

        Raises:
            UnavailableError: the database failed: refuse the ticket.
        """
        async with self._db.begin() as connection:
            row = {"jti": jti, "expires_at": expires_at}
            return await insert_once(connection, used_tickets, row)

    async def prune(self, now: float) -> None:
        """Forget the tickets that have expired; allow for leeway in ``now``.

        Raises:
            UnavailableError: the database failed.
        """
        async with self._db.begin(seconds=CHORE_SECONDS) as connection:
            await connection.execute(
                delete(used_tickets).where(used_tickets.c.expires_at < now)
            )
