"""What a broker promises.

- What is published on a channel reaches every subscriber of that channel, the
  publisher's own process included, once each.
- Messages that one publisher publishes on one channel arrive in the order of its calls.
- Nothing arrives before ``subscribe`` returned or after ``unsubscribe`` returned.
- A broker carries bytes and keeps nothing: what must survive is in the database.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Protocol

__all__ = ["Broker", "Deliver"]

Deliver = Callable[[str, bytes], None]
"""Takes a channel and the bytes published on it; must not raise and must not block."""


class Broker(Protocol):
    """Carries bytes from whoever publishes on a channel to whoever subscribed to it."""

    async def start(self, deliver: Deliver) -> None:
        """Begin to hand what arrives to ``deliver``."""

    async def subscribe(self, channel: str) -> None:
        """Ask for what is published on a channel from now on."""

    async def unsubscribe(self, channel: str) -> None:
        """Ask for it no longer."""

    def publish(self, channel: str, data: bytes) -> Awaitable[None] | None:
        """Hand bytes to every subscriber of a channel; None: that is done already."""

    async def ping(self) -> bool:
        """Tell whether messages can be carried now."""

    async def stop(self) -> None:
        """Let go of every resource."""
