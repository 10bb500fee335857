"""Any peer, any sequence of frames: what holds for every connection that there is.

1. A peer that presented no good credential never receives anything of a room, and
   none whose session has ended receives anything that is said from then on.
2. A connection that the peer does not cut off itself ends with a close frame, and its
   code is one of our table or one of the protocol's own.
3. No failure of ours is logged, and the hub keeps nothing of the connection.
"""

from __future__ import annotations

import asyncio
import json
import struct
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
import pytest_asyncio
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from websockets.asyncio.client import ClientConnection

from authws.close_codes import BY_SLUG, CloseCode
from tests.grants import Grant, enter, grant, hear, say, until
from tests.running import STRATEGIES, Service, running
from tests.wire import (
    BINARY,
    CLOSE,
    CONTINUATION,
    PING,
    PONG,
    TEXT,
    WirePeer,
    frame,
    handshake,
    wire,
)

pytestmark = pytest.mark.asyncio(loop_scope="module")

CODES = {int(code) for code in CloseCode} | {1000, 1001, 1002}
OF_A_ROOM = {"message", "presence", "joined"}
EXAMPLES = 120
"""Of each test and strategy: about twenty seconds in all."""


@dataclass
class House:
    """A service with one honest listener, who talks all the while."""

    service: Service
    bob: ClientConnection
    mallory: Grant
    published: int = 0

    async def speak(self) -> None:
        """Publish one message, and hear it back."""
        self.published += 1
        await say(self.bob, type="publish", room="lobby", data=self.published)
        while True:
            heard = await hear(self.bob)
            if heard["type"] == "message" and heard["from"] == "bob":
                assert heard["data"] == self.published
                return


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def house(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[House]:
    async with running(
        tmp_path_factory.mktemp("properties"), auth_timeout=2, strikes=6
    ) as service:
        for name in ("alice", "mallory", "bob"):
            await service.add_user(name)
        bob = await grant(service, "query-param", "bob")
        async with enter(service, "/ws/query-param", bob) as listener:
            await say(listener, type="join", room="lobby")
            assert (await hear(listener))["type"] == "joined"
            yield House(
                service,
                listener,
                await grant(service, "query-param", "mallory"),
            )


# ----------------------------------------------------------------------- what is sent


@dataclass(frozen=True)
class Op:
    """One thing that a peer does."""

    name: str
    payload: bytes = field(default=b"", repr=False)
    text: str = ""


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=5,
)
ROOM = st.sampled_from(["lobby", "lobby", "lobby", "other", "", "a b", "x" * 200])
MESSAGES = st.one_of(
    JSON,
    st.fixed_dictionaries({"type": st.just("join"), "room": ROOM}),
    st.fixed_dictionaries({"type": st.just("join"), "room": ROOM}),
    st.fixed_dictionaries({"type": st.just("leave"), "room": ROOM}),
    st.fixed_dictionaries({"type": st.just("publish"), "room": ROOM, "data": JSON}),
    st.fixed_dictionaries({"type": st.just("ping")}, optional={"id": JSON}),
    st.fixed_dictionaries(
        {"type": st.sampled_from(["auth", "auth_ok", "message"])},
        optional={"token": JSON, "room": ROOM, "subject": st.just("bob")},
    ),
)


def text_op(message: Any) -> Op:
    text = json.dumps(message)
    return Op("text", frame(TEXT, text.encode()), text[:80])


def fragmented_op(message: Any) -> Op:
    """A text in three fragments, with a ping between them."""
    data = json.dumps(message).encode()
    third = len(data) // 3
    parts = (
        frame(TEXT, data[:third], fin=False),
        frame(PING, b"between"),
        frame(CONTINUATION, data[third : 2 * third], fin=False),
        frame(CONTINUATION, data[2 * third :]),
    )
    return Op("fragments", b"".join(parts), data.decode()[:80])


