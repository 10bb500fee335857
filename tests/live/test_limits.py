"""Every limit, on both sides: the last that is allowed passes, and one more is told no.

One table has a row for each member of ``Limit``. A row reaches its limit as a peer
would; what it is told, and what ``/metrics`` counts, is compared with the table.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.protocol import State

from authws import close_codes
from authws.decisions.limits import Limit
from authws.decisions.messages import MAX_JSON_DEPTH
from authws.service.protocols import ProtocolLimits
from authws.service.settings import Settings
from authws.strategies.handshake import Handshake
from tests.grants import (
    Grant,
    ending,
    enter,
    grant,
    hear,
    knock,
    present,
    say,
    until,
)
from tests.running import STRATEGIES, Service, running
from tests.wire import wire


@dataclass(frozen=True)
class Outcome:
    """What one more was told."""

    slug: str = ""
    status: int = 0
    """Of the HTTP answer, before accept."""
    code: int = 0
    """Of the close frame."""


SERVED = Outcome()


@dataclass
class Visit:
    """Alice at one endpoint of a service after another."""

    service: Service
    strategy: str = ""
    alice: Grant | None = None
    retry_after: int = 0
    """How many seconds she was last told to wait."""

    @property
    def path(self) -> str:
        return f"/ws/{self.strategy}"

    @property
    def credential(self) -> str:
        assert self.alice is not None
        return self.alice.credential

    @asynccontextmanager
    async def inside(self, *, echo: bool = False) -> AsyncIterator[ClientConnection]:
        path = f"{self.path}/echo" if echo else self.path
        async with enter(self.service, path, self.credential) as peer:
            yield peer

    async def knocks(self) -> Outcome:
        """Come in, be answered, and leave; or be refused."""
        try:
            peer = await knock(self.service, self.path, self.credential)
        except InvalidStatus as refused:
            response = refused.response
            self.retry_after = int(response.headers["retry-after"])
            slug = json.loads(response.body)["detail"]
            return Outcome(slug, status=response.status_code)
        async with peer:
            return await is_served(peer)


async def is_served(peer: ClientConnection) -> Outcome:
    """Prove that a peer is answered, or learn how it was ended."""
    with suppress(ConnectionClosed):  # read on: its close frame says why
        await say(peer, type="ping", id="served")
    try:
        async with asyncio.timeout(10):
            # an echo returns it, a room answers it
            while json.loads(await peer.recv()).get("id") != "served":
                pass
    except ConnectionClosed:  # cut off without a close frame it is a 1006
        return Outcome(peer.close_reason or "", code=peer.close_code or 0)
    return SERVED


# --------------------------------------------------------------- how each is reached


async def connections(visit: Visit) -> Outcome:
    async with visit.inside(), visit.inside():
        return await visit.knocks()


async def silent_strangers(visit: Visit) -> Outcome:
    async with (
        await visit.service.open("/ws/first-message"),
        await visit.service.open("/ws/first-message"),
    ):
        return await visit.knocks()


async def handshakes(visit: Visit) -> Outcome:
    await asyncio.sleep(visit.retry_after)  # who waits as told is served
    assert await visit.knocks() == SERVED
    return await visit.knocks()


async def logins(visit: Visit) -> Outcome:
    by_cookie = visit.strategy == "session-cookie"
    route = "/auth/session" if by_cookie else "/auth/login"
    login = {"username": f"nobody-{visit.strategy}", "password": "wrong"}
    async with visit.service.http() as http:
        answers = [await http.post(route, json=login) for _ in range(3)]
    for answer in answers[:2]:
        assert answer.json() == {"detail": "credentials_invalid"}
    if answers[2].status_code == 401:
        return SERVED
    visit.retry_after = int(answers[2].headers["retry-after"])
    return Outcome(answers[2].json()["detail"], status=answers[2].status_code)


async def messages_at_once(visit: Visit) -> Outcome:
    async with visit.inside(echo=True) as peer:
        await peer.send("the one that is allowed")
        assert await peer.recv() == "the one that is allowed"
        return await is_served(peer)


async def bytes_at_once(visit: Visit) -> Outcome:
    async with visit.inside(echo=True) as peer:
        for text in (echoable(1_000), echoable(1_000, "é")):
            await peer.send(text)
            assert await peer.recv() == text
        await peer.send(echoable(1_000))
        return await is_served(peer)


async def a_big_message(visit: Visit) -> Outcome:
    async with visit.inside(echo=True) as peer:
        for message in (echoable(1_000), b"x" * 1_000, echoable(1_000, "é")):
            await peer.send(message)
            assert await peer.recv() == message
        await peer.send(echoable(1_001, "é"))
        return await is_served(peer)


async def a_message_of_fragments(visit: Visit) -> Outcome:
    async with visit.inside(echo=True) as peer:
        await peer.send(['{"x":"', "x" * 400, "x" * 592, '"}'])
        assert len(await peer.recv()) == 1_000
        await peer.send(['{"x":"', "x" * 400, "x" * 593, '"}'])
        return await is_served(peer)


async def a_big_first_message(visit: Visit) -> Outcome:
    for size in (2_000, 2_001):
        text = json.dumps({"type": "auth", "token": visit.credential})
        text = text[:-1] + " " * (size - len(text)) + "}"
        async with await knock(visit.service, visit.path, frame=text) as peer:
            outcome = await is_served(peer)
        assert outcome == SERVED or size > 2_000
    return outcome


async def a_deep_message(visit: Visit) -> Outcome:
    async with visit.inside() as peer:
        await joins(peer, "deep")
        for depth in (MAX_JSON_DEPTH, MAX_JSON_DEPTH + 1):
            arrays = depth - 1  # the message itself is an object
            await peer.send(
                '{"type":"publish","room":"deep","data":'
                + "[" * arrays
                + "]" * arrays
                + "}"
            )
            answer = await hear(peer)
            assert answer["type"] == "message" or depth > MAX_JSON_DEPTH
        assert await is_served(peer) == SERVED
    return Outcome(answer["slug"])


async def many_rooms(visit: Visit) -> Outcome:
    async with visit.inside() as peer:
        for name in "abc":
            assert (await joins(peer, name))["type"] == "joined"
        answer = await joins(peer, "d")
        assert (await joins(peer, "a"))["type"] == "joined"  # it is in there already
        await say(peer, type="leave", room="a")
        assert (await hear(peer))["type"] == "left"
        assert (await joins(peer, "e"))["type"] == "joined"
        assert await is_served(peer) == SERVED
    return Outcome(answer.get("slug", ""))


async def a_long_room_name(visit: Visit) -> Outcome:
    async with visit.inside() as peer:
        assert (await joins(peer, "a" * 128))["type"] == "joined"
        answer = await joins(peer, "a" * 129)
        assert await is_served(peer) == SERVED
    return Outcome(answer["slug"])


async def malformed_messages(visit: Visit) -> Outcome:
    async with visit.inside() as peer:
        for _ in range(2):  # what is understood wipes the slate clean
            for _ in range(2):
                await peer.send("not JSON")
                assert (await hear(peer))["slug"] == "malformed"
            assert await is_served(peer) == SERVED
        for _ in range(3):
            await peer.send("not JSON")
        return await is_served(peer)


async def many_pings(visit: Visit) -> Outcome:
    burst = int(ProtocolLimits().control_rate)
    async with visit.inside() as peer:
        for _ in range(burst // 2):
            await (await peer.ping())
        assert await is_served(peer) == SERVED
        with suppress(ConnectionClosed):
            for _ in range(3 * burst):  # faster than any of it comes back
                await peer.ping()
        return await is_served(peer)


TALK = json.dumps({"type": "message", "data": "x" * 400})


async def a_full_outbox(visit: Visit) -> Outcome:
    async with visit.inside() as peer:
        (connection,) = visit.service.house.hub.connections.values()

        async def post(count: int) -> None:
            for _ in range(count):  # all before the writer has its turn
                connection.post(TALK)

        await visit.service.call(post(4))
        assert [await peer.recv() for _ in range(4)] == [TALK] * 4
        await visit.service.call(post(5))
        return await is_served(peer)


def echoable(size: int, letter: str = "x") -> str:
    """A JSON object of so many bytes on the wire: an echo of it can be read as one."""
    letters, rest = divmod(size - len('{"x":""}'), len(letter.encode()))
    return json.dumps({"x": letter * letters + "x" * rest}, ensure_ascii=False).replace(
        " ", ""
    )


async def joins(peer: ClientConnection, room: str) -> dict[str, Any]:
    await say(peer, type="join", room=room)
    return await hear(peer)


# --------------------------------------------------------------------------- the table


@dataclass(frozen=True)
class Row:
    """One limit: where it is set, how one more than it allows comes about, and what
    that one is told."""

    limit: Limit
    settings: dict[str, Any]
    """The first of them is the limit's own."""
    one_more: Callable[[Visit], Awaitable[Outcome]]
    told: Outcome
    off: dict[str, Any] | None = field(default_factory=dict)
    """More settings under which a limit of 0 shows; None where it cannot be off."""
    strategies: tuple[str, ...] = STRATEGIES

    @property
    def name(self) -> str:
        return f"{self.limit}-{self.one_more.__name__.replace('_', '-')}"


