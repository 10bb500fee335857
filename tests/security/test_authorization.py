"""Authorization: rooms, scopes, other people's things.

What a principal may do is in its scopes, each of which its user's record must hold.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

import pytest
import pytest_asyncio
import websockets
from fastapi.routing import APIRoute
from websockets.asyncio.client import ClientConnection

from authws.clock import Clock
from authws.decisions.tokens import Claims
from authws.stores.database import Database
from authws.stores.users import Users
from tests.running import PASSWORD, STRATEGIES, Service, running
from tests.security.peers import (
    bearer,
    controlled,
    ending,
    hear,
    join,
    say,
    silence,
)
from tests.wire import request, wire

pytestmark = pytest.mark.asyncio(loop_scope="module")

RECHECK = 0.2
SCOPES = {
    "alice": ("join:alice.*", "publish:alice.*", "join:lobby", "publish:lobby"),
    "bob": ("join:bob.*", "publish:bob.*", "join:lobby", "publish:lobby"),
    "reader": ("join:lobby",),
    "tenant": ("join:acme.*", "publish:acme.*"),
    "admin": ("admin", "join:*", "publish:*"),
}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def service(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Service]:
    """Metrics are only for scope admin: behind a proxy nobody is local."""
    async with running(
        tmp_path_factory.mktemp("authorization"),
        behind_proxy=True,
        strikes=0,
        recheck_interval=RECHECK,
    ) as service:
        for name, scopes in SCOPES.items():
            await service.add_user(name, scopes=scopes)
        async with controlled(service):
            yield service


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def tokens(service: Service) -> dict[str, str]:
    return {name: await service.token(name) for name in SCOPES}


async def connect(service: Service, token: str) -> ClientConnection:
    peer = await service.open(f"/ws/query-param?token={token}")
    assert (await hear(peer))["type"] == "auth_ok"
    return peer


def claims_of(service: Service, token: str) -> Claims:
    return service.house._access.verify(token, now=service.clock.now())


def mint(service: Service, token: str, *scopes: str) -> str:
    """Sign a token of the same session with other scopes, by the real key."""
    claims = claims_of(service, token)
    return service.house.issuer.access(
        claims.subject,
        claims.session,
        frozenset(scopes),
        now=service.clock.now(),
        expires_at=claims.expires_at,
    )


def forbidden(service: Service, since: int) -> list[dict[str, Any]]:
    events = service.security_events[since:]
    return [event for event in events if event.get("reason") == "forbidden"]


def position(joined: dict[str, Any]) -> dict[str, Any]:
    return {"epoch": joined["epoch"], "offset": joined["offset"]}


# ------------------------------------------------------------------------------- rooms


@pytest.mark.parametrize("strategy", STRATEGIES, ids=lambda s: f"AZ-01-{s}")
async def test_publishing_without_membership_reaches_nobody(
    service: Service, tokens: dict[str, str], strategy: str
) -> None:
    async with (
        await connect(service, tokens["bob"]) as member,
        await service.connect(strategy, "alice") as outsider,
    ):
        await join(member, "lobby")
        await say(outsider, type="publish", room="lobby", data="x", id=1)
        refusal = await hear(outsider)
        assert (refusal["type"], refusal["slug"]) == ("error", "not_joined")
        assert refusal["id"] == 1
        await silence(member)


@pytest.mark.parametrize("case", ["AZ-01-other-connection"])
async def test_membership_is_the_connections_not_the_users(
    service: Service, tokens: dict[str, str], case: str
) -> None:
    async with (
        await connect(service, tokens["alice"]) as inside,
        await connect(service, tokens["alice"]) as outside,
    ):
        await join(inside, "lobby")
        await say(outside, type="publish", room="lobby", data="x")
        assert (await hear(outside))["slug"] == "not_joined"
        await silence(inside)


@pytest.mark.parametrize(
    "room", ["alice.private", "alice.", "alice.x.y"], ids=lambda r: f"AZ-02-{r}"
)
async def test_another_users_room_stays_shut_and_says_nothing(
    service: Service, tokens: dict[str, str], room: str
) -> None:
    seen = len(service.security_events)
    async with (
        await connect(service, tokens["alice"]) as owner,
        await connect(service, tokens["bob"]) as other,
    ):
        await join(owner, room)
        await say(owner, type="publish", room=room, data="private", id=1)
        assert (await hear(owner))["data"] == "private"
        assert (await hear(owner))["type"] == "ack"
        refusal = await join(other, room)
        assert (refusal["type"], refusal["slug"]) == ("error", "forbidden")
        assert "members" not in refusal
        empty = await join(other, f"{room}.not-there")
        for answer, asked in ((refusal, room), (empty, f"{room}.not-there")):
            assert answer.pop("room") == asked
            del answer["detail"]
        assert empty == refusal  # nor whether anybody is in it
        for message in ({"type": "publish", "data": "x"}, {"type": "leave"}):
            await say(other, room=room, **message)
            assert (await hear(other))["slug"] == "not_joined"
        await say(owner, type="publish", room=room, data="still private")
        assert (await hear(owner))["data"] == "still private"
        await silence(other)
        await silence(owner)
    assert {e["subject"] for e in forbidden(service, seen)} == {"bob"}


@pytest.mark.parametrize("case", ["AZ-02-history"])
async def test_another_users_room_gives_none_of_its_history(
    service: Service, tokens: dict[str, str], case: str
) -> None:
    """With a true position, which is no secret, and beside one that never was."""
    seen = len(service.security_events)
    async with (
        await connect(service, tokens["alice"]) as owner,
        await connect(service, tokens["bob"]) as other,
    ):
        start = position(await join(owner, "alice.diary"))
        await say(owner, type="publish", room="alice.diary", data="private")
        assert (await hear(owner))["data"] == "private"
        refusals = [
            await join(other, "alice.diary", since=start),
            await join(other, "alice.diary", since={"epoch": "x", "offset": 0}),
            await join(other, "alice.not-there", since=start),
        ]
        asked = [refusal.pop("room") for refusal in refusals]
        assert asked == ["alice.diary", "alice.diary", "alice.not-there"]
        assert all(refusal == refusals[0] for refusal in refusals)
        assert (refusals[0]["type"], refusals[0]["slug"]) == ("error", "forbidden")
        assert refusals[0].keys() == {"type", "slug", "detail"}
        await silence(other)
        await silence(owner)
    assert {e["subject"] for e in forbidden(service, seen)} == {"bob"}


LOOKALIKES = (
    "acme",
    "acmeX",
    "acme-evil.room",
    "ACME.room",
    "globex.room",
    "lobby",
    "acm",
    "x.acme.room",
)


@pytest.mark.parametrize("room", LOOKALIKES, ids=lambda room: f"AZ-12-{room}")
async def test_a_tenants_prefix_opens_only_the_tenants_rooms(
    service: Service, tokens: dict[str, str], room: str
) -> None:
    async with await connect(service, tokens["tenant"]) as peer:
        assert (await join(peer, "acme.room"))["type"] == "joined"
        assert (await join(peer, room))["slug"] == "forbidden"


ROOMS = (
    "acme.../../globex.room",
    "acme.\0globex",
    "acme.*",
    "*",
    "acme.room globex.room",
    "acme.\uff52oom",
    "acme.\u202eroom",
    "",
    " acme.room",
    "acme." + "x" * 200,
)


@pytest.mark.parametrize("room", ROOMS, ids=lambda room: f"AZ-12-{room[:24]!r}")
async def test_what_is_no_rooms_name_is_refused_as_such(
    service: Service, tokens: dict[str, str], room: str
) -> None:
    async with await connect(service, tokens["tenant"]) as peer:
        assert (await join(peer, room))["slug"] == "room_invalid"


@pytest.mark.parametrize("case", ["AZ-07"])
async def test_who_may_only_read_cannot_publish(
    service: Service, tokens: dict[str, str], case: str
) -> None:
    seen = len(service.security_events)
    async with (
        await connect(service, tokens["reader"]) as reader,
        await connect(service, tokens["bob"]) as other,
    ):
        await join(other, "lobby")
        assert (await join(reader, "lobby"))["type"] == "joined"
        await hear(other)
        await say(reader, type="publish", room="lobby", data="x", id="a")
        refusal = await hear(reader)
        assert (refusal["type"], refusal["slug"]) == ("error", "forbidden")
        await silence(other)
    (event,) = forbidden(service, seen)
    assert (event["event"], event["subject"]) == ("message_forbidden", "reader")


@pytest.mark.parametrize("case", ["AZ-07-token-scope"])
async def test_a_token_of_fewer_scopes_than_its_user_has_grants_no_more(
    service: Service, tokens: dict[str, str], case: str
) -> None:
    token = mint(service, tokens["bob"], "join:lobby")
    async with await connect(service, token) as peer:
        assert (await join(peer, "lobby"))["type"] == "joined"
        await say(peer, type="publish", room="lobby", data="x")
        assert (await hear(peer))["slug"] == "forbidden"
        assert (await join(peer, "bob.private"))["slug"] == "forbidden"


@pytest.mark.parametrize("case", ["AZ-09"])
async def test_who_left_a_room_hears_nothing_of_it(
    service: Service, tokens: dict[str, str], case: str
) -> None:
    async with (
        await connect(service, tokens["alice"]) as stays,
        await connect(service, tokens["bob"]) as leaves,
    ):
        await join(stays, "lobby")
        await join(leaves, "lobby")
        assert (await hear(stays))["event"] == "joined"
        await say(leaves, type="leave", room="lobby")
        assert await hear(leaves) == {"type": "left", "room": "lobby"}
        assert (await hear(stays))["event"] == "left"
        await say(stays, type="publish", room="lobby", data="after")
        assert (await hear(stays))["data"] == "after"
        async with await connect(service, tokens["reader"]) as third:
            await join(third, "lobby")
            assert (await hear(stays))["subject"] == "reader"
        await silence(leaves)
        for message in (
            {"type": "publish", "room": "lobby", "data": "x"},
            {"type": "leave", "room": "lobby"},
        ):
            await say(leaves, **message)
            assert (await hear(leaves))["slug"] == "not_joined"
        assert (await hear(stays))["event"] == "left"  # the third one's
        await silence(stays)


@pytest.mark.parametrize("case", ["AZ-09-history"])
async def test_who_may_be_in_a_room_no_more_reads_none_of_its_history(
    service: Service, tokens: dict[str, str], case: str
) -> None:
    """Neither by the connection that was in it, nor by another one."""
    narrower = mint(service, tokens["alice"], "join:lobby")
    async with (
        await connect(service, tokens["alice"]) as stays,
        await connect(service, tokens["alice"]) as leaves,
        await connect(service, narrower) as another,
    ):
        await join(stays, "alice.board")
        start = position(await join(leaves, "alice.board"))
        await say(leaves, type="auth", token=narrower)
        assert (await hear(leaves))["type"] == "auth_ok"
        assert (await hear(leaves))["type"] == "left"
        await say(stays, type="publish", room="alice.board", data="after")
        assert (await hear(stays))["data"] == "after"
        for peer in (leaves, another):
            refusal = await join(peer, "alice.board", since=start)
            assert (refusal["type"], refusal["slug"]) == ("error", "forbidden")
            await silence(peer)


# ---------------------------------------------------------- what the protocol has not


NO_SUCH_TYPES: dict[str, dict[str, Any]] = {
    "AZ-04-kick": {"type": "kick", "subject": "alice"},
    "AZ-04-disconnect": {"type": "disconnect", "subject": "alice"},
    "AZ-04-broadcast": {"type": "broadcast", "data": "x"},
    "AZ-04-subscribe": {"type": "subscribe", "room": "lobby"},
    "AZ-04-server-message": {"type": "message", "room": "lobby", "data": "x"},
    "AZ-04-server-presence": {"type": "presence", "room": "lobby", "event": "left"},
    "AZ-04-auth-ok": {"type": "auth_ok", "subject": "admin", "scopes": ["admin"]},
    "AZ-10-edit": {"type": "edit", "room": "lobby", "id": 1, "data": "x"},
    "AZ-10-delete": {"type": "delete", "room": "lobby", "id": 1},
    "AZ-09-history": {"type": "history", "room": "lobby"},
    "AZ-09-members": {"type": "members", "room": "lobby"},
    "AZ-16-room-object": {"type": "join", "room": {"$ne": 1}},
    "AZ-16-room-list": {"type": "join", "room": ["lobby"]},
    "AZ-16-room-null": {"type": "join", "room": None},
    "AZ-16-room-number": {"type": "join", "room": 0},
    "AZ-16-room-true": {"type": "join", "room": True},
    "AZ-16-type-list": {"type": ["join"], "room": "lobby"},
    "AZ-16-type-object": {"type": {"$gt": ""}, "room": "lobby"},
    "AZ-16-publish-room": {"type": "publish", "room": ["lobby"], "data": "x"},
    "AZ-16-publish-id": {"type": "publish", "room": "lobby", "data": "x", "id": {}},
}


@pytest.mark.parametrize("message", NO_SUCH_TYPES.values(), ids=NO_SUCH_TYPES.keys())
async def test_what_the_protocol_does_not_have_does_nothing(
    service: Service, tokens: dict[str, str], message: dict[str, Any]
) -> None:
    async with (
        await connect(service, tokens["alice"]) as victim,
        await connect(service, tokens["bob"]) as peer,
    ):
        await join(victim, "lobby")
        await join(peer, "lobby")
        assert (await hear(victim))["event"] == "joined"
        await say(peer, **message)
        refusal = await hear(peer)
        assert (refusal["type"], refusal["slug"]) == ("error", "malformed")
        await silence(victim)
        await silence(peer)


@pytest.mark.parametrize("case", ["AZ-12-spoofed-sender"])
async def test_who_speaks_is_the_principal_whatever_the_message_says(
    service: Service, tokens: dict[str, str], case: str
) -> None:
    forged = {"from": "alice", "subject": "alice", "sub": "alice", "scopes": ["admin"]}
    async with await connect(service, tokens["bob"]) as peer:
        await join(peer, "lobby")
        await say(peer, type="publish", room="lobby", data="x", at=0, **forged)
        heard = await hear(peer)
        assert heard["from"] == "bob"
        assert heard["at"] > 1_000_000_000
        assert not forged.keys() - {"from"} & heard.keys()


# ------------------------------------------------------- the record, not the token


@pytest.mark.parametrize("strategy", ["query-param", "first-message"])
@pytest.mark.parametrize("case", ["AZ-05"])
async def test_a_scope_that_the_record_lacks_is_worth_nothing_in_a_token(
    service: Service, tokens: dict[str, str], case: str, strategy: str
) -> None:
    token = mint(service, tokens["bob"], "admin", "join:*", "publish:*", "join:lobby")
    path = f"/ws/{strategy}"
    query = f"?token={token}" if strategy == "query-param" else ""
    async with await service.open(f"{path}{query}") as peer:
        if strategy == "first-message":
            assert (await hear(peer))["type"] == "auth_required"
            await say(peer, type="auth", token=token)
        assert (await hear(peer))["scopes"] == sorted(SCOPES["bob"])
        assert (await join(peer, "alice.private"))["slug"] == "forbidden"
    async with service.http(headers=bearer(token)) as http:
        own = (await http.get("/auth/me")).json()["scopes"]
        assert own == sorted(SCOPES["bob"])
        assert (await http.get("/metrics")).status_code == 403


@pytest.mark.parametrize("case", ["AZ-04-metrics"])
async def test_what_is_the_admins_is_refused_to_others_and_logged(
    service: Service, tokens: dict[str, str], case: str
) -> None:
    async with service.http() as http:
        admin = await http.get("/metrics", headers=bearer(tokens["admin"]))
        seen = len(service.security_events)
        user = await http.get("/metrics", headers=bearer(tokens["alice"]))
        stranger = await http.get("/metrics")
    assert admin.status_code == 200
    assert user.status_code == 403
    assert user.json() == {"detail": "forbidden"}
    assert stranger.status_code in (401, 403)
    events = service.security_events[seen:]
    assert len(events) == 2
    assert {event["event"] for event in events} == {"refused"}


@pytest.mark.parametrize("case", ["AZ-06-renewal"])
async def test_a_renewal_with_fewer_scopes_takes_rooms_away_at_once(
    service: Service, tokens: dict[str, str], case: str
) -> None:
    narrower = mint(service, tokens["alice"], "join:lobby")
    async with await connect(service, tokens["alice"]) as peer:
        await join(peer, "lobby")
        await join(peer, "alice.private")
        await say(peer, type="auth", token=narrower)
        heard = [await hear(peer), await hear(peer)]
        ok, left = sorted(heard, key=lambda message: str(message["type"]))
        assert left == {"type": "left", "room": "alice.private"}
        assert (ok["type"], ok["scopes"]) == ("auth_ok", ["join:lobby"])
        await say(peer, type="publish", room="alice.private", data="x")
        assert (await hear(peer))["slug"] == "not_joined"
        assert (await join(peer, "alice.private"))["slug"] == "forbidden"
        await say(peer, type="publish", room="lobby", data="x")
        assert (await hear(peer))["slug"] == "forbidden"


@pytest.mark.parametrize("case", ["AZ-06"])
async def test_a_role_taken_away_elsewhere_ends_what_was_opened_with_it(
    service: Service, case: str
) -> None:
    """An operator's process knows only the database: we hear of it by re-reading."""
    await service.add_user("demoted", scopes=("join:*", "publish:*"))
    token = await service.token("demoted")
    operator = Database(service.house.settings.database)
    users = Users(operator, service.house.hasher, Clock())
    async with await connect(service, token) as peer:
        await join(peer, "anything")
        await users.remove("demoted")
        await users.add("demoted", PASSWORD, ("join:lobby",))
        removed = time.monotonic()
        assert await ending(peer) == (1008, "token_revoked")
        assert time.monotonic() - removed < RECHECK + 5
    await operator.dispose()
    async with await service.connect("query-param", "demoted") as peer:
        assert (await join(peer, "anything"))["slug"] == "forbidden"


