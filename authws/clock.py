"""The one place where time is read.

A decision takes an explicit ``now``; whoever calls it asks a clock. A test replaces
the clock, so no test needs to sleep through a deadline.
"""

from __future__ import annotations

import time

__all__ = ["Clock"]


class Clock:
    """Tells the time, in seconds, as two kinds that must not be mixed."""

    def now(self) -> float:
        """Return seconds since the epoch: RFC 7519's NumericDate, for credentials."""
        return time.time()

    def monotonic(self) -> float:
        """Return seconds that never run backwards, for deadlines in this process."""
        return time.monotonic()
