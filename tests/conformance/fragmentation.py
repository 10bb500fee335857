"""5: a message may come in pieces, a control frame may not, and nothing out of turn."""

from __future__ import annotations

from tests.conformance.cases import (
    CONTINUATION,
    LEAVES,
    OCTETS,
    OVERTAKEN,
    PING,
    PONG,
    TEXT,
    Case,
    Says,
    Step,
    fails,
    hears,
    may_hear,
    says,
)

__all__ = ["CASES"]

ONE, TWO = says(TEXT, b"begun", fin=False), says(CONTINUATION, b" and ended")
WHOLE = hears(TEXT, b"begun and ended")
BETWEEN, PONGED = says(PING, b"between"), hears(PONG, b"between")
MORE = says(CONTINUATION, b", more", fin=False)
STRAY = says(CONTINUATION, b"of what?")
STRAY_BEGINS = says(CONTINUATION, b"of what?", fin=False)
TEXT_AFTER = says(TEXT, b"a text of its own")


def together(*said: Says) -> tuple[Says]:
    """Sent in one piece."""
    return (Says(b"".join(each.data for each in said)),)


def octets(*said: Says) -> tuple[Says]:
    """Sent octet by octet."""
    return (Says(b"".join(each.data for each in said), OCTETS),)


def in_three_ways(
    first: int, what: str, said: tuple[Says, ...], *then: Step, ok: bool
) -> list[Case]:
    """In one piece, frame by frame, and octet by octet."""
    ends = LEAVES if ok else fails(1002)
    return [
        Case(f"5.{first}", what, (*together(*said), *then), ends),
        Case(f"5.{first + 1}", f"{what}, frame by frame", (*said, *then), ends),
        Case(
            f"5.{first + 2}", f"{what}, octet by octet", (*octets(*said), *then), ends
        ),
    ]


LONG: tuple[Step, ...] = (
    *(ONE, MORE),
    *(BETWEEN, PONGED),  # at once, and not when the message is whole
    *(MORE, MORE, BETWEEN, TWO),
    *(PONGED, hears(TEXT, b"begun, more, more, more and ended")),
)

CASES = [
    Case(
        "5.1",
        "a ping in two pieces",
        (says(PING, b"a", fin=False), says(CONTINUATION, b"b")),
        fails(1002),
    ),
    Case(
        "5.2",
        "a pong in two pieces",
        (says(PONG, b"a", fin=False), says(CONTINUATION, b"b")),
        fails(1002),
    ),
    *in_three_ways(3, "a text in two pieces", (ONE, TWO), WHOLE, ok=True),
    *in_three_ways(
        6, "a ping between the pieces", (ONE, BETWEEN, TWO), PONGED, WHOLE, ok=True
    ),
    *in_three_ways(9, "the end of nothing", (STRAY, TEXT_AFTER), ok=False),
    *in_three_ways(12, "the middle of nothing", (STRAY_BEGINS, TEXT_AFTER), ok=False),
    Case(
        "5.15",
        "a text in two pieces, then the middle of nothing",
        (ONE, TWO, WHOLE, STRAY_BEGINS, TEXT_AFTER),
        fails(1002),
    ),
    Case(
        "5.15+at-once",
        "a text in two pieces, then the middle of nothing, all together",
        (
            *together(ONE, TWO, STRAY_BEGINS, TEXT_AFTER),
            may_hear(TEXT, b"begun and ended"),
        ),
        fails(1002),
        differs=OVERTAKEN,
    ),
    Case(
        "5.16",
        "the middle of nothing before each of two texts in pieces",
        (STRAY_BEGINS, ONE, TWO) * 2,
        fails(1002),
    ),
    Case(
        "5.17",
        "the end of nothing before each of two texts in pieces",
        (STRAY, ONE, TWO) * 2,
        fails(1002),
    ),
    Case(
        "5.18",
        "a second text before the first one has ended",
        together(ONE, TEXT_AFTER),
        fails(1002),
    ),
    Case("5.19", "a text in five pieces with two pings between them", LONG, LEAVES),
    Case(
        "5.20",
        "the same, octet by octet",
        tuple(Says(s.data, OCTETS) if isinstance(s, Says) else s for s in LONG),
        LEAVES,
    ),
]
