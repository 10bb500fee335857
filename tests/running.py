"""The whole service, really running: a private port, directory and database.

``running(tmp_path)`` serves with a thread and an event loop of its own; the test talks
to it over real sockets, and may reach into ``service.house`` for what no peer can do.
"""

from __future__ import annotations

import asyncio
import json
import logging
import socket
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import httpx
import websockets
from fastapi import FastAPI
from websockets.asyncio.client import ClientConnection
from websockets.datastructures import HeadersLike

from authws.clock import Clock
from authws.service.app import create_app
from authws.service.house import House
from authws.service.settings import Settings
from tests.databases import url_for
from tests.serving import serving

__all__ = ["ENDPOINTS", "PASSWORD", "STRATEGIES", "Service", "free_port", "running"]

T = TypeVar("T")
Serve = Callable[..., AbstractAsyncContextManager[int]]

PASSWORD = "correct horse battery staple"
STRATEGIES = ("query-param", "first-message", "session-cookie")
ENDPOINTS = tuple(f"/ws/{s}{e}" for s in STRATEGIES for e in ("", "/echo"))
SCOPES = ("join:*", "publish:*")


class TestClock(Clock):
    """The real clock, until a test moves it on."""

    __test__ = False

    def __init__(self) -> None:
        self.offset = 0.0

    def now(self) -> float:
        return super().now() + self.offset


@dataclass
class Service:
    """A running service, and what a test needs to talk to it."""

    port: int
    app: FastAPI
    house: House
    loop: asyncio.AbstractEventLoop
    clock: TestClock
    records: list[logging.LogRecord] = field(default_factory=list)

    @property
    def origin(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def security_events(self) -> list[dict[str, Any]]:
        """The lines of the security log, parsed."""
        return [
            json.loads(record.getMessage())
            for record in self.records
            if record.name == "authws.security"
        ]

    async def call(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine on the server's own event loop."""
        return await asyncio.wrap_future(
            asyncio.run_coroutine_threadsafe(work, self.loop)
        )

    async def add_user(
        self, name: str = "alice", *, scopes: tuple[str, ...] = SCOPES
    ) -> str:
        await self.call(self.house.users.add(name, PASSWORD, scopes))
        return name

    def http(self, **options: Any) -> httpx.AsyncClient:
        """An HTTP client of a page of the service's own origin."""
        headers = {"origin": self.origin, **options.pop("headers", {})}
        return httpx.AsyncClient(base_url=self.origin, headers=headers, **options)

    async def login(self, name: str = "alice", password: str = PASSWORD) -> Any:
        """Log in over REST; return the JSON body."""
        async with self.http() as http:
            answer = await http.post(
                "/auth/login", json={"username": name, "password": password}
            )
        answer.raise_for_status()
        return answer.json()

    async def token(self, name: str = "alice") -> str:
        return str((await self.login(name))["access_token"])

    async def cookie(self, name: str = "alice") -> str:
        """Log in with a session; return the Cookie header."""
        async with self.http() as http:
            answer = await http.post(
                "/auth/session", json={"username": name, "password": PASSWORD}
            )
            answer.raise_for_status()
            return "; ".join(f"{k}={v}" for k, v in answer.cookies.items())

    async def ticket(self, token: str) -> str:
        async with self.http(headers={"authorization": f"Bearer {token}"}) as http:
            answer = await http.post("/auth/ticket")
        answer.raise_for_status()
        return str(answer.json()["ticket"])

    def url(self, path: str) -> str:
        return f"ws://127.0.0.1:{self.port}{path}"

    async def open(
        self, path: str, *, headers: HeadersLike | None = None, **options: Any
    ) -> ClientConnection:
        """Open a WebSocket without any credential."""
        return await websockets.connect(
            self.url(path),
            additional_headers=headers,
            compression=None,
            open_timeout=10,
            proxy=None,
            **options,
        )

    async def connect(
        self, strategy: str, name: str = "alice", *, echo: bool = False, **options: Any
    ) -> ClientConnection:
        """Log in and connect, by any strategy, up to and including ``auth_ok``."""
        path = f"/ws/{strategy}" + ("/echo" if echo else "")
        if strategy == "session-cookie":
            headers = {"cookie": await self.cookie(name), "origin": self.origin}
            peer = await self.open(path, headers=headers, **options)
        elif strategy == "query-param":
            peer = await self.open(f"{path}?token={await self.token(name)}", **options)
        else:
            token = await self.token(name)
            peer = await self.open(path, **options)
            assert json.loads(await peer.recv())["type"] == "auth_required"
            await peer.send(json.dumps({"type": "auth", "token": token}))
        if not echo or strategy == "first-message":
            welcome = json.loads(await asyncio.wait_for(peer.recv(), 10))
            assert welcome["type"] == "auth_ok", welcome
        return peer


class _Recorder(logging.Handler):
    def __init__(self, records: list[logging.LogRecord]) -> None:
        super().__init__(logging.DEBUG)
        self._records = records

    def emit(self, record: logging.LogRecord) -> None:
        self._records.append(record)


@asynccontextmanager
async def running(tmp_path: Path, **settings: Any) -> AsyncIterator[Service]:
    """Serve a fresh service; ``settings`` override the defaults.

    ``server`` among them goes to ``build_config``, such as a shorter ping interval;
    ``served_by`` is another server than ours, as ``tests.foreign`` has them.
    Every log record of every logger is kept in ``service.records``.
    """
    # bound before the app is made, and kept: of a number alone another test run on
    # this machine could come first
    listener = socket.create_server(("127.0.0.1", settings.pop("port", 0)))
    port = listener.getsockname()[1]
    server: dict[str, Any] = settings.pop("server", {})
    serve: Serve = settings.pop("served_by", serving)
    clock = TestClock()
    data_dir: Path = settings.pop("data_dir", tmp_path / "data")
    settings.setdefault("database_url", await url_for(data_dir))
    configured = Settings(
        _env_file=None,
        data_dir=data_dir,
        port=port,
        **{"login_rate": 0, **settings},
    )
    app = create_app(configured, clock=clock)
    house: House = app.state.authws
    started: asyncio.Future[asyncio.AbstractEventLoop] = asyncio.Future()
    here = asyncio.get_running_loop()
    start = house.start

    async def tell_loop() -> None:
        await start()
        here.call_soon_threadsafe(started.set_result, asyncio.get_running_loop())

    house.start = tell_loop  # type: ignore[method-assign]
    records: list[logging.LogRecord] = []
    recorder = _Recorder(records)
    watched = [logging.getLogger()]
    for logger in watched:
        logger.addHandler(recorder)
    for name in ("authws", "authws.security", "uvicorn", "uvicorn.error"):
        logging.getLogger(name).setLevel(logging.INFO)
    try:
        async with serve(
            app,
            listener=listener,
            max_message_bytes=configured.max_message_bytes,
            trusted_proxies=configured.trusted_proxies,
            **server,
        ):
            yield Service(port, app, house, await started, clock, records)
    finally:
        listener.close()
        for logger in watched:
            logger.removeHandler(recorder)


def free_port() -> int:
    """Return a port of 127.0.0.1 that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
