from __future__ import annotations

import msgspec
import pytest

from authws.decisions.history import (
    DEFAULT_RULES,
    MAX_MESSAGES,
    MAX_SECONDS,
    HistoryRules,
    Position,
    Retention,
)

decode = msgspec.json.Decoder(Position).decode


# ------------------------------------------------------------------------------- rules


def test_every_room_keeps_what_the_default_says() -> None:
    rules = HistoryRules()
    assert DEFAULT_RULES == ("*=100/300",)
    assert rules.of("lobby") == rules.of("a.b:c-d_1") == Retention(100, 300.0)
    assert rules.kept == (Retention(100, 300.0),)


@pytest.mark.parametrize(
    ("before", "behind", "is_useless"),
    [
        ("*", "private-*", True),
        ("*", "private", True),
        ("a*", "ab*", True),
        ("a*", "a*", True),
        ("a*", "a", True),
        ("a", "a", True),
        ("a", "a*", False),
        ("ab*", "a*", False),
        ("a*", "b*", False),
        ("private-*", "*", False),
    ],
)
def test_a_rule_that_can_never_decide_is_refused(
    before: str, behind: str, is_useless: bool
) -> None:
    """Whoever wrote it believes that it does: that such a room keeps nothing, say."""
    rules = (f"{before}=100/300", f"{behind}=0")
    if is_useless:
        with pytest.raises(ValueError, match="never decides"):
            HistoryRules(rules)
    else:
        assert HistoryRules(rules).of(behind.replace("*", "z")) is None


def test_no_rule_keeps_nothing() -> None:
    rules = HistoryRules(())
    assert rules.of("lobby") is None
    assert rules.kept == ()


def test_the_first_rule_that_covers_a_room_decides() -> None:
    rules = HistoryRules(("lobby=1/10", "log.all=3/30", "log.*=0", "l*=4/40", "*=0"))
    kept = {
        room: rules.of(room) for room in ("lobby", "log.all", "log.x", "log", "l", "m")
    }
    assert kept == {
        "lobby": Retention(1, 10.0),
        "log.all": Retention(3, 30.0),
        "log.x": None,
        "log": Retention(4, 40.0),
        "l": Retention(4, 40.0),
        "m": None,
    }


def test_a_room_that_no_rule_covers_keeps_nothing() -> None:
    assert HistoryRules(("lobby=1/10",)).of("hall") is None


@pytest.mark.parametrize("room", ["lobby2", "Lobby", "lobb", "a.lobby"])
def test_a_pattern_without_a_star_is_one_room(room: str) -> None:
    assert HistoryRules(("lobby=1/10",)).of(room) is None


@pytest.mark.parametrize(
    ("room", "is_covered"),
    [("a.b", True), ("a.", True), ("a.b.c", True), ("a", False), ("axb", False)],
)
def test_a_star_stands_for_the_rest_of_a_name_and_a_dot_for_a_dot(
    room: str, is_covered: bool
) -> None:
    assert (HistoryRules(("a.*=1/10",)).of(room) is not None) is is_covered


def test_each_amount_is_named_once_and_in_the_order_of_the_rules() -> None:
    rules = HistoryRules(("a=1/10", "b=0", "c=2/10", "d=1/10", "*=2/20"))
    assert rules.kept == (Retention(1, 10), Retention(2, 10), Retention(2, 20))


@pytest.mark.parametrize(
    ("rule", "retention"),
    [
        ("*=1/1", Retention(1, 1.0)),
        (f"*={MAX_MESSAGES}/{MAX_SECONDS:.0f}", Retention(MAX_MESSAGES, MAX_SECONDS)),
        ("*=007/010", Retention(7, 10.0)),
        ("*=0", None),
        ("*=0/0", None),
        ("*=0/999999999", None),
    ],
)
def test_what_may_be_kept(rule: str, retention: Retention | None) -> None:
    assert HistoryRules((rule,)).of("lobby") == retention


@pytest.mark.parametrize(
    "rule",
    [
        f"*={MAX_MESSAGES + 1}/300",
        f"*=100/{MAX_SECONDS + 1:.0f}",
        "*=999999999/999999999",
        "*=100/0",
        "*=100",
        "lobby=1",
    ],
)
def test_more_or_longer_than_may_be_kept_is_refused(rule: str) -> None:
    with pytest.raises(ValueError, match="10000 messages for 1 to 86400 seconds"):
        HistoryRules(("*=1/1", rule))


@pytest.mark.parametrize(
    "rule",
    [
        "",
        "=",
        "=10/10",
        "lobby",
        "lobby=",
        "lobby=/",
        "lobby=10/",
        "lobby=/10",
        "lobby=ten/10",
        "lobby=-1/10",
        "lobby=+1/10",
        "lobby=1.5/10",
        "lobby=10/1.5",
        "lobby=10/10/10",
        "lobby=10/10 ",
        " lobby=10/10",
        "lobby = 10/10",
        "lobby=10/10\n",
        "a*b=10/10",
        "**=10/10",
        "lob/by=10/10",
        "lob by=10/10",
        "lob@by=10/10",
        "löbby=10/10",
        "lobby=1e3/10",
        "lobby=1000000000/10",
        "lobby=\N{ARABIC-INDIC DIGIT ONE}/10",
        "lobby=10/\N{FULLWIDTH DIGIT ONE}",
        "*=100/300,lobby=1/1",
    ],
)
def test_what_is_no_rule_is_refused_with_how_to_write_one(rule: str) -> None:
    with pytest.raises(ValueError, match="is no rule: write ROOMS=MESSAGES/SECONDS"):
        HistoryRules((rule,))


def test_a_long_rule_is_cut_in_the_error() -> None:
    with pytest.raises(ValueError, match="is no rule") as refused:
        HistoryRules(("x" * 100_000,))
    assert len(str(refused.value)) < 200


def test_rooms_beyond_what_is_remembered_keep_the_same() -> None:
    rules = HistoryRules(("a*=1/10", "b*=2/20"))
    for number in range(5000):
        assert rules.of(f"a{number}") == Retention(1, 10)
        assert rules.of(f"b{number}") == Retention(2, 20)
    assert rules.of("a0") == Retention(1, 10)


# --------------------------------------------------------------------------- positions


@pytest.mark.parametrize("offset", [0, 1, 2**53, 2**63 - 1])
@pytest.mark.parametrize("epoch", ["", "e", "é" * 64, "e" * 64])
def test_a_position_is_read_as_it_was_written(epoch: str, offset: int) -> None:
    position = Position(epoch, offset)
    assert decode(msgspec.json.encode(position)) == position


@pytest.mark.parametrize(
    "text",
    [
        b"{}",
        b'{"epoch":"e"}',
        b'{"offset":1}',
        b'{"epoch":"e","offset":-1}',
        b'{"epoch":"e","offset":9223372036854775808}',
        b'{"epoch":"e","offset":1.5}',
        b'{"epoch":"e","offset":"1"}',
        b'{"epoch":"e","offset":true}',
        b'{"epoch":"e","offset":null}',
        b'{"epoch":1,"offset":1}',
        b'{"epoch":null,"offset":1}',
        b'{"epoch":"' + b"e" * 65 + b'","offset":1}',
        b'["e",1]',
        b'"e:1"',
        b"null",
    ],
)
def test_what_is_no_position_is_refused(text: bytes) -> None:
    with pytest.raises(msgspec.ValidationError):
        decode(text)
