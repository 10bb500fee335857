"""What a broker promises. Each promise is a test in ``tests/brokers``.

Carrying:

- What is published on a channel reaches every subscriber of that channel, the
  publisher's own process included, once each.
- Messages that one process publishes on one channel arrive everywhere in the order of
  its calls.
- Subscribing and unsubscribing take effect in the order of the calls. All that is
  published after ``subscribe`` returned arrives; nothing does after ``unsubscribe``
  returned.
- A publish that has ended well is with the broker. One that raises may have arrived.

Keeping, for what is published with a ``Retention``:

- It gets a position before it is carried, the same for everybody, and arrives with it.
  The offsets of one channel grow in the order of arrival; who asked for the same
  channel twice has the same positions.
- It arrives in that order with none left out, or ``interrupted`` is called before the
  next.
- ``replay`` returns what came after a position, in order and whole, or says that it is
  not whole: never a gap that nobody is told of.
- What is published without stands in no history, though it was carried on the channel.

Failing:

- Nothing here ends a process. While the broker cannot be reached ``is_up`` is false,
  every call raises UnavailableError within seconds, and the connection is tried again
  for ever, with growing and jittered delays.
- What was subscribed is subscribed again by itself, and ``interrupted`` names the
  channels on which something may not have arrived.
- What waits here for the broker is bounded; beyond that a publish raises.
- What another party writes into our channels is delivered as the bytes that it is;
  what is not even a message of ours in form is dropped, and counted.
- No password is in any log line, error or ``repr``.

A broker carries bytes: what they mean, and whether they are genuine, is known above.
"""

from __future__ import annotations

from collections.abc import Awaitable, Collection
from typing import NamedTuple, Protocol

from authws.decisions.history import Position, Retention

__all__ = ["Broker", "Listener", "Replay"]


class Replay(NamedTuple):
    """What a channel kept."""

    messages: tuple[tuple[Position, bytes], ...]
    """What came after the position that was asked for, the oldest first."""
    is_complete: bool
    """Whether that is all that came after it."""
    top: Position
    """Where the channel stands: after the last message kept, or before the first."""


class Listener(Protocol):
    """Is told what arrives. Its methods neither raise nor block."""

    def deliver(self, channel: str, data: bytes, position: Position | None) -> None:
        """Take what was published on a channel; ``position`` if it is kept."""

    def interrupted(self, channels: Collection[str]) -> None:
        """Hear that on these channels, which are subscribed again, something may not
        have arrived."""


class Broker(Protocol):
    """Carries bytes from whoever publishes on a channel to whoever subscribed to it,
    and keeps some for those who come later.

    A channel's name is 1 to 130 characters of ``A-Z a-z 0-9 _ . : - @``. On one that
    begins with ``@`` workers speak to each other, and nothing of it is kept.
    """

    crosses_processes: bool
    """Whether other processes are reached: what arrives may be anybody's then."""
    dropped: int
    """How many messages arrived that were none of ours in form."""

    @property
    def is_up(self) -> bool:
        """Whether the broker could be reached when it was last tried."""

    @property
    def heard_at(self) -> float:
        """When it was last known that it can be, in monotonic seconds. A broker that
        stands still is found out only seconds after this."""

    async def start(self, listener: Listener) -> None:
        """Connect, and hand what arrives to ``listener``. Returns after some seconds
        at most, whether that worked or is still being tried.

        Raises:
            ConfigurationError: it can never work, such as a driver that is missing.
        """

    async def subscribe(self, channel: str, keep: Retention | None = None) -> None:
        """Ask for what is published on a channel from now on; ``keep`` must be what
        publishers of this channel give.

        Raises:
            UnavailableError: the broker cannot be reached; nothing was subscribed.
        """

    async def unsubscribe(self, channel: str) -> None:
        """Ask for it no longer. Never raises: while the broker is away it is enough
        not to ask again."""

    def publish(
        self, channel: str, data: bytes, keep: Retention | None = None
    ) -> Awaitable[None] | None:
        """Hand bytes to every subscriber of a channel; None: that is done already.

        The order is that of the calls, not of the waiting.

        Raises:
            UnavailableError: here or where it is awaited: it may have arrived or not.
        """

    async def replay(
        self, channel: str, keep: Retention, since: Position | None
    ) -> Replay:
        """Return what a channel has kept since a position; with None, where it stands.

        Raises:
            UnavailableError: the broker cannot be reached.
        """

    async def ping(self) -> bool:
        """Tell whether messages can be carried now: asks the broker, for at most a
        second or two."""

    async def stop(self) -> None:
        """Let go of every resource."""
