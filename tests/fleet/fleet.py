"""Several real ``authws serve``, one broker and one database; clients of each."""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import signal
import ssl
import sys
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import websockets
from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed

from authws.cli.stores import opened
from authws.cli.user import DEFAULT_SCOPES
from authws.service.settings import Settings
from tests.fleet.hosts import Host
from tests.servers.process import free_ports

__all__ = [
    "LEASE",
    "PASSWORD",
    "Fleet",
    "Site",
    "Talker",
    "eventually",
    "fleet",
    "site",
]

PASSWORD = "correct horse battery staple"
PATIENCE = 30.0
LEASE = 2.0
"""Seconds; what the tests set as AUTHWS_PRESENCE_LEASE."""


@dataclass
class Site:
    """One ``authws serve``, with one worker or several."""

    command: Sequence[str]
    environment: dict[str, str]
    origin: str
    errors: Path
    process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        """Start it, and wait until it listens."""
        with self.errors.open("ab") as stderr:
            self.process = await asyncio.create_subprocess_exec(
                *self.command,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=stderr,
                env=self.environment,
                start_new_session=True,
            )
        assert self.process.stdout is not None
        async with asyncio.timeout(PATIENCE):
            async for line in self.process.stdout:
                if b"authws is at" in line:
                    return
        raise AssertionError(f"it did not start: {self.said[-3000:]}")

    @property
    def said(self) -> str:
        """What it wrote to stderr."""
        return self.errors.read_text()

    @property
    def is_running(self) -> bool:
        return self.process is not None and self.process.returncode is None

    def send(self, number: signal.Signals) -> None:
        """Send a signal to its first process."""
        assert self.process is not None
        self.process.send_signal(number)

    async def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        """End it; return its status."""
        assert self.process is not None
        if self.is_running:
            self.send(signal.SIGCONT)
            self.send(number)
        async with asyncio.timeout(PATIENCE):
            return await self.process.wait()

    async def clear(self) -> None:
        """Leave nothing of it, whatever state it is in."""
        if self.process is None:
            return
        if self.is_running:
            self.send(signal.SIGCONT)
            self.send(signal.SIGTERM)
            try:
                async with asyncio.timeout(10):
                    await self.process.wait()
            except TimeoutError:
                os.killpg(self.process.pid, signal.SIGKILL)
                await self.process.wait()


@dataclass
class Talker:
    """A client that hears everything."""

    peer: ClientConnection
    heard: list[dict[str, Any]] = field(default_factory=list)
    ending: tuple[int, str] | None = None
    _task: asyncio.Task[None] | None = None
    _changed: asyncio.Event = field(default_factory=asyncio.Event)

    async def listen(self) -> None:
        self._task = asyncio.create_task(self._listen())

    async def say(self, **message: Any) -> None:
        await self.peer.send(json.dumps(message))

    async def join(self, room: str, **more: Any) -> dict[str, Any]:
        """Join a room; return the answer."""
        before = len(self.heard)
        await self.say(type="join", room=room, **more)
        answers: list[dict[str, Any]] = []

        def is_answered() -> bool:
            answers[:] = [
                message
                for message in self.heard[before:]
                if message["type"] == "error"
                or (message["type"], message.get("room")) == ("joined", room)
            ]
            return bool(answers)

        await self.until(is_answered)
        assert answers[0]["type"] == "joined", answers[0]
        return answers[0]

    async def publish(self, data: Any, room: str = "lobby") -> bool:
        """Publish; tell whether it was acknowledged (and not answered by an error)."""
        number = secrets.token_hex(6)
        await self.say(type="publish", room=room, data=data, id=number)
        await self.until(
            lambda: self.of("ack", id=number) or self.of("error", id=number)
        )
        return bool(self.of("ack", id=number))

    def of(self, kind: str, **fields: Any) -> list[dict[str, Any]]:
        return [
            message
            for message in self.heard
            if message["type"] == kind
            and all(message.get(name) == value for name, value in fields.items())
        ]

    def texts(self, room: str = "lobby") -> list[Any]:
        """What was said in a room."""
        return [message["data"] for message in self.of("message", room=room)]

    def here(self, room: str = "lobby") -> set[str]:
        """Who is in a room, by what was told."""
        present: set[str] = set()
        for message in self.heard:
            if message.get("room") != room:
                continue
            if message["type"] == "joined":
                present = set(message["members"])
            elif message["type"] == "presence":
                change = (
                    present.add if message["event"] == "joined" else present.discard
                )
                change(message["subject"])
        return present

    async def until(self, condition: Callable[[], object]) -> None:
        """Wait until what was heard is as it should be."""
        try:
            async with asyncio.timeout(PATIENCE):
                while not condition():
                    self._changed.clear()
                    try:
                        async with asyncio.timeout(0.2):
                            await self._changed.wait()
                    except TimeoutError:
                        continue
        except TimeoutError:
            raise AssertionError(f"not so: {self.heard[-6:]}, {self.ending}") from None

    async def close(self) -> None:
        await self.peer.close()
        if self._task is not None:
            await self._task

    async def _listen(self) -> None:
        try:
            async for text in self.peer:
                self.heard.append(json.loads(text))
                self._changed.set()
        except ConnectionClosed:
            pass
        received = self.peer.close_code, self.peer.close_reason or ""
        self.ending = (received[0] or 1006, received[1])
        self._changed.set()


