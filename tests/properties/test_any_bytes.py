"""Whatever parses what a stranger sends takes it or refuses it, and never stumbles.

Each parser gets anything at all, and what was valid but for a few bytes. It may raise
what it promises and nothing else; and what it takes, it can say again.
"""

from __future__ import annotations

import json
import os
from base64 import b64decode
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from authws.brokers.urls import BrokerUrl
from authws.decisions import gossip, messages
from authws.decisions.envelopes import Envelope, ForgedEnvelopeError, Kind, Sealer
from authws.decisions.history import HistoryRules
from authws.decisions.keys import pem_key
from authws.decisions.origins import HostPolicy, Origin, OriginPolicy, check_fetch_site
from authws.decisions.redaction import redact, redact_query
from authws.decisions.session_cookies import SessionCookieSigner
from authws.decisions.tokens import key_id
from authws.exceptions import (
    ConfigurationError,
    ExpiredTokenError,
    ForbiddenOriginError,
    InvalidSessionError,
    InvalidTokenError,
    MessageError,
)
from authws.service.key_files import FILE_NAME, load_secrets
from authws.service.protocols.opening import (
    accept_value,
    subprotocols,
    upgrade_refusal,
)
from authws.service.settings import Settings
from tests.builders import (
    KEY,
    NOW,
    SECRET,
    compact,
    make_claims,
    make_cookie,
    make_token,
    make_verifier,
)

A = TypeVar("A")
T = TypeVar("T")
E = TypeVar("E", bound=Exception)

many = settings(
    max_examples=int(os.environ.get("AUTHWS_TEST_EXAMPLES", "400")), deadline=None
)
text = st.text(st.characters(), max_size=60)
"""Lone surrogates included."""


@st.composite
def spoiled(draw: st.DrawFn, good: st.SearchStrategy[bytes]) -> bytes:
    """Something valid, but for a few places: bytes changed, gone, put in or doubled."""
    data = draw(good)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(data)))
        end = min(len(data), at + draw(st.integers(0, 4)))
        new = draw(st.one_of(st.binary(max_size=4), st.just(data[at:end] * 2)))
        data = data[:at] + new + data[end:]
    return data


def as_text(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")


def refusal_or(kind: type[E], read: Callable[[A], T], value: A) -> T | E:
    """Return what was read, or how it was refused."""
    try:
        return read(value)
    except kind as refusal:
        return refusal


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | text,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=6,
)


# ----------------------------------------------------------------------------- tokens

REFUSED = (InvalidTokenError, ExpiredTokenError)
TOKEN = make_token()
OTHER_SPELLING = TOKEN[:-1] + chr(ord(TOKEN[-1]) + 1)
"""The same signature: two bits of its last character are of no use."""
VERIFIER = make_verifier()


@many
@given(st.one_of(text, spoiled(st.just(TOKEN.encode())).map(as_text)))
@example(TOKEN + "=")
@example(TOKEN.replace(".", ".."))
@example(TOKEN + "\n")
@example(OTHER_SPELLING)
def test_no_text_but_the_token_itself_is_believed(token: str) -> None:
    key_id(token)
    if token != TOKEN:
        with pytest.raises(REFUSED):
            VERIFIER.verify(token, now=NOW)


HEADERS = st.dictionaries(
    st.sampled_from(["alg", "kid", "typ", "crit", "jwk", "jku", "b64", "zip"]), JSON
)
CLAIMS = st.dictionaries(
    st.sampled_from(sorted(make_claims())), JSON, min_size=1, max_size=3
)


