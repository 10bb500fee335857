"""Revocation: whatever ends a session ends its sockets, and costs nobody else anything.

What ends one is written to the database first and pushed to the sockets then; a push
that is lost heals when the database is read again.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import sqlite3
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from websockets.asyncio.client import ClientConnection

from authws.clock import Clock
from authws.stores.database import Database
from authws.stores.sessions import Revocation
from authws.stores.users import User, Users
from tests.grants import Grant, ending, enter, grant, hear, present, say, until
from tests.live.calls import bearer, calling, refused
from tests.running import PASSWORD, Service, running
from tests.wire import BINARY, frame, wire

on_one_loop = pytest.mark.asyncio(loop_scope="module")

NEW_PASSWORD = "staple of another horse"
RECHECK = 0.4
SLACK = 2.0
"""Seconds that a busy machine may take longer."""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def service(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Service]:
    """It reads again all the time: what was not pushed ends soon."""
    async with running(
        tmp_path_factory.mktemp("service"), recheck_interval=RECHECK
    ) as service:
        await add_users(service)
        yield service


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def pushing(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Service]:
    """It hardly ever reads again: what ends was pushed."""
    async with running(
        tmp_path_factory.mktemp("pushing"), recheck_interval=300
    ) as service:
        await add_users(service)
        yield service


async def add_users(service: Service) -> None:
    await service.add_user("bob")
    await service.add_user("root", scopes=("admin",))


# ------------------------------------------------------------------------ the sockets


class Device:
    """One session of a user, and sockets of it on every strategy that can carry it."""

    def __init__(self, granted: Grant) -> None:
        self.granted = granted
        self.peers: list[tuple[ClientConnection, str]] = []
        """With the slug that a revocation ends each with."""

    @property
    def speaker(self) -> ClientConnection:
        return self.peers[0][0]

    async def open(self, stack: AsyncExitStack) -> None:
        """Open rooms and echoes, with the credential itself and with tickets."""
        granted = self.granted
        ways = (
            [
                ("/ws/session-cookie", granted.cookie),
                ("/ws/session-cookie/echo", granted.cookie),
                ("/ws/query-param", granted.ticket()),
                ("/ws/first-message", granted.ticket()),
            ]
            if granted.cookie
            else [
                ("/ws/query-param", granted.access()),
                ("/ws/first-message", granted.access()),
                ("/ws/query-param/echo", granted.access()),
                ("/ws/first-message/echo", granted.ticket()),
            ]
        )
        for path, credential in ways:
            peer = await stack.enter_async_context(
                enter(granted.service, path, credential)
            )
            by_cookie = "session-cookie" in path
            slug = "session_revoked" if by_cookie else "token_revoked"
            self.peers.append((peer, slug))
        await say(self.speaker, type="join", room="lobby")
        await heard(self.speaker, type="joined")

    async def assert_ended(self) -> None:
        for peer, slug in self.peers:
            assert await ending(peer) == (1008, slug)

    async def assert_open(self) -> None:
        """Each socket is answered."""
        for peer, _ in self.peers:
            await say(peer, type="ping", id="open")
            while True:
                answer = await hear(peer)
                if answer.get("id") == "open":
                    break


async def heard(peer: ClientConnection, **members: Any) -> dict[str, Any]:
    """Read on to a message that has these members."""
    while True:
        message = await hear(peer)
        if members.items() <= message.items():
            return message


async def assert_talking(*peers: ClientConnection) -> None:
    """Each is in the room, and hears what each other says there."""
    for peer in peers:
        said = f"said at {time.monotonic()}"
        await say(peer, type="publish", room="lobby", data=said)
        for listener in peers:
            await heard(listener, type="message", data=said)


# ------------------------------------------------------------------ what ends a session


End = Callable[[Service, Device, Device], Awaitable[Any]]
"""End the first device; the second is another of the same user."""


async def log_out(service: Service, lost: Device, _: Device) -> Any:
    if lost.granted.cookie:
        headers = {"cookie": f"authws={lost.granted.cookie}"}
        async with calling(service, headers=headers) as http:
            return await http.delete("/auth/session")
    async with calling(service, headers=bearer(lost.granted.access())) as http:
        return await http.post("/auth/logout")


async def end_the_other_device(service: Service, lost: Device, kept: Device) -> Any:
    async with calling(service, headers=presented(kept)) as http:
        return await http.delete(f"/auth/sessions/{lost.granted.session}")


async def use_a_refresh_token_twice(service: Service, lost: Device, _: Device) -> Any:
    issued = service.house.refresh_tokens.issue(
        lost.granted.session, service.clock.now() + 600
    )
    body = {"refresh_token": await service.call(issued)}
    async with calling(service) as http:
        assert (await http.post("/auth/refresh", json=body)).status_code == 200
        return await http.post("/auth/refresh", json=body)


async def end_as_administrator(service: Service, lost: Device, _: Device) -> Any:
    root = (await grant(service, "query-param", "root")).access(scopes=["admin"])
    async with calling(service, headers=bearer(root)) as http:
        return await http.delete(f"/admin/sessions/{lost.granted.session}")


async def disconnect_as_administrator(service: Service, lost: Device, _: Device) -> Any:
    root = (await grant(service, "query-param", "root")).access(scopes=["admin"])
    async with calling(service, headers=bearer(root)) as http:
        return await http.post(f"/admin/users/{lost.granted.subject}/disconnect")


async def change_the_password(service: Service, _: Device, kept: Device) -> Any:
    async with calling(service, headers=presented(kept)) as http:
        return await http.post(
            "/auth/password",
            json={"current_password": PASSWORD, "new_password": NEW_PASSWORD},
        )


def presented(device: Device) -> dict[str, str]:
    granted = device.granted
    if granted.cookie:
        return {"cookie": f"authws={granted.cookie}"}
    return bearer(granted.access())


def by_operator(*command: str) -> End:
    """A command of another process, which knows nothing but the database."""

    async def run(service: Service, lost: Device, _: Device) -> Any:
        operator = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "authws", "user", command[0]),
            *(lost.granted.subject, *command[1:]),
            env={
                **os.environ,
                "AUTHWS_DATA_DIR": str(service.house.settings.data_dir),
            },
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.DEVNULL,
        )
        await operator.communicate(NEW_PASSWORD.encode())
        assert operator.returncode == 0

    return run


ONE_SESSION: dict[str, End] = {
    "logout": log_out,
    "other-device": end_the_other_device,
    "refresh-reuse": use_a_refresh_token_twice,
    "admin-session": end_as_administrator,
}
ALL_BUT_OWN: dict[str, End] = {"password": change_the_password}
WHOLE_USER: dict[str, End] = {"admin-disconnect": disconnect_as_administrator}
BY_ANOTHER_PROCESS: dict[str, End] = {
    "disabled": by_operator("disable"),
    "removed": by_operator("remove"),
    "operator-password": by_operator("passwd", "--password-stdin"),
}
OVER_HTTP = {**ONE_SESSION, **ALL_BUT_OWN, **WHOLE_USER}
CASES = [
    (name, strategy)
    for name in (*OVER_HTTP, *BY_ANOTHER_PROCESS)
    for strategy in ("query-param", "session-cookie")
    # a cookie's session has no refresh token
    if (name, strategy) != ("refresh-reuse", "session-cookie")
]
ANSWERS = {"refresh-reuse": 401, "admin-disconnect": 200}


@asynccontextmanager
async def scene(
    service: Service, strategy: str, name: str
) -> AsyncIterator[tuple[Device, Device, ClientConnection]]:
    """Two devices of one user, all of whose sockets are open; and somebody else's."""
    await service.add_user(name)
    async with AsyncExitStack() as stack:
        bob = await stack.enter_async_context(
            enter(
                service, "/ws/query-param", await grant(service, "query-param", "bob")
            )
        )
        await say(bob, type="join", room="lobby")
        await heard(bob, type="joined")
        devices = [Device(await grant(service, strategy, name)) for _ in range(2)]
        for device in devices:
            await device.open(stack)
        lost, kept = devices
        yield lost, kept, bob


