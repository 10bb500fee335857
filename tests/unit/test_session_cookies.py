from __future__ import annotations

import base64
import hashlib

import pytest
from itsdangerous import Signer, URLSafeTimedSerializer

from authws.decisions.session_cookies import (
    COOKIE_NAME,
    SECURE_COOKIE_NAME,
    SessionCookieSigner,
    session_digest,
)
from authws.exceptions import ConfigurationError, InvalidSessionError
from tests.builders import OLD_SECRET, SECRET, make_cookie, make_token

SIGNER = SessionCookieSigner([SECRET])
ID = SIGNER.new()
COOKIE = SIGNER.sign(ID)
ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"


def test_signed_id_comes_back() -> None:
    assert SIGNER.unsign(COOKIE) == ID


def test_ids_hold_256_bits_and_do_not_repeat() -> None:  # COO-11
    ids = [SIGNER.new() for _ in range(1000)]
    assert len(set(ids)) == len(ids)
    assert {len(base64.urlsafe_b64decode(one + "=")) for one in ids} == {32}


def test_names_are_those_of_the_contract() -> None:
    assert (COOKIE_NAME, SECURE_COOKIE_NAME) == ("authws", "__Host-authws")


@pytest.mark.parametrize("position", range(len(COOKIE)))
def test_changed_character_is_refused(position: int) -> None:  # COO-02
    # Every other character, so that no second spelling of the same bytes slips by.
    for character in {*ALPHABET, "="} - {COOKIE[position]}:
        changed = COOKIE[:position] + character + COOKIE[position + 1 :]
        with pytest.raises(InvalidSessionError):
            SIGNER.unsign(changed)


@pytest.mark.parametrize(
    "value",
    [
        pytest.param("", id="COO-01 empty"),
        pytest.param("null", id="COO-02 null"),
        pytest.param(ID, id="COO-02 unsigned"),
        pytest.param('{"user":"alice"}', id="COO-02 unsigned JSON"),
        pytest.param(COOKIE + "=", id="COO-02 padded"),
        pytest.param(COOKIE + "\n", id="line end"),
        pytest.param(" " + COOKIE, id="space"),
        pytest.param(f'"{COOKIE}"', id="quoted"),
        pytest.param(COOKIE + "." + COOKIE, id="twice"),
        pytest.param("." + COOKIE.partition(".")[2], id="no id"),
        pytest.param(ID + ".", id="no signature"),
        pytest.param("\udcff" * 87, id="surrogates"),
        pytest.param("é" * 87, id="not ASCII"),
        pytest.param("a" * 8192, id="COO-10 8 KiB"),
        pytest.param("a" * 65536, id="COO-10 64 KiB"),
        pytest.param(make_token(), id="TOK-30 access token"),
    ],
)
def test_other_value_is_refused_without_quoting_it(value: str) -> None:
    with pytest.raises(InvalidSessionError) as refused:
        SIGNER.unsign(value)
    assert len(value) < 5 or value not in str(refused.value)


@pytest.mark.parametrize(
    "other",
    [
        pytest.param(Signer(SECRET), id="COO-03 default salt"),
        pytest.param(
            Signer(SECRET, salt="authws session cookie", digest_method=hashlib.sha256),
            id="COO-03 the secret itself",
        ),
        pytest.param(
            Signer(SECRET, salt="other", digest_method=hashlib.sha256),
            id="COO-03 other salt",
        ),
    ],
)
def test_signature_of_another_purpose_is_refused(other: Signer) -> None:
    with pytest.raises(InvalidSessionError):
        SIGNER.unsign(other.sign(ID).decode())


def test_serialized_session_of_another_library_is_refused() -> None:  # COO-03
    value = URLSafeTimedSerializer(SECRET, salt="cookie-session").dumps({"user": "a"})
    with pytest.raises(InvalidSessionError):
        SIGNER.unsign(str(value))


def test_rotation_keeps_cookies_of_the_old_secret_and_signs_with_the_new() -> None:
    old = make_cookie(ID, [OLD_SECRET])
    rotated = SessionCookieSigner([OLD_SECRET, SECRET])
    assert rotated.unsign(old) == ID
    assert rotated.sign(ID) == COOKIE
    with pytest.raises(InvalidSessionError):
        SIGNER.unsign(old)


def test_signer_needs_a_secret() -> None:
    with pytest.raises(ConfigurationError):
        SessionCookieSigner([])


@pytest.mark.parametrize(
    "secret_id",
    ["", "alice", ID + "=", ID[:-1]],
    ids=["empty", "short", "padded", "cut"],
)
def test_only_session_ids_are_signed(secret_id: str) -> None:
    with pytest.raises(ValueError, match="not a session id"):
        SIGNER.sign(secret_id)


def test_public_id_is_a_hash_of_the_secret_one() -> None:
    digest = session_digest(ID)
    assert (
        base64.urlsafe_b64decode(digest + "=") == hashlib.sha256(ID.encode()).digest()
    )
    assert ID not in digest
