"""Keys that know their algorithm, and the rings they rotate in.

A key and its algorithm are one value (RFC 8725, 3.1), so a token can never choose how
it is verified: the header names a key, and the key names the algorithm.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import (
    SECP256R1,
    EllipticCurvePrivateKey,
    EllipticCurvePublicKey,
)
from cryptography.hazmat.primitives.asymmetric.ed25519 import (
    Ed25519PrivateKey,
    Ed25519PublicKey,
)
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_private_key,
)

from authws.exceptions import ConfigurationError

__all__ = [
    "MIN_SECRET_BYTES",
    "AlgorithmName",
    "KeyRing",
    "PrivateKey",
    "PublicKey",
    "SigningKey",
    "check_secret",
    "derive_key",
    "hmac_key",
    "pem_key",
]

AlgorithmName = Literal["HS256", "EdDSA", "ES256", "RS256"]
"""What authws verifies; RS256 only for foreign issuers, it never signs with it."""
PrivateKey = bytes | Ed25519PrivateKey | EllipticCurvePrivateKey
PublicKey = Ed25519PublicKey | EllipticCurvePublicKey | RSAPublicKey

MIN_SECRET_BYTES = 32
"""An HS256 key is at least as long as the hash (RFC 7518, 3.2)."""
MIN_RSA_BITS = 2048
"""RFC 7518, 3.3."""
MIN_DISTINCT = 8
"""Of 32 random hex digits fewer than eight differ once in some 10^8 draws."""

PLACEHOLDERS = (
    "changeme",
    "example",
    "insecure",
    "password",
    "placeholder",
    "replaceme",
    "secret",
    "yourkey",
)
"""What people leave in a copied settings file, without case and separators.

``your-256-bit-secret`` and its kin are covered by ``secret``. A random secret holds the
shortest of these about once in 10^7 draws.
"""


@dataclass(frozen=True, slots=True, eq=False)
class SigningKey:
    """A key, the one algorithm it serves and the id by which a token names it.

    Raises:
        ConfigurationError: the material is not of the kind or strength that the
            algorithm demands.
    """

    kid: str
    algorithm: AlgorithmName
    private: PrivateKey | None = field(repr=False)
    """What signs; None for a key that can only verify."""
    public: PublicKey | None = field(repr=False)
    """What strangers may verify with; None for a shared secret."""

    def __post_init__(self) -> None:
        if not self.kid:
            raise ConfigurationError("a signing key needs a key id")
        if not self._fits():
            raise ConfigurationError(
                f"the key is not a {self.algorithm} key, or is too weak for it"
            )

    def _fits(self) -> bool:
        private, public = self.private, self.public
        match self.algorithm:
            case "HS256":
                # A public key's PEM text is bytes too: only derived keys of this very
                # length are taken, so none passes for a secret (CVE-2022-29217).
                return (
                    isinstance(private, bytes)
                    and len(private) == MIN_SECRET_BYTES
                    and public is None
                )
            case "EdDSA":
                return isinstance(public, Ed25519PublicKey) and isinstance(
                    private, Ed25519PrivateKey | None
                )
            case "ES256":
                return (
                    isinstance(public, EllipticCurvePublicKey)
                    and isinstance(public.curve, SECP256R1)
                    and isinstance(private, EllipticCurvePrivateKey | None)
                )
            case "RS256":
                return (
                    isinstance(public, RSAPublicKey)
                    and public.key_size >= MIN_RSA_BITS
                    and private is None
                )

    @property
    def verifying(self) -> bytes | PublicKey:
        """What verifies a signature: the public key, or the shared secret."""
        if self.public is not None:
            return self.public
        assert isinstance(self.private, bytes)  # noqa: S101 - __post_init__ saw to it
        return self.private

    def jwk(self) -> dict[str, str] | None:
        """Return the public half as a JSON Web Key; None for a secret and for RS256.

        RS256 keys belong to foreign issuers, and it is theirs to publish them.
        """
        members = _public_members(self.public)
        if members is None:
            return None
        return {**members, "kid": self.kid, "alg": self.algorithm, "use": "sig"}


class KeyRing:
    """The service's own keys, oldest to newest: the newest signs, all verify."""

    def __init__(self, keys: Sequence[SigningKey]) -> None:
        if not keys:
            raise ConfigurationError("a key ring needs at least one key")
        self._keys = {key.kid: key for key in keys}
        if len(self._keys) != len(keys):
            raise ConfigurationError("two keys of the ring are the same")
        self._newest = keys[-1]
        if self._newest.private is None:
            raise ConfigurationError("the newest key of the ring cannot sign")

    @property
    def newest(self) -> SigningKey:
        """The key that signs."""
        return self._newest

    def get(self, kid: str) -> SigningKey | None:
        """Return the key of that id, or None."""
        return self._keys.get(kid)

    def jwks(self) -> dict[str, list[dict[str, str]]]:
        """Return the public keys as a JWK Set (RFC 7517, 5), never a secret."""
        jwks = (key.jwk() for key in self._keys.values())
        return {"keys": [jwk for jwk in jwks if jwk is not None]}

    def __repr__(self) -> str:
        return f"KeyRing({list(self._keys.values())!r})"


