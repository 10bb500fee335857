"""A foreign issuer's keys: few fetches, bounded answers, no trust in either."""

from __future__ import annotations

import asyncio
import base64
import gzip
import json
import logging
from collections.abc import AsyncIterator
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from authws.decisions.keys import SigningKey
from authws.exceptions import ConfigurationError, UnavailableError
from authws.stores.key_sets import RemoteKeySet
from tests.stores.support import FakeClock, Issuer

RSA = rsa.generate_private_key(public_exponent=65537, key_size=2048)


def ed25519_jwk(kid: str = "ed", **changes: Any) -> dict[str, Any]:
    private = ed25519.Ed25519PrivateKey.generate()
    jwk = SigningKey(kid, "EdDSA", private, private.public_key()).jwk()
    return {**(jwk or {}), **changes}


def ec_jwk(kid: str = "ec", **changes: Any) -> dict[str, Any]:
    private = ec.generate_private_key(ec.SECP256R1())
    jwk = SigningKey(kid, "ES256", private, private.public_key()).jwk()
    return {**(jwk or {}), **changes}


def rsa_jwk(kid: str = "rsa", n: int | None = None, **changes: Any) -> dict[str, Any]:
    numbers = RSA.public_key().public_numbers()
    return {
        "kty": "RSA",
        "kid": kid,
        "n": base64url_number(numbers.n if n is None else n),
        "e": base64url_number(numbers.e),
        **changes,
    }


