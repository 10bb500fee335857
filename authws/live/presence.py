"""Who is in a room, whichever worker they came in by.

Each worker tells the others of a room who came first or left last by way of it, and
each such change has a number. A worker that opens a room asks those who have it, as
the directory knows them, and tells with its first change of whom it heard: whoever has
somebody there and is not among them tells it then. One that sees that a number is
missing asks. So who is where is kept in no one place, and what a worker told of ends
with its lease.

Costs: a join or leave is one message to the workers of that room; a room's first member
on a worker is a question to the room's home, and one to each worker that has the room;
what is asked in the same turn of the event loop goes together.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable, Collection, Coroutine, Iterable, Iterator, Mapping
from typing import Any

from authws.clock import Clock
from authws.decisions import gossip
from authws.decisions.envelopes import Kind
from authws.live.carrier import Carrier
from authws.live.cluster import Cluster
from authws.live.directory import NO_QUESTION, Directory, Holders, batches
from authws.live.room import Elsewhere, Room

__all__ = ["Presence"]

ANSWERED_AT_ONCE = 262_144
"""Bytes of subjects after which an answer goes on in another message; NATS takes
1 MiB in one, unless it is told otherwise."""

LEARN_AGAIN_AFTER = 0.5
"""Seconds in which what was lost for several is told to the homes again, before it is
asked for."""

Tell = Callable[[Room, str, str], None]
"""Tells a room's members here that a subject ``joined`` or ``left``."""


