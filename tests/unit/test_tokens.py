from __future__ import annotations

import base64
import json
import math
import time
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from authws.decisions.keys import KeyRing, SigningKey
from authws.decisions.tokens import (
    MAX_TOKEN_BYTES,
    TokenIssuer,
    TokenVerifier,
)
from authws.exceptions import (
    ConfigurationError,
    ExpiredTokenError,
    InvalidTokenError,
)
from tests.builders import (
    ABSENT,
    ACCESS_TTL,
    AUDIENCE,
    ISSUER,
    KEY,
    NOW,
    OLD_KEY,
    SECRET,
    SESSION,
    SUBJECT,
    TICKET_AUDIENCE,
    TICKET_TTL,
    b64url,
    compact,
    make_claims,
    make_cookie,
    make_eddsa_key,
    make_es256_key,
    make_issuer,
    make_ticket,
    make_token,
    make_verifier,
    sign,
)

GOOD = make_token()
HEADER, PAYLOAD, SIGNATURE = GOOD.split(".")
VERIFIER = make_verifier()
FOREIGN = make_verifier(require_session=False, types=["JWT", "at+jwt"])
HEADER_MEMBERS = {"alg": "HS256", "kid": KEY.kid, "typ": "at+jwt"}
RSA = rsa.generate_private_key(public_exponent=65537, key_size=2048)


@pytest.fixture(autouse=True)
def _good_token_is_accepted_before_and_after() -> Any:
    """TOK-46: without this, a verifier that refuses everything passes."""
    assert VERIFIER.verify(GOOD, now=NOW).subject == SUBJECT
    yield
    assert VERIFIER.verify(GOOD, now=NOW).subject == SUBJECT


def refused(
    token: str, verifier: TokenVerifier = VERIFIER, now: float = NOW
) -> InvalidTokenError:
    """Verify what must be refused, and be told why without a piece of it."""
    with pytest.raises(InvalidTokenError) as caught:
        verifier.verify(token, now=now)
    assert caught.value.__cause__ is None
    assert str(caught.value).startswith("token ")
    for part in token.split("."):
        assert len(part) < 8 or part not in str(caught.value)
    return caught.value


def header_json(**members: Any) -> bytes:
    return json.dumps({**HEADER_MEMBERS, **members}).encode()


def claims_json(**members: Any) -> bytes:
    return json.dumps(make_claims(**members)).encode()


# What is issued is what is believed


@pytest.mark.parametrize(
    "key",
    [
        pytest.param(KEY, id="HS256"),
        pytest.param(make_eddsa_key(), id="EdDSA"),
        pytest.param(make_es256_key(), id="ES256"),
    ],
)
def test_issued_access_token_comes_back_as_claims(key: SigningKey) -> None:
    token = make_issuer(key).access(
        SUBJECT, SESSION, ["publish:a", "join:*"], now=NOW + 0.25, expires_at=NOW + 900
    )
    claims = make_verifier(key).verify(token, now=NOW + 1)
    assert claims.token_id
    assert (claims.subject, claims.session) == (SUBJECT, SESSION)
    assert (claims.issuer, claims.audience) == (ISSUER, AUDIENCE)
    assert claims.issued_at == claims.not_before == NOW + 0.25
    assert claims.expires_at == claims.connect_until == NOW + 900
    assert claims.scopes == {"publish:a", "join:*"}
    assert claims.kind == "access"


def test_issued_ticket_says_how_long_its_connection_may_live() -> None:
    token = make_issuer().ticket(
        SUBJECT,
        SESSION,
        [],
        now=NOW,
        expires_at=NOW + TICKET_TTL,
        connect_until=NOW + 700.5,
    )
    claims = make_verifier(kind="ticket").verify(token, now=NOW)
    assert (claims.kind, claims.audience) == ("ticket", TICKET_AUDIENCE)
    assert claims.expires_at == NOW + TICKET_TTL
    assert claims.connect_until == NOW + 700.5
    assert claims.scopes == frozenset()


def test_built_tokens_are_valid_by_default() -> None:
    assert VERIFIER.verify(make_token(), now=NOW).session == SESSION
    ticket = make_verifier(kind="ticket").verify(make_ticket(), now=NOW)
    assert ticket.connect_until == NOW + ACCESS_TTL


