"""The stores, on whichever database ``url`` is."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest

from authws.stores.database import Database, migrate
from authws.stores.passwords import PasswordHasher
from authws.stores.refresh_tokens import RefreshTokens
from authws.stores.sessions import Sessions
from authws.stores.tickets import UsedTickets
from authws.stores.users import Users
from tests.stores.support import FakeClock


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
