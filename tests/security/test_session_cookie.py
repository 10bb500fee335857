"""Session cookie: forgery, fixation, replay, cross-site requests.

The cookie is an opaque, signed id; what it is worth is a row on the server.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import AsyncIterator
from http.cookies import SimpleCookie
from typing import Any

import httpx
import pytest
import pytest_asyncio
from itsdangerous import Signer, TimestampSigner

from authws.decisions.keys import derive_key
from authws.decisions.session_cookies import PURPOSE
from tests.grants import grant
from tests.running import ENDPOINTS, PASSWORD, Service, running
from tests.security.peers import (
    Answer,
    Visitor,
    bearer,
    controlled,
    ending,
    hear,
    knock,
    say,
    visitor,
)
from tests.wire import handshake, request, wire

pytestmark = pytest.mark.asyncio(loop_scope="module")

ENDPOINT = "/ws/session-cookie"
COOKIE_ENDPOINTS = (ENDPOINT, f"{ENDPOINT}/echo")
TOKEN_ENDPOINTS = tuple(path for path in ENDPOINTS if path not in COOKIE_ENDPOINTS)
ABSOLUTE = 3600.0
IDLE = 600.0


@pytest_asyncio.fixture(
    scope="module", loop_scope="module", params=["after_accept", "before_accept"]
)
async def service(
    tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> AsyncIterator[Service]:
    async with running(
        tmp_path_factory.mktemp("cookies"),
        refuse=request.param,
        session_idle_ttl=IDLE,
        session_absolute_ttl=ABSOLUTE,
        recheck_interval=300,  # the clock is moved here, and witnesses look on
    ) as service:
        await service.add_user("alice")
        await service.add_user("bob")
        async with controlled(service):
            yield service
            service.clock.offset = 0.0


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def alice(service: Service) -> Visitor:
    return await visitor(service, "alice")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def bob(service: Service) -> Visitor:
    return await visitor(service, "bob")


async def bring(service: Service, cookie: str | None, path: str = ENDPOINT) -> Answer:
    """Make a handshake with a Cookie header, from a page of our own."""
    lines = [f"Origin: {service.origin}"]
    if cookie is not None:
        lines.append(f"Cookie: {cookie}")
    return await knock(service, path, *lines)


def is_refused(service: Service, answer: Answer, *slugs: str) -> bool:
    """Tell whether a handshake was refused as the setting says, for that reason."""
    assert "set-cookie" not in answer.headers
    assert not any("auth_ok" in message for message in answer.heard)
    if service.house.settings.refuse == "before_accept":
        return answer.status == 403
    return answer.status == 101 and answer.close in [(1008, slug) for slug in slugs]


def value_of(cookie: str) -> str:
    return cookie.partition("=")[2]


def secret_of(service: Service) -> bytes:
    """The secret that an attacker does not have, to prove what it is used for."""
    path = service.house.settings.data_dir / "secrets.json"
    return str(json.loads(path.read_text())["secret_keys"][-1]).encode()


# -------------------------------------------------------------------- absent, foreign


NO_SESSION = {
    "COO-01": (None, "auth_missing"),
    "COO-01-empty-header": ("", "auth_missing"),
    "COO-01-empty-value": ("authws=", "auth_missing"),
    "COO-01-other-name": ("session={value}", "auth_missing"),
    "COO-01-longer-name": ("authws2={value}", "auth_missing"),
    "COO-01-case": ("Authws={value}", "auth_missing"),
    "COO-08-prefix": ("__Host-authws={value}", "auth_missing"),
    "COO-08-lower-case-prefix": ("__host-authws={value}", "auth_missing"),
    "COO-02-null": ("authws=null", "session_invalid"),
    "COO-02-json": ('authws={{"user":"alice"}}', "session_invalid"),
    "COO-02-unsigned": ("authws={id}", "session_invalid"),
    "COO-02-empty-signature": ("authws={id}.", "session_invalid"),
    "COO-02-quoted": ('authws="{value}"', "session_invalid"),
    "COO-02-padded": ("authws={value}=", "session_invalid"),
    "COO-02-twice-signed": ("authws={value}.{signature}", "session_invalid"),
    "COO-02-two-cookies": ("authws={value}; authws={value}", "auth_malformed"),
    "COO-02-good-then-bad": ("authws={value}; authws=x", "auth_malformed"),
}


@pytest.mark.parametrize("path", COOKIE_ENDPOINTS)
@pytest.mark.parametrize(("cookie", "slug"), NO_SESSION.values(), ids=NO_SESSION.keys())
async def test_what_is_not_our_cookie_opens_nothing(
    service: Service, alice: Visitor, path: str, cookie: str | None, slug: str
) -> None:
    value = value_of(alice.cookie)
    id, _, signature = value.partition(".")
    if cookie is not None:
        cookie = cookie.format(value=value, id=id, signature=signature)
    assert is_refused(service, await bring(service, cookie, path), slug)


@pytest.mark.parametrize("case", ["COO-02-every-byte"])
async def test_changing_any_byte_makes_it_invalid(
    service: Service, alice: Visitor, case: str
) -> None:
    name, _, value = alice.cookie.partition("=")
    for position in (*range(0, len(value), 7), len(value) - 1):
        other = "A" if value[position] != "A" else "E"
        spoiled = f"{value[:position]}{other}{value[position + 1 :]}"
        answer = await bring(service, f"{name}={spoiled}")
        assert is_refused(service, answer, "session_invalid"), position


def forgeries(secret: bytes, id: str) -> dict[str, bytes]:
    """Sign a live session's id with the right secret, in every way but ours."""
    key = derive_key(secret, PURPOSE)
    ours: dict[str, Any] = {"key_derivation": "hmac", "digest_method": hashlib.sha256}
    other = derive_key(secret, "authws token HS256")
    return {
        "other-salt": Signer(key, salt="other", **ours).sign(id),
        "default-salt": Signer(key, **ours).sign(id),
        "starlette-salt": Signer(secret, salt="cookie-session", **ours).sign(id),
        "raw-secret": Signer(secret, salt=PURPOSE, **ours).sign(id),
        "token-key": Signer(other, salt=PURPOSE, **ours).sign(id),
        "sha-1": Signer(key, salt=PURPOSE, key_derivation="hmac").sign(id),
        "default-signer": Signer(secret).sign(id),
        "json": TimestampSigner(key, salt=PURPOSE, **ours).sign(
            base64.b64encode(b'{"user": "alice"}')
        ),
        "timestamp": TimestampSigner(key, salt=PURPOSE, **ours).sign(id),
    }


