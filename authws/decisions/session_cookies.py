"""The session cookie: an opaque id that only this service can have written.

The cookie carries no state; the session lives on the server, so that logging out is
real. At rest only a hash of the id is kept, and a stolen database opens no session.
"""

from __future__ import annotations

import base64
import hashlib
import re
import secrets
from collections.abc import Sequence

from itsdangerous import BadSignature, Signer

from authws.decisions.keys import derive_key
from authws.exceptions import ConfigurationError, InvalidSessionError

__all__ = [
    "COOKIE_NAME",
    "MAX_COOKIE_BYTES",
    "SECURE_COOKIE_NAME",
    "SessionCookieSigner",
    "session_digest",
]

COOKIE_NAME = "authws"
"""On a loopback http origin only, where no cookie can be Secure."""
SECURE_COOKIE_NAME = "__Host-authws"
"""The prefix makes a browser insist on Secure, Path=/ and no Domain (RFC 6265bis)."""
MAX_COOKIE_BYTES = 512
PURPOSE = "authws session cookie"

_256_BITS = r"[A-Za-z0-9_-]{42}[AEIMQUYcgkosw048]"
"""32 bytes as base64url: of the last character two bits are unused, and zero. Without
this rule four spellings of one signature would all hold."""
ID = re.compile(_256_BITS)
COOKIE = re.compile(rf"{_256_BITS}\.{_256_BITS}")


class SessionCookieSigner:
    """Signs session ids, and takes back only what it signed.

    Args:
        secrets: the configured secrets, oldest to newest; the newest signs.

    Raises:
        ConfigurationError: there is no secret.
    """

    def __init__(self, secrets: Sequence[bytes]) -> None:
        if not secrets:
            raise ConfigurationError("a cookie signer needs at least one secret")
        self._signer = Signer(
            [derive_key(secret, PURPOSE) for secret in secrets],
            salt=PURPOSE,
            key_derivation="hmac",
            digest_method=hashlib.sha256,  # the library's default is SHA-1
        )

    def new(self) -> str:
        """Return a fresh session id: 256 bits, as base64url."""
        return secrets.token_urlsafe(32)

    def sign(self, secret_id: str) -> str:
        """Return the cookie's value for a session id that ``new`` returned.

        Raises:
            ValueError: it is not such an id.
        """
        if not ID.fullmatch(secret_id):
            raise ValueError("not a session id")
        return self._signer.sign(secret_id).decode("ascii")

    def unsign(self, value: str) -> str:
        """Return the session id of a cookie's value.

        Raises:
            InvalidSessionError: we did not sign it, or not with a secret still in use.
        """
        if len(value) > MAX_COOKIE_BYTES or not COOKIE.fullmatch(value):
            raise InvalidSessionError("session cookie is malformed")
        try:
            return self._signer.unsign(value).decode("ascii")
        except BadSignature:
            # The cause quotes the signature: it stays behind.
            raise InvalidSessionError(
                "session cookie signature does not hold"
            ) from None


def session_digest(secret_id: str) -> str:
    """Return the session's public id, the ``sid`` of its tokens.

    A hash of 256 random bits can be kept, logged and shown: nobody computes it
    backwards. A token's ``sid`` can be compared with a cookie without the database.
    """
    digest = hashlib.sha256(secret_id.encode()).digest()
    return base64.urlsafe_b64encode(digest).rstrip(b"=").decode("ascii")
