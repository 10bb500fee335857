"""authws in somebody else's FastAPI app, on a real server."""

# no postponed annotations here: FastAPI could not resolve the local guards in them
import asyncio
import json
import logging
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any

import httpx
import pytest
import websockets
from fastapi import Depends, FastAPI, HTTPException, Request, WebSocketDisconnect
from websockets.exceptions import ConnectionClosed

from authws import AuthWS, ConfigurationError, Connection, Principal
from authws.clock import Clock
from authws.stores.database import Database
from authws.stores.passwords import PasswordHasher
from authws.stores.users import Users
from tests.serving import serving

PASSWORD = "correct horse battery staple"
GUARDS = ("query_param", "first_message", "session_cookie")


class App:
    """A user's app with one route per guard, and what a test needs to visit it."""

    def __init__(self, port: int, asked: list[Any]) -> None:
        self.port = port
        self.asked = asked
        self.origin = f"http://127.0.0.1:{port}"

    def http(self) -> httpx.AsyncClient:
        return httpx.AsyncClient(base_url=self.origin)

    async def token(self, name: str = "alice") -> str:
        async with self.http() as http:
            login = {"username": name, "password": PASSWORD}
            return str(
                (await http.post("/auth/login", json=login)).json()["access_token"]
            )

    async def connect(self, guard: str, path: str = "ws", under: str = "") -> Any:
        """Connect as Alice by a guard, past ``auth_ok``."""
        url = f"ws://127.0.0.1:{self.port}{under}/{guard}/{path}"
        if guard == "session_cookie":
            async with self.http() as http:
                login = {"username": "alice", "password": PASSWORD}
                answer = await http.post("/auth/session", json=login)
            (cookie,) = answer.cookies.items()
            headers = {"cookie": "=".join(cookie), "origin": self.origin}
            peer = await websockets.connect(url, additional_headers=headers, proxy=None)
        elif guard == "query_param":
            token = await self.token()
            peer = await websockets.connect(f"{url}?token={token}", proxy=None)
        else:
            peer = await websockets.connect(url, proxy=None)
            assert json.loads(await peer.recv())["type"] == "auth_required"
            await peer.send(json.dumps({"type": "auth", "token": await self.token()}))
        assert json.loads(await peer.recv())["type"] == "auth_ok"
        return peer


def build(auth: AuthWS, asked: list[Any]) -> FastAPI:
    app = FastAPI(lifespan=auth.lifespan)
    auth.install(app)
    for name in GUARDS:
        add_routes(app, getattr(auth, name), name, asked)
    add_own_routes(app)
    mounted = FastAPI()
    for name in GUARDS:
        add_routes(mounted, getattr(auth, name), name, asked)
    app.mount("/sub", mounted)
    return app


def add_routes(app: FastAPI, guard: Any, name: str, asked: list[Any]) -> None:
    @app.websocket(f"/{name}/ws")
    async def echo(connection: Annotated[Connection, Depends(guard)]) -> None:
        async for message in connection:
            await connection.send_json({"echo": message})
        asked.append("over")

    @app.websocket(f"/{name}/fails")
    async def fails(connection: Annotated[Connection, Depends(guard)]) -> None:
        raise ValueError("a bug in the user's code")

    @app.websocket(f"/{name}/admin")
    async def admin(
        connection: Annotated[Connection, Depends(guard.requires("admin"))],
    ) -> None:
        asked.append("admin was let in")

    @app.websocket(f"/{name}/lobby")
    async def lobby(
        connection: Annotated[Connection, Depends(guard.requires("join:lobby"))],
    ) -> None:
        await connection.close(1000, "covered")

    @app.get(f"/{name}/lobby")
    async def read_lobby(
        principal: Annotated[Principal, Depends(guard.requires("join:lobby"))],
    ) -> str:
        return principal.subject

    @app.get(f"/{name}/publishers")
    async def publishers(
        principal: Annotated[Principal, Depends(guard.requires("publish:*"))],
    ) -> None:
        asked.append("a publisher was let in")

    @app.websocket(f"/{name}/closes")
    async def closes(connection: Annotated[Connection, Depends(guard)]) -> None:
        for number in range(5000):
            await connection.send_text(str(number))
        await connection.close(1000, "done")

    @app.get(f"/{name}/me")
    async def me(principal: Annotated[Principal, Depends(guard)]) -> str:
        return principal.subject