CREDENTIALS = ["good", "good", "good", "bad", "expired", "other", "none"]
SPOILED = {
    "unmasked": b"\x81\x01x",
    "reserved bit": frame(TEXT | 0x20, b"x"),
    "reserved opcode": frame(3, b"x"),
    "lone continuation": frame(CONTINUATION, b"x"),
    "invalid utf-8": frame(TEXT, b"\xff"),
    "too big": frame(TEXT, b"x" * 70_000),
    "begun and not ended": frame(TEXT, b"{", fin=False),
    "long ping": frame(PING, b"x" * 126),
    "close with one byte": frame(CLOSE, b"x"),
    "close with a reserved code": frame(CLOSE, struct.pack("!H", 1005)),
}

OPS = st.one_of(
    MESSAGES.map(text_op),
    MESSAGES.map(text_op),
    MESSAGES.map(fragmented_op),
    st.sampled_from(CREDENTIALS).map(lambda kind: Op("auth", text=kind)),
    st.sampled_from(CREDENTIALS).map(lambda kind: Op("auth", text=kind)),
    st.text(max_size=20).map(lambda s: Op("text", frame(TEXT, s.encode()), s)),
    st.binary(max_size=20).map(lambda data: Op("binary", frame(BINARY, data))),
    st.binary(max_size=20).map(lambda data: Op("ping", frame(PING, data))),
    st.binary(max_size=20).map(lambda data: Op("pong", frame(PONG, data))),
    st.sampled_from(sorted(SPOILED)).map(lambda name: Op("spoiled", text=name)),
    st.sampled_from(["speak", "revoke"]).map(Op),
    st.sampled_from(["close", "abort", "half"]).map(Op),
)

INSIDE = [Op("auth", text="good"), text_op({"type": "join", "room": "lobby"})]
SEQUENCES = st.builds(
    lambda start, more: [*start, *more],
    st.sampled_from([[], [INSIDE[0]], INSIDE, INSIDE]),
    st.lists(OPS, max_size=8),
)
"""Half of them start as a member of the room would."""


# ------------------------------------------------------------------------- the peer


@dataclass
class Seen:
    """What a peer did that matters, and what it received."""

    may_know: bool = False
    """A good credential was presented."""
    cut: bool = False
    """The peer cut the connection off itself."""
    status: int = 0
    ended_at: int | None = None
    """What bob had published when the peer's session was ended."""
    heard: list[dict[str, Any]] = field(default_factory=list)
    close: tuple[int, str] | None = None

    @property
    def types(self) -> list[str]:
        return [message["type"] for message in self.heard]


class Peer:
    """Acts a sequence out, and listens until the end."""

    def __init__(
        self, house: House, strategy: str, alice: Grant, wire: WirePeer
    ) -> None:
        self.house = house
        self.strategy = strategy
        self.alice = alice
        self.wire = wire
        self.seen = Seen()

    def credential(self, kind: str) -> str | None:
        """Return a token, or a cookie's value."""
        alice = self.alice
        if alice.cookie:
            cookies = {"good": alice.cookie, "none": None}
            return cookies.get(kind, f"{alice.cookie[:-2]}xx")
        return self.token(kind)

    def token(self, kind: str) -> str | None:
        alice = self.alice
        if kind == "good":
            return alice.access()
        if kind == "other":
            return self.house.mallory.access()
        if kind == "expired":
            return alice.access(age=100, ttl=50)
        return None if kind == "none" else f"{alice.access()[:-4]}AAAA"

    async def open(self, kind: str) -> bool:
        """Make the handshake; tell whether it was completed."""
        lines: tuple[str, ...] = ()
        target = f"/ws/{self.strategy}"
        credential = self.credential(kind)
        if self.strategy == "session-cookie":
            lines = (f"Origin: {self.house.service.origin}",)
            if credential is not None:
                lines += (f"Cookie: authws={credential}",)
        elif self.strategy == "query-param" and credential is not None:
            target += f"?token={credential}"
        if self.strategy != "first-message":
            known = {"good", "other"} if self.strategy == "query-param" else {"good"}
            self.seen.may_know = kind in known
        await self.wire.send(handshake(target, headers=lines))
        self.seen.status = (await self.wire.response()).status
        return self.seen.status == 101

    async def act(self, op: Op) -> None:
        if op.name == "auth":
            token = self.token(op.text)
            message = {"type": "auth"} if token is None else {"token": token}
            # a first message that opens the door; elsewhere the door was open, or not
            if self.strategy == "first-message" and op.text in {"good", "other"}:
                self.seen.may_know = True
            text = json.dumps({"type": "auth", **message})
            await self.wire.send(frame(TEXT, text.encode()))
        elif op.name == "speak":
            await self.house.speak()
        elif op.name == "close":
            await self.wire.send(frame(CLOSE, struct.pack("!H", 1000)))
        elif op.name == "revoke":
            await self.alice.end()
            self.seen.ended_at = self.house.published
            await self.house.speak()
        elif op.name == "half":
            self.seen.cut = True
            self.wire.end()
        elif op.name == "abort":
            self.seen.cut = True
        elif op.name == "spoiled":
            await self.wire.send(SPOILED[op.text])
        else:
            await self.wire.send(op.payload)

    async def listen(self) -> None:
        """Receive until the close frame, or until the server is gone."""
        try:
            while True:
                got = await self.wire.frame()
                if got.opcode == CLOSE:
                    self.seen.close = got.close if got.payload else (1000, "")
                    return
                if got.opcode == TEXT:
                    self.seen.heard.append(json.loads(got.payload))
        except (asyncio.IncompleteReadError, ConnectionError):
            return


