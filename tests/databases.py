"""Which database the tests' services have: an SQLite file, or one on PostgreSQL.

Whoever starts a service asks here with its data directory, so the same tests run on
both: a module marked ``pytest.mark.usefixtures("database")``, whose own services ask
for that fixture, runs on SQLite first and on PostgreSQL then.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from tests.servers.postgres import PostgresServer

__all__ = ["on_postgres", "url_for"]


class _Databases:
    """A database on a server for each data directory that is asked for."""

    def __init__(self, server: PostgresServer) -> None:
        self._server = server
        self._names: dict[Path, str] = {}

    async def url_for(self, data_dir: Path) -> str:
        name = self._names.get(data_dir)
        if name is None:
            name = self._names[data_dir] = await self._server.create_database()
        return self._server.url(name)

    async def drop(self) -> None:
        for name in self._names.values():
            await self._server.drop_database(name)


_current: _Databases | None = None


@asynccontextmanager
async def on_postgres(server: PostgresServer) -> AsyncIterator[None]:
    """Let each service that is started meanwhile have a database there."""
    global _current
    _current = _Databases(server)
    try:
        yield
        await _current.drop()
    finally:
        _current = None


async def url_for(data_dir: Path) -> str | None:
    """Where the database of this data directory is; None for the file in it."""
    return None if _current is None else await _current.url_for(data_dir)
