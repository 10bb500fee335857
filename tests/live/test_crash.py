"""``kill -9`` in the middle of it all: what was answered holds after the restart.

Several people use the REST calls at once until the process is killed under them. Each
call is in doubt from before it is sent until it is answered: what was never answered
may have happened or not, and all the rest must be found as it was promised.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import shutil
import signal
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

import httpx
import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import WebSocketException

from tests.daemon import PASSWORD, Daemon, serve, users
from tests.databases import url_for
from tests.grants import ending, hear, say

pytestmark = pytest.mark.usefixtures("database")

ROUNDS = 4
PEOPLE = ("ann", "ben", "cyd")
DEAD = (httpx.TransportError, OSError, WebSocketException, TimeoutError)
"""What a client sees of a process that is gone."""


class State(Enum):
    LIVE = "live"
    ENDED = "ended"
    IN_DOUBT = "in doubt"


@dataclass(eq=False)
class Session:
    """What the service has promised about one session; empty where it is in doubt."""

    user: str
    access: str = ""
    cookie: str = ""
    refresh: str = ""
    used: list[str] = field(default_factory=list)
    """Refresh tokens that were rotated."""
    tickets: list[str] = field(default_factory=list)
    """Tickets that let somebody in, since the last crash."""
    state: State = State.LIVE

    @property
    def headers(self) -> dict[str, str]:
        if self.cookie:
            return {"cookie": self.cookie}
        return {"authorization": f"Bearer {self.access}"}


@dataclass
class Ledger:
    """All that was promised, over every crash."""

    sessions: list[Session] = field(default_factory=list)
    passwords: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Of each user: the one that holds, or the old and the new one in doubt."""
    answered: int = 0

    def live(self, user: str) -> list[Session]:
        of_user = (one for one in self.sessions if one.user == user)
        return [one for one in of_user if one.state is State.LIVE]


# ------------------------------------------------------------------------- the calls


class Person:
    """Does at random what people do, and notes what was answered."""

    def __init__(
        self, user: str, server: Daemon, http: httpx.AsyncClient, ledger: Ledger
    ) -> None:
        self.user = user
        self.server = server
        self.http = http
        self.ledger = ledger
        self.random = random.Random(f"{user} {ledger.answered}")

    async def live(self) -> None:
        """Go on until the server is gone."""
        with contextlib.suppress(*DEAD):
            while True:
                await self.do_something()

    async def do_something(self) -> None:
        sessions = self.ledger.live(self.user)
        if len(sessions) < 3:
            await self.random.choice([self.log_in, self.open_session])()
            return
        session = self.random.choice(sessions)
        if session.cookie:
            calls = [self.end, self.use_ticket]
        elif session.refresh:
            calls = [self.rotate, self.rotate, self.rotate, self.use_ticket, self.end]
        else:
            calls = [self.use_ticket, self.end]
        await self.random.choice(calls)(session)

    async def post(
        self, path: str, session: Session | None = None, **body: str
    ) -> httpx.Response:
        answer = await self.http.post(
            path, json=body, headers=session.headers if session else {}
        )
        answer.raise_for_status()
        self.ledger.answered += 1
        return answer

    async def log_in(self) -> Session:
        password = self.password
        answer = await self.post("/auth/login", username=self.user, password=password)
        tokens = answer.json()
        session = Session(
            self.user, access=tokens["access_token"], refresh=tokens["refresh_token"]
        )
        self.ledger.sessions.append(session)
        return session

    async def open_session(self) -> None:
        password = self.password
        answer = await self.post("/auth/session", username=self.user, password=password)
        cookie = f"authws={answer.cookies['authws']}"
        self.http.cookies.clear()
        self.ledger.sessions.append(Session(self.user, cookie=cookie))

    @property
    def password(self) -> str:
        (password,) = self.ledger.passwords.get(self.user, (PASSWORD,))
        return password

    async def rotate(self, session: Session) -> None:
        before, session.refresh = session.refresh, ""
        answer = await self.post("/auth/refresh", refresh_token=before)
        session.used.append(before)
        session.access = answer.json()["access_token"]
        session.refresh = answer.json()["refresh_token"]

    async def use_ticket(self, session: Session) -> None:
        answer = await self.post("/auth/ticket", session)
        ticket = answer.json()["ticket"]
        async with socket(self.server, f"/ws/query-param?token={ticket}") as peer:
            assert (await hear(peer))["type"] == "auth_ok"
            session.tickets.append(ticket)
            self.ledger.answered += 1

    async def end(self, session: Session) -> None:
        session.state = State.IN_DOUBT
        if session.cookie:
            headers = session.headers
            answer = await self.http.delete("/auth/session", headers=headers)
            assert answer.status_code == 204
            self.http.cookies.clear()
        else:
            await self.post("/auth/logout", session)
        session.state = State.ENDED


