"""Lifecycle: expiry, renewal, revocation, logout, refresh.

What ends a credential ends what was opened with it, whether or not anybody speaks.
"""

from __future__ import annotations

import asyncio
import json
import sqlite3
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from http.cookies import SimpleCookie
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio
import websockets
from websockets.asyncio.client import ClientConnection

from authws.clock import Clock
from authws.decisions.tokens import Claims
from authws.principal import Principal
from authws.stores.database import Database
from authws.stores.sessions import SessionRecord
from authws.stores.users import User, Users
from tests.builders import compact
from tests.running import PASSWORD, STRATEGIES, Service, running
from tests.security.peers import (
    bearer,
    control,
    controlled,
    ending,
    eventually,
    hear,
    join,
    knock,
    say,
    silence,
    visitor,
)
from tests.wire import TEXT, frame, handshake, wire

pytestmark = pytest.mark.asyncio(loop_scope="module")

NEW_PASSWORD = "a wholly new sentence"
EXPIRED = {
    "query-param": (1008, "token_expired"),
    "first-message": (1008, "token_expired"),
    "session-cookie": (1008, "session_expired"),
}
REVOKED = {
    "query-param": (1008, "token_revoked"),
    "first-message": (1008, "token_revoked"),
    "session-cookie": (1008, "session_revoked"),
}
SLACK = 2.0
"""Seconds after its end by which a connection is closed, on a busy machine."""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def service(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Service]:
    async with running(
        tmp_path_factory.mktemp("lifecycle"),
        max_connections_per_user=0,
        recheck_interval=0.2,
    ) as service:
        await service.add_user("alice")
        await service.add_user("bob")
        async with controlled(service):
            yield service


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def elsewhen(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Service]:
    """A service whose clock may be moved: its connections hear of it late enough."""
    async with running(
        tmp_path_factory.mktemp("elsewhen"), recheck_interval=300
    ) as service:
        await service.add_user("alice")
        async with controlled(service):
            yield service
            service.clock.offset = 0.0


@asynccontextmanager
async def serving(path: Path, **settings: Any) -> AsyncIterator[Service]:
    """A service of its own, with its positive control before and after."""
    async with running(path, **settings) as service:
        await service.add_user("alice")
        await control(service)
        yield service
        await control(service)


async def connect(service: Service, token: str, path: str = "") -> ClientConnection:
    """Connect with a token that was there before, up to ``auth_ok``."""
    peer = await service.open(f"/ws/query-param{path}?token={token}")
    if not path:
        assert (await hear(peer))["type"] == "auth_ok"
    return peer


async def use(service: Service, *, token: str = "", cookie: str = "") -> int:
    """Ask over HTTP who one is; return the status."""
    headers = bearer(token) if token else {"cookie": cookie}
    async with service.http(headers=headers) as http:
        return (await http.get("/auth/me")).status_code


async def refresh(service: Service, token: str) -> httpx.Response:
    async with service.http() as http:
        return await http.post("/auth/refresh", json={"refresh_token": token})


async def log_out(service: Service, token: str) -> httpx.Response:
    async with service.http(headers=bearer(token)) as http:
        return await http.post("/auth/logout")


def claims_of(service: Service, token: str) -> Claims:
    return service.house._access.verify(token, now=service.clock.now())


# ------------------------------------------------------------------------------ expiry


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def brief(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Service]:
    """Everything lives for one and a half seconds."""
    async with serving(
        tmp_path_factory.mktemp("brief"),
        access_ttl=1.5,
        session_idle_ttl=1.5,
        message_rate=0,
    ) as service:
        yield service


async def greet(service: Service, strategy: str) -> tuple[ClientConnection, float]:
    """Connect to the rooms; return the peer, and when it will be closed."""
    if strategy == "session-cookie":
        headers = {"cookie": await service.cookie(), "origin": service.origin}
        peer = await service.open(f"/ws/{strategy}", headers=headers)
    elif strategy == "query-param":
        peer = await service.open(f"/ws/{strategy}?token={await service.token()}")
    else:
        token = await service.token()
        peer = await service.open(f"/ws/{strategy}")
        assert (await hear(peer))["type"] == "auth_required"
        await say(peer, type="auth", token=token)
    ok = await hear(peer)
    assert ok["type"] == "auth_ok"
    return peer, float(ok["expires_at"])


@pytest.mark.parametrize("strategy", STRATEGIES, ids=lambda s: f"LIF-02-{s}")
async def test_a_silent_connection_is_closed_when_its_credential_expires(
    brief: Service, strategy: str
) -> None:
    peer, expires_at = await greet(brief, strategy)
    assert await ending(peer) == EXPIRED[strategy]
    assert 0 <= time.time() - expires_at < SLACK


