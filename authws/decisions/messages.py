"""The room protocol's vocabulary, ``authws.v1``: JSON objects with a ``type``.

``parse`` turns a client's text into one of the five client messages; the builders
below it return the server's messages, encoded. A publisher's ``data`` is kept as the
JSON text it came as (``msgspec.Raw``), validated but never re-encoded.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from functools import lru_cache
from typing import Any

import msgspec

from authws.decisions.history import Position
from authws.decisions.limits import Limit
from authws.exceptions import MessageError
from authws.principal import Principal

__all__ = [
    "MAX_JSON_DEPTH",
    "SUBPROTOCOL",
    "Auth",
    "ClientMessage",
    "Join",
    "Leave",
    "MessageId",
    "Ping",
    "Publish",
    "ack",
    "auth_expiring",
    "auth_ok",
    "auth_required",
    "check_room",
    "dropped",
    "error",
    "is_auth",
    "joined",
    "left",
    "parse",
    "parse_auth",
    "placed",
    "pong",
    "presence",
    "restarting",
    "resync",
    "room_message",
]

SUBPROTOCOL = "authws.v1"
MAX_JSON_DEPTH = 64
"""Nesting that a message may have; Centrifugo and browsers meet far less."""
MAX_ID_LENGTH = 64

# A string that does not end is one up to the end of the text: to fail there, and to try
# again from each quote within it, would cost the square of its length (CWE-1333).
_STRING_OR_BRACKET = re.compile(r'"(?:[^"\\]++|\\.)*+(?:"|\\?\Z)|[\[{\]}]', re.DOTALL)
# Each letter may be escaped (RFC 8259, 7); most texts have no such escape at all.
_ESCAPED_AUTH = re.compile(r'"(?:a|\\u0061)(?:u|\\u0075)(?:t|\\u0074)(?:h|\\u0068)"')
_ROOM = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:-]{0,127}")

MessageId = str | int | None


class Auth(msgspec.Struct, tag="auth", tag_field="type"):
    """Present, or renew, the credential."""

    token: str


class Join(msgspec.Struct, tag="join", tag_field="type"):
    """Become a member of a room; with ``since``, behind all that was said after it."""

    room: str
    since: Position | None = None


class Leave(msgspec.Struct, tag="leave", tag_field="type"):
    """Stop being a member of a room."""

    room: str


class Publish(msgspec.Struct, tag="publish", tag_field="type"):
    """Send ``data`` to every member of a room, oneself included."""

    room: str
    data: msgspec.Raw
    id: MessageId = None


class Ping(msgspec.Struct, tag="ping", tag_field="type"):
    """Ask whether the server is there (browsers cannot send protocol pings)."""

    id: MessageId = None


ClientMessage = Auth | Join | Leave | Publish | Ping

_decoder = msgspec.json.Decoder(ClientMessage)
_encode = msgspec.json.Encoder().encode


def parse(text: str) -> ClientMessage:
    """Read one client message.

    Raises:
        MessageError: ``malformed`` for anything that is not one of the five, exactly.
    """
    if _too_deep(text):
        raise MessageError(
            "malformed",
            f"JSON nested deeper than {MAX_JSON_DEPTH}",
            limit=Limit.JSON_DEPTH,
        )
    try:
        message: ClientMessage = _decoder.decode(text)
    except msgspec.ValidationError as exc:
        raise MessageError("malformed", _shape(exc), _id_of(text)) from None
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        raise MessageError("malformed", _why_not_json(text), _id_of(text)) from None
    if isinstance(message, Auth):
        return parse_auth(text)
    _check_id(getattr(message, "id", None))
    return message


def parse_auth(text: str) -> Auth:
    """Read an ``auth`` message as strictly as a credential deserves.

    A member that stands twice is refused, since two parsers may keep different ones
    (RFC 8259, section 4). Members we do not know are ignored: who somebody is comes
    from the token alone.

    Raises:
        MessageError: ``auth_missing`` for another message, or one with no token;
            ``auth_malformed`` for what is not a JSON object with each member once.
    """
    if _too_deep(text):
        raise MessageError("auth_malformed", "JSON nested too deep")
    try:
        value = _strict(text)
    except (ValueError, RecursionError):
        raise MessageError("auth_malformed", "not one JSON object") from None
    if not isinstance(value, dict):
        raise MessageError("auth_malformed", "not a JSON object")
    kind = value.get("type")
    if not isinstance(kind, str):
        raise MessageError("auth_malformed", "no type")
    if kind != "auth":
        raise MessageError("auth_missing", "an auth message must come first")
    token = value.get("token")
    if token is None or token == "":
        raise MessageError("auth_missing", "no token in the auth message")
    if not isinstance(token, str):
        raise MessageError("auth_malformed", "the token is not a string")
    return Auth(token)


def is_auth(text: str) -> bool:
    """Tell whether a text is meant as an ``auth`` message, however well formed."""
    if '"auth"' not in text and not ("\\u00" in text and _ESCAPED_AUTH.search(text)):
        return False
    if not text.lstrip().startswith("{") or _too_deep(text):
        return False
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return False
    return isinstance(value, dict) and value.get("type") == "auth"


def check_room(room: str) -> str:
    """Return a room's name if it is one: 1 to 128 of ``A-Z a-z 0-9 _ . : -``.

    Raises:
        MessageError: ``room_invalid``.
    """
    if not _ROOM.fullmatch(room):
        raise MessageError(
            "room_invalid",
            "a room is 1 to 128 letters, digits, or any of _ . : -",
            limit=Limit.ROOM_NAME,
        )
    return room


def auth_required(timeout: float) -> str:
    """Ask for the first message; ``timeout`` in seconds."""
    return _text({"type": "auth_required", "timeout": timeout})


def auth_ok(principal: Principal, connection: str, now: float) -> str:
    """Tell a peer who it is; always the first message after authentication."""
    return _text(
        {
            "type": "auth_ok",
            "subject": principal.subject,
            "strategy": principal.strategy,
            "connection": connection,
            "scopes": sorted(principal.scopes),
            "expires_at": principal.expires_at,
            "server_time": now,
        }
    )


def auth_expiring(expires_at: float) -> str:
    """Warn that the credential ends at ``expires_at`` unless it is renewed."""
    return _text({"type": "auth_expiring", "expires_at": expires_at})


def dropped(count: int) -> str:
    """Tell how many of its rooms' messages a slow peer missed, at this place."""
    return _text({"type": "dropped", "count": count})