class Presence:
    """Keeps what workers tell about who is in the rooms that are open here."""

    def __init__(
        self,
        rooms: Mapping[str, Room],
        carrier: Carrier,
        cluster: Cluster,
        clock: Clock,
        tell: Tell,
    ) -> None:
        self._rooms = rooms
        self._carrier = carrier
        self._cluster = cluster
        self._clock = clock
        self._directory = Directory(rooms, cluster, clock, self._hear_of)
        self._tell = tell
        self._changes = 0
        """Of all rooms by way of this worker: a change's number is its version."""
        self._next: dict[str, None] = {}
        """The rooms that the next question is about."""
        self._question: asyncio.Future[None] | None = None
        self._doubtful: dict[str, None] = {}
        """The rooms to ask about again, soon."""
        self._asking: set[asyncio.Task[object]] = set()
        cluster.on(gossip.Ask, self._answer)
        cluster.on(gossip.Answer, self._take)
        cluster.on_forgotten.append(lambda _: self.learn_again(self._rooms))
        cluster.on_missed.append(self._doubt)
        cluster.on_arrived.append(self._meet)
        cluster.on_gone.append(self._forget)

    # ------------------------------------------------------------- what happens here

    def arrive(self, room: Room, subject: str) -> None:
        """Note one more connection of a subject, and tell who has to know."""
        if subject not in room.subjects:
            self._change(room, subject, is_here=True)
            self._note_change(room, subject, is_here=True)
        room.subjects[subject] += 1

    def leave(self, room: Room, subject: str) -> None:
        """Note one connection less, and tell who has to know."""
        room.subjects[subject] -= 1
        if room.subjects[subject] > 0:
            return
        del room.subjects[subject]
        self._note_change(room, subject, is_here=False)
        self._change(room, subject, is_here=False)

    def _note_change(self, room: Room, subject: str, *, is_here: bool) -> None:
        self._changes += 1
        before, room.version = room.version, self._changes
        if self._carrier.is_shared:
            knows = [] if before else list(room.elsewhere)
            change = gossip.Change(before, room.version, subject, is_here, knows)
            self._carrier.tell(room.name, Kind.PRESENCE, gossip.encode(change))

    # ------------------------------------------------------------------------- asking

    async def learn(self, name: str) -> None:
        """Ask who is in a room; returns once those who have it, and live, have told."""
        if not self._cluster.others:
            return
        if self._question is None:
            loop = asyncio.get_running_loop()
            self._question = loop.create_future()
            loop.call_soon(self._ask)
        self._next[name] = None
        await asyncio.shield(self._question)

    def learn_again(self, names: Iterable[str]) -> None:
        """Ask soon about rooms of which something may have been missed."""
        is_scheduled = bool(self._doubtful)
        self._doubtful.update(dict.fromkeys(names))
        if self._doubtful and not is_scheduled:
            self._start(self._ask_again())

    def _doubt(self, node: str | None) -> None:
        if node is None:  # else that node asks, and is asked, as one that arrived
            self.learn_again(self._rooms)

    def _meet(self, node: str) -> None:
        """Ask one that may have missed something about the rooms it was in; one that
        is new was in none."""
        shared = [room.name for room in self._rooms.values() if node in room.elsewhere]
        for question in self._questions({node: shared}):
            self._start(question)

    def close(self, name: str) -> None:
        """Hear that a room is open here no longer."""
        self._directory.close(name)

    def _ask(self) -> None:
        names, self._next = self._next, {}
        question, self._question = self._question, None
        assert question is not None  # noqa: S101 - it is what was scheduled
        self._start(self._answer_all(question, names))

    async def _answer_all(
        self, question: asyncio.Future[None], names: Iterable[str]
    ) -> None:
        try:
            await self._ask_holders(names)
        finally:
            if not question.done():
                question.set_result(None)

    async def _ask_again(self) -> None:
        await self._clock.sleep(LEARN_AGAIN_AFTER)
        names, self._doubtful = self._doubtful, {}
        await self._ask_holders([name for name in names if name in self._rooms])

    async def _ask_holders(self, names: Iterable[str]) -> None:
        """Ask those who have these rooms, or are believed to, who is in them."""
        everybody: list[str] = []
        by_node: defaultdict[str, list[str]] = defaultdict(list)
        for name, holders in (await self._directory.open(names)).items():
            room = self._rooms.get(name)
            if room is None:
                continue
            if holders is None:
                everybody.append(name)
                continue
            for node in dict.fromkeys((*holders, *room.elsewhere)):
                if node in self._cluster.others:
                    by_node[node].append(name)
        await asyncio.gather(
            *(self._ask_about(some, None) for some in batches(everybody)),
            *self._questions(by_node),
        )

    def _hear_of(self, holders: Holders) -> None:
        """Ask those of whom it was not known that they have a room."""
        by_node: defaultdict[str, list[str]] = defaultdict(list)
        for name, nodes in holders.items():
            room = self._rooms.get(name)
            if room is not None:
                for node in self._cluster.others if nodes is None else nodes:
                    if node in self._cluster.others and node not in room.elsewhere:
                        by_node[node].append(name)
        for question in self._questions(by_node):
            self._start(question)

    def _questions(
        self, by_node: Mapping[str, Iterable[str]]
    ) -> Iterator[Coroutine[Any, Any, object]]:
        """Ask each worker about some rooms, in as few messages as hold their names."""
        for node, named in by_node.items():
            for some in batches(named):
                yield self._ask_about(some, node)

    async def _ask_about(self, names: list[str], node: str | None) -> frozenset[str]:
        """Return who did not answer."""
        versions = {n: room.version for n in names if (room := self._rooms.get(n))}
        _, silent = await self._cluster.ask(
            lambda number: gossip.Ask(number, versions),
            nodes=None if node is None else frozenset({node}),
        )
        return silent

    def _start(self, work: Coroutine[Any, Any, object]) -> None:
        task = asyncio.create_task(work)
        self._asking.add(task)
        task.add_done_callback(self._asking.discard)

    # ------------------------------------------------------------ what others tell

    def change(self, name: str, node: str, body: bytes) -> None:
        """Take a change that another worker tells of."""
        room = self._rooms.get(name)
        if room is None:
            return
        change = gossip.decode_change(body)
        self._cluster.note_life(node)  # what it tells holds for as long as its lease
        known = room.elsewhere.get(node)
        if known is None:
            known = room.elsewhere[node] = Elsewhere()
        if change.version <= known.version:
            return
        if change.before in (0, known.version):
            if change.before == 0:  # it has just opened the room: nobody was there
                self._replace(room, known, ())
            known.version = change.version
            self._apply(room, known, change.subject, is_here=change.is_here)
            is_missed = change.before == 0 and self._cluster.node not in change.knows
            if is_missed and room.subjects:
                self._answer(node, gossip.Ask(NO_QUESTION, {name: change.version}))
        else:
            self._ask_for(room, node, known, change.version)

    def _answer(self, node: str, ask: gossip.Ask) -> None:
        names: list[str] = []
        rosters: dict[str, gossip.Roster] = {}
        size = 0
        for name, version in ask.rooms.items():
            room = self._rooms.get(name)
            if room is None or not room.subjects:
                names.append(name)
            else:
                for roster, length in _parts(room):
                    if rosters and size + length > ANSWERED_AT_ONCE:
                        # more follows: nobody's wait is over yet
                        self._tell_rosters(node, NO_QUESTION, names, rosters)
                        names, rosters, size = [], {}, 0
                    names.append(name)
                    rosters[name] = roster
                    size += length
            if room is not None:
                self._look_behind(room, node, version)
        self._tell_rosters(node, ask.id, names, rosters)

    def _tell_rosters(
        self,
        node: str,
        question: int,
        names: list[str],
        rosters: dict[str, gossip.Roster],
    ) -> None:
        answer = gossip.Answer(question, self._changes, names, rosters)
        self._cluster.tell(node, answer)

    def _look_behind(self, room: Room, node: str, version: int) -> None:
        """Ask who asks, if it knows more of itself than is known here."""
        known = room.elsewhere.get(node)
        if version > (known.version if known else 0):
            known = known or room.elsewhere.setdefault(node, Elsewhere())
            self._ask_for(room, node, known, version)

    def _take(self, node: str, answer: gossip.Answer) -> None:
        for name in answer.rooms:
            room = self._rooms.get(name)
            if room is not None:
                self._compare(room, node, answer.as_of, answer.rosters.get(name))
        self._cluster.answered(answer.id, node, None)

    def _compare(
        self, room: Room, node: str, as_of: int, roster: gossip.Roster | None
    ) -> None:
        known = room.elsewhere.get(node)
        if known is None:
            if roster is None:
                return
            known = room.elsewhere[node] = Elsewhere()
        if known.version <= as_of:  # else it was asked before what came since
            subjects = _whole(known, roster) if roster else ()
            if subjects is None:
                return
            self._replace(room, known, subjects)
            known.version = roster.version if roster else as_of
        wanted, known.asked_for = known.asked_for, 0
        if wanted > as_of:
            self._ask_for(room, node, known, wanted)

    def _ask_for(self, room: Room, node: str, known: Elsewhere, version: int) -> None:
        """Ask a worker again, unless it has been: a change is missing here."""
        is_asked = bool(known.asked_for)
        known.asked_for = max(known.asked_for, version)
        if not is_asked:
            self._start(self._ask_for_what_is_missing(room, node, known))

    async def _ask_for_what_is_missing(
        self, room: Room, node: str, known: Elsewhere
    ) -> None:
        if await self._ask_about([room.name], node):
            known.asked_for = 0  # the next change that is heard asks again

    def _replace(self, room: Room, known: Elsewhere, subjects: Iterable[str]) -> None:
        now = set(subjects)
        for subject in known.subjects - now:
            self._apply(room, known, subject, is_here=False)
        for subject in now - known.subjects:
            self._apply(room, known, subject, is_here=True)

    def _forget(self, node: str) -> None:
        for room in tuple(self._rooms.values()):
            known = room.elsewhere.get(node)
            if known is not None:
                self._replace(room, known, ())
                del room.elsewhere[node]

    def _apply(
        self, room: Room, known: Elsewhere, subject: str, *, is_here: bool
    ) -> None:
        """Change who is here by way of another worker; tell it if that is news."""
        if is_here == (subject in known.subjects):
            return
        if is_here:
            known.subjects.add(subject)
        else:
            known.subjects.discard(subject)
        self._change(room, subject, is_here=is_here)

    def _change(self, room: Room, subject: str, *, is_here: bool) -> None:
        """Note that a subject is here by way of one worker more, or less; tell it if
        that is the first, or was the last."""
        before = room.present[subject]
        if is_here:
            room.present[subject] = before + 1
            if before == 0:
                self._tell(room, subject, "joined")
        elif before > 1:
            room.present[subject] = before - 1
        else:
            del room.present[subject]
            self._tell(room, subject, "left")


def _parts(room: Room) -> Iterator[tuple[gossip.Roster, int]]:
    """Split who is in a room here over rosters, each of so many bytes."""
    subjects: list[str] = []
    size = 0
    for subject in room.subjects:
        length = len(gossip.encode(subject))
        if size + length > ANSWERED_AT_ONCE and subjects:
            yield gossip.Roster(room.version, subjects, is_part=True), size
            subjects, size = [], 0
        subjects.append(subject)
        size += length + 1
    yield gossip.Roster(room.version, subjects), size


def _whole(known: Elsewhere, roster: gossip.Roster) -> Collection[str] | None:
    """Return who is in a roster, its earlier parts included; None: more follows."""
    version, subjects = known.part
    if version != roster.version:
        version, subjects = roster.version, set()
    if roster.is_part:
        known.part = (version, subjects.union(roster.subjects))
        return None
    known.part = (0, set())
    return subjects.union(roster.subjects)
