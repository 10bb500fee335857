"""Sessions are rows, so that ending one is real and everyone hears of it.

A revocation is written twice in one transaction: on the session, for whoever loads it,
and as a row of its own, for the snapshot that every worker re-reads.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy import (
    ColumnElement,
    Row,
    Select,
    delete,
    func,
    insert,
    or_,
    select,
    update,
)
from sqlalchemy.ext.asyncio import AsyncConnection

from authws.clock import Clock
from authws.exceptions import AuthwsError
from authws.stores.database import CHORE_SECONDS, Database
from authws.stores.schema import (
    ADDRESS_LENGTH,
    DIGEST_LENGTH,
    USER_AGENT_LENGTH,
    refresh_tokens,
    revocations,
    sessions,
    users,
)

__all__ = [
    "Revocation",
    "RevocationKind",
    "SessionKind",
    "SessionRecord",
    "Sessions",
    "UserChangedError",
    "announce_scopes",
    "revoke_sessions",
    "revoke_subject",
]

SessionKind = Literal["token", "cookie"]
RevocationKind = Literal["session", "subject", "scopes"]

REVOCATION_SECONDS = 86_400.0
"""How long a subject's revocation is kept at least, its sessions being unknown."""
SESSION_ID = re.compile(rf"[A-Za-z0-9_-]{{1,{DIGEST_LENGTH}}}")
"""What an id looks like; PostgreSQL would answer other text (NUL) with an error."""


class UserChangedError(AuthwsError):
    """The user is not any more what was verified: changed, disabled, or removed."""

    def __init__(self, name: str) -> None:
        super().__init__(f"user {name!r:.80} was changed in the meantime")


@dataclass(frozen=True, slots=True)
class SessionRecord:
    """A session and what its user may do now. Times: seconds since the epoch."""

    id: str
    """Public: the digest of a cookie's secret, or a token's ``sid``."""
    subject: str
    kind: SessionKind
    created_at: float
    last_seen_at: float
    idle_ttl: float
    """Seconds without use after which it ends; 0 for no such limit."""
    expires_at: float
    """The absolute limit, whatever the use."""
    revoked_at: float | None
    user_agent: str
    address: str
    user_scopes: frozenset[str]
    user_disabled: bool
    """Also when there is no such user any more."""


@dataclass(frozen=True, slots=True)
class Revocation:
    """The end of one session, or of all that a subject opened up to ``at``; or, of the
    kind ``scopes``, other rights, by which nothing ends."""

    kind: RevocationKind
    key: str
    """The session's id, or the subject."""
    at: float


class Sessions:
    """The sessions of all users, live and lately ended."""

    def __init__(self, db: Database, clock: Clock) -> None:
        self._db = db
        self._clock = clock

    async def create(
        self,
        id: str,
        subject: str,
        kind: SessionKind,
        idle_ttl: float,
        expires_at: float,
        user_agent: str = "",
        address: str = "",
        user_as_of: float | None = None,
    ) -> None:
        """Open a session as of now.

        Args:
            id: its public id, never the secret in the cookie.
            subject: the user's name.
            kind: how it is carried.
            idle_ttl: seconds without use after which it ends; 0 for no such limit.
            expires_at: the absolute limit, in seconds since the epoch.
            user_agent: what the peer calls itself; kept cut to 200 characters.
            address: where the peer connects from; kept cut to 64 characters.
            user_as_of: the ``updated_at`` of the user whose password was verified;
                None asks nobody.

        Raises:
            ValueError: the id is not base64url text.
            UserChangedError: the user was changed since ``user_as_of``.
            UnavailableError: the database failed, or the id is taken.
        """
        if not _is_id(id):
            raise ValueError("a session id is 1 to 128 characters of base64url")
        row: dict[str, object] = {
            "id": id,
            "subject": subject,
            "kind": kind,
            "idle_ttl": idle_ttl,
            "expires_at": expires_at,
            "user_agent": _printable(user_agent, USER_AGENT_LENGTH),
            "address": _printable(address, ADDRESS_LENGTH),
        }
        async with self._db.begin() as connection:
            if user_as_of is not None:
                await _hold_user(connection, subject, user_as_of)
            # not before: what ended the user's sessions while we waited is older
            row["created_at"] = row["last_seen_at"] = self._clock.now()
            await connection.execute(insert(sessions).values(row))

    async def load(self, id: str) -> SessionRecord | None:
        """Return the session, ended or not, with its user's present rights.

        Raises:
            UnavailableError: the database failed.
        """
        if not _is_id(id):
            return None
        records = await self._select(_RECORDS.where(sessions.c.id == id))
        return records[0] if records else None

    async def touch(self, id: str, at: float) -> None:
        """Note that the session was used at ``at``, unless later use is known.

        Raises:
            UnavailableError: the database failed.
        """
        if not _is_id(id):
            return
        async with self._db.begin() as connection:
            await connection.execute(
                update(sessions)
                .where(sessions.c.id == id, sessions.c.last_seen_at < at)
                .values(last_seen_at=at)
            )

    async def list_for(self, subject: str) -> list[SessionRecord]:
        """Return the subject's live sessions, the latest used first.

        Raises:
            UnavailableError: the database failed.
        """
        now = self._clock.now()
        return await self._select(
            _RECORDS.where(
                sessions.c.subject == subject,
                sessions.c.revoked_at.is_(None),
                sessions.c.expires_at > now,
                or_(
                    sessions.c.idle_ttl <= 0,
                    sessions.c.last_seen_at + sessions.c.idle_ttl > now,
                ),
            ).order_by(sessions.c.last_seen_at.desc(), sessions.c.id)
        )

    async def revoke(self, id: str) -> bool:
        """End one session; tell whether this call ended it.

        Raises:
            UnavailableError: the database failed; nothing was changed.
        """
        if not _is_id(id):
            return False
        async with self._db.begin() as connection:
            ended = await _end(connection, self._clock.now(), sessions.c.id == id)
        return bool(ended)

    async def revoke_all(self, subject: str, except_id: str | None = None) -> list[str]:
        """End all of a subject's sessions but one; return the ids of those ended.

        Raises:
            UnavailableError: the database failed; nothing was changed.
        """
        async with self._db.begin() as connection:
            now = self._clock.now()
            return await revoke_sessions(connection, subject, now, except_id)

    async def revocations_since(self, at: float) -> list[Revocation]:
        """Return what was revoked at ``at`` or later, oldest first.

        A transaction becomes visible a little after the time it notes, and clocks
        differ: ask again from some seconds before the last answer.

        Raises:
            UnavailableError: the database failed.
        """
        statement = (
            select(revocations.c.kind, revocations.c.key, revocations.c.at)
            .where(revocations.c.at >= at)
            .order_by(revocations.c.at, revocations.c.id)
        )
        async with self._db.connect() as connection:
            rows = (await connection.execute(statement)).all()
        return [Revocation(row.kind, row.key, row.at) for row in rows]

    async def prune(self, now: float) -> None:
        """Forget the sessions and revocations that no credential can refer to.

        Raises:
            UnavailableError: the database failed.
        """
        async with self._db.begin(seconds=CHORE_SECONDS) as connection:
            for table in (refresh_tokens, sessions, revocations):
                await connection.execute(delete(table).where(table.c.expires_at < now))

    async def _select(self, statement: Select[Any]) -> list[SessionRecord]:
        async with self._db.connect() as connection:
            rows = (await connection.execute(statement)).all()
        return [_record(row) for row in rows]


