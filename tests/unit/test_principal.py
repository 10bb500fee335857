from __future__ import annotations

from dataclasses import FrozenInstanceError

import pytest
from hypothesis import given
from hypothesis import strategies as st

from authws.principal import Principal, common_scopes

NAMES = st.text(alphabet="abc:*.-", min_size=1, max_size=8)


def with_scopes(*scopes: str) -> Principal:
    return Principal(
        subject="alice",
        scopes=frozenset(scopes),
        expires_at=2.0,
        session="s",
        strategy="query_param",
    )


@pytest.mark.parametrize(
    ("scope", "granted"),
    [
        ("join:lobby", True),
        ("join:*", True),
        ("join:lob*", True),
        ("join:lobby*", True),
        ("join:lobby2", False),
        ("join:lob", False),
        ("join:Lobby", False),
        ("join:", False),
        ("join", False),
        ("join*", False),
        ("*", False),
        ("*:lobby", False),
        ("publish:*", False),
        ("rejoin:*", False),
        ("join:*y", False),
        ("join:l?bby", False),
        ("admin", False),
        ("", False),
    ],
)
def test_a_scope_grants_the_room_it_names_or_a_prefix(
    scope: str, granted: bool
) -> None:
    assert with_scopes(scope).may("join", "lobby") is granted


def test_one_scope_of_many_is_enough() -> None:
    assert with_scopes("publish:x", "join:other", "join:lobby").may("join", "lobby")


@pytest.mark.parametrize(
    ("wanted", "covered"),
    [
        ([], True),
        (["publish:*"], True),
        (["publish:lobby"], True),
        (["publish:lob*"], True),
        (["join:lobby"], True),
        (["publish:lobby", "join:lobby"], True),
        (["join:*"], False),
        (["join:lob*"], False),
        (["publish:lobby", "join:hall"], False),
        (["*"], False),
        (["admin"], False),
        (["publish"], False),
    ],
)
def test_scopes_cover_all_that_they_grant_and_no_more(
    wanted: list[str], covered: bool
) -> None:
    assert with_scopes("publish:*", "join:lobby").covers(wanted) is covered


def test_without_scopes_nothing_is_granted() -> None:
    assert not with_scopes().may("join", "lobby")


def test_a_star_in_the_middle_of_a_scope_is_a_letter() -> None:
    principal = with_scopes("join:a*b")
    assert not principal.may("join", "axb")
    assert principal.may("join", "a*b")


@given(NAMES)
def test_a_scope_for_one_action_never_grants_another(room: str) -> None:
    assert not with_scopes(f"join:{room}", "join:*").may("publish", room)


@given(NAMES, NAMES)
def test_a_scope_without_a_star_grants_only_itself(scope: str, room: str) -> None:
    granted = with_scopes(f"join:{scope}").may("join", room)
    starred = scope.endswith("*") and room.startswith(scope[:-1])
    assert granted == (scope == room or starred)


def test_has_asks_for_the_very_scope() -> None:
    principal = with_scopes("admin", "join:*")
    assert principal.has("admin")
    assert not principal.has("join:lobby")
    assert not principal.has("Admin")


def test_a_principal_cannot_be_changed() -> None:
    with pytest.raises(FrozenInstanceError):
        with_scopes().subject = "bob"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("one", "other", "common"),
    [
        ({"join:*"}, {"join:lobby"}, {"join:lobby"}),
        (
            {"join:a*", "publish:*"},
            {"join:ab*", "publish:x"},
            {"join:ab*", "publish:x"},
        ),
        ({"join:a*"}, {"join:b*"}, set()),
        ({"join:*"}, {"publish:lobby"}, set()),
        ({"join:*"}, {"admin"}, set()),
        ({"*"}, {"admin", "join:lobby"}, set()),
        ({"admin", "join:*"}, {"admin", "join:*"}, {"admin", "join:*"}),
    ],
)
def test_what_two_grants_have_in_common(
    one: set[str], other: set[str], common: set[str]
) -> None:
    assert common_scopes(frozenset(one), frozenset(other)) == common
    assert common_scopes(frozenset(other), frozenset(one)) == common


SCOPES = st.frozensets(st.builds("join:{}".format, NAMES), max_size=4)


@given(SCOPES, SCOPES, st.text(alphabet="abc:.-", min_size=1, max_size=8))
def test_in_common_is_what_each_of_two_grants_allows(
    one: frozenset[str], other: frozenset[str], room: str
) -> None:
    allowed = with_scopes(*common_scopes(one, other)).may("join", room)
    each = [with_scopes(*scopes).may("join", room) for scopes in (one, other)]
    assert allowed == all(each)
