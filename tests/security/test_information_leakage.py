"""Information leakage and logging.

What the service tells strangers, users and its own logs: enough to act on, and no more.
"""

from __future__ import annotations

import base64
import json
import logging
import re
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio

from authws.close_codes import BY_SLUG
from tests.grants import Ending, ending, enter, grant, hear, knock, present, say, until
from tests.running import ENDPOINTS, PASSWORD, STRATEGIES, Service, running
from tests.security.peers import bearer, controlled, eventually, join, silence
from tests.wire import frame, handshake, request, wire

pytestmark = pytest.mark.asyncio(loop_scope="module")

CANARY = "C4N4RY-c0ffee"
ROOMS = tuple(f"/ws/{strategy}" for strategy in STRATEGIES)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def service(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Service]:
    async with running(tmp_path_factory.mktemp("leakage")) as service:
        await service.add_user("alice")
        async with controlled(service):
            yield service


def text_of(records: list[logging.LogRecord]) -> str:
    """Everything that a handler could write of these records."""
    formatter = logging.Formatter("%(name)s %(message)s")
    return "\n".join(formatter.format(record) for record in records)


def since(service: Service, mark: int) -> list[dict[str, Any]]:
    """The security log from a number of log records on."""
    return [
        json.loads(record.getMessage())
        for record in service.records[mark:]
        if record.name == "authws.security"
    ]


async def event(
    service: Service, mark: int, name: str, **fields: str
) -> dict[str, Any]:
    """Wait for one event of the security log, with these fields."""
    wanted = {"event": name, **fields}

    def found() -> list[dict[str, Any]]:
        return [e for e in since(service, mark) if wanted.items() <= e.items()]

    await until(found)
    return found()[0]


# --------------------------------------------------------------------- our own failures

ROUTES = {
    "INF-01-login": ("POST", "/auth/login", "accounts", "log_in"),
    "INF-01-session": ("POST", "/auth/session", "accounts", "open_session"),
    "INF-01-refresh": ("POST", "/auth/refresh", "accounts", "refresh"),
    "INF-01-me": ("GET", "/auth/me", "authority", "by_token"),
    "INF-01-ticket": ("POST", "/auth/ticket", "accounts", "ticket"),
    "INF-01-logout": ("POST", "/auth/logout", "authority", "by_token"),
    "INF-01-sessions": ("GET", "/auth/sessions", "sessions", "list_for"),
    "INF-01-password": ("POST", "/auth/password", "accounts", "change_password"),
    "INF-01-readyz": ("GET", "/readyz", "broker", "ping"),
    "INF-01-metrics": ("GET", "/metrics", "metrics", "render"),
    "INF-01-jwks": ("GET", "/.well-known/jwks.json", "keyring", "jwks"),
}
BODIES = {
    "/auth/login": {"username": "alice", "password": CANARY},
    "/auth/session": {"username": "alice", "password": CANARY},
    "/auth/refresh": {"refresh_token": f"rt_{CANARY}"},
    "/auth/password": {"current_password": CANARY, "new_password": CANARY * 2},
}


def failing(*_: object, **__: object) -> Any:
    raise RuntimeError("a fault of ours, at /srv/authws/secret.py")


@pytest.mark.parametrize(
    ("method", "path", "part", "name"), ROUTES.values(), ids=ROUTES.keys()
)
async def test_fault_of_a_route_is_a_500_that_tells_nothing(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    *,
    method: str,
    path: str,
    part: str,
    name: str,
) -> None:
    async with running(tmp_path) as service:
        await service.add_user("alice")
        token = (await grant(service, "query-param")).access()
        monkeypatch.setattr(type(getattr(service.house, part)), name, failing)
        mark = len(service.records)
        headers = {**bearer(token), "cookie": f"authws={CANARY}"}
        async with service.http(headers=headers) as http:
            answer = await http.request(method, path, json=BODIES.get(path))
        assert answer.status_code == 500
        body = answer.json()
        assert set(body) == {"detail", "correlation_id"}
        assert body["detail"] == "internal_error"
        logged = text_of(service.records[mark:])
        assert body["correlation_id"] in logged
        assert "a fault of ours" in logged
        assert "a fault of ours" not in answer.text
        for secret in (CANARY, token, token.split(".")[2]):  # INF-07
            assert secret not in logged


