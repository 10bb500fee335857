from __future__ import annotations

import re

import pytest

from authws import close_codes
from authws.close_codes import BY_SLUG, Close, CloseCode, Retry

ALL = [value for value in vars(close_codes).values() if isinstance(value, Close)]

SLUGS = {
    "auth_missing": Retry.REAUTHENTICATE,
    "auth_timeout": Retry.BACKOFF,
    "auth_malformed": Retry.NEVER,
    "token_invalid": Retry.REAUTHENTICATE,
    "token_expired": Retry.REAUTHENTICATE,
    "token_revoked": Retry.REAUTHENTICATE,
    "ticket_used": Retry.REAUTHENTICATE,
    "session_invalid": Retry.REAUTHENTICATE,
    "session_expired": Retry.REAUTHENTICATE,
    "session_revoked": Retry.REAUTHENTICATE,
    "subject_changed": Retry.REAUTHENTICATE,
    "origin_forbidden": Retry.NEVER,
    "forbidden": Retry.NEVER,
    "rate_limited": Retry.BACKOFF,
    "slow_consumer": Retry.BACKOFF,
    "too_many_connections": Retry.BACKOFF,
}
"""The contract's, with what a client may do after each."""


@pytest.mark.parametrize(("slug", "retry"), SLUGS.items())
def test_every_slug_of_the_contract_is_a_1008(slug: str, retry: Retry) -> None:
    close = BY_SLUG[slug]
    assert (close.code, close.reason, close.retry) == (1008, slug, retry)


def test_no_other_ending_is_a_1008() -> None:
    policy = {c.reason for c in ALL if c.code is CloseCode.POLICY_VIOLATION}
    assert policy == set(SLUGS)


def test_the_table_holds_every_ending_with_a_slug_once() -> None:
    slugs = [close.reason for close in ALL if close.reason]
    assert sorted(slugs) == sorted(BY_SLUG)
    assert len(set(slugs)) == len(slugs)


@pytest.mark.parametrize("close", ALL, ids=lambda close: close.reason or "normal")
def test_a_reason_is_a_slug_that_fits_a_close_frame(close: Close) -> None:
    assert re.fullmatch(r"[a-z_]{0,40}", close.reason)
    assert close.meaning
    assert close.code in set(CloseCode)


@pytest.mark.parametrize("code", CloseCode)
def test_codes_are_ones_that_an_endpoint_may_send(code: CloseCode) -> None:
    """RFC 6455, 7.4.1: 1004 to 1006 and 1015 never stand in a close frame."""
    assert code not in {1004, 1005, 1006, 1015}
    assert 1000 <= code <= 1014


def test_a_reason_of_123_bytes_is_the_longest() -> None:
    assert Close(CloseCode.NORMAL, "x" * 123, Retry.NEVER, "")
    with pytest.raises(ValueError, match="123 bytes"):
        Close(CloseCode.NORMAL, "x" * 124, Retry.NEVER, "")


def test_a_reason_is_measured_in_bytes_not_characters() -> None:
    with pytest.raises(ValueError, match="123 bytes"):
        Close(CloseCode.NORMAL, "é" * 62, Retry.NEVER, "")