class Worrier(Person):
    """Changes a password again and again, which ends all other sessions."""

    async def do_something(self) -> None:
        sessions = self.ledger.live(self.user)
        while len(sessions) < 2:
            sessions.append(await self.log_in())
        by, *others = sessions
        old = self.password
        new = f"the sentence number {self.random.random()}"
        self.ledger.passwords[self.user] = (old, new)
        for other in others:
            other.state = State.IN_DOUBT
        await self.post("/auth/password", by, current_password=old, new_password=new)
        self.ledger.passwords[self.user] = (new,)
        for other in others:
            other.state = State.ENDED


@asynccontextmanager
async def socket(server: Daemon, path: str) -> AsyncIterator[ClientConnection]:
    url = f"ws://127.0.0.1:{server.port}{path}"
    async with connect(url, proxy=None, compression=None, close_timeout=1) as peer:
        yield peer


# ------------------------------------------------------------------------- the checks


async def check(server: Daemon, ledger: Ledger) -> None:
    """Ask for each promise, and settle what was in doubt."""
    async with server.http() as http:
        for user, passwords in ledger.passwords.items():
            await check_password(http, ledger, user, passwords)
        for session in ledger.sessions:
            await check_session(http, session)
            await check_tickets(server, session)
        for number, session in enumerate(ledger.sessions):
            if session.state is State.LIVE and session.used and number % 2:
                await check_reuse(http, session)
            elif session.state is State.LIVE and session.refresh:
                await check_rotation(http, session)


async def check_password(
    http: httpx.AsyncClient, ledger: Ledger, user: str, passwords: tuple[str, ...]
) -> None:
    """One password holds. The other sessions ended with its change, or neither did."""
    holds = []
    for password in passwords:
        login = {"username": user, "password": password}
        answer = await http.post("/auth/login", json=login)
        if answer.status_code == 200:
            holds.append(password)
    (current,) = holds
    ledger.passwords[user] = (current,)
    if len(passwords) == 1:
        return
    settled = State.ENDED if current == passwords[-1] else State.LIVE
    for session in ledger.sessions:
        if session.user == user and session.state is State.IN_DOUBT:
            session.state = settled


async def check_session(http: httpx.AsyncClient, session: Session) -> None:
    answer = await http.get("/auth/me", headers=session.headers)
    if session.state is State.IN_DOUBT:
        session.state = State.LIVE if answer.status_code == 200 else State.ENDED
    if session.state is State.LIVE:
        assert (answer.status_code, answer.json()["subject"]) == (200, session.user)
        return
    assert answer.status_code == 401
    assert answer.json()["detail"] in {"token_revoked", "session_revoked"}
    for token in filter(None, (session.refresh, *session.used)):
        await is_refused(http, token)


async def check_tickets(server: Daemon, session: Session) -> None:
    for ticket in session.tickets:
        async with socket(server, f"/ws/query-param?token={ticket}") as peer:
            code, reason = await ending(peer)
        assert code == 1008
        if session.state is State.LIVE:
            assert reason == "ticket_used"
    session.tickets.clear()  # they live for 30 s


async def check_reuse(http: httpx.AsyncClient, session: Session) -> None:
    """A used refresh token is known for one, and ends its whole family."""
    await is_refused(http, random.choice(session.used))
    session.state = State.ENDED
    await check_session(http, session)


async def check_rotation(http: httpx.AsyncClient, session: Session) -> None:
    answer = await http.post("/auth/refresh", json={"refresh_token": session.refresh})
    assert answer.status_code == 200
    session.used.append(session.refresh)
    session.refresh = answer.json()["refresh_token"]


