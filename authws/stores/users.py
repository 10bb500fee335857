"""Who may log in, and the one place where a password is compared.

Taking a right away and ending what was opened with it are one transaction: no moment
exists in which a disabled user, or an old password, still holds a session.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Row, case, delete, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from authws.clock import Clock
from authws.decisions.passwords import PasswordError, check_password, normalize
from authws.exceptions import AuthwsError
from authws.stores.database import Database, insert_once
from authws.stores.passwords import PasswordHasher
from authws.stores.schema import NAME_LENGTH, users
from authws.stores.sessions import (
    Revocation,
    UserChangedError,
    announce_scopes,
    revoke_sessions,
    revoke_subject,
)

__all__ = [
    "InvalidScopeError",
    "InvalidUsernameError",
    "UnknownUserError",
    "User",
    "UserExistsError",
    "Users",
    "normalize_username",
]

NAME = re.compile(rf"[a-z0-9][a-z0-9._-]{{0,{NAME_LENGTH - 1}}}")
TICK = 1e-6
"""Seconds; two times of this century that differ by less may be the same number."""
SCOPE = re.compile(r"[\x21\x23-\x5b\x5d-\x7e]{1,128}")
"""RFC 6749, 3.3: printable ASCII without space, quote and backslash."""


class UserExistsError(AuthwsError):
    """The name is taken."""

    def __init__(self, name: str) -> None:
        super().__init__(f"user {name!r:.80} exists already")


class UnknownUserError(AuthwsError):
    """There is no user of that name."""

    def __init__(self, name: str) -> None:
        super().__init__(f"there is no user {name!r:.80}")


class InvalidUsernameError(AuthwsError):
    """The text can be nobody's name."""

    def __init__(self, name: str) -> None:
        super().__init__(
            f"not a user name: {name!r:.80}; use 1 to {NAME_LENGTH} letters a to z, "
            "digits, '.', '_' and '-', the first a letter or digit"
        )


class InvalidScopeError(AuthwsError):
    """The text is not a scope (RFC 6749, 3.3)."""

    def __init__(self, scope: str) -> None:
        super().__init__(f"not a scope: {scope!r:.80}; use printable ASCII, no space")


@dataclass(frozen=True, slots=True)
class User:
    """A user as others may see it: never with the password's hash."""

    name: str
    scopes: frozenset[str]
    """What the user may do, such as ``join:lobby`` (RFC 6749, 3.3)."""
    disabled: bool
    created_at: float
    """Seconds since the epoch."""
    updated_at: float
    """Moves on with every change of the user, whatever the clock says; a better hash
    of the same password is none."""


