"""The two databases, as the stores' tests have them: for what only one can decide."""

from __future__ import annotations

from tests.stores.conftest import backend, postgres, url

__all__ = ["backend", "postgres", "url"]
