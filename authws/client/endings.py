"""How it can end, and what to do next: the close table, seen from the other side.

    ClientError               .retry says what to do next, .meaning what happened
    ├── UnreachableError      no answer: name, network, TLS, time
    ├── RefusedError          an HTTP answer refused, before there was a WebSocket
    └── EndedError            a WebSocket ended, with a close code and a reason

No error holds a credential.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from authws import close_codes
from authws.close_codes import Retry
from authws.exceptions import AuthwsError

__all__ = ["ClientError", "EndedError", "Ending", "RefusedError", "UnreachableError"]

_BY_CODE: dict[int, tuple[Retry, str]] = {
    # RFC 6455, 7.4.1; 1012 and 1013 from the IANA registry
    1000: (Retry.NEVER, "the server is done"),
    1001: (Retry.BACKOFF, "the server is going away"),
    1002: (Retry.NEVER, "the server saw a violation of the WebSocket protocol"),
    1003: (Retry.NEVER, "the server does not take this kind of message"),
    1005: (Retry.BACKOFF, "the server closed without giving a reason"),
    1006: (Retry.BACKOFF, "the connection was lost"),
    1007: (Retry.NEVER, "the server saw text that is not UTF-8"),
    1008: (Retry.NEVER, "the server's policy forbids this"),
    1009: (Retry.NEVER, "a message was over the server's limit"),
    1011: (Retry.BACKOFF, "the server failed"),
    1012: (Retry.BACKOFF, "the server is restarting"),
    1013: (Retry.BACKOFF, "the server is overloaded"),
}

_BY_SLUG: dict[str, tuple[Retry, str]] = {
    # what REST refuses beyond the close table
    "credentials_invalid": (
        Retry.REAUTHENTICATE,
        "the user name or the password is wrong, or the user is disabled",
    ),
    "rate_limited": (Retry.BACKOFF, "too many attempts"),
    "host_unknown": (Retry.NEVER, "the server does not go by this name"),
    "tls_required": (Retry.NEVER, "the server takes https and wss only"),
    "not_found": (Retry.NEVER, "the server has no such page: is it authws?"),
    "internal_error": (Retry.BACKOFF, "the server failed"),
}

_BY_STATUS: dict[int, tuple[Retry, str]] = {
    401: (Retry.REAUTHENTICATE, "the credential was refused"),
    # a close before accept shows on the wire as 403 without any reason
    403: (Retry.REAUTHENTICATE, "refused before the WebSocket was opened"),
    404: (Retry.NEVER, "the server has no such page: is it authws?"),
    429: (Retry.BACKOFF, "too many attempts"),
}


@dataclass(frozen=True, slots=True)
class Ending:
    """How a WebSocket ended."""

    code: int
    reason: str
    retry: Retry
    meaning: str

    @classmethod
    def of(cls, code: int, reason: str) -> Ending:
        """Look an ending up: by its slug where we know it, else by its code."""
        known = close_codes.BY_SLUG.get(reason)
        if known is not None and known.code == code:
            return cls(code, reason, known.retry, known.meaning)
        retry, meaning = _BY_CODE.get(code, (Retry.NEVER, "an ending of its own kind"))
        return cls(code, reason, retry, meaning)


class ClientError(AuthwsError):
    """It did not work, and ``retry`` says what to do next."""

    def __init__(self, sentence: str, *, retry: Retry, meaning: str) -> None:
        super().__init__(sentence)
        self.retry = retry
        self.meaning = meaning


class UnreachableError(ClientError):
    """Nobody answered, or not in a way that can be trusted."""

    def __init__(self, url: str, why: str, *, retry: Retry = Retry.BACKOFF) -> None:
        super().__init__(f"cannot reach {url}: {why}", retry=retry, meaning=why)


class RefusedError(ClientError):
    """The server answered, and refused."""

    def __init__(self, status: int, slug: str, retry_after: float | None) -> None:
        retry, meaning = _look_up(status, slug)
        known = f"{status} {slug}".rstrip()
        super().__init__(f"refused: {known}: {meaning}", retry=retry, meaning=meaning)
        self.status = status
        self.slug = slug
        """The answer's ``detail``; empty where the answer says nothing."""
        self.retry_after = retry_after
        """Seconds that the server asks us to wait."""

    @classmethod
    def of(cls, status: int, body: object, headers: Mapping[str, str]) -> RefusedError:
        """Read a refusal; ``body`` is the answer's JSON, or None."""
        detail = body.get("detail") if isinstance(body, dict) else None
        slug = detail if isinstance(detail, str) and detail.isidentifier() else ""
        after = headers.get("retry-after", "")
        seconds = float(after) if after.isdecimal() and len(after) < 8 else None
        return cls(status, slug[:64], seconds)


class EndedError(ClientError):
    """The WebSocket has ended; ``ending`` says how."""

    def __init__(self, ending: Ending) -> None:
        known = f"{ending.code} {ending.reason}".rstrip()
        super().__init__(
            f"closed: {known}: {ending.meaning}",
            retry=ending.retry,
            meaning=ending.meaning,
        )
        self.ending = ending


def _look_up(status: int, slug: str) -> tuple[Retry, str]:
    if slug in _BY_SLUG:
        return _BY_SLUG[slug]
    close = close_codes.BY_SLUG.get(slug)
    if close is not None:
        return close.retry, close.meaning
    if status >= 500:
        return Retry.BACKOFF, "the server failed"
    return _BY_STATUS.get(status, (Retry.NEVER, "the server did not take the request"))
