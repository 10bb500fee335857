"""What there is in RabbitMQ: the names, and the bounds of the streams."""

from __future__ import annotations

import itertools
import logging
import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pamqp.commands import Exchange, Queue

from authws.brokers.rabbitmq.channel import RefusedError
from authws.brokers.rabbitmq.wire import Connection
from authws.brokers.urls import BrokerUrl
from authws.decisions.history import Retention
from authws.exceptions import ConfigurationError

__all__ = ["Layout", "Stream"]

logger = logging.getLogger("authws")

PARTITIONS = 8
"""Streams for each amount of history that some rooms keep, if the URL does not say."""
MAX_PARTITIONS = 64
MIN_SEGMENT_BYTES = 65_536
MAX_SEGMENT_BYTES = 1_048_576
"""What is too old, or too much, goes by whole segments, and never the last one."""
SEGMENTS = 8
"""How many of them a stream has at least, if its bytes are bounded."""

BOUNDS = ("x-max-length-bytes", "x-stream-max-segment-size-bytes")
"""What of a stream depends on AUTHWS_HISTORY_BYTES, which may change."""


@dataclass(frozen=True, slots=True)
class Stream:
    """One partition's stream."""

    name: str
    keep: Retention
    max_bytes: int
    """0 is off."""

    @property
    def key(self) -> str:
        """By which it is bound; no channel is called so."""
        return f"!{self.name}"

    @property
    def segment_bytes(self) -> int:
        if not self.max_bytes:
            return MAX_SEGMENT_BYTES
        share = self.max_bytes // SEGMENTS
        return max(MIN_SEGMENT_BYTES, min(MAX_SEGMENT_BYTES, share))

    @property
    def arguments(self) -> dict[str, Any]:
        """What it is declared with."""
        bound = {"x-max-length-bytes": self.max_bytes} if self.max_bytes else {}
        return {
            "x-queue-type": "stream",
            "x-max-age": f"{math.ceil(self.keep.seconds)}s",
            "x-stream-max-segment-size-bytes": self.segment_bytes,
            **bound,
        }


class Layout:
    """The exchange and the streams of one deployment. A worker's queue is its
    ``Inbox``'s.

    Whatever would make two streams different is in the name, so that no channel's
    offsets are counted in two: a deployment that keeps something else, or in another
    number of partitions, does not meet the old streams.
    """

    def __init__(
        self,
        address: BrokerUrl,
        prefix: str,
        kept: Sequence[Retention],
        history_bytes: int,
    ) -> None:
        """``history_bytes`` is for all streams together.

        Raises:
            ConfigurationError: ``partitions`` in the URL is no number of them.
        """
        self.prefix = prefix
        self.exchange = f"{prefix}.rooms"
        """Where all is published. The routing key is a channel, for the workers that
        have it bound; or a stream's."""
        partitions = _partitions(address)
        share = history_bytes // (partitions * max(1, len(kept)))
        parts = [f"{number}of{partitions}" for number in range(1, partitions + 1)]
        self.streams = {
            keep: [
                Stream(f"{prefix}.history.{_name(keep)}.{part}", keep, share)
                for part in parts
            ]
            for keep in kept
        }
        self._partitions = partitions

    def place_of(self, channel: str) -> int:
        """Return which of the streams of its history has a channel's messages."""
        return zlib.crc32(channel.encode()) % self._partitions

    def keys_of(self, channel: str) -> list[str]:
        """Return the routing keys of all streams in which a channel may be."""
        if channel.startswith("@"):
            return []
        place = self.place_of(channel)
        return [streams[place].key for streams in self.streams.values()]

    async def declare(self, connection: Connection) -> None:
        """Make what is not there yet.

        Raises:
            UnavailableError: it cannot be.
        """
        channel = await connection.channel()
        await channel.call(
            Exchange.Declare(
                exchange=self.exchange, exchange_type="direct", durable=True
            )
        )
        trial = await connection.channel(is_trial=True)
        for stream in itertools.chain(*self.streams.values()):
            try:
                await trial.call(
                    Queue.Declare(
                        queue=stream.name, durable=True, arguments=stream.arguments
                    )
                )
            except RefusedError as refused:
                if not any(f"'{bound}'" in str(refused) for bound in BOUNDS):
                    raise
                logger.warning(
                    "RabbitMQ has %s with other bounds, and they stay as they are: "
                    "AUTHWS_HISTORY_BYTES counts for streams that are made new; delete "
                    "that one for it, with what it keeps",
                    stream.name,
                )
                trial = await connection.channel(is_trial=True)
            await channel.call(
                Queue.Bind(
                    queue=stream.name, exchange=self.exchange, routing_key=stream.key
                )
            )


def _name(keep: Retention) -> str:
    return f"{keep.messages}x{keep.seconds:g}"


def _partitions(address: BrokerUrl) -> int:
    given = address.options.get("partitions", str(PARTITIONS))
    if (
        not given.isascii()
        or not given.isdigit()
        or not 1 <= int(given) <= MAX_PARTITIONS
    ):
        raise ConfigurationError(
            f"AUTHWS_BROKER_URL: partitions is a number from 1 to {MAX_PARTITIONS}"
        )
    return int(given)
