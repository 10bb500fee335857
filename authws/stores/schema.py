"""The tables, in one place, as the queries see them.

``migrations/`` builds them; a test holds the two together. Times are seconds since the
epoch in double precision (NumericDate), so a row compares with a claim without zones.
At rest there is no secret that could be presented: refresh tokens and session ids are
kept as digests, passwords as argon2id hashes.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Double,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
)

__all__ = [
    "ADDRESS_LENGTH",
    "DIGEST_LENGTH",
    "NAME_LENGTH",
    "USER_AGENT_LENGTH",
    "known_addresses",
    "login_attempts",
    "metadata",
    "refresh_tokens",
    "revocations",
    "sessions",
    "used_tickets",
    "users",
]

NAME_LENGTH = 64
DIGEST_LENGTH = 128
"""Room for any base64url id or digest, ours (22 to 43 characters) or longer."""
USER_AGENT_LENGTH = 200
ADDRESS_LENGTH = 64

# Constraints have names, or a later migration on SQLite could not drop them.
metadata = MetaData(
    naming_convention={
        "pk": "pk_%(table_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "ix": "ix_%(table_name)s_%(column_0_name)s",
    }
)

users = Table(
    "users",
    metadata,
    Column("name", String(NAME_LENGTH), primary_key=True),
    Column("password_hash", Text, nullable=False),
    Column("scopes", Text, nullable=False),
    Column("disabled_at", Double),
    Column("created_at", Double, nullable=False),
    Column("updated_at", Double, nullable=False),
)

# No foreign key to users: a session outlives its removed user as a revoked row, which
# is what tells the holder of its token that the session was ended.
sessions = Table(
    "sessions",
    metadata,
    Column("id", String(DIGEST_LENGTH), primary_key=True),
    Column("subject", String(NAME_LENGTH), nullable=False, index=True),
    Column("kind", String(8), nullable=False),
    Column("created_at", Double, nullable=False),
    Column("last_seen_at", Double, nullable=False),
    Column("idle_ttl", Double, nullable=False),
    Column("expires_at", Double, nullable=False, index=True),
    Column("revoked_at", Double),
    Column("user_agent", String(USER_AGENT_LENGTH), nullable=False),
    Column("address", String(ADDRESS_LENGTH), nullable=False),
)

refresh_tokens = Table(
    "refresh_tokens",
    metadata,
    Column("digest", String(DIGEST_LENGTH), primary_key=True),
    Column(
        "session_id",
        ForeignKey("sessions.id", ondelete="CASCADE"),
        nullable=False,
        index=True,
    ),
    Column("created_at", Double, nullable=False),
    Column("expires_at", Double, nullable=False, index=True),
    Column("used_at", Double),
)

used_tickets = Table(
    "used_tickets",
    metadata,
    Column("jti", String(DIGEST_LENGTH), primary_key=True),
    Column("expires_at", Double, nullable=False, index=True),
)

revocations = Table(
    "revocations",
    metadata,
    # SQLite counts up by itself only in a column of the type INTEGER, of any size.
    Column(
        "id",
        BigInteger().with_variant(Integer, "sqlite"),
        primary_key=True,
        autoincrement=True,
    ),
    Column("kind", String(8), nullable=False),
    Column("key", String(DIGEST_LENGTH), nullable=False),
    Column("at", Double, nullable=False, index=True),
    Column("expires_at", Double, nullable=False, index=True),
)

# Who tried, and from where, is kept as digests: what stands where a name belongs may be
# any text, a password too.
login_attempts = Table(
    "login_attempts",
    metadata,
    Column(
        "id",
        BigInteger().with_variant(Integer, "sqlite"),
        primary_key=True,
        autoincrement=True,
    ),
    Column("pair", String(DIGEST_LENGTH)),  # null once a success has cleared it
    Column("address", String(DIGEST_LENGTH), nullable=False),
    Column("account", String(DIGEST_LENGTH), nullable=False),
    Column("under_way", Boolean, nullable=False),
    Column("at", Double, nullable=False),
    Column("expires_at", Double, nullable=False, index=True),
    Index("ix_login_attempts_pair", "pair", "at"),
    Index("ix_login_attempts_address", "address", "at"),
    Index("ix_login_attempts_account", "account", "at"),
)

known_addresses = Table(
    "known_addresses",
    metadata,
    Column("pair", String(DIGEST_LENGTH), primary_key=True),
    Column("account", String(DIGEST_LENGTH), nullable=False, index=True),
    Column("seen_at", Double, nullable=False, index=True),
)