async def revoke_sessions(
    connection: AsyncConnection, subject: str, now: float, except_id: str | None = None
) -> list[str]:
    """End all of a subject's sessions but one, in the caller's transaction."""
    conditions = [sessions.c.subject == subject]
    if except_id is not None:
        conditions.append(sessions.c.id != except_id)
    return await _end(connection, now, *conditions)


async def revoke_subject(
    connection: AsyncConnection, subject: str, now: float
) -> Revocation:
    """End all that a subject opened up to now, in the caller's transaction.

    Covers what has no row here too, such as a handshake that is under way.
    """
    latest = await connection.scalar(
        select(func.max(sessions.c.expires_at)).where(sessions.c.subject == subject)
    )
    await revoke_sessions(connection, subject, now)
    expires_at = max(latest or 0.0, now + REVOCATION_SECONDS)
    await _announce(connection, "subject", subject, now, expires_at)
    return Revocation("subject", subject, now)


async def announce_scopes(
    connection: AsyncConnection, subject: str, now: float
) -> None:
    """Let all who keep a subject's rights read them again, in the caller's
    transaction."""
    await _announce(connection, "scopes", subject, now, now + REVOCATION_SECONDS)


async def _hold_user(connection: AsyncConnection, name: str, as_of: float) -> None:
    """Keep a user as it was verified until the caller's transaction is over.

    Verifying a password takes a while, in which it may be changed. Whoever changes
    the user either was first, and is seen here; or waits for us, and then finds the
    session to end. SQLite has one writer at a time and needs no lock for it.

    Raises:
        UserChangedError: it is not so any more.
    """
    unchanged = (
        select(users.c.name)
        .where(users.c.name == name, users.c.updated_at == as_of)
        .where(users.c.disabled_at.is_(None))
        .with_for_update(read=True)
    )
    if (await connection.execute(unchanged)).first() is None:
        raise UserChangedError(name)


async def _end(
    connection: AsyncConnection, now: float, *conditions: ColumnElement[bool]
) -> list[str]:
    """End the live sessions that meet the conditions, and announce each."""
    ended = await connection.execute(
        update(sessions)
        .where(sessions.c.revoked_at.is_(None), sessions.c.expires_at > now)
        .where(*conditions)
        .values(revoked_at=now)
        .returning(sessions.c.id, sessions.c.expires_at)
    )
    rows = ended.all()
    for row in rows:
        await _announce(connection, "session", row.id, now, row.expires_at)
    return [row.id for row in rows]


async def _announce(
    connection: AsyncConnection,
    kind: RevocationKind,
    key: str,
    at: float,
    expires_at: float,
) -> None:
    row = {"kind": kind, "key": key, "at": at, "expires_at": expires_at}
    await connection.execute(insert(revocations).values(row))


_RECORDS = select(
    sessions,
    users.c.scopes.label("user_scopes"),
    or_(users.c.name.is_(None), users.c.disabled_at.is_not(None)).label(
        "user_disabled"
    ),
).select_from(sessions.outerjoin(users, users.c.name == sessions.c.subject))


def _record(row: Row[Any]) -> SessionRecord:
    return SessionRecord(
        id=row.id,
        subject=row.subject,
        kind=row.kind,
        created_at=row.created_at,
        last_seen_at=row.last_seen_at,
        idle_ttl=row.idle_ttl,
        expires_at=row.expires_at,
        revoked_at=row.revoked_at,
        user_agent=row.user_agent,
        address=row.address,
        user_scopes=frozenset((row.user_scopes or "").split()),
        user_disabled=bool(row.user_disabled),
    )


def _is_id(text: str) -> bool:
    return SESSION_ID.fullmatch(text) is not None


def _printable(text: str, length: int) -> str:
    """Cut what a peer says of itself, and take out what no page or log should show."""
    return "".join(c if c.isprintable() else "?" for c in text[:length])
