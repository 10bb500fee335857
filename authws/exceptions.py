"""What can go wrong, as a tree.

    AuthwsError
    ├── AuthError                 a credential was refused; .close is for the peer
    │   ├── MissingCredentialError
    │   ├── MalformedCredentialError
    │   ├── AuthTimeoutError
    │   ├── InvalidTokenError
    │   ├── ExpiredTokenError
    │   ├── RevokedTokenError
    │   ├── UsedTicketError
    │   ├── InvalidSessionError
    │   ├── ExpiredSessionError
    │   ├── RevokedSessionError
    │   ├── ChangedSubjectError
    │   ├── ForbiddenOriginError
    │   ├── ForbiddenError
    │   ├── LimitError            the peer ran into a limit
    │   │   ├── RateLimitedError
    │   │   ├── TooManyConnectionsError
    │   │   │   └── ServerFullError
    │   │   └── OversizedMessageError
    │   ├── RestartingError
    │   ├── UnavailableError      we cannot decide: fail closed
    │   └── UnexpectedError       we failed: fail closed
    ├── MessageError              a message was refused; the connection lives on
    ├── ConnectionClosed          the peer is gone, or we ended it
    └── ConfigurationError        an unsafe or impossible setting

``str(error)`` is for the operator, ``error.close`` for the peer; neither is derived
from the other, and neither ever holds a credential.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import ClassVar

from authws import close_codes
from authws.close_codes import Close

__all__ = [
    "AuthError",
    "AuthTimeoutError",
    "AuthwsError",
    "ChangedSubjectError",
    "ConfigurationError",
    "ConnectionClosed",
    "ExpiredSessionError",
    "ExpiredTokenError",
    "ForbiddenError",
    "ForbiddenOriginError",
    "InvalidSessionError",
    "InvalidTokenError",
    "LimitError",
    "MalformedCredentialError",
    "MessageError",
    "MissingCredentialError",
    "OversizedMessageError",
    "RateLimitedError",
    "RestartingError",
    "RevokedSessionError",
    "RevokedTokenError",
    "ServerFullError",
    "TooManyConnectionsError",
    "UnavailableError",
    "UnexpectedError",
    "UsedTicketError",
]


class AuthwsError(Exception):
    """The root of every error that authws raises."""


class AuthError(AuthwsError):
    """A credential was refused, and this error already knows how to close."""

    close: ClassVar[Close] = close_codes.TOKEN_INVALID
    status: ClassVar[HTTPStatus] = HTTPStatus.UNAUTHORIZED
    """The status of an HTTP route that meets the same refusal."""

    is_logged = False
    """Whether the security log has a line about it already."""


class MissingCredentialError(AuthError):
    """The peer presented no credential."""

    close = close_codes.AUTH_MISSING


class MalformedCredentialError(AuthError):
    """The peer presented its credential in a form no strategy takes."""

    close = close_codes.AUTH_MALFORMED


class AuthTimeoutError(AuthError):
    """No auth message arrived before the deadline."""

    close = close_codes.AUTH_TIMEOUT


class InvalidTokenError(AuthError):
    """The token is not ours, not whole, or not meant for this."""

    close = close_codes.TOKEN_INVALID


class ExpiredTokenError(AuthError):
    """The token was good once; its signature and audience hold."""

    close = close_codes.TOKEN_EXPIRED

    def __init__(self, message: str, session: str = "") -> None:
        super().__init__(message)
        self.session = session
        """The token's session; to be ended by it, though not to be used by it."""


class RevokedTokenError(AuthError):
    """The session behind the token was ended."""

    close = close_codes.TOKEN_REVOKED


class UsedTicketError(AuthError):
    """The single-use ticket was used before."""

    close = close_codes.TICKET_USED


class InvalidSessionError(AuthError):
    """The cookie's signature fails, or it names no session."""

    close = close_codes.SESSION_INVALID


class ExpiredSessionError(AuthError):
    """The session reached its idle or absolute limit."""

    close = close_codes.SESSION_EXPIRED


class RevokedSessionError(AuthError):
    """The session was ended before its time."""

    close = close_codes.SESSION_REVOKED


class ChangedSubjectError(AuthError):
    """A renewal came from another subject or session."""

    close = close_codes.SUBJECT_CHANGED


class ForbiddenOriginError(AuthError):
    """The page that opened this connection may not (RFC 6455, 10.2)."""

    close = close_codes.ORIGIN_FORBIDDEN
    status = HTTPStatus.FORBIDDEN

    def __init__(self, origin: str | None) -> None:
        super().__init__(f"origin not allowed: {origin!r:.200}")


class ForbiddenError(AuthError):
    """The principal is known and lacks the scope."""

    close = close_codes.FORBIDDEN
    status = HTTPStatus.FORBIDDEN


class LimitError(AuthError):
    """The peer ran into a limit, named by ``limit``."""

    close = close_codes.RATE_LIMITED
    status = HTTPStatus.TOO_MANY_REQUESTS

    def __init__(self, message: str, limit: str, retry_after: float = 1.0) -> None:
        """``retry_after``: seconds after which another try may do better."""
        super().__init__(message)
        self.limit = limit
        self.retry_after = retry_after


class RateLimitedError(LimitError):
    """Too much, too fast."""


class TooManyConnectionsError(LimitError):
    """The user, or the peer's address, holds as many connections as it may."""

    close = close_codes.TOO_MANY_CONNECTIONS


class ServerFullError(TooManyConnectionsError):
    """This process holds as many connections as it may, whoever comes."""

    status = HTTPStatus.SERVICE_UNAVAILABLE


class RestartingError(AuthError):
    """The server takes nobody any more: it is about to restart."""

    close = close_codes.SERVICE_RESTART
    status = HTTPStatus.SERVICE_UNAVAILABLE


class OversizedMessageError(LimitError):
    """The first message is over its size limit."""

    close = close_codes.MESSAGE_TOO_BIG
    status = HTTPStatus.REQUEST_ENTITY_TOO_LARGE


class UnavailableError(AuthError):
    """What the decision needs cannot be read now: fail closed."""

    close = close_codes.TRY_AGAIN_LATER
    status = HTTPStatus.SERVICE_UNAVAILABLE


class UnexpectedError(AuthError):
    """We failed: nothing was decided about the credential, so it opens nothing."""

    close = close_codes.INTERNAL_ERROR
    status = HTTPStatus.INTERNAL_SERVER_ERROR


class MessageError(AuthwsError):
    """A message was refused; it is answered with ``error`` and the socket lives."""

    def __init__(
        self,
        slug: str,
        detail: str,
        message_id: str | int | None = None,
        *,
        limit: str = "",
    ) -> None:
        super().__init__(f"{slug}: {detail}")
        self.slug = slug
        self.detail = detail
        self.message_id = message_id
        self.room = ""
        """The room that was to be joined or left, if it was about one."""
        self.limit = limit
        """The limit that the message ran into, if it was one."""


class ConnectionClosed(AuthwsError):
    """The connection has ended; nothing more can be sent on it."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(f"connection closed: {code} {reason}".rstrip())
        self.code = code
        self.reason = reason


class ConfigurationError(AuthwsError):
    """A setting is unsafe or impossible; the message says what to change."""
