"""Many users and their tokens, without a login for each: a login costs a hash."""

from __future__ import annotations

import secrets
import sqlite3
import time
from contextlib import closing
from typing import Any

import jwt

from authws.decisions.tokens import TokenIssuer
from authws.service.house import ticket_audience
from authws.service.key_files import load_secrets
from authws.service.settings import Settings
from bench.served import Served

__all__ = ["claims_of", "enrol", "issuer_of"]


def issuer_of(service: Served, **settings: Any) -> TokenIssuer:
    """Return what signs tokens as this service does."""
    known = Settings(_env_file=None, data_dir=service.data_dir, **settings)
    return TokenIssuer(
        load_secrets(known).keyring,
        issuer=known.issuer,
        audience=known.audience,
        ticket_audience=ticket_audience(known),
    )


def claims_of(token: str) -> dict[str, Any]:
    """Return what a token says, of whose signature there is no doubt."""
    return dict(jwt.decode(token, options={"verify_signature": False}))


def enrol(service: Served, name: str, token: str, count: int) -> list[str]:
    """Add ``count`` users like one who is logged in, and log each of them in.

    Returns a token for each; all have the password of the first.
    """
    claims = claims_of(token)
    ids = [(f"{name}-{number}", secrets.token_urlsafe(16)) for number in range(count)]
    with closing(sqlite3.connect(service.data_dir / "authws.db", timeout=30)) as db, db:
        db.executemany(
            "INSERT INTO users (name, password_hash, scopes, created_at, updated_at) "
            "SELECT ?, password_hash, scopes, created_at, updated_at "
            "FROM users WHERE name = ?",
            [(user, name) for user, _ in ids],
        )
        db.executemany(
            "INSERT INTO sessions (id, subject, kind, created_at, last_seen_at, "
            "idle_ttl, expires_at, user_agent, address) "
            "SELECT ?, ?, kind, created_at, last_seen_at, idle_ttl, expires_at, "
            "user_agent, address FROM sessions WHERE id = ?",
            [(session, user, claims["sid"]) for user, session in ids],
        )
    issuer, now = issuer_of(service), time.time()
    return [
        issuer.access(
            *(user, session, claims["scope"].split()), now=now, expires_at=now + 3600
        )
        for user, session in ids
    ]