@on_one_loop
@pytest.mark.parametrize(("way", "strategy"), CASES)
async def test_ending_ends_every_socket_of_it_and_no_other(
    service: Service, pushing: Service, way: str, strategy: str
) -> None:
    end = {**OVER_HTTP, **BY_ANOTHER_PROCESS}[way]
    is_pushed = way in OVER_HTTP
    service = pushing if is_pushed else service
    async with scene(service, strategy, f"{way}-{strategy}") as (lost, kept, bob):
        answer = await end(service, lost, kept)
        answered = time.monotonic()
        if answer is not None:
            assert answer.status_code == ANSWERS.get(way, 204)
        await lost.assert_ended()
        if way in (*ONE_SESSION, *ALL_BUT_OWN):
            await kept.assert_open()
            await assert_talking(kept.speaker, bob)
        else:
            await kept.assert_ended()
            await assert_talking(bob)
        assert time.monotonic() - answered < (0 if is_pushed else RECHECK) + SLACK


@on_one_loop
async def test_rotation_drops_nobody(service: Service) -> None:
    async with scene(service, "query-param", "rotating") as (device, other, bob):
        session = device.granted.session
        issued = service.house.refresh_tokens.issue(session, service.clock.now() + 600)
        refresh_token = await service.call(issued)
        async with calling(service) as http:
            for _ in range(5):
                answer = await http.post(
                    "/auth/refresh", json={"refresh_token": refresh_token}
                )
                assert answer.status_code == 200
                refresh_token = answer.json()["refresh_token"]
        await device.assert_open()
        await other.assert_open()
        await assert_talking(device.speaker, other.speaker, bob)


