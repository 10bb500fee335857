"""Sessions: what is ended is ended for everyone, at once, and stays so."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from sqlalchemy import func, select, text, update

from authws.exceptions import UnavailableError
from authws.stores import schema
from authws.stores import sessions as sessions_module
from authws.stores.database import Database, migrate
from authws.stores.passwords import PasswordHasher
from authws.stores.refresh_tokens import RefreshTokens
from authws.stores.sessions import (
    Revocation,
    SessionRecord,
    Sessions,
    UserChangedError,
)
from authws.stores.users import User, Users
from tests.servers.postgres import PostgresServer
from tests.stores.support import NOW, FakeClock

PASSWORD = "a plain short sentence"
OTHER = "another plain sentence"


async def create(sessions: Sessions, id: str = "one", **changes: Any) -> None:
    values = {
        "subject": "alice",
        "kind": "token",
        "idle_ttl": 100.0,
        "expires_at": NOW + 1000,
        **changes,
    }
    await sessions.create(id, **values)


async def live(sessions: Sessions, subject: str = "alice") -> set[str]:
    return {record.id for record in await sessions.list_for(subject)}


async def test_session_is_loaded_with_its_users_rights(
    users: Users, sessions: Sessions
) -> None:
    await users.add("alice", PASSWORD, ["join:*", "admin:none"])
    await create(sessions, kind="cookie", user_agent="curl/8", address="::1")
    assert await sessions.load("one") == SessionRecord(
        id="one",
        subject="alice",
        kind="cookie",
        created_at=NOW,
        last_seen_at=NOW,
        idle_ttl=100.0,
        expires_at=NOW + 1000,
        revoked_at=None,
        user_agent="curl/8",
        address="::1",
        user_scopes=frozenset({"join:*", "admin:none"}),
        user_disabled=False,
    )


async def test_session_of_nobody_is_one_of_a_disabled_user(sessions: Sessions) -> None:
    await create(sessions)
    record = await sessions.load("one")
    assert record is not None
    assert record.user_disabled
    assert record.user_scopes == frozenset()


@pytest.mark.parametrize("id", ["unknown", "", "\0", "\ud800", "a b", "x" * 9999])
async def test_id_that_names_no_session(sessions: Sessions, id: str) -> None:
    assert await sessions.load(id) is None
    assert await sessions.revoke(id) is False
    await sessions.touch(id, NOW)


async def test_id_that_is_none_is_refused(sessions: Sessions) -> None:
    with pytest.raises(ValueError, match="base64url"):
        await create(sessions, "a b")


async def test_taken_id_is_refused(sessions: Sessions) -> None:
    await create(sessions)
    with pytest.raises(UnavailableError):
        await create(sessions, subject="mallory")
    assert await live(sessions) == {"one"}


CHANGES = {
    "password": ("set_password",),
    "disabled": ("disable",),
    "disabled and enabled": ("disable", "enable"),
    "removed": ("remove",),
    "removed and added": ("remove", "add"),
}


@pytest.mark.parametrize("changes", CHANGES.values(), ids=CHANGES)
async def test_session_of_a_user_who_was_changed_in_the_meantime_is_not_opened(
    users: Users, sessions: Sessions, clock: FakeClock, changes: tuple[str, ...]
) -> None:
    await users.add("alice", PASSWORD)
    verified = await users.authenticate("alice", PASSWORD)
    assert verified is not None
    for change in changes:
        clock.advance(1)
        new = [OTHER] if change in ("set_password", "add") else []
        await getattr(users, change)("alice", *new)
    with pytest.raises(UserChangedError):
        await create(sessions, user_as_of=verified.updated_at)
    assert await sessions.load("one") is None
    # who knows what holds now comes in
    if (now := await users.authenticate("alice", PASSWORD)) is None:
        now = await users.authenticate("alice", OTHER)
    assert (now is None) is (changes[-1] in ("disable", "remove"))
    if now is not None:
        clock.advance(1)
        await create(sessions, user_as_of=now.updated_at)
        assert await live(sessions) == {"one"}


async def test_session_of_an_unchanged_user_is_opened(
    users: Users, sessions: Sessions, db: Database
) -> None:
    verified = await users.add("alice", PASSWORD)
    other_device = await users.authenticate("alice", PASSWORD)
    assert other_device is not None
    await create(sessions, user_as_of=verified.updated_at)
    # a better hash of the same password, stored by another login, is no change
    async with db.begin() as connection:
        better = update(schema.users).values(password_hash="better")
        await connection.execute(better)
    await create(sessions, "two", user_as_of=other_device.updated_at)
    assert await live(sessions) == {"one", "two"}


async def test_of_logins_that_race_with_a_change_none_survives_it(
    url: str, users: Users, sessions: Sessions, clock: FakeClock
) -> None:
    """As many engines as there are processes; each login verified the old password."""
    engines = [Database(url) for _ in range(4)]
    doors = [Sessions(engine, clock) for engine in engines]
    opened = refused = 0
    for turn in range(10):
        name = f"alice-{turn}"
        verified = await users.add(name, PASSWORD)
        clock.advance(1)

        async def log_in(number: int, user: User = verified) -> None:
            for _ in range(number % 10):  # some before the change, some after
                await asyncio.sleep(0)
            await create(
                doors[number % 4],
                f"{user.name}-{number}",
                subject=user.name,
                user_as_of=user.updated_at,
            )

        ended, *logins = await asyncio.gather(
            users.disable(name),
            *(log_in(number) for number in range(20)),
            return_exceptions=True,
        )
        assert isinstance(ended, list)
        assert {type(login) for login in logins} <= {type(None), UserChangedError}
        opened += logins.count(None)
        refused += len(logins) - logins.count(None)
        assert await live(sessions, name) == set()
        for number, login in enumerate(logins):
            record = await sessions.load(f"{name}-{number}")
            assert (record is None) is (login is not None)
            assert record is None or record.revoked_at is not None
    for engine in engines:
        await engine.dispose()
    assert opened
    assert refused


async def test_change_waits_for_a_login_that_holds_the_user_and_ends_it(
    postgres: PostgresServer, hasher: PasswordHasher, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where writers do not queue, the row's lock decides who was first."""
    clock = FakeClock()
    hold = sessions_module._hold_user
    changing: asyncio.Task[Any] | None = None
    async with postgres.fresh_database() as url:
        migrate(url)
        login, operator = Database(url), Database(url)
        users = Users(operator, hasher, clock)
        verified = await users.add("alice", PASSWORD)

        async def someone_waits() -> bool:
            waiting = text("SELECT count(*) FROM pg_locks WHERE NOT granted")
            async with login.connect() as connection:
                return bool(await connection.scalar(waiting))

        async def hold_on(*arguments: Any) -> None:
            nonlocal changing
            await hold(*arguments)
            changing = asyncio.create_task(users.disable("alice"))
            async with asyncio.timeout(10):
                while not (changing.done() or await someone_waits()):  # noqa: ASYNC110 - no event
                    await asyncio.sleep(0.01)

        monkeypatch.setattr(sessions_module, "_hold_user", hold_on)
        doors = Sessions(login, clock)
        await create(doors, user_as_of=verified.updated_at)
        assert changing is not None
        await changing
        record = await doors.load("one")
        for database in (login, operator):
            await database.dispose()
    assert record is not None
    assert record.revoked_at is not None


