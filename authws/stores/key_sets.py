"""A foreign issuer's public keys, fetched rarely, kept through its failures.

A token names its key, and a stranger writes the token: so an unknown name may cause a
fetch at most once per cool-down, and everything about the answer is bounded.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
import logging
import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

import httpx
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import (
    SECP256R1,
    EllipticCurvePublicNumbers,
)
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicNumbers

from authws.clock import Clock
from authws.decisions.keys import AlgorithmName, PublicKey, SigningKey
from authws.decisions.origins import is_loopback
from authws.exceptions import ConfigurationError, UnavailableError

__all__ = ["RemoteKeySet"]

logger = logging.getLogger(__name__)

BASE64URL = re.compile(r"[A-Za-z0-9_-]+")
MAX_KID_LENGTH = 128
MAX_RSA_BITS = 8192
"""Verifying costs the square of it; no issuer needs more."""
MAX_RSA_EXPONENT = 2**32


class KeySetError(Exception):
    """A key set could not be fetched, or is not one; the text says why."""


class RemoteKeySet:
    """The keys behind a JWKS URL (RFC 7517).

    Args:
        url: where they are; https, or http on this machine.
        clock: tells the age of what was fetched.
        ttl: seconds after which known keys are fetched anew, so that a key the issuer
            has withdrawn does not live on here.
        cooldown: seconds between two fetches, whatever tokens ask for.
        timeout: seconds that a fetch may take as a whole.
        max_bytes: the longest answer that is read.
        max_keys: the most keys that a set may hold.

    Raises:
        ConfigurationError: the URL is not one to fetch keys from.
    """

    def __init__(
        self,
        url: str,
        *,
        clock: Clock,
        ttl: float = 300.0,
        cooldown: float = 30.0,
        timeout: float = 5.0,
        max_bytes: int = 262_144,
        max_keys: int = 64,
    ) -> None:
        self._url, self._loopback = _check_url(url)
        self._clock = clock
        self._ttl = ttl
        self._cooldown = cooldown
        self._timeout = timeout
        self._max_bytes = max_bytes
        self._max_keys = max_keys
        self._keys: Mapping[str, SigningKey] = {}
        self._fetched_at: float | None = None
        self._tried_at: float | None = None
        self._failed = False
        self._fetching: asyncio.Task[None] | None = None

    def get(self, kid: str) -> SigningKey | None:
        """Return the key of that id from what was fetched so far."""
        return self._keys.get(kid)

    async def ensure(self, kid: str) -> None:
        """Fetch the set if this key is not in it, or the set is old.

        However many ask at once, one fetch is made, and none before the cool-down is
        over. A failed one leaves the known keys as they are.

        Raises:
            UnavailableError: the key is unknown and the last fetch failed, so nobody
                can say whether it is good.
        """
        if kid in self._keys and not self._is_old():
            return
        if self._fetching is None and self._may_fetch():
            self._tried_at = self._clock.monotonic()
            self._fetching = asyncio.create_task(self._refresh())
        if self._fetching is not None:
            # Shielded: a peer that hangs up must not spend the cool-down for all.
            await asyncio.shield(self._fetching)
        if self._failed and kid not in self._keys:
            raise UnavailableError("the issuer's key set could not be fetched")

    async def aclose(self) -> None:
        """Give up a fetch that is under way."""
        if self._fetching is not None:
            self._fetching.cancel()
            await asyncio.gather(self._fetching, return_exceptions=True)

    def _is_old(self) -> bool:
        return (
            self._fetched_at is None
            or self._clock.monotonic() - self._fetched_at >= self._ttl
        )

    def _may_fetch(self) -> bool:
        return (
            self._tried_at is None
            or self._clock.monotonic() - self._tried_at >= self._cooldown
        )

    async def _refresh(self) -> None:
        try:
            document = await self._fetch()
            # Parsing 64 RSA keys takes a few milliseconds: not on the event loop.
            keys = await asyncio.to_thread(_parse, document, self._max_keys)
        except (KeySetError, httpx.HTTPError, OSError) as error:
            self._failed = True
            logger.warning(
                "key set of %s not fetched, %d known keys stay: %s: %.200s",
                self._url.host,
                len(self._keys),
                type(error).__name__,
                error,
            )
        else:
            self._keys = keys
            self._failed = False
            self._fetched_at = self._clock.monotonic()
        finally:
            self._fetching = None

    async def _fetch(self) -> bytes:
        # identity: the bound below counts bytes, and a compressed one can hold 1000.
        headers = {"Accept": "application/json", "Accept-Encoding": "identity"}
        async with (
            asyncio.timeout(self._timeout),
            httpx.AsyncClient(
                timeout=self._timeout,
                follow_redirects=False,
                trust_env=not self._loopback,
            ) as client,
            client.stream("GET", self._url, headers=headers) as response,
        ):
            if response.status_code != httpx.codes.OK:
                raise KeySetError(f"status {response.status_code}")
            if response.headers.get("Content-Encoding", "identity") != "identity":
                raise KeySetError("the answer is compressed, unasked")
            return await self._read(response)

    async def _read(self, response: httpx.Response) -> bytes:
        body = bytearray()
        async for chunk in response.aiter_raw():
            body += chunk
            if len(body) > self._max_bytes:
                raise KeySetError(f"the answer is over {self._max_bytes} bytes")
        return bytes(body)


def _check_url(text: str) -> tuple[httpx.URL, bool]:
    """Return the URL, and whether it is on this machine."""
    try:
        url = httpx.URL(text)
    except (httpx.InvalidURL, ValueError):
        raise ConfigurationError("the key set URL is not a URL") from None
    if url.userinfo or not url.host:
        raise ConfigurationError("the key set URL needs a host and no user")
    loopback = is_loopback(url.host)
    if url.scheme != "https" and not (url.scheme == "http" and loopback):
        raise ConfigurationError(
            "the key set URL must start with https://: who can change the keys on "
            "their way can forge every token"
        )
    return url, loopback


def _parse(document: bytes, max_keys: int) -> Mapping[str, SigningKey]:
    """Return the usable keys of a JWK Set by their ids."""
    try:
        members = json.loads(document)
    except (ValueError, RecursionError):
        raise KeySetError("the answer is not JSON") from None
    jwks = members.get("keys") if isinstance(members, dict) else None
    if not isinstance(jwks, list):
        raise KeySetError("the answer is not a JWK Set")
    if len(jwks) > max_keys:
        raise KeySetError(f"the set has over {max_keys} keys")
    keys = [key for jwk in jwks if (key := _key(jwk)) is not None]
    # Two keys of one id: a token that names it says nothing, so it names neither.
    names = Counter(key.kid for key in keys)
    return {key.kid: key for key in keys if names[key.kid] == 1}


def _key(jwk: object) -> SigningKey | None:
    """Return a JWK as a key, or None for one that verifies nothing for us.

    RFC 7517, 5: a set may hold keys of other kinds and uses; they are passed over.
    """
    if not isinstance(jwk, dict) or not _is_for_verifying(jwk):
        return None
    kid = jwk.get("kid")
    if not isinstance(kid, str) or not 0 < len(kid) <= MAX_KID_LENGTH:
        return None
    try:
        algorithm, public = _public_key(jwk)
        if jwk.get("alg", algorithm) != algorithm:
            return None
        return SigningKey(kid, algorithm, None, public)
    except (KeySetError, ValueError, UnsupportedAlgorithm, ConfigurationError):
        return None


def _is_for_verifying(jwk: Mapping[str, Any]) -> bool:
    if "d" in jwk or "k" in jwk:  # a secret that the whole world can read
        return False
    operations = jwk.get("key_ops", ["verify"])
    return (
        jwk.get("use", "sig") == "sig"
        and isinstance(operations, list)
        and "verify" in operations
    )


def _public_key(jwk: Mapping[str, Any]) -> tuple[AlgorithmName, PublicKey]:
    """Return the key and the one algorithm that its kind serves (RFC 8725, 3.1)."""
    match jwk.get("kty"), jwk.get("crv"):
        case "OKP", "Ed25519":
            return "EdDSA", Ed25519PublicKey.from_public_bytes(_bytes(jwk, "x"))
        case "EC", "P-256":
            point = EllipticCurvePublicNumbers(
                _number(jwk, "x"), _number(jwk, "y"), SECP256R1()
            )
            return "ES256", point.public_key()
        case "RSA", None:
            modulus, exponent = _number(jwk, "n"), _number(jwk, "e")
            if modulus.bit_length() > MAX_RSA_BITS or exponent > MAX_RSA_EXPONENT:
                raise KeySetError("an RSA key of absurd size")
            return "RS256", RSAPublicNumbers(exponent, modulus).public_key()
    raise KeySetError("a key of another kind")


def _bytes(jwk: Mapping[str, Any], member: str) -> bytes:
    text = jwk.get(member)
    # Checked here: the standard library lets "+" and "/" pass beside "-" and "_".
    if not isinstance(text, str) or not BASE64URL.fullmatch(text):
        raise KeySetError(f"a key without {member} in base64url")
    try:
        return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    except binascii.Error:
        raise KeySetError(f"{member} is not base64url") from None


def _number(jwk: Mapping[str, Any], member: str) -> int:
    return int.from_bytes(_bytes(jwk, member), "big")
