"""The life of a connection as a table.

Two rules hold here. Everything that moves the state lives in this file. And this
file has no socket and no clock: it is told events and the time, and tells its driver
the state, the close to send and the next deadline.

A renewal may extend ``expires_at`` and change the scopes; it may not change the
subject or the session.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from authws import close_codes
from authws.close_codes import Close
from authws.exceptions import AuthError, ChangedSubjectError
from authws.principal import Principal

__all__ = [
    "Accepted",
    "DeadlinePassed",
    "Event",
    "Lifecycle",
    "PeerLeft",
    "Refused",
    "State",
]


class State(Enum):
    """Where a connection stands."""

    AWAITING = "awaiting"
    """Open, and its peer still unknown: it gets no room's message."""
    AUTHENTICATED = "authenticated"
    CLOSED = "closed"


@dataclass(frozen=True, slots=True)
class Accepted:
    """A credential was verified: at first, or to renew."""

    principal: Principal


@dataclass(frozen=True, slots=True)
class Refused:
    """A credential was refused, or the connection's right to exist has ended."""

    close: Close


@dataclass(frozen=True, slots=True)
class DeadlinePassed:
    """The time that ``deadline`` named has come."""


@dataclass(frozen=True, slots=True)
class PeerLeft:
    """The peer closed, or its transport is gone."""


Event = Accepted | Refused | DeadlinePassed | PeerLeft

TRANSITIONS: dict[State, dict[type[Event], State]] = {
    State.AWAITING: {
        Accepted: State.AUTHENTICATED,
        Refused: State.CLOSED,
        DeadlinePassed: State.CLOSED,
        PeerLeft: State.CLOSED,
    },
    State.AUTHENTICATED: {
        Accepted: State.AUTHENTICATED,  # a fresh token renews the connection
        Refused: State.CLOSED,
        DeadlinePassed: State.CLOSED,
        PeerLeft: State.CLOSED,
    },
    State.CLOSED: {},
}


class Lifecycle:
    """One connection's state, its principal and its deadline."""

    __slots__ = ("_auth_deadline", "close", "principal", "state")

    def __init__(self, auth_deadline: float) -> None:
        """Start unauthenticated; ``auth_deadline`` is absolute, epoch seconds."""
        self.state = State.AWAITING
        self.principal: Principal | None = None
        self.close: Close | None = None
        """How the connection ended, once it is closed by us; None if the peer left."""
        self._auth_deadline = auth_deadline

    @property
    def deadline(self) -> float | None:
        """When the connection ends unless something happens; None once it is closed."""
        if self.state is State.CLOSED:
            return None
        return self.principal.expires_at if self.principal else self._auth_deadline

    def receive(self, event: Event) -> State:
        """Take an event; an event that the table does not allow changes nothing.

        Once closed, a connection stays closed: late events (a renewal that was being
        verified, a second revocation) are what interleaving brings, not errors.

        Raises:
            ChangedSubjectError: for a renewal from another subject or session; the
                connection is closed by then.
        """
        following = TRANSITIONS[self.state].get(type(event))
        if following is None:
            return self.state
        if isinstance(event, Accepted):
            self._accept(event.principal)
        elif isinstance(event, Refused):
            self._end(event.close)
        elif isinstance(event, DeadlinePassed):
            self._end(self._expiry())
        else:
            self.state = State.CLOSED
        return self.state

    def _accept(self, principal: Principal) -> None:
        if self.principal is not None and not _same(self.principal, principal):
            refusal = ChangedSubjectError("a renewal may not change subject or session")
            self._end(refusal.close)
            raise refusal
        self.principal = principal
        self.state = State.AUTHENTICATED

    def _expiry(self) -> Close:
        if self.principal is None:
            return close_codes.AUTH_TIMEOUT
        return expiry_close(self.principal)

    def _end(self, close: Close) -> None:
        self.state = State.CLOSED
        self.close = close


def expiry_close(principal: Principal) -> Close:
    """Name the ending of a principal whose time is up."""
    if principal.strategy == "session_cookie":
        return close_codes.SESSION_EXPIRED
    return close_codes.TOKEN_EXPIRED


def revocation_close(principal: Principal) -> Close:
    """Name the ending of a principal whose session was ended."""
    if principal.strategy == "session_cookie":
        return close_codes.SESSION_REVOKED
    return close_codes.TOKEN_REVOKED


def refusal(error: AuthError) -> Refused:
    """Turn an error into the event that ends a connection."""
    return Refused(error.close)


def _same(one: Principal, other: Principal) -> bool:
    return (one.subject, one.session, one.issuer) == (
        other.subject,
        other.session,
        other.issuer,
    )
