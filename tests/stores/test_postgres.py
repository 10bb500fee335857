"""What only PostgreSQL has: TLS, a bounded number of connections, its own URLs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from sqlalchemy import text

from authws.exceptions import UnavailableError
from authws.stores.database import Database, migrate
from authws.stores.tickets import UsedTickets
from tests.certificates import Authority
from tests.servers.postgres import PostgresServer

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("ours"))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def over_tls(authority: Authority) -> AsyncIterator[PostgresServer]:
    async with PostgresServer(authority.issue("server", "127.0.0.1")) as server:
        yield server


async def failure(url: str) -> str:
    """Ask; return why there is no answer, or nothing."""
    database = Database(url)
    try:
        await database.ping()
    except UnavailableError as error:
        return str(error)
    finally:
        await database.dispose()
    return ""


async def test_encrypted_and_compared_with_authority_and_name(
    over_tls: PostgresServer, authority: Authority
) -> None:
    url = f"{over_tls.url()}?sslmode=verify-full&sslrootcert={authority.path}"
    migrate(url)
    database = Database(url)
    async with database.connect() as connection:
        encrypted = "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()"
        assert await connection.scalar(text(encrypted)) is True
    await database.dispose()


async def test_encrypted_also_where_nobody_said_so(over_tls: PostgresServer) -> None:
    """By libpq's default, ``prefer``: this server takes nothing else."""
    assert await failure(over_tls.url()) == ""
    assert await failure(f"{over_tls.url()}?sslmode=disable") != ""


async def test_server_of_another_name_is_refused(
    over_tls: PostgresServer, authority: Authority
) -> None:
    there = over_tls.url().replace("127.0.0.1", "localhost")
    trusting = f"sslrootcert={authority.path}"
    assert await failure(f"{there}?sslmode=verify-ca&{trusting}") == ""
    refused = await failure(f"{there}?sslmode=verify-full&{trusting}")
    assert refused == "database: SSLCertVerificationError"


async def test_server_of_another_authority_is_refused(
    over_tls: PostgresServer, tmp_path: Path
) -> None:
    other = Authority(tmp_path, "other")
    for mode in ("verify-ca", "verify-full"):
        url = f"{over_tls.url()}?sslmode={mode}&sslrootcert={other.path}"
        assert await failure(url) == "database: SSLCertVerificationError"


async def test_what_is_wrong_with_the_url_is_said(
    over_tls: PostgresServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    unfound = await failure(f"{over_tls.url()}?sslmode=verify-full")
    assert f"{tmp_path}/.postgresql/root.crt" in unfound
    mistyped = await failure(f"{over_tls.url()}?sslmode=verify_all")
    assert "must be one of: disable, allow, prefer" in mistyped
    assert over_tls.password not in unfound + mistyped


async def test_role_that_owns_its_database_needs_nothing_else(
    over_tls: PostgresServer,
) -> None:
    await over_tls.execute("CREATE ROLE tenant LOGIN PASSWORD 'p@ss:word'")
    await over_tls.execute("CREATE DATABASE tenancy OWNER tenant")
    url = over_tls.url("tenancy", "p%40ss%3Aword").replace("authws:", "tenant:")
    migrate(url)
    tickets = UsedTickets(database := Database(url))
    assert await tickets.redeem("once", 2e9)
    await database.dispose()


@pytest.mark.parametrize("pool", [1, 3])
async def test_so_many_connections_are_open_and_no_more(
    over_tls: PostgresServer, pool: int
) -> None:
    name = f"pool-{pool}"
    database = Database(f"{over_tls.url()}?application_name={name}", pool=pool)

    async def ask() -> None:
        async with database.connect() as connection:
            await connection.execute(text("SELECT pg_sleep(0.02)"))

    async def write() -> None:
        async with database.begin() as connection:
            await connection.execute(text("SELECT pg_sleep(0.02)"))

    await asyncio.gather(*(one() for one in [ask, write] * 20))
    count = "SELECT count(*) FROM pg_stat_activity WHERE application_name = :name"
    async with database.connect() as connection:
        assert await connection.scalar(text(count), {"name": name}) == pool
    await database.dispose()