def restarting(retry_after: float) -> str:
    """Say that the server is about to close, and in how many seconds to come back."""
    return _text({"type": "restarting", "retry_after": retry_after})


def joined(
    room: str,
    members: Collection[str] | int,
    *,
    is_recovered: bool | None = None,
    position: Position | None = None,
) -> str:
    """Confirm a join.

    Args:
        room: its name.
        members: the subjects present, oneself included; of too many to be told, how
            many they are.
        is_recovered: whether all that was missed follows; None if nobody asked.
        position: after which message the peer stands, in a room that keeps any.
    """
    body: dict[str, Any] = {"type": "joined", "room": room}
    if isinstance(members, int):
        body |= {"members": [], "count": members}
    else:
        body["members"] = sorted(members)
    if is_recovered is not None:
        body["recovered"] = is_recovered
    return _text(_with_position(body, position))


def resync(room: str, position: Position | None) -> str:
    """Tell members that they may have missed something that cannot be told any more;
    what comes next comes after ``position``."""
    return _text(_with_position({"type": "resync", "room": room}, position))


def left(room: str) -> str:
    """Confirm that the connection is no longer in the room."""
    return _text({"type": "left", "room": room})


def presence(room: str, subject: str, event: str) -> bytes:
    """Tell members that a subject ``joined`` or ``left`` the room."""
    return _encode(
        {"type": "presence", "room": room, "subject": subject, "event": event}
    )


def room_message(room: str, sender: str, data: msgspec.Raw, at: float) -> bytes:
    """Build a room's message; ``from`` is the principal's subject, never a claim."""
    return _encode(
        {"type": "message", "room": room, "from": sender, "data": data, "at": at}
    )