def derive_key(secret: bytes, purpose: str) -> bytes:
    """Return 32 bytes of key for one purpose (HKDF-SHA256, RFC 5869).

    One configured secret serves several purposes; what is signed for one of them must
    mean nothing to another.
    """
    hkdf = HKDF(algorithm=SHA256(), length=32, salt=None, info=purpose.encode())
    return hkdf.derive(secret)


def hmac_key(secret: bytes) -> SigningKey:
    """Return the token key of a configured secret.

    Its id is a hash of the key, so processes that share a secret agree on it and the
    order of the secrets does not matter to a verifier.
    """
    key = derive_key(secret, "authws token HS256")
    kid = _base64url(hashlib.sha256(b"kid" + key).digest())[:16]
    return SigningKey(kid, "HS256", key, None)


def pem_key(pem: bytes) -> SigningKey:
    """Return the key of an unencrypted PEM private key, Ed25519 or P-256.

    Its id is the JWK thumbprint (RFC 7638).

    Raises:
        ConfigurationError: this is not such a key.
    """
    try:
        private = load_pem_private_key(pem, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        # The cause may quote the file: it stays behind.
        raise ConfigurationError("not an unencrypted PEM private key") from None
    algorithm: AlgorithmName
    if isinstance(private, Ed25519PrivateKey):
        algorithm = "EdDSA"
    elif isinstance(private, EllipticCurvePrivateKey):
        algorithm = "ES256"
    else:
        raise ConfigurationError("a signing key is Ed25519 or P-256")
    public = private.public_key()
    return SigningKey(_thumbprint(public), algorithm, private, public)


def check_secret(secret: str) -> None:
    """Refuse a secret that an attacker would try, or could guess.

    Raises:
        ConfigurationError: it is short, a placeholder or has too little variety; the
            message never holds it.
    """
    try:
        size = len(secret.encode())
    except UnicodeEncodeError:  # undecodable bytes of the environment; it quotes them
        raise ConfigurationError("a secret key is not UTF-8 text") from None
    if size < MIN_SECRET_BYTES:
        raise ConfigurationError(
            f"a secret key needs at least {MIN_SECRET_BYTES} bytes (RFC 7518, 3.2)"
        )
    bare = "".join(c for c in secret.casefold() if c.isalnum())
    if any(word in bare for word in PLACEHOLDERS):
        raise ConfigurationError("a secret key looks like a placeholder")
    if len(set(secret)) < MIN_DISTINCT or _repeats(secret) or _counts(secret):
        raise ConfigurationError("a secret key has too little variety to be random")


def _repeats(text: str) -> bool:
    """Tell whether the text is one piece written several times."""
    return text in (text + text)[1:-1]


def _counts(text: str) -> bool:
    """Tell whether most of the text is a count, such as ``abcdef`` or ``987654``."""
    steps = [ord(b) - ord(a) for a, b in pairwise(text)]
    return max(steps.count(1), steps.count(-1)) * 2 > len(steps)


def _public_members(public: PublicKey | None) -> dict[str, str] | None:
    """Return the members that a thumbprint covers (RFC 7638, 3.2; RFC 8037, 2)."""
    if isinstance(public, Ed25519PublicKey):
        raw = public.public_bytes(Encoding.Raw, PublicFormat.Raw)
        return {"crv": "Ed25519", "kty": "OKP", "x": _base64url(raw)}
    if isinstance(public, EllipticCurvePublicKey):
        point = public.public_bytes(
            Encoding.X962, PublicFormat.UncompressedPoint
        )  # 0x04 || x || y, 32 bytes each (SEC 1, 2.3.3)
        x, y = point[1:33], point[33:]
        return {
            "crv": "P-256",
            "kty": "EC",
            "x": _base64url(x),
            "y": _base64url(y),
        }
    return None


def _thumbprint(public: Ed25519PublicKey | EllipticCurvePublicKey) -> str:
    members = json.dumps(
        _public_members(public), separators=(",", ":"), sort_keys=True
    ).encode()
    return _base64url(hashlib.sha256(members).digest())


def _base64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode("ascii")