@pytest.mark.parametrize(
    ("refuse", "refusal"),
    [
        ("after_accept", (1011, "internal_error")),
        ("before_accept", (500, "")),
    ],
    ids=["INF-01-after-accept", "INF-01-before-accept"],
)
async def test_fault_at_the_door_is_a_1011_or_a_500_that_tells_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refuse: str, refusal: Ending
) -> None:
    async with running(tmp_path, refuse=refuse) as service:
        await service.add_user("alice")
        credentials = {s: (await grant(service, s)).credential for s in STRATEGIES}
        for name in ("by_token", "by_cookie"):
            monkeypatch.setattr(type(service.house.authority), name, failing)
        for path in ENDPOINTS:
            mark = len(service.records)
            credential = credentials[path.split("/")[2]]
            expected = (1011, "internal_error") if "first" in path else refusal
            assert await present(service, path, credential) == expected
            logged = text_of(service.records[mark:])
            assert logged.count("a fault of ours") <= 2  # a traceback, and its detail
            assert "correlation id" in logged
            assert credential not in logged
        await eventually(lambda: not service.house.hub.connections)


@pytest.mark.parametrize("path", ROOMS)
@pytest.mark.parametrize("case", ["INF-01-handler"])
async def test_fault_of_a_handler_is_a_1011_that_tells_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str, case: str
) -> None:
    async with running(tmp_path) as service:
        await service.add_user("alice")
        granted = await grant(service, path.split("/")[2])
        monkeypatch.setattr(type(service.house.hub.rooms), "publish", failing)
        async with enter(service, path, granted) as peer:
            await join(peer, "lobby")
            await say(peer, type="publish", room="lobby", data=CANARY)
            assert await ending(peer) == (1011, "internal_error")
        await until(lambda: not service.house.hub.connections)
        logged = text_of(service.records)
        assert "a fault of ours" in logged
        assert CANARY not in logged
        assert any(e["event"] == "handler_failed" for e in service.security_events)


# ------------------------------------------------------------------------- what is said


@pytest.mark.parametrize("path", ENDPOINTS)
@pytest.mark.parametrize("case", ["INF-02"])
async def test_close_reasons_are_slugs_of_the_table(
    service: Service, path: str, case: str
) -> None:
    granted = await grant(service, path.split("/")[2])
    endings = [
        await present(service, path),
        await present(service, path, ""),
        await present(service, path, CANARY),
        await present(service, path, f"{granted.credential}x"),
    ]
    async with enter(service, path, granted) as peer:
        await granted.end()
        endings.append(await ending(peer))
    for code, reason in endings:
        assert code == 1008
        assert reason in BY_SLUG
        assert len(reason.encode()) <= 123


INJECTIONS = {
    "INF-04-path": ("/ws/query-param%0d%0aX-Injected:%20yes", ()),
    "INF-04-query": ("/ws/query-param?token=%0d%0aX-Injected:%20yes", ()),
    "INF-04-host": ("/healthz", ("Host: 127.0.0.1%0d%0aX-Injected: yes",)),
    "INF-04-origin": ("/ws/session-cookie", ("Origin: http://x%0d%0aX-Injected: yes",)),
    "INF-04-protocol": (
        "/ws/first-message",
        ("Sec-WebSocket-Protocol: authws.v1%0d%0aX-Injected",),
    ),
    "INF-04-bare-cr": ("/ws/first-message", ("X-A: b\rX-Injected: yes",)),
    "INF-04-docs-redirect": ("/docs/assets%0d%0aX-Injected:%20yes/", ()),
    "INF-04-slash": ("//evil.example/%0d%0aX-Injected:%20yes", ()),
}


