"""What SQLite and PostgreSQL do alike once they are behind the door."""

from __future__ import annotations

import asyncio
import os
import signal
import stat
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Connection, func, insert, select, text

from authws.exceptions import ConfigurationError, UnavailableError
from authws.stores import schema
from authws.stores.database import Database, hold, insert_once, migrate
from authws.stores.tickets import UsedTickets
from tests.requirements import require
from tests.servers.postgres import PostgresServer
from tests.stores.support import NOW

ROOT = Path(__file__).parents[2]
LATEST = "0002"
MIGRATE = "import sys; from authws.stores.database import migrate; migrate(sys.argv[1])"


def require_driver() -> None:
    installed = find_spec("asyncpg") is not None
    require("asyncpg", installed, "pip install 'authws[postgres]'")


async def versions(url: str) -> list[str]:
    database = Database(url)
    try:
        async with database.connect() as connection:
            rows = await connection.execute(
                text("SELECT version_num FROM alembic_version")
            )
            return [row.version_num for row in rows]
    finally:
        await database.dispose()


async def test_migrating_twice_is_migrating_once(url: str) -> None:
    migrate(url)
    migrate(url)
    assert await versions(url) == [LATEST]


async def test_processes_that_start_at_once_migrate_once(url: str) -> None:
    started = [
        await asyncio.create_subprocess_exec(
            sys.executable, "-c", MIGRATE, url, cwd=ROOT, stderr=subprocess.PIPE
        )
        for _ in range(4)
    ]
    ended = await asyncio.gather(*(process.communicate() for process in started))
    assert [process.returncode for process in started] == [0] * 4, ended
    assert await versions(url) == [LATEST]


