"""Who lives, and what workers ask one another."""

from __future__ import annotations

import asyncio
import logging
from functools import partial
from typing import Any

import pytest

from authws.decisions import gossip
from authws.decisions.envelopes import Envelope, Kind, Sealer
from authws.live.cluster import ANSWER_WITHIN, BEATS_PER_LEASE, RETRY, SETTLE
from authws.live.presence import LEARN_AGAIN_AFTER
from tests.cluster.bus import Bus
from tests.cluster.workers import (
    KEYS,
    LEASE,
    Worker,
    Workers,
    here,
    say,
    settle,
    texts,
    workers,
)
from tests.engine import Engine
from tests.manual_clock import ManualClock

BEAT = LEASE / BEATS_PER_LEASE


def know_each_other(all_of_them: Workers) -> bool:
    nodes = {worker.node for worker in all_of_them}
    return all(
        set(worker.hub.cluster.others) == nodes - {worker.node}
        for worker in all_of_them
    )


def forge(all_of_them: Workers, channel: str, body: bytes, number: int = 1) -> str:
    """Have a worker that is none of them say something; return its id."""
    node = "another-one"
    at = int(all_of_them.clock.now())
    envelope = Envelope(Kind.CLUSTER, node, number, body, at)
    sealed = Sealer(KEYS).seal(channel, envelope)
    all_of_them.bus.carry(channel, sealed, None)
    return node


class Question:
    """A request under way, and what came of it."""

    def __init__(self, worker: Worker, name: str = "count", **arguments: Any) -> None:
        self._began = worker.clock.monotonic()
        self._clock = worker.clock
        self.took: float | None = None
        self.answers: dict[str, Any] = {}
        self.silent: frozenset[str] = frozenset()
        self.task = asyncio.create_task(self._ask(worker, name, arguments))

    async def _ask(self, worker: Worker, name: str, arguments: dict[str, Any]) -> None:
        self.answers, self.silent = await worker.hub.cluster.request(name, **arguments)
        self.took = self._clock.monotonic() - self._began


# --------------------------------------------------------------------- hello, goodbye


@pytest.mark.parametrize("count", [1, 2, 5])
async def test_all_that_start_at_once_know_each_other(count: int) -> None:
    async with workers(count) as all_of_them:
        assert know_each_other(all_of_them)


async def test_who_comes_later_is_known_at_once_and_knows() -> None:
    async with workers(2) as all_of_them:
        starting = asyncio.ensure_future(all_of_them.one_more())
        await settle()
        assert know_each_other(all_of_them)
        assert not starting.done()
        await all_of_them.clock.advance(SETTLE)
        assert starting.done()


async def test_a_worker_without_a_broker_between_processes_is_alone() -> None:
    engine = Engine()
    await engine.start()
    cluster = engine.hub.cluster
    assert cluster.has_entered
    assert await cluster.request("count") == ({}, frozenset())
    cluster.tell_all(gossip.Beat())
    await engine.hub.stop()
    await engine.stop()


async def test_goodbye_is_heard_at_once_and_nobody_waits_for_who_said_it() -> None:
    async with workers(3) as all_of_them:
        one, two, three = all_of_them
        await two.hub.cluster.stop()
        await settle()
        assert set(one.hub.cluster.others) == {three.node}
        question = Question(one)
        await settle()
        assert question.took is None  # three knows no such question
        await all_of_them.clock.advance(ANSWER_WITHIN)
        assert question.silent == {three.node}


async def test_who_said_goodbye_says_nothing_more() -> None:
    """Else it would be taken for alive again, by a question that came too late."""
    async with workers(2) as all_of_them:
        one, two = all_of_them
        two.hub.cluster.answers("count", lambda _: 2)
        two.broker.hold()
        question = Question(one)
        await settle()
        two.hub.cluster.missed()
        await two.hub.cluster.stop()
        before = len(all_of_them.bus.sent)
        two.broker.let_go()
        two.hub.cluster.note_life("another-one")
        two.hub.cluster.missed()
        await settle()
        assert len(all_of_them.bus.sent) == before
        assert one.hub.cluster.others == {}
        assert question.answers == {}
        assert question.took == 0


# ---------------------------------------------------------------------------- leases


async def test_a_lease_ends_on_time_and_not_before() -> None:
    async with workers(2) as all_of_them:
        one, two = all_of_them
        heard = one.hub.cluster.others[two.node]
        two.die()
        gone: list[tuple[str, float]] = []
        clock = all_of_them.clock
        one.hub.cluster.on_gone.append(lambda node: gone.append((node, clock.elapsed)))
        await clock.advance(LEASE * 3)
        ((node, at),) = gone
        assert node == two.node
        assert LEASE < at - heard <= LEASE + BEAT


