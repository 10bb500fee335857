"""3: a reserved bit that no extension gave a meaning fails the connection."""

from __future__ import annotations

from tests.conformance.cases import (
    BINARY,
    OCTETS,
    PING,
    TEXT,
    Case,
    fails,
    reserved,
    says,
    then_fails,
)
from tests.wire import CLOSE, frame

__all__ = ["CASES"]

CASES = [
    Case("3.1", "RSV3 on a text", (says(reserved(1, TEXT), b"x"),), fails(1002)),
    *then_fails("3.2", "RSV2 on the second text", frame(reserved(2, TEXT), b"x")),
    *then_fails(
        "3.3", "RSV2 and RSV3 on the second text", frame(reserved(3, TEXT), b"x")
    ),
    *then_fails(
        "3.4",
        "RSV1 on the second text, octet by octet",
        frame(reserved(4, TEXT), b"x"),
        chop=OCTETS,
    ),
    Case(
        "3.5",
        "RSV1 and RSV3 on a binary message",
        (says(reserved(5, BINARY), b"\x00\xff"),),
        fails(1002),
    ),
    Case("3.6", "RSV1 and RSV2 on a ping", (says(reserved(6, PING)),), fails(1002)),
    Case("3.7", "all three on a close frame", (says(reserved(7, CLOSE)),), fails(1002)),
]
