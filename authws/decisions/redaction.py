"""Blanking credentials wherever text is about to be kept.

Two nets, one behind the other: parameters whose name promises a secret, in whatever
spelling, and values whose shape is one of ours (a JWT, a refresh token), wherever they
stand. A third net is that strategies take the token out of the ASGI scope.
"""

from __future__ import annotations

import logging
import re
import traceback
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any

__all__ = [
    "REDACTED",
    "install_log_redaction",
    "log_failure",
    "makes_plain_records",
    "redact",
    "redact_query",
]

REDACTED = "[redacted]"

_NAMES = (
    "token|access_token|refresh_token|id_token|ticket|jwt|auth|authorization"
    "|password|passwd|secret|session|api_key|apikey|key|code"
)


def _encoded(name: str) -> str:
    """Match a name with any of its letters percent-encoded."""
    return "".join(
        f"(?:{re.escape(c)}|%{ord(c):02x}|%{ord(c.upper()):02x})" if c != "|" else "|"
        for c in name
    )


# A name may stand after a path too (``/ws;token=``), and what is no query, such as a
# fragment, is written into a log as a percent-encoded part of the path.
_BEFORE = r"(?:[?&;#/]|%(?:25)*(?:3f|26|3b|23|2f))"
_QUERY = re.compile(
    rf"(?i)({_BEFORE}(?:{_encoded(_NAMES)})(?:=|%(?:25)*3d))[^&#\s\"']*"
)
# "ey" is how the base64url of a JSON object begins, whatever white space follows "{".
# The other branch takes a word that holds no token in one step: to search it again
# from each "ey" within it would cost the square of its length (CWE-1333).
_JWT = re.compile(
    r"(?>([A-Za-z0-9_-]*?)ey[A-Za-z0-9_-]{6,}+)"
    r"\.[A-Za-z0-9_-]{6,}+(?:\.[A-Za-z0-9_-]*+)?=*|[A-Za-z0-9_-]++"
)
# our session cookie's value: an id and its signature, 256 bits each
_SESSION = re.compile(
    r"(?<![A-Za-z0-9_-])[A-Za-z0-9_-]{43}\.[A-Za-z0-9_-]{43}(?![A-Za-z0-9_-])"
)
_REFRESH = re.compile(r"rt_[A-Za-z0-9_-]{20,}")
_COOKIE = re.compile(r"(?i)((?:__Host-)?authws=)[^;\s\"']+")
_HEADER = re.compile(r"(?i)(\b(?:bearer|basic)\s+)[^\s\"',]+")
_MEMBER = re.compile(
    r"""(?ix)(["'](?:token|access_token|refresh_token|ticket|password|secret|cookie
    |current_password|new_password)["']\s*[:=]\s*)(?:b?"[^"]*"|b?'[^']*')"""
)
_MEMBER_WORDS = ("token", "ticket", "password", "secret", "cookie")
"""Each name of a member holds one."""


def redact(text: str) -> str:
    """Return ``text`` with every credential in it blanked."""
    if len(text) < 8:
        return text
    # every line of every log comes through here: a pattern is not tried where a part
    # that it cannot do without is not there
    if "=" in text or "%" in text:
        text = _QUERY.sub(rf"\g<1>{REDACTED}", text)
    folded = text.casefold()  # as the patterns compare
    if any(word in folded for word in _MEMBER_WORDS):
        text = _MEMBER.sub(rf'\g<1>"{REDACTED}"', text)
    if "bearer" in folded or "basic" in folded:
        text = _HEADER.sub(rf"\g<1>{REDACTED}", text)
    if "authws=" in folded:
        text = _COOKIE.sub(rf"\g<1>{REDACTED}", text)
    if "rt_" in text:
        text = _REFRESH.sub(REDACTED, text)
    if "." in text:
        text = _SESSION.sub(REDACTED, text)
    return _JWT.sub(_blank_token, text) if "ey" in text else text


def _blank_token(word: re.Match[str]) -> str:
    before: str | None = word[1]
    return word[0] if before is None else before + REDACTED


def redact_query(query_string: bytes) -> bytes:
    """Return a query string with every parameter's value blanked, names kept.

    What a handshake carries in its query is a credential or a guess at one: nothing
    in it is worth a place in a log.
    """
    pairs = query_string.split(b"&")[:32]
    return b"&".join(
        name[:64] + b"=redacted" for name, _, _ in (p.partition(b"=") for p in pairs)
    )


def log_failure(logger: logging.Logger, message: str, *args: object) -> None:
    """Log the exception that is being handled, as text with credentials blanked.

    The record does not carry the exception itself: who keeps that (an error tracker,
    a debugging handler) shows the locals of its frames, and a token is one of them.
    """
    logger.error(f"{message}\n%s", *args, redact(traceback.format_exc()))


class _RedactingRecord(logging.LogRecord):
    """A log record whose message never shows a credential."""

    def getMessage(self) -> str:
        message = super().getMessage()
        # without arguments it was blanked when the record was made
        return redact(message) if self.args or message is not self.msg else message


def _clean(value: object) -> object:
    if value is None or isinstance(value, int | float):
        return value
    text = str(value)
    cleaned = redact(text)
    return value if cleaned == text else cleaned


def _clean_args(args: Any) -> Any:
    # uvicorn's access formatter reads the arguments, not the message
    if isinstance(args, tuple):
        return tuple(_clean(arg) for arg in args)
    if isinstance(args, Mapping):
        return {key: _clean(value) for key, value in args.items()}
    return args


def install_log_redaction() -> None:
    """Blank credentials in every record of every logger, tracebacks included.

    The record factory is the one place that all loggers share, those included that
    are made later; a filter would have to sit on each (a parent's filter does not see
    a child's records, and Uvicorn logs the full query string of each WebSocket
    handshake in ``uvicorn.error``). Calling it again changes nothing.
    """
    previous = logging.getLogRecordFactory()
    if getattr(previous, "redacts", False):
        return
    logging.setLogRecordFactory(_redacting(previous))


def _redacting(
    previous: Callable[..., logging.LogRecord],
) -> Callable[..., logging.LogRecord]:
    formatter = logging.Formatter()

    def factory(*args: Any, **kwargs: Any) -> logging.LogRecord:
        record = previous(*args, **kwargs)
        if type(record) is logging.LogRecord:
            record.__class__ = _RedactingRecord
        record.args = _clean_args(record.args)
        if isinstance(record.msg, str) and not record.args:
            record.msg = redact(record.msg)
        if _is_exception(record.exc_info):
            # Formatter.format() prints exc_text where there is one
            record.exc_text = redact(formatter.formatException(record.exc_info))  # type: ignore[arg-type]
        return record

    factory.redacts = True  # type: ignore[attr-defined]
    factory.makes_plain = previous is logging.LogRecord  # type: ignore[attr-defined]
    return factory


def makes_plain_records() -> bool:
    """Tell whether a log record is what ``logging`` makes by itself, and no more: a
    tracer's factory adds fields that an operator's format may ask for."""
    factory = logging.getLogRecordFactory()
    return factory is logging.LogRecord or getattr(factory, "makes_plain", False)


def _is_exception(
    exc_info: tuple[type[BaseException], BaseException, TracebackType | None]
    | tuple[None, None, None]
    | None,
) -> bool:
    return bool(exc_info and exc_info[0])
