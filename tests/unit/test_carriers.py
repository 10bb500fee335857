from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from authws.decisions.carriers import (
    MAX_COOKIE_HEADER_BYTES,
    MAX_QUERY_BYTES,
    bearer,
    cookie_values,
    one_token,
    query_values,
)
from authws.exceptions import MalformedCredentialError, MissingCredentialError

COOKIE = "__Host-authws"
REFUSALS = (MalformedCredentialError, MissingCredentialError)


@pytest.mark.parametrize(
    ("query", "values"),
    [
        (b"", []),
        (b"token=a", ["a"]),
        (b"x=1&token=a&y=2", ["a"]),
        (b"token=", [""]),
        (b"token", [""]),
        (b"token=a&token=b", ["a", "b"]),
        (b"token=a&token=", ["a", ""]),
        (b"%74oken=a", ["a"]),
        (b"token=a%2Eb", ["a.b"]),
        (b"token=a=b", ["a=b"]),
        (b"TOKEN=a", []),
        (b"access_token=a&jwt=b&token%00=c", []),
        (b"token=a;token=b", ["a;token=b"]),
        (b"token[]=a", []),
    ],
)
def test_query_values(query: bytes, values: list[str]) -> None:
    assert query_values(query, "token") == values


@pytest.mark.parametrize(
    "query",
    [
        b"token=" + b"a" * MAX_QUERY_BYTES,
        b"token=\xff",
        "token=é".encode(),
        b"&".join(b"x=1" for _ in range(33)),
    ],
    ids=["too long", "not ascii", "utf-8", "too many parameters"],
)
def test_query_that_cannot_be_read_is_malformed(query: bytes) -> None:
    with pytest.raises(MalformedCredentialError):
        query_values(query, "token")


def test_exactly_one_token_is_taken() -> None:
    assert one_token(["a"]) == "a"


@pytest.mark.parametrize("values", [[], [""]])
def test_no_token_is_missing(values: list[str]) -> None:
    with pytest.raises(MissingCredentialError):
        one_token(values)


@pytest.mark.parametrize("values", [["a", "b"], ["a", "a"], ["", "a"], ["", ""]])
def test_two_tokens_are_malformed_even_if_equal_or_empty(values: list[str]) -> None:
    with pytest.raises(MalformedCredentialError):
        one_token(values)


@pytest.mark.parametrize(
    "header", ["Bearer abc", "bearer abc", "BEARER abc", "Bearer  abc", "Bearer abc "]
)
def test_bearer_token(header: str) -> None:
    assert bearer([header]) == "abc"


def test_no_authorization_header_is_no_bearer() -> None:
    assert bearer([]) is None


@pytest.mark.parametrize("header", ["Bearer", "Bearer ", "bearer   "])
def test_bearer_without_token_is_missing(header: str) -> None:
    with pytest.raises(MissingCredentialError):
        bearer([header])


@pytest.mark.parametrize(
    "values",
    [["Basic abc"], ["abc"], [""], ["Bearerabc"], ["Bearer a", "Bearer a"]],
)
def test_other_authorization_is_malformed(values: list[str]) -> None:
    with pytest.raises(MalformedCredentialError):
        bearer(values)


@pytest.mark.parametrize(
    ("headers", "values"),
    [
        ([], []),
        ([""], []),
        ([f"{COOKIE}=a"], ["a"]),
        ([f"x=1; {COOKIE}=a; y=2"], ["a"]),
        ([f"x=1;{COOKIE}=a;y=2"], ["a"]),
        ([f"{COOKIE}="], [""]),
        ([f"{COOKIE}=a=b"], ["a=b"]),
        ([f"{COOKIE}=a; {COOKIE}=b"], ["a", "b"]),
        ([f"{COOKIE}=a", f"{COOKIE}=b"], ["a", "b"]),
        ([COOKIE], []),
        (["authws=a; __host-authws=b; __HOST-authws=c"], []),
        ([f"x{COOKIE}=a; {COOKIE}x=b"], []),
        ([f"={COOKIE}=a"], []),
        ([f'"{COOKIE}=a"'], []),
        ([f"{COOKIE} =a"], []),
    ],
)
def test_cookie_values(headers: list[str], values: list[str]) -> None:
    assert cookie_values(headers, COOKIE) == values


def test_cookie_header_over_its_limit_is_malformed() -> None:
    with pytest.raises(MalformedCredentialError):
        cookie_values(["x" * (MAX_COOKIE_HEADER_BYTES + 1)], COOKIE)


@given(st.binary(max_size=300))
def test_any_query_is_read_or_refused(query: bytes) -> None:
    with suppress(*REFUSALS):
        one_token(query_values(query, "token"))


@given(st.lists(st.text(max_size=40), max_size=3))
def test_any_header_is_read_or_refused(headers: list[str]) -> None:
    cookie_values(headers, COOKIE)
    with suppress(*REFUSALS):
        bearer(headers)


@given(st.text(alphabet=st.characters(min_codepoint=33, max_codepoint=126)))
def test_errors_do_not_repeat_what_came(text: str) -> None:
    secret = f"CANARY{text}"
    for read in (
        lambda: bearer([f"Basic {secret}"]),
        lambda: bearer([f"Bearer {secret}", "x"]),
        lambda: one_token([secret, secret]),
        lambda: query_values(f"token={secret}\xff".encode("latin-1"), "token"),
    ):
        with pytest.raises(MalformedCredentialError) as caught:
            read()
        assert "CANARY" not in str(caught.value)