async def test_database_of_an_older_release_keeps_what_it_has(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        upgrade = command.upgrade
        patch.setattr(command, "upgrade", lambda config, _: upgrade(config, "0001"))
        migrate(url)
    assert await versions(url) == ["0001"]
    await UsedTickets(older := Database(url)).redeem("spent", NOW)
    await older.dispose()
    migrate(url)
    assert await versions(url) == [LATEST]
    newer = Database(url)
    assert not await UsedTickets(newer).redeem("spent", NOW)
    await newer.dispose()


async def test_database_of_a_newer_release_is_left_alone(url: str) -> None:
    migrate(url)
    database = Database(url)
    async with database.begin() as connection:
        await connection.execute(text("UPDATE alembic_version SET version_num='9999'"))
    await database.dispose()
    with pytest.raises(ConfigurationError, match="made by a newer authws"):
        migrate(url)
    assert await versions(url) == ["9999"]


async def test_migrations_build_the_tables_that_the_queries_see(db: Database) -> None:
    def differences(connection: Connection) -> list[object]:
        context = MigrationContext.configure(connection)
        return list(compare_metadata(context, schema.metadata))

    async with db.connect() as connection:
        assert await connection.run_sync(differences) == []


async def test_failed_migration_leaves_nothing_behind(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr("alembic.op.drop_table", fail)
        patch.setattr("alembic.op.create_index", fail)
        with pytest.raises(UnavailableError):
            migrate(url)
    migrate(url)
    assert await versions(url) == [LATEST]


async def test_concurrent_inserts_of_one_key_succeed_once(db: Database) -> None:
    async def attempt() -> bool:
        async with db.begin() as connection:
            row = {"jti": "once", "expires_at": NOW}
            return await insert_once(connection, schema.used_tickets, row)

    assert sorted(await asyncio.gather(*(attempt() for _ in range(30)))) == [
        *([False] * 29),
        True,
    ]


async def test_who_looks_before_writing_takes_turns(url: str) -> None:
    migrate(url)
    await look_and_write(url)


async def test_turns_hold_whatever_the_servers_default_isolation_is(
    postgres: PostgresServer,
) -> None:
    async with postgres.fresh_database() as url:
        migrate(url)
        name = url.rpartition("/")[2]
        await postgres.execute(
            f"ALTER DATABASE {name} SET default_transaction_isolation = 'serializable'"
        )
        await look_and_write(url)


async def look_and_write(url: str) -> None:
    """Two processes' worth of engines: each sees what the one before it wrote."""
    databases = [Database(url) for _ in range(2)]
    count = select(func.count()).select_from(schema.used_tickets)

    async def write_if_fewer_than(limit: int, number: int) -> None:
        # in any order of the names: two that wait for each other would be an error
        names = ("one", "other") if number % 2 else ("other", "one")
        async with databases[number % 2].begin() as connection:
            await hold(connection, *names)
            if (await connection.scalar(count) or 0) < limit:
                row = {"jti": str(number), "expires_at": NOW}
                await connection.execute(insert(schema.used_tickets).values(row))

    await asyncio.gather(*(write_if_fewer_than(5, number) for number in range(30)))
    async with databases[0].connect() as connection:
        assert await connection.scalar(count) == 5
    for database in databases:
        await database.dispose()


async def test_transaction_that_fails_leaves_no_trace(db: Database) -> None:
    async def write_and_fail() -> None:
        async with db.begin() as connection:
            row = {"jti": "undone", "expires_at": NOW}
            await connection.execute(insert(schema.used_tickets).values(row))
            raise LookupError

    with pytest.raises(LookupError):
        await write_and_fail()
    async with db.connect() as connection:
        count = select(func.count()).select_from(schema.used_tickets)
        assert await connection.scalar(count) == 0


async def test_failure_is_unavailable_and_quotes_no_values(db: Database) -> None:
    async def insert_twice() -> None:
        async with db.begin() as connection:
            for _ in range(2):
                row = {"jti": "canary", "expires_at": NOW}
                await connection.execute(insert(schema.used_tickets).values(row))

    with pytest.raises(UnavailableError) as failure:
        await insert_twice()
    assert "canary" not in str(failure.value)


async def test_ping_answers(db: Database) -> None:
    await db.ping()


async def test_readers_and_writers_share_the_database(db: Database) -> None:
    async def write(number: int) -> None:
        async with db.begin() as connection:
            row = {"jti": str(number), "expires_at": NOW}
            await connection.execute(insert(schema.used_tickets).values(row))

    count = select(func.count()).select_from(schema.used_tickets)

    async def read() -> None:
        async with db.connect() as connection:
            await connection.execute(count)

    await asyncio.gather(*(write(n) for n in range(50)), *(read() for _ in range(50)))
    async with db.connect() as connection:
        assert await connection.scalar(count) == 50


async def test_committed_row_survives_a_killed_process(url: str) -> None:
    migrate(url)
    script = """
import asyncio, os, signal, sys
from authws.stores.database import Database
from authws.stores.tickets import UsedTickets

async def main() -> None:
    await UsedTickets(Database(sys.argv[1])).redeem("spent", 2e9)
    os.kill(os.getpid(), signal.SIGKILL)

asyncio.run(main())
"""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", script, url, cwd=ROOT
    )
    assert await process.wait() == -signal.SIGKILL
    database = Database(url)
    async with database.connect() as connection:
        spent = await connection.scalar(select(schema.used_tickets.c.jti))
    await database.dispose()
    assert spent == "spent"


def modes_in(folder: Path) -> dict[str, int]:
    return {path.name: stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()}


async def test_sqlite_file_is_readable_by_its_owner_only(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        migrate(f"sqlite:///{tmp_path}/private.db")
        database = Database(f"sqlite:///{tmp_path}/private.db")
        async with database.begin() as connection:
            row = {"jti": "1", "expires_at": NOW}
            await connection.execute(insert(schema.used_tickets).values(row))
        files = modes_in(tmp_path)
        await database.dispose()
    finally:
        os.umask(before)
    assert files == {
        "private.db": 0o600,
        "private.db-wal": 0o600,
        "private.db-shm": 0o600,
    }


async def test_sqlite_keeps_what_it_committed_when_the_power_fails(
    tmp_path: Path,
) -> None:
    database = Database(f"sqlite:///{tmp_path}/authws.db")
    async with database.connect() as connection:
        found = {
            name: await connection.scalar(text(f"PRAGMA {name}"))
            for name in ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")
        }
    await database.dispose()
    assert found == {
        "journal_mode": "wal",
        "synchronous": 2,  # FULL
        "foreign_keys": 1,
        "busy_timeout": 5000,
    }


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("sqlite://", "must be a file"),
        ("sqlite:///:memory:", "must be a file"),
        ("sqlite:////nowhere/to/be/found.db", "cannot be opened"),
        ("mysql://user:hunter2@host/name", "must start with"),
        ("not a url, hunter2", "not a URL"),
        ("postgresql://user:hunter2@host:port/name", "not a URL"),
        ("postgresql://user:hunter2@host/name?sslmod=require", "parameter 'sslmod'"),
    ],
)
def test_database_that_cannot_be_is_refused(url: str, reason: str) -> None:
    with pytest.raises(ConfigurationError, match=reason) as refusal:
        Database(url)
    assert "hunter2" not in f"{refusal.value!r}{refusal.value.__cause__!r}"


def test_repr_hides_the_password() -> None:
    require_driver()
    database = Database("postgres://user:hunter2@localhost/name?sslmode=require")
    assert "hunter2" not in repr(database)
    assert "sslmode=require" in repr(database)


async def test_postgres_that_refuses_the_login_is_unavailable(
    postgres: PostgresServer,
) -> None:
    database = Database(postgres.url(password="wrong"))
    with pytest.raises(UnavailableError):
        await database.ping()
    await database.dispose()


async def test_postgres_that_is_not_there_is_unavailable() -> None:
    require_driver()
    url = "postgresql://authws:x@127.0.0.1:1/authws"
    database = Database(url)
    with pytest.raises(UnavailableError):
        await database.ping()
    with pytest.raises(UnavailableError):
        migrate(url)
    await database.dispose()


async def test_postgres_that_dropped_its_connections_is_asked_anew(
    postgres: PostgresServer,
) -> None:
    import asyncpg

    database = Database(postgres.url())
    await database.ping()
    admin = await asyncpg.connect(postgres.url())
    await admin.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
        "WHERE pid <> pg_backend_pid() AND backend_type = 'client backend'"
    )
    await admin.close()
    await database.ping()
    await database.dispose()
