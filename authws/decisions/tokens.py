"""Tokens: what authws signs, and what it believes (RFC 7519, 8725 and 9068).

The compact form is taken apart here, more strictly than PyJWT does (which accepts a
trailing ``=``, a header in UTF-16 and repeated members), and PyJWT's algorithms check
the signature over exactly those bytes. Nothing in the claims is looked at before the
signature holds, and no message repeats any part of a token.
"""

from __future__ import annotations

import json
import math
import re
import secrets
from binascii import a2b_base64
from collections.abc import Callable, Collection, Iterable, Mapping
from functools import lru_cache
from types import MappingProxyType
from typing import Any, Final, Literal, NoReturn

import msgspec
from jwt.algorithms import Algorithm, get_default_algorithms
from jwt.api_jws import PyJWS

from authws.decisions.keys import AlgorithmName, KeyRing, SigningKey
from authws.decisions.verified_tokens import VerifiedTokens
from authws.exceptions import (
    ConfigurationError,
    ExpiredTokenError,
    InvalidTokenError,
)

__all__ = [
    "ACCESS_TYPE",
    "MAX_LEEWAY",
    "MAX_TOKEN_BYTES",
    "TICKET_TYPE",
    "Claims",
    "TokenIssuer",
    "TokenKind",
    "TokenVerifier",
    "key_id",
]

TokenKind = Literal["access", "ticket"]

ACCESS_TYPE = "at+jwt"
"""RFC 9068, 2.1: explicit typing keeps other JWTs from passing for access tokens."""
TICKET_TYPE = "ticket+jwt"
"""The same idea (RFC 8725, 3.11), of our own, for single-use tickets."""
TYPES: Final[dict[TokenKind, str]] = {"access": ACCESS_TYPE, "ticket": TICKET_TYPE}

MAX_TOKEN_BYTES = 8192
"""Measured before any parsing; our own tokens stay under 1 KiB."""
MAX_LEEWAY = 60.0
"""Seconds of clock difference that a foreign issuer may have."""
MAX_KID = 128
MAX_SUBJECT = 256
MAX_ID = 256
MAX_TIME = 253402300799
"""The last second of the year 9999: beyond it a time is not a time."""
ROUNDING = 0.001
"""Seconds by which sums of floats near 2 x 10^9 may be off, with a wide margin."""

COMPACT = re.compile(r"([A-Za-z0-9_-]+)\.([A-Za-z0-9_-]+)\.([A-Za-z0-9_-]+)")
"""RFC 7515, 7.1: three parts of base64url without padding, and nothing else."""
SCOPE = re.compile(r"[\x21\x23-\x5b\x5d-\x7e]+")
"""One scope-token of RFC 6749, 3.3."""

OWN_HEADER = frozenset({"alg", "kid", "typ"})
"""An allow-list: ``crit``, ``jwk``, ``jku``, ``x5u``, ``x5c``, ``zip``, ``b64`` and
whatever comes next would each change what is verified, or with which key."""
FOREIGN_HEADER = OWN_HEADER | {"x5t", "x5t#S256"}
"""Thumbprints are hints that large issuers send; they are not used."""


class Claims(msgspec.Struct, frozen=True):
    """What a verified token says; times are seconds since the epoch."""

    subject: str
    session: str
    """``sid``; empty where a foreign issuer sends none."""
    token_id: str
    """``jti``, on which single use is decided; empty as above."""
    issuer: str
    audience: str
    issued_at: float
    not_before: float
    expires_at: float
    scopes: frozenset[str]
    kind: TokenKind
    connect_until: float
    """Until when a connection opened with this may live: for a ticket, the end of the
    credential it was drawn on; otherwise ``expires_at`` and the leeway."""