async def test_what_a_peer_says_of_itself_is_cut_and_cleaned(
    sessions: Sessions,
) -> None:
    await create(
        sessions, user_agent="\x1b[2J\0\ud800\n" + "x" * 999, address="y" * 999
    )
    record = await sessions.load("one")
    assert record is not None
    assert record.user_agent == "?[2J???" + "x" * 193
    assert record.address == "y" * 64


async def test_touch_moves_the_idle_limit_forwards_only(
    sessions: Sessions, clock: FakeClock
) -> None:
    await create(sessions)
    await sessions.touch("one", NOW + 50)
    await sessions.touch("one", NOW + 20)
    record = await sessions.load("one")
    assert record is not None
    assert record.last_seen_at == NOW + 50
    clock.advance(149)
    assert await live(sessions) == {"one"}
    clock.advance(1)
    assert await live(sessions) == set()


async def test_only_live_sessions_are_listed_latest_first(
    sessions: Sessions, clock: FakeClock
) -> None:
    await create(sessions, "foreign", subject="bob")
    await create(sessions, "revoked")
    await create(sessions, "idle", idle_ttl=5.0)
    await create(sessions, "over", expires_at=NOW + 5)
    await create(sessions, "unlimited", idle_ttl=0.0)
    await create(sessions, "used")
    await sessions.revoke("revoked")
    await sessions.touch("used", NOW + 1)
    clock.advance(10)
    listed = [record.id for record in await sessions.list_for("alice")]
    assert listed == ["used", "unlimited"]