@pytest.mark.parametrize("way", forgeries(b"x" * 32, "id"), ids=lambda w: f"COO-03-{w}")
async def test_signature_of_another_purpose_does_not_hold(
    service: Service, alice: Visitor, way: str
) -> None:
    id = value_of(alice.cookie).partition(".")[0]
    forged = forgeries(secret_of(service), id)[way].decode()
    answer = await bring(service, f"authws={forged}")
    assert is_refused(service, answer, "session_invalid")


@pytest.mark.parametrize("case", ["COO-03-well-signed-unknown-id"])
async def test_a_good_signature_on_an_id_without_session_opens_nothing(
    service: Service, case: str
) -> None:
    cookies = service.house.cookies
    answer = await bring(service, f"authws={cookies.sign(cookies.new())}")
    assert is_refused(service, answer, "session_invalid")


@pytest.mark.parametrize("case", ["COO-03-token-session"])
async def test_the_id_of_a_token_session_is_no_cookie(
    service: Service, alice: Visitor, case: str
) -> None:
    claims = json.loads(base64.urlsafe_b64decode(alice.token.split(".")[1] + "=="))
    for value in (claims["sid"], alice.token):
        answer = await bring(service, f"authws={value}")
        assert is_refused(service, answer, "session_invalid", "auth_malformed")


# ------------------------------------------------------------------------------- time


