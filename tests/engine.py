"""The engine without a network: real doors, strategies, hub and connections.

Peers are the two callables of an ASGI server, the clock is moved by hand, and the
authority believes what a test tells it to: so every interleaving can be brought about,
and every deadline passes in no time. What a real socket does is for ``tests/live``.
"""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, cast

from authws.brokers.base import Broker
from authws.brokers.memory import MemoryBroker
from authws.decisions.origins import OriginPolicy
from authws.exceptions import (
    ChangedSubjectError,
    ExpiredTokenError,
    InvalidTokenError,
    RevokedTokenError,
)
from authws.live.authority import HouseAuthority
from authws.live.carrier import Carrier
from authws.live.connection import ConnectionLimits
from authws.live.door import Door, DoorLimits, DoorStyle, NotAdmittedError
from authws.live.hub import Hub
from authws.live.room_protocol import RoomProtocol
from authws.live.security_log import SecurityLog
from authws.principal import Principal
from authws.strategies.base import Strategy
from authws.strategies.first_message import FirstMessage
from authws.strategies.handshake import WIRE, Handshake
from authws.strategies.query_param import QueryParam
from authws.strategies.session_cookie import SessionCookie
from tests.manual_clock import ManualClock, settle

__all__ = ["Authority", "Engine", "Peer"]


class Authority:
    """Believes the tokens it was told of, each for as long as its principal says.

    While ``gate`` is closed, a credential waits for its verdict; while ``way_back``
    is, a verdict waits for whoever asked: what happens meanwhile happens between.
    """

    def __init__(self, clock: ManualClock, hub: Hub) -> None:
        self.known: dict[str, Principal] = {}
        self.gate = asyncio.Event()
        self.gate.set()
        self.way_back = asyncio.Event()
        self.way_back.set()
        self._clock = clock
        self._hub = hub

    async def by_token(self, token: str, *, strategy: str, **_: Any) -> Principal:
        await self.gate.wait()
        principal = self.known.get(token)
        if principal is None:
            raise InvalidTokenError("unknown")
        if principal.expires_at <= self._clock.now():
            raise ExpiredTokenError("over")
        if not await self.still_holds(principal):
            raise RevokedTokenError("ended")
        await self.way_back.wait()
        return replace(principal, strategy=strategy)

    async def by_cookie(self, value: str) -> Principal:
        return await self.by_token(value, strategy="session_cookie")

    async def renew(self, token: str, current: Principal) -> Principal:
        fresh = await self.by_token(token, strategy=current.strategy)
        if (fresh.subject, fresh.session) != (current.subject, current.session):
            raise ChangedSubjectError("another")
        return fresh

    async def still_holds(self, principal: Principal) -> bool:
        return not self._hub.revocations.covers(
            principal.session, principal.subject, principal.authenticated_at
        )


class _Reading(asyncio.Event):
    """Set while a peer reads; tells when it reads on."""

    on_set: Callable[[], object] | None = None

    def set(self) -> None:
        super().set()
        if self.on_set is not None:
            self.on_set()