FULL = "too_many_connections"
ROWS = (
    Row(
        Limit.CONNECTIONS,
        {"max_connections": 2},
        connections,
        Outcome(FULL, status=503),
    ),
    Row(
        Limit.CONNECTIONS_PER_ADDRESS,
        {"max_connections_per_address": 2},
        connections,
        Outcome(FULL, status=429),
        off={"behind_proxy": True},
    ),
    Row(
        Limit.CONNECTIONS_PER_USER,
        {"max_connections_per_user": 2},
        connections,
        Outcome(FULL, code=1008),
    ),
    Row(
        Limit.UNAUTHENTICATED,
        {"max_unauthenticated": 2},
        silent_strangers,
        Outcome(FULL, status=503),
    ),
    Row(
        Limit.UNAUTHENTICATED_PER_ADDRESS,
        {"max_unauthenticated_per_address": 2},
        silent_strangers,
        Outcome(FULL, status=429),
        off={"behind_proxy": True},
    ),
    Row(
        Limit.HANDSHAKE_RATE,
        {"handshake_rate": 0.6},
        handshakes,
        Outcome("rate_limited", status=429),
        off={"behind_proxy": True},
    ),
    Row(
        Limit.LOGIN_RATE,
        {"login_rate": 2},
        logins,
        Outcome("rate_limited", status=429),
    ),
    Row(
        Limit.MESSAGE_RATE,
        {"message_rate": 0.2},
        messages_at_once,
        Outcome("rate_limited", code=1008),
    ),
    Row(
        Limit.BYTE_RATE,
        {"byte_rate": 200, "max_message_bytes": 2_000},
        bytes_at_once,
        Outcome("rate_limited", code=1008),
    ),
    Row(
        Limit.MESSAGE_BYTES,
        {"max_message_bytes": 1_000},
        a_big_message,
        Outcome("message_too_big", code=1009),
    ),
    Row(
        Limit.MESSAGE_BYTES,
        {"max_message_bytes": 1_000},
        a_message_of_fragments,
        Outcome("message_too_big", code=1009),
    ),
    Row(
        Limit.FIRST_MESSAGE_BYTES,
        {"max_first_message_bytes": 2_000},
        a_big_first_message,
        Outcome("message_too_big", code=1009),
        off=None,
        strategies=("first-message",),
    ),
    Row(
        Limit.FRAMES,
        {},
        many_pings,
        Outcome("rate_limited", code=1008),
        off=None,
    ),
    Row(Limit.JSON_DEPTH, {}, a_deep_message, Outcome("malformed"), off=None),
    Row(Limit.ROOMS, {"max_rooms": 3}, many_rooms, Outcome("too_many_rooms")),
    Row(Limit.ROOM_NAME, {}, a_long_room_name, Outcome("room_invalid"), off=None),
    Row(
        Limit.STRIKES,
        {"strikes": 3},
        malformed_messages,
        Outcome("forbidden", code=1008),
    ),
    Row(
        Limit.OUTBOX,
        {"outbox_messages": 4},
        a_full_outbox,
        Outcome("slow_consumer", code=1008),
    ),
    Row(
        Limit.OUTBOX,
        {"outbox_bytes": 4 * len(TALK)},
        a_full_outbox,
        Outcome("slow_consumer", code=1008),
    ),
)
CAN_BE_OFF = [row for row in ROWS if row.off is not None]


