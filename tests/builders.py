"""Values that are valid by default; one argument spoils one thing.

The token builder signs by hand, not with the library under test: it must be able to
write what no library agrees to write.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from collections.abc import Sequence
from typing import Any, Final

from cryptography.hazmat.primitives.asymmetric.ec import (
    ECDSA,
    SECP256R1,
    EllipticCurvePrivateKey,
    generate_private_key,
)
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256

from authws.decisions.keys import KeyRing, SigningKey, hmac_key
from authws.decisions.session_cookies import SessionCookieSigner
from authws.decisions.tokens import (
    ACCESS_TYPE,
    TICKET_TYPE,
    TokenIssuer,
    TokenKind,
    TokenVerifier,
)

__all__ = [
    "ABSENT",
    "ACCESS_TTL",
    "AUDIENCE",
    "ISSUER",
    "KEY",
    "NOW",
    "OLD_KEY",
    "OLD_SECRET",
    "SECRET",
    "SESSION",
    "SUBJECT",
    "TICKET_AUDIENCE",
    "TICKET_TTL",
    "b64url",
    "compact",
    "make_claims",
    "make_cookie",
    "make_eddsa_key",
    "make_es256_key",
    "make_issuer",
    "make_scope",
    "make_ticket",
    "make_token",
    "make_verifier",
    "sign",
]

NOW = 1_800_000_000.0
ISSUER = "https://auth.example"
AUDIENCE = "authws"
TICKET_AUDIENCE = "authws websocket"
ACCESS_TTL = 900.0
TICKET_TTL = 30.0
SUBJECT = "alice"
SESSION = "session-of-alice"

SECRET = bytes(range(32))
OLD_SECRET = bytes(range(32, 64))
KEY = hmac_key(SECRET)
OLD_KEY = hmac_key(OLD_SECRET)

ABSENT: Final = object()
"""As a claim or header member: leave it out."""


def b64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode("ascii")


def make_eddsa_key(kid: str = "eddsa") -> SigningKey:
    private = Ed25519PrivateKey.generate()
    return SigningKey(kid, "EdDSA", private, private.public_key())


def make_es256_key(kid: str = "es256") -> SigningKey:
    private = generate_private_key(SECP256R1())
    return SigningKey(kid, "ES256", private, private.public_key())


def make_issuer(*keys: SigningKey) -> TokenIssuer:
    return TokenIssuer(
        KeyRing(keys or [KEY]),
        issuer=ISSUER,
        audience=AUDIENCE,
        ticket_audience=TICKET_AUDIENCE,
    )


def make_verifier(
    *keys: SigningKey, kind: TokenKind = "access", **arguments: Any
) -> TokenVerifier:
    """Return a verifier of what ``make_token`` makes, or ``make_ticket``."""
    defaults: dict[str, Any] = {
        "issuer": ISSUER,
        "audience": AUDIENCE if kind == "access" else TICKET_AUDIENCE,
        "max_lifetime": ACCESS_TTL if kind == "access" else TICKET_TTL,
    }
    ring = KeyRing(keys or [KEY])
    return TokenVerifier(ring.get, kind=kind, **{**defaults, **arguments})


def make_claims(**claims: Any) -> dict[str, Any]:
    """Return the claims of a good access token, with changes."""
    good: dict[str, Any] = {
        "iss": ISSUER,
        "aud": AUDIENCE,
        "sub": SUBJECT,
        "sid": SESSION,
        "jti": "token-of-alice",
        "iat": NOW,
        "nbf": NOW,
        "exp": NOW + ACCESS_TTL,
        "scope": "join:lobby publish:lobby",
    }
    return _present({**good, **claims})


def make_token(
    *,
    header: dict[str, Any] | None = None,
    key: SigningKey = KEY,
    **claims: Any,
) -> str:
    """Return a good access token with changes, always correctly signed."""
    good = {"alg": key.algorithm, "kid": key.kid, "typ": ACCESS_TYPE}
    members = _present({**good, **(header or {})})
    return compact(
        json.dumps(members).encode(), json.dumps(make_claims(**claims)).encode(), key
    )


def make_ticket(*, header: dict[str, Any] | None = None, **claims: Any) -> str:
    """Return a good ticket with changes, always correctly signed."""
    good = {
        "aud": TICKET_AUDIENCE,
        "exp": NOW + TICKET_TTL,
        "connect_until": NOW + ACCESS_TTL,
    }
    return make_token(
        header={"typ": TICKET_TYPE, **(header or {})}, **{**good, **claims}
    )


def compact(header: bytes, payload: bytes, key: SigningKey = KEY) -> str:
    """Return a compact JWS over exactly these bytes, whatever they are."""
    signed = f"{b64url(header)}.{b64url(payload)}"
    return f"{signed}.{b64url(sign(signed.encode('ascii'), key))}"


def sign(signed: bytes, key: SigningKey | bytes) -> bytes:
    """Return the signature of a key, or the HMAC-SHA256 of any bytes as its key."""
    private = key.private if isinstance(key, SigningKey) else key
    if isinstance(private, Ed25519PrivateKey):
        return private.sign(signed)
    if isinstance(private, EllipticCurvePrivateKey):
        r, s = decode_dss_signature(private.sign(signed, ECDSA(SHA256())))
        return r.to_bytes(32, "big") + s.to_bytes(32, "big")
    assert isinstance(private, bytes)
    return hmac.new(private, signed, hashlib.sha256).digest()


def make_cookie(
    secret_id: str | None = None, secrets: Sequence[bytes] = (SECRET,)
) -> str:
    """Return the value of a good session cookie."""
    signer = SessionCookieSigner(secrets)
    return signer.sign(signer.new() if secret_id is None else secret_id)


def make_scope(
    path: str = "/ws",
    *,
    query: str = "",
    headers: Sequence[tuple[str, str]] = (),
    **changes: Any,
) -> dict[str, Any]:
    """Return the ASGI scope of a handshake as uvicorn would write it."""
    return {
        "type": "websocket",
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        "http_version": "1.1",
        "scheme": "ws",
        "path": path,
        "raw_path": path.encode("ascii"),
        "query_string": query.encode("ascii"),
        "root_path": "",
        "headers": [
            (name.lower().encode("latin-1"), value.encode("latin-1"))
            for name, value in (("host", "127.0.0.1:8000"), *headers)
        ],
        "client": ("127.0.0.1", 50000),
        "server": ("127.0.0.1", 8000),
        "subprotocols": [],
        "state": {},
        "extensions": {},
        **changes,
    }


def _present(members: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in members.items() if value is not ABSENT}