class Users:
    """The users of this service.

    Every method takes a name in any spelling that ``normalize_username`` takes, and
    raises UnavailableError when the database or the hasher cannot do its work.
    """

    def __init__(self, db: Database, hasher: PasswordHasher, clock: Clock) -> None:
        self._db = db
        self._hasher = hasher
        self._clock = clock

    async def add(self, name: str, password: str, scopes: Iterable[str] = ()) -> User:
        """Add a user.

        Raises:
            InvalidUsernameError: the text can be nobody's name.
            InvalidScopeError: one of the scopes is none.
            PasswordError: the password may not be set.
            UserExistsError: the name is taken.
        """
        name = normalize_username(name)
        granted = _checked(scopes)
        password_hash = await self._new_hash(name, password, granted)
        now = self._clock.now()
        row = {
            "name": name,
            "password_hash": password_hash,
            "scopes": " ".join(sorted(granted)),
            "created_at": now,
            "updated_at": now,
        }
        async with self._db.begin() as connection:
            if not await insert_once(connection, users, row):
                raise UserExistsError(name)
        return User(name, granted, disabled=False, created_at=now, updated_at=now)

    async def get(self, name: str) -> User | None:
        """Return the user of that name, disabled or not, if there is one."""
        row = await self._row(name)
        return None if row is None else _user(row)

    async def list(self) -> list[User]:
        """Return all users by name."""
        async with self._db.connect() as connection:
            rows = (
                await connection.execute(select(users).order_by(users.c.name))
            ).all()
        return [_user(row) for row in rows]

    async def disable(self, name: str) -> Sequence[Revocation]:
        """Refuse the user from now on, and end all that the user has opened.

        Returns:
            what to push to those who hold the user's connections.

        Raises:
            UnknownUserError: there is no such user.
        """
        return await self._change(name, disabled_at=self._clock.now())

    async def set_scopes(self, name: str, scopes: Iterable[str]) -> User:
        """Replace what the user may do; nothing that is open ends by it.

        Raises:
            UnknownUserError: there is no such user.
            InvalidScopeError: one of the scopes is none.
        """
        name = _known_form(name)
        values: dict[str, object] = {"scopes": " ".join(sorted(_checked(scopes)))}
        async with self._db.begin() as connection:
            await _update(connection, name, self._clock.now(), values)
            await announce_scopes(connection, name, self._clock.now())
            found = await connection.execute(select(users).where(users.c.name == name))
            return _user(found.one())

    async def enable(self, name: str) -> None:
        """Let the user in again; sessions that were ended stay so.

        Raises:
            UnknownUserError: there is no such user.
        """
        name = _known_form(name)
        async with self._db.begin() as connection:
            await _update(connection, name, self._clock.now(), {"disabled_at": None})

    async def disconnect(self, name: str) -> tuple[int, Revocation]:
        """End all that the user has opened up to now; the user may log in again.

        Returns:
            how many sessions that were, and what to push to those who hold the user's
            connections.

        Raises:
            UnknownUserError: there is no such user.
        """
        name = _known_form(name)
        async with self._db.begin() as connection:
            # a login that is under way has opened its session before, or will after
            held = select(users.c.name).where(users.c.name == name).with_for_update()
            if (await connection.execute(held)).first() is None:
                raise UnknownUserError(name)
            now = self._clock.now()
            ended = await revoke_sessions(connection, name, now)
            return len(ended), await revoke_subject(connection, name, now)

    async def remove(self, name: str) -> Sequence[Revocation]:
        """Forget the user, and end all that the user has opened.

        Returns:
            what to push to those who hold the user's connections.

        Raises:
            UnknownUserError: there is no such user.
        """
        name = _known_form(name)
        async with self._db.begin() as connection:
            statement = delete(users).where(users.c.name == name)
            gone = await connection.execute(statement.returning(users.c.name))
            if gone.first() is None:
                raise UnknownUserError(name)
            return [await revoke_subject(connection, name, self._clock.now())]

    async def set_password(
        self,
        name: str,
        password: str,
        *,
        except_session: str | None = None,
        as_of: float | None = None,
    ) -> Sequence[Revocation]:
        """Set a new password, and end all that was opened with the old one.

        Args:
            name: whose.
            password: the new one.
            except_session: the id of the session in which the user is changing it.
                Then the others are ended one by one. Without it all are, and what is
                just being opened too.
            as_of: the ``updated_at`` of the user whose old password was verified;
                None asks for none.

        Returns:
            what to push to those who hold the user's connections.

        Raises:
            UnknownUserError: there is no such user.
            PasswordError: the password may not be set.
            UserChangedError: the user was changed since ``as_of``.
        """
        user = await self.get(name)
        if user is None:
            raise UnknownUserError(name)
        password_hash = await self._new_hash(user.name, password, user.scopes)
        return await self._change(
            name,
            except_session=except_session,
            as_of=as_of,
            password_hash=password_hash,
        )

    async def authenticate(self, name: str, password: str) -> User | None:
        """Return the user if the password is right and the user is enabled.

        Takes the time of one hash in every case, and says no to an unknown name, a
        wrong password and a disabled user alike (ASVS 6.3.8).
        """
        row = await self._row(name)
        known = None if row is None else row.password_hash
        try:
            password = normalize(password)
        except PasswordError:  # cannot have been set, so it cannot be right
            known = None
        right, new_hash = await self._hasher.verify(password, known)
        if row is None or not right or row.disabled_at is not None:
            return None
        if new_hash is not None:
            await self._rehash(row, new_hash)
        return _user(row)

    async def _row(self, name: str) -> Row[Any] | None:
        try:
            name = normalize_username(name)
        except InvalidUsernameError:
            # Ask all the same: an impossible name must not answer sooner than another.
            name = ""
        async with self._db.connect() as connection:
            found = await connection.execute(select(users).where(users.c.name == name))
            return found.first()

    async def _new_hash(self, name: str, password: str, scopes: frozenset[str]) -> str:
        password = check_password(password, username=name, admin="admin" in scopes)
        return await self._hasher.hash(password)

    async def _rehash(self, row: Row[Any], new_hash: str) -> None:
        """Store the same password's better hash, unless the password was changed."""
        async with self._db.begin() as connection:
            await connection.execute(
                update(users)
                .where(users.c.name == row.name)
                .where(users.c.password_hash == row.password_hash)
                .values(password_hash=new_hash)
            )

    async def _change(
        self,
        name: str,
        *,
        except_session: str | None = None,
        as_of: float | None = None,
        **values: object,
    ) -> Sequence[Revocation]:
        name = _known_form(name)
        async with self._db.begin() as connection:
            await _update(connection, name, self._clock.now(), values, as_of)
            # only now that the row is ours: a session opened while we waited for it
            # is to be ended as well
            now = self._clock.now()
            if except_session is None:
                return [await revoke_subject(connection, name, now)]
            ended = await revoke_sessions(connection, name, now, except_session)
        return [Revocation("session", id, now) for id in ended]


def normalize_username(name: str) -> str:
    """Return the one spelling of a name: NFKC, without case, without outer spaces.

    Names are kept to ASCII letters, digits and ``._-``, so that none looks like
    another's.

    Raises:
        InvalidUsernameError: the text can be nobody's name.
    """
    if len(name) > 4 * NAME_LENGTH:  # a bound on work, with room for what folds away
        raise InvalidUsernameError(name)
    normal = unicodedata.normalize("NFKC", name).strip().casefold()
    if not NAME.fullmatch(normal):
        raise InvalidUsernameError(name)
    return normal


def _checked(scopes: Iterable[str]) -> frozenset[str]:
    granted = frozenset(scopes)
    for scope in granted:
        if not SCOPE.fullmatch(scope):
            raise InvalidScopeError(scope)
    return granted


def _known_form(name: str) -> str:
    try:
        return normalize_username(name)
    except InvalidUsernameError:  # so nobody has it
        raise UnknownUserError(name) from None


async def _update(
    connection: AsyncConnection,
    name: str,
    now: float,
    values: dict[str, object],
    as_of: float | None = None,
) -> None:
    statement = update(users).where(users.c.name == name)
    if as_of is not None:
        statement = statement.where(users.c.updated_at == as_of)
    # `updated_at` is what others know a change by: a clock that was put back, or two
    # changes in one tick, must not bring an old value again
    moved_on = case((users.c.updated_at < now, now), else_=users.c.updated_at + TICK)
    changed = await connection.execute(
        statement.values({**values, "updated_at": moved_on}).returning(users.c.name)
    )
    if changed.first() is None:
        raise UnknownUserError(name) if as_of is None else UserChangedError(name)


def _user(row: Row[Any]) -> User:
    return User(
        name=row.name,
        scopes=frozenset(row.scopes.split()),
        disabled=row.disabled_at is not None,
        created_at=row.created_at,
        updated_at=row.updated_at,
    )