def test_issued_token_is_typed_and_has_no_member_it_does_not_need() -> None:
    token = make_issuer().access(
        SUBJECT, SESSION, ["b", "a", "a"], now=NOW, expires_at=NOW + 900
    )
    assert jwt.get_unverified_header(token) == HEADER_MEMBERS
    claims = jwt.decode(token, options={"verify_signature": False})
    assert {*claims} == {*make_claims()}
    assert claims["scope"] == "a b"


def test_token_ids_hold_128_bits_and_do_not_repeat() -> None:  # COO-11
    issuer = make_issuer()
    tokens = [
        issuer.access(SUBJECT, SESSION, [], now=NOW, expires_at=NOW + 1)
        for _ in range(1000)
    ]
    ids = {VERIFIER.verify(token, now=NOW).token_id for token in tokens}
    assert len(ids) == len(tokens)
    assert {len(base64.urlsafe_b64decode(one + "==")) for one in ids} == {16}


def test_standard_library_of_the_field_verifies_what_we_issue() -> None:
    now = time.time()
    key = make_es256_key()
    token = make_issuer(key).access(SUBJECT, SESSION, [], now=now, expires_at=now + 60)
    claims = jwt.decode(
        token,
        key.public,  # type: ignore[arg-type]
        algorithms=["ES256"],
        audience=AUDIENCE,
        issuer=ISSUER,
    )
    assert claims["sub"] == SUBJECT


@pytest.mark.parametrize("scope", ["", "a admin", "a\nb", 'a"b', "a\\b", "é"])
def test_scope_that_would_be_two_is_not_issued(scope: str) -> None:
    with pytest.raises(ValueError, match="scope"):
        make_issuer().access(SUBJECT, SESSION, [scope], now=NOW, expires_at=NOW + 1)


def test_time_that_is_none_is_not_issued() -> None:
    with pytest.raises(ValueError, match="JSON"):
        make_issuer().access(SUBJECT, SESSION, [], now=NOW, expires_at=math.inf)


def test_both_kinds_cannot_share_an_audience() -> None:
    with pytest.raises(ConfigurationError, match="two audiences"):
        TokenIssuer(KeyRing([KEY]), issuer="i", audience="a", ticket_audience="a")


# The form


@pytest.mark.parametrize(
    "token",
    [
        pytest.param("", id="TOK-02"),
        pytest.param("a", id="TOK-03 one part"),
        pytest.param(".", id="TOK-03 dot"),
        pytest.param("..", id="TOK-03 dots"),
        pytest.param("a.b", id="TOK-03 two parts"),
        pytest.param("a.b.c", id="TOK-03 three letters"),
        pytest.param(GOOD + ".a", id="TOK-03 four parts"),
        pytest.param(GOOD + ".a.b", id="TOK-32 five parts"),
        pytest.param("." + GOOD, id="TOK-03 leading dot"),
        pytest.param(GOOD + ".", id="TOK-03 trailing dot"),
        pytest.param(
            json.dumps(
                {"payload": PAYLOAD, "protected": HEADER, "signature": SIGNATURE}
            ),
            id="TOK-03 JSON serialization",
        ),
        pytest.param("{" + GOOD + "}", id="TOK-03 braces"),
        pytest.param(f'"{GOOD}"', id="TOK-03 quotes"),
        pytest.param("Bearer " + GOOD, id="TOK-03 scheme"),
        pytest.param(" " + GOOD, id="TOK-03 leading space"),
        pytest.param(GOOD + "\n", id="TOK-03 line end"),
        pytest.param(GOOD + "\0", id="TOK-03 NUL"),
        pytest.param(GOOD + "=", id="TOK-35 padding"),
        pytest.param(GOOD + "==", id="TOK-35 more padding"),
        pytest.param(f"{HEADER}=.{PAYLOAD}.{SIGNATURE}", id="TOK-35 header padding"),
        pytest.param(GOOD.replace("_", "/").replace("-", "+") + "+", id="base64"),
        pytest.param("\ud800.a.b", id="TOK-37"),
        pytest.param(f"{HEADER}.{PAYLOAD}.\ud800", id="TOK-37 signature"),
        pytest.param(f"{HEADER}.{PAYLOAD}.é", id="not ASCII"),
        pytest.param("a" * MAX_TOKEN_BYTES, id="TOK-38 8 KiB"),
        pytest.param("a" * 65536, id="TOK-38 64 KiB"),
        pytest.param("a" * 1048576, id="TOK-38 1 MiB"),
        pytest.param(f"{HEADER}A.{PAYLOAD}.{SIGNATURE}", id="header of odd length"),
        pytest.param(make_cookie(), id="TOK-30 session cookie"),
        pytest.param("rt_" + "A" * 43, id="TOK-29 refresh token"),
    ],
)
def test_malformed_token_is_refused(token: str) -> None:
    refused(token)