@pytest.mark.parametrize("strategy", STRATEGIES, ids=lambda s: f"LIF-01 LIF-03-{s}")
async def test_a_talking_connection_is_heard_to_the_end_and_no_longer(
    brief: Service, strategy: str
) -> None:
    peer, expires_at = await greet(brief, strategy)
    listener = await connect(brief, await brief.token())
    await join(peer, "lobby")
    await join(listener, "lobby")
    sent, acknowledged, heard = 0, 0, []

    async def talk() -> None:
        nonlocal sent
        with suppress(websockets.ConnectionClosed):
            while True:
                await say(peer, type="publish", room="lobby", data=sent, id=sent)
                sent += 1
                await asyncio.sleep(0.005)

    talking = asyncio.create_task(talk())
    with suppress(websockets.ConnectionClosed):
        while True:
            message = await hear(peer)
            if message["type"] == "ack":
                acknowledged += 1
            elif message["type"] == "message":
                heard.append(message)
    await talking
    assert (peer.close_code, peer.close_reason) == EXPIRED[strategy]
    assert time.time() - expires_at < SLACK
    # what was said in time was delivered, in order and once; after the end nothing was
    delivered = []
    with suppress(websockets.ConnectionClosed):
        while True:
            message = await hear(listener)
            if message["type"] == "message":
                delivered.append(message)
    assert acknowledged > 10
    assert [m["data"] for m in delivered] == list(range(len(delivered)))
    assert acknowledged <= len(delivered) <= sent
    assert max(m["at"] for m in delivered) < expires_at + 0.25


@pytest.mark.parametrize("case", ["LIF-01-echo"])
async def test_an_echo_ends_with_its_token_too(brief: Service, case: str) -> None:
    peer = await connect(brief, await brief.token(), "/echo")
    started = time.monotonic()
    with suppress(websockets.ConnectionClosed):
        while True:
            await peer.send("on")
            assert await peer.recv() == "on"
            await asyncio.sleep(0.01)
    assert (peer.close_code, peer.close_reason) == (1008, "token_expired")
    assert time.monotonic() - started < 1.5 + SLACK


@pytest.mark.parametrize("case", ["LIF-01-renewed"])
async def test_a_renewed_connection_lives_to_the_new_end(
    brief: Service, case: str
) -> None:
    tokens = await brief.login()
    async with await connect(brief, tokens["access_token"]) as peer:
        await asyncio.sleep(0.7)  # so that the two ends differ
        renewed = (await refresh(brief, tokens["refresh_token"])).json()
        await say(peer, type="auth", token=renewed["access_token"])
        while (ok := await hear(peer))["type"] != "auth_ok":
            assert ok["type"] == "auth_expiring"
        old_end = claims_of(brief, tokens["access_token"]).expires_at
        assert ok["expires_at"] >= old_end + 0.5
        assert await ending(peer) == (1008, "token_expired")
        assert 0 <= time.time() - ok["expires_at"] < SLACK


@pytest.mark.parametrize("case", ["LIF-11"])
async def test_a_renewal_may_not_change_who_one_is(service: Service, case: str) -> None:
    mine, other_session = await service.token("alice"), await service.token("alice")
    for token in (await service.token("bob"), other_session):
        async with (
            await connect(service, mine) as peer,
            await connect(service, await service.token("bob")) as member,
        ):
            await join(member, "lobby")
            await say(peer, type="auth", token=token)
            assert await ending(peer) == (1008, "subject_changed")
            await silence(member)
    assert await use(service, token=mine) == 200


BAD_RENEWALS = {
    "LIF-11-garbage": ({"type": "auth", "token": "x.y.z"}, "token_invalid"),
    "LIF-11-no-token": ({"type": "auth"}, "auth_missing"),
    "LIF-11-list": ({"type": "auth", "token": ["x"]}, "auth_malformed"),
}


@pytest.mark.parametrize(
    ("message", "slug"), BAD_RENEWALS.values(), ids=BAD_RENEWALS.keys()
)
async def test_a_bad_renewal_closes(
    service: Service, message: dict[str, Any], slug: str
) -> None:
    async with await service.connect("query-param") as peer:
        await say(peer, **message)
        assert await ending(peer) == (1008, slug)


# -------------------------------------------------------------------- idle and absolute


@pytest.mark.parametrize("case", ["LIF-13-absolute"])
async def test_the_absolute_limit_ends_what_is_in_use(
    tmp_path_factory: pytest.TempPathFactory, case: str
) -> None:
    async with serving(
        tmp_path_factory.mktemp("absolute"), session_absolute_ttl=2, access_ttl=900
    ) as service:
        ends = {}
        for strategy in STRATEGIES:
            peer, expires_at = await greet(service, strategy)
            ends[strategy] = (peer, expires_at)
        for strategy, (peer, expires_at) in ends.items():
            assert await ending(peer) == EXPIRED[strategy]
            assert 0 <= time.time() - expires_at < SLACK


@pytest.mark.parametrize("case", ["LIF-13-idle"])
async def test_use_moves_the_idle_limit_and_only_use_does(
    elsewhen: Service, case: str
) -> None:
    service = elsewhen
    used, unused = await service.cookie(), await service.cookie()
    idle = service.house.settings.session_idle_ttl
    try:
        for step in range(1, 4):
            service.clock.offset = step * idle * 0.7
            assert await use(service, cookie=used) == 200
        assert await use(service, cookie=unused) == 401
        service.clock.offset += idle + 1
        assert await use(service, cookie=used) == 401
    finally:
        service.clock.offset = 0.0


