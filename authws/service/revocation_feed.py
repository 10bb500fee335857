"""How a worker hears of what others revoked: they tell it, and it reads it again.

What was told may be lost; what is in the database is read at an interval, so a lost
push costs no more than that. A worker that can neither hear nor read knows nothing of
what was revoked, and after a while has to take it that everything was: it fails closed.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

import msgspec

from authws.brokers.base import Broker
from authws.clock import Clock
from authws.decisions import gossip
from authws.decisions.redaction import log_failure
from authws.exceptions import UnavailableError
from authws.live.authority import SessionRecords
from authws.live.hub import Hub
from authws.stores.sessions import Revocation, Sessions

__all__ = ["RevocationFeed"]

CLOCK_STEP = 1.0
"""Seconds by which the wall clock may differ from what it was before it counts as
set; slewing moves it by less than a millisecond each second."""
OVERLAP = 40.0
"""Seconds that revocations are read again: a transaction shows later than its time, by
as long as a statement may wait for a lock (30 s on PostgreSQL)."""
LOOK_EVERY = 1.0
"""Seconds between two looks whether anything can be heard or read."""

logger = logging.getLogger("authws")


class RevocationFeed:
    """Brings revocations in, whoever made them, and tells of those made here."""

    def __init__(
        self,
        sessions: Sessions,
        records: SessionRecords,
        hub: Hub,
        broker: Broker,
        clock: Clock,
        *,
        interval: float,
        fail_closed_after: float,
        went_blind: Callable[[bool], None],
    ) -> None:
        """A ``fail_closed_after`` of 0 is off.

        Args:
            sessions: where revocations are kept.
            records: what is remembered of sessions.
            hub: the connections that are open here.
            broker: by which workers tell one another.
            clock: where the time is read.
            interval: seconds between two readings.
            fail_closed_after: seconds after which a worker that can neither hear nor
                read takes everything to be revoked.
            went_blind: told True when nothing could be known for that long, and False
                when it can be again.
        """
        self.is_blind = False
        self._sessions = sessions
        self._records = records
        self._hub = hub
        self._broker = broker
        self._clock = clock
        self._interval = interval
        self._fail_closed_after = fail_closed_after
        self._went_blind = went_blind
        self._since = clock.now() - OVERLAP
        self._seen: frozenset[Revocation] = frozenset()
        self._drift = clock.now() - clock.monotonic()
        self._knew_at = clock.monotonic()
        self._soon = asyncio.Event()
        hub.cluster.on(gossip.Revoked, self._told)
        hub.cluster.on_missed.append(lambda _: self._soon.set())
        hub.cluster.answers("revoke", self._asked)

    def start(self) -> list[asyncio.Task[None]]:
        """Bring revocations in until these tasks are cancelled."""
        return [
            asyncio.create_task(self._read_at_intervals()),
            asyncio.create_task(self._look_out()),
        ]

    # -------------------------------------------------------------- acting, and telling

    def end(self, revocation: Revocation) -> int:
        """Act on what was just revoked, which the database has already, and tell the
        other workers; return how many connections that ended here."""
        ended = self._act(revocation)
        kind, key, at = revocation.kind, revocation.key, revocation.at
        self._hub.cluster.tell_all(gossip.Revoked(kind, key, at))
        return ended

    async def end_everywhere(self, revocation: Revocation) -> int:
        """The same, and return how many connections that ended on all workers."""
        ended = self._act(revocation)
        answers, _ = await self._hub.cluster.request(
            "revoke", kind=revocation.kind, key=revocation.key, at=revocation.at
        )
        return ended + sum(count for count in answers.values() if type(count) is int)

    def _act(self, revocation: Revocation) -> int:
        kind, key, at = revocation.kind, revocation.key, revocation.at
        if kind == "session":
            self._records.evict(key)
            return self._hub.revoke_session(key, at)
        self._records.evict_subject(key)
        if kind == "scopes":  # what is open keeps them until it is renewed
            return 0
        return self._hub.revoke_subject(key, at)

    def _told(self, _: str, revoked: gossip.Revoked) -> None:
        self._act(Revocation(revoked.kind, revoked.key, revoked.at))

    def _asked(self, arguments: dict[str, Any]) -> int:
        return self._act(msgspec.convert(arguments, Revocation))

    # ------------------------------------------------------------------------- reading

    async def _read_at_intervals(self) -> None:
        while True:
            await self._wait()
            self._compare_clocks()
            await self._read()

    async def _wait(self) -> None:
        try:
            async with self._clock.timeout(self._interval):
                await self._soon.wait()
        except TimeoutError:
            return
        self._soon.clear()

    def _compare_clocks(self) -> None:
        drift = self._clock.now() - self._clock.monotonic()
        step = drift - self._drift
        self._drift = drift
        if abs(step) > CLOCK_STEP:
            logger.warning("the clock was set by %+.1f s", step)
            # forwards it goes when a suspended machine goes on, too: others went on
            # revoking then, and their time is not to be passed over
            self._since += min(step, 0.0)
            self._hub.check_deadlines()

    async def _read(self) -> None:
        """Act on what other processes revoked: a lost push heals here."""
        started = self._clock.now()
        try:
            found = await self._sessions.revocations_since(self._since)
        except UnavailableError as error:
            logger.warning("revocations could not be read: %s", error)
            return
        except Exception:
            log_failure(logger, "revocations could not be read")
            return
        for revocation in found:
            # rights again and again: a row that was being read may be kept only now
            if revocation not in self._seen or revocation.kind == "scopes":
                self._act(revocation)
        self._since = started - OVERLAP
        self._seen = frozenset(found)
        self._know(self._clock.monotonic())

    # ------------------------------------------------------------------ failing closed

    def _know(self, at: float) -> None:
        self._knew_at = max(self._knew_at, at)
        self._set_blind(False)

    async def _look_out(self) -> None:
        while True:
            await self._clock.sleep(LOOK_EVERY)
            unknown = self._clock.monotonic() - self._knew_at
            if self._broker.is_up and self._hub.cluster.has_entered:
                self._know(self._broker.heard_at)
            elif unknown >= self._fail_closed_after > 0:
                self._set_blind(True)

    def _set_blind(self, is_blind: bool) -> None:
        if is_blind == self.is_blind:
            return
        self.is_blind = is_blind
        if is_blind:
            logger.error(
                "neither the broker nor the database can be reached: nothing is known "
                "of what was revoked, and every connection ends"
            )
        else:
            logger.warning("revocations are known again: connections are admitted")
        self._went_blind(is_blind)