@pytest.mark.parametrize(
    ("target", "lines"), INJECTIONS.values(), ids=INJECTIONS.keys()
)
async def test_nothing_of_a_request_becomes_a_header(
    service: Service, target: str, lines: tuple[str, ...]
) -> None:
    for opening in (request(target, *lines), handshake(target, headers=lines)):
        async with wire(service.port) as peer:
            await peer.send(opening)
            response = await peer.response()
            assert "x-injected" not in response.headers
            assert "evil.example" not in response.headers.get("location", "")
            assert b"X-Injected" not in response.body


HIDDEN = (
    "/redoc",
    "/debug",
    "/.git/config",
    "/.env",
    "/admin",
    "/server-status",
    "/docs/assets/../../settings.py",
    "/docs/assets/%2e%2e/%2e%2e/settings.py",
    "/docs/assets/..%2f..%2fsettings.py",
    "/docs/assets//etc/passwd",
    "/static/../secrets.json",
)


@pytest.mark.parametrize("path", HIDDEN)
@pytest.mark.parametrize("case", ["INF-05"])
async def test_what_is_not_offered_is_not_found(
    service: Service, path: str, case: str
) -> None:
    async with wire(service.port) as peer:
        await peer.send(request(path))
        response = await peer.response()
    assert response.status == 404
    assert b"import" not in response.body
    assert b"root:" not in response.body


@pytest.mark.parametrize("case", ["INF-05-production"])
async def test_pages_can_be_switched_off(tmp_path: Path, case: str) -> None:
    async with running(tmp_path, docs=False) as service, service.http() as http:
        for path in ("/docs", "/docs/assets/docs.js", "/openapi.json", "/redoc"):
            assert (await http.get(path)).status_code == 404


@pytest.mark.parametrize("case", ["INF-05-metrics"])
async def test_metrics_are_not_for_strangers(tmp_path: Path, case: str) -> None:
    async with running(
        tmp_path, behind_proxy=True, trusted_proxies=("127.0.0.1",)
    ) as service:
        await service.add_user("alice")
        await service.add_user("root", scopes=("admin",))
        alice = bearer((await grant(service, "query-param")).access())
        root = await grant(service, "query-param", "root")
        admin = bearer(root.access(scopes=["admin"]))
        far = {"x-forwarded-for": "203.0.113.9"}
        async with service.http() as http:
            for headers in ({}, far, {**far, **alice}):
                answer = await http.get("/metrics", headers=headers)
                assert answer.status_code == 403, headers
                assert "authws_connections" not in answer.text
            answer = await http.get("/metrics", headers={**far, **admin})
            assert answer.status_code == 200


@pytest.mark.parametrize("case", ["INF-13"])
async def test_health_tells_that_and_nothing_else(service: Service, case: str) -> None:
    async with service.http() as http:
        for path, told in (
            ("/healthz", {"status": "ok"}),
            ("/readyz", {"status": "ready", "database": "ok", "broker": "ok"}),
        ):
            answer = await http.get(path)
            assert answer.json() == told
            assert not {"server", "x-powered-by", "via"} & set(answer.headers)


# ----------------------------------------------------------------------- what is logged


@pytest.mark.parametrize("case", ["INF-08-login"])
async def test_logins_are_logged(service: Service, case: str) -> None:
    mark = len(service.records)
    await service.login("alice")
    logged = await event(service, mark, "login")
    check_fields(logged, subject="alice")


@pytest.mark.parametrize("case", ["INF-08-login-failed"])
async def test_failed_logins_are_logged(service: Service, case: str) -> None:
    mark = len(service.records)
    with pytest.raises(httpx.HTTPStatusError):
        await service.login("alice", f"{CANARY} not the password")
    check_fields(
        await event(service, mark, "login_failed"),
        subject="alice",
        reason="credentials_invalid",
    )
    assert CANARY not in text_of(service.records[mark:])


