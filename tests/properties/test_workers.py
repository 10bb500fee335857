"""Several workers on a broker that fails, in any order and under any interleaving.

A state machine lets guests come and go, talk and come back by way of several workers,
which start, end, die and stand still, while their ways to the broker are cut, late and
lossy, and the broker forgets. At the end everything is mended and time passes. Then,
whatever came before:

1. Each member of a room knows who is in it, on all workers.
2. Each member of a room that is kept heard what was said there once each and in order,
   from where it joined on, with nothing left out but what it was told of: by a
   ``resync``, or by ``recovered: false``.
3. What was acknowledged was said, once; and what one publisher said is in their order.
4. Where nothing is kept, whoever did not hear an acknowledged message was told so.
5. Nobody heard anything of a room that they were not in.
6. Nothing is left of those who have left.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections import Counter
from collections.abc import Callable, Coroutine
from functools import wraps
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from authws.decisions import gossip
from authws.decisions.envelopes import Envelope, Kind, Sealer
from authws.decisions.history import HistoryRules, Position
from tests.cluster.bus import Bus
from tests.cluster.workers import (
    KEYS,
    LEASE,
    Worker,
    Workers,
    here,
    settle,
    workers,
)
from tests.engine import Peer
from tests.manual_clock import ManualClock

KEPT, PLAIN = "kept", "plain"
ROOMS = (KEPT, PLAIN)
SUBJECTS = ("alice", "bob", "carol")
HISTORY = (f"{KEPT}=8/60", "*=0")
MAX_WORKERS = 4
MAX_GUESTS = 14

guest = st.integers(0, MAX_GUESTS - 1)
worker = st.integers(0, MAX_WORKERS - 1)
room = st.sampled_from([KEPT, KEPT, PLAIN])
subject = st.sampled_from(SUBJECTS)


EXAMPLES = int(os.environ.get("AUTHWS_TEST_EXAMPLES", "400"))

Do = Callable[..., None]


def doing(**arguments: st.SearchStrategy[Any]) -> Callable[[Do], Do]:
    """Make a rule of something that is done; what follows is done in the same turn of
    the event loop, so that nobody can react in between, unless this ends it."""

    def make(do: Do) -> Do:
        @wraps(do)
        def act(self: Lives, ends_turn: bool, **given: Any) -> None:
            self.turn.append(lambda: do(self, **given))
            if ends_turn:
                self.run(self.take_turn())

        made: Do = rule(ends_turn=st.booleans(), **arguments)(act)  # type: ignore[call-overload]
        return made

    return make


class Guest:
    """One connection, and what is known of it from outside."""

    def __init__(self, worker: Worker, subject: str, peer: Peer) -> None:
        self.worker = worker
        self.subject = subject
        self.peer = peer
        self.said: dict[str, list[int]] = {name: [] for name in ROOMS}

    @property
    def is_here(self) -> bool:
        return not self.peer.has_left and self.peer.ending is None

    def say(self, **message: Any) -> None:
        if self.is_here and not self.worker.own_clock.is_stopped:
            self.peer.say(**message)

    def leave(self) -> None:
        if self.is_here and not self.worker.own_clock.is_stopped:
            self.peer.leave()

    def acknowledged(self) -> set[int]:
        return {message["id"] for message in self.peer.of_type("ack")}

    def about(self, room: str) -> list[dict[str, Any]]:
        return [message for message in self.peer.heard if message.get("room") == room]

    def count(self, room: str, kind: str) -> int:
        return sum(message["type"] == kind for message in self.about(room))

    def is_in(self, room: str) -> bool:
        kinds = [message["type"] for message in self.about(room)]
        kinds = [kind for kind in kinds if kind in ("joined", "left")]
        return self.is_here and kinds[-1:] == ["joined"]

    def place(self) -> dict[str, Any] | None:
        """Where it stands in the room that is kept, as a client remembers it."""
        for message in reversed(self.about(KEPT)):
            if "epoch" in message:
                return {"epoch": message["epoch"], "offset": message["offset"]}
        return None


class Lives(RuleBasedStateMachine):
    """Walks the workers; the checks look at them from outside."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.clock = ManualClock()
        self.bus = Bus(self.clock.monotonic)
        self.workers = Workers(self.clock, self.bus, history=HistoryRules(HISTORY))
        self.dead: list[Worker] = []
        self.guests: list[Guest] = []
        self.turn: list[Callable[[], None]] = []
        self.said = 0
        self.audiences: dict[int, list[tuple[Guest, int, int]]] = {}
        """By message of the room that is not kept: who was in when it was said, how
        often they had left by then, and how often been told of a loss."""

    def run(self, work: Coroutine[Any, Any, None]) -> None:
        self.loop.run_until_complete(work)

    @initialize(over_wire=st.booleans(), count=st.sampled_from([2, 2, 3]))
    def build(self, over_wire: bool, count: int) -> None:
        """Begin with a member of both rooms on each worker."""
        Peer.over_wire = over_wire

        async def work() -> None:
            await self.workers.start(count)
            for number in range(count):
                join = {"type": "join", "room": KEPT}
                self._enter(self.workers[number], SUBJECTS[number], **join)
                self.guests[number].say(type="join", room=PLAIN)
            await settle()

        self.run(work())

    async def take_turn(self) -> None:
        """Do all of it in one turn of the event loop: nobody can react in between."""
        turn, self.turn = self.turn, []
        for do in turn:
            do()
        await settle()

    @rule(seconds=st.sampled_from([0.1, 1.0, 3.0, LEASE * 1.5]))
    def wait(self, seconds: float) -> None:
        async def work() -> None:
            await self.take_turn()
            await self.clock.advance(seconds)

        self.run(work())

    @rule()
    def start_another(self) -> None:
        async def work() -> None:
            await self.take_turn()
            if len(self.workers) < MAX_WORKERS:
                await self.workers.start()

        self.run(work())

    @rule(worker=worker)
    def end(self, worker: int) -> None:
        """End one in good order: its guests first."""

        async def work() -> None:
            await self.take_turn()
            one = self._worker(worker)
            if len(self.workers) == 1 or one.own_clock.is_stopped:
                return
            one.broker.gate.set()  # no broker takes for ever to answer
            one.dismiss()
            await settle()
            await one.hub.cluster.stop()
            self._bury(one)

        self.run(work())

    # ----------------------------------------------------------------- what guests do

    @doing(worker=worker, subject=subject, room=room)
    def enter(self, worker: int, subject: str, room: str) -> None:
        self._enter(self._worker(worker), subject, type="join", room=room)

    @doing(guest=guest, room=room)
    def join(self, guest: int, room: str) -> None:
        self._guest(guest).say(type="join", room=room)

    @doing(guest=guest, room=room)
    def leave_room(self, guest: int, room: str) -> None:
        self._guest(guest).say(type="leave", room=room)

    @doing(guest=guest)
    def leave(self, guest: int) -> None:
        self._guest(guest).leave()

    @doing(guest=guest, worker=worker)
    def come_back(self, guest: int, worker: int) -> None:
        """Lose the connection, and go on by another where it stood."""
        one = self._guest(guest)
        one.leave()
        since = one.place()
        if since is not None:
            join = {"type": "join", "room": KEPT, "since": since}
            self._enter(self._worker(worker), one.subject, **join)

    @doing(guest=guest, room=room, times=st.sampled_from([1, 1, 3, 12]))
    def publish(self, guest: int, room: str, times: int) -> None:
        one = self._guest(guest)
        for _ in range(times):
            self.said += 1
            one.said[room].append(self.said)
            if room == PLAIN:
                self.audiences[self.said] = [
                    (other, other.count(PLAIN, "left"), other.count(PLAIN, "resync"))
                    for other in self.guests
                    if other.is_in(PLAIN)
                ]
            one.say(type="publish", room=room, data=self.said, id=self.said)

    # ----------------------------------------------------- what happens on the way

    @doing(worker=worker)
    def cut(self, worker: int) -> None:
        self._worker(worker).broker.cut()

    @doing(worker=worker)
    def mend(self, worker: int) -> None:
        one = self._worker(worker)
        if not one.broker.is_up and not one.own_clock.is_stopped:
            one.broker.mend()

    @doing(worker=worker, count=st.integers(1, 4))
    def lose(self, worker: int, count: int) -> None:
        self._worker(worker).broker.lost = count

    @doing(worker=worker)
    def confess(self, worker: int) -> None:
        one = self._worker(worker)
        if one.broker.is_up and not one.own_clock.is_stopped:
            one.broker.confess()

    @doing(worker=worker)
    def hold(self, worker: int) -> None:
        broker = self._worker(worker).broker
        if broker.held is None:
            broker.hold()

    @doing(worker=worker, first=st.sampled_from(["", "@all", KEPT]))
    def let_go(self, worker: int, first: str) -> None:
        one = self._worker(worker)
        if one.broker.held is not None and not one.own_clock.is_stopped:
            one.broker.let_go(first)

    @doing(worker=worker)
    def close_gate(self, worker: int) -> None:
        self._worker(worker).broker.gate.clear()

    @doing(worker=worker)
    def open_gate(self, worker: int) -> None:
        self._worker(worker).broker.gate.set()

    @doing(worker=worker, is_unsure=st.booleans())
    def be_unsure(self, worker: int, is_unsure: bool) -> None:
        self._worker(worker).broker.is_unsure = is_unsure

    @doing()
    def forget_all(self) -> None:
        for one in self.workers:
            one.broker.cut()
        self.bus.forget_all()

    # ------------------------------------------------------ what happens to workers

    @doing(worker=worker)
    def stall(self, worker: int) -> None:
        one = self._worker(worker)
        if not one.own_clock.is_stopped and one.broker.held is None:
            one.stall()

    @doing(worker=worker)
    def go_on(self, worker: int) -> None:
        one = self._worker(worker)
        if one.own_clock.is_stopped:
            one.go_on()

    @doing(worker=worker)
    def die(self, worker: int) -> None:
        one = self._worker(worker)
        if len(self.workers) > 1 and not one.own_clock.is_stopped:
            one.die()
            self._bury(one)

    # -------------------------------------------------------------------------- the end

    def teardown(self) -> None:
        try:
            self.run(self.take_turn())
            self.run(self._come_to_rest())
            self._check()
        finally:
            try:
                self.run(self._stop())
            finally:
                Peer.over_wire = False
                for task in asyncio.all_tasks(self.loop):
                    task.cancel()
                self.run(settle())
                self.loop.close()

    async def _come_to_rest(self) -> None:
        for one in self.workers:
            one.broker.lost, one.broker.is_unsure = 0, False
            one.broker.gate.set()
            one.own_clock.go_on()
            one.broker.let_go()
            if not one.broker.is_up:
                one.broker.mend()
            one.broker.confess()
        await settle()
        await self.clock.advance(LEASE * 3)

    async def _stop(self) -> None:
        for one in (*self.workers, *self.dead):
            one.own_clock.go_on()
            one.broker.gate.set()
            one.dismiss()
        await self.clock.advance(60)
        for one in self.workers:
            await one.hub.cluster.stop()
        for one in (*self.workers, *self.dead):
            await one.stop()

    # --------------------------------------------------------------------------- checks

    def _check(self) -> None:
        members = {
            name: {g.subject for g in self._living() if g.is_in(name)} for name in ROOMS
        }
        for one in self._living():
            for name in ROOMS:
                if one.is_in(name):
                    assert here(one.peer, name) == members[name], "who is there"
        log = self._log()
        for one in self.guests:
            self._check_membership(one)
            self._check_kept(one, log)
        self._check_acknowledged(log)
        self._check_plain()

    def _log(self) -> dict[str, list[tuple[int, int]]]:
        """By epoch: the offset and the number of each message that was kept."""
        sealer = Sealer(KEYS)
        log: dict[str, list[tuple[int, int]]] = {}
        for channel, data, position in self.bus.kept:
            number = json.loads(sealer.open(channel, data).body)["data"]
            log.setdefault(position.epoch, []).append((position.offset, number))
        return log

    def _check_membership(self, one: Guest) -> None:
        for name in ROOMS:
            is_in = False
            for message in one.about(name):
                if message["type"] == "joined":
                    is_in = True
                elif message["type"] == "left":
                    is_in = False
                elif message["type"] in ("message", "presence", "resync"):
                    assert is_in, f"heard outside of membership: {message}"

    def _check_kept(self, one: Guest, log: dict[str, list[tuple[int, int]]]) -> None:
        heard: Counter[Position] = Counter()
        at: Position | None = None
        for message in one.about(KEPT):
            if message["type"] in ("joined", "resync"):
                at = Position(message["epoch"], message["offset"])
            elif message["type"] == "message":
                place = Position(message["epoch"], message["offset"])
                heard[place] += 1
                assert heard[place] == 1, "heard twice"
                assert at is not None
                following = self._following(log, at)
                assert following, "heard what nobody said"
                assert (place.offset, message["data"]) == following[0], (at, place)
                at = place
        if one in self._living() and one.is_in(KEPT):
            assert at is not None
            assert at.epoch == self.bus.shelf.epoch
            assert not self._following(log, at), "something is still missing"

    @staticmethod
    def _following(
        log: dict[str, list[tuple[int, int]]], at: Position
    ) -> list[tuple[int, int]]:
        return [said for said in log.get(at.epoch, []) if said[0] > at.offset]

    def _check_acknowledged(self, log: dict[str, list[tuple[int, int]]]) -> None:
        said = [number for epoch in log.values() for _, number in epoch]
        assert len(set(said)) == len(said), "said twice"
        for one in self.guests:
            own = [number for number in said if number in one.said[KEPT]]
            assert own == sorted(own), "not in the order of its publisher"
            assert one.acknowledged() & set(one.said[KEPT]) <= set(said)

    def _check_plain(self) -> None:
        for one in self.guests:
            numbers = [m["data"] for m in one.about(PLAIN) if m["type"] == "message"]
            assert len(set(numbers)) == len(numbers), "heard twice"
            for publisher in self.guests:
                own = [n for n in numbers if n in publisher.said[PLAIN]]
                assert own == sorted(own), "not in the order of its publisher"
        acknowledged = {n for one in self.guests for n in one.acknowledged()}
        for number in acknowledged & self.audiences.keys():
            for one, left, told in self.audiences[number]:
                stayed = one in self._living() and one.is_in(PLAIN)
                if stayed and one.count(PLAIN, "left") == left:
                    heard = [m.get("data") for m in one.about(PLAIN)]
                    was_told = one.count(PLAIN, "resync") > told
                    assert number in heard or was_told, "lost, and nobody told of it"

    # ------------------------------------------------------------------------ internals

    def _enter(self, one: Worker, subject: str, **join: Any) -> None:
        if len(self.guests) == MAX_GUESTS or one.own_clock.is_stopped:
            return
        token = one.issue(subject, session=f"s{len(self.guests)}", ttl=1e6)
        peer = one.knock("query-param", token)
        peer.say(**join)
        self.guests.append(Guest(one, subject, peer))

    def _worker(self, number: int) -> Worker:
        return self.workers[number % len(self.workers)]

    def _guest(self, number: int) -> Guest:
        return self.guests[number % len(self.guests)]

    def _living(self) -> list[Guest]:
        return [one for one in self.guests if one.worker in self.workers]

    def _bury(self, one: Worker) -> None:
        self.workers.remove(one)
        self.dead.append(one)


