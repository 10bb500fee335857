"""Our frame parser says what the ``websockets`` library says of the same bytes.

Both get them, whole and in pieces; what each hears and how each ends is compared. So
the parser that stands before strangers is held to one that half the field relies on.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass, field
from itertools import pairwise

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from websockets.frames import Close, Frame, Opcode
from websockets.protocol import OPEN
from websockets.server import ServerProtocol

from authws.service.protocols.frames import FrameParser
from authws.service.protocols.limits import ProtocolLimits
from tests.wire import BINARY, CLOSE, CONTINUATION, PING, PONG, TEXT

MAX_SIZE = 300
UNLIMITED = ProtocolLimits(control_rate=0, max_fragments=1 << 30)

Heard = tuple[str, object]


@dataclass
class Ours:
    """What our parser tells."""

    heard: list[Heard] = field(default_factory=list)
    failed: int | None = None

    def message_received(self, message: str | bytes) -> None:
        self.heard.append(("message", message))

    def ping_received(self, payload: bytes) -> None:
        self.heard.append(("ping", payload))

    def pong_received(self, payload: bytes) -> None:
        self.heard.append(("pong", payload))

    def close_received(self, close: Close) -> None:
        self.heard.append(("close", (close.code, close.reason)))

    def protocol_violated(self, code: int, reason: str) -> None:
        assert self.failed is None, "failed twice"
        self.failed = code


def ours(chunks: list[bytes]) -> Ours:
    parser = FrameParser(max_message_size=MAX_SIZE, limits=UNLIMITED, clock=lambda: 0.0)
    told = Ours()
    for chunk in chunks:
        parser.feed(chunk, told)
    return told


def theirs(chunks: list[bytes]) -> Ours:
    """The same of the library, with the check of UTF-8 that it leaves to others."""
    protocol = ServerProtocol(state=OPEN, max_size=MAX_SIZE)
    told = Ours()
    parts: list[bytes] = []
    kind = Opcode.TEXT
    for chunk in chunks:
        protocol.receive_data(chunk)
        for event in protocol.events_received():
            assert isinstance(event, Frame)
            data = bytes(event.data)
            match event.opcode:
                case Opcode.PING:
                    told.heard.append(("ping", data))
                case Opcode.PONG:
                    told.heard.append(("pong", data))
                case Opcode.CLOSE:
                    close = protocol.close_rcvd
                    assert close is not None
                    told.heard.append(("close", (close.code, close.reason)))
                case opcode:
                    kind = kind if opcode is Opcode.CONT else opcode
                    parts.append(data)
                    if not event.fin:
                        continue
                    whole, parts = b"".join(parts), []
                    try:
                        message = whole.decode() if kind is Opcode.TEXT else whole
                    except UnicodeDecodeError:
                        told.failed = 1007
                        return told
                    told.heard.append(("message", message))
        if protocol.parser_exc is not None:
            assert protocol.close_sent is not None
            told.failed = protocol.close_sent.code
            return told
    return told


# -------------------------------------------------------------------------- the bytes


def raw_frame(
    opcode: int, payload: bytes, *, first: int = 0x80, masked: bool = True
) -> bytes:
    """A frame with any first byte, masked or not."""
    size = len(payload)
    bit = 0x80 if masked else 0
    if size < 126:
        head = struct.pack("!BB", first | opcode, bit | size)
    elif size < 65_536:
        head = struct.pack("!BBH", first | opcode, bit | 126, size)
    else:
        head = struct.pack("!BBQ", first | opcode, bit | 127, size)
    if not masked:
        return head + payload
    mask = b"\x01\x80\xff\x37"
    return head + mask + bytes(b ^ mask[i % 4] for i, b in enumerate(payload))


texts = st.text(max_size=40).map(str.encode)
payloads = st.one_of(
    texts,
    st.binary(max_size=20),
    st.integers(0, MAX_SIZE + 2).map(lambda size: b"x" * size),
)
controls = st.binary(max_size=125)


@st.composite
def fragmented(draw: st.DrawFn) -> bytes:
    """A message in pieces, with control frames between them."""
    parts = draw(st.lists(payloads, min_size=2, max_size=5))
    kind = draw(st.sampled_from([TEXT, BINARY]))
    out = raw_frame(kind, parts[0], first=0)
    for part in parts[1:-1]:
        out += raw_frame(CONTINUATION, part, first=0)
        # the library counts what stands between towards the message's size
        if sum(map(len, parts)) + 125 <= MAX_SIZE and draw(st.booleans()):
            out += raw_frame(PING, draw(controls))
    return out + raw_frame(CONTINUATION, parts[-1])


close_payloads = st.one_of(
    st.just(b""),
    st.binary(max_size=4),
    st.builds(
        lambda code, reason: struct.pack("!H", code) + reason,
        st.one_of(st.integers(0, 5000), st.sampled_from([1000, 1001, 1005, 1015])),
        texts.map(lambda text: text[:123]),
    ),
)
good = st.one_of(
    st.builds(raw_frame, st.sampled_from([TEXT, BINARY]), payloads),
    st.builds(raw_frame, st.sampled_from([PING, PONG]), controls),
    fragmented(),
)
bad = st.one_of(
    st.builds(raw_frame, st.sampled_from([3, 4, 5, 6, 7, 11, 12, 13, 14, 15]), texts),
    st.builds(raw_frame, st.just(CONTINUATION), texts),
    st.builds(
        raw_frame,
        st.sampled_from([TEXT, BINARY, PING]),
        controls,
        first=st.sampled_from([0xC0, 0xA0, 0x90]),
    ),
    st.builds(raw_frame, st.sampled_from([PING, PONG, CLOSE]), st.just(b"x" * 126)),
    st.builds(raw_frame, st.sampled_from([PING, PONG]), controls, first=st.just(0)),
    st.builds(
        raw_frame, st.sampled_from([TEXT, PING]), controls, masked=st.just(False)
    ),
    st.just(raw_frame(TEXT, b"a", first=0) + raw_frame(TEXT, b"b")),
    st.builds(raw_frame, st.just(CLOSE), close_payloads),
)
"""Each breaks one rule, but for some of the close frames, which end it as well."""


def pieces(data: bytes, cuts: list[int]) -> list[bytes]:
    places = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    return [data[a:b] for a, b in pairwise(places)]


raw_frame_of_nothing = raw_frame(TEXT, b"")


def conversations() -> st.SearchStrategy[bytes]:
    whole = st.lists(good, max_size=6).map(b"".join)
    end = st.one_of(st.just(b""), bad)
    return st.builds(lambda said, last: said + last, whole, end)


MANY = int(os.environ.get("AUTHWS_TEST_EXAMPLES", "400"))


@settings(max_examples=MANY, deadline=None)
@given(conversations(), st.lists(st.integers(0, 1 << 16), max_size=12))
@example(raw_frame_of_nothing * 3, [1, 2, 3, 7, 8])
@example(raw_frame(CLOSE, b"") + raw_frame(TEXT, b"late"), [])
def test_both_hear_the_same_and_end_alike(data: bytes, cuts: list[int]) -> None:
    expected = theirs([data]) if data else Ours()
    for chunks in (
        [data],
        pieces(data, cuts),
        [data[i : i + 1] for i in range(len(data))],
    ):
        got = ours(chunks)
        assert got.heard == expected.heard
        assert got.failed == expected.failed


@settings(max_examples=MANY, deadline=None)
@given(st.binary(max_size=80), st.lists(st.integers(0, 80), max_size=5))
def test_any_bytes_are_parsed_or_refused(data: bytes, cuts: list[int]) -> None:
    """And what is heard does not depend on where the network cuts."""
    whole, cut, them = ours([data]), ours(pieces(data, cuts)), theirs([data])
    assert (whole.heard, whole.failed) == (cut.heard, cut.failed)
    if them.failed is None and whole.failed is not None:
        # refused by its head, while the library waits for the payload
        assert whole.heard == them.heard
    else:
        assert whole.heard == them.heard
        assert (whole.failed is None) == (them.failed is None)


@dataclass
class Slow(Ours):
    """Has enough after each message, as an app that is behind."""

    parser: FrameParser = field(init=False)

    def message_received(self, message: str | bytes) -> None:
        super().message_received(message)
        self.parser.pause()


@settings(max_examples=MANY, deadline=None)
@given(
    st.one_of(conversations(), st.binary(max_size=80)),
    st.lists(st.integers(0, 1 << 16), max_size=6),
    st.lists(st.booleans(), max_size=12),
)
def test_who_takes_one_message_at_a_time_hears_the_same(
    data: bytes, cuts: list[int], takes: list[bool]
) -> None:
    """Wherever the network cuts, and whenever the app goes on."""
    expected, slow = ours([data]), Slow()
    parser = FrameParser(max_message_size=MAX_SIZE, limits=UNLIMITED, clock=lambda: 0.0)
    slow.parser = parser
    turns = iter(takes)
    for chunk in pieces(data, cuts):
        parser.feed(chunk, slow)
        if next(turns, False):
            parser.resume(slow)
    for _ in range(len(data) + 1):
        parser.resume(slow)
    assert (slow.heard, slow.failed) == (expected.heard, expected.failed)
    assert parser.within_message == within(data)


def within(data: bytes) -> bool:
    """Whether something has begun and not ended, for a parser that saw all at once."""
    parser = FrameParser(max_message_size=MAX_SIZE, limits=UNLIMITED, clock=lambda: 0.0)
    parser.feed(data, Ours())
    return parser.within_message


@pytest.mark.parametrize(
    "size", [0, 1, 125, 126, 127, MAX_SIZE - 1, MAX_SIZE, MAX_SIZE + 1]
)
def test_limit_on_size_has_two_sides(size: int) -> None:
    got = ours([raw_frame(BINARY, b"x" * size)])
    if size <= MAX_SIZE:
        assert (got.heard, got.failed) == ([("message", b"x" * size)], None)
    else:
        assert (got.heard, got.failed) == ([], 1009)


def test_of_all_close_codes_a_peer_may_send_those_of_the_registry() -> None:
    """RFC 6455, 7.4, and what IANA registered since: 1012 to 1014."""
    for_peers = {*range(1000, 1004), *range(1007, 1015), *range(3000, 5000)}
    for code in range(1 << 16):
        got = ours([raw_frame(CLOSE, struct.pack("!H", code))])
        if code in for_peers:
            assert (got.heard, got.failed) == ([("close", (code, ""))], None)
        else:
            assert (got.heard, got.failed) == ([], 1002)


def test_nothing_is_heard_after_the_close_frame() -> None:
    got = ours([raw_frame(CLOSE, b"\x03\xe8") + raw_frame(TEXT, b"late")])
    assert got.heard == [("close", (1000, ""))]
    parser = FrameParser(max_message_size=MAX_SIZE, limits=UNLIMITED, clock=lambda: 0.0)
    told = Ours()
    parser.feed(raw_frame(CLOSE, b""), told)
    parser.feed(raw_frame(TEXT, b"late"), told)
    assert [kind for kind, _ in told.heard] == ["close"]
    assert not parser.within_message


@dataclass
class Hesitant(Ours):
    """A sink that pauses now and then, and may change its mind before it returns."""

    parser: FrameParser = field(kw_only=True)
    whims: list[int] = field(kw_only=True)

    def message_received(self, message: str | bytes) -> None:
        super().message_received(message)
        whim = self.whims.pop() if self.whims else 0
        if whim:
            self.parser.pause()
        if whim == 2:
            self.parser.resume(self)


@settings(max_examples=MANY, deadline=None)
@given(
    conversations(),
    st.lists(st.integers(0, 1 << 16), max_size=6),
    st.lists(st.integers(0, 2), max_size=20),
)
def test_a_pause_loses_and_repeats_nothing(
    data: bytes, cuts: list[int], whims: list[int]
) -> None:
    parser = FrameParser(max_message_size=MAX_SIZE, limits=UNLIMITED, clock=lambda: 0.0)
    told = Hesitant(parser=parser, whims=whims)
    for chunk in pieces(data, cuts):
        parser.feed(chunk, told)
    while parser.is_paused:
        parser.resume(told)
    expected = ours([data])
    assert (told.heard, told.failed) == (expected.heard, expected.failed)
