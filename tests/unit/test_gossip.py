from __future__ import annotations

import pytest

from authws.decisions import gossip
from authws.decisions.gossip import GossipError

MESSAGES: list[gossip.Gossip] = [
    gossip.Beat(),
    gossip.Beat("new"),
    gossip.Beat("missed"),
    gossip.Beat("stranger"),
    gossip.Beat("answer"),
    gossip.Bye(),
    gossip.Revoked("session", "s1", 1_700_000_000.123456),
    gossip.Revoked("subject", "älice \N{SNOWMAN}", 0.0),
    gossip.Revoked("scopes", "", -1.0),
    gossip.Extended("s1", 1_700_000_000.5),
    gossip.Opened(0, ["lobby"]),
    gossip.Holders(3, {"lobby": ["w1", "w2"], "hall": None}),
    gossip.Closed(["lobby", "hall"]),
    gossip.Ask(1, {}),
    gossip.Ask(2**63, {"lobby": 0, "a.b:c": 2**62}),
    gossip.Answer(1, 0, [], {}),
    gossip.Answer(7, 9, ["lobby", "hall"], {"lobby": gossip.Roster(3, ["a", "b"])}),
    gossip.Held("alice", {}),
    gossip.Held("https://issuer.example alice", {"c1": 1.5, "c2": 2.0}, True),
    gossip.HeldBy("alice", "c1", 1.5),
    gossip.HeldBy("alice", "c1", None),
    gossip.Request(1, "connections", {}),
    gossip.Request(1, "x", {"a": [1, None, {"b": 1.5}], "c": "ü"}),
    gossip.Report(1, None),
    gossip.Report(2, {"total": 3, "listed": [{"id": "x"}]}),
]


@pytest.mark.parametrize("message", MESSAGES, ids=repr)
def test_each_message_is_read_as_it_was_written(message: gossip.Gossip) -> None:
    read = gossip.decode(gossip.encode(message))
    assert read == message
    assert type(read) is type(message)


def test_each_kind_is_among_them() -> None:
    kinds = {type(message) for message in MESSAGES}
    assert kinds == set(gossip.Gossip.__args__)


@pytest.mark.parametrize("is_here", [True, False])
def test_a_change_is_read_as_it_was_written(is_here: bool) -> None:
    change = gossip.Change(0, 2**63, "älice", is_here, ["w1", "w2"])
    assert gossip.decode_change(gossip.encode(change)) == change
    assert gossip.encode(change).startswith(b"[0,")


def test_what_a_newer_version_adds_is_passed_over() -> None:
    """While workers are restarted one by one, two versions talk to each other."""
    newer = b'{"type":"held_by","user":"a","connection":"c","at":1.0,"more":[1,{}]}'
    assert gossip.decode(newer) == gossip.HeldBy("a", "c", 1.0)
    assert gossip.decode_change(b'[1,2,"a",true,[],"more"]') == gossip.Change(
        1, 2, "a", True
    )


def test_what_an_older_version_does_not_say_has_a_default() -> None:
    assert gossip.decode(b'{"type":"beat"}') == gossip.Beat()
    assert gossip.decode(b'{"type":"held","user":"a","connections":{}}') == gossip.Held(
        "a", {}
    )


DEEP = b"[" * 100_000

