"""What holds for every test, and the databases that some are asked of."""

from __future__ import annotations

import logging
import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio

from tests.databases import on_postgres
from tests.servers.postgres import PostgresServer

# Whoever starts the tests in the background may have them ignore Ctrl-C, and a process
# passes that on: what the tests start shall hear it all the same.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True, scope="module")
def _logging_as_it_was() -> Iterator[None]:
    """A module that sets up logging, as a server does, is done with that at its end:
    which one comes behind it in the same process is chance."""
    before = {logger: _state_of(logger) for logger in _loggers()}
    yield
    fresh = (logging.NOTSET, True, False, ())
    for logger in _loggers():
        level, propagate, disabled, handlers = before.get(logger, fresh)
        logger.setLevel(level)
        logger.propagate, logger.disabled = propagate, disabled
        logger.handlers[:] = handlers


def _loggers() -> list[logging.Logger]:
    known = logging.Logger.manager.loggerDict.values()
    return [one for one in known if isinstance(one, logging.Logger)]


def _state_of(
    logger: logging.Logger,
) -> tuple[int, bool, bool, tuple[logging.Handler, ...]]:
    return logger.level, logger.propagate, logger.disabled, tuple(logger.handlers)


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
