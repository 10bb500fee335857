"""4: an opcode without a meaning fails the connection."""

from __future__ import annotations

from tests.conformance.cases import OCTETS, Case, fails, says, then_fails
from tests.wire import frame

__all__ = ["CASES"]

CASES = [
    case
    for group, first in ((1, 3), (2, 11))
    for case in (
        Case(f"4.{group}.1", f"opcode {first}", (says(first),), fails(1002)),
        Case(
            f"4.{group}.2",
            f"opcode {first + 1}, with a payload",
            (says(first + 1, b"means nothing"),),
            fails(1002),
        ),
        *then_fails(
            f"4.{group}.3", f"opcode {first + 2} behind a text", frame(first + 2)
        ),
        *then_fails(
            f"4.{group}.4",
            f"opcode {first + 3} behind a text, with a payload",
            frame(first + 3, b"means nothing"),
        ),
        *then_fails(
            f"4.{group}.5",
            f"opcode {first + 4} behind a text, octet by octet",
            frame(first + 4, b"means nothing"),
            chop=OCTETS,
        ),
    )
]
