"""The words in which a case is told: what a peer says, what it hears, how it ends.

A case is a conversation over one open WebSocket. Its id is that of the case in the
Autobahn TestSuite that asks the same, so that both can be compared (``make autobahn``);
an id with a ``+`` is one of our own.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from tests.wire import BINARY, CLOSE, CONTINUATION, PING, PONG, TEXT, Frame, frame

__all__ = [
    "BINARY",
    "CONTINUATION",
    "LEAVES",
    "PING",
    "PONG",
    "TEXT",
    "Case",
    "Ending",
    "Hears",
    "Says",
    "Step",
    "answered",
    "fails",
    "goodbye",
    "hears",
    "may_hear",
    "reserved",
    "says",
    "then_fails",
]

OCTETS = 1
"""Sent one by one."""


@dataclass(frozen=True, slots=True)
class Says:
    """Bytes for the server, in pieces of ``chop`` if that is not 0."""

    data: bytes
    chop: int = 0

    def pieces(self) -> Iterator[bytes]:
        step = self.chop or len(self.data)
        for at in range(0, len(self.data), step):
            yield self.data[at : at + step]


@dataclass(frozen=True, slots=True)
class Hears:
    """The next frame of the server's."""

    frame: Frame
    is_certain: bool = True
    """Whether it must come."""


@dataclass(frozen=True, slots=True)
class Ending:
    """The server's close frame; then it ends its half of the connection."""

    close: bytes | int
    """The whole payload; or the code alone, with whatever reason."""
    says_goodbye: bool = False
    """Whether the peer ends it first, after all that it had to say."""


@dataclass(frozen=True, slots=True)
class Case:
    """One conversation; what the server says beyond it is a failure."""

    id: str
    what: str
    steps: tuple[Says | Hears, ...]
    ends: Ending
    differs: str = ""
    """Where the suite prefers something else that RFC 6455 leaves open: why not."""


Step = Says | Hears


def says(opcode: int, payload: bytes = b"", *, fin: bool = True, chop: int = 0) -> Says:
    """One whole frame."""
    return Says(frame(opcode, payload, fin=fin), chop)


def hears(opcode: int, payload: bytes = b"") -> Hears:
    """One whole message, or control frame, in one frame."""
    return Hears(Frame(True, opcode, payload))


def may_hear(opcode: int, payload: bytes = b"") -> Hears:
    """The same, unless the ending came first."""
    return Hears(Frame(True, opcode, payload), is_certain=False)


def reserved(bits: int, opcode: int) -> int:
    """An opcode with reserved bits beside it: RSV1 is 4, RSV2 is 2, RSV3 is 1."""
    return bits << 4 | opcode


NORMAL = struct.pack("!H", 1000)
LEAVES = Ending(NORMAL, says_goodbye=True)


def goodbye(code: int | None = 1000, reason: bytes = b"") -> Says:
    """The peer's close frame."""
    return says(CLOSE, b"" if code is None else struct.pack("!H", code) + reason)


def answered(code: int | None = 1000, reason: bytes = b"") -> Ending:
    """The peer's close frame came back as it was (RFC 6455, 5.5.1)."""
    return Ending(b"" if code is None else struct.pack("!H", code) + reason)


def fails(code: int) -> Ending:
    """The server fails the connection (RFC 6455, 7.1.7)."""
    return Ending(code)


OVERTAKEN = "an ending is said at once, before what was still to be answered"


def then_fails(case_id: str, what: str, bad: bytes, *, chop: int = 0) -> list[Case]:
    """A message, a bad frame and a ping: the message may be answered, no pong follows.

    Once the message is answered before the bad frame goes out, and once all is sent
    together.
    """
    hello = says(TEXT, b"good so far", chop=chop)
    echo = hears(TEXT, b"good so far")
    maybe = may_hear(TEXT, b"good so far")
    rest = (Says(bad, chop), says(PING, b"too late", chop=chop))
    together = Says(b"".join(said.data for said in (hello, *rest)), chop)
    return [
        Case(case_id, what, (hello, echo, *rest), fails(1002)),
        Case(
            f"{case_id}+at-once",
            f"{what}, all together",
            (together, maybe),
            fails(1002),
            differs=OVERTAKEN,
        ),
    ]
