"""Between the task that receives and a handler that may be busy elsewhere."""

from __future__ import annotations

import asyncio

import pytest

from authws.live.inbox import Inbox
from tests.manual_clock import settle


async def test_messages_come_out_in_order() -> None:
    inbox = Inbox(3)
    for number in "123":
        await inbox.put(number)
    assert [await inbox.get() for _ in range(3)] == ["1", "2", "3"]


async def test_it_takes_as_many_as_it_may_and_no_more() -> None:
    inbox = Inbox(2)
    await inbox.put("1")
    await inbox.put("2")
    third = asyncio.ensure_future(inbox.put("3"))
    await settle()
    assert not third.done()
    assert await inbox.get() == "1"
    await third
    assert [await inbox.get(), await inbox.get()] == ["2", "3"]


async def test_who_waits_for_a_message_gets_it() -> None:
    inbox = Inbox(2)
    first = asyncio.ensure_future(inbox.get())
    await settle()
    await inbox.put("1")
    assert await first == "1"


async def test_after_its_end_it_gives_what_it_has_and_then_nothing() -> None:
    inbox = Inbox(2)
    await inbox.put("1")
    inbox.end()
    assert [await inbox.get() for _ in range(3)] == ["1", None, None]


async def test_who_waits_at_the_end_hears_of_it() -> None:
    inbox = Inbox(2)
    waiting = asyncio.ensure_future(inbox.get())
    await settle()
    inbox.end()
    assert await waiting is None


async def test_one_that_gave_up_waiting_costs_no_message() -> None:
    inbox = Inbox(1)
    waiting = asyncio.ensure_future(inbox.get())
    await settle()
    waiting.cancel()
    await inbox.put("1")
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert await inbox.get() == "1"
    await inbox.put("2")
    full = asyncio.ensure_future(inbox.put("3"))
    await settle()
    full.cancel()
    await asyncio.gather(full, return_exceptions=True)
    inbox.end()
    assert [await inbox.get(), await inbox.get()] == ["2", None]


async def test_every_one_who_waits_is_served() -> None:
    inbox = Inbox(2)
    waiting = [asyncio.ensure_future(inbox.get()) for _ in range(3)]
    await settle()
    await inbox.put("1")
    await inbox.put("2")
    inbox.end()
    assert sorted(str(one) for one in await asyncio.gather(*waiting)) == [
        "1",
        "2",
        "None",
    ]


async def test_a_second_wait_outlives_the_first() -> None:
    inbox = Inbox(2)
    first = asyncio.ensure_future(inbox.get())
    await settle()
    first.cancel()
    second = asyncio.ensure_future(inbox.get())
    await settle()
    await inbox.put("1")
    assert await second == "1"


@pytest.mark.parametrize("capacity", [0, 1, 2, 4, 64])
async def test_who_fills_and_who_empties_never_wait_for_each_other(
    capacity: int,
) -> None:
    inbox = Inbox(capacity)

    async def fill() -> None:
        for number in range(100):
            await inbox.put(str(number))
            if number % 7 == 0:
                await asyncio.sleep(0)
        inbox.end()

    async def empty() -> list[str | bytes]:
        found: list[str | bytes] = []
        while (message := await inbox.get()) is not None:
            found.append(message)
        return found

    async with asyncio.timeout(10):
        _, found = await asyncio.gather(fill(), empty())
    assert found == [str(number) for number in range(100)]


async def test_a_capacity_of_0_is_none() -> None:
    inbox = Inbox(0)
    async with asyncio.timeout(10):
        for number in range(1000):
            await inbox.put(str(number))