def base64url_number(number: int) -> str:
    data = number.to_bytes((number.bit_length() + 7) // 8, "big")
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def without(jwk: dict[str, Any], *members: str) -> dict[str, Any]:
    return {name: value for name, value in jwk.items() if name not in members}


def key_set(*jwks: object) -> bytes:
    return json.dumps({"keys": jwks}).encode()


@pytest.fixture
async def issuer() -> AsyncIterator[Issuer]:
    async with Issuer(key_set(ed25519_jwk())).serving() as serving:
        yield serving


@pytest.fixture
async def keys(issuer: Issuer, clock: FakeClock) -> AsyncIterator[RemoteKeySet]:
    keys = RemoteKeySet(issuer.url, clock=clock)
    yield keys
    await keys.aclose()


async def test_keys_of_all_kinds_are_fetched(
    issuer: Issuer, keys: RemoteKeySet
) -> None:
    issuer.body = key_set(ed25519_jwk(), ec_jwk(), rsa_jwk())
    assert keys.get("ed") is None
    await keys.ensure("ed")
    found = {kid: keys.get(kid) for kid in ("ed", "ec", "rsa")}
    assert {kid: key and key.algorithm for kid, key in found.items()} == {
        "ed": "EdDSA",
        "ec": "ES256",
        "rsa": "RS256",
    }
    assert all(key is not None and key.private is None for key in found.values())


async def test_known_key_needs_no_fetch(issuer: Issuer, keys: RemoteKeySet) -> None:
    for _ in range(10):
        await keys.ensure("ed")
    assert len(issuer.requests) == 1


async def test_fifty_unknown_keys_cause_one_fetch_per_cool_down(
    issuer: Issuer, keys: RemoteKeySet, clock: FakeClock
) -> None:
    await keys.ensure("ed")
    clock.advance(30)
    for number in range(50):
        await keys.ensure(f"unknown-{number}")
        assert keys.get(f"unknown-{number}") is None
    assert len(issuer.requests) == 2
    clock.advance(29)
    await keys.ensure("unknown")
    assert len(issuer.requests) == 2
    clock.advance(1)
    await keys.ensure("unknown")
    assert len(issuer.requests) == 3
    assert keys.get("ed") is not None


async def test_new_key_is_found_after_the_cool_down(
    issuer: Issuer, keys: RemoteKeySet, clock: FakeClock
) -> None:
    await keys.ensure("ed")
    issuer.body = key_set(ed25519_jwk("new"))
    await keys.ensure("new")
    assert keys.get("new") is None
    clock.advance(30)
    await keys.ensure("new")
    assert keys.get("new") is not None


async def test_withdrawn_key_is_dropped_when_the_set_is_old(
    issuer: Issuer, keys: RemoteKeySet, clock: FakeClock
) -> None:
    await keys.ensure("ed")
    issuer.body = key_set(ed25519_jwk("new"))
    clock.advance(299)
    await keys.ensure("ed")
    assert keys.get("ed") is not None
    clock.advance(1)
    await keys.ensure("ed")
    assert keys.get("ed") is None


async def test_however_many_ask_at_once_one_fetch_is_made(
    issuer: Issuer, keys: RemoteKeySet
) -> None:
    issuer.delay = 0.1
    await asyncio.gather(*(keys.ensure("ed") for _ in range(50)))
    assert len(issuer.requests) == 1
    assert keys.get("ed") is not None


async def test_peer_that_hangs_up_does_not_spoil_the_fetch(
    issuer: Issuer, keys: RemoteKeySet
) -> None:
    issuer.delay = 0.1
    impatient = asyncio.create_task(keys.ensure("ed"))
    await asyncio.sleep(0.02)
    patient = asyncio.create_task(keys.ensure("ed"))
    impatient.cancel()
    await patient
    assert keys.get("ed") is not None
    assert len(issuer.requests) == 1


async def test_failed_fetch_leaves_the_known_keys(
    issuer: Issuer,
    keys: RemoteKeySet,
    clock: FakeClock,
    caplog: pytest.LogCaptureFixture,
) -> None:
    await keys.ensure("ed")
    issuer.status = "503 Service Unavailable"
    clock.advance(301)
    with caplog.at_level(logging.WARNING):
        await keys.ensure("ed")
    assert keys.get("ed") is not None
    assert "1 known keys stay" in caplog.text
    assert len(issuer.requests) == 2
    with pytest.raises(UnavailableError):
        await keys.ensure("unknown")
    assert len(issuer.requests) == 2
    issuer.status = "200 OK"
    clock.advance(30)
    await keys.ensure("unknown")
    assert keys.get("unknown") is None


async def test_issuer_that_is_not_there_is_unavailable(clock: FakeClock) -> None:
    keys = RemoteKeySet("http://127.0.0.1:1/jwks.json", clock=clock)
    with pytest.raises(UnavailableError):
        await keys.ensure("ed")


async def test_issuer_that_is_slow_is_given_up(
    issuer: Issuer, clock: FakeClock
) -> None:
    issuer.delay = 5
    keys = RemoteKeySet(issuer.url, clock=clock, timeout=0.1)
    async with asyncio.timeout(2):
        with pytest.raises(UnavailableError):
            await keys.ensure("ed")


async def test_answer_without_end_is_not_read_to_its_end(
    issuer: Issuer, keys: RemoteKeySet
) -> None:
    issuer.endless = True
    async with asyncio.timeout(4):
        with pytest.raises(UnavailableError):
            await keys.ensure("ed")
    assert issuer.sent < 32 * 2**20  # what the kernel's buffers hold, at most


async def test_oversized_answer_is_refused_and_known_keys_stay(
    issuer: Issuer, keys: RemoteKeySet, clock: FakeClock
) -> None:
    await keys.ensure("ed")
    issuer.body = key_set(ed25519_jwk("new")) + b" " * 262_144
    clock.advance(300)
    await keys.ensure("ed")
    assert keys.get("ed") is not None
    assert keys.get("new") is None


async def test_compressed_answer_is_refused(issuer: Issuer, keys: RemoteKeySet) -> None:
    issuer.body = gzip.compress(b" " * 10_000_000)
    issuer.headers = ("Content-Encoding: gzip",)
    with pytest.raises(UnavailableError):
        await keys.ensure("ed")
    assert "accept-encoding: identity" in issuer.requests[0].lower()


async def test_redirect_is_not_followed(issuer: Issuer, keys: RemoteKeySet) -> None:
    async with Issuer(key_set(ed25519_jwk())).serving() as elsewhere:
        issuer.status = "302 Found"
        issuer.headers = (f"Location: {elsewhere.url}",)
        with pytest.raises(UnavailableError):
            await keys.ensure("ed")
        assert elsewhere.requests == []


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xff",
        b"not json",
        b"[]",
        b"{}",
        b'{"keys": {}}',
        b'{"keys": ' + b"[" * 100_000,
        b'{"keys": ' + b"9" * 10_000 + b"}",
        key_set(*(ed25519_jwk(str(number)) for number in range(65))),
    ],
    ids=range(9),
)
async def test_answer_that_is_no_key_set_is_a_failure(
    issuer: Issuer, keys: RemoteKeySet, body: bytes
) -> None:
    issuer.body = body
    with pytest.raises(UnavailableError):
        await keys.ensure("ed")


