"""How the peers of the soak live: each comes, does something, and goes in some way."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import httpx

from bench.peers import STRATEGIES, Credential, Peer, RefusedError, connect
from bench.served import PASSWORD, Served

__all__ = ["ACCESS_TTL", "ROOMS", "Town", "live_in"]

ROOMS = 30
ACCESS_TTL = 25
"""Seconds, so that tokens expire, and connections with them, all the time."""
REFRESH_EVERY = 8.0
LIFE = 6.0
"""Seconds that one chats, on average."""
AT_MOST = 90.0
"""Seconds that any life takes; the longest waits for its token to expire."""
BIG = "y" * 50_000

chance = random.Random(6455)  # noqa: S311 - the same churn every time, if not the same order


# --------------------------------------------------------------------------- accounts


class Account:
    """A user, with a session whose tokens are kept fresh, as a browser's tab would."""

    def __init__(self, server: Served, name: str, http: httpx.AsyncClient) -> None:
        self.name = name
        self.access = ""
        self.cookie = ""
        self._server = server
        self._refresh = ""
        self._http = http

    async def log_in(self) -> None:
        self.access, self._refresh = await self._tokens()

    async def stay_fresh(self) -> None:
        """Rotate the tokens, for ever; log in again if the session was ended."""
        while True:
            await asyncio.sleep(REFRESH_EVERY)
            answer = await self._redeem(self._refresh)
            if answer.status_code != 200:
                await self.log_in()
                continue
            tokens = answer.json()
            self.access, self._refresh = tokens["access_token"], tokens["refresh_token"]

    async def change_cookie(self) -> str:
        """Log in as a browser; return the cookie that was good before."""
        before = self.cookie
        self.cookie = await self._server.cookie(self.name)
        return before

    async def end_cookie(self, cookie: str) -> None:
        answer = await self._http.delete("/auth/session", headers={"cookie": cookie})
        answer.raise_for_status()

    async def second_device(self) -> str:
        """Log in once more; return that session's access token."""
        return (await self._tokens())[0]

    async def end_device(self, token: str) -> None:
        headers = {"authorization": f"Bearer {token}"}
        answer = await self._http.post("/auth/logout", headers=headers)
        answer.raise_for_status()

    async def be_stolen_from(self) -> str:
        """Have a used refresh token come back on a device of its own."""
        token, refresh = await self._tokens()
        await self._redeem(refresh)
        answer = await self._redeem(refresh)
        assert answer.status_code == 401, answer.text
        return token

    async def ticket(self) -> str:
        headers = {"authorization": f"Bearer {self.access}"}
        answer = await self._http.post("/auth/ticket", headers=headers)
        answer.raise_for_status()
        return str(answer.json()["ticket"])

    async def _tokens(self) -> tuple[str, str]:
        body = {"username": self.name, "password": PASSWORD}
        answer = await self._http.post("/auth/login", json=body)
        answer.raise_for_status()
        tokens = answer.json()
        return tokens["access_token"], tokens["refresh_token"]

    async def _redeem(self, refresh: str) -> httpx.Response:
        return await self._http.post("/auth/refresh", json={"refresh_token": refresh})


# ------------------------------------------------------------------------------- town


@dataclass
class Town:
    """Everybody, and what has happened to them."""

    server: Served
    accounts: list[Account]
    happened: Counter[str] = field(default_factory=Counter)
    heard: int = 0
    tasks: list[asyncio.Task[None]] = field(default_factory=list)

    def anybody(self) -> Account:
        return chance.choice(self.accounts)

    def check(self) -> None:
        """Raise what went wrong in somebody's life."""
        for task in self.tasks:
            if task.done():
                task.result()

    def hear(self, _: bytes, __: float) -> None:
        self.heard += 1

    async def credential(self) -> Credential:
        """One of those that are good at the moment."""
        account = self.anybody()
        kind = chance.choice((*STRATEGIES, "ticket"))
        if kind == "ticket":
            return Credential("query-param", await account.ticket())
        if kind == "session-cookie":
            return Credential(kind, account.cookie)
        return Credential(kind, account.access)

    async def come_in(self, credential: Credential | None = None) -> Visitor:
        """Come in, and into some rooms."""
        peer = await connect(self.server, credential or await self.credential())
        rooms = [f"room-{n}" for n in chance.sample(range(ROOMS), chance.randint(1, 3))]
        for room in rooms:
            peer.send({"type": "join", "room": room})
            await peer.expect("joined")
        peer.listen(self.hear)
        return Visitor(peer, rooms)


