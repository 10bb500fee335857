"""What the tests of failures measured, for whoever asks with AUTHWS_TEST_MEASURES."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["measure", "note"]


def note(kind: str, fault: str, what: str, value: float | str) -> None:
    """Write a figure down, as a line of JSON."""
    path = os.environ.get("AUTHWS_TEST_MEASURES")
    if path:
        row = {"broker": kind, "fault": fault, "what": what, "value": value}
        with Path(path).open("a") as file:
            file.write(json.dumps(row) + "\n")


@contextmanager
def measure(kind: str, fault: str, what: str) -> Iterator[None]:
    """Write down how many seconds something took."""
    began = time.monotonic()
    yield
    note(kind, fault, what, round(time.monotonic() - began, 3))
