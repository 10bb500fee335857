from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from authws import close_codes
from authws.close_codes import Close
from authws.decisions.lifecycle import (
    TRANSITIONS,
    Accepted,
    DeadlinePassed,
    Event,
    Lifecycle,
    PeerLeft,
    Refused,
    State,
    expiry_close,
    refusal,
    revocation_close,
)
from authws.exceptions import ChangedSubjectError, InvalidTokenError
from authws.principal import Principal

ALICE = Principal(
    subject="alice",
    scopes=frozenset({"join:*"}),
    expires_at=100.0,
    session="s1",
    strategy="first_message",
)
EVENTS: dict[str, Event] = {
    "accepted": Accepted(ALICE),
    "refused": Refused(close_codes.FORBIDDEN),
    "deadline": DeadlinePassed(),
    "left": PeerLeft(),
}


def awaiting() -> Lifecycle:
    return Lifecycle(auth_deadline=5.0)


def authenticated(principal: Principal = ALICE) -> Lifecycle:
    lifecycle = awaiting()
    lifecycle.receive(Accepted(principal))
    return lifecycle


def closed() -> Lifecycle:
    lifecycle = authenticated()
    lifecycle.receive(Refused(close_codes.TOKEN_REVOKED))
    return lifecycle


def test_the_table_names_every_state_and_event() -> None:
    assert set(TRANSITIONS) == set(State)
    kinds = {type(event) for event in EVENTS.values()}
    for state in (State.AWAITING, State.AUTHENTICATED):
        assert set(TRANSITIONS[state]) == kinds
    assert TRANSITIONS[State.CLOSED] == {}


def test_only_a_verified_credential_leads_to_authenticated() -> None:
    for state, row in TRANSITIONS.items():
        for kind, following in row.items():
            assert (following is State.AUTHENTICATED) == (kind is Accepted), state


@pytest.mark.parametrize("start", [awaiting, authenticated, closed])
@pytest.mark.parametrize("event", EVENTS.values(), ids=EVENTS)
def test_the_machine_does_what_the_table_says(
    start: Callable[[], Lifecycle], event: Event
) -> None:
    lifecycle = start()
    expected = TRANSITIONS[lifecycle.state].get(type(event), lifecycle.state)
    assert lifecycle.receive(event) is expected
    assert lifecycle.state is expected


def test_it_begins_with_nobody_and_the_deadline_for_auth() -> None:
    lifecycle = awaiting()
    assert (lifecycle.state, lifecycle.principal) == (State.AWAITING, None)
    assert lifecycle.deadline == 5.0


def test_the_deadline_is_then_the_credentials() -> None:
    assert authenticated().deadline == 100.0


def test_a_closed_connection_has_no_deadline() -> None:
    assert closed().deadline is None


def test_silence_ends_in_auth_timeout() -> None:
    lifecycle = awaiting()
    lifecycle.receive(DeadlinePassed())
    assert lifecycle.close is close_codes.AUTH_TIMEOUT


@pytest.mark.parametrize(
    ("strategy", "expired", "revoked"),
    [
        ("query_param", "token_expired", "token_revoked"),
        ("first_message", "token_expired", "token_revoked"),
        ("session_cookie", "session_expired", "session_revoked"),
    ],
)
def test_endings_are_named_after_the_credential(
    strategy: str, expired: str, revoked: str
) -> None:
    principal = replace(ALICE, strategy=strategy)
    lifecycle = authenticated(principal)
    lifecycle.receive(DeadlinePassed())
    assert lifecycle.close is not None
    assert lifecycle.close.reason == expired
    assert expiry_close(principal).reason == expired
    assert revocation_close(principal).reason == revoked


def test_a_peer_that_left_gets_no_close() -> None:
    lifecycle = authenticated()
    lifecycle.receive(PeerLeft())
    assert (lifecycle.state, lifecycle.close) == (State.CLOSED, None)


def test_the_first_ending_is_the_one() -> None:
    lifecycle = closed()
    for event in EVENTS.values():
        lifecycle.receive(event)
    assert lifecycle.close is close_codes.TOKEN_REVOKED


def test_a_renewal_moves_the_deadline_and_the_scopes() -> None:
    lifecycle = authenticated()
    renewed = replace(ALICE, expires_at=200.0, scopes=frozenset({"join:a"}))
    lifecycle.receive(Accepted(renewed))
    assert (lifecycle.deadline, lifecycle.principal) == (200.0, renewed)


@pytest.mark.parametrize("change", ["subject", "session", "issuer"])
def test_a_renewal_by_somebody_else_ends_it(change: str) -> None:
    lifecycle = authenticated()
    with pytest.raises(ChangedSubjectError):
        lifecycle.receive(Accepted(replace(ALICE, **{change: "other"})))  # type: ignore[arg-type]
    assert lifecycle.state is State.CLOSED
    assert lifecycle.close is close_codes.SUBJECT_CHANGED
    assert lifecycle.principal == ALICE


def test_an_error_becomes_the_event_that_ends() -> None:
    assert refusal(InvalidTokenError("x")) == Refused(close_codes.TOKEN_INVALID)


class LifecycleMachine(RuleBasedStateMachine):
    """Any order of events, against a model that remembers only what matters."""

    def __init__(self) -> None:
        super().__init__()
        self.lifecycle = awaiting()
        self.who: Principal | None = None
        self.ended = False
        self.ending: Close | None = None

    def end(self, close: Close | None) -> None:
        if not self.ended:
            self.ended, self.ending = True, close

    @rule(
        subject=st.sampled_from(["alice", "alice", "bob"]),
        session=st.sampled_from(["s1", "s1", "s2"]),
        expires_at=st.floats(0, 1000),
    )
    def accept(self, subject: str, session: str, expires_at: float) -> None:
        principal = replace(
            ALICE, subject=subject, session=session, expires_at=expires_at
        )
        same = self.who is None or (self.who.subject, self.who.session) == (
            subject,
            session,
        )
        if self.ended or same:
            self.lifecycle.receive(Accepted(principal))
            if not self.ended:
                self.who = principal
        else:
            with pytest.raises(ChangedSubjectError):
                self.lifecycle.receive(Accepted(principal))
            self.end(close_codes.SUBJECT_CHANGED)

    @rule(close=st.sampled_from(sorted(close_codes.BY_SLUG.values(), key=str)))
    def refuse(self, close: Close) -> None:
        self.lifecycle.receive(Refused(close))
        self.end(close)

    @rule()
    def deadline_passes(self) -> None:
        self.lifecycle.receive(DeadlinePassed())
        self.end(
            close_codes.TOKEN_EXPIRED if self.who else close_codes.AUTH_TIMEOUT,
        )

    @rule()
    def peer_leaves(self) -> None:
        self.lifecycle.receive(PeerLeft())
        self.end(None)

    @invariant()
    def ended_is_ended(self) -> None:
        assert (self.lifecycle.state is State.CLOSED) == self.ended
        assert self.lifecycle.close is self.ending

    @invariant()
    def authenticated_is_exactly_known_and_open(self) -> None:
        known = self.who is not None and not self.ended
        assert (self.lifecycle.state is State.AUTHENTICATED) == known
        assert self.lifecycle.principal == self.who

    @precondition(lambda self: not self.ended)
    @invariant()
    def open_means_that_a_deadline_stands(self) -> None:
        assert self.lifecycle.deadline == (self.who.expires_at if self.who else 5.0)


TestLifecycleMachine = LifecycleMachine.TestCase
TestLifecycleMachine.settings = settings(
    max_examples=60, stateful_step_count=12, deadline=None
)