class TokenIssuer:
    """Signs tokens with the newest key of a ring."""

    def __init__(
        self, keyring: KeyRing, *, issuer: str, audience: str, ticket_audience: str
    ) -> None:
        if audience == ticket_audience:
            # RFC 8725, 3.12: rules for two kinds of token must exclude each other.
            raise ConfigurationError("access tokens and tickets need two audiences")
        self._keyring = keyring
        self._issuer = issuer
        self._audience = audience
        self._ticket_audience = ticket_audience

    def access(
        self,
        subject: str,
        session: str,
        scopes: Iterable[str],
        *,
        now: float,
        expires_at: float,
    ) -> str:
        """Return an access token (RFC 9068).

        Raises:
            ValueError: a scope holds what would make it two (RFC 6749, 3.3).
        """
        claims = self._claims(subject, session, scopes, now, expires_at)
        return self._sign({**claims, "aud": self._audience}, ACCESS_TYPE)

    def ticket(
        self,
        subject: str,
        session: str,
        scopes: Iterable[str],
        *,
        now: float,
        expires_at: float,
        connect_until: float,
    ) -> str:
        """Return a single-use ticket for opening one connection.

        Raises:
            ValueError: a scope holds what would make it two (RFC 6749, 3.3).
        """
        claims = self._claims(subject, session, scopes, now, expires_at)
        claims |= {"aud": self._ticket_audience, "connect_until": connect_until}
        return self._sign(claims, TICKET_TYPE)

    def _claims(
        self,
        subject: str,
        session: str,
        scopes: Iterable[str],
        now: float,
        expires_at: float,
    ) -> dict[str, object]:
        granted = sorted(set(scopes))
        if not all(SCOPE.fullmatch(scope) for scope in granted):
            raise ValueError("a scope is printable ASCII without space, quote, slash")
        # Times keep their fraction (RFC 7519, 2 allows it): a revocation is compared
        # with iat, and a login in the same second must stand after it.
        return {
            "iss": self._issuer,
            "sub": subject,
            "sid": session,
            "jti": secrets.token_urlsafe(16),
            "iat": now,
            "nbf": now,
            "exp": expires_at,
            "scope": " ".join(granted),
        }

    def _sign(self, claims: dict[str, object], typ: str) -> str:
        key = self._keyring.newest
        if key.private is None:  # pragma: no cover - KeyRing saw to it
            raise ConfigurationError("the newest key of the ring cannot sign")
        payload = json.dumps(claims, separators=(",", ":"), allow_nan=False).encode()
        headers = {"typ": typ, "kid": key.kid}
        return JWS.encode(payload, key.private, key.algorithm, headers)


