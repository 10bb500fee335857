"""What Alembic runs around the migrations: here, on the connection it was handed.

``authws.stores.database.migrate`` opens that connection, its transaction and the lock
that makes a second process wait; so there is nothing to configure in this file.
"""

from __future__ import annotations

from alembic import context

from authws.stores.schema import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    # SQLite can roll a table back, too, once BEGIN is ours to say (see database.py).
    transactional_ddl=True,
)
context.run_migrations()
