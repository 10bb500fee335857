"""Which workers have a room open, so that who opens one need not ask them all.

Each room has a home: one of the workers, the same for all who know of the same workers.
Who opens a room tells its home, and hears who else has it. What a home knows may be
late, while workers come and go, or lost with a message: it saves questions, and nobody
relies on it alone (see ``presence``).
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice

from authws.clock import Clock
from authws.decisions import gossip
from authws.decisions.ring import Ring
from authws.live.cluster import Cluster
from authws.live.room import Room

__all__ = ["NO_QUESTION", "Directory", "Holders", "batches"]

Holders = dict[str, list[str] | None]
"""By room: which workers have it; None: too many to name, or not to be found out."""

NAMED_AT_ONCE = 500
"""Rooms in one message: their names fit into 64 KiB."""
NAMED_EACH = 50
"""Workers named for one room; where more have it, all are asked."""
SETTLE = 0.1
"""Seconds in which workers that come or go together are one change."""

NO_QUESTION = 0
"""The number of none; they are counted from 1."""


class Directory:
    """Tells the rooms' homes what is open here, and is the home of some."""

    def __init__(
        self,
        rooms: Mapping[str, Room],
        cluster: Cluster,
        clock: Clock,
        heard: Callable[[Holders], None],
    ) -> None:
        """``heard`` is told who has rooms that were told to other homes."""
        self._heard = heard
        self._rooms = rooms
        self._cluster = cluster
        self._clock = clock
        self._ring: Ring | None = None
        self._told: dict[str, str] = {}
        """By room that is open here: the home that was told so."""
        self._homes: set[str] = set()
        """Those that were told anything."""
        self._holders: defaultdict[str, dict[str, None]] = defaultdict(dict)
        """By room whose home this is: the others that have it."""
        self._closed: list[str] = []
        self._arrived: set[str] = set()
        self._settling: asyncio.Task[None] | None = None
        cluster.on(gossip.Opened, self._take_opened)
        cluster.on(gossip.Holders, self._take_holders)
        cluster.on(gossip.Closed, self._take_closed)
        cluster.on_arrived.append(self._meet)
        cluster.on_gone.append(self._forget)
        cluster.on_missed.append(self._doubt)

    def home(self, name: str) -> str:
        """Return the worker that is a room's home, among those that are known here."""
        if self._ring is None:
            self._ring = Ring({self._cluster.node, *self._cluster.others})
        return self._ring.home(name)

    # ------------------------------------------------------------- what is open here

    async def open(self, names: Iterable[str]) -> Holders:
        """Tell that these rooms are open here, and return who else has each."""
        homes = self._by_home(names)
        asked = [
            self._ask(home, some)
            for home, named in homes.items()
            for some in batches(named)
        ]
        found: Holders = {}
        for answer in await asyncio.gather(*asked):
            found |= answer
        return found

    def close(self, name: str) -> None:
        """Tell that a room is open here no longer."""
        if name in self._told:
            if not self._closed:
                asyncio.get_running_loop().call_soon(self._tell_closed)
            self._closed.append(name)

    def _tell_closed(self) -> None:
        closed, self._closed = self._closed, []
        by_home: defaultdict[str, list[str]] = defaultdict(list)
        for name in closed:
            if name not in self._rooms and name in self._told:  # else open again
                by_home[self._told.pop(name)].append(name)
        for home, named in by_home.items():
            if home != self._cluster.node:
                for some in batches(named):
                    self._cluster.tell(home, gossip.Closed(some))

    async def _ask(self, home: str, names: list[str]) -> Holders:
        if home == self._cluster.node:
            return {name: self._name_holders(name, home) for name in names}
        answers, _ = await self._cluster.ask(
            lambda number: gossip.Opened(number, names), nodes=frozenset({home})
        )
        if home not in answers:
            return dict.fromkeys(names)
        return {name: answers[home].get(name, []) for name in names}

    def _by_home(self, names: Iterable[str]) -> dict[str, list[str]]:
        """Sort rooms by their homes, which are about to be told."""
        homes: defaultdict[str, list[str]] = defaultdict(list)
        for name in names:
            home = self._told[name] = self.home(name)
            homes[home].append(name)
        self._homes |= homes.keys()
        return homes

    # ----------------------------------------------------------- what is open elsewhere

    def _name_holders(self, name: str, but: str) -> list[str] | None:
        holders = [node for node in self._holders.get(name, ()) if node != but]
        if name in self._rooms and but != self._cluster.node:
            holders.append(self._cluster.node)
        return holders if len(holders) <= NAMED_EACH else None

    def _take_opened(self, node: str, opened: gossip.Opened) -> None:
        if opened.replaces:
            self._drop(node, tuple(self._holders))
        for name in opened.rooms:
            self._holders[name][node] = None
        found = {name: self._name_holders(name, node) for name in opened.rooms}
        named = {name: nodes for name, nodes in found.items() if nodes != []}
        if named or opened.id != NO_QUESTION:
            self._cluster.tell(node, gossip.Holders(opened.id, named))

    def _take_holders(self, node: str, holders: gossip.Holders) -> None:
        if holders.id == NO_QUESTION:
            self._heard(holders.rooms)
        else:
            self._cluster.answered(holders.id, node, holders.rooms)

    def _take_closed(self, node: str, closed: gossip.Closed) -> None:
        self._drop(node, closed.rooms)

    def _drop(self, node: str, names: Iterable[str]) -> None:
        for name in names:
            holders = self._holders.get(name, {})
            holders.pop(node, None)
            if not holders:
                self._holders.pop(name, None)

    # ----------------------------------------------------------- workers come and go

    def _meet(self, node: str) -> None:
        """Hear of a worker that is new, or may not have what was told it."""
        self._arrived.add(node)
        self._settle_soon()

    def _doubt(self, node: str | None) -> None:
        if node is None:
            self._arrived |= self._cluster.others.keys()
            self._settle_soon()

    def _forget(self, node: str) -> None:
        self._homes.discard(node)
        self._drop(node, tuple(self._holders))
        self._settle_soon()

    def _settle_soon(self) -> None:
        self._ring = None
        if self._settling is None:
            self._settling = asyncio.create_task(self._settle())

    async def _settle(self) -> None:
        """Tell the homes that are others now, or may not have heard all.

        Whoever tells a home of a room later than another hears of that one, so that
        the two meet however they came to it.
        """
        await self._clock.sleep(SETTLE)
        self._settling = None
        arrived, self._arrived = self._arrived, set()
        told = self._told.copy()
        homes = self._by_home(self._rooms)
        for home in (homes.keys() | arrived) - {self._cluster.node}:
            named = homes.get(home, [])
            if home in arrived:
                self._tell_open(home, named, replaces=True)
            else:
                self._tell_open(home, [n for n in named if told.get(n) != home])
        for name in tuple(self._holders):
            if self.home(name) != self._cluster.node:
                del self._holders[name]

    def _tell_open(
        self, home: str, names: list[str], *, replaces: bool = False
    ) -> None:
        """Tell another worker what it is the home of; if it ``replaces`` what was told
        before, that it is nothing, too."""
        replaces = replaces and home in self._homes
        for some in list(batches(names)) or [[]] * replaces:
            self._cluster.tell(home, gossip.Opened(NO_QUESTION, some, replaces))
            replaces = False


def batches(names: Iterable[str]) -> Iterator[list[str]]:
    """Split names over messages."""
    rest = iter(tuple(names))
    while some := list(islice(rest, NAMED_AT_ONCE)):
        yield some