async def test_a_late_beat_is_in_time_for_the_lease() -> None:
    """Two of four may be lost."""
    async with workers(2) as all_of_them:
        one, two = all_of_them
        for _ in range(5):
            one.broker.lost, one.broker.lost_on = 2, "@all"
            await all_of_them.clock.advance(BEAT * 3)
            assert two.node in one.hub.cluster.others


async def test_any_word_is_a_sign_of_life() -> None:
    async with workers(1) as all_of_them:
        (one,) = all_of_them
        for number in range(1, 6):
            request = gossip.Request(number, "unknown", {})
            node = forge(all_of_them, "@all", gossip.encode(request), number)
            await all_of_them.clock.advance(LEASE * 0.9)
            assert node in one.hub.cluster.others
        await all_of_them.clock.advance(LEASE)
        assert one.hub.cluster.others == {}


async def test_who_was_stopped_blames_nobody_and_is_known_again_with_its_people() -> (
    None
):
    async with workers(3) as all_of_them:
        one, two, three = all_of_them
        alice = await one.guest("alice", "lobby")
        bob = await two.guest("bob", "lobby")
        carol = await three.guest("carol", "lobby")
        two.stall()
        await all_of_them.clock.advance(LEASE * 5)
        assert here(alice) == here(carol) == {"alice", "carol"}
        heard = len(bob.heard)
        two.go_on()
        await all_of_them.clock.advance(BEAT)
        assert know_each_other(all_of_them)
        assert here(alice) == here(carol) == {"alice", "bob", "carol"}
        # for it nobody was ever gone
        assert [m["type"] for m in bob.heard[heard:]] == []
        await all_of_them.clock.advance(LEASE * 3)
        assert here(bob) == {"alice", "bob", "carol"}


async def test_two_that_were_stopped_together_find_each_other() -> None:
    async with workers(2) as all_of_them:
        one, two = all_of_them
        alice = await one.guest("alice", "lobby")
        bob = await two.guest("bob", "lobby")
        for worker in all_of_them:
            worker.stall()
        await all_of_them.clock.advance(LEASE * 5)
        for worker in all_of_them:
            worker.go_on()
        await all_of_them.clock.advance(LEASE * 2)
        assert here(alice) == here(bob) == {"alice", "bob"}
        assert know_each_other(all_of_them)


async def test_who_is_cut_off_for_long_is_known_again_with_its_people() -> None:
    async with workers(2) as all_of_them:
        one, two = all_of_them
        alice = await one.guest("alice", "lobby")
        bob = await two.guest("bob", "lobby")
        two.broker.cut()
        await all_of_them.clock.advance(LEASE * 2)
        assert here(alice) == {"alice"}
        assert here(bob) == {"alice", "bob"}
        two.broker.mend()
        await all_of_them.clock.advance(LEARN_AGAIN_AFTER)
        assert here(alice) == here(bob) == {"alice", "bob"}


# --------------------------------------------------------------- entering, being away


async def test_who_starts_while_the_broker_is_away_enters_once_it_is_there() -> None:
    async with workers(1) as all_of_them:
        (one,) = all_of_them
        late = Worker(all_of_them.bus, all_of_them.clock)
        all_of_them.append(late)
        late.broker.is_away = True
        await asyncio.wait_for(late.start(), 20)  # it does not wait for the broker
        await all_of_them.clock.advance(RETRY * 10)
        had_entered = late.hub.cluster.has_entered
        assert one.hub.cluster.others == {}
        late.broker.mend()
        await all_of_them.clock.advance(RETRY)
        assert (had_entered, late.hub.cluster.has_entered) == (False, True)
        assert know_each_other(all_of_them)
        alice = await one.guest("alice", "lobby")
        bob = await late.guest("bob", "lobby")
        assert here(alice) == here(bob) == {"alice", "bob"}


async def test_who_ends_while_the_broker_is_away_ends() -> None:
    async with workers(2) as all_of_them:
        one, two = all_of_them
        one.broker.cut()
        await asyncio.wait_for(one.hub.cluster.stop(), 20)
        await all_of_them.clock.advance(LEASE * 2)
        assert two.hub.cluster.others == {}


async def test_who_never_entered_ends() -> None:
    clock = ManualClock()
    worker = Worker(Bus(clock.monotonic), clock)
    worker.broker.is_away = True
    await worker.start()
    await asyncio.wait_for(worker.hub.cluster.stop(), 20)
    await worker.stop()


# ---------------------------------------------------------------------------- asking


def add(number: int, asked: dict[str, Any]) -> int:
    return number + int(asked["more"])


