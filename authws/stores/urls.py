"""Database URLs: which are taken, and what of them is whose."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlencode

from sqlalchemy import make_url
from sqlalchemy.engine import URL
from sqlalchemy.exc import ArgumentError

from authws.exceptions import ConfigurationError

__all__ = ["is_sqlite", "libpq_parameters", "parse", "sqlite_file"]

DRIVERS = {
    "sqlite": "sqlite+aiosqlite",
    "sqlite+aiosqlite": "sqlite+aiosqlite",
    "postgres": "postgresql+asyncpg",
    "postgresql": "postgresql+asyncpg",
    "postgresql+asyncpg": "postgresql+asyncpg",
}
LIBPQ = (
    "application_name",
    "sslmode",
    "sslrootcert",
    "sslcert",
    "sslkey",
    "sslcrl",
    "target_session_attrs",
)
"""What PostgreSQL's own URLs have; the driver takes it from such a URL only."""
DRIVERS_OWN = ("host", "port", "ssl", "prepared_statement_cache_size")
"""What goes to SQLAlchemy and the driver as it stands."""


def parse(text: str) -> URL:
    """Read a database's URL.

    Raises:
        ConfigurationError: it is none, of another kind, or has parameters that mean
            nothing. The message never holds the password.
    """
    try:
        url = make_url(text)
    except (ArgumentError, ValueError):
        # The cause may quote the URL, password and all: it stays behind.
        raise ConfigurationError("the database URL is not a URL") from None
    driver = DRIVERS.get(url.drivername)
    if driver is None:
        raise ConfigurationError(
            "the database URL must start with sqlite:/// or postgresql://, "
            f"not {url.drivername!r:.40}"
        )
    url = url.set(drivername=driver)
    if is_sqlite(url):
        if url.database in {None, "", ":memory:"}:
            raise ConfigurationError(
                "the SQLite database must be a file: sqlite:////path/to/authws.db"
            )
        return url
    for name in url.query:
        if name not in LIBPQ and name not in DRIVERS_OWN:
            raise ConfigurationError(
                f"the database URL has a parameter {name!r:.40}; it may have "
                f"{', '.join(sorted(LIBPQ))}"
            )
    return url


def is_sqlite(url: URL) -> bool:
    """Tell the file from the server."""
    return url.get_backend_name() == "sqlite"


def sqlite_file(text: str) -> Path | None:
    """Return the file of an SQLite database; None for another kind.

    Raises:
        ConfigurationError: as for ``parse``.
    """
    url = parse(text)
    return Path(url.database or "") if is_sqlite(url) else None


def libpq_parameters(url: URL) -> tuple[URL, str]:
    """Part a URL into what SQLAlchemy reads, and one of PostgreSQL's own that has
    nothing but parameters."""
    given = {name: value for name, value in url.query.items() if name in LIBPQ}
    return (
        url.difference_update_query(given),
        f"postgresql:///?{urlencode(given, doseq=True)}" if given else "postgresql:///",
    )