async def is_refused(http: httpx.AsyncClient, refresh_token: str) -> None:
    answer = await http.post("/auth/refresh", json={"refresh_token": refresh_token})
    assert (answer.status_code, answer.json()["detail"]) == (401, "token_revoked")


def check_database(data: Path, copy: Path) -> None:
    """Look at the files as the crash left them, before anybody repairs them."""
    copy.mkdir()
    for path in data.glob("authws.db*"):
        shutil.copy(path, copy)
    with contextlib.closing(sqlite3.connect(copy / "authws.db")) as database:
        assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert database.execute("PRAGMA foreign_key_check").fetchall() == []


# ------------------------------------------------------------------------ two in a room


async def enter(server: Daemon, session: Session) -> ClientConnection:
    """Come into the lobby with what one had before the crash."""
    url = f"ws://127.0.0.1:{server.port}/ws"
    if session.cookie:
        headers = {"origin": server.origin, "cookie": session.cookie}
        peer = await connect(
            f"{url}/session-cookie", additional_headers=headers, proxy=None
        )
    else:
        peer = await connect(f"{url}/query-param?token={session.access}", proxy=None)
    assert (await hear(peer))["type"] == "auth_ok"
    await say(peer, type="join", room="lobby")
    return peer


async def meet(server: Daemon, pair: list[Session]) -> list[ClientConnection]:
    """The first finds nobody, though two were there at the crash."""
    first = await enter(server, pair[0])
    assert (await hear(first))["members"] == [pair[0].user]
    second = await enter(server, pair[1])
    assert (await hear(second))["members"] == sorted(one.user for one in pair)
    seen = await hear(first)
    assert (seen["subject"], seen["event"]) == (pair[1].user, "joined")
    return [first, second]


# ---------------------------------------------------------------------------- the test


async def until_answered(ledger: Ledger, more: int) -> None:
    enough = ledger.answered + more
    async with asyncio.timeout(30):
        while ledger.answered < enough:  # noqa: ASYNC110 - nothing tells of it
            await asyncio.sleep(0.001)


async def live_until_it_dies(
    server: Daemon, ledger: Ledger, directory: Path, number: int
) -> None:
    """Everybody does what they do, and in the middle of it the process is killed."""
    async with contextlib.AsyncExitStack() as stack:
        living = []
        for user, kind in (*((name, Person) for name in PEOPLE), ("wes", Worrier)):
            http = await stack.enter_async_context(server.http())
            person = kind(user, server, http, ledger)
            living.append(asyncio.create_task(person.live()))
        await users(directory, f"new-{number}")  # from another process
        ledger.passwords[f"new-{number}"] = (PASSWORD,)
        await until_answered(ledger, random.randint(1, 50))
        server.send(signal.SIGKILL)
        await server.ended()
        await asyncio.gather(*living)


async def test_nothing_that_was_answered_is_lost_when_the_process_is_killed(
    tmp_path: Path,
) -> None:
    pair = ("dora", "eve")
    await users(tmp_path, *PEOPLE, *pair, "wes")
    ledger = Ledger(passwords={name: (PASSWORD,) for name in (*PEOPLE, "wes")})
    members: list[Session] = []
    for number in range(ROUNDS):
        async with serve(tmp_path) as server:
            await check(server, ledger)
            if not members:
                async with server.http() as http:
                    dora = Person(pair[0], server, http, ledger)
                    eve = Person(pair[1], server, http, ledger)
                    await dora.log_in()
                    await eve.open_session()
                members = ledger.sessions[-2:]
            peers = await meet(server, members)
            await live_until_it_dies(server, ledger, tmp_path, number)
            for peer in peers:
                await peer.wait_closed()
                assert peer.close_code == 1006
        if await url_for(tmp_path / "data") is None:
            check_database(tmp_path / "data", tmp_path / f"crash-{number}")
    async with serve(tmp_path) as server:
        await check(server, ledger)
        for peer in await meet(server, members):
            await peer.close()
    # it was no idle server that was killed
    states = [session.state for session in ledger.sessions]
    assert states.count(State.LIVE) > 3
    assert states.count(State.ENDED) > 10
    assert sum(len(session.used) for session in ledger.sessions) > 10
    assert ledger.passwords["wes"] != (PASSWORD,)
