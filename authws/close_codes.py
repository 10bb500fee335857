"""Every ending has a name: code, slug and what the client should do next.

One table, shared by the server, the client and the documentation. A reason is a
slug of at most 123 bytes (RFC 6455, 5.5: a control frame carries 125 bytes, two of
them the code); it tells the peer what to do and never what the operator knows.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum, StrEnum

__all__ = ["BY_SLUG", "Close", "CloseCode", "Retry"]

MAX_REASON_BYTES = 123


class CloseCode(IntEnum):
    """The close codes that authws sends (RFC 6455, 7.4.1, and the IANA registry)."""

    NORMAL = 1000
    UNSUPPORTED_DATA = 1003
    INVALID_DATA = 1007
    POLICY_VIOLATION = 1008
    MESSAGE_TOO_BIG = 1009
    INTERNAL_ERROR = 1011
    SERVICE_RESTART = 1012
    TRY_AGAIN_LATER = 1013


class Retry(StrEnum):
    """What a client may do after an ending."""

    NEVER = "never"
    """The same attempt will fail again: show it to the user."""
    REAUTHENTICATE = "reauthenticate"
    """Get a fresh credential, then connect again."""
    BACKOFF = "backoff"
    """Connect again with the same credential, later and with jitter."""


@dataclass(frozen=True, slots=True)
class Close:
    """A way for a connection to end, as the peer sees it."""

    code: CloseCode
    reason: str
    retry: Retry
    meaning: str

    def __post_init__(self) -> None:
        if len(self.reason.encode()) > MAX_REASON_BYTES:
            raise ValueError(f"close reason over {MAX_REASON_BYTES} bytes")


def _policy(slug: str, retry: Retry, meaning: str) -> Close:
    return Close(CloseCode.POLICY_VIOLATION, slug, retry, meaning)


AUTH_MISSING = _policy(
    "auth_missing", Retry.REAUTHENTICATE, "no credential was presented"
)
AUTH_TIMEOUT = _policy(
    "auth_timeout", Retry.BACKOFF, "no auth message arrived before the deadline"
)
AUTH_MALFORMED = _policy(
    "auth_malformed",
    Retry.NEVER,
    "the credential was not presented as the strategy demands",
)
TOKEN_INVALID = _policy(
    "token_invalid", Retry.REAUTHENTICATE, "the token is not one this server accepts"
)
TOKEN_EXPIRED = _policy(
    "token_expired", Retry.REAUTHENTICATE, "the token was good and has expired"
)
TOKEN_REVOKED = _policy(
    "token_revoked", Retry.REAUTHENTICATE, "the token's session was ended"
)
TICKET_USED = _policy(
    "ticket_used", Retry.REAUTHENTICATE, "the single-use ticket was used before"
)
SESSION_INVALID = _policy(
    "session_invalid", Retry.REAUTHENTICATE, "the cookie names no session"
)
SESSION_EXPIRED = _policy(
    "session_expired", Retry.REAUTHENTICATE, "the session reached a time limit"
)
SESSION_REVOKED = _policy(
    "session_revoked", Retry.REAUTHENTICATE, "the session was ended"
)
SUBJECT_CHANGED = _policy(
    "subject_changed",
    Retry.REAUTHENTICATE,
    "a renewal came from another subject or session",
)
ORIGIN_FORBIDDEN = _policy(
    "origin_forbidden", Retry.NEVER, "the page's origin is not allowed"
)
FORBIDDEN = _policy("forbidden", Retry.NEVER, "the peer may not do what it tried")
RATE_LIMITED = _policy("rate_limited", Retry.BACKOFF, "too many messages or handshakes")
SLOW_CONSUMER = _policy(
    "slow_consumer", Retry.BACKOFF, "the peer read too slowly and its outbox filled"
)
TOO_MANY_CONNECTIONS = _policy(
    "too_many_connections", Retry.BACKOFF, "the user holds all connections allowed"
)

NORMAL_CLOSURE = Close(CloseCode.NORMAL, "", Retry.NEVER, "the server is done")
BINARY_UNSUPPORTED = Close(
    CloseCode.UNSUPPORTED_DATA,
    "text_expected",
    Retry.NEVER,
    "a binary message came where JSON text is spoken",
)
MESSAGE_TOO_BIG = Close(
    CloseCode.MESSAGE_TOO_BIG,
    "message_too_big",
    Retry.NEVER,
    "a message over the limit",
)
INTERNAL_ERROR = Close(
    CloseCode.INTERNAL_ERROR, "internal_error", Retry.BACKOFF, "the server failed"
)
SERVICE_RESTART = Close(
    CloseCode.SERVICE_RESTART, "restart", Retry.BACKOFF, "the server is restarting"
)
TRY_AGAIN_LATER = Close(
    CloseCode.TRY_AGAIN_LATER,
    "unavailable",
    Retry.BACKOFF,
    "the server cannot decide just now",
)

BY_SLUG: dict[str, Close] = {
    close.reason: close
    for close in list(globals().values())
    if isinstance(close, Close) and close.reason
}
"""Every ending that carries a slug, by that slug."""
