"""A stream's consumer: entries in order, each with its offset."""

from __future__ import annotations

from collections.abc import Callable

from authws.brokers.rabbitmq.channel import Channel, Delivery
from authws.brokers.rabbitmq.frames import OFFSET
from authws.brokers.rabbitmq.log import Entry
from authws.brokers.rabbitmq.wire import Connection

__all__ = ["Reader"]

PREFETCH = 200
"""Entries that RabbitMQ sends ahead of our acknowledgements."""
ACKNOWLEDGE_EVERY = 50


class Reader:
    """Reads a stream over one connection for as long as that lives."""

    def __init__(self, take: Callable[[Entry | None], None]) -> None:
        """``take`` is given each entry; None: it does not say where it stands."""
        self._take: Callable[[Entry | None], None] | None = take
        self._next: int | None = None
        """About which offset comes next."""
        self._unacknowledged = 0
        self._channel: Channel | None = None

    async def open(
        self, connection: Connection, stream: str, since: int | None
    ) -> None:
        """Begin at an offset, or with None at the first entry that there still is."""
        self._next = since
        self._channel = await connection.channel()
        await self._channel.consume(
            stream,
            self._hear,
            prefetch=PREFETCH,
            arguments={OFFSET: "first" if since is None else since},
        )

    def close(self) -> None:
        """Hear nothing any more; the consumer ends with the connection."""
        self._take = None

    def _hear(self, delivery: Delivery) -> None:
        if self._take is None or self._channel is None:
            return
        offset = delivery.headers.get(OFFSET, self._next)
        if isinstance(offset, int):
            self._next = offset + 1
            self._take(Entry(offset, delivery.body))
        else:
            self._take(None)
        self._unacknowledged += 1
        if self._unacknowledged >= ACKNOWLEDGE_EVERY:
            self._unacknowledged = 0
            self._channel.acknowledge(delivery.tag)