def placed(message: bytes, position: Position) -> bytes:
    """Return a room's message with its position in the room's history."""
    # what is in a message is long since encoded; this is done once for each of them
    return b"%b,%b%d}" % (message[:-1], _epoch(position.epoch), position.offset)


@lru_cache(maxsize=64)
def _epoch(epoch: str) -> bytes:
    return b'"epoch":%b,"offset":' % _encode(epoch)


def ack(message_id: str | int) -> str:
    """Confirm that the broker has the publish with this id."""
    return _text({"type": "ack", "id": message_id})


def pong(message_id: MessageId) -> str:
    """Answer a ping."""
    return _text(_with_id({"type": "pong"}, message_id))


def error(refusal: MessageError) -> str:
    """Say why a message was refused."""
    body = {"type": "error", "slug": refusal.slug, "detail": refusal.detail}
    if _ROOM.fullmatch(refusal.room):  # what is no room's name is not repeated
        body["room"] = refusal.room
    return _text(_with_id(body, refusal.message_id))


def _text(value: dict[str, Any]) -> str:
    return _encode(value).decode()


def _with_position(body: dict[str, Any], position: Position | None) -> dict[str, Any]:
    if position is None:
        return body
    return {**body, "epoch": position.epoch, "offset": position.offset}


def _with_id(body: dict[str, Any], message_id: MessageId) -> dict[str, Any]:
    return body if message_id is None else {**body, "id": message_id}


def _too_deep(text: str) -> bool:
    """Tell whether JSON nests beyond the limit; brackets in strings do not count."""
    if text.count("[") + text.count("{") <= MAX_JSON_DEPTH:
        return False
    depth = 0
    for token in _STRING_OR_BRACKET.finditer(text):
        bracket = token[0]
        if bracket in "[{":
            depth += 1
            if depth > MAX_JSON_DEPTH:
                return True
        elif bracket in "]}":
            depth -= 1
    return False


def _reread(text: str) -> Any:
    """Return what a text says that was refused, or None if it is no JSON at all."""
    try:
        return json.loads(text, parse_constant=_refuse_constant, parse_int=_whole)
    except (ValueError, RecursionError):
        return None


def _whole(digits: str) -> int | float:
    # more digits than an id may have cost time, and are no id
    return int(digits) if len(digits) <= len("-9007199254740992") else float(digits)


def _id_of(text: str) -> MessageId:
    """Return the id of a publish that was refused, if it has one that may be one."""
    value = _reread(text)
    if not isinstance(value, dict) or value.get("type") != "publish":
        return None
    message_id = value.get("id")
    if not isinstance(message_id, str | int) or isinstance(message_id, bool):
        return None
    try:
        _check_id(message_id)
        _encode(message_id)
    except (MessageError, UnicodeError):
        return None
    return message_id


def _why_not_json(text: str) -> str:
    """Name what is wrong with a text that another parser may take for JSON."""
    try:
        json.dumps(_reread(text), ensure_ascii=False).encode()
    except UnicodeError:
        return "a lone surrogate (RFC 8259, 8.2) cannot be sent on as UTF-8"
    return "not a JSON text (RFC 8259)"


def _check_id(message_id: MessageId) -> None:
    if isinstance(message_id, str) and len(message_id) > MAX_ID_LENGTH:
        raise MessageError("malformed", f"an id has at most {MAX_ID_LENGTH} characters")
    if isinstance(message_id, int) and abs(message_id) > 2**53:
        # RFC 8259, section 6: beyond this a JavaScript number is another number
        raise MessageError("malformed", "an integer id is at most 2^53")


def _shape(exc: Exception) -> str:
    """Name the member that is wrong; msgspec quotes the peer's value, we do not."""
    where = re.search(r"`(\$[^`]*)`$", str(exc))
    return (
        f"unexpected or missing value at {where[1]}"
        if where
        else ("an object with a known type, and the members of that type, is expected")
    )


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise ValueError("duplicate member")
    return value


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


_strict = json.JSONDecoder(
    object_pairs_hook=_unique,
    parse_constant=_refuse_constant,
    parse_int=float,  # no number matters here, and a long int costs time
).decode