def test_every_limit_has_a_row_and_every_row_a_setting() -> None:
    assert {row.limit for row in ROWS} == set(Limit)
    for row in ROWS:
        assert set(row.settings) <= set(Settings.model_fields)
        assert row.told.slug in close_codes.BY_SLUG or not row.told.code


@asynccontextmanager
async def visiting(tmp_path: Path, **settings: Any) -> AsyncIterator[Visit]:
    async with running(tmp_path, **settings) as service:
        await service.add_user("alice")
        yield Visit(service)
        await nobody_is_left(service)
        assert [r.getMessage() for r in service.records if r.exc_info] == []


async def nobody_is_left(service: Service) -> None:
    await until(lambda: not service.house.hub.connections)
    await until(lambda: not service.house.door.present.inside)


async def hits(service: Service) -> dict[str, float]:
    """The limits that somebody ran into, as ``/metrics`` counts them."""
    if service.house.settings.behind_proxy:  # to strangers it is not open then
        text = service.house.metrics.render().decode()
    else:
        async with service.http() as http:
            text = (await http.get("/metrics")).text
    found = re.findall(r'^authws_limit_hits_total\{limit="(\w+)"\} (\S+)$', text, re.M)
    assert {name for name, _ in found} == set(Limit)
    return {name: float(count) for name, count in found if float(count)}


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
async def test_the_last_allowed_passes_and_one_more_is_told_no_and_counted(
    tmp_path: Path, row: Row
) -> None:
    async with visiting(tmp_path, **row.settings) as visit:
        for times, strategy in enumerate(row.strategies, start=1):
            visit.strategy = strategy
            visit.alice = await grant(visit.service, strategy)
            assert await row.one_more(visit) == row.told, strategy
            assert bool(visit.retry_after) == bool(row.told.status)
            await nobody_is_left(visit.service)  # by then it is counted
            assert await hits(visit.service) == {row.limit: times}