async def test_all_that_live_answer_and_nobody_waits_for_a_clock() -> None:
    async with workers(4) as all_of_them:
        for number, worker in enumerate(all_of_them):
            worker.hub.cluster.answers("count", partial(add, number))
        question = Question(all_of_them[0], more=10)
        await settle()
        assert question.took == 0
        assert question.answers == {
            worker.node: number + 10
            for number, worker in enumerate(all_of_them)
            if number > 0
        }
        assert question.silent == frozenset()


@pytest.mark.parametrize("how", ["dead", "stopped", "cut", "slow"])
async def test_who_does_not_answer_is_waited_for_once_and_not_again_until_heard(
    how: str,
) -> None:
    async with workers(3) as all_of_them:
        one, two, three = all_of_them
        for worker in (two, three):
            worker.hub.cluster.answers("count", lambda _: 1)
        if how == "dead":
            two.die()
        elif how == "stopped":
            two.stall()
        elif how == "cut":
            two.broker.cut()
        else:
            two.broker.hold()
        first = Question(one)
        await all_of_them.clock.advance(ANSWER_WITHIN * 0.99)
        assert first.took is None
        await all_of_them.clock.advance(ANSWER_WITHIN * 0.01)
        assert first.took == pytest.approx(ANSWER_WITHIN)
        assert first.answers == {three.node: 1}
        assert first.silent == {two.node}
        second = Question(one)
        await settle()
        assert second.took == 0
        assert second.answers == {three.node: 1}
        assert second.silent == {two.node}
        if how == "dead":
            return
        # it is heard again, and waited for again; what it answered so late is nothing
        if how == "stopped":
            two.go_on()
        elif how == "cut":
            two.broker.mend()
        else:
            two.broker.let_go()
        await all_of_them.clock.advance(BEAT)
        assert first.answers == {three.node: 1}
        third = Question(one)
        await settle()
        assert (third.took, third.answers) == (0, {two.node: 1, three.node: 1})


async def test_who_dies_while_it_is_asked_is_not_waited_for_beyond_its_goodbye() -> (
    None
):
    async with workers(2) as all_of_them:
        one, two = all_of_them
        question = Question(one, "unknown")
        await settle()
        assert not question.task.done()
        await two.hub.cluster.stop()
        await settle()
        assert question.took == 0
        assert question.silent == {two.node}


async def test_answers_that_nobody_asked_for_are_nothing() -> None:
    async with workers(1) as all_of_them:
        (one,) = all_of_them
        for number in range(1, 4):
            report = gossip.encode(gossip.Report(number, {"x": 1}))
            forge(all_of_them, f"@{one.node}", report, number)
        answer = gossip.Answer(2**70, -5, ["lobby"], {"lobby": gossip.Roster(1, ["x"])})
        forge(all_of_them, f"@{one.node}", gossip.encode(answer), 4)
        await settle()
        assert not one.hub.cluster._waiting
        assert not one.hub.rooms


async def test_two_questions_at_once_have_each_their_own_answers() -> None:
    async with workers(2) as all_of_them:
        one, two = all_of_them
        two.hub.cluster.answers("echo", lambda asked: asked["said"])
        questions = [Question(one, "echo", said=number) for number in range(20)]
        await settle()
        assert [q.answers for q in questions] == [{two.node: n} for n in range(20)]


async def test_a_question_that_nobody_waits_for_any_more_leaves_nothing() -> None:
    async with workers(2) as all_of_them:
        one, _ = all_of_them
        question = Question(one)
        await settle()
        question.task.cancel()
        await asyncio.gather(question.task, return_exceptions=True)
        assert not one.hub.cluster._waiting


# ---------------------------------------------------------------- what goes wrong there


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"null",
        b"[]",
        b"{}",
        b'{"type":"beat"',
        b'{"type":"unknown"}',
        b'{"type":"revoked","kind":"everything","key":"x","at":0}',
        b'{"type":"held","user":"alice","connections":[]}',
        b'{"type":"ask","id":1,"rooms":[1]}',
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"type":"request","id":1,"name":"x","arguments":' + b"[" * 5_000,
    ],
)
@pytest.mark.parametrize("channel", ["@all", "inbox"])
async def test_what_is_malformed_is_counted_and_survived(
    body: bytes, channel: str
) -> None:
    async with workers(2) as all_of_them:
        one, two = all_of_them
        one.hub.cluster.answers("count", lambda _: 1)
        channel = f"@{one.node}" if channel == "inbox" else channel
        node = forge(all_of_them, channel, body)
        await settle()
        assert one.hub.carrier.refused["malformed"] == 1
        assert node not in one.hub.cluster.others
        question = Question(two)
        await settle()
        assert question.answers == {one.node: 1}