def test_good_token_over_the_length_limit_is_refused() -> None:  # TOK-38
    long = make_token(filler="a" * MAX_TOKEN_BYTES)
    assert "too long" in str(refused(long))


def test_length_is_decided_before_anything_is_parsed() -> None:  # TOK-38
    token = f"{HEADER}.{'A' * 16 * 1024 * 1024}.{SIGNATURE}"
    started = time.thread_time()
    refused(token)
    assert time.thread_time() - started < 0.05


@pytest.mark.parametrize("position", range(len(GOOD)))
def test_changed_character_is_refused(position: int) -> None:  # TOK-07, TOK-08
    # Neighbours in the alphabet: in a last character they differ in unused bits only.
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    here = alphabet.find(GOOD[position])
    for character in {alphabet[here ^ 1], alphabet[here ^ 2], "A"} - {GOOD[position]}:
        refused(GOOD[:position] + character + GOOD[position + 1 :])


@pytest.mark.parametrize(
    "header",
    [
        pytest.param(header_json().decode().encode("utf-16"), id="TOK-34 UTF-16"),
        pytest.param(header_json().decode().encode("utf-16-le"), id="TOK-34 UTF-16LE"),
        pytest.param(header_json().decode().encode("utf-32"), id="TOK-34 UTF-32"),
        pytest.param(b"\xef\xbb\xbf" + header_json(), id="TOK-34 BOM"),
        pytest.param(header_json(kid=math.nan), id="TOK-34 NaN"),
        pytest.param(header_json()[:-1] + b',"x":"\xff"}', id="TOK-34 invalid UTF-8"),
        pytest.param(b'{"alg":"none",' + header_json()[1:], id="TOK-33 alg"),
        pytest.param(header_json()[:-1] + b',"typ":"at+jwt"}', id="TOK-33 typ"),
        pytest.param(b"[" * 5000, id="TOK-39 nested"),
        pytest.param(header_json()[:-1] + b',"x":' + b"1" * 5000 + b"}", id="TOK-40"),
        pytest.param(b"", id="empty"),
        pytest.param(b"null", id="null"),
        pytest.param(b"[]", id="list"),
        pytest.param(b'"at+jwt"', id="string"),
        pytest.param(header_json() + b"{}", id="two values"),
    ],
)
def test_header_that_is_not_a_plain_object_is_refused(header: bytes) -> None:
    refused(compact(header, claims_json()))


@pytest.mark.parametrize(
    "payload",
    [
        pytest.param(claims_json().decode().encode("utf-16"), id="TOK-34 UTF-16"),
        pytest.param(b"\xef\xbb\xbf" + claims_json(), id="TOK-34 BOM"),
        pytest.param(claims_json()[:-1] + b',"x":"\xff"}', id="TOK-34 invalid UTF-8"),
        pytest.param(claims_json()[:-1] + b',"sub":"admin"}', id="TOK-33 sub"),
        pytest.param(
            claims_json()[:-1] + b',"x":{"a":1,"\\u0061":2}}', id="TOK-33 inside"
        ),
        pytest.param(claims_json()[:-1] + b',"x":NaN}', id="TOK-23 NaN"),
        pytest.param(claims_json()[:-1] + b',"x":-Infinity}', id="TOK-23 Infinity"),
        pytest.param(claims_json()[:-1] + b',"x":' + b"1" * 5000 + b"}", id="TOK-40"),
        pytest.param(b"[" * 5000, id="TOK-39 nested"),
        pytest.param(b"", id="empty"),
        pytest.param(b"null", id="null"),
        pytest.param(b"[]", id="list"),
    ],
)
def test_claims_that_are_not_a_plain_object_are_refused(payload: bytes) -> None:
    refused(compact(header_json(), payload))


# Algorithm and key


