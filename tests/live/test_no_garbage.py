"""A thousand connections come and go, and leave nothing that only a collection frees.

``test_freed_at_once`` names the objects that must go; here nothing at all may stay,
whatever it is called: the server's process saves what a collection finds.
"""

from __future__ import annotations

import asyncio
import json
import struct
from collections.abc import Awaitable, Callable, Sequence
from itertools import cycle, islice, product
from pathlib import Path
from typing import Any

import pytest

from tests.daemon import Daemon, daemon
from tests.running import STRATEGIES
from tests.wire import CLOSE, PING, TEXT, WirePeer, frame, handshake, wire

CONNECTIONS = 1000
AT_ONCE = 40
PATIENCE = 30.0


class Watched:
    """The server, and how to ask it."""

    def __init__(self, process: Daemon) -> None:
        self.port = process.port
        self.origin = process.origin
        self._process = process.process
        self._lock = asyncio.Lock()
        self._granted: dict[str, dict[str, str]] = {}

    async def grant(self, strategy: str) -> dict[str, str]:
        """What lasts is shared: each costs the database a commit."""
        if strategy not in self._granted:
            self._granted[strategy] = await self.ask("grant", strategy)
        return self._granted[strategy]

    async def ask(self, command: str, argument: str = "") -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        async with self._lock, asyncio.timeout(PATIENCE):
            self._process.stdin.write(f"{command} {argument}\n".encode())
            await self._process.stdin.drain()
            return json.loads(await self._process.stdout.readline())


def text(**message: object) -> bytes:
    return frame(TEXT, json.dumps(message).encode())


class Visitor:
    """One connection of one strategy."""

    def __init__(self, watched: Watched, peer: WirePeer, strategy: str) -> None:
        self.watched = watched
        self.peer = peer
        self.strategy = strategy

    async def credential(self) -> str:
        return (await self.watched.grant(self.strategy))["credential"]

    async def knock(self, credential: str, origin: str | None = None) -> int:
        """Make the handshake; return its status."""
        target, lines = f"/ws/{self.strategy}", []
        if self.strategy == "query-param":
            target += f"?token={credential}"
        elif self.strategy == "session-cookie":
            lines.append(f"Cookie: authws={credential}")
            origin = origin or self.watched.origin
        if origin is not None:
            lines.append(f"Origin: {origin}")
        await self.peer.send(handshake(target, headers=tuple(lines)))
        return (await self.peer.response()).status

    async def enter(self, credential: str | None = None) -> None:
        """Come in, join a room if there are any, say something and hear it."""
        credential = credential or await self.credential()
        assert await self.knock(credential) == 101
        await self.speak_first(credential)
        await self.peer.send(
            text(type="join", room="lobby")
            + text(type="publish", room="lobby", data="heard", id=1)
            + frame(PING, b"there?")
        )
        while b'"heard"' not in (await self.peer.frame()).payload:
            pass

    async def speak_first(self, credential: str) -> None:
        if self.strategy == "first-message":
            await self.peer.frame()
            await self.peer.send(text(type="auth", token=credential))

    async def until_the_end(self) -> int:
        """Read up to the close frame, answer it, and return its code."""
        code, _ = await self.peer.close_frame()
        await self.peer.send(frame(CLOSE, struct.pack("!H", code)))
        assert await self.peer.is_ended()
        return code


Ending = Callable[[Visitor], Awaitable[None]]


async def goodbye(visitor: Visitor) -> None:
    await visitor.enter()
    await visitor.peer.send(frame(CLOSE, struct.pack("!H", 1000)))
    assert await visitor.until_the_end() == 1000


async def a_crash(visitor: Visitor) -> None:
    await visitor.enter()  # and the socket is reset when the test lets go of it


async def half_an_end(visitor: Visitor) -> None:
    await visitor.enter()
    visitor.peer.end()


async def a_revocation(visitor: Visitor) -> None:
    granted = await visitor.watched.ask("grant", visitor.strategy)
    await visitor.enter(granted["credential"])
    await visitor.watched.ask("revoke", granted["session"])
    assert await visitor.until_the_end() == 1008


async def an_expiry(visitor: Visitor) -> None:
    credential = (await visitor.watched.ask("expire", visitor.strategy))["credential"]
    assert await visitor.knock(credential) == 101
    await visitor.speak_first(credential)
    assert await visitor.until_the_end() == 1008


async def a_violation(visitor: Visitor) -> None:
    await visitor.enter()
    await visitor.peer.send(b"\x81\x01x")
    assert await visitor.until_the_end() == 1002


async def a_binary_message(visitor: Visitor) -> None:
    await visitor.enter()
    await visitor.peer.send(frame(2, b"x"))
    assert await visitor.until_the_end() == 1003


async def a_refusal(visitor: Visitor) -> None:
    assert await visitor.knock("x") == 101
    await visitor.speak_first("x")
    assert await visitor.until_the_end() == 1008


async def a_foreign_page(visitor: Visitor) -> None:
    credential = await visitor.credential()
    assert await visitor.knock(credential, "https://evil.example") == 403
    assert await visitor.peer.is_ended()


async def a_bad_handshake(visitor: Visitor) -> None:
    await visitor.peer.send(handshake(f"/ws/{visitor.strategy}", ws_version="8"))
    assert (await visitor.peer.response()).status == 426
    assert await visitor.peer.is_ended()


async def a_head_that_is_cut(visitor: Visitor) -> None:
    await visitor.peer.send(handshake(f"/ws/{visitor.strategy}")[:-2])
    visitor.peer.end()


ENDINGS: tuple[Ending, ...] = (
    goodbye,
    a_crash,
    half_an_end,
    a_revocation,
    an_expiry,
    a_violation,
    a_refusal,
    a_foreign_page,
    a_bad_handshake,
    a_head_that_is_cut,
)


async def come_and_go(watched: Watched, endings: Sequence[Ending], count: int) -> None:
    places = asyncio.Semaphore(AT_ONCE)
    kinds = cycle(product(endings, STRATEGIES))

    async def visit(ending: Ending, strategy: str) -> None:
        async with places, asyncio.timeout(PATIENCE), wire(watched.port) as peer:
            await ending(Visitor(watched, peer, strategy))

    async with asyncio.TaskGroup() as group:
        for ending, strategy in islice(kinds, count):
            group.create_task(visit(ending, strategy))


@pytest.mark.parametrize("way", ["wire", "asgi", "library"])
async def test_a_thousand_connections_leave_nothing_to_collect(
    tmp_path: Path, way: str
) -> None:
    endings = ENDINGS if way == "library" else (*ENDINGS, a_binary_message)
    arguments = ("-m", "tests.live.garbage", way)
    async with daemon(*arguments, directory=tmp_path, message_rate=0) as process:
        watched = Watched(process)
        # what is made once for a process is made now
        await come_and_go(watched, endings, len(STRATEGIES) * len(endings))
        await watched.ask("begin")
        await come_and_go(watched, endings, CONNECTIONS)
        assert await watched.ask("collect") == {}
        assert "Traceback" not in process.errors