Lives.TestCase.settings = settings(
    max_examples=EXAMPLES // 4,
    stateful_step_count=50,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
TestLives = Lives.TestCase


# -------------------------------------------------------- what another version may say

names = st.sampled_from(["alice", "bob", "s1", "lobby", "hall", ""])
numbers = st.sampled_from([-1, 0, 1, 2, 3, 7, 2**63, 2**70])
times = st.sampled_from([-1.0, 0.0, 1.7e9, 1e300])
rosters = st.builds(gossip.Roster, numbers, st.lists(names, max_size=3), st.booleans())
words = st.one_of(
    st.builds(
        gossip.Beat,
        st.sampled_from(["regular", "new", "missed", "stranger", "answer"]),
    ),
    st.builds(gossip.Bye),
    st.builds(
        gossip.Revoked, st.sampled_from(["session", "subject", "scopes"]), names, times
    ),
    st.builds(gossip.Extended, names, times),
    st.builds(gossip.Opened, numbers, st.lists(names, max_size=3), st.booleans()),
    st.builds(
        gossip.Holders,
        numbers,
        st.dictionaries(names, st.none() | st.lists(names, max_size=3), max_size=3),
    ),
    st.builds(gossip.Closed, st.lists(names, max_size=3)),
    st.builds(gossip.Ask, numbers, st.dictionaries(names, numbers, max_size=3)),
    st.builds(
        gossip.Answer,
        numbers,
        numbers,
        st.lists(names, max_size=3),
        st.dictionaries(names, rosters, max_size=3),
    ),
    st.builds(
        gossip.Held, names, st.dictionaries(names, times, max_size=3), st.booleans()
    ),
    st.builds(gossip.HeldBy, names, names, st.none() | times),
    st.builds(gossip.Request, numbers, names, st.dictionaries(names, numbers)),
    st.builds(gossip.Report, numbers, st.none() | numbers | st.lists(names)),
)
changes = st.builds(
    gossip.Change, numbers, numbers, names, st.booleans(), st.lists(names, max_size=2)
)
SPEAKERS = ("speaker-one", "speaker-two")


@settings(max_examples=EXAMPLES // 4, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from(SPEAKERS), st.one_of(words, words, changes)),
        max_size=12,
    ),
    st.sampled_from(["reject_new", "evict_oldest"]),
)
def test_whatever_a_worker_says_holds_for_its_lease_and_harms_nobody(
    said: list[tuple[str, Any]], when_full: str
) -> None:
    async def work() -> None:
        async with workers(
            1, max_connections_per_user=3, when_full=when_full, history=HISTORY
        ) as all_of_them:
            (one,) = all_of_them
            carol = await one.guest("carol", "lobby", KEPT)
            sealer = Sealer(KEYS)
            for number, (node, word) in enumerate(said, 1):
                is_change = isinstance(word, gossip.Change)
                channel = "lobby" if is_change else ("@all", f"@{one.node}")[number % 2]
                kind = Kind.PRESENCE if is_change else Kind.CLUSTER
                at = int(one.clock.now())
                envelope = Envelope(kind, node, number, gossip.encode(word), at)
                all_of_them.bus.carry(channel, sealer.seal(channel, envelope), None)
            await all_of_them.clock.advance(LEASE * 2)
            assert one.hub.cluster.others == {}
            assert here(carol, "lobby") == {"carol"}
            assert carol.ending is None
            more = [await one.guest("carol", "lobby") for _ in range(2)]
            assert [peer.ending for peer in more] == [None, None]
            carol.say(type="publish", room=KEPT, data="still here")
            await settle()
            assert carol.of_type("message")[-1]["data"] == "still here"

    asyncio.run(work())
