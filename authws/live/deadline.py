"""A moment on the wall clock that something waits for, with a notice ahead of it."""

from __future__ import annotations

from collections.abc import Callable

from authws.clock import Clock, Timer

__all__ = ["Deadline"]

MAX_WAIT = 86_400.0
"""Seconds that a timer runs at most: not every event loop takes years."""


class Deadline:
    """Calls ``due`` at a moment that may be moved, and ``notice`` once before it.

    The moment is wall-clock time, as ``exp`` is, and timers are monotonic: after the
    wall clock was set, ``check`` plans anew.
    """

    __slots__ = ("_at", "_clock", "_due", "_lead", "_notice", "_notice_at", "_timer")

    def __init__(
        self,
        clock: Clock,
        *,
        due: Callable[[], None],
        notice: Callable[[], None] | None = None,
        lead: float = 0.0,
    ) -> None:
        """``lead``: how many seconds ahead the notice comes; half the time that is
        left if that is less."""
        self._clock = clock
        self._due = due
        self._notice = notice
        self._lead = lead
        self._at: float | None = None
        self._notice_at: float | None = None
        self._timer: Timer | None = None

    def set(self, at: float) -> None:
        """Wait for this moment from now on, and for no other."""
        self._at = at
        self._notice_at = None
        if self._notice is not None and self._lead > 0:
            left = max(0.0, at - self._clock.now())
            self._notice_at = at - min(self._lead, left / 2)
        self._plan()

    def cancel(self) -> None:
        """Wait for nothing any more."""
        self._at = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def close(self) -> None:
        """Wait for nothing, ever again, and let go of who was to be called."""
        self.cancel()
        self._due = _nothing
        self._notice = None

    def is_due(self, now: float) -> bool:
        """Tell whether the moment has come."""
        return self._at is not None and now >= self._at

    def enforce(self) -> None:
        """Do it now if it is due: on a busy event loop a timer comes late."""
        if self.is_due(self._clock.now()):
            self.check()

    def check(self) -> None:
        """Do what is due by now, and wait for the rest, by the clock as it is now."""
        if self._at is None:
            return
        now = self._clock.now()
        if now >= self._at:
            self.cancel()
            self._due()
            return
        if self._notice_at is not None and now >= self._notice_at:
            self._notice_at = None
            if self._notice is not None:
                self._notice()
        self._plan()

    def _plan(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        following = self._at if self._notice_at is None else self._notice_at
        if following is None:
            return
        wait = min(max(0.0, following - self._clock.now()), MAX_WAIT)
        self._timer = self._clock.call_later(wait, self.check)


def _nothing() -> None:
    """What happens when a deadline that was closed is due."""
