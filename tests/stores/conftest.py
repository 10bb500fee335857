"""Every store is tested on both databases; each test has one of its own."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from authws.stores.database import Database, migrate
from authws.stores.passwords import PasswordHasher
from authws.stores.refresh_tokens import RefreshTokens
from authws.stores.sessions import Sessions
from authws.stores.tickets import UsedTickets
from authws.stores.users import Users
from tests.requirements import require
from tests.stores.support import (
    FakeClock,
    Postgres,
    missing_for_postgres,
    running_postgres,
)


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    missing = missing_for_postgres()
    require("postgresql", missing is None, missing or "")
    with running_postgres() as server:
        yield server


@pytest.fixture(params=["sqlite", "postgresql"])
def backend(request: pytest.FixtureRequest) -> Postgres | None:
    if request.param == "sqlite":
        return None
    server = request.getfixturevalue("postgres")
    assert isinstance(server, Postgres)
    return server


@pytest.fixture
async def url(backend: Postgres | None, tmp_path: Path) -> AsyncIterator[str]:
    """Where an empty database is."""
    if backend is None:
        yield f"sqlite:///{tmp_path}/authws.db"
    else:
        async with backend.fresh_database() as fresh:
            yield fresh


@pytest.fixture
async def db(url: str) -> AsyncIterator[Database]:
    migrate(url)
    database = Database(url)
    yield database
    await database.dispose()


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture(scope="session")
def hasher() -> Iterator[PasswordHasher]:
    shared = PasswordHasher()
    yield shared
    shared.close()


@pytest.fixture
def users(db: Database, hasher: PasswordHasher, clock: FakeClock) -> Users:
    return Users(db, hasher, clock)


@pytest.fixture
def sessions(db: Database, clock: FakeClock) -> Sessions:
    return Sessions(db, clock)


@pytest.fixture
def refresh_tokens(db: Database, clock: FakeClock) -> RefreshTokens:
    return RefreshTokens(db, clock)


@pytest.fixture
def tickets(db: Database) -> UsedTickets:
    return UsedTickets(db)