@pytest.mark.parametrize("case", ["INF-08-throttled"])
async def test_throttled_logins_are_logged(tmp_path: Path, case: str) -> None:
    async with running(tmp_path, login_rate=1) as service:
        for _ in range(2):
            with pytest.raises(httpx.HTTPStatusError):
                await service.login("nobody", "not the password at all")
        logged = await event(service, 0, "login_throttled")
        check_fields(logged, subject="nobody", reason="rate_limited")


@pytest.mark.parametrize("path", ROOMS)
@pytest.mark.parametrize("case", ["INF-08-connection"])
async def test_a_connections_life_is_logged_with_its_id(
    service: Service, path: str, case: str
) -> None:
    strategy = path.split("/")[2].replace("-", "_")
    mark = len(service.records)
    granted = await grant(service, path.split("/")[2])
    async with enter(service, path, granted):
        came = await event(service, mark, "connected")
    went = await event(service, mark, "disconnected")
    check_fields(came, subject="alice", strategy=strategy)
    check_fields(went, subject="alice", strategy=strategy, reason="peer_left")
    assert came["connection"] == went["connection"]
    assert went["code"] == "1000"


@pytest.mark.parametrize("path", ENDPOINTS)
@pytest.mark.parametrize("case", ["INF-08-refused"])
async def test_refusals_are_logged(service: Service, path: str, case: str) -> None:
    mark = len(service.records)
    _, slug = await present(service, path, CANARY)
    logged = await event(service, mark, "refused")
    check_fields(logged, reason=slug, strategy=path.split("/")[2].replace("-", "_"))


@pytest.mark.parametrize("path", ENDPOINTS)
@pytest.mark.parametrize("case", ["INF-08-origin"])
async def test_foreign_origins_are_logged(
    service: Service, path: str, case: str
) -> None:
    mark = len(service.records)
    assert (await present(service, path, "x", origin="https://evil.example"))[0] == 403
    logged = await event(service, mark, "refused")
    check_fields(logged, reason="origin_forbidden")
    assert "https://evil.example" in logged["detail"]


@pytest.mark.parametrize("path", ROOMS)
@pytest.mark.parametrize("case", ["INF-08-forbidden"])
async def test_forbidden_messages_are_logged(
    service: Service, path: str, case: str
) -> None:
    await service.add_user(name := f"powerless-{path.split('/')[2]}", scopes=())
    mark = len(service.records)
    granted = await grant(service, path.split("/")[2], name)
    async with enter(service, path, granted) as peer:
        assert (await join(peer, "lobby"))["slug"] == "forbidden"
    logged = await event(service, mark, "message_forbidden")
    check_fields(logged, subject=name, reason="forbidden")
    assert (
        logged["connection"] == (await event(service, mark, "connected"))["connection"]
    )


@pytest.mark.parametrize("path", ROOMS)
@pytest.mark.parametrize("case", ["INF-08-violation"])
async def test_protocol_violations_are_logged(
    service: Service, path: str, case: str
) -> None:
    mark = len(service.records)
    granted = await grant(service, path.split("/")[2])
    async with enter(service, path, granted) as peer:
        peer.transport.write(frame(3, b"x"))
        await until(lambda: peer.close_code == 1002)
    # whoever an earlier test had here may be leaving the log only now
    ours = (await event(service, mark, "connected"))["connection"]
    logged = await event(service, mark, "disconnected", connection=ours)
    check_fields(logged, subject="alice", code="1002")


def check_fields(logged: dict[str, Any], **expected: str) -> None:
    """Who, what, why, from where, and when in UTC."""
    at = datetime.fromisoformat(logged["time"])
    assert at.utcoffset() == UTC.utcoffset(None)
    assert abs((datetime.now(UTC) - at).total_seconds()) < 60
    assert logged["address"] == "127.0.0.1"
    for name, value in expected.items():
        assert logged[name] == value, logged