AGES = {
    "COO-04-idle": (IDLE + 1, False),
    "COO-04-absolute": (ABSOLUTE + 1, True),
}


@pytest.mark.parametrize(("age", "used"), AGES.values(), ids=AGES.keys())
async def test_older_than_its_limit_it_is_expired(
    service: Service, age: float, used: bool
) -> None:
    cookie = await service.cookie("alice")
    try:
        if used:  # used all along: then only the absolute limit can end it
            for moment in range(0, int(ABSOLUTE), int(IDLE / 2)):
                service.clock.offset = moment
                assert (await bring(service, cookie)).is_admitted
        service.clock.offset = age
        answer = await bring(service, cookie)
    finally:
        service.clock.offset = 0.0
    assert is_refused(service, answer, "session_expired")


@pytest.mark.parametrize("case", ["COO-04-timestamped"])
async def test_a_timestamp_in_the_cookie_decides_nothing(
    service: Service, alice: Visitor, case: str
) -> None:
    id = value_of(alice.cookie).partition(".")[0]
    key = derive_key(secret_of(service), PURPOSE)

    class Future(TimestampSigner):
        def get_timestamp(self) -> int:
            return super().get_timestamp() + 3600

    forged = Future(
        key, salt=PURPOSE, key_derivation="hmac", digest_method=hashlib.sha256
    ).sign(id)
    answer = await bring(service, f"authws={forged.decode()}")
    assert is_refused(service, answer, "session_invalid")


# ------------------------------------------------------------ fixation, ids, attributes


@pytest.mark.parametrize("case", ["COO-05"])
async def test_a_login_never_takes_over_the_id_it_is_given(
    service: Service, case: str
) -> None:
    planted = await service.cookie("bob")  # the attacker's own, in the victim's browser
    async with service.http(headers={"cookie": planted}) as http:
        answer = await http.post(
            "/auth/session", json={"username": "alice", "password": PASSWORD}
        )
    fresh = SimpleCookie(answer.headers["set-cookie"])["authws"].value
    assert fresh != value_of(planted)
    async with service.http(headers={"cookie": f"authws={fresh}"}) as http:
        assert (await http.get("/auth/me")).json()["subject"] == "alice"
    assert is_refused(service, await bring(service, planted), "session_revoked")


@pytest.mark.parametrize("case", ["COO-05-failed-login"])
async def test_a_failed_login_leaves_the_session_alone(
    service: Service, alice: Visitor, case: str
) -> None:
    async with service.http(headers={"cookie": alice.cookie}) as http:
        answer = await http.post(
            "/auth/session", json={"username": "alice", "password": "not hers at all"}
        )
    assert answer.status_code == 401
    assert "set-cookie" not in answer.headers
    assert (await bring(service, alice.cookie)).is_admitted


@pytest.mark.parametrize("case", ["COO-05-same-user"])
async def test_logging_in_again_ends_the_session_that_the_browser_held(
    service: Service, case: str
) -> None:
    old = await service.cookie("alice")
    async with service.http(headers={"cookie": old}) as http:
        answer = await http.post(
            "/auth/session", json={"username": "alice", "password": PASSWORD}
        )
    assert answer.status_code == 200
    assert is_refused(service, await bring(service, old), "session_revoked")


@pytest.mark.parametrize("case", ["COO-06-loopback"])
async def test_on_loopback_http_only_secure_is_missing(
    service: Service, case: str
) -> None:
    async with service.http() as http:
        answer = await http.post(
            "/auth/session", json={"username": "alice", "password": PASSWORD}
        )
    (cookie,) = answer.headers.get_list("set-cookie")
    name_value, *attributes = cookie.split("; ")
    assert name_value.startswith("authws=")
    assert sorted(a.lower() for a in attributes) == [
        "httponly",
        "path=/",
        "samesite=strict",
    ]