async def test_revoking_is_done_once_and_announced_once(
    sessions: Sessions, clock: FakeClock
) -> None:
    await create(sessions)
    clock.advance(3)
    assert await sessions.revoke("one") is True
    clock.advance(3)
    assert await sessions.revoke("one") is False
    record = await sessions.load("one")
    assert record is not None
    assert record.revoked_at == NOW + 3
    assert await sessions.revocations_since(NOW) == [
        Revocation("session", "one", NOW + 3)
    ]


async def test_concurrent_revocations_announce_once(sessions: Sessions) -> None:
    await create(sessions)
    ended = await asyncio.gather(*(sessions.revoke("one") for _ in range(10)))
    assert sum(ended) == 1
    assert len(await sessions.revocations_since(0)) == 1


async def test_revoking_all_spares_the_one_and_others_users(sessions: Sessions) -> None:
    for id in ("one", "two", "three"):
        await create(sessions, id)
    await create(sessions, "foreign", subject="bob")
    assert sorted(await sessions.revoke_all("alice", except_id="two")) == [
        "one",
        "three",
    ]
    assert await live(sessions) == {"two"}
    assert await live(sessions, "bob") == {"foreign"}
    assert await sessions.revoke_all("alice") == ["two"]
    assert await sessions.revoke_all("alice") == []
    assert {r.key for r in await sessions.revocations_since(0)} == {
        "one",
        "two",
        "three",
    }


async def test_revoking_all_happens_as_a_whole_or_not_at_all(
    sessions: Sessions, monkeypatch: pytest.MonkeyPatch
) -> None:
    for id in ("one", "two", "three"):
        await create(sessions, id)
    announce = sessions_module._announce
    announced = 0

    async def fail_late(*arguments: Any) -> None:
        nonlocal announced
        announced += 1
        if announced == 3:
            raise OSError("disk full")
        await announce(*arguments)

    monkeypatch.setattr(sessions_module, "_announce", fail_late)
    with pytest.raises(UnavailableError):
        await sessions.revoke_all("alice")
    assert announced == 3
    assert await live(sessions) == {"one", "two", "three"}
    assert await sessions.revocations_since(0) == []


async def test_revocations_are_read_from_a_moment_on(
    sessions: Sessions, clock: FakeClock
) -> None:
    for id in ("one", "two", "three"):
        await create(sessions, id)
        await sessions.revoke(id)
        clock.advance(10)
    keys = [r.key for r in await sessions.revocations_since(NOW + 10)]
    assert keys == ["two", "three"]


async def test_pruning_forgets_what_has_expired_and_nothing_else(
    db: Database, sessions: Sessions, refresh_tokens: RefreshTokens
) -> None:
    await create(sessions, "over", expires_at=NOW + 10)
    await create(sessions, "lasting", expires_at=NOW + 1000)
    for id in ("over", "lasting"):
        await refresh_tokens.issue(id, NOW + 1000)
        await sessions.revoke(id)
    await sessions.prune(NOW + 10)
    assert len(await sessions.revocations_since(0)) == 2
    await sessions.prune(NOW + 11)
    assert await sessions.load("over") is None
    assert await sessions.load("lasting") is not None
    assert [r.key for r in await sessions.revocations_since(0)] == ["lasting"]
    async with db.connect() as connection:
        count = select(func.count()).select_from(schema.refresh_tokens)
        assert await connection.scalar(count) == 1
