"""Every HTTP call of the contract: statuses, bodies, headers, and what they end."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from http.cookies import Morsel, SimpleCookie
from pathlib import Path
from typing import Any

import httpx
import jwt
import pytest
import pytest_asyncio

from tests.grants import ending, enter, grant, hear, present, say
from tests.live.calls import bearer, calling, refused
from tests.running import PASSWORD, STRATEGIES, Service, running

pytestmark = pytest.mark.usefixtures("database")
on_one_loop = pytest.mark.asyncio(loop_scope="module")

GOOD = {"username": "alice", "password": PASSWORD}
NEW_PASSWORD = "staple of another horse"
CLAIMS = {"iss", "aud", "sub", "sid", "jti", "iat", "nbf", "exp", "scope"}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def service(
    database: None, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Service]:
    async with running(tmp_path_factory.mktemp("service")) as service:
        await service.add_user("alice")
        await service.add_user("bob")
        yield service


@pytest_asyncio.fixture(loop_scope="module")
async def api(service: Service) -> AsyncIterator[httpx.AsyncClient]:
    """A client without credentials; it keeps no cookie."""
    async with calling(service) as http:
        yield http


# ---------------------------------------------------------------------------- login


@on_one_loop
async def test_login_gives_two_tokens(service: Service, api: httpx.AsyncClient) -> None:
    answer = await api.post("/auth/login", json=GOOD)
    assert answer.status_code == 200
    assert answer.headers["cache-control"] == "no-store"
    assert "set-cookie" not in answer.headers
    body = answer.json()
    assert body == {
        "access_token": body["access_token"],
        "token_type": "bearer",
        "expires_in": 900,
        "refresh_token": body["refresh_token"],
    }
    assert re.fullmatch(r"rt_[A-Za-z0-9_-]{43}", body["refresh_token"])

    header = jwt.get_unverified_header(body["access_token"])
    assert header == {"alg": "HS256", "typ": "at+jwt", "kid": header["kid"]}
    claims = jwt.decode(body["access_token"], options={"verify_signature": False})
    assert set(claims) == CLAIMS
    assert (claims["sub"], claims["iss"], claims["aud"]) == (
        "alice",
        "authws",
        "authws",
    )
    assert claims["scope"] == "join:* publish:*"
    assert claims["exp"] - claims["iat"] == 900


@on_one_loop
async def test_user_names_are_one_name_however_written(api: httpx.AsyncClient) -> None:
    answer = await api.post("/auth/login", json={**GOOD, "username": "ALICE"})
    assert answer.status_code == 200


@on_one_loop
async def test_unknown_user_and_wrong_password_are_told_apart_by_nobody(
    api: httpx.AsyncClient,
) -> None:
    wrong = await api.post("/auth/login", json={**GOOD, "password": "wrong" * 4})
    unknown = await api.post("/auth/login", json={**GOOD, "username": "nobody"})
    invalid = await api.post("/auth/login", json={**GOOD, "username": "no body!"})
    for answer in (wrong, unknown, invalid):
        assert refused(answer) == (401, "credentials_invalid")
        assert answer.headers["www-authenticate"] == "Bearer"
    same = [
        [(k, v) for k, v in answer.headers.multi_items() if k != "date"]
        for answer in (wrong, unknown, invalid)
    ]
    assert same[0] == same[1] == same[2]


@on_one_loop
@pytest.mark.parametrize("path", ["/auth/login", "/auth/session"])
@pytest.mark.parametrize(
    ("body", "fields"),
    [
        ({}, ["body.password", "body.username"]),
        ({"username": "alice"}, ["body.password"]),
        ({"username": 1, "password": "canary-word"}, ["body.username"]),
        ({"username": "alice", "password": ["canary-word"]}, ["body.password"]),
        ({"username": "alice", "password": "canary-word" * 200}, ["body.password"]),
        (["canary-word"], ["body"]),
    ],
)
async def test_a_body_of_another_shape_is_refused_and_not_quoted(
    api: httpx.AsyncClient, path: str, body: Any, fields: list[str]
) -> None:
    answer = await api.post(path, json=body)
    assert answer.status_code == 422
    assert answer.json() == {"detail": "request_invalid", "fields": fields}
    assert "canary" not in answer.text


@on_one_loop
@pytest.mark.parametrize("path", ["/auth/login", "/auth/session", "/auth/refresh"])
async def test_what_a_foreign_page_can_send_logs_nobody_in(
    api: httpx.AsyncClient, path: str
) -> None:
    evil = {"origin": "https://evil.example"}
    assert refused(await api.post(path, json=GOOD, headers=evil)) == (
        403,
        "origin_forbidden",
    )
    cross = {"sec-fetch-site": "cross-site"}
    assert refused(await api.post(path, json=GOOD, headers=cross)) == (
        403,
        "origin_forbidden",
    )
    plain = await api.post(
        path,
        content=httpx.Request("POST", "http://x", json=GOOD).content,
        headers={"content-type": "text/plain"},
    )
    assert refused(plain) == (415, "json_expected")
    form = await api.post(path, data=GOOD)
    assert refused(form) == (415, "json_expected")


@on_one_loop
@pytest.mark.parametrize("path", ["/auth/login", "/auth/session", "/auth/refresh"])
async def test_a_huge_body_is_not_read(api: httpx.AsyncClient, path: str) -> None:
    answer = await api.post(path, json={**GOOD, "more": "a" * 70_000})
    assert refused(answer) == (413, "body_too_large")


async def test_failures_are_throttled_with_retry_after(tmp_path: Path) -> None:
    async with running(tmp_path, login_rate=2) as service, calling(service) as api:
        await service.add_user("alice")
        await service.add_user("bob")
        bad = {**GOOD, "password": "wrong" * 4}
        for path in ("/auth/login", "/auth/session"):
            assert (await api.post(path, json=bad)).status_code == 401
        for path in ("/auth/login", "/auth/session"):
            for body in (bad, GOOD):
                answer = await api.post(path, json=body)
                assert refused(answer) == (429, "rate_limited")
                assert 1 <= int(answer.headers["retry-after"]) <= 60
        other = {**GOOD, "username": "bob"}
        assert (await api.post("/auth/login", json=other)).status_code == 200


async def test_an_expired_token_is_no_failure(tmp_path: Path) -> None:
    async with running(tmp_path, login_rate=1) as service, calling(service) as api:
        await service.add_user("alice")
        late = (await grant(service, "query-param")).access(age=901)
        for _ in range(4):
            answer = await api.get("/auth/me", headers=bearer(late))
            assert refused(answer) == (401, "token_expired")
        assert (await api.post("/auth/login", json=GOOD)).status_code == 200


# -------------------------------------------------------------------------- refresh


@on_one_loop
async def test_refresh_rotates_within_the_session(
    service: Service, api: httpx.AsyncClient
) -> None:
    first = await service.login()
    answer = await api.post(
        "/auth/refresh", json={"refresh_token": first["refresh_token"]}
    )
    assert answer.status_code == 200
    second = answer.json()
    assert second.keys() == first.keys()
    assert second["refresh_token"] != first["refresh_token"]
    one, two = (
        jwt.decode(body["access_token"], options={"verify_signature": False})
        for body in (first, second)
    )
    assert (one["sid"], one["sub"]) == (two["sid"], two["sub"])
    assert one["jti"] != two["jti"]
    for body in (first, second):  # the older one lives on until it expires
        me = await api.get("/auth/me", headers=bearer(body["access_token"]))
        assert me.status_code == 200


@on_one_loop
async def test_reuse_ends_the_session_and_its_sockets(
    service: Service, api: httpx.AsyncClient
) -> None:
    first = await service.login()
    old = {"refresh_token": first["refresh_token"]}
    second = (await api.post("/auth/refresh", json=old)).json()
    token = second["access_token"]
    bystander = await grant(service, "query-param")
    async with (
        enter(service, "/ws/query-param", token) as one,
        enter(service, "/ws/first-message/echo", token) as two,
        enter(service, "/ws/query-param", bystander) as other,
    ):
        assert refused(await api.post("/auth/refresh", json=old)) == (
            401,
            "token_revoked",
        )
        assert await ending(one) == await ending(two) == (1008, "token_revoked")
        await say(other, type="ping")
        assert (await hear(other))["type"] == "pong"
    assert refused(await api.get("/auth/me", headers=bearer(token))) == (
        401,
        "token_revoked",
    )
    newest = {"refresh_token": second["refresh_token"]}
    assert refused(await api.post("/auth/refresh", json=newest)) == (
        401,
        "token_revoked",
    )
    refused_door = await present(service, "/ws/query-param", token)
    assert refused_door == (1008, "token_revoked")


@on_one_loop
async def test_of_many_refreshes_at_once_one_succeeds(
    service: Service, api: httpx.AsyncClient
) -> None:
    body = {"refresh_token": (await service.login())["refresh_token"]}
    answers = await asyncio.gather(
        *(api.post("/auth/refresh", json=body) for _ in range(8))
    )
    codes = sorted(answer.status_code for answer in answers)
    # the one that won may find its session ended by the ones that lost
    assert codes in ([200] + [401] * 7, [401] * 8)
    for answer in answers:
        if answer.status_code == 401:
            assert refused(answer) == (401, "token_revoked")


@on_one_loop
@pytest.mark.parametrize("token", ["rt_" + "a" * 43, "garbage", "é", "eyJ.a.b"])
async def test_no_refresh_token_of_ours_is_invalid(
    api: httpx.AsyncClient, token: str
) -> None:
    answer = await api.post("/auth/refresh", json={"refresh_token": token})
    assert refused(answer) == (401, "token_invalid")


@on_one_loop
async def test_an_access_token_refreshes_nothing_and_the_reverse(
    service: Service, api: httpx.AsyncClient
) -> None:
    body = await service.login()
    swapped = {"refresh_token": body["access_token"]}
    answer = await api.post("/auth/refresh", json=swapped)
    assert answer.status_code in (401, 422)
    me = await api.get("/auth/me", headers=bearer(body["refresh_token"]))
    assert refused(me) == (401, "token_invalid")


async def test_an_old_refresh_token_has_expired(tmp_path: Path) -> None:
    async with running(tmp_path, refresh_ttl=60) as service, calling(service) as api:
        await service.add_user("alice")
        body = {"refresh_token": (await service.login())["refresh_token"]}
        service.clock.offset = 61
        answer = await api.post("/auth/refresh", json=body)
        assert refused(answer) == (401, "token_expired")


# -------------------------------------------------------------------------- session


def the_cookie(answer: httpx.Response) -> Morsel[str]:
    (header,) = answer.headers.get_list("set-cookie")
    (morsel,) = SimpleCookie(header).values()
    return morsel


@on_one_loop
async def test_session_login_sets_a_cookie_of_the_contract(
    service: Service, api: httpx.AsyncClient
) -> None:
    answer = await api.post("/auth/session", json=GOOD)
    assert answer.status_code == 200
    body = answer.json()
    assert body["subject"] == "alice"
    assert body["scopes"] == ["join:*", "publish:*"]
    cookie = the_cookie(answer)
    assert cookie.key == "authws"
    assert (cookie["path"], cookie["samesite"].lower()) == ("/", "strict")
    assert cookie["httponly"]
    assert not cookie["secure"]
    assert cookie["domain"] == ""
    assert cookie.value not in answer.text
    assert body["session"] not in cookie.value, "the id at rest is a hash"


async def test_over_https_the_cookie_is_host_bound_and_secure(tmp_path: Path) -> None:
    public = "https://app.example"
    settings = {"public_origin": public, "allowed_hosts": ("127.0.0.1",)}
    async with running(tmp_path, **settings) as service:
        await service.add_user("alice")
        async with calling(service, headers={"origin": public}) as api:
            answer = await api.post("/auth/session", json=GOOD)
            cookie = the_cookie(answer)
            assert cookie.key == "__Host-authws"
            assert cookie["secure"]
            assert cookie["httponly"]
            assert cookie["path"] == "/"
            assert cookie["domain"] == ""
            assert "strict-transport-security" in answer.headers
            sent = {"cookie": f"__Host-authws={cookie.value}"}
            assert (await api.get("/auth/me", headers=sent)).status_code == 200
            plain = {"cookie": f"authws={cookie.value}"}
            me = await api.get("/auth/me", headers=plain)
            assert refused(me) == (401, "auth_missing")


@on_one_loop
async def test_every_login_has_a_new_id_and_ends_the_one_it_replaces(
    service: Service, api: httpx.AsyncClient
) -> None:
    first = the_cookie(await api.post("/auth/session", json=GOOD)).value
    api.cookies.clear()
    planted = {"cookie": f"authws={first}"}
    answer = await api.post("/auth/session", json=GOOD, headers=planted)
    assert the_cookie(answer).value != first
    api.cookies.clear()
    me = await api.get("/auth/me", headers=planted)
    assert refused(me) == (401, "session_revoked")


@on_one_loop
async def test_session_logout_is_real_and_twice_no_error(service: Service) -> None:
    one = await grant(service, "session-cookie")
    cookie = {"cookie": f"authws={one.cookie}"}
    ticket = one.ticket()
    async with (
        calling(service, headers=cookie) as api,
        enter(service, "/ws/session-cookie", one) as rooms,
        enter(service, "/ws/session-cookie/echo", one) as echo,
        enter(service, "/ws/query-param", one.ticket()) as by_ticket,
    ):
        answer = await api.delete("/auth/session")
        assert (answer.status_code, answer.content) == (204, b"")
        deleted = the_cookie(answer)
        assert (deleted.key, deleted.value, deleted["max-age"]) == ("authws", "", "0")
        assert (deleted["path"], deleted["httponly"]) == ("/", True)
        assert answer.headers["clear-site-data"] == '"cookies"'
        assert await ending(rooms) == await ending(echo) == (1008, "session_revoked")
        assert await ending(by_ticket) == (1008, "token_revoked")
        replayed = await api.get("/auth/me", headers=cookie)
        assert refused(replayed) == (401, "session_revoked")
        again = await api.delete("/auth/session", headers=cookie)
        assert again.status_code == 204
    assert await present(service, "/ws/first-message", ticket) == (
        1008,
        "token_revoked",
    )
    async with calling(service) as api:
        assert (await api.delete("/auth/session")).status_code == 204


async def test_logout_at_the_time_limit_ends_what_a_ticket_left_open(
    tmp_path: Path,
) -> None:
    async with running(tmp_path, recheck_interval=300) as service:
        await service.add_user("alice")
        one = await grant(service, "session-cookie", idle_ttl=600)
        cookie = {"cookie": f"authws={one.cookie}"}
        async with enter(service, "/ws/query-param", one.ticket(ttl=3600)) as peer:
            service.clock.offset = 601
            async with calling(service, headers=cookie) as api:
                me = await api.get("/auth/me")
                assert refused(me) == (401, "session_expired")
                assert (await api.delete("/auth/session")).status_code == 204
            assert await ending(peer) == (1008, "token_revoked")


@on_one_loop
async def test_what_changes_something_by_cookie_needs_an_allowed_origin(
    service: Service,
) -> None:
    one = await grant(service, "session-cookie")
    calls: list[tuple[str, str, Any]] = [
        ("DELETE", "/auth/session", None),
        ("DELETE", f"/auth/sessions/{one.session}", None),
        ("POST", "/auth/ticket", None),
        ("POST", "/auth/password", {"new_password": NEW_PASSWORD}),
        ("POST", "/admin/users/alice/disconnect", None),
        ("DELETE", f"/admin/sessions/{one.session}", None),
    ]
    spoiled = [
        {},
        {"origin": "https://evil.example"},
        {"origin": "null"},
        {"origin": service.origin, "sec-fetch-site": "cross-site"},
    ]
    async with httpx.AsyncClient(base_url=service.origin) as http:
        for method, path, body in calls:
            for headers in spoiled:
                sent = {"cookie": f"authws={one.cookie}", **headers}
                answer = await http.request(method, path, json=body, headers=sent)
                assert refused(answer) == (403, "origin_forbidden"), (path, headers)
        cookie = {"cookie": f"authws={one.cookie}"}
        assert (await http.get("/auth/me", headers=cookie)).status_code == 200


# --------------------------------------------------------------------------- logout


@on_one_loop
async def test_logout_ends_everything_of_the_session_and_twice_is_no_error(
    service: Service, api: httpx.AsyncClient
) -> None:
    login = await service.login()
    token = login["access_token"]
    ticket = await service.ticket(token)
    async with (
        enter(service, "/ws/query-param", token) as one,
        enter(service, "/ws/first-message", token) as two,
    ):
        for _ in range(2):
            answer = await api.post("/auth/logout", headers=bearer(token))
            assert (answer.status_code, answer.content) == (204, b"")
        assert await ending(one) == await ending(two) == (1008, "token_revoked")
    me = await api.get("/auth/me", headers=bearer(token))
    assert refused(me) == (401, "token_revoked")
    assert 'error="invalid_token"' in me.headers["www-authenticate"]
    assert await present(service, "/ws/query-param", ticket) == (1008, "token_revoked")
    body = {"refresh_token": login["refresh_token"]}
    refresh = await api.post("/auth/refresh", json=body)
    assert refused(refresh) == (401, "token_revoked")


@on_one_loop
async def test_an_expired_token_still_logs_out(
    service: Service, api: httpx.AsyncClient
) -> None:
    one = await grant(service, "query-param")
    late = one.access(age=901)
    assert (await api.post("/auth/logout", headers=bearer(late))).status_code == 204
    me = await api.get("/auth/me", headers=bearer(one.access()))
    assert refused(me) == (401, "token_revoked")


# ------------------------------------------------------------ who calls, in what form

PROTECTED = [
    ("POST", "/auth/logout"),
    ("POST", "/auth/ticket"),
    ("GET", "/auth/me"),
    ("GET", "/auth/sessions"),
    ("DELETE", "/auth/sessions/abc"),
    ("POST", "/auth/password"),
    ("GET", "/admin/connections"),
    ("POST", "/admin/users/alice/disconnect"),
    ("DELETE", "/admin/sessions/abc"),
]


@on_one_loop
@pytest.mark.parametrize(("method", "path"), PROTECTED)
@pytest.mark.parametrize(
    ("authorization", "slug"),
    [
        (None, "auth_missing"),
        ("Bearer", "auth_missing"),
        ("Basic YTpi", "auth_malformed"),
        ("Bearer garbage", "token_invalid"),
        ("Bearer a.b.c", "token_invalid"),
    ],
)
async def test_without_a_good_token_nothing_is_done(
    api: httpx.AsyncClient,
    method: str,
    path: str,
    authorization: str | None,
    slug: str,
) -> None:
    headers = {"authorization": authorization} if authorization else {}
    body = {"new_password": NEW_PASSWORD} if path == "/auth/password" else None
    answer = await api.request(method, path, headers=headers, json=body)
    assert refused(answer) == (401, slug)
    challenge = "Bearer" if slug == "auth_missing" else 'Bearer error="invalid_token"'
    assert answer.headers["www-authenticate"] == challenge


@on_one_loop
@pytest.mark.parametrize(("method", "path"), PROTECTED)
async def test_a_ticket_is_no_access_token(
    service: Service, api: httpx.AsyncClient, method: str, path: str
) -> None:
    ticket = (await grant(service, "query-param")).ticket()
    body = {"new_password": NEW_PASSWORD} if path == "/auth/password" else None
    answer = await api.request(method, path, headers=bearer(ticket), json=body)
    assert refused(answer) == (401, "token_invalid")


# --------------------------------------------------------------------------- ticket


@on_one_loop
@pytest.mark.parametrize("by", ["bearer", "cookie"])
async def test_a_ticket_opens_one_connection(
    service: Service, api: httpx.AsyncClient, by: str
) -> None:
    if by == "bearer":
        headers = bearer(await service.token())
    else:
        one = await grant(service, "session-cookie")
        headers = {"cookie": f"authws={one.cookie}"}
    answer = await api.post("/auth/ticket", headers=headers)
    assert answer.status_code == 200
    body = answer.json()
    assert body.keys() == {"ticket", "expires_in"}
    assert 29 <= body["expires_in"] <= 30
    ticket = body["ticket"]
    assert jwt.get_unverified_header(ticket)["typ"] == "ticket+jwt"
    claims = jwt.decode(ticket, options={"verify_signature": False})
    assert (claims["aud"], claims["sub"]) == ("authws/ws", "alice")
    async with enter(service, "/ws/query-param", ticket):
        pass
    assert await present(service, "/ws/first-message", ticket) == (1008, "ticket_used")


async def test_a_ticket_lives_for_30_seconds_and_its_connection_longer(
    tmp_path: Path,
) -> None:
    async with running(tmp_path) as service:
        await service.add_user("alice")
        token = await service.token()
        one, two = await service.ticket(token), await service.ticket(token)
        async with enter(service, "/ws/query-param", one) as peer:
            service.clock.offset = 31
            late = await present(service, "/ws/query-param", two)
            assert late == (1008, "token_expired")
            await say(peer, type="ping")
            assert (await hear(peer))["type"] == "pong"


# ------------------------------------------------------------------- me, and sessions


@on_one_loop
@pytest.mark.parametrize("by", ["bearer", "cookie"])
async def test_me_says_who_and_until_when(
    service: Service, api: httpx.AsyncClient, by: str
) -> None:
    strategy = "query-param" if by == "bearer" else "session-cookie"
    one = await grant(service, strategy)
    headers = (
        bearer(one.access()) if by == "bearer" else {"cookie": f"authws={one.cookie}"}
    )
    answer = await api.get("/auth/me", headers=headers)
    assert answer.status_code == 200
    body = answer.json()
    lives = 900 if by == "bearer" else 1800
    assert body == {
        "subject": "alice",
        "scopes": ["join:*", "publish:*"],
        "session": one.session,
        "expires_at": pytest.approx(service.clock.now() + lives, abs=10),
    }


async def test_sessions_are_listed_and_ended_one_by_one(tmp_path: Path) -> None:
    async with running(tmp_path) as service:
        await service.add_user("alice")
        await service.add_user("bob")
        agents = {"user-agent": "laptop"}
        async with calling(service, headers=agents) as api:
            mine = (await api.post("/auth/login", json=GOOD)).json()["access_token"]
            cookie = the_cookie(await api.post("/auth/session", json=GOOD)).value
            api.cookies.clear()
            theirs = await service.token("bob")
            listed = (await api.get("/auth/sessions", headers=bearer(mine))).json()
            assert {item["kind"] for item in listed} == {"token", "cookie"}
            assert [item["current"] for item in listed].count(True) == 1
            for item in listed:
                assert item["user_agent"] == "laptop"
                assert item["address"] == "127.0.0.1"
                assert item["created_at"] <= item["last_seen_at"] < item["expires_at"]
            other = next(item["id"] for item in listed if not item["current"])

            await assert_not_yours(api, other, theirs)
            async with enter(service, "/ws/session-cookie", cookie) as peer:
                path = f"/auth/sessions/{other}"
                answer = await api.delete(path, headers=bearer(mine))
                assert (answer.status_code, answer.content) == (204, b"")
                assert await ending(peer) == (1008, "session_revoked")
            left = (await api.get("/auth/sessions", headers=bearer(mine))).json()
            assert [item["current"] for item in left] == [True]
            (own,) = left
            path = f"/auth/sessions/{own['id']}"
            assert (await api.delete(path, headers=bearer(mine))).status_code == 204
            gone = await api.get("/auth/sessions", headers=bearer(mine))
            assert refused(gone) == (401, "token_revoked")


async def assert_not_yours(api: httpx.AsyncClient, session: str, token: str) -> None:
    """Another's session looks like none at all."""
    for id in (session, "a" * 43, "%00", "é", "a" * 300):
        answer = await api.delete(f"/auth/sessions/{id}", headers=bearer(token))
        assert refused(answer) == (404, "session_unknown")