# ---------------------------------------------------------- first written, then pushed


@contextmanager
def database(service: Service) -> Iterator[sqlite3.Connection]:
    """The service's database, as any other process has it."""
    path = service.house.settings.data_dir / "authws.db"
    with closing(sqlite3.connect(path, isolation_level=None, timeout=10)) as connection:
        yield connection


async def read_again(service: Service) -> None:
    """Wait until the process has asked the database what else was revoked."""
    sessions, answers = service.house.sessions, 0
    read = sessions.revocations_since

    async def counting(at: float) -> list[Revocation]:
        nonlocal answers
        found = await read(at)
        answers += 1
        return found

    sessions.revocations_since = counting  # type: ignore[method-assign]
    await until(lambda: answers >= 2)  # what the first one brought is done by then
    sessions.revocations_since = read  # type: ignore[method-assign]


@asynccontextmanager
async def failing(service: Service) -> AsyncIterator[None]:
    """Let each transaction fail that announces a revocation, as late as it can."""
    with database(service) as connection:
        connection.execute(
            "CREATE TRIGGER full BEFORE INSERT ON revocations "
            "BEGIN SELECT RAISE(FAIL, 'database or disk is full'); END"
        )
        try:
            yield
        finally:
            connection.execute("DROP TRIGGER full")


FAILING = [
    case for case in CASES if case[0] in OVER_HTTP and case[0] != "refresh-reuse"
]


