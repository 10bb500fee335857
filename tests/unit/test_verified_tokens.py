"""Tokens that were verified a moment ago: what is remembered, for how long, of whom,
and that none of it lets anyone in who would not be let in without."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from authws.decisions.keys import KeyRing, SigningKey
from authws.decisions.tokens import Claims, TokenIssuer, TokenVerifier
from authws.decisions.verified_tokens import MAX_AGE, VerifiedTokens
from authws.exceptions import ExpiredTokenError, InvalidTokenError

NOW = 1_700_000_000.0
KEY = SigningKey("one", "HS256", bytes(range(32)), None)
OTHER = SigningKey("one", "HS256", bytes(range(1, 33)), None)

Remembered = VerifiedTokens[Claims, SigningKey]


def token(session: str = "s1", ttl: float = 900.0) -> str:
    issuer = TokenIssuer(KeyRing([KEY]), issuer="i", audience="a", ticket_audience="t")
    return issuer.access("alice", session, ["join:*"], now=NOW, expires_at=NOW + ttl)


class Keys:
    """A key set that a test changes; tells how often a signature was checked."""

    def __init__(self) -> None:
        self.key: SigningKey | None = KEY

    def get(self, _: str) -> SigningKey | None:
        return self.key


def verifier(keys: Keys, verified: Remembered | None) -> TokenVerifier:
    return TokenVerifier(
        keys.get,
        issuer="i",
        audience="a",
        kind="access",
        max_lifetime=86_400,
        verified=verified,
    )


@pytest.fixture
def keys() -> Keys:
    return Keys()


@pytest.fixture
def verified() -> Remembered:
    return VerifiedTokens()


@pytest.fixture
def checks(monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """How many signatures were checked."""
    checked: list[str] = []
    check = TokenVerifier._authenticated

    def counting(self: TokenVerifier, token: str) -> tuple[bytes, SigningKey]:
        checked.append(token)
        return check(self, token)

    monkeypatch.setattr(TokenVerifier, "_authenticated", counting)
    return lambda: len(checked)


def test_the_same_token_is_checked_once(
    keys: Keys, verified: Remembered, checks: Callable[[], int]
) -> None:
    verify, one = verifier(keys, verified).verify, token()
    assert verify(one, now=NOW) == verify(one, now=NOW + MAX_AGE - 0.001)
    assert checks() == 1


def test_without_a_memory_it_is_checked_each_time(
    keys: Keys, checks: Callable[[], int]
) -> None:
    verify, one = verifier(keys, None).verify, token()
    verify(one, now=NOW)
    verify(one, now=NOW)
    assert checks() == 2


@pytest.mark.parametrize("later", [MAX_AGE, MAX_AGE * 2])
def test_after_a_minute_it_is_checked_again(
    keys: Keys, verified: Remembered, checks: Callable[[], int], later: float
) -> None:
    verify, one = verifier(keys, verified).verify, token()
    verify(one, now=NOW)
    verify(one, now=NOW + later)
    assert checks() == 2


def test_a_clock_that_was_set_back_is_not_believed(
    keys: Keys, verified: Remembered, checks: Callable[[], int]
) -> None:
    verify, one = verifier(keys, verified).verify, token()
    verify(one, now=NOW + 50)
    verify(one, now=NOW + 49)
    assert checks() == 2


def test_the_times_are_compared_each_time(keys: Keys, verified: Remembered) -> None:
    verify, one = verifier(keys, verified).verify, token(ttl=10)
    verify(one, now=NOW + 9.999)
    with pytest.raises(ExpiredTokenError):
        verify(one, now=NOW + 10)


@pytest.mark.parametrize("key", [None, OTHER], ids=["withdrawn", "replaced"])
def test_a_key_that_is_gone_takes_its_tokens_along(
    keys: Keys, verified: Remembered, key: SigningKey | None
) -> None:
    verify, one = verifier(keys, verified).verify, token()
    verify(one, now=NOW)
    keys.key = key
    with pytest.raises(InvalidTokenError):
        verify(one, now=NOW)


def test_a_token_that_differs_in_one_letter_is_another(
    keys: Keys, verified: Remembered
) -> None:
    verify, one = verifier(keys, verified).verify, token()
    verify(one, now=NOW)
    for at in (3, len(one) // 2, -2):
        changed = bytearray(one.encode())
        changed[at] = ord("A") if changed[at] != ord("A") else ord("B")
        with pytest.raises(InvalidTokenError):
            verify(changed.decode(), now=NOW)
    for spoilt in (one + "=", one + " ", one + "\ud800", one.upper()):
        with pytest.raises(InvalidTokenError):
            verify(spoilt, now=NOW)


def test_a_refusal_is_not_remembered(
    keys: Keys, verified: Remembered, checks: Callable[[], int]
) -> None:
    verify, one = verifier(keys, verified).verify, token()
    keys.key = OTHER
    for _ in range(2):
        with pytest.raises(InvalidTokenError):
            verify(one, now=NOW)
    assert (checks(), len(verified)) == (2, 0)
    keys.key = KEY
    assert verify(one, now=NOW).subject == "alice"


def test_what_ends_a_session_drops_its_tokens_and_no_others(
    keys: Keys, verified: Remembered, checks: Callable[[], int]
) -> None:
    verify = verifier(keys, verified).verify
    mine, mine_too, others = token(), token(), token("s2")
    for one in (mine, mine_too, others):
        verify(one, now=NOW)
    verified.forget("s1")
    assert len(verified) == 1
    verified.forget("s1")
    verified.forget("never heard of")
    for one in (mine, mine_too, others):
        verify(one, now=NOW)
    assert checks() == 5


def test_the_oldest_goes_when_it_is_full() -> None:
    verified = VerifiedTokens[str, str](capacity=2)
    for name in ("one", "two"):
        verified.remember(name, name, key="k", session=name, now=NOW)
    assert [verified.find(name, NOW) for name in ("one", "two")] == [
        ("one", "k"),
        ("two", "k"),
    ]
    verified.remember("three", "three", key="k", session="two", now=NOW)
    assert verified.find("one", NOW) is None
    assert len(verified) == 2
    verified.forget("two")
    assert len(verified) == 0
    assert not verified._by_session


def test_no_token_is_kept(verified: Remembered, keys: Keys) -> None:
    one = token()
    verifier(keys, verified).verify(one, now=NOW)
    assert one.encode() not in repr(vars(verified)).encode()
    assert one.rpartition(".")[2] not in repr(vars(verified))