@dataclass
class Fleet:
    """All sites, and what their clients need."""

    sites: list[Site]
    settings: dict[str, Any]
    directory: Path
    trust: ssl.SSLContext | None = None
    workers: int = 1
    """Of each site."""
    _tokens: dict[str, str] = field(default_factory=dict)
    _talkers: list[Talker] = field(default_factory=list)

    async def add_user(
        self, *names: str, scopes: Sequence[str] = DEFAULT_SCOPES
    ) -> None:
        """Add users as an operator does: from a process that is not the server."""
        settings = Settings(
            _env_file=None,
            data_dir=self.directory / "data",
            database_url=self.settings.get("database_url"),
        )
        async with opened(settings) as stores:
            for name in names:
                await stores.users.add(name, PASSWORD, scopes)

    def http(self, number: int = 0, **headers: str) -> httpx.AsyncClient:
        """An HTTP client of a page of the service's own origin."""
        site = self.sites[number % len(self.sites)]
        return httpx.AsyncClient(
            base_url=site.origin,
            headers={"origin": self.origin_of(number), **headers},
            verify=self.trust or True,
            timeout=PATIENCE,
            trust_env=False,
        )

    def origin_of(self, number: int) -> str:
        return str(
            self.settings.get("public_origin")
            or self.sites[number % len(self.sites)].origin
        )

    async def log_in(self, name: str, number: int = 0) -> str:
        """Log in over REST; return a fresh access token."""
        async with self.http(number) as http:
            answer = await http.post(
                "/auth/login", json={"username": name, "password": PASSWORD}
            )
        answer.raise_for_status()
        return str(answer.json()["access_token"])

    async def token(self, name: str) -> str:
        """The same token each time: a login costs a password hash."""
        if name not in self._tokens:
            self._tokens[name] = await self.log_in(name)
        return self._tokens[name]

    async def cookie(self, name: str, number: int = 0) -> str:
        async with self.http(number) as http:
            answer = await http.post(
                "/auth/session", json={"username": name, "password": PASSWORD}
            )
            answer.raise_for_status()
            return "; ".join(f"{key}={value}" for key, value in answer.cookies.items())

    async def open(self, number: int, path: str, **options: Any) -> ClientConnection:
        """Open a WebSocket without any credential."""
        site = self.sites[number % len(self.sites)]
        return await websockets.connect(
            site.origin.replace("http", "ws", 1) + path,
            ssl=self.trust if site.origin.startswith("https") else None,
            compression=None,
            open_timeout=PATIENCE,
            proxy=None,
            **options,
        )

    async def enter(
        self, number: int, name: str, *rooms: str, token: str = ""
    ) -> Talker:
        """Connect to a site, and join rooms."""
        token = token or await self.token(name)
        peer = await self.open(number, f"/ws/query-param?token={token}")
        talker = await self.talk(peer)
        for room in rooms:
            await talker.join(room)
        return talker

    async def talk(self, peer: ClientConnection) -> Talker:
        """Listen to what a connection says, and see that it was let in."""
        talker = Talker(peer)
        self._talkers.append(talker)
        await talker.listen()
        await talker.until(lambda: talker.of("auth_ok") or talker.ending)
        assert talker.ending is None, talker.ending
        return talker

    async def dismiss(self) -> None:
        """Close all clients."""
        for talker in self._talkers:
            await talker.close()
        self._talkers.clear()


def site(
    directory: Path,
    number: int,
    *options: str,
    port: int,
    settings: dict[str, Any],
    address: str = "127.0.0.1",
    scheme: str = "http",
    prefix: Sequence[str] = (),
) -> Site:
    """One ``authws serve``, not started yet; ``prefix`` is what runs the command."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith("AUTHWS_")}
    given = {f"AUTHWS_{name.upper()}": str(value) for name, value in settings.items()}
    command = [sys.executable, "-m", "authws", "serve", "--port", str(port), *options]
    return Site(
        [*prefix, *command],
        {**clean, "AUTHWS_DATA_DIR": str(directory / "data"), **given},
        f"{scheme}://{address}:{port}",
        directory / f"site-{number}.txt",
    )


@asynccontextmanager
async def fleet(
    directory: Path,
    broker_url: str,
    *options: str,
    count: int = 2,
    hosts: Sequence[Host] = (),
    own: Mapping[int, Mapping[str, Any]] | None = None,
    **settings: Any,
) -> AsyncIterator[Fleet]:
    """Run some sites on this machine, on one broker and by default one SQLite file.

    ``hosts`` are machines for them to run on, one each, instead of this one; ``own``
    are settings of single sites, by number.
    """
    settings = {
        "broker_url": broker_url,
        "broker_prefix": f"f{secrets.token_hex(4)}",
        "secret_keys": secrets.token_urlsafe(48),
        "presence_lease": LEASE,
        "login_rate": 0,
        "drain": 3,
        **settings,
    }
    sites = []
    for number, port in enumerate(free_ports(len(hosts) or count)):
        given = {**settings, **(own or {}).get(number, {})}
        words, where = options, dict[str, Any]()
        if hosts:
            host = hosts[number]
            given["data_dir"] = directory / f"data-{number}"
            words = ("--host", host.address, *options)
            where = {"address": host.address, "prefix": host.prefix}
        sites.append(
            site(directory, number, *words, port=port, settings=given, **where)
        )
    # a page of any of them may connect to all of them
    origins = ",".join(one.origin for one in sites)
    for one in sites:
        one.environment.setdefault("AUTHWS_ALLOWED_ORIGINS", origins)
    async with AsyncExitStack() as stack:
        made = Fleet(sites, settings, directory, workers=settings.get("workers", 1))
        for one in sites:
            stack.push_async_callback(one.clear)
            await one.start()
        stack.push_async_callback(made.dismiss)
        yield made


async def eventually(condition: Callable[[], Any], within: float = PATIENCE) -> None:
    """Wait until something is so; the condition may be a coroutine function."""
    async with asyncio.timeout(within):
        while True:
            result = condition()
            if asyncio.iscoroutine(result):
                result = await result
            if result:
                return
            await asyncio.sleep(0.02)
