"""What the tests of a failing database ask of a server, and with which credentials."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed

from authws.clock import Clock
from authws.decisions.session_cookies import SessionCookieSigner, session_digest
from authws.decisions.tokens import TokenIssuer
from authws.service.house import ticket_audience
from authws.service.key_files import load_secrets
from authws.service.settings import Settings
from authws.stores.database import Database
from authws.stores.sessions import SessionKind, Sessions
from tests.fleet.fleet import PASSWORD, Fleet

__all__ = [
    "ANSWER",
    "IN",
    "LATE",
    "LOGIN",
    "UNAVAILABLE",
    "Credentials",
    "Ending",
    "draw_ticket",
    "elsewhere",
    "is_ready",
    "present",
    "status_of",
    "unread",
]

LATE = 3.0
"""Seconds that anything may come later than promised, on a busy machine."""
ANSWER = 4.0 + LATE
LOGIN = {"username": "alice", "password": PASSWORD}

Ending = tuple[int, str]
IN: Ending = (0, "in")
UNAVAILABLE: Ending = (1013, "unavailable")


@dataclass
class Credentials:
    """Of a session that no server has read yet, made as another process does."""

    token: str
    cookie: str


def elsewhere(fleet: Fleet) -> Settings:
    """The settings by which another process reaches the same database."""
    return Settings(
        _env_file=None,
        data_dir=fleet.directory / "data",
        database_url=fleet.settings.get("database_url"),
        secret_keys=fleet.settings["secret_keys"],
    )


async def unread(
    fleet: Fleet, subject: str = "alice", *, idle_ttl: float = 1800
) -> Credentials:
    """Open a session of each kind."""
    settings = elsewhere(fleet)
    kept = load_secrets(settings)
    issuer = TokenIssuer(
        kept.keyring,
        issuer=settings.issuer,
        audience=settings.audience,
        ticket_audience=ticket_audience(settings),
    )
    signer = SessionCookieSigner(kept.cookie_secrets)
    in_cookie, now = signer.new(), Clock().now()
    by_cookie, by_token = session_digest(in_cookie), session_digest(signer.new())
    kinds: dict[str, SessionKind] = {by_cookie: "cookie", by_token: "token"}
    database = Database(settings.database)
    for session, kind in kinds.items():
        await Sessions(database, Clock()).create(
            session, subject, kind, idle_ttl, now + 3600
        )
    await database.dispose()
    scopes = ("join:*", "publish:*")
    return Credentials(
        issuer.access(subject, by_token, scopes, now=now, expires_at=now + 900),
        signer.sign(in_cookie),
    )


async def present(fleet: Fleet, number: int, strategy: str, credential: str) -> Ending:
    """Knock; return how it was answered."""
    try:
        peer = await knock(fleet, number, strategy, credential)
        async with peer:
            if strategy == "first-message":
                assert json.loads(await peer.recv())["type"] == "auth_required"
                await peer.send(json.dumps({"type": "auth", "token": credential}))
            assert json.loads(await peer.recv())["type"] == "auth_ok"
    except ConnectionClosed as closed:
        received = closed.rcvd
        return (int(received.code), received.reason) if received else (1006, "")
    return IN


async def knock(
    fleet: Fleet, number: int, strategy: str, credential: str
) -> ClientConnection:
    path = f"/ws/{strategy}"
    if strategy == "query-param":
        return await fleet.open(number, f"{path}?token={credential}")
    headers = {}
    if strategy == "session-cookie":
        headers["cookie"] = f"authws={credential}"
        headers["origin"] = fleet.origin_of(number)
    return await fleet.open(number, path, additional_headers=headers)


async def draw_ticket(fleet: Fleet, number: int, token: str) -> str:
    async with fleet.http(number, authorization=f"Bearer {token}") as http:
        answer = await http.post("/auth/ticket")
    answer.raise_for_status()
    return str(answer.json()["ticket"])


async def status_of(
    fleet: Fleet, number: int, path: str, body: dict[str, str] | None = None
) -> tuple[int, Any]:
    async with fleet.http(number) as http:
        if body is None:
            answer = await http.get(path)
        else:
            answer = await http.post(path, json=body)
    return answer.status_code, answer.json()


async def is_ready(fleet: Fleet, number: int) -> bool:
    status, body = await status_of(fleet, number, "/readyz")
    assert body["broker"] == "ok"
    assert (status == 200) is (body["database"] == "ok")
    return status == 200
