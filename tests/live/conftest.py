"""The two databases, as the stores' tests have them, for what only one can decide; and
how late this machine is, for what must be in time."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest_asyncio

from tests.machine import Machine, watched
from tests.stores.conftest import backend, postgres, url

__all__ = ["backend", "machine", "postgres", "url"]


@pytest_asyncio.fixture(loop_scope="module")
async def machine() -> AsyncIterator[Machine]:
    async with watched() as machine:
        yield machine
