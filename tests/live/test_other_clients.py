"""Clients that we did not write: Node's ``ws``, and curl for REST and the handshake."""

from __future__ import annotations

import asyncio
import base64
import json
import shutil
import subprocess
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from tests.grants import Grant, grant
from tests.requirements import require
from tests.running import PASSWORD, STRATEGIES, Service, running

pytestmark = pytest.mark.asyncio(loop_scope="module")

NODE_CLIENT = Path(__file__).parents[1] / "node" / "client.mjs"
QUERY, FIRST, COOKIE = STRATEGIES
PATIENCE = 15.0


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def service(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Service]:
    async with running(tmp_path_factory.mktemp("after")) as service:
        await service.add_user("alice")
        yield service


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def closed(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Service]:
    """A service that refuses before it accepts."""
    path = tmp_path_factory.mktemp("before")
    async with running(path, refuse="before_accept") as service:
        await service.add_user("alice")
        yield service


# ------------------------------------------------------------------------------ Node


@cache
def require_node() -> None:
    node = shutil.which("node")
    require("node", node is not None, "no node on the PATH (install nodejs and npm)")
    installed = (NODE_CLIENT.parent / "node_modules" / "ws").is_dir()
    require("node-ws", installed, "tests/node is not installed: `npm ci` there")


class NodePeer:
    """One WebSocket of a Node process."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self.subprotocol = ""

    async def opened(self) -> None:
        """Wait for the end of the handshake."""
        self.subprotocol = (await self.hear())["open"]

    async def hear(self) -> dict[str, Any]:
        """Return the next thing that happened."""
        assert self._process.stdout is not None
        line = await asyncio.wait_for(self._process.stdout.readline(), PATIENCE)
        assert line, "node ended without a word"
        event = json.loads(line)
        assert isinstance(event, dict)
        return event

    async def message(self) -> dict[str, Any]:
        """Return the next message, which must be JSON text."""
        event = await self.hear()
        assert "text" in event, event
        message = json.loads(event["text"])
        assert isinstance(message, dict)
        return message

    def do(self, **order: Any) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(order).encode() + b"\n")

    def say(self, **message: Any) -> None:
        self.do(text=json.dumps(message))

    async def ending(self) -> tuple[int, str]:
        """Read on to the end; return its code and reason, or its HTTP status."""
        while True:
            event = await self.hear()
            if "status" in event:
                return event["status"], ""
            if "close" in event:
                return event["close"], event["reason"]


@asynccontextmanager
async def node(
    service: Service, path: str, credential: str | None = None, **options: Any
) -> AsyncIterator[NodePeer]:
    """Open a WebSocket by Node, presenting a credential as the strategy demands."""
    require_node()
    strategy = path.split("/")[2]
    if strategy == QUERY and credential is not None:
        path = f"{path}?token={credential}"
    if strategy == COOKIE:
        cookie = {} if credential is None else {"cookie": f"authws={credential}"}
        options = {"origin": service.origin, "headers": cookie, **options}
    process = await asyncio.create_subprocess_exec(
        "node",
        str(NODE_CLIENT),
        service.url(path),
        json.dumps(options),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        limit=2**20,  # of a line
    )
    peer = NodePeer(process)
    try:
        if strategy == FIRST and "origin" not in options:
            await peer.opened()
            assert (await peer.message())["type"] == "auth_required"
            token = {} if credential is None else {"token": credential}
            peer.say(type="auth", **token)
        yield peer
    finally:
        assert process.stdin is not None
        process.stdin.close()
        if process.returncode is None:
            await asyncio.wait_for(process.wait(), PATIENCE)


@asynccontextmanager
async def node_inside(
    service: Service, granted: Grant, **options: Any
) -> AsyncIterator[NodePeer]:
    path = f"/ws/{granted.strategy}"
    async with node(service, path, granted.credential, **options) as peer:
        if granted.strategy != FIRST:
            await peer.opened()
        welcome = await peer.message()
        assert (welcome["type"], welcome["subject"]) == ("auth_ok", "alice")
        yield peer


@pytest.mark.parametrize("strategy", STRATEGIES)
async def test_node_chats(service: Service, strategy: str) -> None:
    one = await grant(service, strategy)
    async with node_inside(service, one) as peer:
        peer.say(type="join", room="lobby")
        assert (await peer.message())["members"] == ["alice"]
        peer.say(type="publish", room="lobby", data={"grüße": "😀"}, id=1)
        heard = [await peer.message(), await peer.message()]
        assert [m["type"] for m in heard] == ["message", "ack"]
        assert heard[0]["data"] == {"grüße": "😀"}
        peer.do(close=1000)
        assert await peer.ending() == (1000, "bye")


@pytest.mark.parametrize("strategy", STRATEGIES)
async def test_node_gets_the_subprotocol_it_offers(
    service: Service, strategy: str
) -> None:
    one = await grant(service, strategy)
    offered = ["chat", "authws.v1"]
    async with node_inside(service, one, protocols=offered) as peer:
        assert peer.subprotocol == "authws.v1"


@pytest.mark.parametrize("strategy", STRATEGIES)
async def test_node_is_echoed(service: Service, strategy: str) -> None:
    one = await grant(service, strategy)
    async with node(service, f"/ws/{strategy}/echo", one.credential) as peer:
        if strategy == FIRST:
            assert (await peer.message())["type"] == "auth_ok"
        else:
            await peer.opened()
        binary = base64.b64encode(bytes(range(256)) * 200).decode()
        for message in ({"text": "hello"}, {"text": ""}, {"binary": binary}):
            peer.do(**message)
            assert await peer.hear() == message


BAD: list[tuple[str, str | None, str]] = [
    (QUERY, None, "auth_missing"),
    (QUERY, "garbage", "token_invalid"),
    (FIRST, None, "auth_missing"),
    (FIRST, "garbage", "token_invalid"),
    (COOKIE, None, "auth_missing"),
    (COOKIE, "garbage", "session_invalid"),
]


@pytest.mark.parametrize(("strategy", "credential", "slug"), BAD)
async def test_node_sees_1008_and_the_reason(
    service: Service, strategy: str, credential: str | None, slug: str
) -> None:
    async with node(service, f"/ws/{strategy}", credential) as peer:
        assert await peer.ending() == (1008, slug)


@pytest.mark.parametrize(("strategy", "credential", "slug"), BAD)
async def test_node_sees_403_where_refused_before_accept(
    closed: Service, strategy: str, credential: str | None, slug: str
) -> None:
    expected = (1008, slug) if strategy == FIRST else (403, "")
    async with node(closed, f"/ws/{strategy}", credential) as peer:
        assert await peer.ending() == expected


@pytest.mark.parametrize("strategy", STRATEGIES)
async def test_node_sees_403_from_a_foreign_page(
    service: Service, strategy: str
) -> None:
    one = await grant(service, strategy)
    evil = "https://evil.example"
    path = f"/ws/{strategy}"
    async with node(service, path, one.credential, origin=evil) as peer:
        assert await peer.ending() == (403, "")


@pytest.mark.parametrize("strategy", STRATEGIES)
async def test_node_sees_the_end_of_its_session(
    service: Service, strategy: str
) -> None:
    one = await grant(service, strategy)
    async with node_inside(service, one) as peer:
        await one.end()
        slug = "session_revoked" if strategy == COOKIE else "token_revoked"
        assert await peer.ending() == (1008, slug)


# ------------------------------------------------------------------------------ curl

HANDSHAKE = (
    "Connection: Upgrade",
    "Upgrade: websocket",
    "Sec-WebSocket-Version: 13",
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
)


async def curl(*arguments: str, headers: Sequence[str] = ()) -> bytes:
    """Run curl, and return what it printed."""
    require("curl", shutil.which("curl") is not None, "no curl on the PATH")
    lines = [part for line in headers for part in ("--header", line)]
    command = ["curl", "--silent", "--noproxy", "*", "--max-time", "10"]
    done = await asyncio.to_thread(
        subprocess.run, [*command, *lines, *arguments], capture_output=True, check=False
    )
    return done.stdout


async def curl_websocket(
    service: Service, path: str, *headers: str
) -> tuple[int, bytes]:
    """Make a handshake by curl; return the status, and every byte behind the head."""
    arguments = ("--include", "--no-buffer", "--http1.1", service.origin + path)
    said = await curl(*arguments, headers=[*HANDSHAKE, *headers])
    head, _, frames = said.partition(b"\r\n\r\n")
    return int(head.split()[1]), frames


def close_frame(code: int, reason: str) -> bytes:
    payload = code.to_bytes(2, "big") + reason.encode()
    return bytes([0x88, len(payload)]) + payload


@pytest.mark.parametrize("echo", ["", "/echo"])
async def test_curl_sees_a_wrong_token_closed_with_its_reason(
    service: Service, echo: str
) -> None:
    status, frames = await curl_websocket(service, f"/ws/query-param{echo}?token=x")
    assert (status, frames) == (101, close_frame(1008, "token_invalid"))


async def test_curl_sees_a_wrong_cookie_closed_with_its_reason(
    service: Service,
) -> None:
    status, frames = await curl_websocket(
        service,
        "/ws/session-cookie",
        f"Origin: {service.origin}",
        "Cookie: authws=garbage",
    )
    assert (status, frames) == (101, close_frame(1008, "session_invalid"))


async def test_curl_sees_what_a_silent_first_message_gets(tmp_path: Path) -> None:
    async with running(tmp_path, auth_timeout=0.3) as service:
        status, frames = await curl_websocket(service, "/ws/first-message")
    ask = b'{"type":"auth_required","timeout":0.3}'
    assert status == 101
    assert frames == bytes([0x81, len(ask)]) + ask + close_frame(1008, "auth_timeout")


@pytest.mark.parametrize(
    ("path", "headers"),
    [
        ("/ws/query-param?token=x", ()),
        ("/ws/first-message?token=x", ()),
        ("/ws/session-cookie", ("Cookie: authws=x",)),
    ],
)
async def test_curl_sees_403_where_refused_before_accept(
    closed: Service, path: str, headers: tuple[str, ...]
) -> None:
    answer = await curl_websocket(closed, path, *headers, f"Origin: {closed.origin}")
    assert answer == (403, b"")


@pytest.mark.parametrize("strategy", STRATEGIES)
async def test_curl_sees_403_from_a_foreign_page(
    service: Service, strategy: str
) -> None:
    evil = "Origin: https://evil.example"
    assert await curl_websocket(service, f"/ws/{strategy}", evil) == (403, b"")


async def test_curl_receives_auth_ok(tmp_path: Path) -> None:
    async with running(tmp_path) as service:
        await service.add_user("alice")
        token = (await grant(service, QUERY)).access(ttl=1.5)
        status, frames = await curl_websocket(service, f"/ws/query-param?token={token}")
    assert status == 101
    assert b'"type":"auth_ok","subject":"alice"' in frames
    assert frames.endswith(close_frame(1008, "token_expired"))


async def test_curl_walks_through_rest(service: Service, tmp_path: Path) -> None:
    json_body = ["Content-Type: application/json"]
    origin = service.origin
    who = json.dumps({"username": "alice", "password": PASSWORD})

    async def post(path: str, *more: str, headers: Sequence[str] = ()) -> Any:
        return json.loads(
            await curl("--request", "POST", *more, origin + path, headers=headers)
        )

    login = await post("/auth/login", "--data", who, headers=json_body)
    bearer = [f"Authorization: Bearer {login['access_token']}"]
    me = json.loads(await curl(f"{origin}/auth/me", headers=bearer))
    assert me["subject"] == "alice"
    ticket = await post("/auth/ticket", headers=bearer)
    assert ticket["expires_in"] <= 30

    jar = str(tmp_path / "cookies")
    at_home = [f"Origin: {origin}"]
    await post(
        "/auth/session",
        *("--cookie-jar", jar, "--data", who),
        headers=[*json_body, *at_home],
    )
    me = json.loads(await curl("--cookie", jar, f"{origin}/auth/me"))
    assert me["subject"] == "alice"

    out = ("--output", "/dev/null", "--write-out", "%{http_code}")
    logout = await curl(
        "--request", "POST", *out, f"{origin}/auth/logout", headers=bearer
    )
    assert logout == b"204"
    logout = await curl(
        *("--request", "DELETE", "--cookie", jar, *out),
        f"{origin}/auth/session",
        headers=at_home,
    )
    assert logout == b"204"
    gone = await curl(*out, f"{origin}/auth/me", headers=bearer)
    assert gone == b"401"
    wrong = await curl(
        "--include",
        "--data",
        '{"username":"alice","password":"x"}',
        f"{origin}/auth/login",
        headers=json_body,
    )
    assert wrong.startswith(b"HTTP/1.1 401")
    assert wrong.endswith(b'{"detail":"credentials_invalid"}')
