"""Futures and tasks that several may wait for, or nobody."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

from authws.exceptions import UnavailableError

__all__ = [
    "Promise",
    "break_promise",
    "keep_promise",
    "outcome",
    "promise",
    "shared",
]

Promise = asyncio.Future[Any]


def promise() -> Promise:
    """Return a future that may fail without anybody looking."""
    made: Promise = asyncio.get_running_loop().create_future()
    made.add_done_callback(_look)
    return made


def keep_promise(made: Promise, value: object = None) -> None:
    """Let it end well, unless it has ended."""
    if not made.done():
        made.set_result(value)


def break_promise(made: Promise, why: str) -> None:
    """Let it raise UnavailableError, unless it has ended."""
    if not made.done():
        made.set_exception(UnavailableError(why))


def shared(work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
    """Begin something that goes on whoever stops waiting for its ``outcome``."""
    task = asyncio.create_task(work)
    task.add_done_callback(_look)
    return task


async def outcome(task: asyncio.Task[None]) -> None:
    """Wait for it, and raise what it raises."""
    await asyncio.wait({task})
    task.result()


def _look(done: asyncio.Future[Any]) -> None:
    if not done.cancelled():
        done.exception()