# ------------------------------------------------------------------------- password


async def test_a_new_password_ends_the_other_sessions(tmp_path: Path) -> None:
    async with running(tmp_path) as service, calling(service) as api:
        await service.add_user("alice")
        mine, other = await service.token(), await service.token()
        cookie = await grant(service, "session-cookie")
        async with (
            enter(service, "/ws/query-param", mine) as here,
            enter(service, "/ws/first-message", other) as there,
            enter(service, "/ws/session-cookie", cookie) as page,
        ):
            change = {"current_password": PASSWORD, "new_password": NEW_PASSWORD}
            answer = await api.post("/auth/password", json=change, headers=bearer(mine))
            assert (answer.status_code, answer.content) == (204, b"")
            assert await ending(there) == (1008, "token_revoked")
            assert await ending(page) == (1008, "session_revoked")
            await say(here, type="ping")
            assert (await hear(here))["type"] == "pong"
        assert (await api.get("/auth/me", headers=bearer(mine))).status_code == 200
        me = await api.get("/auth/me", headers=bearer(other))
        assert refused(me) == (401, "token_revoked")
        old = await api.post("/auth/login", json=GOOD)
        assert refused(old) == (401, "credentials_invalid")
        new = {**GOOD, "password": NEW_PASSWORD}
        assert (await api.post("/auth/login", json=new)).status_code == 200


