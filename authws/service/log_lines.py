"""The security log's lines on their way to a file or to standard error."""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Iterable, Iterator
from typing import TextIO

__all__ = ["LineHandler"]


PIPE_BUF = 4096
"""Bytes that a write to a pipe may have, not to be torn (POSIX; Linux's figure)."""


class LineHandler(logging.StreamHandler[TextIO]):
    """Writes each message as a line, and those of one turn of the event loop at once.

    A wave of handshakes is a wave of lines, and the system takes as long for one as for
    a hundred. Outside an event loop a line is written as it comes. A process that is
    killed in the middle of a turn loses what that turn has said.
    """

    def __init__(self, path: str = "-") -> None:
        """``-`` is standard error; a file is appended to."""
        is_file = path != "-"
        super().__init__(
            open(path, "a", encoding="utf-8") if is_file else sys.stderr  # noqa: SIM115
        )
        self._is_file = is_file
        self._lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep the line until the turn is over."""
        self._lines.append(record.getMessage() + self.terminator)
        if len(self._lines) > 1:
            return
        try:
            asyncio.get_running_loop().call_soon(self.flush)
        except RuntimeError:
            self.flush()

    def flush(self) -> None:
        """Write what is kept."""
        with self.lock:  # type: ignore[union-attr]
            lines, self._lines = self._lines, []
            try:
                for said in _together(lines):
                    self.stream.write(said)
                    self.stream.flush()
            except Exception:
                self.handleError(_UNWRITTEN)

    def close(self) -> None:
        """Write what is kept, and let go of the file."""
        self.flush()
        if self._is_file:
            self.stream.close()
        super().close()


def _together(lines: Iterable[str]) -> Iterator[str]:
    """Join lines, up to what a pipe takes whole from each of those who write to it."""
    said = ""
    for line in lines:
        if said and len((said + line).encode("utf-8", "replace")) > PIPE_BUF:
            yield said
            said = ""
        said += line
    if said:
        yield said


_UNWRITTEN = logging.LogRecord(
    __name__, logging.ERROR, __file__, 0, "lines of the security log", (), None
)
