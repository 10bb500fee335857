"""Refresh tokens: one redemption, whoever races for it."""

from __future__ import annotations

import asyncio
import re

import pytest
from sqlalchemy import select

from authws.exceptions import UnavailableError
from authws.stores import schema
from authws.stores.database import Database
from authws.stores.refresh_tokens import RedeemedRefresh, RefreshTokens
from authws.stores.sessions import Sessions
from tests.stores.support import NOW

FRESH = RedeemedRefresh("one", reused=False, expired=False)
REUSED = RedeemedRefresh("one", reused=True, expired=False)


@pytest.fixture
async def token(sessions: Sessions, refresh_tokens: RefreshTokens) -> str:
    await sessions.create("one", "alice", "token", 0, NOW + 1000)
    return await refresh_tokens.issue("one", NOW + 100)


async def test_token_is_good_once(refresh_tokens: RefreshTokens, token: str) -> None:
    assert await refresh_tokens.redeem(token, NOW) == FRESH
    assert await refresh_tokens.redeem(token, NOW) == REUSED


async def test_of_twenty_at_once_one_succeeds(
    refresh_tokens: RefreshTokens, token: str
) -> None:
    redeemed = await asyncio.gather(
        *(refresh_tokens.redeem(token, NOW) for _ in range(20))
    )
    assert redeemed.count(FRESH) == 1
    assert redeemed.count(REUSED) == 19


async def test_of_two_processes_one_succeeds(
    url: str, refresh_tokens: RefreshTokens, token: str
) -> None:
    databases = [Database(url) for _ in range(4)]  # as many engines as processes
    doors = [RefreshTokens(db, refresh_tokens._clock) for db in databases]
    redeemed = await asyncio.gather(
        *(door.redeem(token, NOW) for door in doors for _ in range(5))
    )
    for database in databases:
        await database.dispose()
    assert redeemed.count(FRESH) == 1
    assert redeemed.count(REUSED) == 19


async def test_late_token_is_expired_and_not_used_up(
    refresh_tokens: RefreshTokens, token: str
) -> None:
    late = RedeemedRefresh("one", reused=False, expired=True)
    assert await refresh_tokens.redeem(token, NOW + 100) == late
    assert await refresh_tokens.redeem(token, NOW + 100) == late
    assert await refresh_tokens.redeem(token, NOW + 99) == FRESH


async def test_used_token_that_comes_back_late_is_still_told(
    refresh_tokens: RefreshTokens, token: str
) -> None:
    await refresh_tokens.redeem(token, NOW)
    both = RedeemedRefresh("one", reused=True, expired=True)
    assert await refresh_tokens.redeem(token, NOW + 200) == both


@pytest.mark.parametrize(
    "spoilt",
    [
        "",
        "rt_",
        "rt_" + "A" * 43,
        "\0",
        "\ud800",
        "x" * 100_000,
        "rt_" + "A" * 43 + "\n",
    ],
)
async def test_text_that_was_never_issued(
    refresh_tokens: RefreshTokens, token: str, spoilt: str
) -> None:
    assert await refresh_tokens.redeem(spoilt, NOW) is None


async def test_token_is_opaque_and_only_its_digest_is_kept(
    db: Database, token: str
) -> None:
    assert re.fullmatch(r"rt_[A-Za-z0-9_-]{43}", token)
    async with db.connect() as connection:
        row = (await connection.execute(select(schema.refresh_tokens))).one()
    assert token not in repr(row)
    assert token.removeprefix("rt_") not in repr(row)


async def test_token_needs_a_session(refresh_tokens: RefreshTokens) -> None:
    with pytest.raises(UnavailableError):
        await refresh_tokens.issue("none", NOW + 100)


async def test_pruning_forgets_what_has_expired(
    refresh_tokens: RefreshTokens, token: str
) -> None:
    await refresh_tokens.prune(NOW + 100)
    assert await refresh_tokens.redeem(token, NOW) == FRESH
    await refresh_tokens.prune(NOW + 101)
    assert await refresh_tokens.redeem(token, NOW) is None
