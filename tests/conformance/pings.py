"""2: a ping is answered by a pong with its payload, a pong by nothing."""

from __future__ import annotations

from tests.conformance.cases import (
    LEAVES,
    OCTETS,
    PING,
    PONG,
    Case,
    Says,
    answered,
    fails,
    goodbye,
    hears,
    says,
)

__all__ = ["CASES"]

LONGEST = b"\xfe" * 125
MANY = [b"number %d" % number for number in range(10)]
ASKED = tuple(says(PING, payload) for payload in MANY)
ASKED_SLOWLY = tuple(Says(ping.data, OCTETS) for ping in ASKED)
ANSWERED = tuple(hears(PONG, payload) for payload in MANY)

CASES = [
    Case("2.1", "an empty ping", (says(PING), hears(PONG)), LEAVES),
    Case(
        "2.2",
        "a ping with a text",
        (says(PING, b"are you there?"), hears(PONG, b"are you there?")),
        LEAVES,
    ),
    Case(
        "2.3",
        "a ping with bytes that are no UTF-8",
        (says(PING, b"\x00\xff\xfe\xfd"), hears(PONG, b"\x00\xff\xfe\xfd")),
        LEAVES,
    ),
    Case(
        "2.4",
        "the longest ping there may be",
        (says(PING, LONGEST), hears(PONG, LONGEST)),
        LEAVES,
    ),
    Case(
        "2.5",
        "a ping that is one byte longer",
        (says(PING, LONGEST + b"\xfe"),),
        fails(1002),
    ),
    Case(
        "2.6",
        "the longest ping, octet by octet",
        (says(PING, LONGEST, chop=OCTETS), hears(PONG, LONGEST)),
        LEAVES,
    ),
    Case("2.7", "an empty pong, unasked", (says(PONG), goodbye()), answered()),
    Case(
        "2.8",
        "a pong with a payload, unasked",
        (says(PONG, b"nobody asked"), goodbye()),
        answered(),
    ),
    Case(
        "2.9",
        "a pong, unasked, and a ping behind it",
        (says(PONG, b"nobody asked"), says(PING, b"I do"), hears(PONG, b"I do")),
        LEAVES,
    ),
    Case("2.10", "ten pings in a row", (*ASKED, *ANSWERED), LEAVES),
    Case(
        "2.11",
        "ten pings in a row, octet by octet",
        (*ASKED_SLOWLY, *ANSWERED),
        LEAVES,
    ),
]