@on_one_loop
@pytest.mark.parametrize(("way", "strategy"), [*FAILING, ("refresh-reuse", "token")])
async def test_what_cannot_be_written_is_not_pushed(
    service: Service, way: str, strategy: str
) -> None:
    end = OVER_HTTP[way]
    name = f"unwritten-{way}-{strategy}"
    async with scene(service, strategy, name) as (lost, kept, bob):
        async with failing(service):
            answer = await end(service, lost, kept)
            assert refused(answer) == (503, "unavailable")
            assert int(answer.headers["retry-after"]) >= 1
            await read_again(service)  # nor is anything found there later
            await lost.assert_open()
            await kept.assert_open()
            await assert_talking(lost.speaker, kept.speaker, bob)
        live = await service.call(service.house.sessions.list_for(name))
        sessions = {record.id for record in live}
        assert sessions == {lost.granted.session, kept.granted.session}
        with database(service) as connection:
            keys = (name, *sessions)
            marks = ",".join("?" * len(keys))
            announced = f"SELECT count(*) FROM revocations WHERE key IN ({marks})"  # noqa: S608
            assert connection.execute(announced, keys).fetchone() == (0,)
        # the same call, once the disk has room again
        again = await end(service, lost, kept)
        assert again.status_code == ANSWERS.get(way, 204)
        await lost.assert_ended()


@on_one_loop
@pytest.mark.parametrize(("way", "strategy"), [c for c in CASES if c[0] in OVER_HTTP])
async def test_what_is_pushed_was_written_before(
    pushing: Service, monkeypatch: pytest.MonkeyPatch, way: str, strategy: str
) -> None:
    hub = pushing.house.hub
    written: list[tuple[int, int]] = []

    def spy(push: Callable[[str, float], int]) -> Callable[[str, float], int]:
        def push_on(key: str, at: float) -> int:
            with database(pushing) as connection:
                (announced,) = connection.execute(
                    "SELECT count(*) FROM revocations WHERE key = ?", [key]
                ).fetchone()
                (ended,) = connection.execute(
                    "SELECT count(*) FROM sessions WHERE revoked_at IS NOT NULL "
                    "AND ? IN (id, subject)",
                    [key],
                ).fetchone()
            written.append((announced, ended))
            return push(key, at)

        return push_on

    async with scene(pushing, strategy, f"order-{way}-{strategy}") as (lost, kept, _):
        with monkeypatch.context() as patch:
            patch.setattr(hub, "revoke_session", spy(hub.revoke_session))
            patch.setattr(hub, "revoke_subject", spy(hub.revoke_subject))
            await OVER_HTTP[way](pushing, lost, kept)
            await lost.assert_ended()
    assert written
    assert all(announced and ended for announced, ended in written), written


# ------------------------------------------------------------------ a push that is lost


@on_one_loop
@pytest.mark.parametrize(("way", "strategy"), [c for c in CASES if c[0] in OVER_HTTP])
async def test_a_lost_push_heals_when_the_database_is_read_again(
    service: Service, monkeypatch: pytest.MonkeyPatch, way: str, strategy: str
) -> None:
    hub, (watch, *_) = service.house.hub, service.house._background
    lost_pushes: list[str] = []

    def lossy(push: Callable[[str, float], int]) -> Callable[[str, float], int]:
        def pushing(key: str, at: float) -> int:
            if asyncio.current_task() is watch:
                return push(key, at)
            lost_pushes.append(key)
            return 0

        return pushing

    async with scene(service, strategy, f"push-{way}-{strategy}") as (lost, kept, bob):
        with monkeypatch.context() as patch:
            patch.setattr(hub, "revoke_session", lossy(hub.revoke_session))
            patch.setattr(hub, "revoke_subject", lossy(hub.revoke_subject))
            await OVER_HTTP[way](service, lost, kept)
            answered = time.monotonic()
            assert lost_pushes
            await lost.assert_ended()
            assert time.monotonic() - answered < RECHECK + SLACK
        if way in WHOLE_USER:
            await kept.assert_ended()
        else:
            await kept.assert_open()
            await assert_talking(kept.speaker, bob)


async def test_until_then_nothing_that_was_ended_stays_for_longer(
    tmp_path: Path,
) -> None:
    """A process that has not heard of it may let a session in, for one interval."""
    async with running(tmp_path, recheck_interval=1) as service:
        await service.add_user("alice")
        one = await grant(service, "query-param")
        async with enter(service, "/ws/query-param", one):
            pass  # its row is cached from now on
        other = Database(service.house.settings.database)
        users = Users(other, service.house.hasher, Clock())
        await users.disable("alice")
        ended = time.monotonic()
        assert await present(service, "/ws/query-param", one.access()) == (
            1008,
            "token_revoked",
        )
        assert time.monotonic() - ended < 1 + SLACK
        for _ in range(3):
            began = time.monotonic()
            refusal = await present(service, "/ws/query-param", one.access())
            assert refusal == (1008, "token_revoked")
        assert time.monotonic() - began < 0.9  # refused, and not let in first
        await other.dispose()


