"""The broker: what it promises, by means of NATS."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Sequence
from typing import TypeVar

from authws.brokers.base import Listener, Replay
from authws.brokers.lifeline import CALL_TIMEOUT, Lifeline
from authws.brokers.nats.connection import Connection
from authws.brokers.nats.heard import Heard
from authws.brokers.nats.lanes import Lanes
from authws.brokers.nats.streams import Stream, live_subject, read_place
from authws.brokers.urls import BrokerUrl
from authws.clock import Clock
from authws.decisions.history import Position, Retention
from authws.exceptions import UnavailableError

__all__ = ["NatsBroker"]

A = TypeVar("A")

PING_TIMEOUT = 2.0
MAX_REPLAYS = 32
"""Histories that are read at once. All rooms may ask in one moment, and the server is
to find time for those who ask whether it is there."""


class _Channel:
    """A channel that is subscribed."""

    __slots__ = ("heard", "name", "sid", "stream", "subject")

    def __init__(
        self, name: str, sid: int, subject: str, stream: Stream | None
    ) -> None:
        self.name = name
        self.sid = sid
        self.subject = subject
        self.stream = stream
        self.heard = Heard()


class NatsBroker:
    """Carries messages through a NATS server, or a cluster of them."""

    crosses_processes = True

    def __init__(
        self,
        address: BrokerUrl,
        *,
        prefix: str,
        kept: Sequence[Retention],
        history_bytes: int,
        clock: Clock | None = None,
    ) -> None:
        """As ``open_broker``. Each ``Retention`` has a stream, and an equal part of
        ``history_bytes``."""
        self.dropped = 0
        self._address = address
        self._prefix = prefix
        self._clock = clock or Clock()
        share = history_bytes and max(1, history_bytes // max(1, len(set(kept))))
        self._streams = {keep: Stream(prefix, keep, share) for keep in kept}
        self._by_name = {s.name.encode(): s for s in self._streams.values()}
        self._channels: dict[str, _Channel] = {}
        self._by_sid: dict[int, _Channel] = {}
        self._sids = itertools.count(1)
        self._lanes = Lanes()
        self._replaying = asyncio.Semaphore(MAX_REPLAYS)
        self._listener: Listener | None = None
        self._link: Connection | None = None
        self._lifeline = Lifeline(
            str(address),
            connect=self._connect,
            probe=self._probe,
            disconnect=self._disconnect,
            clock=self._clock,
        )

    @property
    def is_up(self) -> bool:
        return self._lifeline.is_up

    @property
    def heard_at(self) -> float:
        return self._lifeline.heard_at

    async def start(self, listener: Listener) -> None:
        self._listener = listener
        await self._lifeline.start()

    async def stop(self) -> None:
        await self._lifeline.stop()
        self._channels.clear()
        self._by_sid.clear()

    async def ping(self) -> bool:
        try:
            async with asyncio.timeout(PING_TIMEOUT):
                link = self._live()
                for stream in self._streams.values():
                    await stream.read(link)
                await link.fence()
        except (UnavailableError, TimeoutError):
            return False
        return True

    # ------------------------------------------------------------------ what is asked

    async def subscribe(self, channel: str, keep: Retention | None = None) -> None:
        link = self._live()
        if channel in self._channels:
            await _answered(link.fence())
            return
        stream = None if keep is None else self._streams[keep]
        subject = live_subject(self._prefix, channel)
        new = _Channel(channel, next(self._sids), subject, stream)
        self._channels[channel] = self._by_sid[new.sid] = new
        link.subscribe(new.sid, new.subject)
        try:
            await _answered(link.fence())
        except BaseException:
            self._forget(new)
            raise

    async def unsubscribe(self, channel: str) -> None:
        known = self._channels.get(channel)
        if known is not None:
            self._forget(known)

    def publish(
        self, channel: str, data: bytes, keep: Retention | None = None
    ) -> Awaitable[None] | None:
        link = self._live()
        if keep is None:
            subject = live_subject(self._prefix, channel)
        else:
            subject = self._streams[keep].subject(channel)
        return self._lanes.publish(link, channel, subject, data, keep is not None)

    async def replay(
        self, channel: str, keep: Retention, since: Position | None
    ) -> Replay:
        self._live()
        async with self._replaying:
            link = self._live()
            stream = self._streams[keep]
            known = self._channels.get(channel)
            heard = known.heard if known and known.stream is stream else Heard()
            return await _answered(stream.replay(link, channel, since, heard))

    def _live(self) -> Connection:
        if self._link is None or not self.is_up:
            raise UnavailableError(f"{self._address} cannot be reached")
        return self._link

    def _forget(self, channel: _Channel) -> None:
        if self._channels.get(channel.name) is channel:
            del self._channels[channel.name]
            del self._by_sid[channel.sid]
            if self._link is not None:
                self._link.unsubscribe(channel.sid)

    # ------------------------------------------------------------------ what arrives

    def _arrived(self, sid: int, headers: bytes | None, data: bytes) -> None:
        channel = self._by_sid.get(sid)
        if channel is None or self._listener is None:
            return
        if headers is None:
            self._listener.deliver(channel.name, data, None)
            return
        place = read_place(headers)
        if place is None:
            self.dropped += 1
            return
        name, number, before = place
        stream = self._by_name.get(name)
        if stream is None or stream is not channel.stream:
            # by a worker that was started with other rules
            self._listener.deliver(channel.name, data, None)
            return
        if number <= channel.heard.last:
            channel.heard.forget()  # forged, or from a stream that was made anew
            self.dropped += 1
            self._listener.interrupted((channel.name,))
            return
        stream.heard = max(stream.heard, number)
        if not channel.heard.take(number, before):
            self._listener.interrupted((channel.name,))
        self._listener.deliver(channel.name, data, Position(stream.epoch, number))

    # ------------------------------------------------------------------ the connection

    async def _connect(self) -> None:
        self._link = link = Connection(self._prefix, lost=self._lost, clock=self._clock)
        await link.open(self._address)
        for stream in self._streams.values():
            if await stream.open(link):
                self._begin_anew(stream)
        for channel in self._channels.values():
            link.subscribe(channel.sid, channel.subject)
        await link.fence()
        # In the next turn: what the listener asks for then, it gets. What arrives until
        # then is left out, and so it is when it hears of the interruption.
        asyncio.get_running_loop().call_soon(self._hand_on, link)

    def _hand_on(self, link: Connection) -> None:
        if link.why_lost:
            return
        link.arrived = self._arrived
        for channel in self._channels.values():
            if channel.stream is not None:
                channel.heard.interrupt(channel.stream.confirmed)
        if self._channels and self._listener is not None:
            self._listener.interrupted(tuple(self._channels))

    def _lost(self, why: str) -> None:
        self._lanes.fail(why)
        self._lifeline.lose(why)

    def _begin_anew(self, stream: Stream) -> None:
        for channel in self._channels.values():
            if channel.stream is stream:
                channel.heard.forget()

    async def _probe(self) -> None:
        link = self._live()
        link.expire(self._clock.monotonic() - CALL_TIMEOUT)
        for stream in self._streams.values():
            await stream.probe(link)
        await link.fence()

    async def _disconnect(self) -> None:
        link, self._link = self._link, None
        if link is not None:
            await link.close()


async def _answered(asked: Awaitable[A]) -> A:
    try:
        async with asyncio.timeout(CALL_TIMEOUT):
            return await asked
    except TimeoutError:
        raise UnavailableError("NATS did not answer in time") from None
