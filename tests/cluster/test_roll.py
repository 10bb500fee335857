"""Who is connected, on all workers: what they tell one another of it."""

from __future__ import annotations

import msgspec
import pytest

from authws.service import roll
from authws.service.roll import RollCall
from tests.cluster.workers import Workers, workers


async def calls(all_of_them: Workers) -> list[RollCall]:
    return [RollCall(worker.hub) for worker in all_of_them]


async def test_each_worker_lists_those_of_all_the_newest_first() -> None:
    async with workers(3) as all_of_them:
        call, *_ = await calls(all_of_them)
        for number, worker in enumerate(all_of_them):
            await worker.guest(f"u{number}", "lobby")
            await all_of_them.clock.advance(1)
        found = await call.of(None, 2)
        assert (found.total, found.workers, found.silent) == (3, 3, 0)
        assert [one.subject for one in found.listed] == ["u2", "u1"]
        assert found.listed[0].worker == all_of_them[2].node
        assert found.listed[0].rooms == ["lobby"]
        assert [o.subject for o in (await call.of("u1", 9)).listed] == ["u1"]


@pytest.mark.parametrize(
    "answer", [None, [], {"total": "many", "listed": []}, {"total": 1, "listed": [{}]}]
)
async def test_an_answer_that_is_not_understood_is_none(answer: object) -> None:
    """Another version may have given it, while workers are replaced."""
    async with workers(3) as all_of_them:
        call, *_ = await calls(all_of_them)
        all_of_them[1].hub.cluster.answers("connections", lambda _: answer)
        await all_of_them[2].guest("alice")
        found = await call.of(None, 10)
        assert (found.total, found.workers, found.silent) == (1, 2, 1)


@pytest.mark.parametrize(("room", "listed"), [(4, 3), (5, 2)])
async def test_a_list_that_no_message_holds_is_cut(
    monkeypatch: pytest.MonkeyPatch, room: int, listed: int
) -> None:
    async with workers(2) as all_of_them:
        call, other = await calls(all_of_them)
        for _ in range(3):
            await all_of_them[1].guest("alice", "x" * room)
        size = len(msgspec.json.encode(other._here(None, 1)[1][0]))
        size += 4 - room  # as if the room's name had four letters
        monkeypatch.setattr(roll, "ANSWERED_AT_ONCE", 3 * size)
        found = await call.of(None, 10)
        assert (found.total, len(found.listed)) == (3, listed)
