"""What is on its way to RabbitMQ: in order, confirmed, and bounded."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import NamedTuple

from pamqp.commands import Basic, Confirm

from authws.brokers.lifeline import CALL_TIMEOUT
from authws.brokers.rabbitmq.channel import Wire
from authws.brokers.rabbitmq.promises import (
    Promise,
    break_promise,
    keep_promise,
    promise,
)
from authws.exceptions import UnavailableError

__all__ = ["Publisher"]

MAX_WAITING = 4096
"""Messages that wait for RabbitMQ to confirm them."""
MAX_WAITING_BYTES = 16_777_216

_PLAIN = Basic.Properties()


class _Waiting(NamedTuple):
    promise: Promise
    size: int
    late: asyncio.TimerHandle


class Publisher:
    """Publishes on a connection of its own: RabbitMQ stops reading from one that
    publishes when memory or disk run out, and what else is on it would stand still."""

    def __init__(
        self, connection: Wire, exchange: str, lose: Callable[[str], None]
    ) -> None:
        """``lose`` is told of a stream that is not there."""
        self._connection = connection
        self._exchange = exchange
        self._lose = lose
        self._tag = 0
        """The number of what was published last."""
        self._waiting: dict[int, _Waiting] = {}
        """By number, in their order: what is not confirmed. What was given up is still
        there, for it is still in a buffer of ours."""
        self._waiting_bytes = 0

    async def open(self) -> None:
        """Open a channel that confirms."""
        self._channel = await self._connection.channel()
        await self._channel.call(Confirm.Select())
        self._channel.confirms = self

    @property
    def is_blocked(self) -> bool:
        """Whether RabbitMQ takes nothing, for being short of memory or disk."""
        return bool(self._connection.blocked)

    def publish(
        self,
        key: str,
        body: bytes,
        *,
        copies: Sequence[str] = (),
        must_arrive: bool = False,
    ) -> Promise:
        """Publish, in the order of the calls. What is returned ends with RabbitMQ's
        confirmation.

        Args:
            key: the routing key.
            body: the record.
            copies: further routing keys.
            must_arrive: it is an error if nothing is bound by the key.

        Raises:
            UnavailableError: here or where it is awaited.
        """
        if self._connection.blocked:
            raise UnavailableError(
                f"RabbitMQ takes no messages: {self._connection.blocked}"
            )
        if (
            len(self._waiting) >= MAX_WAITING
            or self._waiting_bytes + len(body) > MAX_WAITING_BYTES
        ):
            raise UnavailableError("RabbitMQ confirms more slowly than is published")
        tag = self._tag + 1
        properties = _PLAIN
        if copies:  # RabbitMQ's own way to say so; those who get one do not see it
            properties = Basic.Properties(headers={"BCC": list(copies)})
        elif must_arrive:  # by its id it is known again if it is returned
            properties = Basic.Properties(message_id=str(tag))
        self._channel.publish(
            self._exchange, key, properties, body, is_mandatory=must_arrive
        )
        self._tag = tag
        confirmed = promise()
        late = asyncio.get_running_loop().call_later(
            CALL_TIMEOUT,
            break_promise,
            confirmed,
            f"RabbitMQ did not confirm within {CALL_TIMEOUT:g} s",
        )
        self._waiting[tag] = _Waiting(confirmed, len(body), late)
        self._waiting_bytes += len(body)
        return confirmed

    # ---------------------------------------------------------- what the channel tells

    def confirmed(self, tag: int, is_multiple: bool, is_taken: bool) -> None:
        while (
            is_multiple and self._waiting and (first := next(iter(self._waiting))) < tag
        ):
            self._settle(first, is_taken)
        if tag in self._waiting:
            self._settle(tag, is_taken)

    def returned(self, message_id: str) -> None:
        waiting = self._waiting.get(int(message_id)) if message_id.isdigit() else None
        if waiting is not None:
            break_promise(waiting.promise, "the stream is not there")
        self._lose("a stream of ours was deleted")

    def ended(self, why: str) -> None:
        while self._waiting:
            waiting = self._waiting.popitem()[1]
            waiting.late.cancel()
            break_promise(waiting.promise, why)

    def _settle(self, tag: int, is_taken: bool) -> None:
        waiting = self._waiting.pop(tag)
        self._waiting_bytes -= waiting.size
        waiting.late.cancel()
        if is_taken:
            keep_promise(waiting.promise)
        else:
            break_promise(waiting.promise, "RabbitMQ could not store it")