@pytest.mark.parametrize("row", CAN_BE_OFF, ids=lambda row: row.name)
async def test_a_limit_of_0_is_off(tmp_path: Path, row: Row) -> None:
    (own, *_) = row.settings
    settings = {**row.settings, **(row.off or {}), own: 0}
    async with visiting(tmp_path, **settings) as visit:
        visit.strategy = row.strategies[0]
        visit.alice = await grant(visit.service, visit.strategy)
        assert await row.one_more(visit) == SERVED
        assert await hits(visit.service) == {}


# ----------------------------------------------------- on a server that bounds less


@pytest.mark.parametrize("strategy", STRATEGIES)
async def test_a_big_message_that_the_server_let_pass_ends_the_connection_too(
    tmp_path: Path, strategy: str
) -> None:
    """Ours refuses it while it arrives; the library may run on another."""
    async with visiting(tmp_path, max_message_bytes=65_536) as visit:
        visit.strategy = strategy
        visit.alice = await grant(visit.service, strategy)
        door = visit.service.house.door
        door._limits = replace(door._limits, max_message_bytes=1_000)
        assert await a_big_message(visit) == Outcome("message_too_big", code=1009)
        assert await a_message_of_fragments(visit) == Outcome(
            "message_too_big", code=1009
        )
        await nobody_is_left(visit.service)
        assert await hits(visit.service) == {Limit.MESSAGE_BYTES: 2}


async def test_a_big_first_message_that_the_server_let_pass_is_refused_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Handshake, "limit_messages", lambda *_: None)
    async with visiting(tmp_path, max_first_message_bytes=2_000) as visit:
        visit.strategy = "first-message"
        visit.alice = await grant(visit.service, visit.strategy)
        assert await a_big_first_message(visit) == Outcome("message_too_big", code=1009)
        await nobody_is_left(visit.service)
        assert await hits(visit.service) == {Limit.FIRST_MESSAGE_BYTES: 1}


# ----------------------------------------------------------------- a slot is freed


@pytest.mark.parametrize(
    ("settings", "status"),
    [({"max_unauthenticated": 2}, 503), ({"max_unauthenticated_per_address": 2}, 429)],
    ids=["in-all", "per-address"],
)
async def test_a_stranger_frees_its_slot_by_becoming_known_and_by_going(
    tmp_path: Path, settings: dict[str, Any], status: int
) -> None:
    async with visiting(tmp_path, **settings) as visit:
        service = visit.service
        visit.strategy = "first-message"
        visit.alice = await grant(service, visit.strategy)
        full = Outcome(FULL, status=status)
        async with (
            await service.open(visit.path) as one,
            await service.open(visit.path) as two,
        ):
            await until(lambda: service.house.door.strangers.inside == 2)
            assert await visit.knocks() == full
            assert (await hear(one))["type"] == "auth_required"
            await say(one, type="auth", token=visit.credential)
            assert (await hear(one))["type"] == "auth_ok"
            assert await visit.knocks() == SERVED
            async with await service.open(visit.path):
                await until(lambda: service.house.door.strangers.inside == 2)
                assert await visit.knocks() == full
            two.transport.abort()
            await until(lambda: service.house.door.strangers.inside == 0)
            assert await visit.knocks() == SERVED
            assert await is_served(one) == SERVED


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("setting", ["max_connections", "max_connections_per_address"])
async def test_who_leaves_however_makes_room_for_another(
    tmp_path: Path, setting: str, strategy: str
) -> None:
    async with visiting(tmp_path, **{setting: 1}) as visit:
        visit.strategy = strategy
        visit.alice = await grant(visit.service, strategy)
        for leave in ("politely", "abruptly", "refused", "revoked"):
            if leave == "refused":
                refused = await present(visit.service, visit.path, "a.b.c")
                assert refused[0] == 1008
            else:
                async with visit.inside() as peer:
                    assert (await visit.knocks()).slug == FULL
                    if leave == "abruptly":
                        peer.transport.abort()
                    if leave == "revoked":
                        await visit.alice.end()
                        assert (await ending(peer))[0] == 1008
            await nobody_is_left(visit.service)
        visit.alice = await grant(visit.service, strategy)
        assert await visit.knocks() == SERVED


