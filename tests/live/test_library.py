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
from fastapi import Depends, FastAPI
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

    async def connect(self, guard: str, path: str = "ws") -> Any:
        """Connect as Alice by a guard, past ``auth_ok``."""
        url = f"ws://127.0.0.1:{self.port}/{guard}/{path}"
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
    auth = AuthWS(data_dir=tmp_path / "data", port=port, login_rate=0, **settings)
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