@dataclass
class Peer:
    """One client, as a server would speak for it: over ASGI, or over the wire that our
    own server offers beside it."""

    over_wire: ClassVar[bool] = False
    """Set for all of them by whoever walks both ways."""

    clock: ManualClock
    headers: list[tuple[bytes, bytes]] = field(default_factory=list)
    query: bytes = b""
    heard: list[dict[str, Any]] = field(default_factory=list)
    heard_at: list[float] = field(default_factory=list)
    """When the server handed each over; the network may take longer."""
    ending: tuple[int, str] | None = None
    """The close frame, or the refusal before accept."""
    is_accepted: bool = False
    has_left: bool = False
    fails: Exception | None = None
    """What its server raises at the next message."""
    takes_close_frames: bool = True
    """Whether its server lets a close frame overtake what it does not read."""
    reads: _Reading = field(default_factory=_Reading)
    to_server: asyncio.Queue[dict[str, Any]] = field(default_factory=asyncio.Queue)
    task: asyncio.Task[None] | None = None
    is_sending: bool = False
    """Something was handed over that it has not heard yet."""
    sealed: int | None = None
    """How much it had heard when its right to hear more was taken."""
    wire: _Wire | None = None

    def __post_init__(self) -> None:
        self.reads.set()
        if self.over_wire:
            self.wire = _Wire(self)

    def handshake(self) -> Handshake:
        scope = {
            "type": "websocket",
            "headers": self.headers,
            "query_string": self.query,
            "client": ("192.0.2.1", 1),
            "subprotocols": [],
            "extensions": {WIRE: self.wire} if self.wire is not None else {},
        }
        return Handshake(scope, self.to_server.get, self._send)

    def say(self, **message: Any) -> None:
        text = json.dumps(message)
        if self.wire is not None and self.wire.on_message is not None:
            self.wire.arrive(text)
        else:
            self.to_server.put_nowait({"type": "websocket.receive", "text": text})

    def leave(self, code: int = 1006) -> None:
        """Go, with or without a close frame."""
        self.has_left = True
        self.to_server.put_nowait({"type": "websocket.disconnect", "code": code})

    def hear(self, text: str, at: float) -> None:
        self.heard.append(json.loads(text))
        self.heard_at.append(at)

    def close(self, code: int, reason: str) -> None:
        assert self.ending is None, "a second close frame"
        self.ending = (code, reason)
        self.to_server.put_nowait({"type": "websocket.disconnect", "code": 1005})

    def of_type(self, kind: str) -> list[dict[str, Any]]:
        return [message for message in self.heard if message["type"] == kind]

    async def _send(self, message: Any) -> None:
        if self.has_left:
            raise OSError("the peer is gone")
        kind = message["type"]
        assert self.ending is None, f"{kind} after the close frame"
        if kind == "websocket.accept":
            self.is_accepted = True
        elif kind == "websocket.close":
            if not self.takes_close_frames:
                await self.reads.wait()
            self.close(message["code"], message["reason"])
        elif self.fails is not None:
            failure, self.fails = self.fails, None
            raise failure
        else:
            handed_over = self.clock.now()
            self.is_sending = True
            try:
                await self.reads.wait()
            finally:
                self.is_sending = False
            if self.has_left:
                raise OSError("the peer is gone")
            self.hear(message["text"], handed_over)


class _Wire:
    """What our own server offers, for one peer."""

    def __init__(self, peer: Peer) -> None:
        self._peer = peer
        peer.reads.on_set = self._write_on
        self.on_writable: Callable[[], object] | None = None
        self.on_message: Callable[[str | bytes], bool] | None = None
        self._unread: deque[str] = deque()
        self._is_paused = False

    @property
    def is_writable(self) -> bool:
        return self._peer.reads.is_set()

    @property
    def has_unread(self) -> bool:
        return not self._peer.to_server.empty()

    def arrive(self, text: str) -> None:
        self._unread.append(text)
        if not self._is_paused:
            self.read_on()

    def read_on(self) -> None:
        self._is_paused = False
        while self._unread and not self._is_paused and self._peer.ending is None:
            assert self.on_message is not None, "it was asked for more"
            self._is_paused = not self.on_message(self._unread.popleft())

    def _write_on(self) -> None:
        if self.on_writable is not None:
            self.on_writable()

    def limit_messages(self, max_bytes: int | None) -> None:
        pass  # of what peers send, frames are for tests/live

    def write(self, frames: bytes) -> None:
        peer = self._peer
        assert peer.ending is None, "a message after the close frame"
        assert self.is_writable, "more than it takes"
        if not peer.has_left:
            for payload in payloads(frames):
                peer.hear(payload.decode(), peer.clock.now())

    def close(self, code: int, reason: str) -> None:
        if not self._peer.has_left:
            self._peer.close(code, reason)


def payloads(frames: bytes) -> Iterator[bytes]:
    """What is in a server's frames."""
    at = 0
    while at < len(frames):
        length, at = frames[at + 1], at + 2
        if length > 125:
            size = 2 if length == 126 else 8
            length, at = int.from_bytes(frames[at : at + size], "big"), at + size
        yield frames[at : at + length]
        at += length


