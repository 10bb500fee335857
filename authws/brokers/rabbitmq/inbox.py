"""This worker's queue: what is carried comes through it."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Callable

from pamqp.commands import Queue

from authws.brokers.rabbitmq.channel import Delivery
from authws.brokers.rabbitmq.layout import Layout
from authws.brokers.rabbitmq.promises import Promise
from authws.brokers.rabbitmq.records import Carried, decode
from authws.brokers.rabbitmq.wire import Connection

__all__ = ["Inbox"]

logger = logging.getLogger("authws")

MAX_MESSAGES = 20_000
"""Messages that RabbitMQ holds for a worker that reads too slowly; then the oldest
go."""
MAX_BYTES = 33_554_432
LOSS_INTERVAL = 1.0
"""Seconds between two times of hearing that some went."""


class Inbox:
    """An exclusive queue, which ends with the connection.

    What RabbitMQ drops from it when it is full goes on to a second queue, of one
    message: so this worker hears that it has lost something, and the last loss for
    sure.
    """

    def __init__(
        self,
        connection: Connection,
        layout: Layout,
        *,
        hear: Callable[[str, bytes], None],
        miss: Callable[[], None],
        drop: Callable[[], None],
    ) -> None:
        """``hear`` is given what arrives; ``miss`` told that some did not, and ``drop``
        of what is none of ours in form."""
        self._connection = connection
        self._exchange = layout.exchange
        self._queue = f"{layout.prefix}.worker.{secrets.token_urlsafe(9)}"
        self._hear = hear
        self._miss = miss
        self._drop = drop

    async def open(self) -> None:
        """Make the queue, and begin to read it."""
        losses = f"{self._queue}.losses"
        key = f"!{losses}"  # which no channel is called
        self._channel = channel = await self._connection.channel()
        channel.call(
            Queue.Declare(
                queue=self._queue,
                exclusive=True,
                auto_delete=True,
                arguments={
                    "x-queue-type": "classic",  # whatever is usual there
                    "x-max-length": MAX_MESSAGES,
                    "x-max-length-bytes": MAX_BYTES,
                    "x-overflow": "drop-head",
                    "x-dead-letter-exchange": self._exchange,
                    "x-dead-letter-routing-key": key,
                },
            )
        )
        channel.call(
            Queue.Declare(
                queue=losses,
                exclusive=True,
                auto_delete=True,
                arguments={"x-queue-type": "classic", "x-max-length": 1},
            )
        )
        await channel.call(
            Queue.Bind(queue=losses, exchange=self._exchange, routing_key=key)
        )
        self._losses = await self._connection.channel()
        await self._losses.consume(losses, self._take_loss, prefetch=1)
        await channel.consume(self._queue, self._take)

    def bind(self, channel: str) -> Promise:
        """Have what is carried on a channel come here. Takes effect in the order of the
        calls; what is returned ends when it did.

        Raises:
            UnavailableError: here or where it is awaited.
        """
        return self._channel.call(
            Queue.Bind(queue=self._queue, exchange=self._exchange, routing_key=channel)
        )

    def unbind(self, channel: str) -> Promise:
        """Have it come here no longer; otherwise as ``bind``."""
        return self._channel.call(
            Queue.Unbind(
                queue=self._queue, exchange=self._exchange, routing_key=channel
            )
        )

    def _take(self, delivery: Delivery) -> None:
        match decode(delivery.body):
            case Carried(channel, data):
                self._hear(channel, data)
            case _:
                self._drop()

    def _take_loss(self, delivery: Delivery) -> None:
        logger.warning("RabbitMQ dropped messages: this worker reads them too slowly")
        self._miss()
        # the next one comes when this one is acknowledged
        asyncio.get_running_loop().call_later(
            LOSS_INTERVAL, self._losses.acknowledge, delivery.tag
        )