@pytest.mark.parametrize("strategy", STRATEGIES, ids=lambda s: f"AZ-15-{s}")
async def test_a_disabled_user_is_cut_off_and_says_no_more(
    service: Service, tokens: dict[str, str], strategy: str
) -> None:
    name = f"disabled-{strategy}"
    await service.add_user(name)
    async with (
        await connect(service, tokens["alice"]) as other,
        await service.connect(strategy, name) as peer,
    ):
        await join(other, "lobby")
        await join(peer, "lobby")
        assert (await hear(other))["event"] == "joined"

        async def disable() -> None:
            for one in await service.house.users.disable(name):
                service.house.feed.end(one)

        await service.call(disable())
        with suppress(websockets.ConnectionClosed):  # if it heard of it already
            await say(peer, type="publish", room="lobby", data="one more thing")
        session = "session" if strategy == "session-cookie" else "token"
        assert await ending(peer) == (1008, f"{session}_revoked")
        assert (await hear(other))["event"] == "left"
        await silence(other)


# ---------------------------------------------------------------------- over plain HTTP


OPEN = {
    ("GET", "/healthz"),
    ("GET", "/readyz"),
    ("GET", "/.well-known/jwks.json"),
    ("POST", "/auth/login"),
    ("POST", "/auth/refresh"),
    ("POST", "/auth/session"),
    ("DELETE", "/auth/session"),
}
"""What a stranger may ask for: health, public keys, and the ways to log in or out."""
PAGES = ("/docs", "/openapi.json")