@dataclass
class Visitor:
    """Somebody in some rooms."""

    peer: Peer
    rooms: list[str]

    async def chat(self, seconds: float) -> None:
        """Say something now and then, until it ends."""
        loop = asyncio.get_running_loop()
        until = loop.time() + seconds
        while self.peer.is_open and (left := until - loop.time()) > 0:
            data = {"text": "x" * chance.randint(1, 400)}
            room = chance.choice(self.rooms)
            self.peer.send({"type": "publish", "room": room, "data": data})
            await asyncio.sleep(min(left, chance.uniform(0.5, 2)))

    async def go(self) -> str:
        """Leave the rooms, say goodbye, and wait for the answer."""
        for room in self.rooms:
            self.peer.send({"type": "leave", "room": room})
        self.peer.close()
        return await ending(self.peer)


async def ending(peer: Peer) -> str:
    """Wait for the end; say how it was told."""
    await peer.wait_closed()
    return f"{peer.close_code} {peer.close_reason}".strip()


def some_time() -> float:
    return min(5 * LIFE, chance.expovariate(1 / LIFE))


# ------------------------------------------------------------------------ ways to live


async def goes_politely(town: Town) -> str:
    visitor = await town.come_in()
    await visitor.chat(some_time())
    return await visitor.go()


async def closes_without_a_frame(town: Town) -> str:
    visitor = await town.come_in()
    await visitor.chat(some_time())
    visitor.peer.leave()
    return "gone"


async def crashes(town: Town) -> str:
    visitor = await town.come_in()
    await visitor.chat(some_time())
    visitor.peer.crash()
    return "gone"


async def crashes_in_the_handshake(town: Town) -> str:
    """With the request sent and the answer not awaited."""
    coming = asyncio.create_task(connect(town.server, await town.credential()))
    await asyncio.sleep(chance.uniform(0, 0.01))
    coming.cancel()
    with contextlib.suppress(asyncio.CancelledError, RefusedError):
        (await coming).crash()
    return "gone"


async def stops_reading(town: Town) -> str:
    """And fills its own room until the server has had enough."""
    peer = await connect(town.server, await town.credential(), receive_buffer=4096)
    room = f"full-{id(peer)}"
    peer.send({"type": "join", "room": room})
    await peer.expect("joined")
    peer.stop_reading()
    while peer.is_open:
        peer.send({"type": "publish", "room": room, "data": BIG})
        await asyncio.sleep(0.02)
    return "cut off"


async def renews(town: Town) -> str:
    """Stay beyond the first token's end, with fresh ones in time."""
    account = town.anybody()
    strategy = chance.choice(("query-param", "first-message"))
    visitor = await town.come_in(Credential(strategy, account.access))
    for _ in range(5):
        await visitor.chat(REFRESH_EVERY)
        visitor.peer.send({"type": "auth", "token": account.access})
    return await visitor.go()


async def expires(town: Town) -> str:
    account = town.anybody()
    strategy = chance.choice(("query-param", "first-message"))
    visitor = await town.come_in(Credential(strategy, account.access))
    await visitor.chat(ACCESS_TTL + 5)
    return await ending(visitor.peer)


async def is_logged_out(town: Town) -> str:
    """On a second device, with two sockets."""
    account = town.anybody()
    token = await account.second_device()
    visitors = [
        await town.come_in(Credential(strategy, token))
        for strategy in ("query-param", "first-message")
    ]
    await asyncio.gather(*(visitor.chat(some_time() / 2) for visitor in visitors))
    await account.end_device(token)
    return ", ".join({await ending(visitor.peer) for visitor in visitors})