PASSED_OVER: dict[str, object] = {
    "no object": "ed",
    "symmetric": {"kty": "oct", "kid": "bad", "k": "c2VjcmV0"},
    "symmetric named otherwise": ed25519_jwk("bad", k="c2VjcmV0"),
    "private": ed25519_jwk("bad", d="c2VjcmV0"),
    "for encryption": ed25519_jwk("bad", use="enc"),
    "for signing": ed25519_jwk("bad", key_ops=["sign"]),
    "of another algorithm": ed25519_jwk("bad", alg="HS256"),
    "of no algorithm": ed25519_jwk("bad", alg="none"),
    "rsa for PSS": rsa_jwk("bad", alg="PS256"),
    "on another curve": ed25519_jwk("bad", crv="Ed448"),
    "not on the curve": ec_jwk("bad", x="A" * 43),
    "too short": ed25519_jwk("bad", x="AAAA"),
    "not base64url": ed25519_jwk("bad", x="+" * 43),
    "not text": ed25519_jwk("bad", x=7),
    "weak rsa": rsa_jwk("bad", n=2**1023 + 1),
    "huge rsa": rsa_jwk("bad", n=2**8192 + 1),
    "huge exponent": rsa_jwk("bad", e=base64url_number(2**64 + 1)),
    "nameless": without(ed25519_jwk("bad"), "kid"),
    "named by a number": {**ed25519_jwk(), "kid": 7},
    "named at length": {**ed25519_jwk(), "kid": "x" * 129},
}


@pytest.mark.parametrize("jwk", PASSED_OVER.values(), ids=PASSED_OVER)
async def test_key_that_verifies_nothing_for_us_is_passed_over(
    issuer: Issuer, keys: RemoteKeySet, jwk: object
) -> None:
    issuer.body = key_set(jwk, ed25519_jwk("good"))
    await keys.ensure("good")
    assert keys.get("good") is not None
    assert len(keys._keys) == 1


async def test_two_keys_of_one_name_are_neither(
    issuer: Issuer, keys: RemoteKeySet
) -> None:
    issuer.body = key_set(ed25519_jwk("twin"), ec_jwk("twin"), ed25519_jwk("good"))
    await keys.ensure("good")
    assert keys.get("twin") is None
    assert keys.get("good") is not None


@pytest.mark.parametrize(
    "url",
    [
        "",
        "jwks.json",
        "http://issuer.example/jwks.json",
        "http://localhost.issuer.example/jwks.json",
        "http://127.0.0.1.issuer.example/",
        "https://user:hunter2@issuer.example/jwks.json",
        "file:///etc/passwd",
        "ftp://127.0.0.1/",
        "https://",
        "https://[::1",
    ],
)
def test_url_that_keys_must_not_come_from(url: str, clock: FakeClock) -> None:
    with pytest.raises(ConfigurationError) as refusal:
        RemoteKeySet(url, clock=clock)
    assert "hunter2" not in str(refusal.value)


@pytest.mark.parametrize(
    "url",
    [
        "https://issuer.example/jwks.json",
        "http://localhost:8000/jwks.json",
        "http://[::1]/jwks.json",
    ],
)
def test_url_that_keys_may_come_from(url: str, clock: FakeClock) -> None:
    RemoteKeySet(url, clock=clock)