# ------------------------------------------------------------------------ the histogram


async def revocations(service: Service) -> tuple[int, float]:
    """How many connections were ended by one, and the seconds that took in all."""
    async with service.http() as http:
        lines = (await http.get("/metrics")).text.splitlines()
    values = dict(line.split(" ") for line in lines if not line.startswith("#"))
    name = "authws_revocation_seconds"
    assert values[f"{name}_count"] == values[name + '_bucket{le="+Inf"}']
    return int(float(values[f"{name}_count"])), float(values[f"{name}_sum"])


async def test_each_connection_that_was_ended_is_counted_once(tmp_path: Path) -> None:
    async with running(tmp_path, recheck_interval=0.3) as service:
        for name in ("alice", "bob"):
            await service.add_user(name)
        await service.add_user("root", scopes=("admin",))
        hub = service.house.hub
        assert await revocations(service) == (0, 0.0)

        # one that leaves by itself, and one that expires, are no revocations
        one = await grant(service, "query-param")
        async with enter(service, "/ws/query-param", one):
            pass
        brief = one.access(ttl=0.3)
        assert (await present(service, "/ws/query-param", brief))[1] == "token_expired"
        await until(lambda: not hub.connections)
        assert await revocations(service) == (0, 0.0)

        async with scene(service, "session-cookie", "carol") as (lost, kept, _):
            began = time.monotonic()
            for _ in range(2):  # the second ends nothing more
                await log_out(service, lost, kept)
                await lost.assert_ended()
            await until(lambda: len(hub.connections) == 5)
            count, seconds = await revocations(service)
            assert count == 4
            assert 0 < seconds < 4 * (time.monotonic() - began)

            began = time.monotonic()
            await disconnect_as_administrator(service, lost, kept)
            await kept.assert_ended()
            await until(lambda: len(hub.connections) == 1)
            count, more = await revocations(service)
            assert count == 8
            assert seconds < more < seconds + 4 * (time.monotonic() - began)

            await read_again(service)  # and nothing is counted again
            assert await revocations(service) == (8, more)

            # by another process: from when the database took it
            async with enter(
                service, "/ws/query-param", await grant(service, "query-param")
            ) as peer:
                other = Database(service.house.settings.database)
                await Users(other, service.house.hasher, Clock()).disable("alice")
                assert await ending(peer) == (1008, "token_revoked")
                await other.dispose()
            await until(lambda: len(hub.connections) == 1)
            count, most = await revocations(service)
            assert count == 9
            assert more < most < more + 0.3 + SLACK


async def test_who_does_not_read_is_counted_too(tmp_path: Path) -> None:
    """Its close frame is sent at the same moment, behind all that it has not read."""
    async with running(tmp_path) as service:
        await service.add_user("alice")
        one, hub = await grant(service, "query-param"), service.house.hub
        async with wire(service.port) as peer:
            await peer.upgrade(f"/ws/query-param/echo?token={one.access()}")
            (connection,) = hub.connections.values()
            for _ in range(400):
                peer._writer.write(frame(BINARY, bytes(60_000)))
            await until(lambda: not connection._outbox.has_room)
            await one.end()
            await until(lambda: connection.closed_at)
        async with asyncio.timeout(SLACK):
            while (counted := await revocations(service))[0] == 0:
                pass
        assert counted[0] == 1
        assert 0 < counted[1] < SLACK


# --------------------------------------------------- a login that races with a change