@asynccontextmanager
async def running_app(tmp_path: Path, **settings: Any) -> AsyncIterator[App]:
    asked: list[Any] = []
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    told: dict[str, Any] = (
        {} if settings.pop("is_port_unknown", False) else {"port": port}
    )
    auth = AuthWS(data_dir=tmp_path / "data", login_rate=0, **told, **settings)
    async with serving(build(auth, asked), port=port):
        database = Database(auth.house.settings.database)
        hasher = PasswordHasher()
        await Users(database, hasher, Clock()).add("alice", PASSWORD, ["join:*"])
        hasher.close()
        await database.dispose()
        yield App(port, asked)


@pytest.fixture
async def app(tmp_path: Path) -> AsyncIterator[App]:
    async with running_app(tmp_path) as app:
        yield app


@pytest.mark.parametrize("guard", GUARDS)
async def test_guards_are_interchangeable(app: App, guard: str) -> None:
    async with await app.connect(guard) as peer:
        await peer.send("hello")
        assert json.loads(await peer.recv()) == {"echo": "hello"}


@pytest.mark.parametrize("guard", GUARDS)
async def test_handler_that_fails_closes_1011_and_tells_nothing(
    app: App, guard: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with await app.connect(guard, "fails") as peer:
        with pytest.raises(ConnectionClosed) as closed:
            await peer.recv()
    assert closed.value.rcvd is not None
    assert (closed.value.rcvd.code, closed.value.rcvd.reason) == (
        1011,
        "internal_error",
    )
    assert any("correlation id" in record.getMessage() for record in caplog.records)


@pytest.mark.parametrize("guard", GUARDS)
async def test_missing_scope_closes_forbidden_and_runs_no_handler(
    app: App, guard: str
) -> None:
    with pytest.raises(ConnectionClosed) as closed:
        await app.connect(guard, "admin")
    assert closed.value.rcvd is not None
    assert (closed.value.rcvd.code, closed.value.rcvd.reason) == (1008, "forbidden")
    assert app.asked == []


@pytest.mark.parametrize("guard", GUARDS)
async def test_wider_scope_covers_the_one_that_a_guard_demands(
    app: App, guard: str
) -> None:
    async with await app.connect(guard, "lobby") as peer:
        with pytest.raises(ConnectionClosed) as closed:
            await peer.recv()
    assert closed.value.rcvd is not None
    assert (closed.value.rcvd.code, closed.value.rcvd.reason) == (1000, "covered")


async def test_wider_scope_covers_the_one_that_a_route_demands(app: App) -> None:
    bearer = {"authorization": f"Bearer {await app.token()}"}
    async with app.http() as http:
        covered = await http.get("/first_message/lobby", headers=bearer)
        other = await http.get("/first_message/publishers", headers=bearer)
    assert (covered.status_code, covered.json()) == (200, "alice")
    assert (other.status_code, other.json()) == (403, {"detail": "forbidden"})
    assert app.asked == []


@pytest.mark.parametrize("guard", GUARDS)
async def test_handler_may_send_more_than_an_outbox_holds(app: App, guard: str) -> None:
    async with await app.connect(guard, "closes") as peer:
        received = [int(message) async for message in peer]
    assert received == list(range(5000))
    assert (peer.close_code, peer.close_reason) == (1000, "done")


async def test_http_routes_know_the_principal_and_refuse_without_one(app: App) -> None:
    bearer = {"authorization": f"Bearer {await app.token()}"}
    async with app.http() as http:
        by_header = await http.get("/first_message/me", headers=bearer)
        by_query = await http.get(f"/query_param/me?token={await app.token()}")
        login = {"username": "alice", "password": PASSWORD}
        await http.post("/auth/session", json=login)
        by_cookie = await http.get("/session_cookie/me")
        foreign = await http.get(
            "/session_cookie/me", headers={"origin": "https://evil.example"}
        )
    for answer in (by_header, by_query, by_cookie):
        assert (answer.status_code, answer.json()) == (200, "alice")
    assert (foreign.status_code, foreign.json()) == (
        403,
        {"detail": "origin_forbidden"},
    )
    async with app.http() as http:
        refused = [await http.get(f"/{guard}/me") for guard in GUARDS]
    assert {answer.status_code for answer in refused} == {401}
    assert {answer.json()["detail"] for answer in refused} == {"auth_missing"}


def add_own_routes(app: FastAPI) -> None:
    """Routes of the host's own, and errors of its own."""

    @app.get("/own/declined")
    async def declined() -> None:
        raise HTTPException(402, "Card declined", {"x-own": "kept"})

    @app.get("/own/missing")
    async def missing() -> None:
        raise HTTPException(404, {"code": 7, "message": "no such order"})

    @app.get("/own/teapot")
    async def teapot() -> None:
        raise HTTPException(418)

    @app.post("/own/length")
    async def length(request: Request) -> int:
        return len(await request.body())

    @app.get("/own/number/{number}")
    async def number(number: int) -> int:
        return number


async def test_the_errors_of_the_host_app_stay_its_own(app: App) -> None:
    alone = FastAPI()
    add_own_routes(alone)
    paths = ("declined", "missing", "teapot", "number/seven", "nothing")
    async with serving(alone) as port, app.http() as http:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as bare:
            for path in paths:
                told = await http.get(f"/own/{path}")
                untold = await bare.get(f"/own/{path}")
                assert (told.status_code, told.text) == (
                    untold.status_code,
                    untold.text,
                ), path
                assert told.headers.keys() == untold.headers.keys()
        wrong_method = await http.delete("/own/teapot")
    assert wrong_method.json() == {"detail": "Method Not Allowed"}


def test_an_answer_that_the_host_app_has_already_is_kept(tmp_path: Path) -> None:
    async def own(_: Any, __: Exception) -> None: ...

    app = FastAPI()
    app.add_exception_handler(WebSocketDisconnect, own)
    app.add_exception_handler(HTTPException, own)
    before = dict(app.exception_handlers)
    AuthWS(data_dir=tmp_path / "data").install(app)
    assert before.items() <= app.exception_handlers.items()


async def test_the_login_routes_of_an_app_answer_as_those_of_the_service(
    app: App,
) -> None:
    async with app.http() as http:
        for path in ("/auth/login", "/auth/session"):
            unlike = {"username": "alice", "password": ["canary-word"]}
            answer = await http.post(path, json=unlike)
            assert (answer.status_code, answer.json()) == (
                422,
                {"detail": "request_invalid", "fields": ["body.password"]},
            )
            broken = '{"username":"alice","password":"canary-word'
            answer = await http.post(
                path, content=broken, headers={"content-type": "application/json"}
            )
            assert answer.json()["detail"] == "request_invalid"
            assert "canary" not in answer.text
            form = await http.post(path, data={"username": "alice"})
            assert (form.status_code, form.json()) == (
                415,
                {"detail": "json_expected"},
            )
        wrong = {"username": "alice", "password": "not hers at all"}
        answer = await http.post("/auth/login", json=wrong)
        assert answer.json() == {"detail": "credentials_invalid"}
        unknown = await http.delete(
            "/auth/sessions/unknown",
            headers={"authorization": f"Bearer {await app.token()}"},
        )
    assert (unknown.status_code, unknown.json()) == (404, {"detail": "session_unknown"})


PROTECTION = {
    "cache-control": "no-store",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
}


async def test_the_login_routes_of_an_app_are_kept_by_no_cache(app: App) -> None:
    login = {"username": "alice", "password": PASSWORD}
    async with app.http() as http:
        answers = [
            await http.post("/auth/login", json=login),
            await http.post("/auth/login", json={**login, "password": "not hers"}),
            await http.post("/auth/login", json={}),
            await http.post("/auth/session", json=login),
            await http.get("/auth/me"),
        ]
        assert [answer.status_code for answer in answers] == [200, 401, 422, 200, 200]
        own = await http.get("/own/number/7")
    for answer in answers:
        assert answer.headers.items() >= PROTECTION.items()
        assert "strict-transport-security" not in answer.headers
    assert own.headers.keys().isdisjoint(PROTECTION)


async def test_the_login_routes_of_an_app_know_their_hosts(
    app: App, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "authws.security")
    login = {"username": "alice", "password": PASSWORD}
    evil = {"host": "evil.example"}
    async with app.http() as http:
        answer = await http.post("/auth/login", json=login, headers=evil)
        own = await http.get("/own/number/7", headers=evil)
    assert (answer.status_code, answer.json()) == (400, {"detail": "host_unknown"})
    assert answer.headers.items() >= PROTECTION.items()
    assert (own.status_code, own.json()) == (200, 7)
    assert "AUTHWS_ALLOWED_HOSTS: 'evil.example'" in caplog.text


async def chunks(size: int) -> AsyncIterator[bytes]:
    """A body of a length that nothing announces."""
    yield b"a" * (size // 2)
    yield b"a" * (size // 2)


async def test_the_login_routes_of_an_app_read_no_huge_body(app: App) -> None:
    json_type = {"content-type": "application/json"}
    async with app.http() as http:
        for path in ("/auth/login", "/auth/session", "/auth/refresh"):
            for body in (b"a" * 70_000, chunks(70_000)):
                answer = await http.post(path, content=body, headers=json_type)
                assert (answer.status_code, answer.json()) == (
                    413,
                    {"detail": "body_too_large"},
                )
        own = await http.post("/own/length", content=b"a" * 5_000_000)
    assert (own.status_code, own.json()) == (200, 5_000_000)


async def test_a_failure_behind_a_login_route_tells_nothing(
    app: App, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def fail(*_: Any) -> None:
        raise ValueError("canary")

    monkeypatch.setattr("authws.service.accounts.Accounts.log_in", fail)
    async with app.http() as http:
        login = {"username": "alice", "password": PASSWORD}
        answer = await http.post("/auth/login", json=login)
    assert (answer.status_code, answer.json()["detail"]) == (500, "internal_error")
    assert answer.json()["correlation_id"] in caplog.text
    assert answer.headers["cache-control"] == "no-store"
    assert "canary" not in answer.text


async def test_logout_from_an_app_leaves_its_own_cookies(app: App) -> None:
    async with app.http() as http:
        login = {"username": "alice", "password": PASSWORD}
        await http.post("/auth/session", json=login)
        origin = {"origin": app.origin}
        answer = await http.delete("/auth/session", headers=origin)
        assert answer.status_code == 204
        assert answer.headers["set-cookie"].startswith('authws=""')
        assert "clear-site-data" not in answer.headers
        assert (await http.get("/auth/logout")).json() == {
            "detail": "Method Not Allowed"
        }


async def test_an_app_takes_its_own_pages_by_whatever_port_it_is_served(
    tmp_path: Path,
) -> None:
    login = {"username": "alice", "password": PASSWORD}
    async with running_app(tmp_path, is_port_unknown=True) as app:
        for guard in GUARDS:
            async with await app.connect(guard):
                pass
        async with app.http() as http:
            for name in ("127.0.0.1", "localhost", "[::1]"):
                own = {"origin": f"http://{name}:{app.port}"}
                answer = await http.post("/auth/session", json=login, headers=own)
                assert answer.status_code == 200, name
            other = f"http://127.0.0.1:{app.port + 1}"
            for origin in (other, f"https://127.0.0.1:{app.port}", "null"):
                answer = await http.post(
                    "/auth/session", json=login, headers={"origin": origin}
                )
                assert answer.status_code == 403, origin


async def test_an_app_that_names_its_origins_takes_no_others(tmp_path: Path) -> None:
    login = {"username": "alice", "password": PASSWORD}
    named = ["https://app.example.com"]
    async with (
        running_app(tmp_path, is_port_unknown=True, allowed_origins=named) as app,
        app.http() as http,
    ):
        answer = await http.post(
            "/auth/login", json=login, headers={"origin": app.origin}
        )
    assert (answer.status_code, answer.json()) == (403, {"detail": "origin_forbidden"})


async def test_peers_that_leave_in_the_handshake_log_no_traceback(
    app: App, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(10):
        peer = await websockets.connect(
            f"ws://127.0.0.1:{app.port}/first_message/ws", proxy=None
        )
        peer.transport.abort()
    async with await app.connect("first_message") as peer:
        await peer.send("still here")
        await peer.recv()
    assert not [record for record in caplog.records if record.exc_info]


async def test_guard_in_a_mounted_app_answers_for_itself(
    app: App, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "authws.security")
    garbage = {"authorization": "Bearer garbage"}
    bearer = {"authorization": f"Bearer {await app.token()}"}
    async with app.http() as http:
        for under in ("", "/sub"):
            path = f"{under}/first_message"
            missing = await http.get(f"{path}/me")
            assert (missing.status_code, missing.json()) == (
                401,
                {"detail": "auth_missing"},
            )
            assert missing.headers["www-authenticate"] == "Bearer"
            invalid = await http.get(f"{path}/me", headers=garbage)
            assert (invalid.status_code, invalid.json()) == (
                401,
                {"detail": "token_invalid"},
            )
            forbidden = await http.get(f"{path}/publishers", headers=bearer)
            assert (forbidden.status_code, forbidden.json()) == (
                403,
                {"detail": "forbidden"},
            )
            assert (await http.get(f"{path}/me", headers=bearer)).json() == "alice"
    lines = [r.getMessage() for r in caplog.records if r.name == "authws.security"]
    reasons = [json.loads(line).get("reason") for line in lines]
    for slug in ("auth_missing", "token_invalid", "forbidden"):
        assert reasons.count(slug) == 2
    assert not [record for record in caplog.records if record.exc_info]


@pytest.mark.parametrize("guard", GUARDS)
async def test_guarded_socket_in_a_mounted_app_ends_as_quietly(
    app: App, guard: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with await app.connect(guard, under="/sub") as peer:
        await peer.send("hello")
        assert json.loads(await peer.recv()) == {"echo": "hello"}
    with pytest.raises(ConnectionClosed) as closed:
        await app.connect(guard, "admin", under="/sub")
    assert closed.value.rcvd is not None
    assert closed.value.rcvd.reason == "forbidden"
    headers = {"origin": app.origin}
    for _ in range(5):
        url = f"ws://127.0.0.1:{app.port}/sub/{guard}/ws"
        gone = await websockets.connect(url, additional_headers=headers, proxy=None)
        gone.transport.abort()
    async with await app.connect(guard, under="/sub"):
        pass
    assert not [record for record in caplog.records if record.exc_info]


async def test_token_in_the_url_reaches_no_log(
    app: App, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    token = await app.token()
    url = f"ws://127.0.0.1:{app.port}/query_param/ws?token={token}"
    async with websockets.connect(url, proxy=None) as peer:
        await peer.recv()
    logged = [r.getMessage() for r in caplog.records if r.name != "websockets.client"]
    assert logged
    assert not [line for line in logged if token in line]


async def test_revoked_session_ends_the_iteration_of_its_handler(app: App) -> None:
    async with await app.connect("first_message") as peer, app.http() as http:
        await peer.send("hello")
        await peer.recv()
        bearer = {"authorization": f"Bearer {await app.token()}"}
        sessions = (await http.get("/auth/sessions", headers=bearer)).json()
        for session in sessions:
            if session["current"]:
                continue
            await http.delete(f"/auth/sessions/{session['id']}", headers=bearer)
        with pytest.raises(ConnectionClosed) as closed:
            await asyncio.wait_for(peer.recv(), 5)
    assert closed.value.rcvd is not None
    assert closed.value.rcvd.reason == "token_revoked"
    assert app.asked == ["over"]


async def test_app_without_the_lifespan_says_what_is_missing(tmp_path: Path) -> None:
    auth = AuthWS(data_dir=tmp_path / "data")
    with pytest.raises(ConfigurationError, match=r"lifespan=auth\.lifespan"):
        _ = auth.house


@pytest.mark.parametrize(
    ("misspelt", "meant"),
    [("acces_ttl", "did you mean access_ttl?"), ("foo", "docs/settings.md")],
)
def test_a_setting_that_does_not_exist_is_refused(
    tmp_path: Path, misspelt: str, meant: str
) -> None:
    settings: dict[str, Any] = {"data_dir": tmp_path / "data", misspelt: 5}
    with pytest.raises(ConfigurationError) as refused:
        AuthWS(**settings)
    assert misspelt in str(refused.value)
    assert meant in str(refused.value)


def test_verifying_only_needs_somebody_to_believe() -> None:
    with pytest.raises(ConfigurationError, match="jwks_url"):
        AuthWS(login=False)


async def test_verifying_only_keeps_nothing_and_adds_no_login() -> None:
    auth = AuthWS(
        login=False,
        jwks_url="http://127.0.0.1:1/jwks.json",
        jwks_issuer="https://issuer.example",
        jwks_audience="chat",
    )
    async with serving(build(auth, [])) as port, httpx.AsyncClient() as http:
        kept = auth.house.settings.data_dir
        login = {"username": "alice", "password": PASSWORD}
        answer = await http.post(f"http://127.0.0.1:{port}/auth/login", json=login)
        assert answer.status_code == 404
    assert not kept.exists()