async def live(house: House, strategy: str, kind: str, ops: Sequence[Op]) -> Seen:
    """Live one connection from its handshake to its end."""
    alice = await grant(house.service, strategy)
    async with wire(house.service.port) as socket:
        peer = Peer(house, strategy, alice, socket)
        if not await peer.open(kind):
            return peer.seen
        listening = asyncio.create_task(peer.listen())
        for op in (*ops, Op("speak"), Op("close")):
            await peer.act(op)
            if peer.seen.cut:
                break
        if op.name == "abort":
            listening.cancel()
        await asyncio.wait([listening])
    return peer.seen


# ------------------------------------------------------------------------ what holds


@pytest.mark.parametrize("strategy", STRATEGIES)
@settings(
    max_examples=EXAMPLES,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(kind=st.sampled_from([*CREDENTIALS, "good", "good"]), ops=SEQUENCES)
@example(kind="good", ops=[*INSIDE, Op("speak")])
@example(kind="good", ops=[*INSIDE, Op("revoke")])
@example(kind="none", ops=[*INSIDE[1:], Op("speak")])
@example(kind="good", ops=[*INSIDE, Op("abort")])
async def test_any_sequence_of_frames(
    house: House, strategy: str, kind: str, ops: list[Op]
) -> None:
    hub = house.service.house.hub
    since = len(house.service.records)
    seen = await live(house, strategy, kind, ops)

    if not seen.may_know:
        assert not OF_A_ROOM & set(seen.types)
        assert "auth_ok" not in seen.types
    if "auth_ok" in seen.types:
        before = seen.types[: seen.types.index("auth_ok")]
        assert set(before) <= {"auth_required"}
    else:
        assert set(seen.types) <= {"auth_required"}
    if seen.ended_at is not None and kind != "other":
        late = [
            message
            for message in seen.heard
            if message["type"] == "message"
            and message["from"] == "bob"
            and message["data"] > seen.ended_at
        ]
        assert late == []
    if seen.status == 101 and not seen.cut:
        assert seen.close is not None, "ended without a close frame"
        code, reason = seen.close
        assert code in CODES
        assert code != 1011
        if code == 1008:
            assert reason in BY_SLUG

    await until(lambda: len(hub.connections) == 1)
    assert set(hub.rooms) == {"lobby"}
    assert set(hub.rooms["lobby"].subjects) == {"bob"}
    assert hub.rooms["lobby"].subjects["bob"] == 1
    failures = [
        record.getMessage()
        for record in house.service.records[since:]
        if record.exc_info or record.levelname in {"ERROR", "CRITICAL"}
    ]
    assert failures == []
