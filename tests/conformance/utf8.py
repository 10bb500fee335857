"""6: a text is UTF-8 as RFC 3629 has it, wherever it is cut, or it is 1007.

The byte sequences from 6.5 on are those of the field's usual stress test for decoders
(Markus Kuhn's, with the corrections of Unicode 5: five and six bytes are never UTF-8,
and noncharacters are).
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise

from tests.conformance.cases import (
    CONTINUATION,
    LEAVES,
    PING,
    PONG,
    TEXT,
    Case,
    Says,
    Step,
    fails,
    hears,
    says,
)

__all__ = ["CASES"]

MIXED = "Grüße an µ, ß und àá!".encode()
KOSME = bytes.fromhex("cebae1bdb9cf83cebcceb5")
"""Five letters of two or three bytes, the stress test's own sample."""
SURROGATE = KOSME + b"\xed\xa0\x80" + b"edited"
BEYOND = KOSME + b"\xf4\x90\x80\x80" + b"edited"
"""Its second part is the first number beyond Unicode."""

AT_THE_END = "a text is checked when it is whole, and nothing of it is passed on before"


def in_pieces(*parts: bytes) -> tuple[Says, ...]:
    """A text, each part a fragment."""
    last = len(parts) - 1
    return tuple(
        says(CONTINUATION if number else TEXT, part, fin=number == last)
        for number, part in enumerate(parts)
    )


def by_byte(text: bytes) -> tuple[Says, ...]:
    """A text, each byte a fragment."""
    return in_pieces(*(text[at : at + 1] for at in range(len(text))))


def with_proof(first: Says, *rest: Says) -> tuple[Step, ...]:
    """Prove that the first part was taken before the rest goes out."""
    return (first, says(PING, b"so far"), hears(PONG, b"so far"), *rest)


def chopped(text: bytes, *places: int) -> tuple[Says, ...]:
    """A text in one frame that arrives in parts, cut at these places of the text."""
    whole = says(TEXT, text).data
    head = len(whole) - len(text)
    cuts = [0, *(head + place for place in places), len(whole)]
    return tuple(Says(whole[a:b]) for a, b in pairwise(cuts))


BASIC = [
    Case("6.1.1", "an empty text", (says(TEXT), hears(TEXT)), LEAVES),
    Case(
        "6.1.2",
        "an empty text in three pieces",
        (*in_pieces(b"", b"", b""), hears(TEXT)),
        LEAVES,
    ),
    Case(
        "6.1.3",
        "a text between two empty pieces",
        (*in_pieces(b"", b"in the middle", b""), hears(TEXT, b"in the middle")),
        LEAVES,
    ),
    Case(
        "6.2.1", "a text beyond ASCII", (says(TEXT, MIXED), hears(TEXT, MIXED)), LEAVES
    ),
    Case(
        "6.2.2",
        "the same, cut between two letters",
        (*in_pieces(MIXED[:4], MIXED[4:]), hears(TEXT, MIXED)),
        LEAVES,
    ),
    Case(
        "6.2.3",
        "the same, cut between all bytes",
        (*by_byte(MIXED), hears(TEXT, MIXED)),
        LEAVES,
    ),
    Case(
        "6.2.4",
        "another, cut between all bytes",
        (*by_byte(KOSME), hears(TEXT, KOSME)),
        LEAVES,
    ),
    Case("6.3.1", "a surrogate in a text", (says(TEXT, SURROGATE),), fails(1007)),
    Case("6.3.2", "the same, cut between all bytes", by_byte(SURROGATE), fails(1007)),
    Case(
        "6.4.1",
        "a piece that is no UTF-8 behind one that is",
        with_proof(*in_pieces(KOSME, BEYOND[11:15], b"edited")),
        fails(1007),
        differs=AT_THE_END,
    ),
    Case(
        "6.4.2",
        "the same, up to the very byte that spoils it",
        with_proof(*in_pieces(BEYOND[:12], BEYOND[12:13], BEYOND[13:])),
        fails(1007),
        differs=AT_THE_END,
    ),
    Case(
        "6.4.3",
        "the same in one frame that arrives in parts",
        chopped(BEYOND, 11, 15),
        fails(1007),
        differs=AT_THE_END,
    ),
    Case(
        "6.4.4",
        "the same, up to the very byte that spoils it",
        chopped(BEYOND, 12, 13),
        fails(1007),
        differs=AT_THE_END,
    ),
]


# --------------------------------------------------------------------- the stress test


def spaced(first: int, last: int) -> bytes:
    """Each byte of a range with a space behind it."""
    return b"".join(bytes([byte, 0x20]) for byte in range(first, last))


