from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from authws.decisions.revocations import RevocationSnapshot

TIMES = st.integers(0, 20).map(float)


def test_nothing_is_revoked_at_first() -> None:
    snapshot = RevocationSnapshot()
    assert not snapshot.covers("s", "alice", 0)
    assert len(snapshot) == 0


def test_a_session_is_revoked_whenever_it_began() -> None:
    snapshot = RevocationSnapshot()
    snapshot.revoke_session("s", at=10)
    assert snapshot.covers("s", "alice", 5)
    assert snapshot.covers("s", "alice", 50)
    assert not snapshot.covers("t", "alice", 5)


def test_a_subject_is_revoked_up_to_a_moment() -> None:
    snapshot = RevocationSnapshot()
    snapshot.revoke_subject("alice", at=10)
    assert snapshot.covers("s", "alice", 9)
    assert snapshot.covers("s", "alice", 10)
    assert not snapshot.covers("s", "alice", 10.001)
    assert not snapshot.covers("s", "bob", 9)


def test_a_session_named_like_a_subject_is_not_that_subject() -> None:
    snapshot = RevocationSnapshot()
    snapshot.revoke_session("alice", at=10)
    snapshot.revoke_subject("s", at=10)
    assert not snapshot.covers("s", "alice", 5)


def test_a_late_push_does_not_move_a_subjects_moment_back() -> None:
    snapshot = RevocationSnapshot()
    snapshot.revoke_subject("alice", at=10)
    snapshot.revoke_subject("alice", at=3)
    assert snapshot.covers("s", "alice", 10)


def test_what_is_old_is_forgotten_and_the_rest_stays() -> None:
    snapshot = RevocationSnapshot()
    snapshot.revoke_session("old", at=9)
    snapshot.revoke_session("new", at=10)
    snapshot.revoke_subject("alice", at=9)
    snapshot.revoke_subject("bob", at=11)
    snapshot.forget_before(10)
    assert len(snapshot) == 2
    assert not snapshot.covers("old", "x", 0)
    assert snapshot.covers("new", "x", 0)
    assert not snapshot.covers("s", "alice", 0)
    assert snapshot.covers("s", "bob", 0)


@given(st.lists(TIMES, min_size=1), TIMES)
def test_a_subject_ends_at_the_latest_of_its_revocations(
    revoked: list[float], created: float
) -> None:
    snapshot = RevocationSnapshot()
    for at in revoked:
        snapshot.revoke_subject("alice", at)
    assert snapshot.covers("s", "alice", created) == (created <= max(revoked))
    assert len(snapshot) == 1
