"""1: messages of every width of length, in one frame."""

from __future__ import annotations

from tests.conformance.cases import BINARY, LEAVES, TEXT, Case, hears, says

__all__ = ["CASES"]

SIZES = {
    1: (0, 0, "nothing at all"),
    2: (125, 0, "the last length that fits into seven bits"),
    3: (126, 0, "the first length that needs two bytes"),
    4: (127, 0, "the next one"),
    5: (128, 0, "and the one after it"),
    6: (65_535, 0, "the last length that fits into two bytes"),
    7: (65_536, 0, "the first length that needs eight bytes"),
    8: (65_536, 997, "the same, in many small pieces"),
}
KINDS = {1: (TEXT, b"*"), 2: (BINARY, b"\xfe")}

CASES = [
    Case(
        f"1.{kind}.{number}",
        what,
        (says(opcode, byte * size, chop=chop), hears(opcode, byte * size)),
        LEAVES,
    )
    for kind, (opcode, byte) in KINDS.items()
    for number, (size, chop, what) in SIZES.items()
]