async def loses_its_cookie(town: Town) -> str:
    """The browser logs in again, and its old session, with this socket, is ended."""
    account = town.anybody()
    visitor = await town.come_in(Credential("session-cookie", account.cookie))
    await visitor.chat(some_time() / 2)
    await account.end_cookie(await account.change_cookie())
    if visitor.peer.is_open:
        await visitor.chat(0.5)
    visitor.peer.close()
    return await ending(visitor.peer)


async def is_stolen_from(town: Town) -> str:
    account = town.anybody()
    token = await account.be_stolen_from()
    peer = await connect(town.server, Credential("query-param", token))
    return await ending(peer)


async def is_refused(town: Town) -> str:
    strategy, account = chance.choice(STRATEGIES), town.anybody()
    value = account.cookie if strategy == "session-cookie" else account.access
    peer = await connect(town.server, Credential(strategy, f"{value}x"))
    return await ending(peer)


async def says_nothing(town: Town) -> str:
    peer = await Peer.open(town.server, "/ws/first-message")
    if chance.random() < 0.5:
        await asyncio.sleep(chance.uniform(0, 4))
        peer.crash()
        return "gone"
    return await ending(peer)


async def does_not_even_ask(town: Town) -> str:
    """Connect, and send half a request, or nothing."""
    reader, writer = await asyncio.open_connection("127.0.0.1", town.server.port)
    if chance.random() < 0.5:
        writer.write(b"GET /ws/query-param HTTP/1.1\r\nHost: ")
    with contextlib.suppress(OSError):
        await reader.read()
    writer.close()
    return "told to go"


async def speaks_nonsense(town: Town) -> str:
    visitor = await town.come_in()
    while visitor.peer.is_open:
        visitor.peer.send_text(b'{"type":')
        await asyncio.sleep(0.05)
    return await ending(visitor.peer)


async def echoes(town: Town) -> str:
    """On an endpoint without rooms, in both directions as fast as it goes."""
    peer = await Peer.open(
        town.server, f"/ws/query-param/echo?token={town.anybody().access}"
    )
    peer.listen(town.hear)
    for _ in range(50):
        peer.send_text(b"x" * chance.randint(1, 2000))
        await asyncio.sleep(0.02)
    peer.close()
    return await ending(peer)


WAYS: dict[Callable[[Town], Awaitable[str]], int] = {
    goes_politely: 240,
    closes_without_a_frame: 110,
    crashes: 110,
    crashes_in_the_handshake: 30,
    stops_reading: 15,
    renews: 25,
    expires: 30,
    is_logged_out: 8,
    loses_its_cookie: 8,
    is_stolen_from: 2,
    is_refused: 30,
    says_nothing: 20,
    does_not_even_ask: 10,
    speaks_nonsense: 10,
    echoes: 15,
}
"""With how often each is lived."""


async def live(town: Town) -> None:
    """One life after another, for ever."""
    while True:
        way = chance.choices(list(WAYS), list(WAYS.values()))[0]
        try:
            async with asyncio.timeout(AT_MOST):
                end = await way(town)
        except (RefusedError, OSError) as refusal:
            end = f"refused: {str(refusal)[:40]}"
        town.happened[f"{way.__name__.replace('_', ' ')}: {end}"] += 1
        await asyncio.sleep(chance.uniform(0, 0.5))


@asynccontextmanager
async def live_in(
    server: Served, users: Sequence[str], peers: int
) -> AsyncIterator[Town]:
    """Have ``peers`` live, all at once, as long as the block runs; then nobody."""
    limits = httpx.Limits(max_connections=20, keepalive_expiry=2)
    async with server.http(limits=limits) as http:
        town = Town(server, [Account(server, name, http) for name in users])
        for account in town.accounts:
            await account.log_in()
            await account.change_cookie()
        town.tasks = [
            *(asyncio.create_task(account.stay_fresh()) for account in town.accounts),
            *(asyncio.create_task(live(town)) for _ in range(peers)),
        ]
        try:
            yield town
        finally:
            for task in town.tasks:
                task.cancel()
            await asyncio.gather(*town.tasks, return_exceptions=True)
            Peer.crash_all()