@pytest.mark.parametrize("case", ["COO-11"])
async def test_ids_are_long_random_and_never_the_same(
    service: Service, case: str
) -> None:
    issued = [value_of(await service.cookie("alice")) for _ in range(3)]
    ids = [value.partition(".")[0] for value in issued]
    ids += [service.house.cookies.new() for _ in range(1000)]
    assert len(set(ids)) == len(ids)
    decoded = [base64.urlsafe_b64decode(f"{id}=") for id in ids]
    assert {len(one) for one in decoded} == {32}
    ones = sum(byte.bit_count() for one in decoded for byte in one)
    # 256 000 fair coins fall within five standard deviations of one half
    assert abs(ones - len(ids) * 128) < 5 * (len(ids) * 256) ** 0.5 / 2
    by_position = zip(*decoded, strict=True)
    assert min(len(set(column)) for column in by_position) > 200  # no fixed byte


@pytest.mark.parametrize("case", ["COO-11-at-rest"])
async def test_the_database_holds_no_cookie(
    service: Service, alice: Visitor, case: str
) -> None:
    id, _, signature = value_of(alice.cookie).partition(".")
    for path in service.house.settings.data_dir.glob("authws.db*"):
        stored = path.read_bytes()
        assert id.encode() not in stored
        assert signature.encode() not in stored


# --------------------------------------------------------------------- sizes, carriers


SIZES = {
    "COO-10-8-kib": "authws=" + "a" * 8192,
    "COO-10-just-below": "authws=" + "a" * 8180,
    "COO-10-many": "; ".join(f"c{n}=x" for n in range(1000)),
    "COO-10-64-kib": "authws=" + "a" * 65_536,
    "COO-10-deep-separators": ";" * 30_000,
}


@pytest.mark.parametrize("path", ENDPOINTS)
@pytest.mark.parametrize("cookie", SIZES.values(), ids=SIZES.keys())
async def test_a_huge_cookie_header_is_answered_at_once(
    service: Service, cookie: str, path: str
) -> None:
    answer = await bring(service, cookie, path)
    if answer.status != 431:
        slugs = ("auth_malformed", "session_invalid", "auth_missing")
        if "first-message" in path and answer.status == 101:
            assert answer.close in [(1008, slug) for slug in slugs]
        else:
            assert is_refused(service, answer, *slugs)


@pytest.mark.parametrize(
    "path", TOKEN_ENDPOINTS, ids=lambda path: f"COO-13-{path[4:].replace('/', '-')}"
)
async def test_a_cookie_of_one_beside_the_token_of_another_is_refused(
    service: Service, alice: Visitor, bob: Visitor, path: str
) -> None:
    own = await service.cookie("bob")
    for cookie in (alice.cookie, f"{alice.cookie}; {own}", f"{own}; {alice.cookie}"):
        lines = (f"Origin: {service.origin}", f"Cookie: {cookie}")
        answer = await knock(service, path, *lines, who=bob)
        assert not answer.is_admitted
        if answer.status == 101:
            assert answer.close == (1008, "auth_malformed")


async def ended_cookie(service: Service) -> str:
    cookie = await service.cookie("alice")
    async with service.http(headers={"cookie": cookie}) as http:
        await http.delete("/auth/session")
    return cookie


async def unknown_cookie(service: Service) -> str:
    cookies = service.house.cookies
    return f"authws={cookies.sign(cookies.new())}"


@pytest.mark.parametrize(
    "path",
    TOKEN_ENDPOINTS,
    ids=lambda path: f"COO-13-open-{path[4:].replace('/', '-')}",
)
async def test_a_cookie_that_opens_nothing_else_keeps_no_token_out(
    service: Service, alice: Visitor, bob: Visitor, path: str
) -> None:
    own = await service.cookie("bob")  # bob's token is of another login of his
    over = await grant(service, "session-cookie", "alice", idle_ttl=1e-6)
    for cookie in (
        "authws=stale",
        "authws=",
        f"authws={value_of(alice.cookie)[:-1]}!",
        await unknown_cookie(service),
        await ended_cookie(service),
        f"authws={over.cookie}",
        own,
        f"{own}; authws=stale",
    ):
        lines = (f"Origin: {service.origin}", f"Cookie: {cookie}")
        assert (await knock(service, path, *lines, who=bob)).is_admitted, cookie
    async with service.http(headers={"cookie": own}) as http:
        assert (await http.get("/auth/me")).status_code == 200


