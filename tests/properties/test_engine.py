"""The whole life of connections, in any order and under any interleaving.

A state machine opens connections by all three strategies, authenticates, renews,
talks, revokes, lets time pass, leaves, and stops reading; a gate holds credentials
between their arrival and their verdict. After each step, whatever came before:

1. Nobody hears anything of a room before ``auth_ok``, after the end of its right to
   exist, or after its close frame.
2. A connection whose deadline has passed, or whose session was ended, is not open.
3. The rooms' members and presence are exactly the open connections that joined.
4. Every ending is one of the table, and says why.
5. When all have left, nothing of them is left: no task, no timer, no count.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
)

from authws.close_codes import BY_SLUG
from authws.live.connection import Connection, ConnectionLimits
from authws.principal import Principal
from tests.engine import Engine, Peer
from tests.manual_clock import settle

T = TypeVar("T")

OF_A_ROOM = {"message", "presence", "joined"}
SESSIONS = {"s1": "alice", "s2": "alice", "s3": "bob"}
STRATEGIES = ("query-param", "first-message", "session-cookie")
SCOPES = (
    ("join:*", "publish:*"),
    ("join:lobby", "publish:lobby"),
    ("join:attic",),
    (),
)

peer = st.integers(0, 7)
session = st.sampled_from(sorted(SESSIONS))
room = st.sampled_from(["lobby", "lobby", "attic"])
scopes = st.sampled_from(SCOPES)


def action(name: str, **arguments: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.tuples(st.just(name), st.fixed_dictionaries(arguments))


ACTIONS = st.one_of(
    action(
        "knock",
        strategy=st.sampled_from(STRATEGIES),
        session=session,
        ttl=st.sampled_from([0.5, 3.0, 100.0, 5000.0]),
        scopes=scopes,
    ),
    action("authenticate", peer=peer),
    action(
        "renew",
        peer=peer,
        session=st.none() | session,
        ttl=st.sampled_from([0.5, 100.0]),
        scopes=scopes,
    ),
    action("join", peer=peer, room=room),
    action("leave_room", peer=peer, room=room),
    action("publish", peer=peer, room=room, times=st.sampled_from([1, 1, 8])),
    action("publish", peer=peer, room=st.just("lobby"), times=st.just(1)),
    action("leave", peer=peer),
    action("toggle_reading", peer=peer),
    action("revoke_session", session=session),
    action("revoke_subject", subject=st.sampled_from(["alice", "bob"])),
    action("use_session", session=session, seconds=st.sampled_from([10.0, 9000.0])),
    action("hold", what=st.sampled_from(["gate", "way_back"])),
    action("release"),
    action("set_the_wall_clock", seconds=st.sampled_from([-3600.0, 3600.0])),
)


class Lives(RuleBasedStateMachine):
    """Walks the engine; the checks look at it from outside."""

    over_wire = False

    def __init__(self) -> None:
        super().__init__()
        Peer.over_wire = self.over_wire
        self.loop = asyncio.new_event_loop()
        self.tokens: list[tuple[str, str]] = []
        self.said = 0
        self.revoked: set[str] = set()

    def run(self, work: Coroutine[Any, Any, None]) -> None:
        self.loop.run_until_complete(work)

    @initialize(policy=st.sampled_from(["close", "drop_oldest", "drop_newest"]))
    def build(self, policy: Any) -> None:
        """Begin with one peer of each strategy, all in the lobby."""

        async def work() -> None:
            limits = ConnectionLimits(outbox_messages=6, outbox_policy=policy)
            self.engine = Engine(limits=limits, max_connections_per_user=5)
            await self.engine.start()
            for strategy, session in zip(STRATEGIES, SESSIONS, strict=True):
                self.knock(strategy, session, 200.0, SCOPES[0])
                await settle()
                self.authenticate(len(self.engine.peers) - 1)
                self.join(len(self.engine.peers) - 1, "lobby")
            await settle()

        self.run(work())

    @rule(burst=st.lists(ACTIONS, min_size=1, max_size=6))
    def act(self, burst: list[tuple[str, dict[str, Any]]]) -> None:
        """Do all of it in one turn of the event loop: nobody can react in between."""

        async def work() -> None:
            for name, arguments in burst:
                getattr(self, name)(**arguments)
            await settle()

        self.run(work())

    @rule(seconds=st.sampled_from([0.1, 1.0, 4.9, 60.0, 1000.0]))
    def wait(self, seconds: float) -> None:
        self.run(self.engine.clock.advance(seconds))

    # ------------------------------------------------------------------------- actions

    def knock(self, strategy: str, session: str, ttl: float, scopes: Any) -> None:
        if len(self.engine.peers) < 12:
            token = self._issue(session, ttl, scopes)
            self.tokens.append((token, session))
            self.engine.knock(strategy, token)

    def authenticate(self, peer: int) -> None:
        self._say(peer, type="auth", token=self._of(peer, self.tokens)[0])

    def renew(self, peer: int, session: str | None, ttl: float, scopes: Any) -> None:
        session = session or self._of(peer, self.tokens)[1]
        self._say(peer, type="auth", token=self._issue(session, ttl, scopes))

    def join(self, peer: int, room: str) -> None:
        self._say(peer, type="join", room=room)

    def leave_room(self, peer: int, room: str) -> None:
        self._say(peer, type="leave", room=room)

    def publish(self, peer: int, room: str, times: int) -> None:
        for _ in range(times):
            self.said += 1
            self._say(peer, type="publish", room=room, data=self.said, id=self.said)

    def leave(self, peer: int) -> None:
        one = self._of(peer, self.engine.peers)
        if not one.has_left:
            one.leave()

    def toggle_reading(self, peer: int) -> None:
        one = self._of(peer, self.engine.peers)
        (one.reads.clear if one.reads.is_set() else one.reads.set)()

    def revoke_session(self, session: str) -> None:
        self._seal(lambda principal: principal.session == session)
        self.engine.hub.revoke_session(session, self.engine.clock.now())
        self.revoked.add(session)

    def revoke_subject(self, subject: str) -> None:
        # as the store has it: not before what it ends, however the clock was set
        known = self.engine.authority.known.values()
        opened = [one.authenticated_at for one in known if one.subject == subject]
        at = max([self.engine.clock.now(), *opened])
        self._seal(lambda principal: principal.subject == subject)
        self.engine.hub.revoke_subject(subject, at)
        of_subject = self.engine.hub.of_subject(subject)
        assert not [connection for connection in of_subject if connection.is_open]

    def use_session(self, session: str, seconds: float) -> None:
        until = self.engine.clock.now() + seconds
        self.engine.hub.extend_session(session, until)

    def hold(self, what: str) -> None:
        getattr(self.engine.authority, what).clear()

    def release(self) -> None:
        self.engine.authority.gate.set()
        self.engine.authority.way_back.set()

    def set_the_wall_clock(self, seconds: float) -> None:
        self.engine.clock.wall_offset += seconds
        self.engine.hub.check_deadlines()

    # -------------------------------------------------------------------------- checks

    @invariant()
    def what_is_over_is_not_open(self) -> None:
        now = self.engine.clock.now()
        for connection in self._open():
            assert connection.principal.expires_at > now, "open past its deadline"
            assert connection.principal.session not in self.revoked

    @invariant()
    def members_are_the_open_connections_that_joined(self) -> None:
        hub = self.engine.hub
        for name, room in hub.rooms.items():
            assert room.members, "an empty room is kept"
            assert set(room.members) <= set(hub.connections)
            present = Counter(
                connection.principal.subject for connection in room.members.values()
            )
            assert room.subjects == present
            for connection in room.members.values():
                assert name in connection.rooms
                if connection.is_open:
                    assert connection.principal.may("join", name)
        for connection in hub.connections.values():
            assert all(connection.id in hub.rooms[n].members for n in connection.rooms)

    @invariant()
    def strangers_hear_nothing_of_a_room(self) -> None:
        for peer in self.engine.peers:
            kinds = [message["type"] for message in peer.heard]
            if OF_A_ROOM & set(kinds):
                first = min(kinds.index(kind) for kind in OF_A_ROOM & set(kinds))
                assert "auth_ok" in kinds[:first]

    @invariant()
    def nothing_is_heard_beyond_what_auth_ok_promised(self) -> None:
        """Each ``auth_ok`` moves the deadline; touched cookies move it unsaid."""
        for peer in self.engine.peers:
            if peer.headers:
                continue
            until = 0.0
            for message, at in zip(peer.heard, peer.heard_at, strict=True):
                if message["type"] == "auth_ok":
                    until = message["expires_at"]
                elif message["type"] in OF_A_ROOM:
                    assert at < until, "delivered past the deadline"

    @invariant()
    def revoked_peers_hear_no_more_of_a_room(self) -> None:
        for peer in self.engine.peers:
            if peer.sealed is not None:
                later = [message["type"] for message in peer.heard[peer.sealed :]]
                assert not OF_A_ROOM & set(later)

    @invariant()
    def endings_are_of_the_table(self) -> None:
        for peer in self.engine.peers:
            if peer.ending is not None and peer.ending != (1000, ""):
                code, slug = peer.ending
                assert BY_SLUG[slug].code == code

    def teardown(self) -> None:
        try:
            self.run(self.engine.stop())
        finally:
            Peer.over_wire = False
            for task in asyncio.all_tasks(self.loop):
                task.cancel()
            self.run(settle())
            self.loop.close()

    # ------------------------------------------------------------------------ internals

    def _issue(self, session: str, ttl: float, scopes: Any) -> str:
        subject = SESSIONS[session]
        return self.engine.issue(subject, session=session, ttl=ttl, scopes=scopes)

    def _seal(self, is_revoked: Callable[[Principal], bool]) -> None:
        """Note what those have heard so far whose right to hear more is taken."""
        revoked = {c.id for c in self._open() if is_revoked(c.principal)}
        for peer in self.engine.peers:
            own = {message["connection"] for message in peer.of_type("auth_ok")}
            if own & revoked and not peer.is_sending:
                peer.sealed = len(peer.heard)

    def _of(self, number: int, several: list[T]) -> T:
        return several[number % len(several)]

    def _say(self, number: int, **message: Any) -> None:
        one = self._of(number, self.engine.peers)
        if not one.has_left and one.ending is None:
            one.say(**message)

    def _open(self) -> list[Connection]:
        return [c for c in self.engine.hub.connections.values() if c.is_open]


class LivesOverWire(Lives):
    """The same over the wire that our own server offers."""

    over_wire = True


for machine in (Lives, LivesOverWire):
    machine.TestCase.settings = settings(
        max_examples=150,
        stateful_step_count=30,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
TestLives = Lives.TestCase
TestLivesOverWire = LivesOverWire.TestCase