@pytest.mark.parametrize("case", ["LIF-09"])
async def test_no_refresh_outlives_the_absolute_limit(
    elsewhen: Service, case: str
) -> None:
    service = elsewhen
    tokens = await service.login()
    absolute = service.house.settings.session_absolute_ttl
    try:
        for step in range(1, 10):  # rotated all along, as a good client does
            service.clock.offset = absolute * step / 10
            answer = await refresh(service, tokens["refresh_token"])
            assert answer.status_code == 200
            tokens = answer.json()
        service.clock.offset = absolute - 60
        answer = await refresh(service, tokens["refresh_token"])
        tokens = answer.json()
        assert tokens["expires_in"] <= 60
        service.clock.offset = absolute + 1
        late = await refresh(service, tokens["refresh_token"])
        assert late.status_code == 401
        assert "access_token" not in late.text
        assert await use(service, token=tokens["access_token"]) == 401
    finally:
        service.clock.offset = 0.0


def sign(service: Service, token: str, **changes: Any) -> str:
    """Sign the claims of a token, with changes, by the service's own key."""
    claims = claims_of(service, token)
    key = service.house.keyring.newest
    header = {"alg": key.algorithm, "kid": key.kid, "typ": "at+jwt"}
    payload = {
        "iss": claims.issuer,
        "aud": claims.audience,
        "sub": claims.subject,
        "sid": claims.session,
        "jti": "of-the-test",
        "iat": claims.issued_at,
        "nbf": claims.issued_at,
        "exp": claims.expires_at,
        "scope": " ".join(sorted(claims.scopes)),
        **changes,
    }
    return compact(json.dumps(header).encode(), json.dumps(payload).encode(), key)


@pytest.mark.parametrize("case", ["LIF-26"])
async def test_a_token_lives_no_longer_than_tokens_do(
    service: Service, case: str
) -> None:
    token = await service.token()
    same = sign(service, token)
    assert (await knock(service, f"/ws/query-param?token={same}")).is_admitted
    now = service.clock.now()
    ten_years = sign(service, token, exp=now + 10 * 365 * 86_400)
    answer = await knock(service, f"/ws/query-param?token={ten_years}")
    assert answer.close == (1008, "token_invalid")
    a_day = sign(service, token, exp=now + 86_000)
    async with await service.open(f"/ws/query-param?token={a_day}") as peer:
        ok = await hear(peer)
    absolute = service.house.settings.session_absolute_ttl
    assert ok["expires_at"] <= now + absolute + 1


# -------------------------------------------------------------------------- the clocks


@pytest.mark.parametrize("jump", [3600.0, -3600.0], ids=["LIF-14-on", "LIF-14-back"])
async def test_a_jump_of_the_wall_clock_opens_nothing(
    tmp_path_factory: pytest.TempPathFactory, jump: float
) -> None:
    async with running(tmp_path_factory.mktemp("set"), recheck_interval=1) as service:
        await service.add_user("alice")
        token, cookie = await service.token(), await service.cookie()
        tokens = await service.login()
        async with await connect(service, token) as open_one:
            service.clock.offset = jump
            answer = await knock(service, f"/ws/query-param?token={token}")
            refused = "token_expired" if jump > 0 else "token_invalid"
            assert answer.close == (1008, refused)
            if jump > 0:
                assert await use(service, cookie=cookie) == 401
                renewed = await refresh(service, tokens["refresh_token"])
                assert renewed.status_code in (200, 401)
            # an honest user logs in by the new clock, and is served
            await control(service)
            if jump > 0:  # its token is over by the clock that exp is written for
                assert await ending(open_one) == (1008, "token_expired")
            else:
                await silence(open_one)


@pytest.mark.parametrize("jump", [3600.0, -3600.0], ids=["LIF-14-on", "LIF-14-back"])
async def test_a_relative_deadline_is_not_moved_by_the_wall_clock(
    tmp_path_factory: pytest.TempPathFactory, jump: float
) -> None:
    async with running(tmp_path_factory.mktemp("jump"), auth_timeout=1) as service:
        started = time.monotonic()
        async with await service.open("/ws/first-message") as peer:
            assert (await hear(peer))["type"] == "auth_required"
            service.clock.offset = jump
            assert await ending(peer) == (1008, "auth_timeout")
        assert 0.9 < time.monotonic() - started < 1 + SLACK


@pytest.mark.parametrize("case", ["LIF-14-deadline-back"])
async def test_a_deadline_is_asked_again_before_it_ends_anything(
    brief: Service, case: str
) -> None:
    """The wall clock was put back: the token is good for longer, as it says itself."""
    async with await connect(brief, await brief.token(), "/echo") as peer:
        brief.clock.offset = -2.0
        try:
            await asyncio.sleep(1.7)
            await peer.send("still here")
            assert await peer.recv() == "still here"
            assert await ending(peer) == (1008, "token_expired")
        finally:
            brief.clock.offset = 0.0


# ------------------------------------------------------------------- logout, revocation


@pytest.mark.parametrize("case", ["LIF-04"])
async def test_a_logout_closes_all_its_sockets_and_no_others(
    service: Service, case: str
) -> None:
    token, other = await service.token(), await service.token()
    async with service.http(headers=bearer(token)) as http:
        ticket = (await http.post("/auth/ticket")).json()["ticket"]
    mine = [
        await connect(service, token),
        await connect(service, token, "/echo"),
        await connect(service, ticket),
    ]
    first = await service.open("/ws/first-message")
    await hear(first)
    await say(first, type="auth", token=token)
    assert (await hear(first))["type"] == "auth_ok"
    async with (
        await connect(service, other) as same_user,
        await service.connect("session-cookie") as same_user_by_cookie,
        await service.connect("query-param", "bob") as another_user,
    ):
        started = time.monotonic()
        assert (await log_out(service, token)).status_code == 204
        for peer in (*mine, first):
            assert await ending(peer) == (1008, "token_revoked")
        assert time.monotonic() - started < 2
        for kept in (same_user, same_user_by_cookie, another_user):
            await silence(kept)