@pytest.mark.parametrize(
    "alg",
    [
        *(
            pytest.param(alg, id=f"TOK-05 {alg}")
            for alg in ("none", "None", "NONE", "nOnE", "none ", "NoNe")
        ),
        *(
            pytest.param(alg, id=f"TOK-11 {alg}")
            for alg in ("HS384", "HS512", "hs256", "HS256 ", "HMAC-SHA256")
        ),
        pytest.param("RS256", id="TOK-20 RS256"),
        pytest.param("ES256", id="TOK-20 ES256"),
        pytest.param("EdDSA", id="TOK-20 EdDSA"),
        pytest.param("dir", id="TOK-41 dir"),
        pytest.param("PBES2-HS256+A128KW", id="TOK-41 PBES2"),
        pytest.param("", id="empty"),
        pytest.param(None, id="null"),
        pytest.param(["HS256"], id="list"),
        pytest.param(ABSENT, id="absent"),
    ],
)
def test_algorithm_is_never_the_tokens_choice(alg: Any) -> None:
    refused(make_token(header={"alg": alg}))
    # And without a signature that would hold (TOK-04).
    unsigned = make_token(header={"alg": alg}).rpartition(".")[0]
    refused(f"{unsigned}.")
    refused(f"{unsigned}.AA")


@pytest.mark.parametrize(
    "secret",
    [
        pytest.param(b"", id="TOK-09 empty"),
        pytest.param(b"secret", id="TOK-10 secret"),
        pytest.param(b"changeme", id="TOK-10 changeme"),
        pytest.param(b"your-256-bit-secret", id="TOK-10 your-256-bit-secret"),
        pytest.param(SECRET, id="the configured secret, not derived"),
        pytest.param(OLD_KEY.private, id="another key"),
    ],
)
def test_signature_with_another_secret_does_not_hold(secret: bytes) -> None:
    signed = f"{HEADER}.{PAYLOAD}"
    token = f"{signed}.{b64url(sign(signed.encode(), secret))}"
    assert "signature" in str(refused(token))


@pytest.mark.parametrize("key", [make_eddsa_key(), make_es256_key()])
@pytest.mark.parametrize("alg", ["HS256", "EdDSA", "ES256"])
@pytest.mark.parametrize(
    ("encoding", "form"),
    [
        (Encoding.PEM, PublicFormat.SubjectPublicKeyInfo),
        (Encoding.DER, PublicFormat.SubjectPublicKeyInfo),
        (Encoding.OpenSSH, PublicFormat.OpenSSH),
    ],
)
def test_public_key_is_no_secret(  # TOK-12
    key: SigningKey, alg: str, encoding: Encoding, form: PublicFormat
) -> None:
    assert key.public is not None
    spelled = key.public.public_bytes(encoding, form)
    for secret in (spelled, spelled.rstrip(b"\n"), json.dumps(key.jwk()).encode()):
        header = header_json(alg=alg, kid=key.kid)
        signed = f"{b64url(header)}.{PAYLOAD}"
        token = f"{signed}.{b64url(sign(signed.encode(), secret))}"
        refused(token, make_verifier(key))


def test_signature_of_zeros_does_not_hold() -> None:
    key = make_es256_key()
    unsigned = make_token(key=key).rpartition(".")[0]
    refused(f"{unsigned}.{b64url(bytes(64))}", make_verifier(key))


def test_signature_in_another_encoding_does_not_hold() -> None:
    key = make_es256_key()
    signed, _, signature = make_token(key=key).rpartition(".")
    raw = base64.urlsafe_b64decode(signature + "==")
    refused(f"{signed}.{b64url(raw + b'0')}", make_verifier(key))
    refused(f"{signed}.{b64url(raw[:-1])}", make_verifier(key))


@pytest.mark.parametrize(
    "kid",
    [
        pytest.param("../../dev/null", id="TOK-16 path"),
        pytest.param("' OR 1=1 --", id="TOK-16 SQL"),
        pytest.param("kid\r\nSet-Cookie: a=b", id="TOK-16 CRLF"),
        pytest.param("\0", id="TOK-16 NUL"),
        pytest.param("k" * 129, id="TOK-16 long"),
        pytest.param("\ud800", id="TOK-16 surrogate"),
        pytest.param(7, id="TOK-16 integer"),
        pytest.param([KEY.kid], id="TOK-16 list"),
        pytest.param({}, id="TOK-16 object"),
        pytest.param(None, id="TOK-16 null"),
        pytest.param("", id="TOK-16 empty"),
        pytest.param(ABSENT, id="TOK-16 absent"),
        pytest.param(KEY.kid.swapcase(), id="TOK-16 other case"),
    ],
)
def test_unknown_key_id_is_refused(kid: Any) -> None:
    error = refused(make_token(header={"kid": kid}))
    assert not isinstance(kid, str) or len(kid) < 2 or kid not in str(error)