@many
@given(HEADERS, CLAIMS)
def test_signed_nonsense_is_refused_or_means_what_it_says(
    header: dict[str, Any], claims: dict[str, Any]
) -> None:
    """By our own key even: whoever issues for us may have faults."""
    good = {"alg": KEY.algorithm, "kid": KEY.kid, "typ": "at+jwt"}
    whole = {**make_claims(), **claims}
    for head in (good, {**good, **header}):
        token = compact(json.dumps(head).encode(), json.dumps(whole).encode(), KEY)
        with suppress(*REFUSED):
            believed = VERIFIER.verify(token, now=NOW)
            assert head == good
            assert believed.subject == whole["sub"]
            assert believed.expires_at == whole["exp"]
            assert 0 <= believed.issued_at <= NOW < believed.expires_at


@many
@given(st.binary(max_size=60), st.binary(max_size=60))
def test_signed_bytes_that_are_no_json_are_refused(head: bytes, body: bytes) -> None:
    with pytest.raises(InvalidTokenError):
        VERIFIER.verify(compact(head, body, KEY), now=NOW)


# --------------------------------------------------------------------------- messages

MESSAGES = [
    b'{"type":"auth","token":"x"}',
    b'{"type":"join","room":"lobby"}',
    b'{"type":"leave","room":"lobby"}',
    b'{"type":"publish","room":"lobby","data":{"a":[1,"\\u00e9"]},"id":7}',
    b'{"type":"ping","id":"a"}',
]
SLUGS = {"malformed", "auth_malformed", "auth_missing"}


def parsed(said: str) -> messages.ClientMessage | MessageError:
    try:
        return messages.parse(said)
    except MessageError as refusal:
        return refusal


@many
@given(
    st.one_of(
        text,
        JSON.map(json.dumps),
        spoiled(st.sampled_from(MESSAGES)).map(as_text),
    )
)
@example('{"type":"publish","room":"lobby","data":"\ud800"}')
@example("[" * 100_000)
def test_a_text_is_a_message_or_refused_with_a_slug(said: str) -> None:
    message = parsed(said)
    if isinstance(message, MessageError):
        assert message.slug in SLUGS
        json.loads(messages.error(message))
    elif isinstance(message, messages.Publish):
        body = messages.room_message("lobby", "alice", message.data, NOW)
        msgspec.json.decode(body)
    elif isinstance(message, messages.Ping):
        json.loads(messages.pong(message.id))
    with suppress(MessageError):
        messages.parse_auth(said)
        assert messages.is_auth(said)


@many
@given(text)
def test_a_rooms_name_is_one_or_is_refused(name: str) -> None:
    with suppress(MessageError):
        assert messages.check_room(name).isascii()


# ---------------------------------------------------------------- headers and cookies

SIGNER = SessionCookieSigner([SECRET])
COOKIE = make_cookie()


@many
@given(st.one_of(text, spoiled(st.just(COOKIE.encode())).map(as_text)))
def test_no_cookie_but_the_one_we_signed_is_taken(value: str) -> None:
    if value != COOKIE:
        with pytest.raises(InvalidSessionError):
            SIGNER.unsign(value)


ORIGINS = [b"https://app.example.com", b"http://[::1]:8000", b"http://127.0.0.1:80"]
OWN = Origin("https", "app.example.com", 443)
POLICY = OriginPolicy(frozenset({OWN}), takes_own_port=True)
HOSTS = HostPolicy(frozenset({"app.example.com"}))


@many
@given(
    st.one_of(text, spoiled(st.sampled_from(ORIGINS)).map(as_text)),
    st.booleans(),
)
def test_an_origin_is_read_in_one_way_or_refused(name: str, twice: bool) -> None:
    with suppress(ValueError):
        origin = Origin.parse(name)
        assert Origin.parse(str(origin)) == origin
    headers = [name, name] if twice else [name]
    with suppress(ForbiddenOriginError):
        assert POLICY.check(headers, True, Origin("http", "127.0.0.1", 8000))
        assert not twice
    if HOSTS.allows(headers):
        assert name.lower().startswith("app.example.com")
        assert not twice
    with suppress(ForbiddenOriginError):
        check_fetch_site(headers)
        assert "cross-site" not in name.lower()


