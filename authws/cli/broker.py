"""Trying the broker before anything listens."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator
from contextlib import contextmanager

from authws.brokers import open_broker
from authws.cli.stores import run
from authws.decisions.history import Position
from authws.service.settings import Settings

__all__ = ["why_broker_is_away"]


class _Deaf:
    """A listener that nobody sends anything to."""

    def deliver(self, channel: str, data: bytes, position: Position | None) -> None:
        pass

    def interrupted(self, channels: Collection[str]) -> None:
        pass


class _Said(logging.Handler):
    """Keeps the last that is said."""

    last = ""

    def emit(self, record: logging.LogRecord) -> None:
        self.last = record.getMessage()


def why_broker_is_away(settings: Settings) -> str:
    """Connect and ask for a sign of life; return what is wrong, or nothing.

    Nothing is made there: no stream is declared.

    Raises:
        ConfigurationError: it can never work.
    """

    async def work() -> bool:
        broker = open_broker(
            settings.broker_url.get_secret_value(), prefix=settings.broker_prefix
        )
        try:
            await broker.start(_Deaf())
            return await broker.ping()
        finally:
            await broker.stop()

    with _listening() as said:
        is_there = run(work())
    return "" if is_there else said.last or "the broker does not answer"


@contextmanager
def _listening() -> Iterator[_Said]:
    """Hear what the log would be told, instead of it."""
    logger, said = logging.getLogger("authws"), _Said()
    propagates = logger.propagate
    logger.addHandler(said)
    logger.propagate = False
    try:
        yield said
    finally:
        logger.removeHandler(said)
        logger.propagate = propagates
