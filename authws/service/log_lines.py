"""The security log's lines on their way to a file or to standard error."""

from __future__ import annotations

import asyncio
import logging
import sys
from typing import TextIO

__all__ = ["LineHandler"]


class LineHandler(logging.StreamHandler[TextIO]):
    """Writes each message as a line, and those of one turn of the event loop at once.

    A wave of handshakes is a wave of lines, and the system takes as long for one as for
    a hundred. Outside an event loop a line is written as it comes.
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
            said, self._lines = "".join(self._lines), []
            if not said:
                return
            try:
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


_UNWRITTEN = logging.LogRecord(
    __name__, logging.ERROR, __file__, 0, "lines of the security log", (), None
)
