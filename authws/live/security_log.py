"""The security log: one JSON line per decision; who, what, why, from where.

Never a credential, never a message's content. Control characters are escaped by JSON
itself, so nothing a peer sends can forge a line (CWE-117).
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable
from datetime import UTC, datetime

from authws.clock import Clock

__all__ = ["LOGGER_NAME", "SecurityLog"]

LOGGER_NAME = "authws.security"
MAX_VALUE_LENGTH = 256

# bidirectional controls and line separators are printable to JSON, not to a terminal
_UNPRINTABLE = re.compile("[\u0080-\u009f\u200e\u200f\u2028-\u202e\u2066-\u2069]")

_as_json = json.JSONEncoder(ensure_ascii=False).encode

Listener = Callable[[str, str, str], None]


class SecurityLog:
    """Writes events to the logger ``authws.security``, and counts them."""

    def __init__(self, clock: Clock, listener: Listener | None = None) -> None:
        """``listener`` is told each event, its reason and the limit that was reached
        (for the metrics)."""
        self._clock = clock
        self._logger = logging.getLogger(LOGGER_NAME)
        self._listener = listener

    def write(
        self,
        event: str,
        *,
        reason: str = "",
        detail: str = "",
        subject: str = "",
        address: str = "",
        limit: str = "",
        **more: str,
    ) -> None:
        """Write one event.

        ``event``, ``reason`` and ``limit`` are from small fixed vocabularies;
        ``detail`` is for the operator; ``more`` may name the strategy, the connection,
        the room.
        """
        self.count(event, reason=reason, limit=limit)
        if not self._logger.isEnabledFor(logging.INFO):
            return
        at = datetime.fromtimestamp(self._clock.now(), UTC)
        fields = {
            "time": at.isoformat(timespec="milliseconds"),
            "event": event,
            "reason": reason,
            "detail": detail,
            "subject": subject,
            "address": address,
            "limit": limit,
            **more,
        }
        said = {key: _clean(value) for key, value in fields.items() if value}
        self._logger.info(_as_json(said))

    def count(self, event: str, *, reason: str = "", limit: str = "") -> None:
        """Count an event without a line: a peer may bring about many of its kind."""
        if self._listener is not None:
            self._listener(event, reason, limit)


def _clean(value: str) -> str:
    short = value[:MAX_VALUE_LENGTH]
    if short.isascii():  # JSON escapes what is not printable in ASCII
        return short
    # surrogates cannot be encoded by a handler's stream
    short = short.encode("utf-8", "backslashreplace").decode()
    return _UNPRINTABLE.sub(lambda match: f"\\u{ord(match[0]):04x}", short)
