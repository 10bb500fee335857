"""Tickets: single use, whoever races for it."""

from __future__ import annotations

import asyncio

import pytest

from authws.exceptions import UnavailableError
from authws.stores import schema
from authws.stores.database import Database
from authws.stores.tickets import UsedTickets
from tests.stores.support import NOW


async def test_of_a_hundred_at_once_one_succeeds(tickets: UsedTickets) -> None:
    redeemed = await asyncio.gather(
        *(tickets.redeem("once", NOW + 30) for _ in range(100))
    )
    assert redeemed.count(True) == 1
    assert redeemed.count(False) == 99


async def test_each_ticket_counts_for_itself(tickets: UsedTickets) -> None:
    assert await tickets.redeem("one", NOW + 30) is True
    assert await tickets.redeem("two", NOW + 30) is True
    assert await tickets.redeem("one", NOW + 30) is False


async def test_pruning_forgets_what_has_expired(tickets: UsedTickets) -> None:
    await tickets.redeem("one", NOW + 30)
    await tickets.prune(NOW + 30)
    assert await tickets.redeem("one", NOW + 30) is False
    await tickets.prune(NOW + 31)
    assert await tickets.redeem("one", NOW + 30) is True


async def test_ticket_that_cannot_be_noted_is_not_good(
    db: Database, tickets: UsedTickets
) -> None:
    async with db.begin() as connection:
        await connection.run_sync(schema.used_tickets.drop)
    with pytest.raises(UnavailableError):
        await tickets.redeem("one", NOW + 30)