@many
@given(st.one_of(text, spoiled(st.just(b"GET /?token=" + TOKEN.encode())).map(as_text)))
def test_any_line_of_a_log_is_blanked_without_a_fault(line: str) -> None:
    assert redact(redact(line)) == redact(line)
    redact_query(line.encode("utf-8", "surrogatepass"))


names = st.sampled_from(
    [
        *(b"host", b"connection", b"upgrade", b"content-length", b"transfer-encoding"),
        *(b"sec-websocket-key", b"sec-websocket-version", b"sec-websocket-protocol"),
    ]
)
values = st.one_of(
    st.binary(max_size=30),
    st.sampled_from([b"13", b"0", b"dGhlIHNhbXBsZSBub25jZQ==", b"authws.v1, chat"]),
)


@many
@given(
    st.sampled_from([b"GET"] * 6 + [b"POST", b""]),
    st.sampled_from(["1.1"] * 6 + ["1.0", "2.0"]),
    st.sampled_from([b"/ws"] * 3) | st.binary(max_size=20),
    st.lists(st.tuples(names, values), max_size=8),
    st.sampled_from([True, True, True, False]),
)
@example(b"GET", "1.1", b"/", [(b"sec-websocket-key", b"YQ==")], True)
def test_a_handshake_is_refused_with_a_4xx_or_can_be_answered(
    method: bytes,
    version: str,
    target: bytes,
    headers: list[tuple[bytes, bytes]],
    is_upgrade: bool,
) -> None:
    valid = [
        (b"sec-websocket-key", b"dGhlIHNhbXBsZSBub25jZQ=="),
        (b"sec-websocket-version", b"13"),
    ]
    for given_headers in (
        headers,
        [*valid, *headers],
        [*headers, valid[0]],
        [valid[1], *headers],
    ):
        refusal = upgrade_refusal(
            method, version, target, given_headers, is_upgrade=is_upgrade
        )
        if refusal is not None:
            assert 400 <= refusal.status < 500
        elif is_upgrade:
            assert (method, version) == (b"GET", "1.1")
            told = dict(given_headers)
            assert told[b"sec-websocket-version"] == b"13"
            assert len(b64decode(told[b"sec-websocket-key"], validate=True)) == 16
            accept_value(given_headers)
            assert all(subprotocols(given_headers))


# ----------------------------------------------------------------- between workers

GOSSIP = [
    gossip.Beat("new"),
    gossip.Revoked("subject", "alice", 1.5),
    gossip.Holders(1, {"lobby": ["w1"], "hall": None}),
    gossip.Answer(1, 2, ["lobby"], {"lobby": gossip.Roster(1, ["alice"])}),
    gossip.Held("alice", {"c1": 1.5}, True),
    gossip.HeldBy("alice", "c1", None),
    gossip.Request(1, "connections", {"subject": None, "limit": 5}),
    gossip.Report(1, {"total": 1}),
]
TAGS = [gossip.decode(gossip.encode(one)).__struct_config__.tag for one in GOSSIP]
said_by_a_worker = st.one_of(
    st.binary(max_size=80),
    spoiled(st.sampled_from(GOSSIP).map(gossip.encode)),
    st.dictionaries(
        st.sampled_from(
            ["id", "kind", "key", "at", "user", "connections", "rooms", "content"]
        ),
        JSON,
        max_size=6,
    ).flatmap(
        lambda members: st.sampled_from(TAGS).map(
            lambda tag: json.dumps({"type": tag, **members}).encode()
        )
    ),
)


@many
@given(said_by_a_worker)
@example(b'{"type":"report","id":1,"content":' + b"[" * 100_000)
@example(b'{"type":"report","id":1,"content":' + b"9" * 100_000 + b"}")
def test_what_a_worker_says_is_understood_or_refused(data: bytes) -> None:
    try:
        message = gossip.decode(data)
    except gossip.GossipError:
        return
    assert gossip.decode(gossip.encode(message)) == message


