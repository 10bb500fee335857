"""This worker among the others: who lives, and what they tell one another.

Nobody is elected and nothing is kept in the broker. Each worker says at an interval
that it lives, and the others believe that for as long as a lease; what is asked goes to
all, and the answers of those who live are waited for, a little.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from authws.clock import Clock
from authws.decisions import gossip
from authws.decisions.envelopes import Kind
from authws.decisions.redaction import log_failure
from authws.exceptions import UnavailableError
from authws.live.carrier import ALL, Carrier, inbox

__all__ = ["Cluster"]

logger = logging.getLogger("authws")

M = TypeVar("M", bound=gossip.Gossip)
N = TypeVar("N", str, str | None)

BEATS_PER_LEASE = 4
ANSWER_WITHIN = 1.0
"""Seconds that an answer is waited for; a worker that lives and is not stuck needs
milliseconds."""
SETTLE = 0.25
"""Seconds in which a new worker hears who else is there, before it lets anybody in."""
RETRY = 0.5
"""Seconds between two tries to enter, the broker being away."""


class Cluster:
    """Knows the other workers. Without a broker between processes there are none."""

    def __init__(self, carrier: Carrier, clock: Clock, lease: float = 10.0) -> None:
        """``lease`` is how many seconds a worker that says nothing is believed to
        live."""
        self.others: dict[str, float] = {}
        """By worker: when it was heard last, in monotonic seconds."""
        self.has_entered = not carrier.is_shared
        """Whether this worker hears the others, and they it."""
        self.on_arrived: list[Callable[[str], None]] = []
        """Told of each worker that was not known, or that may have missed something:
        what was told it, and what it told, may be as good as lost."""
        self.on_forgotten: list[Callable[[str], None]] = []
        """Told of each worker that had not known this one, or had taken it for dead:
        what this one told it is gone."""
        self.on_gone: list[Callable[[str], None]] = []
        """Told of each worker that said goodbye, or whose lease ended."""
        self.on_missed: list[Callable[[str | None], None]] = []
        """Told of each worker of whom something was not heard; None: anything between
        workers may be missing, either way."""
        self._carrier = carrier
        self._clock = clock
        self._lease = lease
        self._handlers: dict[type, Callable[[str, Any], None]] = {
            gossip.Bye: self._bye,
            gossip.Request: self._request,
            gossip.Report: self._report,
        }
        self._answers: dict[str, Callable[[dict[str, Any]], Any]] = {}
        self._numbers = itertools.count(1)
        self._waiting: dict[int, _Gathering] = {}
        self._silent: set[str] = set()
        """Who did not answer last time and was not heard since: not waited for."""
        self._living: asyncio.Task[None] | None = None

    @property
    def node(self) -> str:
        """This worker's own id."""
        return self._carrier.node

    def on(self, kind: type[M], handler: Callable[[str, M], None]) -> None:
        """Have messages of this kind handled; the handler gets who sent it."""
        self._handlers[kind] = handler

    def answers(self, name: str, answer: Callable[[dict[str, Any]], Any]) -> None:
        """Have requests of this name answered."""
        self._answers[name] = answer

    # ------------------------------------------------------------------ start and stop

    async def start(self) -> None:
        """Enter, if the broker lets us; else that is tried until it does."""
        if not self._carrier.is_shared:
            return
        if await self._enter():
            await self._clock.sleep(SETTLE)
        self._living = asyncio.create_task(self._live())

    async def stop(self) -> None:
        """Say goodbye."""
        if self._living is None:
            return
        self._living.cancel()
        await asyncio.gather(self._living, return_exceptions=True)
        self._living = None
        if self.has_entered:
            self.has_entered = False  # whoever heard of us again would wait for us
            await self._say_and_wait(gossip.Bye())

    async def _enter(self) -> bool:
        try:
            await self._carrier.subscribe(ALL)
            await self._carrier.subscribe(inbox(self.node))
        except UnavailableError:
            return False
        self.has_entered = True
        return await self._say_and_wait(gossip.Beat("new"))

    async def _live(self) -> None:
        while not self.has_entered:
            await self._clock.sleep(RETRY)
            await self._enter()
        interval = self._lease / BEATS_PER_LEASE
        while True:
            began = self._clock.monotonic()
            await self._clock.sleep(interval)
            if await self._say_and_wait(gossip.Beat()) and self._carrier.has_lost:
                self._carrier.has_lost = False
                self.missed()
            late = self._clock.monotonic() - began > 2 * interval
            if late or not self._carrier.broker.is_up:
                # it is we who did not hear: nobody is to be blamed for our silence
                self._renew_leases()
            else:
                self._end_leases()

    async def _say_and_wait(self, message: gossip.Gossip) -> bool:
        try:
            sent = self._carrier.send(ALL, Kind.CLUSTER, gossip.encode(message))
            if sent is not None:
                await sent
        except UnavailableError:
            return False
        return True

    # ----------------------------------------------------------------- telling, asking

    def tell_all(self, message: gossip.Gossip) -> None:
        """Say something to every worker; nobody waits for it."""
        if self._carrier.is_shared and self.has_entered:
            self._carrier.tell(ALL, Kind.CLUSTER, gossip.encode(message))

    def tell(self, node: str, message: gossip.Gossip) -> None:
        """Say something to one worker; nobody waits for it."""
        if self.has_entered:
            self._carrier.tell(inbox(node), Kind.CLUSTER, gossip.encode(message))

    async def ask(
        self,
        question: Callable[[int], gossip.Gossip],
        *,
        nodes: frozenset[str] | None = None,
        within: float = ANSWER_WITHIN,
    ) -> tuple[dict[str, Any], frozenset[str]]:
        """Ask all workers, or some, and wait for their answers.

        Args:
            question: makes the message, given the number that answers must carry.
            nodes: whom to ask; None asks all.
            within: seconds to wait for those who live.

        Returns:
            the answers by worker, and the workers of whom there is none.
        """
        asked = frozenset(self.others) if nodes is None else nodes
        awaited = asked - self._silent
        if not asked:
            return {}, frozenset()
        number = next(self._numbers)
        gathering = self._waiting[number] = _Gathering(awaited)
        try:
            if nodes is None:
                self.tell_all(question(number))
            else:
                for node in nodes:
                    self.tell(node, question(number))
            try:
                async with self._clock.timeout(within):
                    await gathering.is_complete.wait()
            except TimeoutError:
                self._silent |= gathering.missing & self.others.keys()
        finally:
            del self._waiting[number]
        return gathering.answers, asked - gathering.answers.keys()

    async def request(
        self, name: str, within: float = ANSWER_WITHIN, **arguments: Any
    ) -> tuple[dict[str, Any], frozenset[str]]:
        """Ask every other worker by name; as ``ask``."""
        return await self.ask(
            lambda number: gossip.Request(number, name, arguments), within=within
        )

    def answered(self, number: int, node: str, content: Any) -> None:
        """Take an answer to a question."""
        gathering = self._waiting.get(number)
        if gathering is not None:
            gathering.take(node, content)

    # ------------------------------------------------------------------------- hearing

    def hear(self, node: str, body: bytes) -> None:
        """Take what another worker says."""
        if not self.has_entered:
            return
        try:
            message = gossip.decode(body)
        except gossip.GossipError:
            self._carrier.refused["malformed"] += 1
            return
        self._silent.discard(node)
        try:
            if isinstance(message, gossip.Beat):
                self._take_beat(node, message)
            elif not isinstance(message, gossip.Bye):
                self.note_life(node)
            handler = self._handlers.get(type(message))
            if handler is not None:
                handler(node, message)
        except Exception:
            log_failure(logger, "a message of worker %s could not be handled", node)

    def missed(self, node: str | None = None) -> None:
        """Hear that something that a worker said is missing, or that anything between
        workers may be, either way: whoever it is about is met anew."""
        hello = gossip.Beat("missed")
        if node is None:
            self._renew_leases()
            self.tell_all(hello)
        else:
            self.tell(node, hello)
        _call(self.on_missed, node)

    def note_life(self, node: str) -> None:
        """Hear any sign of life of a worker: its lease begins anew.

        One that is not known may know us for long, and not know that it was taken for
        dead: it is told that it is new to us.
        """
        if not self._renew_lease(node):
            self.tell(node, gossip.Beat("stranger"))
            _call(self.on_arrived, node)

    def _take_beat(self, node: str, beat: gossip.Beat) -> None:
        if beat.kind == "regular":
            self.note_life(node)
        elif beat.kind == "answer":
            if not self._renew_lease(node):
                _call(self.on_arrived, node)
        else:
            self._renew_lease(node)
            self.tell(node, gossip.Beat("answer"))
            _call(self.on_arrived, node)
            if beat.kind == "stranger":
                _call(self.on_forgotten, node)

    def _bye(self, node: str, _: gossip.Bye) -> None:
        self._forget(node)

    def _request(self, node: str, request: gossip.Request) -> None:
        answer = self._answers.get(request.name)
        if answer is not None:
            content = answer(request.arguments)
            self.tell(node, gossip.Report(request.id, content))

    def _report(self, node: str, report: gossip.Report) -> None:
        self.answered(report.id, node, report.content)

    # -------------------------------------------------------------------------- leases

    def _renew_lease(self, node: str) -> bool:
        """Return whether the worker was known."""
        is_known = node in self.others
        self.others[node] = self._clock.monotonic()
        return is_known

    def _renew_leases(self) -> None:
        now = self._clock.monotonic()
        for node in self.others:
            self.others[node] = now

    def _end_leases(self) -> None:
        oldest = self._clock.monotonic() - self._lease
        for node in [node for node, heard in self.others.items() if heard < oldest]:
            logger.warning("worker %s is silent: it is taken for dead", node)
            self._forget(node)

    def _forget(self, node: str) -> None:
        if self.others.pop(node, None) is None:
            return
        self._silent.discard(node)
        self._carrier.forget(node)
        for gathering in self._waiting.values():
            gathering.give_up(node)
        _call(self.on_gone, node)


def _call(callbacks: Iterable[Callable[[N], None]], node: N) -> None:
    """Tell all of them; one that fails keeps no other from hearing."""
    for callback in callbacks:
        try:
            callback(node)
        except Exception:
            log_failure(logger, "a change among the workers could not be handled")


class _Gathering:
    """The answers to one question."""

    def __init__(self, awaited: frozenset[str]) -> None:
        self.answers: dict[str, Any] = {}
        self.missing = set(awaited)
        self.is_complete = asyncio.Event()
        self._look()

    def take(self, node: str, content: Any) -> None:
        self.answers[node] = content
        self.give_up(node)

    def give_up(self, node: str) -> None:
        self.missing.discard(node)
        self._look()

    def _look(self) -> None:
        if not self.missing:
            self.is_complete.set()
