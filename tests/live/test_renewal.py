"""``auth`` on a live connection renews it: the same person, for longer or for less."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
import pytest_asyncio
from websockets.asyncio.client import ClientConnection

from tests.grants import Grant, ending, enter, grant, hear, say, until
from tests.running import STRATEGIES, Service, running

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.parametrize("strategy", STRATEGIES),
]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def service(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Service]:
    async with running(tmp_path_factory.mktemp("service")) as service:
        await service.add_user("alice")
        await service.add_user("bob")
        yield service


async def renew(peer: ClientConnection, token: str) -> dict[str, Any]:
    """Renew, and return the answer."""
    await say(peer, type="auth", token=token)
    return await hear(peer)


async def join(peer: ClientConnection, room: str) -> list[str]:
    await say(peer, type="join", room=room)
    joined = await hear(peer)
    assert joined["type"] == "joined", joined
    members: list[str] = joined["members"]
    return members


async def is_answered(peer: ClientConnection) -> bool:
    await say(peer, type="ping", id=1)
    return await hear(peer) == {"type": "pong", "id": 1}


# ---------------------------------------------------------------------- who stays


@pytest.mark.parametrize("kind", ["access", "ticket"])
async def test_a_fresh_token_of_the_session_renews(
    service: Service, strategy: str, kind: str
) -> None:
    one = await grant(service, strategy, ttl=3600)
    path = f"/ws/{strategy}"
    async with enter(service, path, one) as peer:
        before = set(service.house.hub.connections)
        token = one.access(ttl=1234) if kind == "access" else one.ticket(ttl=1234)
        answer = await renew(peer, token)
        assert answer["type"] == "auth_ok"
        assert answer["subject"] == "alice"
        assert answer["strategy"] == strategy.replace("-", "_")
        assert answer["expires_at"] - answer["server_time"] == pytest.approx(
            1234, abs=5
        )
        assert answer["connection"] in before
        assert set(service.house.hub.connections) == before
        assert await is_answered(peer)


@pytest.mark.parametrize(
    "spelled",
    [
        r'{"type":"\u0061uth","token":"%s"}',
        r'{"\u0074ype":"\u0061\u0075\u0074\u0068","token":"%s"}',
    ],
)
async def test_a_renewal_is_one_however_it_is_escaped(
    service: Service, strategy: str, spelled: str
) -> None:
    one = await grant(service, strategy)
    async with enter(service, f"/ws/{strategy}", one) as peer:
        await peer.send(spelled % one.access(ttl=1234))
        answer = await hear(peer)
        assert answer["type"] == "auth_ok"
        assert answer["expires_at"] - answer["server_time"] == pytest.approx(
            1234, abs=5
        )
        await peer.send(spelled % "garbage")
        assert await ending(peer) == (1008, "token_invalid")


async def test_it_outlives_the_credential_it_came_with(
    service: Service, strategy: str
) -> None:
    cookie = strategy == "session-cookie"
    one = await grant(service, strategy, idle_ttl=1.0 if cookie else 1800)
    first = one.credential if cookie else one.access(ttl=1.0)
    ends = service.clock.now() + 1.0
    async with enter(service, f"/ws/{strategy}", first) as peer:
        await say(peer, type="auth", token=one.access())
        while (await hear(peer))["type"] != "auth_ok":
            pass  # a notice that the first credential ends
        await until(lambda: service.clock.now() > ends + 0.2)
        assert await is_answered(peer)


async def test_a_token_that_ends_sooner_ends_it_sooner(
    service: Service, strategy: str
) -> None:
    one = await grant(service, strategy)
    cookie = strategy == "session-cookie"
    async with enter(service, f"/ws/{strategy}", one) as peer:
        await say(peer, type="auth", token=one.access(ttl=0.5))
        slug = "session_expired" if cookie else "token_expired"
        assert await ending(peer) == (1008, slug)


async def test_what_rest_gives_renews(service: Service, strategy: str) -> None:
    if strategy == "session-cookie":
        cookie = await service.cookie()
        async with service.http(headers={"cookie": cookie}) as http:
            answer = await http.post("/auth/ticket")
        credential, fresh = cookie.partition("=")[2], answer.json()["ticket"]
    else:
        login = await service.login()
        async with service.http() as http:
            body = {"refresh_token": login["refresh_token"]}
            answer = await http.post("/auth/refresh", json=body)
        credential, fresh = login["access_token"], answer.json()["access_token"]
    async with enter(service, f"/ws/{strategy}", credential) as peer:
        assert (await renew(peer, fresh))["type"] == "auth_ok"
        assert await is_answered(peer)


async def test_an_echo_is_not_renewed_but_echoes(
    service: Service, strategy: str
) -> None:
    one = await grant(service, strategy)
    async with enter(service, f"/ws/{strategy}/echo", one) as peer:
        message = {"type": "auth", "token": "garbage"}
        await say(peer, **message)
        assert await hear(peer) == message


# ------------------------------------------------------------------- what one may do


async def test_scopes_are_those_of_the_new_token(
    service: Service, strategy: str
) -> None:
    one = await grant(service, strategy)
    async with enter(service, f"/ws/{strategy}", one) as peer:
        answer = await renew(peer, one.access(scopes=["join:*"]))
        assert answer["scopes"] == ["join:*"]
        await join(peer, "lobby")
        await say(peer, type="publish", room="lobby", data=1, id="x")
        refused = await hear(peer)
        assert (refused["slug"], refused["id"]) == ("forbidden", "x")
        answer = await renew(peer, one.access(scopes=["join:*", "publish:lobby"]))
        assert answer["scopes"] == ["join:*", "publish:lobby"]
        await say(peer, type="publish", room="lobby", data=2, id="y")
        assert (await hear(peer))["data"] == 2
        assert await hear(peer) == {"type": "ack", "id": "y"}


async def test_no_token_gives_more_than_the_user_has(
    service: Service, strategy: str
) -> None:
    one = await grant(service, strategy)
    async with enter(service, f"/ws/{strategy}", one) as peer:
        answer = await renew(peer, one.access(scopes=["join:*", "admin"]))
        assert answer["scopes"] == ["join:*"]


async def test_a_room_no_longer_allowed_is_left_and_the_others_are_told(
    service: Service, strategy: str
) -> None:
    one = await grant(service, strategy)
    other = await grant(service, strategy, "bob")
    path = f"/ws/{strategy}"
    async with enter(service, path, one) as alice, enter(service, path, other) as bob:
        for room in ("hall", "lobby", "attic"):
            await join(alice, room)
        assert await join(bob, "hall") == ["alice", "bob"]
        assert (await hear(alice))["event"] == "joined"

        scopes = ["join:lobby", "publish:*"]
        await say(alice, type="auth", token=one.access(scopes=scopes))
        await say(alice, type="publish", room="hall", data="too late", id=1)
        assert (await hear(alice))["type"] == "auth_ok"
        left = [await hear(alice), await hear(alice)]
        assert {"type": "left", "room": "hall"} in left
        assert {"type": "left", "room": "attic"} in left
        refused = await hear(alice)
        assert (refused["slug"], refused["id"]) == ("not_joined", 1)
        gone = {"room": "hall", "subject": "alice", "event": "left"}
        assert await hear(bob) == {"type": "presence", **gone}

        await say(bob, type="publish", room="hall", data="in private", id=2)
        assert [(await hear(bob))["type"] for _ in range(2)] == ["message", "ack"]
        await say(alice, type="publish", room="lobby", data="still here", id=3)
        assert (await hear(alice))["data"] == "still here"
        assert (await hear(alice))["type"] == "ack"
        assert await is_answered(alice), "nothing of the hall came in between"
        assert set(service.house.hub.rooms) == {"hall", "lobby"}


async def test_a_room_one_is_in_twice_keeps_its_member(
    service: Service, strategy: str
) -> None:
    one = await grant(service, strategy)
    path = f"/ws/{strategy}"
    async with enter(service, path, one) as laptop, enter(service, path, one) as phone:
        await join(laptop, "hall")
        assert await join(phone, "hall") == ["alice"]
        assert (await renew(phone, one.access(scopes=[])))["type"] == "auth_ok"
        assert await hear(phone) == {"type": "left", "room": "hall"}
        assert await is_answered(laptop), "alice is still in the hall"
        assert await join(laptop, "hall") == ["alice"]


# ------------------------------------------------------------------------ who goes

Bad = Callable[[Grant], Awaitable[str]]


async def other_session(one: Grant) -> str:
    return (await grant(one.service, one.strategy, one.subject)).access()


async def other_subject(one: Grant) -> str:
    return (await grant(one.service, one.strategy, "bob")).access()


async def other_subject_of_the_session(one: Grant) -> str:
    return one.access(subject="bob")


async def garbage(_: Grant) -> str:
    return "garbage"


async def empty(_: Grant) -> str:
    return ""


async def expired(one: Grant) -> str:
    return one.access(age=901)


async def ended(one: Grant) -> str:
    other = await grant(one.service, one.strategy, one.subject)
    token = other.access()
    await other.end()
    return token


async def used_ticket(one: Grant) -> str:
    ticket = one.ticket()
    async with enter(one.service, "/ws/query-param", ticket):
        return ticket


async def other_session_s_ticket(one: Grant) -> str:
    return (await grant(one.service, one.strategy, one.subject)).ticket()


BAD: list[tuple[Bad, str]] = [
    (other_session, "subject_changed"),
    (other_session_s_ticket, "subject_changed"),
    (other_subject, "subject_changed"),
    (other_subject_of_the_session, "token_invalid"),
    (garbage, "token_invalid"),
    (empty, "auth_missing"),
    (expired, "token_expired"),
    (ended, "token_revoked"),
    (used_ticket, "ticket_used"),
]


@pytest.mark.parametrize(("bad", "slug"), BAD, ids=[bad.__name__ for bad, _ in BAD])
async def test_a_bad_renewal_ends_the_connection_and_the_others_are_told(
    service: Service, strategy: str, bad: Bad, slug: str
) -> None:
    one = await grant(service, strategy)
    other = await grant(service, strategy, "bob")
    path = f"/ws/{strategy}"
    async with enter(service, path, one) as alice, enter(service, path, other) as bob:
        await join(bob, "hall")
        await join(alice, "hall")
        assert (await hear(bob))["event"] == "joined"
        await say(alice, type="auth", token=await bad(one))
        await say(alice, type="publish", room="hall", data="last words")
        assert await ending(alice) == (1008, slug)
        gone = {"room": "hall", "subject": "alice", "event": "left"}
        assert await hear(bob) == {"type": "presence", **gone}


async def test_renewals_one_after_another_are_all_answered(
    service: Service, strategy: str
) -> None:
    one = await grant(service, strategy)
    async with enter(service, f"/ws/{strategy}", one) as peer:
        tokens = [one.access(scopes=[f"join:{n}"]) for n in range(20)]
        await asyncio.gather(*(say(peer, type="auth", token=t) for t in tokens))
        answers = [await hear(peer) for _ in tokens]
        assert {a["type"] for a in answers} == {"auth_ok"}
        assert await is_answered(peer)
