"""What a test needs of the machine, and what happens when it is not there."""

from __future__ import annotations

import os

import pytest

__all__ = ["require"]


def require(name: str, available: bool, why: str) -> None:
    """Skip the test loudly, or fail it where everything is promised to be there.

    Args:
        name: what is needed, such as ``postgresql``.
        available: whether it is there.
        why: what was looked for and not found.
    """
    if available:
        return
    if os.environ.get("AUTHWS_TEST_REQUIRE") == "all":
        pytest.fail(f"{name} is required and missing: {why}", pytrace=False)
    pytest.skip(f"NOT TESTED: {name} is missing: {why}")
