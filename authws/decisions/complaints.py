"""Warnings about what others do wrong, however often they do it."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable

__all__ = ["COMPLAIN_EVERY", "Complaints"]

COMPLAIN_EVERY = 60.0
"""Seconds between two lines of the log that say the same."""
MAX_REMEMBERED = 4096
"""Sentences that are known to have been said."""


class Complaints:
    """Writes to the log, each sentence once in a while only."""

    def __init__(self, logger: logging.Logger, now: Callable[[], float]) -> None:
        """``now`` is a clock that does not jump."""
        self._logger = logger
        self._now = now
        self._made_at: dict[str, float] = {}

    def make(self, sentence: str) -> None:
        """Say it, unless it was said a moment ago."""
        now = self._now()
        if now - self._made_at.get(sentence, -math.inf) < COMPLAIN_EVERY:
            return
        if len(self._made_at) >= MAX_REMEMBERED:
            self._made_at.clear()
        self._made_at[sentence] = now
        self._logger.warning(sentence)
