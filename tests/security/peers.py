"""Peers of every kind: honest ones, and those that knock with one thing spoiled."""

from __future__ import annotations

import asyncio
import json
import logging
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import websockets
from websockets.asyncio.client import ClientConnection

from tests.running import PASSWORD, STRATEGIES, Service
from tests.wire import CLOSE, TEXT, frame, handshake, wire

__all__ = [
    "Answer",
    "Visitor",
    "bearer",
    "control",
    "controlled",
    "ending",
    "eventually",
    "hear",
    "join",
    "knock",
    "say",
    "silence",
    "visitor",
]


# --------------------------------------------------------------------- raw handshakes


@dataclass
class Answer:
    """What came of a handshake: the response, and what the server sent then."""

    status: int
    headers: dict[str, str]
    heard: list[str] = field(default_factory=list)
    close: tuple[int, str] | None = None

    @property
    def is_admitted(self) -> bool:
        return self.status == 101 and self.close is None

    @property
    def is_refused_before_accept(self) -> bool:
        """Refused with an answer that tells nothing, and sets nothing."""
        return 400 <= self.status < 500 and "set-cookie" not in self.headers


@dataclass(frozen=True)
class Visitor:
    """The credentials of one user: a token, and the cookie of another session."""

    name: str
    token: str
    cookie: str


async def visitor(service: Service, name: str = "alice") -> Visitor:
    """Log an existing user in, in both ways."""
    return Visitor(name, await service.token(name), await service.cookie(name))


async def knock(
    service: Service,
    path: str,
    *lines: str,
    who: Visitor | None = None,
    host: str | None = "127.0.0.1",
) -> Answer:
    """Make a handshake of exactly these header lines, and see what comes of it.

    With ``who``, present that user's credential in the way the path asks for. ``host``
    None leaves the Host header to ``lines``, in lower case.
    """
    target, first = path, {"type": "auth"}
    if who is not None and "session-cookie" in path:
        lines = (*lines, f"Cookie: {who.cookie}")
    elif who is not None and "query-param" in path:
        target += f"?token={who.token}"
    elif who is not None:
        first["token"] = who.token
    if host is not None:
        lines = (f"host: {host}", *lines)
    async with wire(service.port) as peer:
        await peer.send(handshake(target, headers=lines, without="Host"))
        response = await peer.response()
        answer = Answer(response.status, response.headers)
        if response.status != 101:
            return answer
        if "first-message" in path:
            await peer.send(frame(TEXT, json.dumps(first).encode()))
        await peer.send(frame(TEXT, b'{"type":"ping"}'))
        while True:
            got = await peer.frame()
            if got.opcode == CLOSE:
                answer.close = got.close
                return answer
            text = got.payload.decode()
            answer.heard.append(text)
            if json.loads(text)["type"] in ("pong", "ping"):  # a room's, or the echo
                return answer


# ------------------------------------------------------------------------ open sockets


async def say(peer: ClientConnection, **message: Any) -> None:
    await peer.send(json.dumps(message))


async def hear(peer: ClientConnection) -> dict[str, Any]:
    message = json.loads(await asyncio.wait_for(peer.recv(), 10))
    assert isinstance(message, dict)
    return message


async def join(peer: ClientConnection, room: str, **more: Any) -> dict[str, Any]:
    """Join, and return the answer, whatever it is."""
    await say(peer, type="join", room=room, **more)
    return await hear(peer)


async def silence(peer: ClientConnection) -> None:
    """Prove that nothing waits for a room's member: the next thing is its own pong."""
    await say(peer, type="ping", id="silence")
    assert await hear(peer) == {"type": "pong", "id": "silence"}


async def ending(peer: ClientConnection, within: float = 10) -> tuple[int, str]:
    """Wait for the end; return the close frame's code and reason, 1006 without one.

    What came before it is dropped.
    """
    async with asyncio.timeout(within):
        with suppress(websockets.ConnectionClosed):
            while True:
                await peer.recv()
    return peer.close_code or 0, peer.close_reason or ""


async def eventually(condition: Callable[[], bool], within: float = 10) -> None:
    """Wait until a condition holds."""
    async with asyncio.timeout(within):
        while not condition():  # noqa: ASYNC110 - the server has no event for it
            await asyncio.sleep(0.005)


def bearer(token: str) -> dict[str, str]:
    return {"authorization": f"Bearer {token}"}


# ----------------------------------------------------------------- the positive control


async def control(service: Service, name: str = "alice") -> None:
    """Prove that an honest user is served: log in, connect in each way, echo."""
    for strategy in STRATEGIES:
        async with await service.connect(strategy, name, echo=True) as peer:
            await peer.send("control")
            assert await asyncio.wait_for(peer.recv(), 10) == "control"


CREDENTIAL = re.compile(r"eyJ[\w-]{8}|rt_[\w-]{16}")
"""A token of ours, by more than a random id of a connection can happen to hold."""


@asynccontextmanager
async def controlled(service: Service) -> AsyncIterator[None]:
    """Prove that whatever happens inside costs honest users nothing.

    They are served before and after it; two of them, connected all the while, lose no
    message and hear no foreign one. No log holds a credential, and nothing that a peer
    can do is an error of ours.
    """
    for name in ("witness-1", "witness-2"):
        await service.add_user(name)
    await control(service, "witness-1")
    async with (
        await service.connect("query-param", "witness-1") as one,
        await service.connect("session-cookie", "witness-2") as two,
    ):
        await join(one, "witnesses")
        await join(two, "witnesses")
        assert (await hear(one))["event"] == "joined"
        for moment in ("before", "after"):
            await say(one, type="publish", room="witnesses", data=moment)
            for peer in (one, two):
                assert (await hear(peer))["data"] == moment
            if moment == "before":
                yield
    await control(service, "witness-1")
    logged = "\n".join(record.getMessage() for record in service.records)
    assert PASSWORD not in logged
    assert not CREDENTIAL.search(logged)
    assert [r.getMessage() for r in service.records if r.levelno >= logging.ERROR] == []