CARRIERS = {
    "COO-13-cookie-and-query": (f"{ENDPOINT}?token={{token}}", ()),
    "COO-13-cookie-and-bearer": (ENDPOINT, ("Authorization: Bearer {token}",)),
    "COO-13-cookie-and-basic": (ENDPOINT, ("Authorization: Basic YTpi",)),
}


@pytest.mark.parametrize(("path", "lines"), CARRIERS.values(), ids=CARRIERS.keys())
async def test_a_second_carrier_beside_the_cookie_is_refused(
    service: Service, alice: Visitor, bob: Visitor, path: str, lines: tuple[str, ...]
) -> None:
    answer = await knock(
        service,
        path.format(token=bob.token),
        f"Origin: {service.origin}",
        *(line.format(token=bob.token) for line in lines),
        who=alice,
    )
    assert is_refused(service, answer, "auth_malformed")


@pytest.mark.parametrize("case", ["COO-13-own-ticket"])
async def test_a_ticket_drawn_on_the_cookie_goes_beside_it(
    service: Service, alice: Visitor, case: str
) -> None:
    async with service.http(headers={"cookie": alice.cookie}) as http:
        ticket = (await http.post("/auth/ticket")).json()["ticket"]
    answer = await knock(
        service,
        f"/ws/query-param?token={ticket}",
        f"Origin: {service.origin}",
        f"Cookie: {alice.cookie}",
    )
    assert answer.is_admitted


# ------------------------------------------------------------------ cross-site requests


FORGED_BODIES = {
    "form": ("application/x-www-form-urlencoded", b"username=alice&password={p}"),
    "text": ("text/plain", b'{"username":"alice","password":"{p}"}'),
    "none": ("", b'{"username":"alice","password":"{p}"}'),
}
FORGED_ROUTES = {
    "login": ("POST", "/auth/login"),
    "session": ("POST", "/auth/session"),
    "end-session": ("DELETE", "/auth/session"),
    "refresh": ("POST", "/auth/refresh"),
    "ticket": ("POST", "/auth/ticket"),
    "password": ("POST", "/auth/password"),
    "other-session": ("DELETE", "/auth/sessions/{session}"),
}
FORGED_FROM = {
    "foreign": {"origin": "https://evil.example"},
    "null": {"origin": "null"},
    "sibling": {"origin": "http://other.127.0.0.1"},
    "cross-site": {"sec-fetch-site": "cross-site"},
}


@pytest.mark.parametrize("source", FORGED_FROM, ids=lambda s: f"from-{s}")
@pytest.mark.parametrize("route", FORGED_ROUTES, ids=lambda r: f"COO-14-{r}")
async def test_a_cross_site_request_changes_nothing(
    service: Service, alice: Visitor, route: str, source: str
) -> None:
    method, path = FORGED_ROUTES[route]
    async with service.http(headers={"cookie": alice.cookie}) as http:
        session = (await http.get("/auth/me")).json()["session"]
        for kind, content in FORGED_BODIES.values():
            answer = await http.request(
                method,
                path.format(session=session),
                content=content.replace(b"{p}", PASSWORD.encode()),
                headers={"content-type": kind, **FORGED_FROM[source]},
            )
            assert answer.status_code in (403, 415)
            assert "set-cookie" not in answer.headers
            assert "access_token" not in answer.text
        # nothing happened: the session is there, and the password is what it was
        assert (await http.get("/auth/me")).status_code == 200
    assert await service.token("alice")


