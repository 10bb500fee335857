"""The hub: which connections are open here, whose they are, and what ends them.

Nothing here waits for a peer, so one that is dead or slow costs the others nothing.
"""

from __future__ import annotations

import math
import random
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from typing import Literal

from authws import close_codes
from authws.clock import Clock
from authws.close_codes import Close
from authws.decisions.history import HistoryRules
from authws.decisions.lifecycle import revocation_close
from authws.decisions.limits import Limit
from authws.decisions.revocations import RevocationSnapshot
from authws.exceptions import TooManyConnectionsError
from authws.live.carrier import Carrier
from authws.live.cluster import Cluster
from authws.live.connection import Connection
from authws.live.quota import Quota
from authws.live.rooms import Rooms
from authws.live.turn import Turn
from authws.principal import Principal

__all__ = ["Hub", "WhenFull"]

WhenFull = Literal["reject_new", "evict_oldest"]
"""What happens to a user's new connection when they have all they may have."""

FAREWELLS_PER_SECOND = 200.0
"""A restart ends at least so many: so few at once that their return hurts nobody."""
FAREWELL_TICK = 0.05
"""Seconds between two batches of a restart's farewells."""


class Hub:
    """Every open connection of this process."""

    def __init__(
        self,
        carrier: Carrier,
        *,
        clock: Clock,
        history: HistoryRules | None = None,
        lease: float = 10.0,
        max_connections_per_user: int = 0,
        when_full: WhenFull = "reject_new",
        max_rooms: int = 100,
        max_presence: int = 1000,
        on_revoked: Callable[[float], None] = lambda seconds: None,
    ) -> None:
        """Limits of 0 are off.

        Args:
            carrier: between this worker and the broker.
            clock: where the time is read.
            history: which rooms keep how much; None keeps nothing.
            lease: seconds that a silent worker is believed to live.
            max_connections_per_user: on all workers together.
            when_full: what happens to a user's connection beyond that.
            max_rooms: how many rooms a connection may be in.
            max_presence: subjects in a room up to which each coming and going is told.
            on_revoked: is told, for each connection that a revocation ended, how many
                seconds later its close frame went out.
        """
        self.connections: dict[str, Connection] = {}
        self.revocations = RevocationSnapshot()
        self.messages_dropped = 0
        self.turn = Turn(clock.now)
        self.cluster = Cluster(carrier, clock, lease)
        self.rooms = Rooms(
            carrier,
            self.cluster,
            clock=clock,
            turn=self.turn,
            history=history or HistoryRules(()),
            max_rooms=max_rooms,
            max_presence=max_presence,
        )
        self.carrier = carrier
        self._clock = clock
        self._max_connections_per_user = max_connections_per_user
        self._when_full = when_full
        self._on_revoked = on_revoked
        self._by_user: defaultdict[str, dict[str, Connection]] = defaultdict(dict)
        self._by_session: defaultdict[str, dict[str, Connection]] = defaultdict(dict)
        self._quota = Quota(
            self.cluster,
            max_connections_per_user,
            self._by_user,
            _end_surplus,
            evicts=when_full == "evict_oldest",
        )

    async def start(self) -> None:
        """Begin to receive what the broker carries, and to be one of the workers."""
        await self.carrier.start(self.rooms, self.cluster)
        await self.cluster.start()

    async def stop(self) -> None:
        """Leave the workers, and let go of the broker."""
        await self.cluster.stop()
        await self.carrier.broker.stop()

    # ------------------------------------------------------------------ coming, going

    def admit(self, connection: Connection) -> None:
        """Register a connection; its user's oldest may have to go for it.

        Raises:
            TooManyConnectionsError: its user has as many as one user may have.
        """
        principal = connection.principal
        self.check_place(principal)
        of_user = self._by_user[_user(principal)]
        limit = self._max_connections_per_user
        while len(of_user) >= limit > 0:
            _end_surplus(of_user.pop(next(iter(of_user))))
        self.connections[connection.id] = connection
        of_user[connection.id] = connection
        if principal.session and not principal.issuer:
            self._by_session[principal.session][connection.id] = connection
        connection.renewed = self._drop_forbidden_rooms
        self._quota.came(_user(principal), connection)

    def check_place(self, principal: Principal) -> None:
        """Refuse a user for whom ``admit`` would have no place.

        Raises:
            TooManyConnectionsError: they have as many as one user may have.
        """
        if self._when_full != "reject_new":
            return
        limit = self._max_connections_per_user
        user = _user(principal)
        here = len(self._by_user.get(user, ()))
        if here + self._quota.elsewhere(user) >= limit > 0:
            raise TooManyConnectionsError(
                f"{limit} connections are open", Limit.CONNECTIONS_PER_USER
            )

    async def release(self, connection: Connection) -> None:
        """Forget a connection; whoever shares a room with it is told."""
        if self.connections.pop(connection.id, None) is None:
            return
        principal = connection.principal
        _discard(self._by_user, _user(principal), connection.id)
        _discard(self._by_session, principal.session, connection.id)
        self._quota.went(_user(principal), connection)
        self.messages_dropped += connection.dropped
        await self.rooms.forget(connection)

    async def _drop_forbidden_rooms(self, connection: Connection) -> None:
        """After a renewal: leave the rooms that the new scopes no longer allow."""
        may = connection.principal.may
        forbidden = [name for name in connection.rooms if not may("join", name)]
        await self.rooms.leave_all(connection, forbidden)

    # ------------------------------------------------------------ the right to exist

    def extend_session(self, session: str, expires_at: float) -> None:
        """A cookie's session was used again: its connections live until later."""
        for connection in self._by_session.get(session, {}).values():
            if connection.principal.strategy == "session_cookie":
                connection.extend(expires_at)

    def check_deadlines(self) -> None:
        """The wall clock was set: end what is over, and wait anew for the rest."""
        for connection in tuple(self.connections.values()):
            connection.check_deadline()

    def revoke_session(self, session: str, at: float) -> int:
        """End every connection of a session; return how many there were.

        ``at`` is when the database took the revocation, in seconds since the epoch.
        """
        self.revocations.revoke_session(session, at)
        return self._revoke(self._by_session.get(session, {}).values(), at)

    def revoke_subject(self, subject: str, at: float) -> int:
        """End what a user had opened by ``at``; return how many connections that was.

        A session that the user opened since then, after a new password, stays.
        """
        self.revocations.revoke_subject(subject, at)
        older = (
            connection
            for connection in self.of_subject(subject)
            if connection.principal.authenticated_at <= at
        )
        return self._revoke(older, at)

    def of_subject(self, subject: str) -> Iterator[Connection]:
        """The open connections of a user."""
        return iter(tuple(self._by_user.get(subject, {}).values()))

    def end_everything(self, close: Close) -> None:
        """End every connection at once: none of them can be believed any more."""
        for connection in tuple(self.connections.values()):
            connection.end(close)

    def _revoke(self, connections: Iterable[Connection], at: float) -> int:
        ended = tuple(connections)
        for connection in ended:
            connection.end(revocation_close(connection.principal), revoked_at=at)
        return len(ended)

    def note_ending(self, connection: Connection) -> None:
        """Tell how long a revocation took, once the connection is over."""
        if connection.revoked_at is not None and connection.closed_at is not None:
            self._on_revoked(max(0.0, connection.closed_at - connection.revoked_at))

    # ------------------------------------------------------------------------ restart

    async def end_all(self, seconds: float) -> None:
        """End every connection for a restart, spread over at most ``seconds``.

        Each is told a moment of its own to come back at, so that the wave of returns
        is as flat as that of the farewells.
        """
        count = len(self.connections)
        per_second = max(FAREWELLS_PER_SECOND, count / max(seconds, FAREWELL_TICK))
        spread = count / per_second
        batch = max(1, math.ceil(per_second * FAREWELL_TICK))
        waiting = list(self.connections.values())
        while waiting:
            for connection in waiting[-batch:]:
                # when to come back is no secret
                connection.end_for_restart(round(1 + random.random() * spread, 1))  # noqa: S311
            del waiting[-batch:]
            if waiting:
                await self._clock.sleep(FAREWELL_TICK)


def _end_surplus(connection: Connection) -> None:
    connection.end(close_codes.TOO_MANY_CONNECTIONS, limit=Limit.CONNECTIONS_PER_USER)


def _user(principal: Principal) -> str:
    """The key of a user: a foreign issuer's ``alice`` is not our ``alice``."""
    if principal.issuer:
        # no user name of ours holds a space
        return f"{principal.issuer} {principal.subject}"
    return principal.subject


def _discard(
    index: defaultdict[str, dict[str, Connection]], key: str, connection: str
) -> None:
    of_key = index.get(key)
    if of_key is not None:
        of_key.pop(connection, None)
        if not of_key:
            del index[key]
