"""How many connections a user has, on all workers together.

To ask everybody at each handshake would cost more than the handshake. But while no
worker has more than its share of the limit, the limit cannot be passed: so a worker
says nothing of a user until they have more than that by way of it. From then on all
workers tell one another of that user's connections, each coming and going.

Two that come at the same moment by way of two workers may both be let in; when their
workers hear of each other, both come to the same answer which of them has to go.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from authws.decisions import gossip
from authws.live.cluster import Cluster
from authws.live.connection import Connection

__all__ = ["Quota"]


class Quota:
    """Counts what users have elsewhere, as far as that can matter."""

    def __init__(
        self,
        cluster: Cluster,
        limit: int,
        here: Mapping[str, Mapping[str, Connection]],
        end: Callable[[Connection], None],
        *,
        evicts: bool,
    ) -> None:
        """A limit of 0 is off.

        Args:
            cluster: the other workers.
            limit: how many connections a user may have.
            here: by user and id, the connections of this worker.
            end: ends one of them, for its user has too many.
            evicts: whether the oldest have to go for the newest, or the newest go.
        """
        self._cluster = cluster
        self._limit = limit
        self._here = here
        self._end = end
        self._evicts = evicts
        self._elsewhere: dict[str, dict[str, dict[str, float]]] = {}
        """By user, worker and id, when each was opened: what workers told."""
        self._told: set[str] = set()
        """The users of whom this worker tells."""
        if limit:
            cluster.on(gossip.Held, self._take)
            cluster.on(gossip.HeldBy, self._take_one)
            cluster.on_arrived.append(self._meet)
            cluster.on_gone.append(self._forget)
            cluster.on_missed.append(self._begin_anew)

    def elsewhere(self, user: str) -> int:
        """Return how many connections a user is known to have by way of others."""
        known = self._elsewhere.get(user)
        return sum(map(len, known.values())) if known else 0

    def came(self, user: str, connection: Connection) -> None:
        """Hear of one connection more here."""
        if not (self._limit and self._cluster.others):
            return
        if user in self._told:
            change = gossip.HeldBy(user, connection.id, connection.opened_at)
            self._cluster.tell_all(change)
        elif user in self._elsewhere or len(self._here[user]) > self._share:
            self._begin_to_tell(user)
        self._settle(user)

    def went(self, user: str, connection: Connection) -> None:
        """Hear of one connection less here."""
        if user in self._told:
            self._cluster.tell_all(gossip.HeldBy(user, connection.id, None))
            if user not in self._here:
                self._told.discard(user)

    # ------------------------------------------------------------------------- telling

    @property
    def _share(self) -> int:
        """What each worker may have of one user, if the limit is to hold unsaid."""
        return self._limit // (len(self._cluster.others) + 1)

    def _begin_to_tell(self, user: str) -> None:
        self._told.add(user)
        self._cluster.tell_all(self._all_of(user, wants_answer=True))

    def _all_of(self, user: str, *, wants_answer: bool = False) -> gossip.Held:
        opened = {one.id: one.opened_at for one in self._here.get(user, {}).values()}
        return gossip.Held(user, opened, wants_answer)

    def _meet(self, node: str) -> None:
        self._forget(node)  # it tells all of it again
        for user in self._told:
            self._cluster.tell(node, self._all_of(user))
        share = self._share  # it is less now
        for user, connections in tuple(self._here.items()):
            if len(connections) > share and user not in self._told:
                self._begin_to_tell(user)

    def _begin_anew(self, node: str | None) -> None:
        """Something may be missing, here or there: all is told again, also to us."""
        if node is None:
            self._elsewhere.clear()
        else:
            self._forget(node)
        for user in self._told:
            self._tell(node, self._all_of(user))

    def _tell(self, node: str | None, held: gossip.Held) -> None:
        if node is None:
            self._cluster.tell_all(held)
        else:
            self._cluster.tell(node, held)

    # ------------------------------------------------------------ what others tell

    def _take(self, node: str, held: gossip.Held) -> None:
        user = held.user
        self._elsewhere.setdefault(user, {})[node] = dict(held.connections)
        self._drop_if_empty(user, node)
        if user in self._here and user not in self._told:
            self._begin_to_tell(user)
        elif held.wants_answer:
            self._cluster.tell(node, self._all_of(user))
        self._settle(user)

    def _take_one(self, node: str, change: gossip.HeldBy) -> None:
        user = change.user
        known = self._elsewhere.setdefault(user, {}).setdefault(node, {})
        if change.at is None:
            known.pop(change.connection, None)
        else:
            known[change.connection] = change.at
        self._drop_if_empty(user, node)
        self._settle(user)

    def _forget(self, node: str) -> None:
        for user in [user for user, by in self._elsewhere.items() if node in by]:
            self._elsewhere[user][node] = {}
            self._drop_if_empty(user, node)

    def _drop_if_empty(self, user: str, node: str) -> None:
        by_node = self._elsewhere[user]
        if not by_node[node]:
            del by_node[node]
        if not by_node:
            del self._elsewhere[user]

    def _settle(self, user: str) -> None:
        """End those of a user's connections here that are too many.

        Every worker puts them in the same order, so each knows which are its own.
        """
        here = self._here.get(user)
        if not here:
            return
        surplus = len(here) + self.elsewhere(user) - self._limit
        if surplus <= 0 or user not in self._elsewhere:
            return
        order = [(one.opened_at, one.id) for one in here.values()]
        for opened in self._elsewhere[user].values():
            order += [(at, connection) for connection, at in opened.items()]
        order.sort(reverse=not self._evicts)
        for _, connection in order[:surplus]:
            if connection in here:
                self._end(here[connection])
