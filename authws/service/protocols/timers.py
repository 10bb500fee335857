"""Deadlines of thousands of connections by one timer of the event loop each kind.

Whoever waits equally long is due in the order of coming, so a queue and a timer for its
head do what a timer for each would do: and most connections are gone, or have spoken,
long before they are due.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from typing import TYPE_CHECKING

from authws.service.protocols.limits import limits_of

if TYPE_CHECKING:
    from uvicorn.config import Config

__all__ = ["SharedTimer", "Timers"]

Callback = Callable[[], object]


class SharedTimer:
    """Calls each callback ``wait`` seconds after its start, unless it is stopped."""

    __slots__ = ("_due", "_handle", "_loop", "_wait")

    def __init__(self, loop: asyncio.AbstractEventLoop, wait: float) -> None:
        self._loop = loop
        self._wait = wait
        self._due: OrderedDict[Callback, float] = OrderedDict()
        """When each is due, the next one first."""
        self._handle: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return len(self._due)

    def start(self, callback: Callback) -> None:
        """Call it once, later; if it waits already, its time begins anew."""
        self._due[callback] = self._loop.time() + self._wait
        self._due.move_to_end(callback)
        if self._handle is None:
            self._handle = self._loop.call_later(self._wait, self._call_due)

    def stop(self, callback: Callback) -> None:
        """Do not call it."""
        self._due.pop(callback, None)

    def _call_due(self) -> None:
        now = self._loop.time()
        while (first := self._first()) and first[1] <= now:
            del self._due[first[0]]
            try:
                first[0]()
            except Exception as exception:  # the others are due all the same
                what = f"a timer failed: {first[0]!r}"
                self._loop.call_exception_handler(
                    {"message": what, "exception": exception}
                )
        # not before: who was just started has no timer of its own
        self._handle = self._loop.call_at(first[1], self._call_due) if first else None

    def _first(self) -> tuple[Callback, float] | None:
        return next(iter(self._due.items()), None)


class Timers:
    """What the connections of one server wait for, beside their own business."""

    def __init__(self, config: Config, loop: asyncio.AbstractEventLoop) -> None:
        limits = limits_of(config)
        self.loop = loop
        self.head = SharedTimer(loop, limits.head_timeout)
        """A connection that has not asked for anything yet."""
        self.ping = SharedTimer(loop, config.ws_ping_interval or 0.0)
        """A WebSocket whose peer was last known to be there."""
        self.cutoff = SharedTimer(loop, limits.close_timeout)
        """One that is over on our side."""

    @classmethod
    def of(cls, config: Config, loop: asyncio.AbstractEventLoop) -> Timers:
        """Return the timers of the server that runs in this loop."""
        timers: Timers | None = getattr(config, _ATTRIBUTE, None)
        if timers is None or timers.loop is not loop:
            timers = cls(config, loop)
            setattr(config, _ATTRIBUTE, timers)
        return timers


_ATTRIBUTE = "authws_timers"
