"""Signals, as something that can be waited for beside others."""

from __future__ import annotations

import os
import signal
import socket
from types import TracebackType

__all__ = ["Signals"]


class Signals:
    """Those that a parent of workers heeds, while it is entered."""

    NAMES = ("SIGTERM", "SIGINT", "SIGHUP", "SIGCHLD")  # Windows has not all

    def __init__(self) -> None:
        self.readable, self._writable = socket.socketpair()
        for end in (self.readable, self._writable):
            end.setblocking(False)
        self._had_terminal = _has_terminal()

    def __enter__(self) -> Signals:
        numbers = [signal.Signals[name] for name in self.NAMES]
        # a handler must be there for a signal to be written down
        self._usual = {one: signal.signal(one, _do_nothing) for one in numbers}
        self._usual_fd = signal.set_wakeup_fd(self._writable.fileno())
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        signal.set_wakeup_fd(self._usual_fd)
        for number, handler in self._usual.items():
            signal.signal(number, handler)
        self.close()

    def take(self) -> bytes:
        """Return the numbers of those that came, in their order."""
        try:
            return self.readable.recv(4096)
        except BlockingIOError:
            return b""

    def is_terminal_gone(self) -> bool:
        """Tell whether there was a terminal that is no more: it says goodbye with the
        signal by which an operator asks for something else."""
        return self._had_terminal and not _has_terminal()

    def close(self) -> None:
        self.readable.close()
        self._writable.close()


def _has_terminal() -> bool:
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY))
    except OSError:
        return False
    return True


def _do_nothing(number: int, frame: object) -> None:
    pass
