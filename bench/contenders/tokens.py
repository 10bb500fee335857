"""The token of those contenders that check one with nothing but PyJWT."""

from __future__ import annotations

import time

import jwt

__all__ = ["SECRET", "make_token"]

SECRET = "bench-secret-bench-secret-bench-secret"


def make_token() -> str:
    """A token that lives longer than any benchmark."""
    now = int(time.time())
    claims = {"sub": "alice", "iat": now, "exp": now + 86_400, "jti": "0123456789ab"}
    return jwt.encode(claims, SECRET, algorithm="HS256")
