"""What holds for every test, and the databases that some are asked of."""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from tests.databases import on_postgres
from tests.servers.postgres import PostgresServer

# Whoever starts the tests in the background may have them ignore Ctrl-C, and a process
# passes that on: what the tests start shall hear it all the same.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def postgres() -> AsyncIterator[PostgresServer]:
    """One server for all tests; each has a database of its own there."""
    async with PostgresServer() as server:
        yield server


@pytest.fixture(params=["sqlite", "postgresql"], scope="module")
def backend(request: pytest.FixtureRequest) -> PostgresServer | None:
    """Both databases, one after the other; None is SQLite."""
    if request.param == "sqlite":
        return None
    server = request.getfixturevalue("postgres")
    assert isinstance(server, PostgresServer)
    return server


@pytest.fixture
async def url(backend: PostgresServer | None, tmp_path: Path) -> AsyncIterator[str]:
    """Where an empty database is."""
    if backend is None:
        yield f"sqlite:///{tmp_path}/authws.db"
    else:
        async with backend.fresh_database() as fresh:
            yield fresh


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def database(backend: PostgresServer | None) -> AsyncIterator[None]:
    """Run the module's services on both, each data directory with its own database."""
    if backend is None:
        yield
    else:
        async with on_postgres(backend):
            yield
