"""Where a handshake may carry a credential, and how many it may carry: one.

RFC 6750, section 2: a client must not use more than one method in a request. A
browser cannot help sending its cookie, so a session cookie beside a token or ticket
is allowed, unless it is of a live session of another user: that is a refusal.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from urllib.parse import parse_qsl

from authws.exceptions import MalformedCredentialError, MissingCredentialError

__all__ = ["bearer", "cookie_values", "one_token", "query_values"]

MAX_COOKIE_HEADER_BYTES = 8192
MAX_QUERY_BYTES = 16384
_ALONE = re.compile(rb"([a-z_]+)=([A-Za-z0-9._~-]+)")
"""One parameter that means what it says, letter by letter (RFC 3986, 2.3)."""
TOKEN_PARAMETER = "token"  # noqa: S105 - the parameter's name


def query_values(query_string: bytes, name: str) -> list[str]:
    """Every value of a query parameter, in order, empty ones included."""
    if not query_string:
        return []
    if len(query_string) > MAX_QUERY_BYTES:
        raise MalformedCredentialError("query string too long")
    alone = _ALONE.fullmatch(query_string)
    if alone is not None:  # as nearly every handshake has it
        return [alone[2].decode("ascii")] if alone[1] == name.encode() else []
    try:
        pairs = parse_qsl(
            query_string.decode("ascii"), keep_blank_values=True, max_num_fields=32
        )
    except ValueError:
        raise MalformedCredentialError("query string cannot be read") from None
    return [value for key, value in pairs if key == name]


def one_token(values: Sequence[str]) -> str:
    """Return the token if there is exactly one and it is not empty."""
    if len(values) > 1:
        raise MalformedCredentialError("more than one token")
    if not values or not values[0]:
        raise MissingCredentialError("no token")
    return values[0]


def bearer(values: Sequence[str]) -> str | None:
    """Return the token of an Authorization header (RFC 6750, 2.1), None without one."""
    if not values:
        return None
    if len(values) > 1:
        raise MalformedCredentialError("more than one Authorization header")
    scheme, _, token = values[0].partition(" ")
    if scheme.lower() != "bearer":
        raise MalformedCredentialError("an Authorization scheme other than Bearer")
    if not token.strip():
        raise MissingCredentialError("no bearer token")
    return token.strip()


def cookie_values(headers: Iterable[str], name: str) -> list[str]:
    """Every value of a cookie of exactly this name, in order.

    Names are compared as they are: ``__host-x`` is not ``__Host-x``, though browsers
    guard both (RFC 6265bis, 5.7).
    """
    found: list[str] = []
    for header in headers:
        if len(header) > MAX_COOKIE_HEADER_BYTES:
            raise MalformedCredentialError("cookie header too long")
        for pair in header.split(";"):
            key, separator, value = pair.strip().partition("=")
            if separator and key == name:
                found.append(value)
    return found