UNFINISHED = [
    bytes.fromhex(text)
    for text in (
        *("c0", "e080", "f08080", "f8808080", "fc80808080"),
        *("df", "efbf", "f7bfbf", "fbbfbfbf", "fdbfbfbfbf"),
    )
]
NONCHARACTERS = [b"\xef\xbf\xbe", b"\xef\xbf\xbf"] + [
    chr(plane << 16 | last).encode()
    for plane in range(0x10 + 1)
    for last in (0xFFFE, 0xFFFF)
    if plane
]

GOOD, BAD = True, False
Group = tuple[str, list[tuple[bool, bytes]]]


def group(what: str, verdict: bool, sequences: Iterable[bytes | str]) -> Group:
    """Sequences of one verdict, as bytes or in hexadecimal."""
    return what, [
        (verdict, one if isinstance(one, bytes) else bytes.fromhex(one))
        for one in sequences
    ]


def mixed(what: str, good: Iterable[str], bad: Iterable[str]) -> Group:
    """Good sequences, then bad ones."""
    return what, [*group(what, GOOD, good)[1], *group(what, BAD, bad)[1]]


ENDS_OF_LETTERS = {2, 5, 7, 9, 11}
"""The lengths at which the sample's letters end."""

GROUPS: dict[int, Group] = {
    5: group(
        "letters of one to four bytes",
        GOOD,
        [
            b"hello\x24world",
            b"hello\xc2\xa2world",
            b"hello\xe2\x82\xacworld",
            b"hello\xf0\xa4\xad\xa2world",
            KOSME,
        ],
    ),
    6: (
        "every beginning of a text",
        [(end in ENDS_OF_LETTERS, KOSME[:end]) for end in range(1, len(KOSME) + 1)],
    ),
    7: group("the first of each width", GOOD, ["00", "c280", "e0a080", "f0908080"]),
    8: group("five and six bytes, the first", BAD, ["f888808080", "fc8480808080"]),
    9: group("the last of each width", GOOD, ["7f", "dfbf", "efbfbf", "f48fbfbf"]),
    10: group(
        "four to six bytes, the last", BAD, ["f7bfbfbf", "fbbfbfbfbf", "fdbfbfbfbfbf"]
    ),
    11: mixed(
        "around the gaps", ["ed9fbf", "ee8080", "efbfbd", "f48fbfbf"], ["f4908080"]
    ),
    12: group(
        "continuation bytes that continue nothing",
        BAD,
        [
            *("80", "bf"),
            *(("80bf" * 3)[: 2 * count] for count in range(2, 7)),
            bytes(range(0x80, 0xBF)),
        ],
    ),
    13: group(
        "first bytes with a space behind each",
        BAD,
        [
            spaced(0xC0, 0xDF),
            spaced(0xE0, 0xEF),
            spaced(0xF0, 0xF7),
            spaced(0xF8, 0xFB),
            spaced(0xFC, 0xFD),
        ],
    ),
    14: group("the last byte missing", BAD, UNFINISHED),
    15: group("all of these in a row", BAD, [b"".join(UNFINISHED)]),
    16: group("bytes that never occur", BAD, ["fe", "ff", "fefeffff"]),
    17: group(
        "a slash in too many bytes",
        BAD,
        ["c0af", "e080af", "f08080af", "f8808080af", "fc80808080af"],
    ),
    18: group(
        "the last of each width, in one byte more",
        BAD,
        ["c1bf", "e09fbf", "f08fbfbf", "f887bfbfbf", "fc83bfbfbfbf"],
    ),
    19: group(
        "zero in too many bytes",
        BAD,
        ["c080", "e08080", "f0808080", "f880808080", "fc8080808080"],
    ),
    20: group(
        "surrogates",
        BAD,
        ["eda080", "edadbf", "edae80", "edafbf", "edb080", "edbe80", "edbfbf"],
    ),
    21: group(
        "pairs of surrogates",
        BAD,
        [
            high + low
            for high in ("eda080", "edadbf", "edae80", "edafbf")
            for low in ("edb080", "edbfbf")
        ],
    ),
    22: group("noncharacters, which are letters to UTF-8", GOOD, NONCHARACTERS),
    23: group(
        "the specials, the replacement character among them",
        GOOD,
        [chr(code).encode() for code in range(0xFFF9, 0xFFFF + 1)],
    ),
}

CASES = [
    *BASIC,
    *(
        Case(
            f"6.{number}.{place}",
            f"{what}: {sequence.hex()[:24]}",
            (says(TEXT, sequence), *([hears(TEXT, sequence)] if verdict else [])),
            LEAVES if verdict else fails(1007),
        )
        for number, (what, sequences) in GROUPS.items()
        for place, (verdict, sequence) in enumerate(sequences, 1)
    ),
]
