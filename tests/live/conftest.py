"""How late this machine is, for what must be in time."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest_asyncio

from tests.machine import Machine, watched

__all__ = ["machine"]


@pytest_asyncio.fixture(loop_scope="module")
async def machine() -> AsyncIterator[Machine]:
    async with watched() as machine:
        yield machine
