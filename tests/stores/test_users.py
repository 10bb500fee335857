"""Users: one spelling, one cost, and no session that outlives a right."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from statistics import median

import pytest
from passlib.context import CryptContext
from sqlalchemy import select, update

from authws.decisions.passwords import PasswordError
from authws.exceptions import UnavailableError
from authws.stores import schema
from authws.stores.database import Database
from authws.stores.passwords import PasswordHasher
from authws.stores.sessions import Revocation, Sessions, UserChangedError
from authws.stores.users import (
    InvalidScopeError,
    InvalidUsernameError,
    UnknownUserError,
    User,
    UserExistsError,
    Users,
    normalize_username,
)
from tests.stores.support import NOW, FakeClock

PASSWORD = "a plain short sentence"
OTHER = "another plain sentence"
FULL_WIDTH = "".join(chr(ord(c) + 0xFEE0) for c in "ALICE")


async def open_sessions(sessions: Sessions, subject: str, *ids: str) -> None:
    for id in ids:
        await sessions.create(id, subject, "token", 0, NOW + 1000)


async def stored_hash(db: Database, name: str) -> str:
    async with db.connect() as connection:
        column = select(schema.users.c.password_hash).where(schema.users.c.name == name)
        found = await connection.scalar(column)
    assert isinstance(found, str)
    return found


async def store_hash(db: Database, name: str, password_hash: str) -> None:
    async with db.begin() as connection:
        await connection.execute(
            update(schema.users)
            .where(schema.users.c.name == name)
            .values(password_hash=password_hash)
        )


def weak_hash(password: str) -> str:
    context = CryptContext(
        schemes=["argon2"],
        argon2__memory_cost=1024,
        argon2__time_cost=1,
        argon2__parallelism=1,
    )
    return str(context.hash(password))


async def test_user_who_was_added_can_log_in(users: Users) -> None:
    added = await users.add("alice", PASSWORD, ["publish:lobby", "join:*"])
    scopes = frozenset({"join:*", "publish:lobby"})
    assert added == User("alice", scopes, False, NOW, NOW)
    assert await users.authenticate("alice", PASSWORD) == added
    assert await users.get("alice") == added


async def test_unknown_user_and_wrong_password_are_told_the_same(users: Users) -> None:
    await users.add("alice", PASSWORD)
    assert await users.authenticate("alice", OTHER) is None
    assert await users.authenticate("bob", PASSWORD) is None
    assert await users.get("bob") is None


@pytest.mark.parametrize("name", ["", "\0", "a b", "\ud800", "x" * 10_000, "päul"])
async def test_impossible_name_is_an_unknown_one(users: Users, name: str) -> None:
    assert await users.authenticate(name, PASSWORD) is None
    assert await users.get(name) is None
    with pytest.raises(UnknownUserError):
        await users.disable(name)


@pytest.mark.parametrize("password", ["", "\0", "\ud800", "x" * 1_000_000])
async def test_impossible_password_is_a_wrong_one(users: Users, password: str) -> None:
    await users.add("alice", PASSWORD)
    assert await users.authenticate("alice", password) is None


async def test_every_spelling_is_one_user(users: Users) -> None:
    await users.add(" Alice ", PASSWORD)
    user = await users.authenticate(FULL_WIDTH, PASSWORD)
    assert user is not None
    assert user.name == "alice"
    with pytest.raises(UserExistsError):
        await users.add("aLICE", PASSWORD)


async def test_password_is_compared_in_one_normal_form(users: Users) -> None:
    await users.add("alice", "cafe\u0301 au lait, deux")
    assert await users.authenticate("alice", "caf\u00e9 au lait, deux") is not None


async def test_concurrent_adds_of_one_name_succeed_once(users: Users) -> None:
    added = await asyncio.gather(
        *(users.add("alice", PASSWORD) for _ in range(5)), return_exceptions=True
    )
    assert sum(isinstance(result, User) for result in added) == 1
    assert sum(isinstance(result, UserExistsError) for result in added) == 4


async def test_password_rules_hold_at_the_store(users: Users) -> None:
    with pytest.raises(PasswordError):
        await users.add("alice", "short")
    with pytest.raises(PasswordError):
        await users.add("root", "only 14 chars.", ["admin"])
    await users.add("alice", PASSWORD)
    with pytest.raises(PasswordError):
        await users.set_password("alice", "short")


@pytest.mark.parametrize("scope", ["", "a b", 'a"', "ä", "a\nb", "\0"])
async def test_text_that_is_no_scope_is_refused(users: Users, scope: str) -> None:
    with pytest.raises(InvalidScopeError):
        await users.add("alice", PASSWORD, [scope])


async def test_scopes_are_replaced_announced_and_end_nothing(
    users: Users, sessions: Sessions, clock: FakeClock
) -> None:
    before = await users.add("alice", PASSWORD, ["join:*"])
    await open_sessions(sessions, "alice", "one")
    clock.advance(1)
    user = await users.set_scopes("ALICE", ["join:lobby", "publish:lobby"])
    assert user.scopes == {"join:lobby", "publish:lobby"}
    assert user.updated_at > before.updated_at
    assert await users.get("alice") == user
    record = await sessions.load("one")
    assert record is not None
    assert (record.revoked_at, record.user_scopes) == (None, user.scopes)
    announced = await sessions.revocations_since(NOW)
    assert announced == [Revocation("scopes", "alice", NOW + 1)]


async def test_scopes_of_nobody_and_text_that_is_no_scope_are_refused(
    users: Users, sessions: Sessions
) -> None:
    await users.add("alice", PASSWORD, ["join:*"])
    with pytest.raises(UnknownUserError):
        await users.set_scopes("nobody", ["join:*"])
    with pytest.raises(InvalidScopeError):
        await users.set_scopes("alice", ["join:*", "a b"])
    assert await sessions.revocations_since(0) == []


async def test_users_are_listed_by_name(users: Users) -> None:
    for name in ("carol", "alice", "bob"):
        await users.add(name, PASSWORD)
    assert [user.name for user in await users.list()] == ["alice", "bob", "carol"]


async def test_disabled_user_is_refused_and_cut_off(
    users: Users, sessions: Sessions, clock: FakeClock
) -> None:
    await users.add("alice", PASSWORD)
    await open_sessions(sessions, "alice", "one", "two")
    clock.advance(1)
    assert await users.disable("alice") == [Revocation("subject", "alice", NOW + 1)]
    assert await users.authenticate("alice", PASSWORD) is None
    assert await sessions.list_for("alice") == []
    record = await sessions.load("one")
    assert record is not None
    assert record.revoked_at == NOW + 1
    assert record.user_disabled
    revoked = {(r.kind, r.key) for r in await sessions.revocations_since(NOW)}
    assert revoked == {("session", "one"), ("session", "two"), ("subject", "alice")}


async def test_enabled_user_can_log_in_and_old_sessions_stay_ended(
    users: Users, sessions: Sessions
) -> None:
    await users.add("alice", PASSWORD)
    await open_sessions(sessions, "alice", "one")
    await users.disable("alice")
    await users.enable("alice")
    assert await users.authenticate("alice", PASSWORD) is not None
    assert await sessions.list_for("alice") == []


async def test_removed_user_is_gone_and_cut_off(
    users: Users, sessions: Sessions
) -> None:
    await users.add("alice", PASSWORD)
    await open_sessions(sessions, "alice", "one")
    assert await users.remove("alice") == [Revocation("subject", "alice", NOW)]
    assert await users.get("alice") is None
    record = await sessions.load("one")
    assert record is not None
    assert (record.revoked_at, record.user_disabled) == (NOW, True)
    with pytest.raises(UnknownUserError):
        await users.remove("alice")


async def test_password_set_by_an_operator_ends_every_session(
    users: Users, sessions: Sessions
) -> None:
    await users.add("alice", PASSWORD)
    await open_sessions(sessions, "alice", "one", "two")
    assert await users.set_password("alice", OTHER) == [
        Revocation("subject", "alice", NOW)
    ]
    assert await sessions.list_for("alice") == []
    assert await users.authenticate("alice", PASSWORD) is None
    assert await users.authenticate("alice", OTHER) is not None


async def test_password_changed_by_its_user_ends_the_other_sessions(
    users: Users, sessions: Sessions
) -> None:
    await users.add("alice", PASSWORD)
    await open_sessions(sessions, "alice", "here", "there", "elsewhere")
    ended = await users.set_password("alice", OTHER, except_session="here")
    assert {(r.kind, r.key) for r in ended} == {
        ("session", "there"),
        ("session", "elsewhere"),
    }
    assert [record.id for record in await sessions.list_for("alice")] == ["here"]


async def test_change_that_cannot_end_the_sessions_does_not_happen(
    users: Users, sessions: Sessions, monkeypatch: pytest.MonkeyPatch
) -> None:
    await users.add("alice", PASSWORD)
    await open_sessions(sessions, "alice", "one")

    async def fail(*_: object) -> None:
        raise OSError

    monkeypatch.setattr("authws.stores.users.revoke_subject", fail)
    for change in (
        users.disable("alice"),
        users.remove("alice"),
        users.disconnect("alice"),
        users.set_password("alice", OTHER),
    ):
        with pytest.raises(UnavailableError):
            await change
    assert await users.authenticate("alice", PASSWORD) is not None
    assert [record.id for record in await sessions.list_for("alice")] == ["one"]


async def test_changing_nobody_is_an_error(users: Users) -> None:
    for change in (
        users.disable("alice"),
        users.enable("alice"),
        users.disconnect("alice"),
        users.remove("alice"),
        users.set_password("alice", PASSWORD),
    ):
        with pytest.raises(UnknownUserError):
            await change


async def test_hash_of_old_parameters_is_renewed_at_login(
    users: Users, db: Database
) -> None:
    await users.add("alice", PASSWORD)
    await store_hash(db, "alice", old := weak_hash(PASSWORD))
    assert await users.authenticate("alice", OTHER) is None
    assert await stored_hash(db, "alice") == old
    assert await users.authenticate("alice", PASSWORD) is not None
    renewed = await stored_hash(db, "alice")
    assert renewed.startswith("$argon2id$v=19$m=19456,t=2,p=1$")
    assert await users.authenticate("alice", PASSWORD) is not None
    assert await stored_hash(db, "alice") == renewed


class SlowHasher(PasswordHasher):
    """Lets something happen between a verification and what follows it."""

    meanwhile: Callable[[], Awaitable[object]] | None = None

    async def verify(self, password: str, hash: str | None) -> tuple[bool, str | None]:
        answer = await super().verify(password, hash)
        if self.meanwhile is not None:
            await self.meanwhile()
        return answer


async def test_renewed_hash_never_undoes_a_new_password(
    db: Database, clock: FakeClock
) -> None:
    hasher = SlowHasher(concurrency=1)
    users = Users(db, hasher, clock)
    await users.add("alice", PASSWORD)
    await store_hash(db, "alice", weak_hash(PASSWORD))
    hasher.meanwhile = lambda: users.set_password("alice", OTHER)
    await users.authenticate("alice", PASSWORD)
    hasher.meanwhile = None
    assert await users.authenticate("alice", PASSWORD) is None
    assert await users.authenticate("alice", OTHER) is not None
    hasher.close()


async def as_of(users: Users) -> float:
    user = await users.get("alice")
    assert user is not None
    return user.updated_at


async def test_every_change_moves_a_user_on_and_a_better_hash_does_not(
    users: Users, db: Database, clock: FakeClock
) -> None:
    await users.add("alice", PASSWORD)
    seen = [await as_of(users)]
    await store_hash(db, "alice", old := weak_hash(PASSWORD))
    assert await users.authenticate("alice", PASSWORD) is not None
    assert await stored_hash(db, "alice") != old
    assert await as_of(users) == seen[0]
    # by a clock that stands still, and one that was put back, as by any other
    await users.set_password("alice", OTHER)
    seen.append(await as_of(users))
    await users.disable("alice")
    seen.append(await as_of(users))
    clock.advance(-3600)
    await users.enable("alice")
    seen.append(await as_of(users))
    await users.set_password("alice", OTHER, except_session="one")
    seen.append(await as_of(users))
    assert seen == sorted(set(seen))


async def test_password_is_changed_only_by_who_knows_the_present_one(
    users: Users,
) -> None:
    await users.add("alice", PASSWORD)
    verified = await users.authenticate("alice", PASSWORD)
    assert verified is not None
    then = verified.updated_at
    both = await asyncio.gather(
        *(users.set_password("alice", f"{OTHER} {n}", as_of=then) for n in (1, 2)),
        return_exceptions=True,
    )
    assert sorted(type(one).__name__ for one in both) == ["UserChangedError", "list"]
    with pytest.raises(UserChangedError):
        await users.set_password("alice", OTHER, as_of=then)
    assert await users.authenticate("alice", OTHER) is None
    winner = next(n for n, one in enumerate(both, 1) if isinstance(one, list))
    assert await users.authenticate("alice", f"{OTHER} {winner}") is not None


async def test_disconnected_user_loses_what_is_open_and_may_come_back(
    users: Users, sessions: Sessions, clock: FakeClock
) -> None:
    for name in ("alice", "bob"):
        await users.add(name, PASSWORD)
    await open_sessions(sessions, "alice", "one", "two")
    await open_sessions(sessions, "bob", "foreign")
    clock.advance(1)
    assert await users.disconnect(" ALICE ") == (
        2,
        Revocation("subject", "alice", NOW + 1),
    )
    assert await sessions.list_for("alice") == []
    assert [record.id for record in await sessions.list_for("bob")] == ["foreign"]
    announced = [(r.kind, r.key) for r in await sessions.revocations_since(NOW)]
    assert sorted(announced) == [
        ("session", "one"),
        ("session", "two"),
        ("subject", "alice"),
    ]
    assert (await users.disconnect("alice"))[0] == 0
    assert await users.authenticate("alice", PASSWORD) is not None
    clock.advance(1)
    await open_sessions(sessions, "alice", "three")
    assert [record.id for record in await sessions.list_for("alice")] == ["three"]


async def test_damaged_hash_is_no_login(users: Users, db: Database) -> None:
    await users.add("alice", PASSWORD)
    await store_hash(db, "alice", "damaged")
    with pytest.raises(UnavailableError):
        await users.authenticate("alice", PASSWORD)


async def test_unknown_user_costs_what_a_wrong_password_costs(users: Users) -> None:
    await users.add("alice", PASSWORD)
    await users.add("disabled", PASSWORD)
    await users.disable("disabled")

    async def seconds(name: str, password: str) -> float:
        started = time.perf_counter()
        assert await users.authenticate(name, password) is None
        return time.perf_counter() - started

    attempts = {
        "wrong": ("alice", OTHER),
        "unknown": ("bob", OTHER),
        "impossible": ("no such name", OTHER),
        "too long": ("alice", "x" * 2000),
        "disabled": ("disabled", PASSWORD),
    }
    taken: dict[str, list[float]] = {kind: [] for kind in attempts}
    for _ in range(9):
        for kind, attempt in attempts.items():
            taken[kind].append(await seconds(*attempt))
    medians = {kind: median(times) for kind, times in taken.items()}
    for kind, taken_median in medians.items():
        # A hash is some 50 ms, its absence under 5: half of it tells them apart.
        assert taken_median > medians["wrong"] / 2, (kind, medians)


@pytest.mark.parametrize(
    ("typed", "name"),
    [
        ("alice", "alice"),
        ("  Alice\n", "alice"),
        (FULL_WIDTH, "alice"),
        ("a.b_c-9", "a.b_c-9"),
        ("9", "9"),
        ("x" * 64, "x" * 64),
    ],
)
def test_name_has_one_spelling(typed: str, name: str) -> None:
    assert normalize_username(typed) == name
    assert normalize_username(name) == name


@pytest.mark.parametrize(
    "typed",
    [
        "",
        " ",
        ".a",
        "-a",
        "_a",
        "x" * 65,
        "a b",
        "a/b",
        "a\0",
        "\N{CYRILLIC SMALL LETTER A}lice",
        "é",
        "a" * 9999,
    ],
)
def test_text_that_is_no_name_is_refused(typed: str) -> None:
    with pytest.raises(InvalidUsernameError):
        normalize_username(typed)