@pytest.mark.parametrize("when_full", ["reject_new", "evict_oldest"])
async def test_a_burst_of_one_user_leaves_as_many_as_are_allowed(
    tmp_path: Path, when_full: str
) -> None:
    async with visiting(
        tmp_path, max_connections_per_user=5, when_user_is_full=when_full
    ) as visit:
        service = visit.service
        alice = await grant(service, "query-param")
        path = f"/ws/query-param?token={alice.access()}"
        peers = await asyncio.gather(*(service.open(path) for _ in range(30)))
        await until(lambda: sum(peer.state is State.CLOSED for peer in peers) == 25)
        await until(lambda: len(service.house.hub.connections) == 5)
        codes = [peer.close_code for peer in peers if peer.state is State.CLOSED]
        assert codes == [1008] * 25
        left = [peer for peer in peers if peer.state is State.OPEN]
        assert [await is_served(peer) for peer in left] == [SERVED] * 5
        assert await hits(service) == {Limit.CONNECTIONS_PER_USER: 25}
        await asyncio.gather(*(peer.close() for peer in peers))


# ----------------------------------------------------------------------- evict_oldest


@pytest.mark.parametrize("strategy", STRATEGIES)
async def test_the_oldest_of_a_user_makes_room_for_the_newest(
    tmp_path: Path, strategy: str
) -> None:
    async with visiting(
        tmp_path, max_connections_per_user=2, when_user_is_full="evict_oldest"
    ) as visit:
        service = visit.service
        await service.add_user("bob")
        visit.strategy = strategy
        visit.alice = await grant(service, strategy)
        others = [await grant(service, s) for s in STRATEGIES if s != strategy]
        bob = await grant(service, "query-param", "bob")
        async with (
            enter(service, "/ws/query-param", bob) as witness,
            visit.inside() as oldest,
            # a user's connections count together, whatever they came in by
            enter(service, f"/ws/{others[0].strategy}", others[0]) as second,
        ):
            await joins(witness, "attic")
            await joins(oldest, "attic")
            assert (await hear(witness))["event"] == "joined"
            async with enter(service, f"/ws/{others[1].strategy}", others[1]) as third:
                assert await ending(oldest) == (1008, FULL)
                assert await hear(witness) == {
                    "type": "presence",
                    "room": "attic",
                    "subject": "alice",
                    "event": "left",
                }
                for peer in (second, third, witness):
                    assert await is_served(peer) == SERVED
                async with visit.inside() as fourth:
                    assert await ending(second) == (1008, FULL)
                    for peer in (third, fourth, witness):
                        assert await is_served(peer) == SERVED
                    of_alice = service.house.hub.of_subject("alice")
                    assert len(list(of_alice)) == 2
            # who went by themselves left room: nobody has to go for the next
            await until(lambda: len(service.house.hub.connections) == 1)
            async with visit.inside(), visit.inside():
                assert await is_served(witness) == SERVED
            assert await hits(service) == {Limit.CONNECTIONS_PER_USER: 2}
        reasons = [
            (event["subject"], event["reason"], event.get("limit"))
            for event in service.security_events
            if event["event"] == "disconnected" and event["reason"] != "peer_left"
        ]
        assert reasons == [("alice", FULL, "connections_per_user")] * 2


async def test_who_evicts_need_not_wait_for_a_peer_that_does_not_read(
    tmp_path: Path,
) -> None:
    async with visiting(
        tmp_path, max_connections_per_user=1, when_user_is_full="evict_oldest"
    ) as visit:
        service = visit.service
        visit.strategy = "query-param"
        visit.alice = await grant(service, visit.strategy)
        async with wire(service.port) as deaf:
            target = f"{visit.path}?token={visit.credential}"
            await deaf.upgrade(target)
            async with asyncio.timeout(0.5):  # its close frame has a whole second
                assert await visit.knocks() == SERVED
            await until(lambda: not list(service.house.hub.of_subject("alice")))
            assert await deaf.close_frame() == (1008, FULL)