@pytest.mark.parametrize("case", ["COO-14-logout"])
async def test_logout_takes_no_cookie_and_so_cannot_be_forged(
    service: Service, alice: Visitor, case: str
) -> None:
    headers = {"cookie": alice.cookie, "origin": "https://evil.example"}
    async with service.http(headers=headers) as http:
        answer = await http.post("/auth/logout")
    assert answer.status_code in (401, 403)
    assert (await bring(service, alice.cookie)).is_admitted


@pytest.mark.parametrize("kind", ["form", "text", "none"], ids=lambda k: f"COO-14-{k}")
@pytest.mark.parametrize("path", ["/auth/login", "/auth/session", "/auth/refresh"])
async def test_only_json_is_read_which_no_form_can_send(
    service: Service, path: str, kind: str
) -> None:
    content_type, content = FORGED_BODIES[kind]
    async with service.http() as http:
        answer = await http.post(
            path,
            content=content.replace(b"{p}", PASSWORD.encode()),
            headers={"content-type": content_type},
        )
    assert answer.status_code == 415
    assert answer.json()["detail"] == "json_expected"
    assert "set-cookie" not in answer.headers


STATE_CHANGING = (
    "/auth/login",
    "/auth/refresh",
    "/auth/session",
    "/auth/logout",
    "/auth/ticket",
    "/auth/password",
    "/auth/sessions/some-id",
)


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize("path", STATE_CHANGING, ids=lambda p: f"COO-15-{p[6:]}")
async def test_safe_methods_change_no_state(
    service: Service, alice: Visitor, path: str, method: str
) -> None:
    headers = {"cookie": alice.cookie, **bearer(alice.token)}
    async with service.http(headers=headers) as http:
        answer = await http.request(method, path)
    assert answer.status_code == 405
    assert "set-cookie" not in answer.headers


@pytest.mark.parametrize("path", ENDPOINTS, ids=lambda p: f"COO-17-{p[4:]}")
async def test_a_failed_handshake_sets_no_cookie_and_tells_nothing(
    service: Service, alice: Visitor, path: str
) -> None:
    for lines in (
        (f"Origin: {service.origin}", "Cookie: authws=wrong"),
        ("Origin: https://evil.example", f"Cookie: {alice.cookie}"),
    ):
        async with wire(service.port) as peer:
            await peer.send(handshake(f"{path}?token=wrong", headers=lines))
            response = await peer.response()
        told = json.dumps(response.headers) + response.body.decode()
        assert "set-cookie" not in response.headers
        assert "alice" not in told
        assert "session" not in told.replace("session-cookie", "")


@pytest.mark.parametrize(
    "origin",
    [
        "http://sibling.localhost:{port}",
        "http://127.0.0.1:{other}",
        "https://localhost",
    ],
    ids=["COO-19-subdomain", "COO-19-other-port", "COO-19-other-scheme"],
)
async def test_a_page_of_the_same_site_is_not_of_the_same_origin(
    service: Service, alice: Visitor, origin: str
) -> None:
    origin = origin.format(port=service.port, other=service.port + 1)
    lines = (f"Origin: {origin}", "Sec-Fetch-Site: same-site")
    for path in COOKIE_ENDPOINTS:
        answer = await knock(service, path, *lines, who=alice)
        assert answer.status == 403


@pytest.mark.parametrize("case", ["COO-20"])
async def test_a_copy_of_the_cookie_is_worth_nothing_after_logout(
    service: Service, case: str
) -> None:
    cookie = await service.cookie("alice")
    assert (await bring(service, cookie)).is_admitted
    async with service.http(headers={"cookie": cookie}) as http:
        assert (await http.delete("/auth/session")).status_code == 204
        assert (await http.get("/auth/me")).status_code == 401
        assert (await http.post("/auth/ticket")).status_code == 401
    for path in COOKIE_ENDPOINTS:
        answer = await bring(service, cookie, path)
        assert is_refused(service, answer, "session_revoked")


BESIDE = {
    "bearer": {"authorization": "Bearer {token}"},
    "basic": {"authorization": "Basic YTpi"},
    "stale-cookie": {"cookie": "authws=old; {cookie}"},
    "stale-cookie-after": {"cookie": "{cookie}; authws=old"},
    "twice": {"cookie": "{cookie}; {cookie}"},
}


