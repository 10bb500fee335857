"""Between this worker and the broker: what goes out is sealed and numbered, and what
comes in is believed, and in order, or not handed on.

Over the embedded broker nothing leaves the process, and nothing is sealed.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import secrets
from collections import Counter, OrderedDict
from collections.abc import Awaitable, Collection
from typing import Protocol

from authws.brokers.base import Broker, Replay
from authws.clock import Clock
from authws.decisions.complaints import Complaints
from authws.decisions.envelopes import (
    Envelope,
    ForgedEnvelopeError,
    Kind,
    Sealer,
)
from authws.decisions.history import Position, Retention
from authws.exceptions import UnavailableError

__all__ = ["ALL", "Carrier", "ClusterEar", "RoomsEar", "inbox"]

logger = logging.getLogger("authws")

ALL = "@all"
"""The channel on which every worker hears; no room's name holds an ``@``."""
FRESH_FOR = 300
"""Seconds by which what is only carried may seem old, or early: longer than a message
waits anywhere, and than clocks that are set by a server differ."""
MAX_RECENT = 4096
"""Messages that are remembered, so that none of them is heard twice."""
NOT_COUNTED = 0
"""The number of what is kept: its place in the history tells it apart."""
COUNT = 1 << 32
"""A count of messages begins behind a multiple of it: so the first of a new count is
higher than all of the old one, and is known for the first."""


def inbox(node: str) -> str:
    """Return the channel on which one worker hears."""
    return f"@{node}"


class RoomsEar(Protocol):
    """Is told what arrives for rooms. Its methods neither raise nor block."""

    def message(self, room: str, body: bytes, position: Position | None) -> None:
        """Take a room's message."""

    def change(self, room: str, node: str, body: bytes) -> None:
        """Take a change of who is in a room by way of another worker."""

    def interrupted(self, rooms: Collection[str]) -> None:
        """Hear that in these rooms something may be missing."""


class ClusterEar(Protocol):
    """Is told what workers say. Its methods neither raise nor block."""

    def hear(self, node: str, body: bytes) -> None:
        """Take what another worker says."""

    def missed(self, node: str | None = None) -> None:
        """Hear that something that a worker said is missing, or that anything between
        workers may be, either way."""


