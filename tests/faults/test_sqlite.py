"""Another process holds the SQLite file, as a long backup or a forgotten shell does."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest_asyncio

from tests.faults.asking import (
    ANSWER,
    IN,
    LATE,
    LOGIN,
    UNAVAILABLE,
    draw_ticket,
    is_ready,
    present,
    status_of,
    unread,
)
from tests.fleet.fleet import Fleet, fleet
from tests.fleet.measures import note


@pytest_asyncio.fixture
async def one(tmp_path: Path) -> AsyncIterator[Fleet]:
    async with fleet(tmp_path, "memory://", count=1, login_rate=1000) as made:
        await made.add_user("alice")
        yield made


@contextmanager
def locked(fleet: Fleet) -> Iterator[None]:
    path = fleet.directory / "data" / "authws.db"
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        yield


async def test_who_writes_is_refused_in_time_and_who_reads_is_not(one: Fleet) -> None:
    new = await unread(one)
    ticket = await draw_ticket(one, 0, await one.token("alice"))
    member = await one.enter(0, "alice", "lobby")
    with locked(one):
        began = time.monotonic()
        ending, *logins = await asyncio.gather(
            present(one, 0, "query-param", ticket),
            *(status_of(one, 0, "/auth/login", LOGIN) for _ in range(10)),
        )
        took = time.monotonic() - began
        note("sqlite", "locked", "a ticket and 10 logins are refused", round(took, 2))
        assert ending == UNAVAILABLE
        assert logins == [(503, {"detail": "unavailable"})] * 10
        assert took < ANSWER + LATE
        assert await present(one, 0, "query-param", new.token) == IN
        assert await is_ready(one, 0)
        assert await member.publish("meanwhile")
    began = time.monotonic()
    async with asyncio.timeout(1 + LATE):
        while (await status_of(one, 0, "/auth/login", LOGIN))[0] != 200:
            pass
    note("sqlite", "locked", "a login again", round(time.monotonic() - began, 2))
    assert await present(one, 0, "query-param", ticket) == IN
    assert "Traceback" not in one.sites[0].said