async def ask_beside(
    service: Service, method: str, cookie: str, token: str, beside: str
) -> httpx.Response:
    """Call ``/auth/session`` with the cookie, and something else in the request."""
    headers = {"cookie": cookie}
    for name, value in BESIDE.get(beside, {}).items():
        headers[name] = value.format(cookie=cookie, token=token)
    query = f"?token={token}" if beside == "query" else ""
    login = {"username": "alice", "password": PASSWORD} if method == "POST" else None
    async with service.http(headers=headers) as http:
        return await http.request(method, f"/auth/session{query}", json=login)


@pytest.mark.parametrize("beside", [*BESIDE, "query"], ids=lambda b: f"COO-20-{b}")
async def test_logout_is_real_whatever_else_the_request_carries(
    service: Service, alice: Visitor, beside: str
) -> None:
    cookie = await service.cookie("alice")
    headers = {"cookie": cookie, "origin": service.origin}
    async with await service.open(ENDPOINT, headers=headers) as peer:
        assert (await hear(peer))["type"] == "auth_ok"
        answer = await ask_beside(service, "DELETE", cookie, alice.token, beside)
        assert answer.status_code == 204
        assert await ending(peer) == (1008, "session_revoked")
    assert is_refused(service, await bring(service, cookie), "session_revoked")


@pytest.mark.parametrize("case", ["COO-20-two-sessions"])
async def test_logout_ends_every_session_whose_cookie_is_sent(
    service: Service, case: str
) -> None:
    cookies = [await service.cookie("alice"), await service.cookie("bob")]
    async with service.http(headers={"cookie": "; ".join(cookies)}) as http:
        assert (await http.delete("/auth/session")).status_code == 204
    for cookie in cookies:
        assert is_refused(service, await bring(service, cookie), "session_revoked")


@pytest.mark.parametrize("beside", [*BESIDE, "query"], ids=lambda b: f"COO-05-{b}")
async def test_a_login_ends_the_held_session_whatever_else_the_request_carries(
    service: Service, alice: Visitor, beside: str
) -> None:
    held = await service.cookie("bob")
    answer = await ask_beside(service, "POST", held, alice.token, beside)
    assert answer.status_code == 200
    assert is_refused(service, await bring(service, held), "session_revoked")


@pytest.mark.parametrize("method", ["DELETE", "POST"], ids=lambda m: f"COO-20-{m}")
async def test_cookies_beyond_what_is_read_are_never_said_to_be_ended(
    service: Service, alice: Visitor, method: str
) -> None:
    cookie = f"{alice.cookie}; other={'a' * 8192}"
    answer = await ask_beside(service, method, cookie, alice.token, "nothing")
    assert (answer.status_code, answer.json()) == (401, {"detail": "auth_malformed"})
    assert "set-cookie" not in answer.headers
    assert (await bring(service, alice.cookie)).is_admitted


# ------------------------------------------------------------- the production profile


PUBLIC = "https://app.example.com"
SECURE_COOKIE = "__Host-authws"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def production(
    tmp_path_factory: pytest.TempPathFactory,
) -> AsyncIterator[Service]:
    """Behind a proxy that ends TLS: the proxy here is whoever says it is https."""
    async with running(
        tmp_path_factory.mktemp("production"),
        public_origin=PUBLIC,
        behind_proxy=True,
        trusted_proxies=("127.0.0.1",),
    ) as service:
        await service.add_user("alice")
        yield service


PROXIED = {
    "host": "app.example.com",
    "origin": PUBLIC,
    "x-forwarded-proto": "https",
    "x-forwarded-for": "192.0.2.7",
}
PROXIED_LINES = ("X-Forwarded-Proto: https", f"Origin: {PUBLIC}")


async def log_in(service: Service) -> httpx.Response:
    async with service.http(headers=PROXIED) as http:
        answer = await http.post(
            "/auth/session", json={"username": "alice", "password": PASSWORD}
        )
    assert answer.status_code == 200
    return answer


