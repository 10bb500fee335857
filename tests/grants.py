"""Credentials made without a login, ways to present them, and how that ended.

A login costs a password hash, and a test of endings makes hundreds of them: here a
session is written straight into the store, and its tokens are signed by the house.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.frames import Close

from authws.decisions.session_cookies import session_digest
from tests.running import SCOPES, Service

__all__ = [
    "PATIENCE",
    "Ending",
    "Grant",
    "ending",
    "enter",
    "grant",
    "hear",
    "knock",
    "present",
    "random_text",
    "say",
    "strategy_of",
    "until",
]

PATIENCE = 10.0

Ending = tuple[int, str]
"""Code and reason of a close frame as received, or an HTTP status and ``""``."""


@dataclass(frozen=True)
class Grant:
    """One session of a user, and whatever can be presented for it."""

    service: Service
    strategy: str
    subject: str
    session: str
    cookie: str = ""

    def access(
        self,
        *,
        scopes: Sequence[str] = SCOPES,
        ttl: float = 900.0,
        age: float = 0.0,
        **claims: str,
    ) -> str:
        """Sign an access token that is ``age`` seconds old and lives for ``ttl``."""
        now = self.service.clock.now() - age
        return self.service.house.issuer.access(
            claims.get("subject", self.subject),
            claims.get("session", self.session),
            scopes,
            now=now,
            expires_at=now + ttl,
        )

    def ticket(self, *, scopes: Sequence[str] = SCOPES, ttl: float = 900.0) -> str:
        """Sign a ticket, good for a connection of ``ttl`` seconds."""
        now = self.service.clock.now()
        return self.service.house.issuer.ticket(
            self.subject,
            self.session,
            scopes,
            now=now,
            expires_at=now + min(30.0, ttl),
            connect_until=now + ttl,
        )

    @property
    def credential(self) -> str:
        """What its strategy takes: a cookie's value, or an access token."""
        return self.cookie or self.access()

    async def end(self) -> None:
        """End the session, as a logout does."""
        house = self.service.house
        await self.service.call(house.accounts.end_session(self.session, "test"))


async def grant(
    service: Service,
    strategy: str,
    subject: str = "alice",
    *,
    idle_ttl: float = 1800.0,
    ttl: float = 43_200.0,
) -> Grant:
    """Open a session of the kind that a strategy presents."""
    house = service.house
    secret_id = house.cookies.new()
    session = session_digest(secret_id)
    by_cookie = strategy == "session-cookie"
    await service.call(
        house.sessions.create(
            id=session,
            subject=subject,
            kind="cookie" if by_cookie else "token",
            idle_ttl=idle_ttl,
            expires_at=service.clock.now() + ttl,
        )
    )
    cookie = house.cookies.sign(secret_id) if by_cookie else ""
    return Grant(service, strategy, subject, session, cookie)


def strategy_of(path: str) -> str:
    """The strategy of an endpoint's path."""
    return path.split("/")[2]


async def knock(
    service: Service,
    path: str,
    credential: str | None = None,
    *,
    query: str | None = None,
    headers: Sequence[tuple[str, str]] = (),
    origin: str | None = "own",
    frame: str | bytes | None = None,
    **options: Any,
) -> ClientConnection:
    """Present a credential as the endpoint's strategy demands, or spoil one thing.

    Args:
        service: where.
        path: the endpoint.
        credential: a token, or a cookie's value; None for nothing at all.
        query: the query string, in place of the one that carries the credential.
        headers: more headers.
        origin: ``own`` for that of the service on session-cookie, and none elsewhere.
        frame: the first message, in place of the one that carries the credential.
        options: for ``websockets.connect``.
    """
    strategy = strategy_of(path)
    sent = list(headers)
    if strategy == "session-cookie" and credential is not None:
        sent.append(("cookie", f"authws={credential}"))
    if origin == "own":
        origin = service.origin if strategy == "session-cookie" else None
    if origin is not None:
        sent.append(("origin", origin))
    if query is None:
        carries = strategy == "query-param" and credential is not None
        query = f"?token={credential}" if carries else ""
    peer = await service.open(path + query, headers=sent, **options)
    if strategy == "first-message":
        await _speak_first(peer, credential, frame)
    return peer


async def _speak_first(
    peer: ClientConnection, credential: str | None, frame: str | bytes | None
) -> None:
    token = {} if credential is None else {"token": credential}
    try:
        assert (await hear(peer))["type"] == "auth_required"
        await peer.send(frame or json.dumps({"type": "auth", **token}))
    except ConnectionClosed:
        return  # refused for what it sent before: `ending` tells how


async def ending(opening: Awaitable[ClientConnection] | ClientConnection) -> Ending:
    """Read on until the server ends it; return how."""
    try:
        peer = opening if isinstance(opening, ClientConnection) else (await opening)
    except InvalidStatus as refusal:
        return refusal.response.status_code, ""
    async with peer:
        received = await asyncio.wait_for(_close_frame(peer), PATIENCE)
    assert received is not None, "cut off without a close frame"
    return int(received.code), received.reason


async def _close_frame(peer: ClientConnection) -> Close | None:
    try:
        while True:
            await peer.recv()
    except ConnectionClosed as closed:
        return closed.rcvd


async def present(service: Service, path: str, *args: Any, **options: Any) -> Ending:
    """Knock, and return how it ended."""
    return await ending(knock(service, path, *args, **options))


@asynccontextmanager
async def enter(
    service: Service, path: str, granted: Grant | str, **options: Any
) -> AsyncIterator[ClientConnection]:
    """Come in, past ``auth_ok`` where the endpoint sends one."""
    credential = granted if isinstance(granted, str) else granted.credential
    async with await knock(service, path, credential, **options) as peer:
        if not path.endswith("/echo") or strategy_of(path) == "first-message":
            welcome = await hear(peer)
            assert welcome["type"] == "auth_ok", welcome
        yield peer


async def say(peer: ClientConnection, **message: Any) -> None:
    """Send a JSON message."""
    await peer.send(json.dumps(message))


async def hear(peer: ClientConnection) -> dict[str, Any]:
    """Receive a JSON message."""
    message = json.loads(await asyncio.wait_for(peer.recv(), PATIENCE))
    assert isinstance(message, dict)
    return message


async def until(condition: Callable[[], object]) -> None:
    """Wait for something that no message tells of."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "it did not come to be"
        await asyncio.sleep(0.01)


def random_text(length: int = 43) -> str:
    """Text of the shape of an id."""
    return secrets.token_urlsafe(length)[:length]