class Engine:
    """A house's live part, with a lobby and a clock that a test moves."""

    def __init__(
        self,
        *,
        limits: ConnectionLimits | None = None,
        door_limits: DoorLimits | None = None,
        auth_timeout: float = 5.0,
        clock: ManualClock | None = None,
        broker: Broker | None = None,
        keys: Sequence[bytes] = (b"one secret",),
        **hub: Any,
    ) -> None:
        self.clock = clock or ManualClock()
        self.revocations: list[float] = []
        self.hub = Hub(
            Carrier(broker or MemoryBroker(clock=self.clock), keys, self.clock),
            clock=self.clock,
            on_revoked=self.revocations.append,
            **hub,
        )
        self.authority = Authority(self.clock, self.hub)
        self.counted: list[tuple[str, str, str]] = []
        log = SecurityLog(self.clock, lambda *event: self.counted.append(event))
        self.door = Door(
            self.hub,
            cast(HouseAuthority, self.authority),
            log,
            clock=self.clock,
            limits=limits or ConnectionLimits(),
            door_limits=door_limits or DoorLimits(),
        )
        self.rooms = RoomProtocol(self.hub.rooms, log)
        self.peers: list[Peer] = []
        self._issued = 0
        name, anyone = "authws", OriginPolicy(frozenset())
        self.strategies: dict[str, Strategy] = {
            "query-param": QueryParam(self.authority, anyone, cookie_name=name),
            "first-message": FirstMessage(
                self.authority,
                anyone,
                cookie_name=name,
                clock=self.clock,
                timeout=auth_timeout,
            ),
            "session-cookie": _AnyOrigin(self.authority, anyone, cookie_name=name),
        }

    async def start(self) -> None:
        await self.hub.start()

    def issue(
        self,
        subject: str = "alice",
        *,
        session: str = "s1",
        ttl: float = 900.0,
        scopes: Sequence[str] = ("join:*", "publish:*"),
        issuer: str = "",
    ) -> str:
        """Return a token that the authority believes."""
        self._issued += 1
        token = f"token{self._issued}"
        now = self.clock.now()
        self.authority.known[token] = Principal(
            subject,
            frozenset(scopes),
            now + ttl,
            session,
            "",
            authenticated_at=now,
            issuer=issuer,
        )
        return token

    def knock(self, strategy: str, token: str, style: DoorStyle | None = None) -> Peer:
        """Open a connection; on first-message the token is not sent yet."""
        peer = Peer(self.clock)
        if strategy == "query-param":
            peer.query = f"token={token}".encode()
        elif strategy == "session-cookie":
            peer.headers.append((b"cookie", f"authws={token}".encode()))
        self.peers.append(peer)
        work = self._serve(self.strategies[strategy], peer, style or DoorStyle())
        peer.task = asyncio.get_running_loop().create_task(work)
        return peer

    async def enter(self, strategy: str = "query-param", token: str = "") -> Peer:
        """Open a connection, up to ``auth_ok``."""
        token = token or self.issue()
        peer = self.knock(strategy, token)
        if strategy == "first-message":
            await settle()
            peer.say(type="auth", token=token)
        await settle()
        assert peer.of_type("auth_ok"), (peer.ending, peer.heard)
        return peer

    async def _serve(self, strategy: Strategy, peer: Peer, style: DoorStyle) -> None:
        try:
            opened = self.door.open_connection(strategy, peer.handshake(), style)
            async with opened as connection:
                await connection.each(self.rooms.take)
        except NotAdmittedError:
            return

    def dismiss(self) -> None:
        """Let all peers leave."""
        for peer in self.peers:
            peer.reads.set()
            if not peer.has_left:
                peer.leave()

    async def stop(self) -> None:
        """End everything; nothing may be left of it."""
        self.dismiss()
        self.authority.gate.set()
        self.authority.way_back.set()
        await self.clock.advance(60.0)
        await settle()
        for peer in self.peers:
            assert peer.task is not None
            assert peer.task.done(), "a peer has left, and its task goes on"
            peer.task.result()
        assert not self.hub.connections
        assert not self.hub.rooms
        assert (self.door.present.inside, self.door.strangers.inside) == (0, 0)
        assert self.clock.waiting == 0, "a timer outlived its connection"


class _AnyOrigin(SessionCookie):
    """Origins are not this test's subject."""

    origin_required = False
