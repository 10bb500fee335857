"""What passes for a plain handshake is what the HTTP parser takes it for, to the byte;
whatever could be read in two ways is left to that parser."""

from __future__ import annotations

import httptools
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from authws.service.protocols.arrival import plain_handshake
from authws.service.protocols.limits import ProtocolLimits
from authws.service.protocols.opening import upgrade_refusal

LIMITS = ProtocolLimits()
KEY = b"dGhlIHNhbXBsZSBub25jZQ=="
FIELDS = [
    (b"Host", b"127.0.0.1:8000"),
    (b"Upgrade", b"websocket"),
    (b"Connection", b"Upgrade"),
    (b"Sec-WebSocket-Key", KEY),
    (b"Sec-WebSocket-Version", b"13"),
]
BROWSER = [
    *FIELDS[:1],
    (b"Connection", b"keep-alive, Upgrade"),
    (b"Pragma", b"no-cache"),
    (b"User-Agent", b"Mozilla/5.0 (X11; Linux x86_64; rv:1) Gecko/1 Firefox/1"),
    (b"Upgrade", b"websocket"),
    (b"Origin", b"https://app.example.com"),
    (b"Cookie", b"__Host-authws=abc.def; other=1"),
    (b"Sec-WebSocket-Protocol", b"authws.v1"),
    *FIELDS[3:],
]


def head(
    fields: list[tuple[bytes, bytes]] = FIELDS,
    line: bytes = b"GET /ws/query-param?token=abc HTTP/1.1",
) -> bytes:
    lines = [line, *(name + b": " + value for name, value in fields)]
    return b"\r\n".join([*lines, b"", b""])


def replaced(name: bytes, *values: bytes) -> list[tuple[bytes, bytes]]:
    rest = [(key, value) for key, value in FIELDS if key != name]
    return [*rest, *((name, value) for value in values)]


class Parsed:
    """The same by httptools, as ``HttpProtocol`` reads it."""

    def __init__(self, data: bytes) -> None:
        self.url = b""
        self.headers: list[tuple[bytes, bytes]] = []
        self.is_whole = False
        parser = httptools.HttpRequestParser(self)
        self.rest = b""
        try:
            parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self.rest = data[upgrade.args[0] :]
        self.method = parser.get_method()
        self.version = parser.get_http_version()
        self.is_upgrade = parser.should_upgrade()

    def on_url(self, url: bytes) -> None:
        self.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name.lower(), value))

    def on_message_complete(self) -> None:
        self.is_whole = True


def agrees(data: bytes) -> bool:
    """Whether it was taken for plain; then the parser must have read the same."""
    plain = plain_handshake(data, LIMITS)
    if plain is None:
        return False
    parsed = Parsed(data)
    assert parsed.is_whole
    assert parsed.is_upgrade
    assert not parsed.rest
    assert (parsed.method, parsed.version) == (b"GET", "1.1")
    assert (parsed.url, parsed.headers) == plain
    assert (
        upgrade_refusal(b"GET", "1.1", parsed.url, parsed.headers, is_upgrade=True)
        is None
    )
    return True


@pytest.mark.parametrize("fields", [FIELDS, BROWSER], ids=["library", "browser"])
def test_a_good_handshake_is_plain(fields: list[tuple[bytes, bytes]]) -> None:
    assert agrees(head(fields))


