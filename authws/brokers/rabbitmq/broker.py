"""The broker itself: what the others of this package do, as ``base`` promises it."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import ssl
from collections.abc import AsyncIterator, Awaitable, Sequence
from functools import partial
from typing import NamedTuple

from pamqp.commands import Exchange

from authws.brokers.base import Listener, Replay
from authws.brokers.lifeline import CALL_TIMEOUT, Lifeline
from authws.brokers.rabbitmq.channel import Channel
from authws.brokers.rabbitmq.inbox import Inbox
from authws.brokers.rabbitmq.layout import Layout
from authws.brokers.rabbitmq.partition import Partition
from authws.brokers.rabbitmq.promises import Promise, outcome, shared
from authws.brokers.rabbitmq.publisher import Publisher
from authws.brokers.rabbitmq.records import Carried, Kept
from authws.brokers.rabbitmq.wire import Connection, Login
from authws.brokers.urls import BrokerUrl
from authws.clock import Clock
from authws.decisions.history import Position, Retention
from authws.exceptions import ConfigurationError, UnavailableError

__all__ = ["RabbitmqBroker"]

PING_TIMEOUT = 1.5
RESTORE_TIMEOUT = 2.0
"""Seconds in which channels are subscribed again before the connection counts as up;
the rest of them follows."""
RESTORE_BATCH = 1000
NOWHERE = "!"
"""A routing key that nothing is bound by: no channel is called so."""


class _Subscription:
    """A channel that is subscribed, from the call of ``subscribe`` on."""

    def __init__(self, partition: Partition | None) -> None:
        self.partition = partition
        """From where it is heard; None: through the inbox."""
        self.is_heard = False
        """Whether what arrives is handed on: once that call has ended."""


class _Session(NamedTuple):
    """What there is while there is a connection."""

    control: Channel
    publisher: Publisher
    inbox: Inbox


class RabbitmqBroker:
    """Carries through RabbitMQ, and keeps in its streams."""

    crosses_processes = True

    def __init__(
        self,
        address: BrokerUrl,
        *,
        prefix: str,
        kept: Sequence[Retention] = (),
        history_bytes: int = 67_108_864,
        clock: Clock | None = None,
    ) -> None:
        """Raises:
        ConfigurationError: the URL has nobody to log in as, or no good ``partitions``.
        """
        if not address.username and "cert" not in address.options:
            raise ConfigurationError(
                "AUTHWS_BROKER_URL: RabbitMQ wants a user and a password, or a "
                "certificate (?cert=FILE&key=FILE)"
            )
        self.dropped = 0
        self._address = address
        self._clock = clock or Clock()
        self._layout = Layout(address, prefix, kept, history_bytes)
        self._lifeline = Lifeline(
            str(address),
            connect=self._connect,
            probe=self._probe,
            disconnect=self._disconnect,
            clock=clock,
        )
        self._partitions = {
            keep: [
                Partition(
                    stream,
                    clock=self._clock,
                    hear=self._deliver,
                    miss=self._miss,
                    drop=self._drop,
                    lose=self._lifeline.lose,
                )
                for stream in streams
            ]
            for keep, streams in self._layout.streams.items()
        }
        self._subscriptions: dict[str, _Subscription] = {}
        self._listener: Listener | None = None
        self._tls: ssl.SSLContext | None = None
        self._hosts = itertools.cycle(address.hosts)
        self._connections: list[Connection] = []
        self._session: _Session | None = None
        self._has_heard = False
        """Whether anything arrived since RabbitMQ was asked for a sign of life."""

    @property
    def is_up(self) -> bool:
        # who may not publish says nothing, beats included, and is told nothing new
        is_blocked = self._session is not None and self._session.publisher.is_blocked
        return self._lifeline.is_up and not is_blocked

    @property
    def heard_at(self) -> float:
        return self._lifeline.heard_at

    async def start(self, listener: Listener) -> None:
        self._listener = listener
        self._tls = self._address.ssl_context()
        await self._lifeline.start()

    async def subscribe(self, channel: str, keep: Retention | None = None) -> None:
        session = self._connected()
        partition = None if keep is None else self._partition(channel, keep)
        mine = self._subscriptions.get(channel)
        if mine is None or mine.partition is not partition:
            mine = self._subscriptions[channel] = _Subscription(partition)
        try:
            async with _in_time():
                if partition is None:
                    await session.inbox.bind(channel)
                else:
                    await partition.caught_up()
        except BaseException:
            if self._subscriptions.get(channel) is mine:
                with contextlib.suppress(UnavailableError):
                    self._forget(channel)
            raise
        mine.is_heard = True

    async def unsubscribe(self, channel: str) -> None:
        with contextlib.suppress(UnavailableError):
            async with _in_time():
                unbound = self._forget(channel)
                if unbound is not None:
                    await unbound

    def publish(
        self, channel: str, data: bytes, keep: Retention | None = None
    ) -> Awaitable[None]:
        session = self._connected()
        if keep is not None:
            message = Kept(channel, data, self._clock.now())
            return self._partition(channel, keep).write(message)
        # what is kept comes from a stream, and what is not has to come from there too,
        # if it is to arrive in the order of the calls
        carried = Carried(channel, data)
        subscribed = self._subscriptions.get(channel)
        if subscribed is None:  # we do not know what the channel keeps
            copies = self._layout.keys_of(channel)
            return session.publisher.publish(channel, carried.encode(), copies=copies)
        if subscribed.partition is None:
            return session.publisher.publish(channel, carried.encode())
        return subscribed.partition.write(carried)

    async def replay(
        self, channel: str, keep: Retention, since: Position | None
    ) -> Replay:
        self._connected()
        partition = self._partition(channel, keep)
        async with _in_time():
            await partition.caught_up()
        return partition.shelf.replay(channel, keep, since)

    async def ping(self) -> bool:
        if self._session is None:
            return False
        try:
            async with asyncio.timeout(PING_TIMEOUT):
                await self._session.publisher.publish(NOWHERE, b"")
        except (TimeoutError, UnavailableError):
            return False
        return True

    async def stop(self) -> None:
        await self._lifeline.stop()
        self._subscriptions.clear()

    def _connected(self) -> _Session:
        if self._session is None:
            raise UnavailableError("RabbitMQ cannot be reached")
        return self._session

    def _forget(self, channel: str) -> Promise | None:
        """Hand on a channel no longer; what is returned ends when nothing of it comes
        any more."""
        forgotten = self._subscriptions.pop(channel, None)
        if forgotten is None or forgotten.partition is not None or not self._session:
            return None
        return self._session.inbox.unbind(channel)

    def _partition(self, channel: str, keep: Retention) -> Partition:
        return self._partitions[keep][self._layout.place_of(channel)]

    def _all_partitions(self) -> list[Partition]:
        return list(itertools.chain(*self._partitions.values()))

    # ------------------------------------------------------------------ the connection

    async def _connect(self) -> None:
        host, port = next(self._hosts)
        login = Login(
            host=host,
            port=port,
            virtual_host=self._address.path or "/",
            username=self._address.username,
            password=self._address.password,
            tls=self._tls,
        )
        # two: RabbitMQ holds up one that publishes when it runs out of memory or disk
        reading, writing = self._connections = [
            Connection(self._lifeline.lose) for _ in range(2)
        ]
        await reading.open(login)
        await writing.open(login)
        await self._layout.declare(reading)
        publisher = Publisher(writing, self._layout.exchange, self._lifeline.lose)
        await publisher.open()
        inbox = Inbox(
            reading,
            self._layout,
            hear=partial(self._deliver, None, position=None),
            miss=partial(self._miss, None),
            drop=self._drop,
        )
        await inbox.open()
        self._session = _Session(await reading.channel(), publisher, inbox)
        await self._resume(reading, publisher)
        restoring = shared(self._restore(inbox))
        restoring.add_done_callback(self._restored)
        if (await asyncio.wait({restoring}, timeout=RESTORE_TIMEOUT))[0]:
            await outcome(restoring)

    async def _resume(self, reading: Connection, publisher: Publisher) -> None:
        """Read on in every stream that was read."""
        resumed = await asyncio.gather(
            *(
                partition.connect(reading, publisher)
                for partition in self._all_partitions()
            ),
            return_exceptions=True,
        )
        for failed in filter(None, resumed):
            raise failed

    async def _restore(self, inbox: Inbox) -> None:
        """Go on with all that is subscribed, and tell where something is missing."""
        partitions = self._all_partitions()
        have_gaps = await asyncio.gather(*(each.begun() for each in partitions))
        for partition, has_gap in zip(partitions, have_gaps, strict=True):
            if has_gap:
                self._miss(partition)
        names = self._heard_from(None)
        for start in range(0, len(names), RESTORE_BATCH):
            batch = names[start : start + RESTORE_BATCH]
            wanted = [name for name in batch if name in self._subscriptions]
            await asyncio.gather(*map(inbox.bind, wanted))
            self._interrupt(wanted)

    def _restored(self, restoring: asyncio.Task[None]) -> None:
        if not restoring.cancelled() and (error := restoring.exception()) is not None:
            self._lifeline.lose(error)

    async def _probe(self) -> None:
        heard, self._has_heard = self._has_heard, False
        # an answer would come behind all that is on its way to us
        if not heard:
            await self._connected().control.call(
                Exchange.Declare(exchange=self._layout.exchange, passive=True)
            )

    async def _disconnect(self) -> None:
        self._session = None
        for partition in self._all_partitions():
            partition.disconnect()
        connections, self._connections = self._connections, []
        await asyncio.gather(*(connection.close() for connection in connections))

    # -------------------------------------------------------------------- what arrives

    def _deliver(
        self,
        partition: Partition | None,
        channel: str,
        data: bytes,
        position: Position | None,
    ) -> None:
        self._has_heard = True
        subscribed = self._subscriptions.get(channel)
        if (
            subscribed is not None
            and subscribed.is_heard
            and subscribed.partition is partition
        ):
            assert self._listener is not None  # noqa: S101 - it was started
            self._listener.deliver(channel, data, position)

    def _drop(self) -> None:
        self.dropped += 1

    def _miss(self, partition: Partition | None) -> None:
        self._interrupt(self._heard_from(partition))

    def _heard_from(self, partition: Partition | None) -> list[str]:
        return [
            name
            for name, subscribed in self._subscriptions.items()
            if subscribed.is_heard and subscribed.partition is partition
        ]

    def _interrupt(self, names: Sequence[str]) -> None:
        wanted = [name for name in names if name in self._subscriptions]
        if wanted:
            assert self._listener is not None  # noqa: S101 - it was started
            self._listener.interrupted(wanted)


@contextlib.asynccontextmanager
async def _in_time() -> AsyncIterator[None]:
    """Let a call take no longer than it may, and fail in the one way it may."""
    try:
        async with asyncio.timeout(CALL_TIMEOUT):
            yield
    except TimeoutError:
        raise UnavailableError(
            f"RabbitMQ did not answer within {CALL_TIMEOUT:g} s"
        ) from None
