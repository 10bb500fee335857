"""The end of a process that may be held up by anything: a promise with a deadline."""

from __future__ import annotations

import contextlib
import faulthandler
import os
import sys
import threading
import time
from collections.abc import Callable
from queue import Empty, SimpleQueue
from types import TracebackType

__all__ = ["CUT_SHORT", "Watchdog"]

CUT_SHORT = 1
"""The exit status of a process that the watchdog ended."""


class Watchdog:
    """Ends this process at a moment, whatever its event loop and its handlers do.

    Its thread exists from the start and waits on a ``SimpleQueue``, whose ``put`` may
    interrupt anything: a signal handler that started a thread could wait for a lock
    that the very code it interrupted holds.
    """

    def __init__(self, open_connections: Callable[[], int]) -> None:
        """``open_connections`` counts what is cut, for the operator."""
        self._open_connections = open_connections
        self._moments: SimpleQueue[float | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="watchdog", daemon=True)

    def __enter__(self) -> Watchdog:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        faulthandler.cancel_dump_traceback_later()
        self._moments.put(None)
        self._thread.join()

    def end_process_in(self, seconds: float, *, at_the_latest: float) -> None:
        """End the process in ``seconds``, unless this context is left before.

        Python code that holds the interpreter's lock keeps this thread out as well:
        ``faulthandler`` has one that needs no lock, and says what held the process.
        Callable from a signal handler, the first time.
        """
        self._moments.put(time.monotonic() + seconds)
        with contextlib.suppress(Exception):  # no stderr, or none of the system's
            faulthandler.dump_traceback_later(
                at_the_latest, exit=True, file=sys.__stderr__ or 2
            )

    def _run(self) -> None:
        moment = self._moments.get()
        if moment is None:
            return
        with contextlib.suppress(Empty):
            self._moments.get(timeout=max(0.0, moment - time.monotonic()))
            return  # it ended by itself
        line = (
            f"authws: the drain is over: {self._open_connections()} connections cut, "
            "for something did not end in time\n"
        )
        # not sys.stderr: whoever holds up the process may hold its lock
        with contextlib.suppress(OSError):
            os.write(2, line.encode())
        os._exit(CUT_SHORT)