class TokenVerifier:
    """Decides whether to believe a token, and what it then says.

    Args:
        keys: returns the key of an id, or None; it does no I/O.
        issuer: the exact ``iss``.
        audience: the exact ``aud``.
        kind: what the token is for; it decides which claims are demanded.
        leeway: seconds by which the issuer's clock may differ, at most 60.
        max_lifetime: the longest ``exp - iat`` that is believed, in seconds.
        types: the accepted ``typ`` values; by default the one of the kind. An empty
            string among them admits a token without ``typ``.
        require_session: demand ``sid`` and ``jti``, and ``typ`` to the letter, as our
            own tokens carry them. False is for a foreign issuer: it also admits
            ``aud`` as a list of one, and ``typ`` in any spelling of its media type.
        verified: remembers what was verified a moment ago; without it nothing is.

    Raises:
        ConfigurationError: a limit is out of bounds.
    """

    def __init__(
        self,
        keys: Callable[[str], SigningKey | None],
        *,
        issuer: str,
        audience: str,
        kind: TokenKind,
        leeway: float = 0.0,
        max_lifetime: float,
        types: Collection[str] | None = None,
        require_session: bool = True,
        verified: VerifiedTokens[Claims, SigningKey] | None = None,
    ) -> None:
        if not 0 <= leeway <= MAX_LEEWAY:
            raise ConfigurationError(f"leeway is 0 to {MAX_LEEWAY:.0f} seconds")
        if not 0 < max_lifetime < math.inf:
            raise ConfigurationError("a token's longest lifetime is a positive time")
        if not issuer or not audience:
            raise ConfigurationError("a verifier needs an issuer and an audience")
        self._keys = keys
        self._issuer = issuer
        self._audience = audience
        self._kind: TokenKind = kind
        self._leeway = leeway
        self._max_lifetime = max_lifetime
        self._foreign = not require_session
        self._verified = verified
        accepted = [TYPES[kind]] if types is None else types
        self._types = frozenset(map(self._spelling, accepted))

    def verify(self, token: str, *, now: float) -> Claims:
        """Return what the token says.

        Raises:
            InvalidTokenError: it is not a token this server accepts.
            ExpiredTokenError: it is in every respect, but its time is over.
        """
        claims = self._remembered(token, now)
        if claims is None:
            payload, key = self._authenticated(token)
            claims = self._read(_parse(payload, "claims"))
            if self._verified is not None:
                session = claims.session
                self._verified.remember(
                    token, claims, key=key, session=session, now=now
                )
        self._check_times(claims, now)
        return claims

    def _remembered(self, token: str, now: float) -> Claims | None:
        if self._verified is None or len(token) > MAX_TOKEN_BYTES:
            return None
        found = self._verified.find(token, now)
        if found is None:
            return None
        claims, key = found
        return claims if self._keys(key.kid) is key else None

    def _authenticated(self, token: str) -> tuple[bytes, SigningKey]:
        """Return the payload of a token whose signature holds, and the key of it."""
        if len(token) > MAX_TOKEN_BYTES:
            raise InvalidTokenError("token is too long")
        # [A-Z] and its like match ASCII only: a lone surrogate ends here.
        parts = COMPACT.fullmatch(token)
        if parts is None:
            raise InvalidTokenError("token is not a compact JWS")
        encoded = token.encode("ascii")
        header_end, payload_end = parts.end(1), parts.end(2)
        key = self._key(_header(encoded[:header_end]))
        payload = _decode(encoded[header_end + 1 : payload_end])
        signature = _decode(encoded[payload_end + 1 :])
        # The algorithm is the key's; the header was only allowed to agree with it.
        if not ALGORITHMS[key.algorithm].verify(
            encoded[:payload_end], key.verifying, signature
        ):
            raise InvalidTokenError("token signature does not hold")
        return payload, key

    def _key(self, header: Mapping[str, Any]) -> SigningKey:
        if not header.keys() <= (FOREIGN_HEADER if self._foreign else OWN_HEADER):
            raise InvalidTokenError("token header has a member that is not allowed")
        typ = header.get("typ", "")
        if not isinstance(typ, str) or self._spelling(typ) not in self._types:
            raise InvalidTokenError("token is of another type")
        kid = _text(header, "kid", MAX_KID)
        key = self._keys(kid)
        if key is None:
            raise InvalidTokenError("token names an unknown key")
        if header.get("alg") != key.algorithm:
            raise InvalidTokenError("token algorithm is not the key's")
        return key

    def _spelling(self, typ: str) -> str:
        """Give a ``typ`` the one spelling it is compared in; ours has only one."""
        if not self._foreign or not typ.isascii():
            return typ
        # RFC 7515, 4.1.9: a media type, in any case, whose "application/" may be left
        # out where no other slash is in it (RFC 9068, 4 names both for at+jwt)
        top, _, rest = typ.lower().partition("/")
        bare = top == "application" and rest and "/" not in rest
        return rest if bare else typ.lower()

    def _read(self, claims: dict[str, Any]) -> Claims:
        """Check every claim but time against time, and give them their types."""
        issued_at, expires_at = _time(claims, "iat"), _time(claims, "exp")
        if expires_at - issued_at > self._max_lifetime + ROUNDING:
            raise InvalidTokenError("token lives longer than allowed")
        ticket = self._kind == "ticket"
        return Claims(
            subject=_text(claims, "sub", MAX_SUBJECT),
            session=self._id(claims, "sid"),
            token_id=self._id(claims, "jti"),
            issuer=self._exact_issuer(claims),
            audience=self._exact_audience(claims),
            issued_at=issued_at,
            not_before=_time(claims, "nbf") if "nbf" in claims else issued_at,
            expires_at=expires_at,
            scopes=_scopes(claims),
            kind=self._kind,
            connect_until=(
                _time(claims, "connect_until") if ticket else expires_at + self._leeway
            ),
        )

    def _id(self, claims: dict[str, Any], name: str) -> str:
        if self._foreign and name not in claims:
            return ""
        return _text(claims, name, MAX_ID)

    def _exact_issuer(self, claims: dict[str, Any]) -> str:
        # Equality of strings, never ``in`` (CVE-2024-53861).
        if claims.get("iss") != self._issuer:
            raise InvalidTokenError("token is from another issuer")
        return self._issuer

    def _exact_audience(self, claims: dict[str, Any]) -> str:
        audience = claims.get("aud")
        if self._foreign and isinstance(audience, list) and len(audience) == 1:
            audience = audience[0]
        if audience != self._audience:
            raise InvalidTokenError("token is for another audience")
        return self._audience

    def _check_times(self, claims: Claims, now: float) -> None:
        if max(claims.issued_at, claims.not_before) > now + self._leeway:
            raise InvalidTokenError("token is not valid yet")
        # RFC 7519, 4.1.4: on or after exp a token must not be accepted.
        if claims.expires_at <= now - self._leeway:
            # what another issuer calls a session is none of ours to end
            session = "" if self._foreign else claims.session
            raise ExpiredTokenError("token has expired", session)