@on_one_loop
@pytest.mark.parametrize(
    ("change", "status", "slug"),
    [
        ({"current_password": "wrong" * 4}, 403, "forbidden"),
        ({"current_password": None}, 422, "request_invalid"),
        ({"new_password": "short"}, 422, "password_too_short"),
        ({"new_password": "123456789012"}, 422, "password_common"),
        ({"new_password": "alicealicealice"}, 422, "password_personal"),
        ({"new_password": "a" * 129}, 422, "password_too_long"),
        ({"new_password": ""}, 422, "request_invalid"),
    ],
)
async def test_a_password_that_may_not_be_is_refused_and_nothing_changes(
    service: Service,
    api: httpx.AsyncClient,
    change: dict[str, Any],
    status: int,
    slug: str,
) -> None:
    token = (await grant(service, "query-param")).access()
    good = {"current_password": PASSWORD, "new_password": NEW_PASSWORD}
    answer = await api.post(
        "/auth/password", json={**good, **change}, headers=bearer(token)
    )
    body = answer.json()
    assert (answer.status_code, body["detail"]) == (status, slug)
    if slug.startswith("password_"):
        assert body["message"].endswith(".")
    assert (await api.post("/auth/login", json=GOOD)).status_code == 200


# ----------------------------------------------------------------------------- jwks


