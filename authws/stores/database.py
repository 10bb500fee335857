"""The one door to the database: SQLite by default, PostgreSQL when grown up.

Everything that the two do differently is said here, so that the stores speak one SQL:
how a transaction begins, how an insert can succeed once, how two that look before they
write take turns, and how a failure is named; their URLs are read in ``urls``.
Whatever fails here leaves as UnavailableError, because a decision that cannot be read
must be refused (fail closed), never guessed.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from alembic.util import CommandError
from sqlalchemy import (
    ARRAY,
    BigInteger,
    Connection,
    Table,
    bindparam,
    event,
    text,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import URL
from sqlalchemy.exc import OperationalError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from authws.exceptions import ConfigurationError, UnavailableError
from authws.stores.circuit_breaker import CircuitBreaker
from authws.stores.urls import is_sqlite, libpq_parameters, parse

try:
    from asyncpg import (
        ClientConfigurationError,
        InterfaceError,
        InternalClientError,
        PostgresError,
    )
except ImportError:  # the extra authws[postgres] is not installed
    DRIVER_ERRORS: tuple[type[Exception], ...] = ()
    MISCONFIGURED: tuple[type[Exception], ...] = ()
else:
    # A refused login or a server that is just starting reaches us unwrapped.
    DRIVER_ERRORS = (InterfaceError, InternalClientError, PostgresError)
    MISCONFIGURED = (ClientConfigurationError,)

__all__ = [
    "CHORE_SECONDS",
    "Database",
    "hold",
    "insert_once",
    "migrate",
]

FAILURES: tuple[type[Exception], ...] = (SQLAlchemyError, OSError, *DRIVER_ERRORS)
BUSY_SECONDS = 5.0
"""How long a writer waits for another process's transaction on SQLite."""
ANSWER_SECONDS = 4.0
"""How long anything may take that a peer waits for: first-message gives it 5 s."""
PING_SECONDS = 1.5
"""The same of readiness, whose checker may not wait any longer."""
POOL = 5
"""How many of our connections ask at once. One event loop is busy with fewer."""
CHORE_SECONDS = 30.0
"""How long may take what nobody waits for."""
CONNECT_SECONDS = 10.0
MIGRATION_SECONDS = 60.0
"""How long a process that starts waits for another that is migrating."""
MIGRATION_LOCK = 0x61757468
"""Names our advisory lock on PostgreSQL: "auth" in ASCII."""


class Database:
    """An async engine whose transactions end in a commit, an error, or neither.

    Args:
        url: ``sqlite:////path/to/file.db`` or ``postgresql://user:password@host/name``.
        pool: how many connections it may have open.

    Raises:
        ConfigurationError: the URL is of another kind, the file cannot be made, or the
            driver is not installed. The message never holds the password.
    """

    def __init__(self, url: str, *, pool: int = POOL) -> None:
        self._url = parse(url)
        self._is_sqlite = is_sqlite(self._url)
        self._reading = self._writing = CircuitBreaker(asyncio.Semaphore(pool))
        if self._is_sqlite:
            # It has one writer at a time. Queueing here is fair and costs nothing;
            # queueing in its busy handler polls, and gives up on the unlucky.
            self._writing = CircuitBreaker(asyncio.Semaphore(1))
            pool += 1
        self._engine = _engine(self._url, pool)
        self._writer = self._engine.execution_options(authws_writes=True)

    @asynccontextmanager
    async def begin(
        self, *, seconds: float = ANSWER_SECONDS
    ) -> AsyncIterator[AsyncConnection]:
        """Open a transaction that may write; it commits when the block ends well.

        Raises:
            UnavailableError: the database cannot be reached, refused, or did not
                answer within ``seconds``. Whether it committed may then be unknown.
        """
        with _failures():
            async with (
                self._writing.asking(seconds),
                self._writer.begin() as connection,
            ):
                yield connection

    @asynccontextmanager
    async def connect(
        self, *, seconds: float = ANSWER_SECONDS
    ) -> AsyncIterator[AsyncConnection]:
        """Open a connection to read with, one statement or several.

        Raises:
            UnavailableError: the database cannot be reached, refused, or did not
                answer within ``seconds``.
        """
        with _failures():
            async with (
                self._reading.asking(seconds),
                self._engine.connect() as connection,
            ):
                yield connection

    async def ping(self) -> None:
        """Ask the database for the least it can answer.

        Raises:
            UnavailableError: it did not answer.
        """
        async with self.connect(seconds=PING_SECONDS) as connection:
            await connection.execute(text("SELECT 1"))

    async def dispose(self) -> None:
        """Close every connection, and just drop those to a server that is silent."""
        try:
            await self.ping()
        except UnavailableError:
            await self._engine.dispose(close=self._is_sqlite)
        else:
            await self._engine.dispose()

    def __repr__(self) -> str:
        return f"Database({self._url.render_as_string(hide_password=True)!r})"


async def insert_once(
    connection: AsyncConnection, table: Table, values: Mapping[str, Any]
) -> bool:
    """Insert a row unless its primary key is taken; tell whether it was inserted.

    Of any number of concurrent calls exactly one is told so, by one statement and not
    by a look before it.
    """
    insert = (
        postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert
    )
    statement = insert(table).values(values).on_conflict_do_nothing()
    key = next(iter(table.primary_key))
    return (await connection.execute(statement.returning(key))).first() is not None