CHANGES: dict[str, tuple[str, ...]] = {
    "password": ("set_password", NEW_PASSWORD),
    "disabled": ("disable",),
    "removed": ("remove",),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
@pytest.mark.parametrize("path", ["/auth/login", "/auth/session"])
async def test_password_that_was_right_a_moment_ago_opens_nothing(
    tmp_path: Path, url: str, path: str, change: tuple[str, ...]
) -> None:
    async with running(tmp_path, database_url=url) as service:
        await service.add_user("alice")
        house = service.house
        authenticate, other = house.users.authenticate, Database(url)
        operator = Users(other, house.hasher, Clock())

        async def meanwhile(name: str, password: str) -> User | None:
            user = await authenticate(name, password)
            if user is not None:
                await getattr(operator, change[0])(name, *change[1:])
            return user

        good = {"username": "alice", "password": PASSWORD}
        async with calling(service) as http:
            wrong = await http.post(path, json={**good, "password": "wrong" * 4})
            house.users.authenticate = meanwhile  # type: ignore[method-assign]
            late = await http.post(path, json=good)
            house.users.authenticate = authenticate  # type: ignore[method-assign]
        assert refused(late) == refused(wrong) == (401, "credentials_invalid")
        assert late.headers["www-authenticate"] == "Bearer"
        assert "set-cookie" not in late.headers
        assert await service.call(house.sessions.list_for("alice")) == []
        names = [event["event"] for event in service.security_events]
        assert names == ["login_failed"] * 2
        await service.call(other.dispose())


async def test_of_logins_that_race_with_a_new_password_none_stays(
    tmp_path: Path, url: str
) -> None:
    async with running(tmp_path, database_url=url) as service:
        await service.add_user("alice")
        passwords = [PASSWORD, *(f"{NEW_PASSWORD} {n}" for n in range(4))]
        opened = 0
        for old, new in itertools.pairwise(passwords):
            login = {"username": "alice", "password": old}
            change = {"current_password": old, "new_password": new}
            async with calling(service) as http:
                mine = (await http.post("/auth/login", json=login)).json()
                headers = bearer(mine["access_token"])
                early, late = (
                    [http.post("/auth/login", json=login) for _ in range(2)]
                    for _ in range(2)
                )
                changing = http.post("/auth/password", json=change, headers=headers)
                answers = await asyncio.gather(*early, changing, *late)
                changed, logins = answers[2], [*answers[:2], *answers[3:]]
                assert changed.status_code == 204
                for answer in logins:
                    if answer.status_code == 401:
                        assert refused(answer) == (401, "credentials_invalid")
                        continue
                    opened += 1
                    token = bearer(answer.json()["access_token"])
                    me = await http.get("/auth/me", headers=token)
                    assert refused(me) == (401, "token_revoked")
                listed = await http.get("/auth/sessions", headers=headers)
                assert [one["current"] for one in listed.json()] == [True]
        assert opened, "no login came before a change: nothing was tried"


async def test_of_two_new_passwords_at_once_one_is_set(
    tmp_path: Path, url: str
) -> None:
    async with running(tmp_path, database_url=url) as service:
        await service.add_user("alice")
        tokens = [await service.token() for _ in range(2)]
        async with calling(service) as http:
            answers = await asyncio.gather(
                *(
                    http.post(
                        "/auth/password",
                        json={
                            "current_password": PASSWORD,
                            "new_password": f"{NEW_PASSWORD} {number}",
                        },
                        headers=bearer(token),
                    )
                    for number, token in enumerate(tokens)
                )
            )
            assert sorted(one.status_code for one in answers) in (
                [204, 401],
                [204, 403],
            )
            winner = [one.status_code for one in answers].index(204)
            for number, token in enumerate(tokens):
                login = {
                    "username": "alice",
                    "password": f"{NEW_PASSWORD} {number}",
                }
                status = (await http.post("/auth/login", json=login)).status_code
                assert status == (200 if number == winner else 401)
                me = await http.get("/auth/me", headers=bearer(token))
                assert me.status_code == (200 if number == winner else 401)