@pytest.mark.parametrize("kid", ["k" * 129, "\0", "a\nb", 7, None, ""])
def test_unusable_key_id_never_reaches_whoever_keeps_the_keys(kid: Any) -> None:
    asked: list[str] = []
    verifier = TokenVerifier(
        asked.append, issuer=ISSUER, audience=AUDIENCE, kind="access", max_lifetime=900
    )
    refused(make_token(header={"kid": kid}), verifier)
    assert asked == []


@pytest.mark.parametrize(
    "members",
    [
        pytest.param({"crit": ["x"], "x": 1}, id="TOK-18 unknown"),
        pytest.param({"crit": ["b64"], "b64": True}, id="TOK-18 b64"),
        pytest.param({"crit": []}, id="TOK-18 empty"),
        pytest.param({"b64": False}, id="b64"),
        pytest.param({"jwk": {"kty": "oct", "k": "AA"}}, id="TOK-14 jwk"),
        pytest.param({"jku": "http://127.0.0.1:9/"}, id="TOK-15 jku"),
        pytest.param({"x5u": "http://127.0.0.1:9/"}, id="TOK-15 x5u"),
        pytest.param({"x5c": ["AA"]}, id="TOK-14 x5c"),
        pytest.param({"zip": "DEF"}, id="TOK-41 zip"),
        pytest.param({"enc": "A256GCM"}, id="TOK-32 enc"),
        pytest.param({"p2c": 10**9}, id="TOK-41 p2c"),
        pytest.param({"cty": "JWT"}, id="nested token"),
        pytest.param({"x": 1}, id="unknown"),
    ],
)
def test_header_member_off_the_list_is_refused(members: dict[str, Any]) -> None:
    error = refused(make_token(header=members))
    assert "not allowed" in str(error)
    refused(make_token(header=members), FOREIGN)


@pytest.mark.parametrize(
    "typ",
    [
        pytest.param("JWT", id="TOK-31 JWT"),
        pytest.param("ticket+jwt", id="TOK-30 ticket"),
        pytest.param("AT+JWT", id="TOK-31 case"),
        pytest.param("application/at+jwt", id="TOK-31 media type"),
        pytest.param("at+jwt ", id="TOK-31 space"),
        pytest.param("refresh+jwt", id="TOK-29"),
        pytest.param("", id="TOK-31 empty"),
        pytest.param(None, id="TOK-31 null"),
        pytest.param(["at+jwt"], id="TOK-31 list"),
        pytest.param(ABSENT, id="TOK-31 absent"),
    ],
)
def test_token_of_another_type_is_refused(typ: Any) -> None:
    assert "type" in str(refused(make_token(header={"typ": typ})))


def test_ticket_is_no_access_token_nor_the_reverse() -> None:  # TOK-30
    refused(make_ticket())
    refused(make_token(), make_verifier(kind="ticket"))
    # Not even with the other's audience, or the other's type.
    refused(make_ticket(aud=AUDIENCE))
    refused(make_token(header={"typ": "ticket+jwt"}), make_verifier(kind="ticket"))


def test_old_key_is_accepted_while_it_is_in_the_ring() -> None:  # TOK-43
    token = make_token(key=OLD_KEY)
    assert make_verifier(OLD_KEY, KEY).verify(token, now=NOW).subject == SUBJECT
    assert "unknown key" in str(refused(token))


def test_newest_key_signs() -> None:  # TOK-43
    token = make_issuer(OLD_KEY, KEY).access(
        SUBJECT, SESSION, [], now=NOW, expires_at=NOW + 1
    )
    assert jwt.get_unverified_header(token)["kid"] == KEY.kid


def test_no_claim_is_read_before_the_signature_holds() -> None:
    unsigned = make_token(exp=NOW - 1).rpartition(".")[0]
    assert "signature" in str(refused(f"{unsigned}.{SIGNATURE}"))
    # Not even parsed.
    unsigned = compact(header_json(), b"not JSON").rpartition(".")[0]
    assert "signature" in str(refused(f"{unsigned}.{SIGNATURE}"))


# Time