async def arrive(service: Service, *lines: str, path: str = ENDPOINT) -> Answer:
    return await knock(service, path, *lines, host="app.example.com")


@pytest.mark.parametrize("case", ["COO-06"])
async def test_over_https_the_cookie_has_every_protection(
    production: Service, case: str
) -> None:
    (cookie,) = (await log_in(production)).headers.get_list("set-cookie")
    name_value, *attributes = cookie.split("; ")
    name, _, value = name_value.partition("=")
    assert name == SECURE_COOKIE
    assert sorted(a.lower() for a in attributes) == [
        "httponly",
        "path=/",
        "samesite=strict",
        "secure",
    ]
    answer = await arrive(production, *PROXIED_LINES, f"Cookie: {name}={value}")
    assert answer.is_admitted


@pytest.mark.parametrize("case", ["COO-08"])
async def test_only_the_exact_name_counts(production: Service, case: str) -> None:
    name_value = (await log_in(production)).headers["set-cookie"].partition(";")[0]
    value = value_of(name_value)
    planted = ("__host-authws", "__HOST-authws", "authws", "__Secure-authws")
    for name in planted:
        beside = f"Cookie: {name}=planted; {name_value}; {name}=planted"
        assert (await arrive(production, *PROXIED_LINES, beside)).is_admitted
        alone = f"Cookie: {name}={value}"
        answer = await arrive(production, *PROXIED_LINES, alone)
        assert answer.close == (1008, "auth_missing")


@pytest.mark.parametrize(
    "line",
    ["X-Forwarded-Proto: http", "X-Forwarded-Proto: ws"],
    ids=["COO-18-proxy-says-http", "COO-18-proxy-says-ws"],
)
async def test_in_production_nothing_is_accepted_that_came_over_plain_ws(
    production: Service, line: str
) -> None:
    name_value = (await log_in(production)).headers["set-cookie"].partition(";")[0]
    for path in ENDPOINTS:
        answer = await arrive(
            production, line, f"Origin: {PUBLIC}", f"Cookie: {name_value}", path=path
        )
        assert answer.status == 403


@pytest.mark.parametrize("case", ["COO-18-untrusted-proxy"])
async def test_a_stranger_cannot_say_that_it_is_https(
    tmp_path_factory: pytest.TempPathFactory, case: str
) -> None:
    async with running(
        tmp_path_factory.mktemp("untrusted"),
        public_origin=PUBLIC,
        behind_proxy=True,
        trusted_proxies=("192.0.2.1",),
    ) as service:
        for path in ENDPOINTS:
            assert (await arrive(service, *PROXIED_LINES, path=path)).status == 403


# --------------------------------------------------------------------- ended by logout


@pytest.mark.parametrize("case", ["COO-20-open-socket"])
async def test_logout_closes_what_the_cookie_opened_and_nothing_else(
    service: Service, alice: Visitor, case: str
) -> None:
    cookie = await service.cookie("alice")
    mine = {"cookie": cookie, "origin": service.origin}
    other = {"cookie": alice.cookie, "origin": service.origin}
    async with (
        await service.open(ENDPOINT, headers=mine) as ended,
        await service.open(ENDPOINT, headers=other) as kept,
    ):
        assert (await hear(ended))["type"] == (await hear(kept))["type"] == "auth_ok"
        async with service.http(headers={"cookie": cookie}) as http:
            await http.delete("/auth/session")
        assert await ending(ended) == (1008, "session_revoked")
        await say(kept, type="ping", id=1)
        assert (await hear(kept))["type"] == "pong"


@pytest.mark.parametrize("case", ["COO-17-http"])
async def test_a_refused_request_sets_no_cookie(service: Service, case: str) -> None:
    async with wire(service.port) as peer:
        await peer.send(request("/auth/me", "Cookie: authws=wrong"))
        response = await peer.response()
    assert response.status == 401
    assert "set-cookie" not in response.headers
