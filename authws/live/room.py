"""One room, as this worker knows it."""

from __future__ import annotations

import asyncio
from collections import Counter

from authws.decisions.history import Position, Retention
from authws.live.turn import Audience

__all__ = ["Elsewhere", "Room"]


class Elsewhere:
    """Who is in a room by way of another worker, as far as that is known here."""

    __slots__ = ("asked_for", "part", "subjects", "version")

    def __init__(self) -> None:
        self.version = 0
        self.subjects: set[str] = set()
        self.asked_for = 0
        """The version that was seen to be missing, and is being asked for."""
        self.part: tuple[int, set[str]] = (0, set())
        """What has come of an answer in parts, and which version that is of."""


class Room(Audience):
    """A room, as this worker knows it."""

    __slots__ = (
        "doubts",
        "elsewhere",
        "held",
        "is_open",
        "joining",
        "keep",
        "lock",
        "name",
        "position",
        "present",
        "subjects",
        "version",
    )

    def __init__(self, name: str, keep: Retention | None) -> None:
        super().__init__()
        self.name = name
        self.keep = keep
        self.subjects: Counter[str] = Counter()
        """Who is here by way of this worker, and by how many connections."""
        self.version = 0
        """Which change of this worker's ``subjects`` is as of; 0 before the first."""
        self.elsewhere: dict[str, Elsewhere] = {}
        """By worker: who is here by way of it."""
        self.present: Counter[str] = Counter()
        """Everybody who is here, and by way of how many workers."""
        self.position: Position | None = None
        """Where it stands: after the message that was told last."""
        self.held: list[tuple[Position, bytes]] | None = None
        """What waits, because something before it may be missing."""
        self.doubts = 0
        """How often something may have been lost."""
        self.lock = asyncio.Lock()
        """Held while it is opened, and while what is missing is read."""
        self.is_open = False
        self.joining = 0
        """How many are about to come in, for whom it stays open."""