@pytest.mark.parametrize("exp", [NOW, NOW - 0.001, NOW - 1, NOW - 10**6, 1])
def test_expired_token_is_told_apart(exp: float) -> None:  # TOK-21
    with pytest.raises(ExpiredTokenError):
        VERIFIER.verify(make_token(iat=exp - 1, nbf=exp - 1, exp=exp), now=NOW)


def test_token_that_was_born_expired_is_expired() -> None:
    with pytest.raises(ExpiredTokenError):
        VERIFIER.verify(make_token(exp=NOW - 1), now=NOW)


@pytest.mark.parametrize(
    "spoiled",
    [
        {"aud": "billing"},
        {"iss": "https://evil.example"},
        {"sub": ""},
        {"scope": 7},
        {"nbf": NOW + 1},
    ],
)
def test_token_that_is_expired_and_otherwise_bad_is_bad(
    spoiled: dict[str, Any],
) -> None:
    token = make_token(exp=NOW - 1, iat=NOW - 2, **{"nbf": NOW - 2, **spoiled})
    refused(token)


@pytest.mark.parametrize("name", ["exp", "iat"])
@pytest.mark.parametrize(
    "value",
    [
        pytest.param(ABSENT, id="TOK-22 absent"),
        pytest.param(None, id="TOK-23 null"),
        pytest.param("", id="TOK-23 empty"),
        pytest.param(str(int(NOW)), id="TOK-23 numeric string"),
        pytest.param([], id="TOK-23 list"),
        pytest.param([NOW], id="TOK-23 list of time"),
        pytest.param({}, id="TOK-23 object"),
        pytest.param(True, id="TOK-23 true"),
        pytest.param(False, id="TOK-23 false"),
        pytest.param(math.nan, id="TOK-23 NaN"),
        pytest.param(math.inf, id="TOK-23 Infinity"),
        pytest.param(-math.inf, id="TOK-23 -Infinity"),
        pytest.param(10**30, id="TOK-23 10^30"),
        pytest.param(10**4000, id="TOK-40 10^4000"),
        pytest.param(-1, id="TOK-23 before the epoch"),
    ],
)
def test_time_that_is_none_is_refused(name: str, value: Any) -> None:
    refused(make_token(**{name: value}))


def test_time_beyond_all_floats_is_refused() -> None:  # TOK-23
    payload = claims_json().replace(str(NOW + ACCESS_TTL).encode(), b"1e400")
    assert b"1e400" in payload
    refused(compact(header_json(), payload))


@pytest.mark.parametrize("value", [None, "", str(int(NOW)), [], True, 10**30, math.nan])
def test_not_before_that_is_no_time_is_refused(value: Any) -> None:  # TOK-24
    refused(make_token(nbf=value))


def test_time_may_have_a_fraction() -> None:  # TOK-23
    claims = VERIFIER.verify(make_token(exp=NOW + 0.5), now=NOW + 0.25)
    assert claims.expires_at == NOW + 0.5


@pytest.mark.parametrize("name", ["nbf", "iat"])
def test_token_of_the_future_is_refused(name: str) -> None:  # TOK-24
    spoiled: dict[str, Any] = {name: NOW + 1}
    assert "not valid yet" in str(refused(make_token(**spoiled)))


def test_token_without_not_before_is_valid_from_its_issue() -> None:
    assert VERIFIER.verify(make_token(nbf=ABSENT), now=NOW).not_before == NOW


def test_leeway_is_exact_on_both_ends() -> None:  # TOK-25
    lenient = make_verifier(leeway=60, max_lifetime=3600)
    earlier: dict[str, Any] = {"iat": NOW - 100, "nbf": NOW - 100}
    lenient.verify(make_token(**earlier, exp=NOW - 59), now=NOW)
    with pytest.raises(ExpiredTokenError):
        lenient.verify(make_token(**earlier, exp=NOW - 60), now=NOW)
    lenient.verify(make_token(iat=NOW + 60, nbf=NOW + 60), now=NOW)
    refused(make_token(nbf=NOW + 61), lenient)
    refused(make_token(iat=NOW + 61), lenient)


def test_lifetime_is_capped() -> None:  # TOK-23
    VERIFIER.verify(make_token(exp=NOW + ACCESS_TTL), now=NOW)
    for exp in (NOW + ACCESS_TTL + 1, NOW + 10**9, 253402300799):
        assert "longer than allowed" in str(refused(make_token(exp=exp)))