@on_one_loop
async def test_a_shared_secret_is_not_published(api: httpx.AsyncClient) -> None:
    answer = await api.get("/.well-known/jwks.json")
    assert (answer.status_code, answer.json()) == (200, {"keys": []})


@pytest.mark.parametrize(
    ("algorithm", "members"),
    [("EdDSA", {"kty", "crv", "x"}), ("ES256", {"kty", "crv", "x", "y"})],
)
async def test_anybody_can_verify_our_tokens_with_the_published_keys(
    tmp_path: Path, algorithm: str, members: set[str]
) -> None:
    async with (
        running(tmp_path, signing_algorithm=algorithm) as service,
        calling(service) as api,
    ):
        await service.add_user("alice")
        answer = await api.get("/.well-known/jwks.json")
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("application/json")
        assert "no-store" not in answer.headers.get("cache-control", "")
        (key,) = answer.json()["keys"]
        assert set(key) - {"kid", "alg", "use"} == members
        assert (key["alg"], key["use"]) == (algorithm, "sig")

        token = await service.token()
        assert jwt.get_unverified_header(token)["kid"] == key["kid"]
        published = jwt.PyJWKSet.from_dict(answer.json())[key["kid"]]
        claims = jwt.decode(token, published, [algorithm], audience="authws")
        assert claims["sub"] == "alice"
        ticket = await service.ticket(token)
        jwt.decode(ticket, published, [algorithm], audience="authws/ws")
        for strategy in STRATEGIES:
            async with await service.connect(strategy):
                pass
        async with enter(service, "/ws/query-param", ticket):
            pass