MALFORMED = [
    b"",
    b" ",
    b"\0",
    b"null",
    b"1",
    b'"beat"',
    b"[]",
    b"{}",
    b"[" * 100_000,
    b'{"type":' * 20_000,
    b'{"type":"beat"',
    b'{"type":"beat"}x',
    b'{"type":"beat"}{"type":"beat"}',
    b"{'type':'beat'}",
    b'{"type":"Beat"}',
    b'{"type":"beats"}',
    b'{"type":null}',
    b'{"type":1}',
    b'{"type":["beat"]}',
    b'{"type":"beat","kind":1}',
    b'{"type":"beat","kind":"old"}',
    b'{"type":"beat","kind":null}',
    b'{"type":"opened","id":1,"rooms":{"lobby":1}}',
    b'{"type":"holders","id":1,"rooms":{"lobby":"w1"}}',
    b'{"type":"holders","id":1,"rooms":["lobby"]}',
    b'{"type":"closed","rooms":[1]}',
    b'{"type":"revoked"}',
    b'{"type":"revoked","kind":"all","key":"x","at":0}',
    b'{"type":"revoked","kind":"session","key":1,"at":0}',
    b'{"type":"revoked","kind":"session","key":"x","at":"0"}',
    b'{"type":"revoked","kind":"session","key":"x","at":NaN}',
    b'{"type":"revoked","kind":"session","key":"x","at":Infinity}',
    b'{"type":"revoked","kind":"session","key":"x","at":1e999}',
    b'{"type":"revoked","kind":"session","key":"x","at":' + b"1" * 5000 + b"}",
    b'{"type":"extended","session":null,"expires_at":1}',
    b'{"type":"ask","id":1.5,"rooms":[]}',
    b'{"type":"ask","id":1,"rooms":["lobby"]}',
    b'{"type":"ask","id":1,"rooms":{"lobby":null}}',
    b'{"type":"answer","id":1,"as_of":1,"rooms":[],"rosters":[]}',
    b'{"type":"answer","id":1,"as_of":1,"rooms":[],"rosters":{"x":[1]}}',
    b'{"type":"answer","id":1,"as_of":1,"rooms":[],"rosters":{"x":[1,["a",2]]}}',
    b'{"type":"answer","id":1,"as_of":1,"rooms":[],"rosters":{"x":{"version":1}}}',
    b'{"type":"held","user":"a","connections":{"c":"now"}}',
    b'{"type":"held","user":"a","connections":{"c":null}}',
    b'{"type":"held_by","user":"a","connection":"c"}',
    b'{"type":"request","id":1,"name":"x","arguments":[]}',
    b'{"type":"request","id":1,"name":"x","arguments":{"a":' + DEEP,
    b'{"type":"report","id":1,"content":' + DEEP,
    b'{"type":"report","id":1,"content":' + b"1" * 5000 + b"}",
    b'{"type":"report","id":1,"content":"' + b"x" * 1000,
    b'{"type":"report","id":1,"content":"\\ud800"}',
    b'{"type":"report","id":1,"content":"\xff"}',
    b'{"type":"report","id":1,"content":{"\xff":1}}',
    b"\xff\xfe{}",
    '{"type":"beat"}'.encode("utf-16"),
    b'\xef\xbb\xbf{"type":"beat"}',
    b"\x80\x04\x95.",  # a pickle (BRK-02)
    b"\x81\xa4type\xa4beat",  # MessagePack
]


@pytest.mark.parametrize("data", MALFORMED, ids=lambda data: repr(data[:40]))
def test_what_is_malformed_is_refused_and_not_quoted(data: bytes) -> None:
    with pytest.raises(GossipError) as refused:
        gossip.decode(data)
    assert str(refused.value) == "not understood"
    assert refused.value.__suppress_context__


@pytest.mark.parametrize(
    "data",
    [
        *MALFORMED,
        b"[1]",
        b'[1,2,"a"]',
        b'[1,2,"a",1]',
        b'[1,2,"a",true,"w1"]',
        b'[1,"2","a",true]',
        b"[1,2,null,true]",
        b'{"before":0,"version":1,"subject":"a","is_here":true}',
    ],
    ids=lambda data: repr(data[:40]),
)
def test_what_is_no_change_is_refused(data: bytes) -> None:
    with pytest.raises(GossipError, match="not understood"):
        gossip.decode_change(data)


def test_a_great_deal_is_read() -> None:
    rooms = [f"room-{number}" for number in range(500)]
    rosters = {
        name: gossip.Roster(1, [f"user-{n}" for n in range(100)]) for name in rooms
    }
    answer = gossip.Answer(1, 1, rooms, rosters)
    assert gossip.decode(gossip.encode(answer)) == answer