DOUBTFUL = {
    "another method": head(line=b"POST / HTTP/1.1"),
    "another version": head(line=b"GET / HTTP/1.0"),
    "an absolute target": head(line=b"GET http://a/ HTTP/1.1"),
    "two spaces": head(line=b"GET  / HTTP/1.1"),
    "a target beyond ASCII": head(line="GET /é HTTP/1.1".encode()),
    "a control character in the target": head(line=b"GET /\x01 HTTP/1.1"),
    "bare line feeds": head().replace(b"\r\n", b"\n"),
    "an empty line first": b"\r\n" + head(),
    "half a head": head()[:-2],
    "data behind the head": head() + b"\x81\x80abcd",
    "a second request": head() + head(),
    "a folded line": head([*FIELDS, (b"X-A", b"b\r\n c")]),
    "no space after the colon": head().replace(b"Host: ", b"Host:"),
    "two spaces after the colon": head().replace(b"Host: ", b"Host:  "),
    "a tab after the colon": head().replace(b"Host: ", b"Host:\t"),
    "a space before the colon": head().replace(b"Host:", b"Host :"),
    "a space after the value": head().replace(b"8000\r", b"8000 \r"),
    "a tab in a value": head([*FIELDS, (b"X-A", b"b\tc")]),
    "an empty value": head([*FIELDS, (b"X-A", b"")]),
    "Latin-1": head([*FIELDS, (b"X-A", b"\xe9")]),
    "a NUL": head([*FIELDS, (b"X-A", b"b\0c")]),
    "a carriage return": head([*FIELDS, (b"X-A", b"b\rc")]),
    "an odd name": head([*FIELDS, (b"X_A", b"b")]),
    "a header twice": head([*FIELDS, (b"Host", b"evil.example")]),
    "a header twice in another case": head([*FIELDS, (b"HOST", b"evil.example")]),
    "a length": head([*FIELDS, (b"Content-Length", b"0")]),
    "a transfer coding": head([*FIELDS, (b"Transfer-Encoding", b"chunked")]),
    "an expectation": head([*FIELDS, (b"Expect", b"100-continue")]),
    "no upgrade": head(replaced(b"Upgrade")),
    "another upgrade": head(replaced(b"Upgrade", b"h2c")),
    "a list of upgrades": head(replaced(b"Upgrade", b"websocket, h2c")),
    "no connection": head(replaced(b"Connection")),
    "a closing connection": head(replaced(b"Connection", b"close")),
    "no key": head(replaced(b"Sec-WebSocket-Key")),
    "a bad key": head(replaced(b"Sec-WebSocket-Key", b"abc")),
    "two keys": head(replaced(b"Sec-WebSocket-Key", KEY, KEY)),
    "an old version": head(replaced(b"Sec-WebSocket-Version", b"8")),
    "another subprotocol": head([*FIELDS, (b"Sec-WebSocket-Protocol", b"a, b")]),
    "too long a target": head(
        line=b"GET /" + b"a" * LIMITS.max_target_bytes + b" HTTP/1.1"
    ),
    "too many headers": head(
        [*FIELDS, *((b"X-%d" % n, b"b") for n in range(LIMITS.max_headers - 4))]
    ),
    "too large a header": head([*FIELDS, (b"X-A", b"b" * LIMITS.max_header_bytes)]),
    "nothing": b"",
}


@pytest.mark.parametrize("data", DOUBTFUL.values(), ids=DOUBTFUL)
def test_what_is_not_plain_is_left_to_the_parser(data: bytes) -> None:
    assert plain_handshake(data, LIMITS) is None


@pytest.mark.parametrize(
    "data",
    [
        head(line=b"GET /" + b"a" * (LIMITS.max_target_bytes - 1) + b" HTTP/1.1"),
        head([*FIELDS, *((b"X-%d" % n, b"b") for n in range(LIMITS.max_headers - 5))]),
    ],
    ids=["the longest target", "as many headers as there may be"],
)
def test_what_is_just_within_the_limits_is_plain(data: bytes) -> None:
    assert agrees(data)


@settings(max_examples=400, deadline=None)
@given(
    whole=st.sampled_from([head(), head(BROWSER)]),
    changes=st.lists(
        st.tuples(
            st.integers(0, 400),
            st.sampled_from(["put", "cut", "swap"]),
            st.one_of(
                st.binary(min_size=1, max_size=3),
                st.sampled_from(
                    [b"\r\n", b"\n", b": ", b":", b" ", b"\t", b",", b"\0"]
                ),
            ),
        ),
        min_size=1,
        max_size=4,
    ),
)
def test_no_change_makes_the_two_readings_differ(
    whole: bytes, changes: list[tuple[int, str, bytes]]
) -> None:
    data = whole
    for at, how, piece in changes:
        at = min(at, len(data))
        end = at if how == "put" else at + len(piece)
        data = data[:at] + (b"" if how == "cut" else piece) + data[end:]
    agrees(data)


@settings(max_examples=200, deadline=None)
@given(
    target=st.from_regex(rb"/[!-~]{0,40}", fullmatch=True),
    more=st.lists(
        st.tuples(
            st.from_regex(rb"[A-Za-z][A-Za-z0-9-]{0,12}", fullmatch=True),
            st.from_regex(rb"[!-~]([ -~]{0,20}[!-~])?", fullmatch=True),
        ),
        max_size=6,
    ),
)
def test_every_plain_handshake_is_read_the_same(
    target: bytes, more: list[tuple[bytes, bytes]]
) -> None:
    agrees(head([*FIELDS, *more], line=b"GET " + target + b" HTTP/1.1"))
