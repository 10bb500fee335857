"""The security log: one JSON line per decision; who, what, why, from where.

Never a credential, never a message's content. Control characters are escaped by JSON
itself, so nothing a peer sends can forge a line (CWE-117).

Every handshake writes two lines, so a line is put together from parts that were cleaned
once, and not cleaned as a whole each time.
"""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Callable
from datetime import UTC, datetime
from functools import lru_cache
from threading import get_ident

from authws.clock import Clock
from authws.decisions.redaction import makes_plain_records, redact

__all__ = ["LOGGER_NAME", "SecurityLog"]

LOGGER_NAME = "authws.security"
MAX_VALUE_LENGTH = 256
REMEMBERED = 4096
"""Names and addresses that are kept in their cleaned form."""

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
        self._blank = logging.LogRecord(
            LOGGER_NAME, logging.INFO, __file__, 0, "", (), None
        )

    def write(
        self,
        event: str,
        *,
        reason: str = "",
        detail: str = "",
        subject: str = "",
        address: str = "",
        limit: str = "",
        connection: str = "",
        **more: str,
    ) -> None:
        """Write one event.

        ``event``, ``reason`` and ``limit`` are from small fixed vocabularies;
        ``detail`` is for the operator; ``connection`` is its id, which is ours;
        ``more`` may name the strategy, the close code, a correlation id.
        """
        self.count(event, reason=reason, limit=limit)
        if not self._logger.isEnabledFor(logging.INFO):
            return
        now = self._clock.now()
        line = f'{{"time": "{_timestamp(int(now * 1000))}", "event": "{event}"'
        if reason:
            line += f', "reason": {_remembered(reason)}'
        if detail:
            line += f', "detail": {_clean(detail)}'
        if subject:
            line += f', "subject": {_remembered(subject)}'
        if address:
            line += f', "address": {_remembered(address)}'
        if limit:
            line += f', "limit": "{limit}"'
        for name, value in more.items():
            if value:
                line += f', "{name}": {_remembered(value)}'
        if connection:
            line += f', "connection": "{connection}"'
        self._logger.handle(self._record(line + "}", now))

    def count(self, event: str, *, reason: str = "", limit: str = "") -> None:
        """Count an event without a line: a peer may bring about many of its kind."""
        if self._listener is not None:
            self._listener(event, reason, limit)

    def _record(self, line: str, now: float) -> logging.LogRecord:
        """Make a log record; most come from the same place in the same thread, which
        ``logging`` would find out anew for each."""
        blank = self._blank
        is_usual = blank.thread == get_ident() and blank.process == os.getpid()
        if not (is_usual and makes_plain_records()):
            return self._logger.makeRecord(
                LOGGER_NAME, logging.INFO, __file__, 0, line, (), None
            )
        record = object.__new__(logging.LogRecord)
        record.__dict__.update(blank.__dict__)
        record.msg = line
        record.created = now
        record.msecs = now % 1 * 1000
        return record


@lru_cache(maxsize=4)
def _timestamp(milliseconds: int) -> str:
    """RFC 3339, in UTC."""
    at = datetime.fromtimestamp(milliseconds / 1000, UTC)
    return at.isoformat(timespec="milliseconds")


def _clean(value: str) -> str:
    """A JSON string that holds no credential, and nothing that moves a cursor."""
    short = redact(value)[:MAX_VALUE_LENGTH]
    if short.isascii():  # JSON escapes what is not printable in ASCII
        return _as_json(short)
    # surrogates cannot be encoded by a handler's stream
    short = short.encode("utf-8", "backslashreplace").decode()
    return _as_json(_UNPRINTABLE.sub(_escape, short))


_remembered = lru_cache(maxsize=REMEMBERED)(_clean)


def _escape(character: re.Match[str]) -> str:
    return f"\\u{ord(character[0]):04x}"
