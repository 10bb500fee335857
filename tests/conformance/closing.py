"""7: a close frame is answered in kind and is the last word; a bad one fails."""

from __future__ import annotations

from tests.conformance.cases import (
    CONTINUATION,
    LEAVES,
    PING,
    TEXT,
    Case,
    answered,
    fails,
    goodbye,
    hears,
    may_hear,
    says,
)
from tests.wire import CLOSE

__all__ = ["CASES"]

HELLO = says(TEXT, b"hello")
BIG = b"0123456789abcdef" * (256 * 1024 // 16)
REASON = b"x" * 123
NOT_UTF8 = b"so far \xed\xa0\x80 so good"

GOOD_CODES = (
    *(1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011),
    *(3000, 3999, 4000, 4999),
)
REGISTERED_SINCE = (1012, 1013, 1014)
"""With IANA, after RFC 6455."""
BAD_CODES = (0, 999, 1004, 1005, 1006, 1016, 1100, 2000, 2999)
BAD_CODES_TOO = (1, 1015, 1099, 32_768)
BEYOND = (5000, 65_535)

NOT_FOR_THE_WIRE = "RFC 6455 has no answer to it; to us it is like any other bad code"

CASES = [
    Case("7.1.1", "a text, and goodbye", (HELLO, hears(TEXT, b"hello")), LEAVES),
    Case("7.1.2", "goodbye twice", (goodbye(), goodbye(None)), answered()),
    Case("7.1.3", "a ping after goodbye", (goodbye(), says(PING)), answered()),
    Case("7.1.4", "a text after goodbye", (goodbye(), HELLO), answered()),
    Case(
        "7.1.5",
        "goodbye within a text",
        (
            says(TEXT, b"begun", fin=False),
            goodbye(),
            says(CONTINUATION, b" and ended"),
        ),
        answered(),
    ),
    Case(
        "7.1.6",
        "256 KiB, a text, goodbye and a ping, without a wait",
        (
            *(says(TEXT, BIG), HELLO, goodbye(), says(PING)),
            *(may_hear(TEXT, BIG), may_hear(TEXT, b"hello")),
        ),
        answered(),
    ),
    Case("7.3.1", "a close frame with nothing in it", (goodbye(None),), answered(None)),
    Case("7.3.2", "half a code", (says(CLOSE, b"\x03"),), fails(1002)),
    Case("7.3.3", "a code", (goodbye(1000),), answered(1000)),
    Case(
        "7.3.4", "a code and a reason", (goodbye(1000, b"bye"),), answered(1000, b"bye")
    ),
    Case(
        "7.3.5",
        "the longest reason there may be",
        (goodbye(1000, REASON),),
        answered(1000, REASON),
    ),
    Case(
        "7.3.6",
        "a reason that is one byte longer",
        (goodbye(1000, REASON + b"x"),),
        fails(1002),
    ),
    Case("7.5.1", "a reason that is no UTF-8", (goodbye(1000, NOT_UTF8),), fails(1007)),
    *(
        Case(f"7.7.{number}", f"code {code}", (goodbye(code),), answered(code))
        for number, code in enumerate(GOOD_CODES, 1)
    ),
    *(
        Case(f"7.7+{code}", f"code {code}", (goodbye(code),), answered(code))
        for code in REGISTERED_SINCE
    ),
    *(
        Case(f"7.9.{number}", f"code {code}", (goodbye(code),), fails(1002))
        for number, code in enumerate(BAD_CODES, 1)
    ),
    *(
        Case(f"7.9+{code}", f"code {code}", (goodbye(code),), fails(1002))
        for code in BAD_CODES_TOO
    ),
    *(
        Case(
            f"7.13.{number}",
            f"code {code}",
            (goodbye(code),),
            fails(1002),
            differs=NOT_FOR_THE_WIRE,
        )
        for number, code in enumerate(BEYOND, 1)
    ),
]