# ----------------------------------------------------------------------- operations


@on_one_loop
async def test_healthz(api: httpx.AsyncClient) -> None:
    answer = await api.get("/healthz")
    assert (answer.status_code, answer.json()) == (200, {"status": "ok"})


@on_one_loop
async def test_readyz_tells_what_is_out_of_reach(
    service: Service, api: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    ready = await api.get("/readyz")
    assert (ready.status_code, ready.json()) == (
        200,
        {"status": "ready", "database": "ok", "broker": "ok"},
    )

    async def away() -> bool:
        return False

    monkeypatch.setattr(service.house.broker, "ping", away)
    answer = await api.get("/readyz")
    assert (answer.status_code, answer.json()) == (
        503,
        {"status": "unavailable", "database": "ok", "broker": "unreachable"},
    )
    assert (await api.get("/healthz")).status_code == 200


@on_one_loop
async def test_readyz_says_no_while_nobody_is_let_in(
    service: Service, api: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service.house.door, "is_blind", True)
    answer = await api.get("/readyz")
    assert (answer.status_code, answer.json()) == (
        503,
        {"status": "unavailable", "database": "ok", "broker": "ok"},
    )


async def test_readyz_with_the_database_gone(tmp_path: Path) -> None:
    file = tmp_path / "authws.db"
    settings = {"database_url": f"sqlite:///{file}"}
    async with running(tmp_path, **settings) as service, calling(service) as api:
        await service.add_user("alice")
        await service.call(service.house.database.dispose())
        file.rename(tmp_path / "gone")
        file.mkdir()
        answer = await api.get("/readyz")
        assert (answer.status_code, answer.json()["database"]) == (503, "unreachable")
        login = await api.post("/auth/login", json=GOOD)
        assert refused(login) == (503, "unavailable")
        assert int(login.headers["retry-after"]) >= 1


async def test_metrics_count_without_naming_anybody(tmp_path: Path) -> None:
    async with running(tmp_path) as service, calling(service) as api:
        await service.add_user("alice")
        async with enter(
            service, "/ws/first-message", await grant(service, "first-message")
        ) as peer:
            await say(peer, type="join", room="secret-room")
            await hear(peer)
            await present(service, "/ws/query-param", "abc")
            answer = await api.get("/metrics")
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
        lines = answer.text.splitlines()
        assert 'authws_connections{strategy="first_message"} 1.0' in lines
        assert 'authws_connections{strategy="query_param"} 0.0' in lines
        assert "authws_rooms 1.0" in lines
        count = 'authws_events_total{event="refused",reason="token_invalid"} 1.0'
        assert count in lines
        for name in ("alice", "127.0.0.1", "secret-room"):
            assert name not in answer.text


async def test_metrics_are_not_open_to_strangers(tmp_path: Path) -> None:
    settings = {"behind_proxy": True, "trusted_proxies": ("127.0.0.1",)}
    async with running(tmp_path, **settings) as service, calling(service) as api:
        await service.add_user("alice")
        root = await service.add_user("root", scopes=("admin",))
        assert refused(await api.get("/metrics")) == (403, "forbidden")
        alice = (await grant(service, "query-param")).access()
        answer = await api.get("/metrics", headers=bearer(alice))
        assert refused(answer) == (403, "forbidden")
        admin = (await grant(service, "query-param", root)).access(scopes=["admin"])
        assert (await api.get("/metrics", headers=bearer(admin))).status_code == 200


# ------------------------------------------------------------------------ all of them


@on_one_loop
async def test_every_answer_carries_the_headers_of_a_careful_server(
    api: httpx.AsyncClient,
) -> None:
    answers = [
        await api.get("/healthz"),
        await api.post("/auth/login", json={}),
        await api.get("/auth/me"),
        await api.get("/nowhere"),
    ]
    for answer in answers:
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["referrer-policy"] == "no-referrer"
        assert answer.headers["x-frame-options"] == "DENY"
        assert answer.headers["cache-control"] == "no-store"
        assert "default-src 'none'" in answer.headers["content-security-policy"]
        assert "server" not in answer.headers


@on_one_loop
async def test_what_is_not_there_is_told_in_the_same_shape(
    service: Service, api: httpx.AsyncClient
) -> None:
    assert refused(await api.get("/nowhere")) == (404, "not_found")
    assert refused(await api.get("/auth/login")) == (405, "method_not_allowed")
    elsewhere = await api.get("/healthz", headers={"host": "evil.example"})
    assert refused(elsewhere) == (400, "host_unknown")


# -------------------------------------------------------------------------- OpenAPI


@pytest.fixture
def document(service: Service) -> dict[str, Any]:
    return service.app.openapi()


CONTRACT = {
    ("post", "/auth/login"),
    ("post", "/auth/refresh"),
    ("post", "/auth/session"),
    ("delete", "/auth/session"),
    ("post", "/auth/logout"),
    ("post", "/auth/ticket"),
    ("get", "/auth/me"),
    ("get", "/auth/sessions"),
    ("delete", "/auth/sessions/{session_id}"),
    ("post", "/auth/password"),
    ("get", "/admin/connections"),
    ("post", "/admin/users/{subject}/disconnect"),
    ("delete", "/admin/sessions/{session_id}"),
    ("get", "/.well-known/jwks.json"),
    ("get", "/healthz"),
    ("get", "/readyz"),
}


def operations(document: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield method, path, operation


@contextmanager
def of(method: str, path: str) -> Iterator[None]:
    try:
        yield
    except AssertionError as error:
        error.add_note(f"of {method.upper()} {path}")
        raise


@on_one_loop
async def test_openapi_is_served_and_holds_the_contract(
    service: Service, api: httpx.AsyncClient
) -> None:
    document = (await api.get("/openapi.json")).json()
    assert document == service.app.openapi()
    assert document["info"]["title"] == "authws"
    assert {(method, path) for method, path, _ in operations(document)} >= CONTRACT
    assert (await api.get("/docs")).status_code == 200


@on_one_loop
async def test_openapi_has_each_scheme_where_it_applies(
    document: dict[str, Any],
) -> None:
    (name, scheme), (cookie, _) = document["components"]["securitySchemes"].items()
    assert (scheme["type"], scheme["scheme"]) == ("http", "bearer")
    assert scheme["description"]
    by_token = {("post", "/auth/logout")}
    by_cookie = {("delete", "/auth/session")}
    protected = {
        (
            method.lower(),
            path.replace("/abc", "/{session_id}").replace("/alice/", "/{subject}/"),
        )
        for method, path in PROTECTED
    }
    for method, path, operation in operations(document):
        with of(method, path):
            call = (method, path)
            wanted: list[dict[str, list[str]]] = []
            if call in protected - by_cookie:
                wanted.append({name: []})
            if call in (protected | by_cookie) - by_token:
                wanted.append({cookie: []})
            assert operation.get("security", []) == wanted


@on_one_loop
async def test_openapi_shows_an_example_of_every_body(document: dict[str, Any]) -> None:
    schemas = document["components"]["schemas"]

    def has_example(content: dict[str, Any]) -> bool:
        schema = content["schema"]
        schema = schema.get("items", schema)
        shape = schemas[schema["$ref"].rpartition("/")[2]]
        return bool(
            content.get("example") or content.get("examples") or shape.get("examples")
        )

    assert "HTTPValidationError" not in schemas, "no route answers that"
    for method, path, operation in operations(document):
        with of(method, path):
            assert operation["summary"]
            assert operation["description"]
            if "requestBody" in operation:
                assert has_example(
                    operation["requestBody"]["content"]["application/json"]
                )
            for status, answer in operation["responses"].items():
                assert answer["description"], status
                for content in answer.get("content", {}).values():
                    assert has_example(content), status


@on_one_loop
async def test_the_examples_of_openapi_are_of_the_shape_they_show(
    document: dict[str, Any],
) -> None:
    for name, schema in document["components"]["schemas"].items():
        for example in schema.get("examples", []):
            assert example.keys() <= schema["properties"].keys(), name
            assert example.keys() >= set(schema.get("required", [])), name


async def test_documentation_can_be_switched_off(tmp_path: Path) -> None:
    async with running(tmp_path, docs=False) as service, service.http() as http:
        for path in ("/docs", "/openapi.json", "/redoc"):
            assert refused(await http.get(path)) == (404, "not_found")