@pytest.mark.parametrize("case", ["LIF-04-cookie"])
async def test_a_cookies_logout_closes_what_its_tickets_opened_too(
    service: Service, case: str
) -> None:
    cookie, other = await service.cookie(), await service.cookie()

    async def open_rooms(cookie: str) -> ClientConnection:
        headers = {"cookie": cookie, "origin": service.origin}
        peer = await service.open("/ws/session-cookie", headers=headers)
        assert (await hear(peer))["type"] == "auth_ok"
        return peer

    async with (
        await open_rooms(cookie) as mine,
        await open_rooms(other) as other_device,
        service.http(headers={"cookie": cookie}) as http,
    ):
        ticket = (await http.post("/auth/ticket")).json()["ticket"]
        async with await connect(service, ticket) as by_ticket:
            assert (await http.delete("/auth/session")).status_code == 204
            assert await ending(mine) == (1008, "session_revoked")
            assert await ending(by_ticket) == (1008, "token_revoked")
        await silence(other_device)


async def by_operator(service: Service, change: str, name: str) -> None:
    """As the command line does it: another process, which only knows the database."""
    operator = Database(service.house.settings.database)
    users = Users(operator, service.house.hasher, Clock())
    if change == "disable":
        await users.disable(name)
    elif change == "remove":
        await users.remove(name)
    else:
        await users.set_password(name, NEW_PASSWORD)
    await operator.dispose()


async def by_user(service: Service, change: str, name: str) -> None:
    """Change one's password, in a session of its own."""
    async with service.http(headers=bearer(await service.token(name))) as http:
        answer = await http.post(
            f"/auth/{change}",
            json={"current_password": PASSWORD, "new_password": NEW_PASSWORD},
        )
    assert answer.status_code == 204


CHANGES = {
    "LIF-05-password-change": (by_user, "password"),
    "LIF-05-disable LIF-27-disable": (by_operator, "disable"),
    "LIF-05-delete": (by_operator, "remove"),
    "LIF-05-operator-password LIF-27-password": (by_operator, "passwd"),
}


@pytest.mark.parametrize(
    ("number", "by", "change"),
    [(n, *change) for n, change in enumerate(CHANGES.values())],
    ids=CHANGES.keys(),
)
async def test_what_ends_a_users_sessions_ends_every_socket_and_credential(
    service: Service,
    number: int,
    by: Callable[[Service, str, str], Coroutine[Any, Any, None]],
    change: str,
) -> None:
    name = f"ended-{number}"
    await service.add_user(name)
    who, tokens = await visitor(service, name), await service.login(name)
    ticket = await service.ticket(tokens["access_token"])
    peers = {strategy: await service.connect(strategy, name) for strategy in STRATEGIES}
    async with await service.connect("query-param", "bob") as bystander:
        started = time.monotonic()
        await by(service, change, name)
        for strategy, peer in peers.items():
            assert await ending(peer) == REVOKED[strategy]
        assert time.monotonic() - started < 0.2 + SLACK
        await silence(bystander)
    # and nothing of it opens anything again: LIF-06 for all of a user's credentials
    for path in (f"/ws/query-param?token={t}" for t in (who.token, ticket)):
        assert (await knock(service, path)).close == (1008, "token_revoked")
    first = await knock(service, "/ws/first-message", who=who)
    assert first.close == (1008, "token_revoked")
    lines = (f"Origin: {service.origin}",)
    by_cookie = await knock(service, "/ws/session-cookie", *lines, who=who)
    assert by_cookie.close == (1008, "session_revoked")
    assert (await refresh(service, tokens["refresh_token"])).status_code == 401
    assert await use(service, token=who.token) == 401
    assert await use(service, cookie=who.cookie) == 401
    async with service.http() as http:
        again = await http.post(
            "/auth/login", json={"username": name, "password": PASSWORD}
        )
    assert again.status_code == 401


@pytest.mark.parametrize("way", ["user", "session"], ids=lambda w: f"LIF-27-admin-{w}")
async def test_an_administrator_ends_what_is_open_and_nobody_else_does(
    service: Service, way: str
) -> None:
    name, boss = f"led-{way}", f"boss-{way}"
    await service.add_user(name)
    await service.add_user(boss, scopes=("admin",))
    lost, kept = await visitor(service, name), await service.token(name)
    session = claims_of(service, lost.token).session
    call = (
        ("POST", f"/admin/users/{name}/disconnect")
        if way == "user"
        else ("DELETE", f"/admin/sessions/{session}")
    )
    async with (
        await connect(service, lost.token) as one,
        await connect(service, kept) as other_device,
        await service.connect("session-cookie", "bob") as bystander,
    ):
        for stranger in ({}, bearer(kept), bearer(await service.token("bob"))):
            async with service.http(headers=stranger) as http:
                assert (await http.request(*call)).status_code in (401, 403)
        await silence(one)
        async with service.http(headers=bearer(await service.token(boss))) as http:
            assert (await http.request(*call)).status_code in (200, 204)
        assert await ending(one) == (1008, "token_revoked")
        if way == "user":
            assert await ending(other_device) == (1008, "token_revoked")
        else:
            await silence(other_device)
        await silence(bystander)
    assert await use(service, token=lost.token) == 401
    assert await use(service, cookie=lost.cookie) == (401 if way == "user" else 200)
    logged = [e for e in service.security_events if e["event"].startswith("admin_")]
    assert (logged[-1]["by"], logged[-1]["subject"]) == (boss, name)


