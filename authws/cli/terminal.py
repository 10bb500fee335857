"""What comes from a terminal, or a pipe, and what goes to it.

A peer's text is untrusted: what is not printable is escaped, so that nobody drives the
terminal of somebody else.
"""

from __future__ import annotations

import asyncio
import codecs
import os
import sys
import threading
import unicodedata
from collections.abc import AsyncIterator
from concurrent.futures import CancelledError
from contextlib import suppress

__all__ = ["Lines", "escape", "note", "say"]

MAX_LINE_BYTES = 1_048_576


def say(line: str) -> None:
    """Write a line to standard output."""
    print(line, flush=True)


def note(line: str) -> None:
    """Write a line to standard error."""
    print(line, file=sys.stderr, flush=True)


def escape(text: str) -> str:
    """Return ``text`` with everything that is not printable spelled out.

    Control characters drive a terminal; format characters (bidirectional overrides,
    zero widths) make a line read as another (Unicode TR 36).
    """
    return "".join(
        c
        if c.isprintable() or unicodedata.category(c) == "Zs"
        else c.encode("unicode_escape").decode("ascii")
        for c in text
    )


class Lines:
    """The lines of standard input, to be read while the event loop runs.

    Read from the descriptor itself: a thread that waits in ``sys.stdin`` holds its
    lock, and a process cannot end before it is released.
    """

    def __init__(self, descriptor: int = 0) -> None:
        self._descriptor = descriptor
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._buffer = ""
        self._ended = False

    def read(self) -> str | None:
        """Return the next line without its end, or None at the end of the input."""
        while "\n" not in self._buffer and not self._ended:
            if len(self._buffer) > MAX_LINE_BYTES:
                break
            data = os.read(self._descriptor, 65_536)
            self._ended = not data
            self._buffer += self._decoder.decode(data, final=self._ended)
        if not self._buffer:
            return None
        line, _, self._buffer = self._buffer.partition("\n")
        return line.removesuffix("\r")

    async def __aiter__(self) -> AsyncIterator[str]:
        loop = asyncio.get_running_loop()
        queue: asyncio.Queue[str | None] = asyncio.Queue(1)

        def pump() -> None:
            line: str | None = ""
            # the loop is over: nobody listens
            with suppress(RuntimeError, OSError, CancelledError):
                while line is not None:
                    line = self.read()
                    put = queue.put(line)
                    try:
                        asyncio.run_coroutine_threadsafe(put, loop).result()
                    except BaseException:
                        put.close()
                        raise

        # a daemon: it may wait for a line that never comes
        threading.Thread(target=pump, name="stdin", daemon=True).start()
        while (line := await queue.get()) is not None:
            yield line
