"""Which of several workers a name belongs to, so that all of them say the same.

Consistent hashing: each worker has points on a circle, and a name belongs to the one
whose point follows its own. A worker more or less moves only the share that it takes.
"""

from __future__ import annotations

from bisect import bisect
from collections.abc import Iterable
from functools import lru_cache
from hashlib import blake2b

__all__ = ["Ring"]

POINTS = 64
"""Of each worker: the more, the more even the shares are (within some 40 %)."""


class Ring:
    """Some workers, of whom there is at least one."""

    def __init__(self, nodes: Iterable[str]) -> None:
        owners = sorted((point, node) for node in nodes for point in _points(node))
        self._points = [point for point, _ in owners]
        self._owners = [node for _, node in owners]

    def home(self, name: str) -> str:
        """Return the worker that a name belongs to."""
        behind = bisect(self._points, _point(name))
        return self._owners[behind % len(self._owners)]


@lru_cache(maxsize=4096)
def _points(node: str) -> tuple[int, ...]:
    return tuple(_point(f"{node} {number}") for number in range(POINTS))


def _point(name: str) -> int:
    return int.from_bytes(blake2b(name.encode(), digest_size=8).digest())
