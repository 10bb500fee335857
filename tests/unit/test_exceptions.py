from __future__ import annotations

import pytest

from authws import close_codes, exceptions
from authws.exceptions import (
    AuthError,
    AuthwsError,
    ConfigurationError,
    ConnectionClosed,
    ExpiredTokenError,
    ForbiddenOriginError,
    MessageError,
    RateLimitedError,
)

ALL: dict[str, type[AuthwsError]] = {
    name: getattr(exceptions, name) for name in exceptions.__all__
}

CLOSES = {
    "AuthError": (close_codes.TOKEN_INVALID, 401),
    "MissingCredentialError": (close_codes.AUTH_MISSING, 401),
    "MalformedCredentialError": (close_codes.AUTH_MALFORMED, 401),
    "AuthTimeoutError": (close_codes.AUTH_TIMEOUT, 401),
    "InvalidTokenError": (close_codes.TOKEN_INVALID, 401),
    "ExpiredTokenError": (close_codes.TOKEN_EXPIRED, 401),
    "RevokedTokenError": (close_codes.TOKEN_REVOKED, 401),
    "UsedTicketError": (close_codes.TICKET_USED, 401),
    "InvalidSessionError": (close_codes.SESSION_INVALID, 401),
    "ExpiredSessionError": (close_codes.SESSION_EXPIRED, 401),
    "RevokedSessionError": (close_codes.SESSION_REVOKED, 401),
    "ChangedSubjectError": (close_codes.SUBJECT_CHANGED, 401),
    "ForbiddenOriginError": (close_codes.ORIGIN_FORBIDDEN, 403),
    "ForbiddenError": (close_codes.FORBIDDEN, 403),
    "RateLimitedError": (close_codes.RATE_LIMITED, 429),
    "TooManyConnectionsError": (close_codes.TOO_MANY_CONNECTIONS, 429),
    "ServerFullError": (close_codes.TOO_MANY_CONNECTIONS, 503),
    "RestartingError": (close_codes.SERVICE_RESTART, 503),
    "LimitError": (close_codes.RATE_LIMITED, 429),
    "OversizedMessageError": (close_codes.MESSAGE_TOO_BIG, 413),
    "UnavailableError": (close_codes.TRY_AGAIN_LATER, 503),
    "UnexpectedError": (close_codes.INTERNAL_ERROR, 500),
}


@pytest.mark.parametrize("name", CLOSES)
def test_each_refusal_knows_its_close_and_its_status(name: str) -> None:
    error = ALL[name]
    assert issubclass(error, AuthError)
    assert (error.close, error.status) == CLOSES[name]


def test_every_refusal_is_in_this_table() -> None:
    assert {n for n, e in ALL.items() if issubclass(e, AuthError)} == set(CLOSES)


def test_everything_public_is_exported_and_of_one_tree() -> None:
    defined = {
        name
        for name, value in vars(exceptions).items()
        if isinstance(value, type) and issubclass(value, AuthwsError)
    }
    assert defined == set(ALL)


def test_the_tree_of_the_docstring_is_the_tree() -> None:
    drawn = exceptions.__doc__ or ""
    assert all(name in drawn for name in ALL)
    for name, error in ALL.items():
        line = next(one for one in drawn.splitlines() if name in one.split())
        assert line.startswith("    │") == (AuthError in error.__mro__[1:])


def test_what_is_no_refusal_has_no_close() -> None:
    for error in (MessageError, ConnectionClosed, ConfigurationError):
        assert not issubclass(error, AuthError)


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (AuthError("token names no key"), "token names no key"),
        (ForbiddenOriginError("http://evil"), "origin not allowed: 'http://evil'"),
        (ForbiddenOriginError(None), "origin not allowed: None"),
        (ConnectionClosed(1008, "forbidden"), "connection closed: 1008 forbidden"),
        (ConnectionClosed(1006, ""), "connection closed: 1006"),
        (MessageError("malformed", "no JSON"), "malformed: no JSON"),
    ],
)
def test_an_error_reads_as_a_sentence(error: AuthwsError, sentence: str) -> None:
    assert str(error) == sentence


def test_a_peers_text_is_quoted_and_cut() -> None:
    sentence = str(ForbiddenOriginError("http://evil\r\n" + "x" * 10_000))
    assert len(sentence) < 256
    assert "\n" not in sentence


def test_errors_carry_what_the_caller_needs() -> None:
    assert ExpiredTokenError("late").session == ""
    assert ExpiredTokenError("late", "sid").session == "sid"
    assert RateLimitedError("slow down", "message_rate").retry_after == 1.0
    refused = RateLimitedError("slow down", "handshake_rate", 7.5)
    assert (refused.limit, refused.retry_after) == ("handshake_rate", 7.5)
    refusal = MessageError("forbidden", "no scope", 7)
    assert (refusal.slug, refusal.detail, refusal.message_id) == (
        "forbidden",
        "no scope",
        7,
    )
    ending = ConnectionClosed(1008, "forbidden")
    assert (ending.code, ending.reason) == (1008, "forbidden")