@pytest.mark.parametrize("case", ["LIF-10"])
async def test_a_disabled_user_refreshes_nothing(service: Service, case: str) -> None:
    await service.add_user("leaver")
    tokens = await service.login("leaver")
    await by_operator(service, "disable", "leaver")
    answer = await refresh(service, tokens["refresh_token"])
    assert answer.status_code == 401
    assert "access_token" not in answer.text


@pytest.mark.parametrize("case", ["LIF-06"])
async def test_after_logout_no_credential_of_the_session_is_worth_anything(
    service: Service, case: str
) -> None:
    tokens = await service.login()
    token = tokens["access_token"]
    ticket = await service.ticket(token)
    assert (await log_out(service, token)).status_code == 204
    for credential in (token, ticket):
        for path in ("/ws/query-param", "/ws/query-param/echo"):
            answer = await knock(service, f"{path}?token={credential}")
            assert answer.close == (1008, "token_revoked")
        async with await service.open("/ws/first-message") as peer:
            await hear(peer)
            await say(peer, type="auth", token=credential)
            assert await ending(peer) == (1008, "token_revoked")
    async with service.http(headers=bearer(token)) as http:
        for method, path in (
            ("GET", "/auth/me"),
            ("GET", "/auth/sessions"),
            ("POST", "/auth/ticket"),
        ):
            assert (await http.request(method, path)).status_code == 401
    assert (await refresh(service, tokens["refresh_token"])).status_code == 401


@pytest.mark.parametrize("case", ["LIF-07"])
async def test_a_refresh_token_that_comes_back_ends_the_whole_session(
    service: Service, case: str
) -> None:
    first = await service.login()
    second = (await refresh(service, first["refresh_token"])).json()
    assert second["refresh_token"] != first["refresh_token"]
    async with (
        await connect(service, first["access_token"]) as old,
        await connect(service, second["access_token"]) as new,
        await connect(service, await service.token()) as other_session,
    ):
        reused = await refresh(service, first["refresh_token"])
        assert reused.status_code == 401
        assert reused.json() == {"detail": "token_revoked"}
        assert await ending(old) == await ending(new) == (1008, "token_revoked")
        await silence(other_session)
    assert (await refresh(service, second["refresh_token"])).status_code == 401
    assert await use(service, token=second["access_token"]) == 401


@pytest.mark.parametrize("case", ["LIF-07-race"])
async def test_of_many_redemptions_at_once_one_is_the_first(
    service: Service, case: str
) -> None:
    tokens = await service.login()
    answers = await asyncio.gather(
        *(refresh(service, tokens["refresh_token"]) for _ in range(10))
    )
    granted = [answer for answer in answers if answer.status_code == 200]
    assert len(granted) <= 1
    assert {answer.status_code for answer in answers} <= {200, 401}
    for answer in granted:  # the others were reuse: nothing of the session is left
        assert await use(service, token=answer.json()["access_token"]) == 401


# ------------------------------------------------------------ the deny-list, and races


@pytest.mark.parametrize("case", ["LIF-15-restart"])
async def test_what_was_ended_stays_so_after_a_restart(
    tmp_path_factory: pytest.TempPathFactory, case: str
) -> None:
    path = tmp_path_factory.mktemp("restart")
    async with serving(path) as service:
        ended, kept = await visitor(service), await visitor(service)
        await log_out(service, ended.token)
        async with service.http(headers={"cookie": ended.cookie}) as http:
            await http.delete("/auth/session")
        port = service.port
    async with running(path, port=port) as service:
        origin = f"Origin: {service.origin}"
        for endpoint, slug in (
            ("/ws/query-param", "token_revoked"),
            ("/ws/first-message", "token_revoked"),
            ("/ws/session-cookie", "session_revoked"),
        ):
            answer = await knock(service, endpoint, origin, who=ended)
            assert answer.close == (1008, slug)
            assert (await knock(service, endpoint, origin, who=kept)).is_admitted