def test_lifetime_at_its_cap_survives_the_rounding_of_floats() -> None:
    ttl = 900.7
    verifier = make_verifier(max_lifetime=ttl)
    rounded_up = 0
    for step in range(100):
        now = NOW + step / 7
        rounded_up += (now + ttl) - now > ttl
        token = make_issuer().access(SUBJECT, "s", [], now=now, expires_at=now + ttl)
        verifier.verify(token, now=now)
    assert rounded_up


# The other claims


@pytest.mark.parametrize(
    "aud",
    [
        pytest.param(ABSENT, id="TOK-26 absent"),
        pytest.param(None, id="TOK-26 null"),
        pytest.param("", id="TOK-26 empty"),
        pytest.param("billing", id="TOK-26 wrong"),
        pytest.param(AUDIENCE[:-1], id="TOK-26 prefix"),
        pytest.param(AUDIENCE + "2", id="TOK-26 superset"),
        pytest.param(AUDIENCE.upper(), id="TOK-26 case"),
        pytest.param([AUDIENCE, "billing"], id="TOK-26 foreign member"),
        pytest.param([AUDIENCE, AUDIENCE], id="TOK-26 twice"),
        pytest.param([[AUDIENCE]], id="TOK-26 nested"),
        pytest.param([], id="TOK-26 nobody"),
        pytest.param({AUDIENCE: 1}, id="TOK-26 object"),
        pytest.param("authws sibling", id="TOK-44 sibling service"),
    ],
)
def test_token_for_another_audience_is_refused(aud: Any) -> None:
    assert "audience" in str(refused(make_token(aud=aud)))
    refused(make_token(aud=aud), FOREIGN)


def test_audience_as_a_list_of_one_is_for_foreign_issuers() -> None:  # TOK-26
    token = make_token(aud=[AUDIENCE])
    assert "audience" in str(refused(token))
    assert FOREIGN.verify(token, now=NOW).audience == AUDIENCE


@pytest.mark.parametrize(
    "iss",
    [
        pytest.param(ABSENT, id="TOK-27 absent"),
        pytest.param(None, id="TOK-27 null"),
        pytest.param("", id="TOK-27 empty"),
        pytest.param("https://evil.example", id="TOK-27 wrong"),
        pytest.param(ISSUER[:-1], id="TOK-27 substring"),
        pytest.param(ISSUER + "/", id="TOK-27 slash"),
        pytest.param([ISSUER], id="TOK-27 list"),
        pytest.param({ISSUER: 1}, id="TOK-27 object"),
        pytest.param("https://sibling.example", id="TOK-44 sibling service"),
    ],
)
def test_token_from_another_issuer_is_refused(iss: Any) -> None:
    assert "issuer" in str(refused(make_token(iss=iss)))


@pytest.mark.parametrize("name", ["sub", "sid", "jti"])
@pytest.mark.parametrize(
    "value",
    [
        pytest.param(ABSENT, id="absent"),
        pytest.param(None, id="null"),
        pytest.param("", id="empty"),
        pytest.param(7, id="number"),
        pytest.param(True, id="true"),
        pytest.param(["alice"], id="list"),
        pytest.param({}, id="object"),
        pytest.param("a" * 257, id="long"),
        pytest.param("a\nb", id="line end"),
        pytest.param("a\0", id="NUL"),
        pytest.param("\ud800", id="surrogate"),
        pytest.param("a\N{RIGHT-TO-LEFT OVERRIDE}b", id="bidi"),
    ],
)
def test_name_that_is_none_is_refused(name: str, value: Any) -> None:
    assert f"usable {name}" in str(refused(make_token(**{name: value})))


@pytest.mark.parametrize(
    "subject", ["a", "a" * 256, "auth0|5f7c8ec7c33c6c004bbafe82", "Zoë Müller"]
)
def test_subject_may_be_any_printable_name(subject: str) -> None:
    assert VERIFIER.verify(make_token(sub=subject), now=NOW).subject == subject


@pytest.mark.parametrize(
    "scope",
    [
        None,
        7,
        True,
        ["a"],
        {"a": 1},
        " ",
        "a  b",
        " a",
        "a ",
        "a\tb",
        'a"',
        "a\\b",
        "é",
    ],
)
def test_scope_that_is_none_is_refused(scope: Any) -> None:
    assert "scope" in str(refused(make_token(scope=scope)))


@pytest.mark.parametrize("scope", ["", ABSENT])
def test_token_without_scope_may_do_nothing(scope: Any) -> None:
    assert VERIFIER.verify(make_token(scope=scope), now=NOW).scopes == frozenset()


