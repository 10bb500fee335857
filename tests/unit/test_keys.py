from __future__ import annotations

import base64
import json
import secrets

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from authws.decisions import keys
from authws.decisions.keys import (
    KeyRing,
    SigningKey,
    check_secret,
    derive_key,
    hmac_key,
    pem_key,
)
from authws.exceptions import ConfigurationError
from tests.builders import (
    KEY,
    OLD_KEY,
    OLD_SECRET,
    SECRET,
    make_eddsa_key,
    make_es256_key,
)

ED25519 = ed25519.Ed25519PrivateKey.generate()
P256 = ec.generate_private_key(ec.SECP256R1())
P384 = ec.generate_private_key(ec.SECP384R1())
RSA = rsa.generate_private_key(public_exponent=65537, key_size=2048)
SHORT_RSA = rsa.generate_private_key(public_exponent=65537, key_size=1024)  # noqa: S505
PUBLIC_PEM = ED25519.public_key().public_bytes(
    Encoding.PEM, PublicFormat.SubjectPublicKeyInfo
)


def pem(private: keys.PrivateKey | rsa.RSAPrivateKey, password: bytes = b"") -> bytes:
    assert not isinstance(private, bytes)
    protection = BestAvailableEncryption(password) if password else NoEncryption()
    return private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, protection)


def test_derived_keys_differ_by_purpose_and_by_secret() -> None:
    derived = {
        derive_key(SECRET, "one"),
        derive_key(SECRET, "two"),
        derive_key(OLD_SECRET, "one"),
    }
    assert len(derived) == 3
    assert {len(key) for key in derived} == {32}
    assert SECRET not in derived


def test_derived_key_is_that_of_rfc_5869() -> None:
    # Appendix A.3: no salt, and here the first 32 of its 42 bytes.
    derived = derive_key(b"\x0b" * 22, "")
    assert derived.hex() == (
        "8da4e775a563c18f715f802a063c5a31b8a11f5c5ee1879ec3454e5f3c738d2d"
    )


def test_hmac_key_is_the_same_in_every_process_that_knows_the_secret() -> None:
    again = hmac_key(SECRET)
    assert (again.kid, again.private) == (KEY.kid, KEY.private)
    assert OLD_KEY.kid != KEY.kid
    assert again.private == again.verifying != SECRET


def test_key_id_of_a_secret_is_no_part_of_its_key() -> None:
    assert isinstance(KEY.private, bytes)
    encoded = base64.urlsafe_b64encode(KEY.private).decode()
    assert KEY.kid not in encoded


def test_repr_hides_the_material() -> None:
    shown = repr(KeyRing([KEY, make_eddsa_key()]))
    assert KEY.kid in shown
    assert "private" not in shown
    assert repr(KEY.private) not in shown


@pytest.mark.parametrize(
    ("algorithm", "private", "public"),
    [
        pytest.param("HS256", None, None, id="no secret"),
        pytest.param("HS256", b"", None, id="TOK-09 empty secret"),
        pytest.param("HS256", b"secret", None, id="TOK-10 short secret"),
        pytest.param("HS256", PUBLIC_PEM, None, id="TOK-12 public key as secret"),
        pytest.param("HS256", ED25519, ED25519.public_key(), id="key pair as secret"),
        pytest.param("EdDSA", SECRET, None, id="secret as key pair"),
        pytest.param("EdDSA", SECRET, ED25519.public_key(), id="secret beside key"),
        pytest.param("EdDSA", P256, P256.public_key(), id="TOK-20 P-256 for EdDSA"),
        pytest.param(
            "EdDSA", None, ed448.Ed448PrivateKey.generate().public_key(), id="Ed448"
        ),
        pytest.param("ES256", ED25519, ED25519.public_key(), id="TOK-20 Ed25519"),
        pytest.param("ES256", P384, P384.public_key(), id="P-384 for ES256"),
        pytest.param("RS256", None, SHORT_RSA.public_key(), id="short RSA"),
        pytest.param("RS256", RSA, RSA.public_key(), id="we do not sign with RSA"),
        pytest.param("none", None, None, id="TOK-04 none"),
        pytest.param("HS512", SECRET, None, id="TOK-11 HS512"),
    ],
)
def test_key_that_does_not_fit_its_algorithm_cannot_exist(
    algorithm: keys.AlgorithmName,
    private: keys.PrivateKey | None,
    public: keys.PublicKey | None,
) -> None:
    with pytest.raises(ConfigurationError, match="or is too weak for it"):
        SigningKey("kid", algorithm, private, public)


def test_key_without_id_cannot_exist() -> None:
    with pytest.raises(ConfigurationError, match="key id"):
        SigningKey("", "HS256", SECRET, None)


def test_key_can_be_for_verifying_only() -> None:
    key = SigningKey("theirs", "RS256", None, RSA.public_key())
    assert key.verifying == RSA.public_key()


def test_newest_key_of_the_ring_signs_and_all_are_found() -> None:
    ring = KeyRing([OLD_KEY, KEY])
    assert ring.newest is KEY
    assert ring.get(OLD_KEY.kid) is OLD_KEY
    assert ring.get(KEY.kid) is KEY
    assert ring.get("nobody") is None