@pytest.mark.parametrize("case", ["INF-09"])
async def test_no_credential_and_no_token_id_is_in_any_log(
    service: Service, case: str
) -> None:
    mark = len(service.records)
    secrets = [PASSWORD]
    logins = [await service.login("alice") for _ in range(2)]
    for login in logins:
        secrets += [login["access_token"], login["refresh_token"]]
    async with service.http() as http:
        body = {"refresh_token": logins[0]["refresh_token"]}
        fresh = (await http.post("/auth/refresh", json=body)).json()
        secrets += [fresh["access_token"], fresh["refresh_token"]]
        assert (await http.post("/auth/refresh", json=body)).status_code == 401
    token = logins[1]["access_token"]
    ticket = await service.ticket(token)
    cookie = (await service.cookie("alice")).partition("=")[2]
    secrets += [ticket, cookie, cookie.partition(".")[0]]
    for strategy in STRATEGIES:
        path = f"/ws/{strategy}"
        credential = cookie if "cookie" in strategy else token
        async with enter(service, path, credential):
            pass
        await present(service, path, f"{credential}x")
    async with enter(service, "/ws/query-param", ticket):
        pass
    assert await present(service, "/ws/query-param", ticket) == (1008, "ticket_used")
    for jwt in [one for one in secrets if one.count(".") == 2]:
        secrets += [jwt.rpartition(".")[2], jwt.split(".")[1]]
        payload = jwt.split(".")[1]
        claims = json.loads(
            base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4))
        )
        secrets.append(claims["jti"])
    await event(service, mark, "refused")
    logged = text_of(service.records[mark:])
    assert [secret for secret in secrets if secret in logged] == []


@pytest.mark.parametrize("path", ENDPOINTS)
@pytest.mark.parametrize("case", ["INF-14"])
async def test_a_refusals_detail_names_a_reason_and_no_token(
    service: Service, path: str, case: str
) -> None:
    granted = await grant(service, path.split("/")[2])
    good = granted.credential
    spoiled = [
        f"{good[:-3]}AAA",
        good.replace(".", ".A", 1),
        good + "." + good,
        CANARY * 20,
        "eyJhbGciOiJub25lIn0." + good.partition(".")[2],
    ]
    for credential in spoiled:
        mark = len(service.records)
        await present(service, path, credential)
        logged = await event(service, mark, "refused")
        assert logged["detail"]
        assert len(logged["detail"]) < 120
        for part in re.split(r"\W+", credential):
            assert len(part) < 6 or part not in json.dumps(logged)


# -------------------------------------------------------------------- what is delivered


HOSTILE = (
    "<img src=x onerror=alert(1)>",
    "</script><script>alert(1)</script>",
    "\u2028\u202e\u0000",
    '","from":"admin","x":"',
)


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("text", HOSTILE, ids=[f"INF-10-{n}" for n in range(4)])
async def test_text_arrives_as_the_string_it_was(
    service: Service, strategy: str, text: str
) -> None:
    granted = await grant(service, strategy)
    async with enter(service, f"/ws/{strategy}", granted) as peer:
        await join(peer, "hostile")
        await say(peer, type="publish", room="hostile", data=text)
        heard = await hear(peer)
    assert heard["data"] == text
    assert heard["from"] == "alice"
    assert set(heard) == {"type", "room", "from", "data", "at", "epoch", "offset"}


ANSWERS = {
    "INF-11": ("GET", "/healthz"),
    "INF-11-readyz": ("GET", "/readyz"),
    "INF-11-openapi": ("GET", "/openapi.json"),
    "INF-11-docs": ("GET", "/docs"),
    "INF-11-script": ("GET", "/docs/assets/docs.js"),
    "INF-11-metrics": ("GET", "/metrics"),
    "INF-11-jwks": ("GET", "/.well-known/jwks.json"),
    "INF-11-unauthorized": ("GET", "/auth/me"),
    "INF-11-invalid": ("POST", "/auth/login"),
    "INF-11-not-found": ("GET", "/nothing"),
    "INF-11-method": ("PUT", "/auth/login"),
}
TYPES = {
    "/docs": "text/html; charset=utf-8",
    "/docs/assets/docs.js": "text/javascript; charset=utf-8",
    "/metrics": "text/plain; version=0.0.4; charset=utf-8",
}