class Carrier:
    """Sends for this worker, and listens for it."""

    def __init__(self, broker: Broker, keys: Collection[bytes], clock: Clock) -> None:
        """``keys`` are made of the service's secrets, the newest last."""
        self.broker = broker
        self.has_lost = False
        """Whether something that nobody waits for was not taken by the broker."""
        self._clock = clock
        self._complaints = Complaints(logger, clock.monotonic)
        self._recent: OrderedDict[int, None] = OrderedDict()
        """What was kept, and heard last."""
        self.node = secrets.token_urlsafe(8)
        """This worker's id, another one each time that it starts."""
        self.refused: Counter[str] = Counter()
        """What was not handed on, by why."""
        self._sealer = Sealer(tuple(keys)) if broker.crosses_processes else None
        self._counts = itertools.count(1)
        self._sent: dict[str, int] = {}
        """By channel: the number of what was sent last."""
        self._heard: dict[str, dict[str, int]] = {}
        """By channel and worker: the number of what was heard last."""
        self._rooms: RoomsEar | None = None
        self._cluster: ClusterEar | None = None

    @property
    def is_shared(self) -> bool:
        """Whether there may be other workers."""
        return self._sealer is not None

    async def start(self, rooms: RoomsEar, cluster: ClusterEar) -> None:
        """Begin to hand on what arrives."""
        self._rooms, self._cluster = rooms, cluster
        await self.broker.start(self)

    async def subscribe(self, channel: str, keep: Retention | None = None) -> None:
        """Hear what is said on a channel.

        Raises:
            UnavailableError: the broker cannot be reached.
        """
        self._heard[channel] = {}
        try:
            await self.broker.subscribe(channel, keep)
        except UnavailableError:
            del self._heard[channel]
            raise

    async def unsubscribe(self, channel: str) -> None:
        """Hear it no longer."""
        self._sent.pop(channel, None)
        self._heard.pop(channel, None)
        await self.broker.unsubscribe(channel)

    def send(
        self, channel: str, kind: Kind, body: bytes, keep: Retention | None = None
    ) -> Awaitable[None] | None:
        """Say something on a channel, in the order of the calls.

        Raises:
            UnavailableError: here or where it is awaited.
        """
        if self._sealer is None:
            return self.broker.publish(channel, body, keep)
        number = 0  # what is kept has a position instead
        if keep is None:
            last = self._sent.get(channel) or next(self._counts) * COUNT
            number = self._sent[channel] = last + 1
        at = int(self._clock.now())
        envelope = Envelope(kind, self.node, number, body, at)
        return self.broker.publish(channel, self._sealer.seal(channel, envelope), keep)

    def tell(self, channel: str, kind: Kind, body: bytes) -> None:
        """Say something that nobody waits for; that it was lost is noted."""
        try:
            handed_over = self.send(channel, kind, body)
        except UnavailableError:
            self.has_lost = True
            return
        if handed_over is not None:
            asyncio.ensure_future(handed_over).add_done_callback(self._note_loss)

    def _note_loss(self, told: asyncio.Future[None]) -> None:
        if not told.cancelled() and told.exception() is not None:
            self.has_lost = True

    async def replay(
        self, channel: str, keep: Retention, since: Position | None
    ) -> Replay:
        """Return what a room kept since a position, opened; what is not genuine is
        left out, and may have been some worker's with another key: it is not whole.

        Raises:
            UnavailableError: the broker cannot be reached.
        """
        replay = await self.broker.replay(channel, keep, since)
        if self._sealer is None:
            return replay
        opened = [(place, self._open(channel, data)) for place, data in replay.messages]
        messages = tuple(
            (place, envelope.body)
            for place, envelope in opened
            if envelope is not None and envelope.kind == Kind.MESSAGE
        )
        is_whole = replay.is_complete and all(one is not None for _, one in opened)
        return replay._replace(messages=messages, is_complete=is_whole)

    def forget(self, node: str) -> None:
        """Hear that a worker has ended."""
        self._sent.pop(inbox(node), None)
        for heard in self._heard.values():
            heard.pop(node, None)

    # ------------------------------------------------------------ what the broker tells

    def deliver(self, channel: str, data: bytes, position: Position | None) -> None:
        rooms, cluster = self._rooms, self._cluster
        assert rooms is not None  # noqa: S101 - it listens since ``start``
        assert cluster is not None  # noqa: S101
        if self._sealer is None:
            rooms.message(channel, data, position)
            return
        envelope = self._open(channel, data)
        if envelope is None:
            return
        if envelope.number == NOT_COUNTED:
            if not self._is_one_of_its_kind(channel, envelope, position):
                return
        elif not self._is_next(channel, envelope):
            return
        if envelope.kind == Kind.CLUSTER:
            if envelope.node != self.node and channel.startswith("@"):
                cluster.hear(envelope.node, envelope.body)
        elif channel.startswith("@"):
            self.refused["misplaced"] += 1
        elif envelope.kind == Kind.MESSAGE:
            rooms.message(channel, envelope.body, position)
        elif envelope.node != self.node:
            rooms.change(channel, envelope.node, envelope.body)

    def interrupted(self, channels: Collection[str]) -> None:
        assert self._rooms is not None  # noqa: S101
        assert self._cluster is not None  # noqa: S101
        for channel in channels:
            if channel in self._heard:
                self._heard[channel] = {}  # a count that goes on is no gap again
        rooms = [name for name in channels if not name.startswith("@")]
        if rooms:
            self._rooms.interrupted(rooms)
        if len(rooms) < len(channels):
            self.has_lost = False  # whoever is met anew is told all of it
            self._cluster.missed()

    def _open(self, channel: str, data: bytes) -> Envelope | None:
        assert self._sealer is not None  # noqa: S101 - the caller looked
        try:
            return self._sealer.open(channel, data)
        except ForgedEnvelopeError:
            self.refused["forged"] += 1
            self._complaints.make(
                "something came from the broker that no key of ours has sealed: do "
                "all hosts have the same AUTHWS_SECRET_KEYS, or is the prefix used by "
                "another deployment?"
            )
            return None

    def _is_next(self, channel: str, envelope: Envelope) -> bool:
        """Tell whether this is to be handed on; say first if something is missing."""
        heard = self._heard.get(channel)
        if heard is None:  # left a moment ago
            return False
        if not self._is_fresh(envelope):
            return False
        last = heard.get(envelope.node)
        number = envelope.number
        if number <= (last or 0):
            self.refused["doubled"] += 1
            return False
        if last is not None and number != last + 1 and number % COUNT != 1:
            self.refused["missed"] += 1
            self._tell_gap(channel, envelope.node)
        heard[envelope.node] = number
        return True

    def _is_fresh(self, envelope: Envelope) -> bool:
        """Tell whether it was sent of late: what is old, somebody else repeats."""
        age = self._clock.now() - envelope.at
        if -FRESH_FOR <= age <= FRESH_FOR:
            return True
        self.refused["stale"] += 1
        self._complaints.make(
            f"what worker {envelope.node} says is not heard: it seems to be from long "
            "ago, or from later: is it repeated, or do the hosts' clocks differ?"
        )
        return False

    def _is_one_of_its_kind(
        self, channel: str, envelope: Envelope, position: Position | None
    ) -> bool:
        """Tell whether what has no number is to be handed on.

        Where it has no place either, the sender keeps this room otherwise than we do:
        so it is while workers are restarted with other rules.
        """
        seal = hash((channel, envelope.node, envelope.at, envelope.body))
        if position is None:
            is_kept = envelope.kind == Kind.MESSAGE and channel in self._heard
            if not is_kept or not self._is_fresh(envelope):
                return False
            if seal in self._recent:
                self.refused["doubled"] += 1
                return False
            self._complaints.make(
                "another worker keeps a room otherwise than this one, and what it "
                "says has no place in the history here: do all hosts have the same "
                "AUTHWS_HISTORY?"
            )
        self._recent[seal] = None
        if len(self._recent) > MAX_RECENT:
            self._recent.popitem(last=False)
        return True

    def _tell_gap(self, channel: str, node: str) -> None:
        assert self._rooms is not None  # noqa: S101
        assert self._cluster is not None  # noqa: S101
        if channel.startswith("@"):
            self._cluster.missed(node)
        else:
            self._rooms.interrupted((channel,))