@pytest.mark.parametrize("until", [ABSENT, None, "", True, 10**30, math.inf, -1])
def test_ticket_must_say_how_long_its_connection_may_live(until: Any) -> None:
    refused(make_ticket(connect_until=until), make_verifier(kind="ticket"))


def test_access_token_cannot_prolong_its_connection() -> None:
    claims = VERIFIER.verify(make_token(connect_until=NOW + 10**6), now=NOW)
    assert claims.connect_until == claims.expires_at == NOW + ACCESS_TTL


# Foreign issuers


def test_foreign_token_may_lack_session_and_id() -> None:
    token = make_token(header={"typ": "JWT"}, sid=ABSENT, jti=ABSENT)
    claims = FOREIGN.verify(token, now=NOW)
    assert (claims.session, claims.token_id) == ("", "")


@pytest.mark.parametrize("name", ["sid", "jti"])
@pytest.mark.parametrize("value", [None, "", 7, [], "a\n"])
def test_foreign_session_and_id_are_checked_where_present(
    name: str, value: Any
) -> None:
    refused(make_token(**{name: value}), FOREIGN)


def test_foreign_token_may_carry_thumbprints() -> None:
    token = make_token(header={"x5t": "AA", "x5t#S256": "AA"})
    assert FOREIGN.verify(token, now=NOW).subject == SUBJECT
    refused(token)


def test_foreign_token_without_type_needs_leave() -> None:
    token = make_token(header={"typ": ABSENT})
    refused(token, FOREIGN)
    lenient = make_verifier(require_session=False, types=["", "JWT"])
    assert lenient.verify(token, now=NOW).subject == SUBJECT


@pytest.mark.parametrize(
    "typ",
    ["AT+JWT", "At+Jwt", "application/at+jwt", "Application/AT+JWT", "jwt"],
)
def test_foreign_type_is_a_media_type_however_it_is_spelled(typ: str) -> None:
    token = make_token(header={"typ": typ})
    assert FOREIGN.verify(token, now=NOW).subject == SUBJECT
    refused(token)
    spelled = make_verifier(require_session=False, types=[typ])
    assert spelled.verify(token, now=NOW).subject == SUBJECT


@pytest.mark.parametrize(
    "typ",
    [
        "application/",
        "/",
        "",
        "at+jwt/",
        "text/at+jwt",
        "application/application/at+jwt",
        "application/x/at+jwt",
        "application/at+jwt; v=1",
        " application/at+jwt",
        "id+jwt",
        "at+\u212aw\u0131t",
        "ticket+jwt",
    ],
)
def test_foreign_type_of_another_media_type_is_refused(typ: str) -> None:
    for leave in (["JWT", "at+jwt"], ["application/AT+JWT"]):
        verifier = make_verifier(require_session=False, types=leave)
        assert "type" in str(refused(make_token(header={"typ": typ}), verifier))


@pytest.mark.parametrize("typ", ["application/", "application", "/"])
def test_leave_for_no_type_is_for_no_type(typ: str) -> None:
    lenient = make_verifier(require_session=False, types=["", "JWT"])
    refused(make_token(header={"typ": typ}), lenient)


def test_foreign_key_may_be_rsa() -> None:
    key = SigningKey("theirs", "RS256", None, RSA.public_key())
    verifier = TokenVerifier(
        {"theirs": key}.get,
        issuer=ISSUER,
        audience=AUDIENCE,
        kind="access",
        max_lifetime=ACCESS_TTL,
        require_session=False,
    )
    signed = f"{b64url(header_json(alg='RS256', kid='theirs'))}.{PAYLOAD}"
    signature = RSA.sign(signed.encode(), PKCS1v15(), SHA256())
    token = f"{signed}.{b64url(signature)}"
    assert verifier.verify(token, now=NOW).subject == SUBJECT
    refused(f"{signed}.{b64url(signature[::-1])}", verifier)


# Configuration


@pytest.mark.parametrize(
    "argument",
    [
        {"leeway": 61},
        {"leeway": -1},
        {"leeway": math.nan},
        {"max_lifetime": 0},
        {"max_lifetime": math.inf},
        {"max_lifetime": math.nan},
        {"issuer": ""},
        {"audience": ""},
    ],
)
def test_unsafe_verifier_cannot_be_made(argument: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError):
        make_verifier(**argument)