@pytest.mark.parametrize("case", ["LIF-15-ttl"])
async def test_the_deny_list_forgets_nothing_that_could_still_be_believed(
    tmp_path_factory: pytest.TempPathFactory, case: str
) -> None:
    """A session may be read from the database just as it is being ended."""
    month = 30 * 86_400.0
    async with serving(
        tmp_path_factory.mktemp("ttl"),
        session_idle_ttl=0,
        session_absolute_ttl=month,
        refresh_ttl=month,
    ) as service:
        who, tokens = await visitor(service), await service.login()
        token_session = claims_of(service, tokens["access_token"]).session
        house = service.house
        load = house.sessions.load
        was_read, go_on = asyncio.Event(), asyncio.Event()

        async def slow_load(id: str) -> SessionRecord | None:
            record = await load(id)
            was_read.set()
            await go_on.wait()
            return record

        cookie_session = ""
        async with service.http(headers={"cookie": who.cookie}) as http:
            cookie_session = (await http.get("/auth/me")).json()["session"]

        async def race(session: str) -> None:
            was_read.clear()
            go_on.clear()
            house.records.evict(session)
            house.sessions.load = slow_load  # type: ignore[method-assign]
            reading = asyncio.create_task(house.records.get(session))
            await was_read.wait()
            house.sessions.load = load  # type: ignore[method-assign]
            await house.accounts.end_session(session, "logout")
            go_on.set()
            await reading

        for session in (cookie_session, token_session):
            await service.call(race(session))
        origin = f"Origin: {service.origin}"
        answer = await knock(service, "/ws/session-cookie", origin, who=who)
        assert answer.close == (1008, "session_revoked")
        # days later the snapshot has forgotten it; the database has not
        service.clock.offset = 3 * 86_400.0
        house.hub.revocations.forget_before(service.clock.now() - 86_400)
        assert await use(service, cookie=who.cookie) == 401
        answer = await knock(service, "/ws/session-cookie", origin, who=who)
        assert answer.close == (1008, "session_revoked")
        late = await refresh(service, tokens["refresh_token"])
        assert late.status_code == 401
        service.clock.offset = 0.0


@pytest.mark.parametrize("case", ["LIF-16"])
async def test_without_the_session_store_nothing_new_opens(
    service: Service, case: str
) -> None:
    tokens, ended = await service.login(), await service.login()
    cookie, ticket = await service.cookie(), await service.ticket(ended["access_token"])
    async with await connect(service, await service.token()) as live:
        database = service.house.settings.data_dir / "authws.db"
        await asyncio.to_thread(_rename_tables, database, "", "_gone")
        # nothing was read yet, as after a restart
        await service.call(_forget_cached(service))
        try:
            async with service.http() as http:
                for path in ("/auth/login", "/auth/session"):
                    answer = await http.post(
                        path, json={"username": "alice", "password": PASSWORD}
                    )
                    assert answer.status_code == 503
                    assert "set-cookie" not in answer.headers
                out = await http.delete("/auth/session", headers={"cookie": cookie})
                assert out.status_code == 503  # not ended, and not said to be
                out = await http.post(
                    "/auth/logout", headers=bearer(tokens["access_token"])
                )
                assert out.status_code == 503
                assert (await http.get("/readyz")).status_code in (200, 503)
            assert await use(service, token=tokens["access_token"]) == 503
            assert (await refresh(service, tokens["refresh_token"])).status_code == 503
            for credential in (tokens["access_token"], ticket):
                knocked = await knock(service, f"/ws/query-param?token={credential}")
                assert knocked.close == (1013, "unavailable")
            await silence(live)  # what was open and good stays
        finally:
            await asyncio.to_thread(_rename_tables, database, "_gone", "")
    assert await use(service, token=tokens["access_token"]) == 200


def _rename_tables(database: Path, old: str, new: str) -> None:
    db = sqlite3.connect(database, isolation_level=None)
    try:
        for table in ("sessions", "refresh_tokens", "used_tickets"):
            db.execute(f"ALTER TABLE {table}{old} RENAME TO {table}{new}")
    finally:
        db.close()


async def _forget_cached(service: Service) -> None:
    for name in ("alice", "bob"):
        service.house.records.evict_subject(name)


@pytest.mark.parametrize("way", ["logout", "disable"], ids=lambda w: f"LIF-18-{w}")
async def test_of_a_hundred_connects_racing_the_end_none_survives(
    service: Service, way: str
) -> None:
    name = f"racer-{way}"
    await service.add_user(name)
    token = await service.token(name)
    arrived = 0

    async def race() -> tuple[int, str]:
        nonlocal arrived
        peer = await service.open(f"/ws/query-param/echo?token={token}")
        arrived += 1
        return await ending(peer, within=20)

    racing = [asyncio.create_task(race()) for _ in range(100)]
    await eventually(lambda: arrived >= 20)
    if way == "logout":
        assert (await log_out(service, token)).status_code == 204
    else:
        await by_operator(service, "disable", name)
    assert set(await asyncio.gather(*racing)) == {(1008, "token_revoked")}
    # a client reads its close frame a moment before the server has let go of it
    await eventually(lambda: not list(service.house.hub.of_subject(name)))


@pytest.mark.parametrize(
    "change", ["passwd", "disable"], ids=lambda c: f"LIF-18-login-{c}"
)
async def test_of_logins_racing_the_end_none_survives(
    service: Service, change: str
) -> None:
    """Each knows the password that holds when it is looked at."""
    name = f"runner-{change}"
    await service.add_user(name)
    house, changed = service.house, 0
    authenticate = house.users.authenticate

    async def change_meanwhile(name: str, password: str) -> User | None:
        nonlocal changed
        user = await authenticate(name, password)
        if user is not None and not changed:
            changed += 1
            await by_operator(service, change, name)
        return user

    login = {"username": name, "password": PASSWORD}
    house.users.authenticate = change_meanwhile  # type: ignore[method-assign]
    try:
        async with service.http() as http:
            answers = await asyncio.gather(
                *(
                    http.post(f"/auth/{way}", json=login)
                    for _ in range(5)
                    for way in ("login", "session")
                )
            )
    finally:
        house.users.authenticate = authenticate  # type: ignore[method-assign]
    assert changed == 1
    assert {answer.status_code for answer in answers} == {401}
    assert {answer.text for answer in answers} == {'{"detail":"credentials_invalid"}'}
    assert await service.call(house.sessions.list_for(name)) == []


