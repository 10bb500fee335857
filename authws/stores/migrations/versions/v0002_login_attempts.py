"""Logins that failed or are being tried, and from where an account logged in before."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "login_attempts",
        sa.Column(
            "id",
            sa.BigInteger().with_variant(sa.Integer, "sqlite"),
            autoincrement=True,
            nullable=False,
        ),
        sa.Column("pair", sa.String(128)),
        sa.Column("address", sa.String(128), nullable=False),
        sa.Column("account", sa.String(128), nullable=False),
        sa.Column("under_way", sa.Boolean, nullable=False),
        sa.Column("at", sa.Double, nullable=False),
        sa.Column("expires_at", sa.Double, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_login_attempts"),
    )
    for counted in ("pair", "address", "account"):
        op.create_index(
            f"ix_login_attempts_{counted}", "login_attempts", [counted, "at"]
        )
    op.create_index("ix_login_attempts_expires_at", "login_attempts", ["expires_at"])
    op.create_table(
        "known_addresses",
        sa.Column("pair", sa.String(128), nullable=False),
        sa.Column("account", sa.String(128), nullable=False),
        sa.Column("seen_at", sa.Double, nullable=False),
        sa.PrimaryKeyConstraint("pair", name="pk_known_addresses"),
    )
    op.create_index("ix_known_addresses_account", "known_addresses", ["account"])
    op.create_index("ix_known_addresses_seen_at", "known_addresses", ["seen_at"])


def downgrade() -> None:
    op.drop_table("known_addresses")
    op.drop_table("login_attempts")
