"""The stores, opened for one command."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import typer

from authws.clock import Clock
from authws.exceptions import ConfigurationError
from authws.service.key_files import prepare_data_dir
from authws.service.settings import Settings
from authws.stores.database import Database, migrate
from authws.stores.passwords import PasswordHasher
from authws.stores.sessions import Sessions
from authws.stores.urls import sqlite_file
from authws.stores.users import Users

__all__ = [
    "Stores",
    "existing",
    "opened",
    "require_database",
    "require_secrets",
    "run",
]

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Stores:
    """What a command may work on."""

    users: Users
    sessions: Sessions


@asynccontextmanager
async def opened(settings: Settings) -> AsyncIterator[Stores]:
    """Open the stores, made if they are not there."""
    _make_data_dir(settings)
    async with _opened(settings) as stores:
        yield stores


@asynccontextmanager
async def existing(settings: Settings) -> AsyncIterator[Stores]:
    """Open the stores of a service that has some.

    Raises:
        ConfigurationError: there are none here.
    """
    require_database(settings)
    if settings.data_dir.exists():  # a database elsewhere does without one here
        prepare_data_dir(settings.data_dir)
    async with _opened(settings) as stores:
        yield stores


@asynccontextmanager
async def _opened(settings: Settings) -> AsyncIterator[Stores]:
    """Open the stores, the database brought up to date."""
    await asyncio.to_thread(migrate, settings.database)
    database = Database(settings.database)
    hasher = PasswordHasher()
    clock = Clock()
    try:
        yield Stores(Users(database, hasher, clock), Sessions(database, clock))
    finally:
        hasher.close()
        await database.dispose()


def require_database(settings: Settings) -> None:
    """Refuse to make an empty database where a command expects the service's.

    Raises:
        ConfigurationError: there is none here.
    """
    file = sqlite_file(settings.database)
    if file is None or file.exists():
        return
    if settings.database_url is None:
        _require_data_dir(settings)
    raise ConfigurationError(
        f"there is no database {file}: add a user with `authws user add NAME`, or run "
        "this with the service's AUTHWS_DATA_DIR or AUTHWS_DATABASE_URL"
    )


def require_secrets(settings: Settings) -> None:
    """Refuse to make secrets where there is no service that would know them.

    Raises:
        ConfigurationError: there is no data directory here.
    """
    if settings.secret_keys and settings.signing_algorithm == "HS256":
        return
    _require_data_dir(settings)


def _require_data_dir(settings: Settings) -> None:
    if not settings.data_dir.exists():
        raise ConfigurationError(
            f"there is no data directory {settings.data_dir} in {Path.cwd()}: run this "
            "where the service runs, or set AUTHWS_DATA_DIR to its directory"
        )
    prepare_data_dir(settings.data_dir)


def _make_data_dir(settings: Settings) -> None:
    """Make the data directory, and say so: it may be the wrong place."""
    was_there = settings.data_dir.exists()
    prepare_data_dir(settings.data_dir)
    if not was_there:
        typer.echo(
            f"authws: made the data directory {settings.data_dir.absolute()}", err=True
        )


def run(work: Coroutine[Any, Any, T]) -> T:
    """Run a command's work."""
    return asyncio.run(work)