def key_id(token: str) -> str | None:
    """Return the id of the key that a token names, before anything is believed of it.

    Good for fetching keys, and for nothing else.
    """
    parts = COMPACT.fullmatch(token) if len(token) <= MAX_TOKEN_BYTES else None
    if parts is None:
        return None
    try:
        return _text(_header(parts[1].encode("ascii")), "kid", MAX_KID)
    except InvalidTokenError:
        return None


def _algorithms() -> dict[AlgorithmName, Algorithm]:
    known = get_default_algorithms()
    return {
        "HS256": known["HS256"],
        "EdDSA": known["EdDSA"],
        "ES256": known["ES256"],
        "RS256": known["RS256"],
    }


ALGORITHMS = _algorithms()
"""Named one by one, so that ``none`` cannot be among them."""
JWS = PyJWS(algorithms=list(ALGORITHMS))


@lru_cache(maxsize=64)
def _header(segment: bytes) -> Mapping[str, Any]:
    """Parse a token's header: the same one on every token that a key has signed.

    Read-only, for it is kept. Only what was parsed is: a refusal is found anew.
    """
    return MappingProxyType(_parse(_decode(segment), "header"))


_STANDARD = bytes.maketrans(b"-_", b"+/")
_LAST = {2: b"AQgw", 3: b"AEIMQUYcgkosw048"}
"""What the last character may be, by the length modulo 4: one whose bits beyond the
last whole byte are zero."""


def _decode(segment: bytes) -> bytes:
    """Decode base64url that has exactly one spelling (RFC 4648, 3.5)."""
    surplus = len(segment) % 4
    if surplus and segment[-1] not in _LAST.get(surplus, b""):
        raise InvalidTokenError("token is not base64url in its one spelling")
    return a2b_base64(segment.translate(_STANDARD) + b"=="[: -len(segment) % 4])


def _parse(data: bytes, part: str) -> dict[str, Any]:
    """Parse a JSON object in UTF-8 (RFC 8725, 3.7) whose members are unique."""
    try:
        # Text: what is given bytes would guess UTF-16 and UTF-32.
        members = _JSON.decode(data.decode("utf-8"))
    # ValueError covers bad UTF-8, bad JSON and integers of thousands of digits.
    except (ValueError, RecursionError):
        raise InvalidTokenError(f"token {part} is not plain JSON") from None
    if not isinstance(members, dict):
        raise InvalidTokenError(f"token {part} is not a JSON object")
    return members


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    # RFC 7519, 4 leaves repeated names to the parser; two parsers must not disagree.
    members = dict(pairs)
    if len(members) != len(pairs):
        raise ValueError("repeated member")
    return members


def _not_json(constant: str) -> NoReturn:
    raise ValueError("NaN and Infinity are not JSON")


_JSON = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_not_json)


def _text(members: Mapping[str, Any], name: str, longest: int) -> str:
    value = members.get(name)
    # Unprintable covers control characters, bidi marks and lone surrogates: these
    # names go to logs, to the database and to other people's screens.
    if (
        not isinstance(value, str)
        or not 0 < len(value) <= longest
        or not value.isprintable()
    ):
        raise InvalidTokenError(f"token has no usable {name}")
    return value


def _time(claims: dict[str, Any], name: str) -> float:
    value = claims.get(name)
    # bool is an int to Python; a chained comparison refuses infinities by itself.
    if (
        not isinstance(value, int | float)
        or isinstance(value, bool)
        or not 0 <= value <= MAX_TIME
    ):
        raise InvalidTokenError(f"token has no usable {name}")
    return float(value)


def _scopes(claims: dict[str, Any]) -> frozenset[str]:
    scope = claims.get("scope", "")
    if not isinstance(scope, str):
        raise InvalidTokenError("token has no usable scope")
    scopes = scope.split(" ") if scope else []
    if not all(SCOPE.fullmatch(one) for one in scopes):
        raise InvalidTokenError("token has no usable scope")
    return frozenset(scopes)