@pytest.mark.parametrize("case", ["AZ-13"])
async def test_strangers_reach_nothing_but_health_login_and_pages(
    service: Service, case: str
) -> None:
    routes: set[tuple[str, str]] = set()
    opened: set[tuple[str, str]] = set()
    async with service.http() as http:
        inventory = (await http.get("/openapi.json")).json()["paths"]
        for path, methods in inventory.items():
            routes |= {(method.upper(), path) for method in methods}
        for route in service.app.routes:
            if isinstance(route, APIRoute):
                routes |= {(method, route.path) for method in route.methods or ()}
            elif not str(getattr(route, "path", "")).startswith(PAGES):
                methods = getattr(route, "methods", None) or ("GET",)
                routes |= {
                    (method, str(getattr(route, "path", "")))
                    for method in methods
                    if getattr(route, "path", "")
                }
        for method, path in routes:
            answer = await http.request(method, path.replace("{session_id}", "x"))
            if answer.status_code not in (401, 403):
                opened.add((method, path))
    pages = {(m, p) for m, p in opened if p.startswith(PAGES)}
    assert opened - pages <= OPEN
    assert len(routes) > len(OPEN)


BYPASSES = {
    "AZ-14-host-path": ("/metrics", "127.0.0.1/healthz?"),
    "AZ-14-host-fragment": ("/metrics", "127.0.0.1#/healthz"),
    "AZ-14-absolute-form": ("http://127.0.0.1/metrics", "127.0.0.1"),
    "AZ-14-double-slash": ("//metrics", "127.0.0.1"),
    "AZ-14-dots": ("/healthz/../metrics", "127.0.0.1"),
    "AZ-14-encoded-dots": ("/healthz/%2e%2e/metrics", "127.0.0.1"),
    "AZ-14-encoded": ("/%6detrics", "127.0.0.1"),
    "AZ-14-semicolon": ("/metrics;/healthz", "127.0.0.1"),
    "AZ-14-case": ("/METRICS", "127.0.0.1"),
    "AZ-14-trailing-slash": ("/metrics/", "127.0.0.1"),
    "AZ-14-question": ("/metrics?/healthz", "127.0.0.1"),
    "AZ-14-nul": ("/metrics%00", "127.0.0.1"),
}


