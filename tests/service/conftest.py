"""A database, and a clock to set, as the stores' tests have them."""

from tests.stores.conftest import clock, db

__all__ = ["clock", "db"]