@pytest.mark.parametrize(("method", "path"), ANSWERS.values(), ids=ANSWERS.keys())
async def test_every_answer_says_how_it_may_be_used(
    service: Service, method: str, path: str
) -> None:
    async with service.http() as http:
        answer = await http.request(method, path)
    headers = answer.headers
    assert headers["content-type"] == TYPES.get(path, "application/json")
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["x-frame-options"] == "DENY"
    assert headers["referrer-policy"] == "no-referrer"
    assert "frame-ancestors 'none'" in headers["content-security-policy"]
    assert "unsafe-inline" not in headers["content-security-policy"]
    assert "default-src 'none'" in headers["content-security-policy"]
    assert "access-control-allow-origin" not in headers
    if path.startswith("/auth"):
        assert headers["cache-control"] == "no-store"


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("case", ["INF-12"])
async def test_who_is_in_a_room_is_for_its_members(
    service: Service, strategy: str, case: str
) -> None:
    room = f"private-{strategy}"
    await service.add_user(name := f"outsider-{strategy}", scopes=("join:open",))
    granted = await grant(service, strategy)
    outside = await grant(service, strategy, name)
    async with (
        enter(service, f"/ws/{strategy}", granted) as member,
        enter(service, f"/ws/{strategy}", outside) as outsider,
    ):
        await join(member, room)
        answers = [await join(outsider, one) for one in (room, "private-nobody")]
        assert [answer.pop("room") for answer in answers] == [room, "private-nobody"]
        assert answers[0] == answers[1]  # nor whether there is such a room
        assert answers[0]["slug"] == "forbidden"
        await say(member, type="publish", room=room, data=1)
        await say(outsider, type="publish", room=room, data=1)
        assert (await hear(outsider))["slug"] == "not_joined"
        await silence(outsider)


SUSPICIOUS = {
    "private address": re.compile(r"\b(?:10|192\.168|172\.(?:1[6-9]|2\d|3[01]))\.\d+"),
    "loopback": re.compile(r"127\.0\.0\.1|localhost"),
    "e-mail": re.compile(r"[\w.]+@[\w.]+\.\w+"),
    "base64": re.compile(r"[A-Za-z0-9+/_-]{40,}"),
    "traceback": re.compile(r"(?i)traceback|exception|\bline \d+|\.py\b|sqlalchemy"),
    "path": re.compile(r"/(?:home|srv|usr|var|tmp|work)/"),
    "card": re.compile(r"\b\d{13,19}\b"),
    "software": re.compile(r"(?i)uvicorn|starlette|fastapi|python|sqlite"),
}


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("case", ["INF-16"])
async def test_frames_hold_nothing_of_the_machine(
    service: Service, strategy: str, case: str
) -> None:
    granted = await grant(service, strategy)
    frames: list[str] = []
    async with await knock(service, f"/ws/{strategy}", granted.credential) as peer:
        for message in (
            {"type": "join", "room": "scan"},
            {"type": "publish", "room": "scan", "data": "hello", "id": 1},
            {"type": "join", "room": "not a room"},
            {"type": "leave", "room": "elsewhere"},
            {"type": "nonsense"},
            {"type": "join"},
            {"type": "leave", "room": "scan"},
            {"type": "ping", "id": "last"},
        ):
            await say(peer, **message)
        await peer.send("not json")
        await say(peer, type="ping", id="end")
        while not frames or '"end"' not in frames[-1]:
            frames.append(str(await peer.recv()))
    assert len(frames) >= 9
    for text in frames:
        for what, pattern in SUSPICIOUS.items():
            assert not pattern.search(text), (what, text)


@pytest.mark.parametrize("case", ["INF-15"])
async def test_no_traceback_was_logged_in_all_of_this(
    service: Service, case: str
) -> None:
    logged = text_of(service.records)
    assert "Traceback" not in logged
    assert [r.getMessage() for r in service.records if r.exc_info] == []
    assert len(service.records) > 100
