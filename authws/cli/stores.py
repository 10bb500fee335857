"""The stores, opened for one command."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from authws.clock import Clock
from authws.service.key_files import prepare_data_dir
from authws.service.settings import Settings
from authws.stores.database import Database, migrate
from authws.stores.passwords import PasswordHasher
from authws.stores.sessions import Sessions
from authws.stores.users import Users

__all__ = ["Stores", "opened", "run"]

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Stores:
    """What a command may work on."""

    users: Users
    sessions: Sessions


@asynccontextmanager
async def opened(settings: Settings) -> AsyncIterator[Stores]:
    """Open the stores, the database brought up to date."""
    prepare_data_dir(settings.data_dir)
    await asyncio.to_thread(migrate, settings.database)
    database = Database(settings.database)
    hasher = PasswordHasher()
    clock = Clock()
    try:
        yield Stores(Users(database, hasher, clock), Sessions(database, clock))
    finally:
        hasher.close()
        await database.dispose()


def run(work: Coroutine[Any, Any, T]) -> T:
    """Run a command's work."""
    return asyncio.run(work)
