"""A token, good but for one thing, carried to a live service in each way there is."""

from __future__ import annotations

import base64
import json
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from authws.decisions.keys import SigningKey
from tests.builders import compact, make_claims, make_token
from tests.running import Service
from tests.security.peers import eventually
from tests.wire import CLOSE, TEXT, WirePeer, frame, handshake, request, wire

__all__ = [
    "ADMITTED",
    "CARRIERS",
    "Mint",
    "Outcome",
    "mint_for",
    "one_refusal",
    "outcome",
    "present",
    "refusal",
    "refusals",
]

CARRIERS = ("query", "first-message", "bearer")

REFUSALS = frozenset(
    {
        "handshake_abandoned",
        "login_failed",
        "refresh_refused",
        "refresh_reused",
        "refused",
    }
)
"""The events of the security log that tell of somebody who did not come in."""


@dataclass(frozen=True)
class Outcome:
    """An HTTP status; then a close code, 0 without one; then the slug, if any."""

    status: int
    code: int
    reason: str


ADMITTED = {
    "query": Outcome(101, 0, "auth_ok"),
    "first-message": Outcome(101, 0, "auth_ok"),
    "bearer": Outcome(200, 0, ""),
}


def refusal(carrier: str, slug: str) -> Outcome:
    """How a carrier refuses, by the contract."""
    return Outcome(401, 0, slug) if carrier == "bearer" else Outcome(101, 1008, slug)


async def outcome(peer: WirePeer) -> Outcome:
    """Read the answer to a handshake, and what comes first over the connection."""
    response = await peer.response()
    if response.status != 101:
        detail = json.loads(response.body)["detail"] if response.body else ""
        return Outcome(response.status, 0, detail)
    got = await peer.frame()
    if got.opcode == CLOSE:
        return Outcome(101, *got.close)
    return Outcome(101, 0, json.loads(got.payload)["type"])


async def present(service: Service, carrier: str, token: str) -> Outcome:
    """Carry a token to the service, in one way; return what came of it."""
    text = token.encode("utf-8", "surrogatepass").decode("latin-1")
    async with wire(service.port) as peer:
        if carrier == "bearer":
            header = f"Authorization: Bearer {text}"
            await peer.send(request("/auth/me", header))
            response = await peer.response()
            body = json.loads(response.body) if response.body else {}
            return Outcome(response.status, 0, body.get("detail", ""))
        if carrier == "query":
            target = f"/ws/query-param?token={quote(text, '', 'latin-1')}"
            await peer.send(handshake(target))
            return await outcome(peer)
        await peer.upgrade("/ws/first-message")
        assert json.loads((await peer.frame()).payload)["type"] == "auth_required"
        message = json.dumps({"type": "auth", "token": token})
        await peer.send(frame(TEXT, message.encode()))
        got = await peer.frame()
        if got.opcode == CLOSE:
            return Outcome(101, *got.close)
        return Outcome(101, 0, json.loads(got.payload)["type"])


def refusals(service: Service, since: int = 0) -> list[dict[str, Any]]:
    """The security log's refusals since a number of log records."""
    return [
        json.loads(record.getMessage())
        for record in service.records[since:]
        if record.name == "authws.security"
        and json.loads(record.getMessage())["event"] in REFUSALS
    ]


@asynccontextmanager
async def one_refusal(service: Service, times: int = 1) -> AsyncIterator[None]:
    """Hold an attack to what it may leave behind: one line in the security log."""
    since = len(service.records)
    yield
    await eventually(lambda: len(refusals(service, since)) >= times)
    assert len(refusals(service, since)) == times
    for record in service.records[since:]:
        assert record.levelno < logging.WARNING, record.getMessage()
        assert not record.exc_info
        assert "Traceback" not in record.getMessage()


@dataclass(frozen=True)
class Mint:
    """Makes tokens for a user's real session, signed with the service's own key."""

    service: Service
    subject: str
    good: str
    session: str
    refresh_token: str
    cookie: str

    @property
    def key(self) -> SigningKey:
        return self.service.house.keyring.newest

    @property
    def secret(self) -> bytes:
        """What an HS256 key signs with."""
        assert isinstance(self.key.private, bytes)
        return self.key.private

    def token(
        self,
        *,
        header: dict[str, Any] | None = None,
        key: SigningKey | None = None,
        **claims: Any,
    ) -> str:
        """Return a token with changes, correctly signed."""
        return make_token(header=header, key=key or self.key, **self.claims(**claims))

    def claims(self, **claims: Any) -> dict[str, Any]:
        now = self.service.clock.now()
        own = {
            "iss": "authws",
            "aud": "authws",
            "sub": self.subject,
            "sid": self.session,
            "iat": now,
            "nbf": now,
            "exp": now + 900,
            "scope": "join:* publish:*",
        }
        return {**own, **claims}

    def header(self, **members: Any) -> dict[str, Any]:
        return {
            "alg": self.key.algorithm,
            "kid": self.key.kid,
            "typ": "at+jwt",
            **members,
        }

    def raw(
        self,
        *,
        header: bytes | None = None,
        claims: bytes | None = None,
        key: SigningKey | None = None,
    ) -> str:
        """Return a token over exactly these bytes, correctly signed."""
        return compact(
            header if header is not None else self.header_bytes(),
            claims if claims is not None else self.claims_bytes(),
            key or self.key,
        )

    def header_bytes(self) -> bytes:
        return json.dumps(self.header()).encode()

    def claims_bytes(self, **claims: Any) -> bytes:
        return json.dumps(make_claims(**self.claims(**claims))).encode()


async def mint_for(service: Service, name: str = "alice") -> Mint:
    """Log an existing user in; return a mint of tokens for that session."""
    tokens = await service.login(name)
    good: str = tokens["access_token"]
    payload = good.split(".")[1]
    claims = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
    cookie = (await service.cookie(name)).partition("=")[2]
    return Mint(service, name, good, claims["sid"], tokens["refresh_token"], cookie)
