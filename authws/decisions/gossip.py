"""What workers tell one another, apart from the rooms' own messages: JSON objects with
a ``type``, checked when they are read, for another version may have written them.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from authws.exceptions import AuthwsError

__all__ = [
    "Answer",
    "Ask",
    "Beat",
    "Bye",
    "Change",
    "Closed",
    "Extended",
    "Gossip",
    "GossipError",
    "Held",
    "HeldBy",
    "Holders",
    "Opened",
    "Report",
    "Request",
    "Revoked",
    "Roster",
    "decode",
    "decode_change",
    "encode",
]


class GossipError(AuthwsError):
    """A message that no worker of this version understands."""


class Roster(msgspec.Struct, array_like=True):
    """Who is in a room by way of one worker. A version is the number of the change that
    made it so, counted over all rooms of that worker."""

    version: int
    subjects: list[str]
    is_part: bool = False
    """Whether more of them follow in another answer."""


class Change(msgspec.Struct, array_like=True):
    """One change of a roster: a subject's first connection there, or its last."""

    before: int
    """The version that it changes; 0 if nobody was there."""
    version: int
    subject: str
    is_here: bool
    knows: list[str] = []
    """With the first change: the workers of whom the sender knows who is there."""


class Beat(msgspec.Struct, tag="beat", frozen=True):
    """The sender lives; its lease begins anew."""

    kind: Literal["regular", "new", "missed", "stranger", "answer"] = "regular"
    """``new``: it has just come; ``missed``: it may have missed something, either way;
    ``stranger``: it had not known the receiver, or had taken it for dead. All three
    would like an ``answer``, and whoever knew the sender knows it anew."""


class Bye(msgspec.Struct, tag="bye", frozen=True):
    """The sender is about to end: nobody is anywhere by way of it any more."""


class Revoked(msgspec.Struct, tag="revoked", frozen=True):
    """A right to exist was taken; the database has it already."""

    kind: Literal["session", "subject", "scopes"]
    key: str
    at: float


class Extended(msgspec.Struct, tag="extended", frozen=True):
    """A cookie's session was used again: its connections live until later."""

    session: str
    expires_at: float


class Opened(msgspec.Struct, tag="opened", frozen=True):
    """To the home of these rooms: the sender has them open. Who else has?"""

    id: int
    """0: nobody waits for the answer."""
    rooms: list[str]
    replaces: bool = False
    """Whether the sender has none of those open that it told of before."""


class Holders(msgspec.Struct, tag="holders", frozen=True):
    """The workers that have; a room without any has none, and None is too many."""

    id: int
    rooms: dict[str, list[str] | None]


class Closed(msgspec.Struct, tag="closed", frozen=True):
    """To the home of these rooms: the sender has them open no longer."""

    rooms: list[str]


class Ask(msgspec.Struct, tag="ask", frozen=True):
    """Who is in these rooms by way of you?"""

    id: int
    rooms: dict[str, int]
    """By room: the version of the sender's own roster."""


class Answer(msgspec.Struct, tag="answer", frozen=True):
    """Who is; a room without a roster has nobody."""

    id: int
    as_of: int
    """The number of the sender's last change, in whichever room."""
    rooms: list[str]
    rosters: dict[str, Roster]


class Held(msgspec.Struct, tag="held", frozen=True):
    """The connections of a user at the sender, by id: when each was opened."""

    user: str
    connections: dict[str, float]
    wants_answer: bool = False


class HeldBy(msgspec.Struct, tag="held_by", frozen=True):
    """One more connection of a user at the sender, or one less (``at`` of None)."""

    user: str
    connection: str
    at: float | None


class Request(msgspec.Struct, tag="request", frozen=True):
    """A question with a name; who has no answer to it says nothing."""

    id: int
    name: str
    arguments: dict[str, Any]


class Report(msgspec.Struct, tag="report", frozen=True):
    """The answer to a request."""

    id: int
    content: Any


Gossip = (
    Beat
    | Bye
    | Revoked
    | Extended
    | Opened
    | Holders
    | Closed
    | Ask
    | Answer
    | Held
    | HeldBy
    | Request
    | Report
)

_gossip = msgspec.json.Decoder(Gossip)
_change = msgspec.json.Decoder(Change)
encode = msgspec.json.Encoder().encode


def decode(data: bytes) -> Gossip:
    """Read what a worker says.

    Raises:
        GossipError: it is none of these.
    """
    try:
        message: Gossip = _gossip.decode(data)
        return message
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        raise GossipError("not understood") from None


def decode_change(data: bytes) -> Change:
    """Read a change of a roster.

    Raises:
        GossipError: it is none.
    """
    try:
        return _change.decode(data)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        raise GossipError("not understood") from None