@many
@given(
    st.one_of(
        st.binary(max_size=40),
        spoiled(st.just(gossip.encode(gossip.Change(1, 2, "alice", True)))),
        st.lists(JSON, max_size=5).map(lambda said: json.dumps(said).encode()),
    )
)
def test_what_a_worker_says_of_a_room_is_understood_or_refused(data: bytes) -> None:
    try:
        change = gossip.decode_change(data)
    except gossip.GossipError:
        return
    assert gossip.decode_change(gossip.encode(change)) == change


SEALER = Sealer([b"one", b"two"])
ENVELOPE = Envelope(Kind.MESSAGE, "n" * 11, 1, b'{"type":"message"}')
SEALED = SEALER.seal("lobby", ENVELOPE)


@many
@given(st.one_of(st.binary(max_size=80), spoiled(st.just(SEALED))))
def test_nothing_but_what_was_sealed_is_opened(data: bytes) -> None:
    try:
        opened = SEALER.open("lobby", data)
    except ForgedEnvelopeError:
        assert data != SEALED
    else:  # of two seals one may be broken
        assert opened == ENVELOPE


PASSWORD = "correct-horse"
BROKER_URLS = (
    f"redis://user:{PASSWORD}@a:1,[::1]:2,c/3?cluster=1",
    f"amqps://user:{PASSWORD}@h/%2F?partitions=8&ca=/a/b.pem",
    f"nats://user:{PASSWORD}@h:4222?tls=1&creds=/x",
)


@many
@given(
    st.one_of(text, spoiled(st.sampled_from(BROKER_URLS).map(str.encode)).map(as_text))
)
def test_a_brokers_url_is_read_or_refused_and_its_password_not_shown(url: str) -> None:
    read = refusal_or(ConfigurationError, BrokerUrl.parse, url)
    if isinstance(read, ConfigurationError):
        assert PASSWORD not in str(read)
        assert read.__suppress_context__ or read.__context__ is None
        return
    assert all(name and 0 < port < 2**16 for name, port in read.hosts)
    if f":{PASSWORD}@" in url:  # else nobody could take it for one
        assert PASSWORD not in repr(read) + str(read)


@many
@given(st.one_of(text, spoiled(st.just(b"lobby.*=100/300")).map(as_text)))
def test_a_rule_of_the_history_is_one_or_is_refused(rule: str) -> None:
    rules = refusal_or(ValueError, HistoryRules, (rule,))
    if isinstance(rules, ValueError):
        assert len(str(rules)) < 300
        return
    for keep in rules.kept:
        assert 1 <= keep.messages <= 10_000
        assert 1 <= keep.seconds <= 86_400


# -------------------------------------------------------------------------- key files


def read(directory: Path, data: bytes) -> None:
    path = directory / FILE_NAME
    path.write_bytes(data)
    path.chmod(0o600)
    load_secrets(Settings(_env_file=None, data_dir=directory))


@settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(data=st.data())
def test_a_damaged_secrets_file_is_told_in_a_sentence(
    tmp_path: Path, data: st.DataObject
) -> None:
    tmp_path.chmod(0o700)
    (tmp_path / FILE_NAME).unlink(missing_ok=True)
    load_secrets(Settings(_env_file=None, data_dir=tmp_path))
    good = (tmp_path / FILE_NAME).read_bytes()
    kinds = st.one_of(
        st.binary(max_size=80),
        JSON.map(lambda value: json.dumps(value).encode()),
        spoiled(st.just(good)),
    )
    with suppress(ConfigurationError):
        read(tmp_path, data.draw(kinds))


@many
@given(st.one_of(st.binary(max_size=80), st.just(b"-----BEGIN PRIVATE KEY-----\n")))
def test_what_is_no_key_is_refused_as_one(data: bytes) -> None:
    with pytest.raises(ConfigurationError):
        pem_key(data)
