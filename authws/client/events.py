"""What the server says over ``authws.v1``, one type per kind of message.

A server newer than the client may say more: members that are not known here are
ignored, and a message of an unknown kind is ``Unknown``, never an error.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from authws.decisions.history import Position

__all__ = [
    "Ack",
    "AuthExpiring",
    "AuthRequired",
    "Dropped",
    "Event",
    "Failure",
    "Joined",
    "Left",
    "Message",
    "Pong",
    "Presence",
    "Restarting",
    "Resync",
    "Unknown",
    "Welcome",
    "read_event",
]

MessageId = str | int | None


@dataclass(frozen=True, slots=True)
class AuthRequired:
    """The server waits ``timeout`` seconds for the first message."""

    timeout: float


@dataclass(frozen=True, slots=True)
class Welcome:
    """``auth_ok``: who the server takes us for, until ``expires_at``."""

    subject: str
    strategy: str
    connection: str
    scopes: frozenset[str]
    expires_at: float
    server_time: float


@dataclass(frozen=True, slots=True)
class AuthExpiring:
    """The credential ends at ``expires_at`` unless it is renewed."""

    expires_at: float


@dataclass(frozen=True, slots=True)
class Joined:
    """We are in the room, with these subjects."""

    room: str
    members: tuple[str, ...]
    count: int | None = None
    """How many they are, if they are too many to be named."""
    recovered: bool | None = None
    """Whether all that was said since we were here last follows. False: something may
    be missing, and the room's state must be fetched anew. None: there is nothing to
    recover, as with the first join."""
    position: Position | None = None
    """After which message we stand, in a room that keeps any."""


@dataclass(frozen=True, slots=True)
class Left:
    """We are no longer in the room."""

    room: str


@dataclass(frozen=True, slots=True)
class Message:
    """A member of a room said ``data``, any JSON value."""

    room: str
    sender: str
    data: Any
    at: float
    position: Position | None = None
    """Its place in the room's history, if the room keeps one."""


@dataclass(frozen=True, slots=True)
class Resync:
    """Something of this room may be missing here, and cannot be told any more: its
    state must be fetched anew."""

    room: str
    position: Position | None = None


@dataclass(frozen=True, slots=True)
class Presence:
    """A subject ``joined`` or ``left`` a room."""

    room: str
    subject: str
    event: str


@dataclass(frozen=True, slots=True)
class Dropped:
    """We read too slowly: so many messages of our rooms are missing here."""

    count: int


@dataclass(frozen=True, slots=True)
class Restarting:
    """The server ends this connection now; come back in ``retry_after`` seconds."""

    retry_after: float


@dataclass(frozen=True, slots=True)
class Ack:
    """The publish with this id was taken."""

    id: MessageId


@dataclass(frozen=True, slots=True)
class Pong:
    """The answer to a ping."""

    id: MessageId


@dataclass(frozen=True, slots=True)
class Failure:
    """``error``: a message of ours was refused; the connection lives on."""

    slug: str
    detail: str
    id: MessageId


@dataclass(frozen=True, slots=True)
class Unknown:
    """A message that this client does not know; ``text`` as it came."""

    text: str


Event = (
    AuthRequired
    | Welcome
    | AuthExpiring
    | Joined
    | Left
    | Message
    | Resync
    | Presence
    | Dropped
    | Restarting
    | Ack
    | Pong
    | Failure
    | Unknown
)


def _number(value: Any) -> float:
    number = float(value)
    if not math.isfinite(number):
        raise ValueError("not a time")
    return number


def _id(value: Any) -> MessageId:
    if value is not None and not isinstance(value, str | int):
        raise TypeError("not an id")
    return value


def _whole(value: Any) -> int:
    if type(value) is not int:
        raise TypeError("not a whole number")
    return value


def _flag(value: Any) -> bool | None:
    if not isinstance(value, bool | None):
        raise TypeError("neither true nor false")
    return value


def _position(body: dict[str, Any]) -> Position | None:
    if "epoch" not in body:
        return None
    return Position(str(body["epoch"]), _whole(body["offset"]))


_READERS: dict[str, Callable[[dict[str, Any]], Event]] = {
    "auth_required": lambda body: AuthRequired(_number(body["timeout"])),
    "auth_ok": lambda body: Welcome(
        subject=str(body["subject"]),
        strategy=str(body["strategy"]),
        connection=str(body["connection"]),
        scopes=frozenset(map(str, body["scopes"])),
        expires_at=_number(body["expires_at"]),
        server_time=_number(body["server_time"]),
    ),
    "auth_expiring": lambda body: AuthExpiring(_number(body["expires_at"])),
    "joined": lambda body: Joined(
        room=str(body["room"]),
        members=tuple(str(member) for member in body["members"]),
        count=_whole(body["count"]) if "count" in body else None,
        recovered=_flag(body.get("recovered")),
        position=_position(body),
    ),
    "left": lambda body: Left(str(body["room"])),
    "message": lambda body: Message(
        room=str(body["room"]),
        sender=str(body["from"]),
        data=body["data"],
        at=_number(body["at"]),
        position=_position(body),
    ),
    "resync": lambda body: Resync(str(body["room"]), _position(body)),
    "presence": lambda body: Presence(
        str(body["room"]), str(body["subject"]), str(body["event"])
    ),
    "dropped": lambda body: Dropped(_whole(body["count"])),
    "restarting": lambda body: Restarting(_number(body["retry_after"])),
    "ack": lambda body: Ack(_id(body["id"])),
    "pong": lambda body: Pong(_id(body.get("id"))),
    "error": lambda body: Failure(
        str(body["slug"]), str(body["detail"]), _id(body.get("id"))
    ),
}


def read_event(text: str) -> Event:
    """Read one message of the server."""
    try:
        body = json.loads(text)
        return _READERS[body["type"]](body)
    except (ValueError, LookupError, TypeError, OverflowError, RecursionError):
        return Unknown(text)