def test_ring_needs_a_key() -> None:
    with pytest.raises(ConfigurationError, match="at least one"):
        KeyRing([])


def test_ring_needs_different_keys() -> None:
    with pytest.raises(ConfigurationError, match="the same"):
        KeyRing([KEY, hmac_key(SECRET)])


def test_ring_needs_a_newest_key_that_signs() -> None:
    theirs = SigningKey("theirs", "EdDSA", None, ED25519.public_key())
    with pytest.raises(ConfigurationError, match="cannot sign"):
        KeyRing([KEY, theirs])


def test_published_keys_are_public_keys_only() -> None:
    theirs = SigningKey("theirs", "RS256", None, RSA.public_key())
    ring = KeyRing([KEY, theirs, make_eddsa_key(), make_es256_key()])
    published = ring.jwks()["keys"]
    assert [jwk["kid"] for jwk in published] == ["eddsa", "es256"]
    assert [sorted(jwk) for jwk in published] == [
        ["alg", "crv", "kid", "kty", "use", "x"],
        ["alg", "crv", "kid", "kty", "use", "x", "y"],
    ]
    json.dumps(published)


def test_ring_of_secrets_publishes_nothing() -> None:
    assert KeyRing([KEY]).jwks() == {"keys": []}


def test_published_point_is_the_key() -> None:
    key = make_es256_key()
    jwk = key.jwk()
    assert jwk is not None
    assert isinstance(key.public, ec.EllipticCurvePublicKey)
    numbers = key.public.public_numbers()
    point = {
        name: int.from_bytes(base64.urlsafe_b64decode(jwk[name] + "="), "big")
        for name in ("x", "y")
    }
    assert point == {"x": numbers.x, "y": numbers.y}


@pytest.mark.parametrize(
    ("private", "algorithm"), [(ED25519, "EdDSA"), (P256, "ES256")]
)
def test_private_key_file_becomes_a_key(
    private: keys.PrivateKey, algorithm: str
) -> None:
    key, again = pem_key(pem(private)), pem_key(pem(private))
    assert key.algorithm == algorithm
    assert key.kid == again.kid
    assert KeyRing([key]).newest is key


def test_key_id_of_a_key_file_is_its_thumbprint() -> None:
    # RFC 8037, A.1 and A.3.
    raw = base64.urlsafe_b64decode("nWGxne_9WmC6hEr0kuwsxERJxWl7MmkZcDusAxyuf2A=")
    private = ed25519.Ed25519PrivateKey.from_private_bytes(raw)
    thumbprint = "kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k"
    assert pem_key(pem(private)).kid == thumbprint


@pytest.mark.parametrize(
    "file",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"-----BEGIN PRIVATE KEY-----\nAAAA\n", id="cut off"),
        pytest.param(PUBLIC_PEM, id="public key"),
        pytest.param(pem(ED25519, b"password"), id="encrypted"),
        pytest.param(pem(RSA), id="RSA"),
        pytest.param(pem(P384), id="P-384"),
    ],
)
def test_other_file_is_refused_without_quoting_it(file: bytes) -> None:
    with pytest.raises(ConfigurationError) as refused:
        pem_key(file)
    assert "AAAA" not in str(refused.value)
    assert refused.value.__suppress_context__ or refused.value.__cause__ is None


@pytest.mark.parametrize("size", [16, 24, 32])
def test_random_secret_is_accepted(size: int) -> None:
    check_secret(secrets.token_hex(size))
    check_secret(secrets.token_urlsafe(32))


@pytest.mark.parametrize(
    ("secret", "reason"),
    [
        pytest.param("", "32 bytes", id="empty"),
        pytest.param("kJ8#mQ2$vX9!pL4&", "32 bytes", id="short"),
        pytest.param("secret", "32 bytes", id="TOK-10 secret"),
        pytest.param("your-256-bit-secret-goes-here-1234", "placeholder", id="TOK-10"),
        pytest.param("CHANGE_ME_" + "kJ8mQ2vX9pL4wT6z" * 2, "placeholder", id="case"),
        pytest.param("Password-kJ8mQ2vX9pL4wT6zRb3NcY7d", "placeholder", id="word"),
        pytest.param("a" * 64, "variety", id="one character"),
        pytest.param("deadbeef" * 8, "variety", id="repeated"),
        pytest.param("0123456789abcdef" * 2, "variety", id="repeated count"),
        pytest.param("abcdefghijklmnopqrstuvwxyz0123456789", "variety", id="count"),
        pytest.param("9876543210zyxwvutsrqponmlkjihgfedcba", "variety", id="down"),
        pytest.param("\udc80" * 40, "UTF-8", id="undecodable"),
    ],
)
def test_guessable_secret_is_refused_and_never_shown(secret: str, reason: str) -> None:
    with pytest.raises(ConfigurationError, match=reason) as refused:
        check_secret(secret)
    assert len(secret) < 8 or secret not in str(refused.value)