@pytest.mark.parametrize(("target", "host"), BYPASSES.values(), ids=BYPASSES.keys())
async def test_no_spelling_of_a_path_or_host_goes_around_the_guard(
    service: Service, target: str, host: str
) -> None:
    async with wire(service.port) as peer:
        head = request(target, "X-Original-URL: /healthz", "X-Rewrite-URL: /healthz")
        await peer.send(head.replace(b"Host: 127.0.0.1", b"Host: " + host.encode()))
        response = await peer.response()
    assert response.status in (307, 400, 401, 403, 404)
    assert b"authws_" not in response.body


@pytest.mark.parametrize("case", ["AZ-12-session-id"])
async def test_another_users_session_looks_like_none_at_all(
    service: Service, tokens: dict[str, str], case: str
) -> None:
    session = claims_of(service, tokens["alice"]).session
    async with service.http(headers=bearer(tokens["bob"])) as http:
        others = await http.delete(f"/auth/sessions/{session}")
        nobodys = await http.delete(f"/auth/sessions/{'A' * 43}")
        mine = [one["id"] for one in (await http.get("/auth/sessions")).json()]
    assert others.status_code == nobodys.status_code == 404
    assert others.content == nobodys.content
    assert session not in mine
    async with service.http(headers=bearer(tokens["alice"])) as http:
        assert (await http.get("/auth/me")).status_code == 200


@pytest.mark.parametrize("case", ["AZ-16-flood"])
async def test_who_keeps_trying_is_closed_with_forbidden(
    tmp_path_factory: pytest.TempPathFactory, case: str
) -> None:
    async with running(tmp_path_factory.mktemp("strikes"), strikes=5) as strict:
        await strict.add_user("bob", scopes=("join:lobby",))
        async with await strict.connect("query-param", "bob") as peer:
            for n in range(5):
                await say(peer, type="join", room=f"alice.{n}")
            assert await ending(peer) == (1008, "forbidden")
        async with await strict.connect("query-param", "bob") as peer:
            for n in range(8):  # now and then is no abuse
                assert (await join(peer, f"alice.{n}"))["slug"] == "forbidden"
                assert (await join(peer, "lobby"))["type"] == "joined"