@pytest.mark.parametrize("case", ["LIF-18-between"])
async def test_a_session_that_ends_between_the_door_and_the_room_opens_neither(
    service: Service, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    token, house = await service.token(), service.house
    by_token = house.authority.by_token
    believed, go_on = asyncio.Event(), asyncio.Event()

    async def slowly(*arguments: Any, **options: Any) -> Principal:
        principal = await by_token(*arguments, **options)
        believed.set()
        await go_on.wait()
        return principal

    async def end() -> None:
        await believed.wait()
        await house.accounts.end_session(claims_of(service, token).session, "logout")
        go_on.set()

    with monkeypatch.context() as patch:
        patch.setattr(house.authority, "by_token", slowly)
        ended = asyncio.create_task(service.call(end()))
        answer = await knock(service, f"/ws/query-param?token={token}")
        await ended
    assert answer.close == (1008, "token_revoked")
    assert answer.heard == []


@pytest.mark.parametrize("case", ["LIF-19"])
async def test_connections_beyond_the_cap_are_refused_and_told_so(
    tmp_path_factory: pytest.TempPathFactory, case: str
) -> None:
    async with serving(
        tmp_path_factory.mktemp("cap"), max_connections_per_user=3
    ) as service:
        await service.add_user("bob")
        token = await service.token()
        peers = [await connect(service, token) for _ in range(3)]
        for path in ("/ws/query-param", "/ws/query-param/echo"):
            answer = await knock(service, f"{path}?token={token}")
            assert answer.close == (1008, "too_many_connections")
        await control(service, "bob")
        for peer in peers:  # those that were there stay
            await silence(peer)
        await peers[0].close()
        house = service.house
        await eventually(lambda: len(list(house.hub.of_subject("alice"))) == 2)
        peers[0] = await connect(service, token)
        for peer in peers:
            await peer.close()
        await eventually(lambda: not list(house.hub.of_subject("alice")))


# ----------------------------------------------------------------- restarts and crashes


@pytest.mark.parametrize("case", ["LIF-20"])
async def test_a_restart_closes_1012_and_loses_nothing_that_was_acknowledged(
    tmp_path_factory: pytest.TempPathFactory, case: str
) -> None:
    acknowledged = 0
    async with running(tmp_path_factory.mktemp("drain"), message_rate=0) as service:
        await service.add_user("alice")
        await service.add_user("bob")
        speaker, listener = (
            await service.connect("query-param", "alice"),
            await service.connect("session-cookie", "bob"),
        )
        echo = await service.connect("first-message", "alice", echo=True)
        await join(listener, "lobby")
        await join(speaker, "lobby")
        heard: list[int] = []
        told: list[float] = []
        going = asyncio.Event()

        async def speak() -> None:
            nonlocal acknowledged
            with suppress(websockets.ConnectionClosed):
                for n in range(100_000):
                    await say(speaker, type="publish", room="lobby", data=n, id=n)
                    while (await hear(speaker))["type"] != "ack":
                        pass
                    acknowledged += 1
                    if acknowledged == 20:
                        going.set()

        async def listen() -> None:
            with suppress(websockets.ConnectionClosed):
                while True:
                    message = await hear(listener)
                    if message["type"] == "message":
                        heard.append(message["data"])
                    elif message["type"] == "restarting":
                        told.append(message["retry_after"])

        tasks = [asyncio.create_task(speak()), asyncio.create_task(listen())]
        await going.wait()
    await asyncio.gather(*tasks)
    for peer in (speaker, listener, echo):
        assert await ending(peer) == (1012, "restart")
    assert heard[:acknowledged] == list(range(acknowledged))
    assert len(told) == 1
    assert 1 <= told[0] < 5


@pytest.mark.parametrize("case", ["LIF-25"])
async def test_a_peer_that_vanished_is_let_go_after_the_ping(
    tmp_path_factory: pytest.TempPathFactory, case: str
) -> None:
    """It stays connected and reads, but nobody is at home to answer a ping."""
    async with serving(
        tmp_path_factory.mktemp("vanished"),
        server={"ping_interval": 0.4, "ping_timeout": 0.4},
    ) as service:
        await service.add_user("bob")
        token = await service.token()
        async with (
            await service.connect("query-param", "bob") as bob,
            wire(service.port) as ghost,
        ):
            await join(bob, "lobby")
            await ghost.send(handshake(f"/ws/query-param?token={token}"))
            assert (await ghost.response()).status == 101
            await ghost.send(frame(TEXT, b'{"type":"join","room":"lobby"}'))
            assert (await hear(bob))["event"] == "joined"
            gone = await hear(bob)
            assert (gone["event"], gone["subject"]) == ("left", "alice")
            assert list(service.house.hub.of_subject("alice")) == []


@pytest.mark.parametrize("strategy", STRATEGIES, ids=lambda s: f"LIF-24-{s}")
async def test_who_was_closed_is_in_no_room_any_more(
    service: Service, strategy: str
) -> None:
    name = f"ghost-{strategy}"
    await service.add_user(name)
    async with await service.connect("query-param", "bob") as bob:
        await join(bob, "haunted")
        ghost = await service.connect(strategy, name)
        await join(ghost, "haunted")
        assert (await hear(bob))["event"] == "joined"
        await by_operator(service, "disable", name)
        left = await hear(bob)
        assert (left["event"], left["subject"]) == ("left", name)
        await say(bob, type="publish", room="haunted", data="is anybody there?")
        assert (await hear(bob))["type"] == "message"
        after: list[dict[str, Any]] = []
        with suppress(websockets.ConnectionClosed):
            while True:
                after.append(await hear(ghost))
        assert after == []
        assert (ghost.close_code, ghost.close_reason) == REVOKED[strategy]
        assert (await join(bob, "haunted"))["members"] == ["bob"]


# ----------------------------------------------------------------------- logging out


@pytest.mark.parametrize("case", ["LIF-21"])
async def test_logging_out_twice_or_late_is_no_error(
    service: Service, case: str
) -> None:
    token, cookie = await service.token(), await service.cookie()
    assert [(await log_out(service, token)).status_code for _ in range(3)] == [204] * 3
    async with service.http(headers={"cookie": cookie}) as http:
        for _ in range(3):
            assert (await http.delete("/auth/session")).status_code == 204
    async with service.http() as http:
        assert (await http.delete("/auth/session")).status_code == 204


@pytest.mark.parametrize("case", ["LIF-21-expired"])
async def test_an_expired_token_still_ends_its_session(
    elsewhen: Service, case: str
) -> None:
    service = elsewhen
    tokens = await service.login()
    async with await connect(service, tokens["access_token"]) as peer:
        service.clock.offset = 901.0
        try:
            assert await use(service, token=tokens["access_token"]) == 401
            out = await log_out(service, tokens["access_token"])
        finally:
            service.clock.offset = 0.0
        assert out.status_code == 204
        assert await ending(peer) == (1008, "token_revoked")
    assert (await refresh(service, tokens["refresh_token"])).status_code == 401


@pytest.mark.parametrize("case", ["LIF-21-forged"])
async def test_a_forged_token_ends_nobodys_session(service: Service, case: str) -> None:
    token = await service.token()
    head, payload, signature = token.split(".")
    for forged in (f"{head}.{payload}.{signature[::-1]}", f"{head}.{payload}.", "x"):
        assert (await log_out(service, forged)).status_code == 401
    async with service.http() as http:
        assert (await http.post("/auth/logout")).status_code == 401
    assert await use(service, token=token) == 200


@pytest.mark.parametrize("case", ["LIF-22"])
async def test_a_logout_deletes_the_cookie_as_it_was_set(
    service: Service, case: str
) -> None:
    def attributes(answer: httpx.Response) -> tuple[str, dict[str, str]]:
        ((name, cookie),) = SimpleCookie(answer.headers["set-cookie"]).items()
        kept = ("path", "samesite", "secure", "httponly", "domain")
        return name, {key: str(cookie[key]).lower() for key in kept}

    async with service.http() as http:
        set_by = await http.post(
            "/auth/session", json={"username": "alice", "password": PASSWORD}
        )
        deleted_by = await http.delete("/auth/session")
    assert attributes(set_by) == attributes(deleted_by)
    assert "max-age=0" in deleted_by.headers["set-cookie"].lower()
    assert deleted_by.headers["clear-site-data"] == '"cookies"'
    assert deleted_by.headers["cache-control"] == "no-store"


@pytest.mark.parametrize("case", ["LIF-23"])
async def test_own_sessions_are_listed_and_ended_one_by_one(
    service: Service, case: str
) -> None:
    await service.add_user("devices")
    mine, lost = await service.token("devices"), await service.token("devices")
    cookie = await service.cookie("devices")
    async with (
        service.http(headers=bearer(mine)) as http,
        await connect(service, mine) as here,
        await connect(service, lost) as there,
    ):
        listed = (await http.get("/auth/sessions")).json()
        assert sorted(one["kind"] for one in listed) == ["cookie", "token", "token"]
        assert [one["id"] for one in listed if one["current"]] == [
            claims_of(service, mine).session
        ]
        assert all(one["address"] == "127.0.0.1" for one in listed)
        assert lost not in json.dumps(listed)
        assert cookie.partition("=")[2] not in json.dumps(listed)
        other = claims_of(service, lost).session
        assert (await http.delete(f"/auth/sessions/{other}")).status_code == 204
        assert await ending(there) == (1008, "token_revoked")
        await silence(here)
        left = (await http.get("/auth/sessions")).json()
        assert other not in {one["id"] for one in left}
        assert len(left) == 2
    assert await use(service, token=lost) == 401
    assert await use(service, cookie=cookie) == 200


@pytest.mark.parametrize("case", ["LIF-05-logged"])
async def test_an_ending_is_in_the_log_with_its_reason(
    service: Service, case: str
) -> None:
    token = await service.token()
    peer = await connect(service, token)
    seen = len(service.security_events)
    await log_out(service, token)
    await ending(peer)
    await eventually(lambda: len(service.security_events) >= seen + 2)
    events = {e["event"]: e for e in service.security_events[seen:]}
    assert events["session_ended"]["reason"] == "logout"
    assert events["session_ended"]["sockets"] == "1"
    assert events["disconnected"]["reason"] == "token_revoked"
    assert {e["subject"] for e in events.values()} == {"alice"}