async def test_a_handler_that_fails_is_logged_and_survived(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with workers(2) as all_of_them:
        one, two = all_of_them
        cluster = one.hub.cluster

        def fail(*_: Any) -> None:
            raise RuntimeError("a fault of ours")

        cluster.answers("failing", fail)
        cluster.answers("strange", lambda _: object())
        cluster.answers("count", lambda _: 1)
        cluster.on(gossip.Extended, fail)
        cluster.on_missed.append(fail)
        for name in ("failing", "strange"):
            asked = Question(two, name)
            await all_of_them.clock.advance(ANSWER_WITHIN)
            assert asked.silent == {one.node}
        two.hub.cluster.tell_all(gossip.Extended("s", 1.0))
        await settle()
        failures = [r for r in caplog.records if "could not be handled" in r.message]
        assert len(failures) == 3
        assert all(record.levelno == logging.ERROR for record in failures)
        question = Question(two)
        await settle()
        assert question.answers == {one.node: 1}


async def test_a_callback_that_fails_keeps_no_other_from_being_told() -> None:
    async with workers(2) as all_of_them:
        one, two = all_of_them
        alice = await one.guest("alice", "lobby")
        await two.guest("bob", "lobby")

        def fail(*_: Any) -> None:
            raise RuntimeError("a fault of ours")

        cluster = one.hub.cluster
        cluster.on_gone.insert(0, fail)
        two.die()
        await all_of_them.clock.advance(LEASE * 2)
        assert here(alice) == {"alice"}
        # and it still beats
        assert cluster._living is not None
        assert not cluster._living.done()


@pytest.mark.parametrize(
    ("channel", "kind"),
    [("@all", Kind.MESSAGE), ("@all", Kind.PRESENCE), ("lobby", Kind.CLUSTER)],
)
async def test_what_is_genuine_but_in_the_wrong_place_is_nothing(
    channel: str, kind: Kind
) -> None:
    async with workers(1) as all_of_them:
        (one,) = all_of_them
        alice = await one.guest("alice", "lobby")
        heard = len(alice.heard)
        body, at = gossip.encode(gossip.Bye()), int(all_of_them.clock.now())
        envelope = Envelope(kind, "another-one", 1, body, at)
        all_of_them.bus.carry(channel, Sealer(KEYS).seal(channel, envelope), None)
        await settle()
        assert len(alice.heard) == heard
        assert one.hub.cluster.others == {}


async def test_one_hears_no_word_of_ones_own() -> None:
    async with workers(1) as all_of_them:
        (one,) = all_of_them
        one.hub.cluster.tell_all(gossip.Beat("new"))
        one.hub.cluster.tell_all(gossip.Bye())
        await settle()
        assert one.hub.cluster.others == {}


async def test_a_lost_word_costs_those_who_missed_it_and_who_said_it_only() -> None:
    """Not all workers with all others: there may be forty, and a loss is no reason."""
    async with workers(6) as all_of_them:
        one, *others = all_of_them
        for worker in all_of_them:
            await worker.guest("alice", "lobby")
        for worker in others:
            worker.broker.lost, worker.broker.lost_on = 1, "@all"
        one.hub.cluster.tell_all(gossip.Beat())
        before = len(all_of_them.bus.sent)
        one.hub.cluster.tell_all(gossip.Beat())
        await settle()
        assert all(worker.hub.carrier.refused["missed"] == 1 for worker in others)
        # of each: it is new, the answer; it is asked who is there, and answers
        assert len(all_of_them.bus.sent) - before == 1 + 4 * len(others)


# ------------------------------------------------------------- restarts with new keys


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (["k1"], ["k1", "k2"]),
        (["k1", "k2"], ["k1", "k2", "k3"]),
        # `authws keys rotate` keeps three
        (["k1", "k2", "k3"], ["k2", "k3", "k4"]),
    ],
)
async def test_workers_before_and_after_a_rotation_understand_each_other(
    old: list[str], new: list[str]
) -> None:
    before, after = (tuple(key.encode() for key in keys) for keys in (old, new))
    async with workers(1, keys=before) as all_of_them:
        await all_of_them.start(keys=after)
        one, two = all_of_them
        assert know_each_other(all_of_them)
        alice = await one.guest("alice", "lobby")
        bob = await two.guest("bob", "lobby")
        say(alice, 1)
        say(bob, 2)
        await settle()
        assert sorted(texts(alice)) == sorted(texts(bob)) == [1, 2]
        assert here(alice) == here(bob) == {"alice", "bob"}
        for worker in all_of_them:
            assert worker.hub.carrier.refused == {}


async def test_workers_that_share_no_key_are_strangers() -> None:
    async with workers(1, keys=(b"ours",)) as all_of_them:
        await all_of_them.start(keys=(b"theirs",))
        await all_of_them.clock.advance(LEASE)
        for worker in all_of_them:
            assert worker.hub.cluster.others == {}
            assert worker.hub.carrier.refused["forged"] > 0