async def hold(connection: AsyncConnection, *names: str) -> None:
    """Keep others who hold one of these names out until the transaction is over.

    For a transaction that looks and then writes, where no row is there to be locked.
    What the others wrote is seen by every statement after this one. SQLite has one
    writer at a time, so its transactions hold everything.
    """
    if connection.dialect.name != "postgresql":
        return
    # in one order for all: two that want the same two names must not each have one
    keys = sorted({_lock_key(name) for name in names})
    await connection.execute(
        text("SELECT pg_advisory_xact_lock(key) FROM unnest(:keys) AS key").bindparams(
            bindparam("keys", keys, ARRAY(BigInteger))
        )
    )


def migrate(url: str) -> None:
    """Bring the tables up to date; do nothing when they are.

    Blocks until done, and may be called with or without a running event loop. When
    several processes start at once, one migrates and the others wait for it.

    Raises:
        ConfigurationError: as for ``Database``; or a newer release made the tables.
        UnavailableError: the database cannot be reached, or refused.
    """
    parsed = parse(url)
    with ThreadPoolExecutor(max_workers=1) as thread:  # a loop of its own, in a thread
        thread.submit(lambda: asyncio.run(_migrate(parsed))).result()


async def _migrate(url: URL) -> None:
    deadline = time.monotonic() + MIGRATION_SECONDS
    while True:
        try:
            return await _migrate_once(url)
        except OperationalError as error:
            # Two processes that turn on WAL in a new file meet in a lock which SQLite
            # reports at once, without asking the busy handler.
            if "locked" not in str(error.orig) or time.monotonic() > deadline:
                raise UnavailableError(_describe(error)) from error
        except FAILURES as error:
            raise UnavailableError(_describe(error)) from error
        except CommandError as error:  # it names a revision that we do not have
            raise ConfigurationError(
                "the database was made by a newer authws than this one; run that one, "
                "or restore a backup"
            ) from error
        await asyncio.sleep(0.1)


async def _migrate_once(url: URL) -> None:
    engine = _engine(url, pool=1)
    try:
        writer = engine.execution_options(authws_writes=True)
        async with writer.begin() as connection:
            # SQLite's BEGIN IMMEDIATE already holds the others back.
            if connection.dialect.name == "postgresql":
                await connection.execute(
                    text("SELECT pg_advisory_xact_lock(:key)"), {"key": MIGRATION_LOCK}
                )
            await connection.run_sync(_upgrade)
    finally:
        await engine.dispose()


def _lock_key(name: str) -> int:
    """Return a name as the 64-bit number that PostgreSQL's advisory locks have."""
    digest = hashlib.sha256(name.encode()).digest()
    return int.from_bytes(digest[:8], signed=True)


def _upgrade(connection: Connection) -> None:
    config = Config()
    config.set_main_option("script_location", "authws.stores:migrations")
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    command.upgrade(config, "head")


@contextmanager
def _failures() -> Iterator[None]:
    """Turn whatever a database can do to us into one error: we cannot decide."""
    try:
        yield
    except FAILURES as error:
        raise UnavailableError(_describe(error)) from error


def _describe(error: Exception) -> str:
    """Name a failure without its SQL, whose parameters may be anyone's data."""
    orig: BaseException | None = getattr(error, "orig", None)
    cause = error if orig is None else orig.__cause__ or orig
    if isinstance(cause, MISCONFIGURED):  # a sentence about the URL's parameters
        return f"database: {cause}"
    return f"database: {type(cause).__name__}"


def _engine(url: URL, pool: int) -> AsyncEngine:
    # all stay open: to connect costs more than to ask
    size = {"pool_size": pool, "max_overflow": 0}
    if is_sqlite(url):
        return _sqlite_engine(url, size)
    url, dsn = libpq_parameters(url)
    try:
        return create_async_engine(
            url,
            hide_parameters=True,
            # Whatever the server's default is: who has waited, for a row or in `hold`,
            # is to see what was written meanwhile.
            isolation_level="READ COMMITTED",
            pool_pre_ping=True,
            **size,
            connect_args={
                "timeout": CONNECT_SECONDS,
                "command_timeout": CHORE_SECONDS,
                "dsn": dsn,
            },
        )
    except ImportError:
        raise ConfigurationError(
            "PostgreSQL needs a driver: pip install 'authws[postgres]'"
        ) from None


def _sqlite_engine(url: URL, size: dict[str, int]) -> AsyncEngine:
    _make_private_file(Path(url.database or ""))
    engine = create_async_engine(url, hide_parameters=True, **size)
    event.listen(engine.sync_engine, "connect", _prepare_sqlite)
    event.listen(engine.sync_engine, "begin", _begin_sqlite)
    return engine


def _make_private_file(path: Path) -> None:
    """Create the file readable by its owner only; -wal and -shm take after it."""
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
    except OSError as error:
        raise ConfigurationError(
            f"the database file {path} cannot be opened: {error.strerror}"
        ) from error


def _prepare_sqlite(connection: Any, _record: object) -> None:
    # The driver's own BEGIN comes late and deferred: a transaction that reads and then
    # writes would fail at once when another wrote between. We say BEGIN ourselves.
    connection.isolation_level = None
    cursor = connection.cursor()
    cursor.execute(f"PRAGMA busy_timeout = {int(BUSY_SECONDS * 1000)}")
    cursor.execute("PRAGMA journal_mode = WAL")
    # NORMAL may lose the last commits when the power fails: a used ticket would be
    # good again, and a revoked session alive.
    cursor.execute("PRAGMA synchronous = FULL")
    cursor.execute("PRAGMA foreign_keys = ON")
    cursor.close()


def _begin_sqlite(connection: Connection) -> None:
    # A reader needs no transaction: each statement is one, and saves two round trips.
    if connection.get_execution_options().get("authws_writes"):
        connection.exec_driver_sql("BEGIN IMMEDIATE")
