"""``/admin``: who may ask, what is shown, what is ended, what the log says of it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio

from authws.exceptions import UnavailableError
from tests.grants import Grant, ending, enter, grant, hear, present, say, until
from tests.live.calls import bearer, calling, refused
from tests.live.test_foreign_issuer import ISSUER, Key, issuing
from tests.live.test_foreign_issuer import token as foreign_token
from tests.running import SCOPES, STRATEGIES, Service, running

pytestmark = pytest.mark.usefixtures("database")
on_one_loop = pytest.mark.asyncio(loop_scope="module")

REVOKED = {
    "query-param": (1008, "token_revoked"),
    "first-message": (1008, "token_revoked"),
    "session-cookie": (1008, "session_revoked"),
}
CALLS = [
    ("GET", "/admin/connections"),
    ("POST", "/admin/users/alice/disconnect"),
    ("DELETE", "/admin/sessions/{session}"),
]
ALONE = {"workers": 1, "silent": 0}
"""What is said of workers where there is one."""
NEARLY = {
    "chatter": "join:*",
    "upper": "Admin",
    "prefix": "admin:*",
    "pattern": "admin*",
    "all": "*",
    "longer": "administer",
}
"""Users, and a scope of each that is not ``admin``."""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def service(
    database: None, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Service]:
    async with running(
        tmp_path_factory.mktemp("service"), max_connections_per_user=0
    ) as service:
        await service.add_user("alice")
        await service.add_user("bob")
        await service.add_user("root", scopes=("admin", *SCOPES))
        yield service


@pytest_asyncio.fixture(loop_scope="module")
async def root(service: Service) -> Grant:
    return await grant(service, "query-param", "root")


@pytest_asyncio.fixture(loop_scope="module")
async def api(service: Service, root: Grant) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the administrator's, by bearer token."""
    token = root.access(scopes=["admin"])
    async with calling(service, headers=bearer(token)) as http:
        yield http


def events(service: Service, name: str) -> list[dict[str, Any]]:
    return [event for event in service.security_events if event["event"] == name]


async def is_alive(peer: Any) -> None:
    await say(peer, type="ping", id="alive")
    assert await hear(peer) == {"type": "pong", "id": "alive"}


# --------------------------------------------------------------------------- who may


@on_one_loop
@pytest.mark.parametrize(("name", "scope"), NEARLY.items())
@pytest.mark.parametrize(("method", "path"), CALLS)
async def test_exactly_the_scope_admin_may(
    service: Service, method: str, path: str, name: str, scope: str
) -> None:
    if await service.call(service.house.users.get(name)) is None:
        await service.add_user(name, scopes=(scope,))
    target = await grant(service, "query-param")
    token = (await grant(service, "query-param", name)).access(scopes=[scope])
    async with calling(service, headers=bearer(token)) as http:
        answer = await http.request(method, path.format(session=target.session))
    assert refused(answer) == (403, "forbidden")
    async with enter(service, "/ws/query-param", target):
        pass


@on_one_loop
@pytest.mark.parametrize(("method", "path"), CALLS)
async def test_scope_that_is_not_in_the_token_or_was_taken_is_none(
    service: Service, method: str, path: str
) -> None:
    """A token for less than its user may do, and one for more."""
    roots = await grant(service, "query-param", "root")
    alices = await grant(service, "query-param", "alice")
    target = await grant(service, "query-param")
    for token in (roots.access(scopes=SCOPES), alices.access(scopes=["admin"])):
        async with calling(service, headers=bearer(token)) as http:
            answer = await http.request(method, path.format(session=target.session))
        assert refused(answer) == (403, "forbidden")


@on_one_loop
async def test_by_cookie_as_well_with_an_allowed_origin_for_what_changes_something(
    service: Service,
) -> None:
    admin = await grant(service, "session-cookie", "root")
    target = await grant(service, "query-param", "bob")
    cookie = {"cookie": f"authws={admin.cookie}"}
    changes = [
        ("POST", "/admin/users/bob/disconnect"),
        ("DELETE", f"/admin/sessions/{target.session}"),
    ]
    foreign = [
        {"origin": ""},
        {"origin": "null"},
        {"origin": "https://evil.example"},
        {"origin": service.origin, "sec-fetch-site": "cross-site"},
    ]
    async with (
        calling(service, headers=cookie) as http,
        enter(service, "/ws/query-param", target) as peer,
    ):
        for method, path in changes:
            for headers in foreign:
                answer = await http.request(method, path, headers=headers)
                assert refused(answer) == (403, "origin_forbidden"), headers
        await is_alive(peer)
        assert (await http.get("/admin/connections")).status_code == 200
        ended = await http.request(*changes[1])
        assert (ended.status_code, ended.content) == (204, b"")
        assert await ending(peer) == (1008, "token_revoked")
        again = await http.request(*changes[0])
        assert again.json() == {"sessions": 0, "sockets": 0}


@on_one_loop
async def test_stranger_learns_nothing_from_the_order_of_checks(
    service: Service,
) -> None:
    async with calling(service) as http:
        for path in ("?limit=0", "?limit=x", "?subject=" + "a" * 300):
            answer = await http.get(f"/admin/connections{path}")
            assert refused(answer) == (401, "auth_missing")
        answer = await http.post("/admin/users/nobody/disconnect")
        assert refused(answer) == (401, "auth_missing")


# ------------------------------------------------------------------------ connections


async def test_open_connections_are_listed_newest_first(tmp_path: Path) -> None:
    async with running(tmp_path) as service:
        for name in ("alice", "bob"):
            await service.add_user(name)
        await service.add_user("root", scopes=("admin",))
        admin = (await grant(service, "query-param", "root")).access(scopes=["admin"])
        grants = {s: await grant(service, s) for s in STRATEGIES}
        bobs = await grant(service, "query-param", "bob")
        async with (
            calling(service, headers=bearer(admin)) as http,
            enter(service, "/ws/query-param", grants["query-param"]) as first,
            enter(service, "/ws/first-message/echo", grants["first-message"]),
            enter(service, "/ws/session-cookie", grants["session-cookie"]),
            enter(service, "/ws/query-param", bobs),
        ):
            for room in ("zoo", "attic"):
                await say(first, type="join", room=room)
                assert (await hear(first))["type"] == "joined"
            answer = await http.get("/admin/connections")
            assert answer.status_code == 200
            body = answer.json()
            assert body.keys() == {"total", "connections", "workers", "silent"}
            assert body["total"] == 4
            listed = body["connections"]
            assert [(one["subject"], one["strategy"]) for one in listed] == [
                ("bob", "query_param"),
                ("alice", "session_cookie"),
                ("alice", "first_message"),
                ("alice", "query_param"),
            ]
            assert_described(service, listed[-1], grants["query-param"])
            assert listed[-1]["rooms"] == ["attic", "zoo"]
            assert [one["rooms"] for one in listed[:-1]] == [[], [], []]
            times = [one["connected_at"] for one in listed]
            assert times == sorted(times, reverse=True)
            for secret in (*(g.credential for g in grants.values()), admin):
                assert secret not in answer.text
                assert secret.rpartition(".")[2] not in answer.text

            alices = (await http.get("/admin/connections?subject=alice")).json()
            assert alices == {"total": 3, "connections": listed[1:], **ALONE}
            two = (await http.get("/admin/connections?subject=alice&limit=2")).json()
            assert two == {"total": 3, "connections": listed[1:3], **ALONE}
            one = (await http.get("/admin/connections?limit=1")).json()
            assert one == {"total": 4, "connections": listed[:1], **ALONE}
            for nobody in ("nobody", "", "alic", "alice%00"):
                none = (await http.get(f"/admin/connections?subject={nobody}")).json()
                assert none == {
                    "total": 0,
                    "connections": [],
                    "workers": 1,
                    "silent": 0,
                }
        async with calling(service, headers=bearer(admin)) as http:
            await until(lambda: not service.house.hub.connections)
            none = (await http.get("/admin/connections")).json()
            assert none == {"total": 0, "connections": [], "workers": 1, "silent": 0}


def assert_described(service: Service, item: dict[str, Any], of: Grant) -> None:
    (connection,) = (
        one
        for one in service.house.hub.connections.values()
        if one.principal.session == of.session
    )
    assert item == {
        "id": connection.id,
        "worker": service.house.hub.cluster.node,
        "subject": "alice",
        "issuer": "",
        "strategy": "query_param",
        "address": "127.0.0.1",
        "session": of.session,
        "connected_at": pytest.approx(service.clock.now(), abs=10),
        "expires_at": pytest.approx(service.clock.now() + 900, abs=10),
        "rooms": ["attic", "zoo"],
        "dropped": 0,
    }


@on_one_loop
@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("limit=0", "query.limit"),
        ("limit=1001", "query.limit"),
        ("limit=-1", "query.limit"),
        ("limit=many", "query.limit"),
        ("subject=" + "a" * 257, "query.subject"),
    ],
)
async def test_list_that_cannot_be_is_refused(
    api: httpx.AsyncClient, query: str, field: str
) -> None:
    answer = await api.get(f"/admin/connections?{query}")
    assert answer.status_code == 422
    assert answer.json() == {"detail": "request_invalid", "fields": [field]}


@on_one_loop
async def test_a_hundred_are_listed_unless_more_are_asked_for(
    service: Service, api: httpx.AsyncClient
) -> None:
    one = await grant(service, "query-param", "bob")
    path = f"/ws/query-param/echo?token={one.access()}"
    peers = [await service.open(path) for _ in range(101)]
    try:
        await until(lambda: len(list(service.house.hub.of_subject("bob"))) == 101)
        few = (await api.get("/admin/connections?subject=bob")).json()
        assert (few["total"], len(few["connections"])) == (101, 100)
        all_ = (await api.get("/admin/connections?subject=bob&limit=1000")).json()
        assert (all_["total"], len(all_["connections"])) == (101, 101)
    finally:
        ended = (await api.post("/admin/users/bob/disconnect")).json()
        for peer in peers:
            assert await ending(peer) == (1008, "token_revoked")
    assert ended["sockets"] == 101


async def test_foreign_issuers_subjects_are_listed_as_such_and_not_ours_to_end(
    tmp_path: Path,
) -> None:
    key = Key("EdDSA")
    async with issuing(key) as issuer, running(tmp_path, **issuer.settings) as service:
        await service.add_user("alice")
        ours = await grant(service, "query-param")
        theirs = foreign_token(service, key, sub="alice")
        admin = bearer(foreign_token(service, key, sub="boss", scope="admin"))
        async with (
            calling(service, headers=admin) as http,
            enter(service, "/ws/query-param", ours) as our_alice,
            enter(service, "/ws/first-message", theirs) as their_alice,
        ):
            listed = (await http.get("/admin/connections?subject=alice")).json()
            assert [
                (one["issuer"], one["session"]) for one in listed["connections"]
            ] == [(ISSUER, ""), ("", ours.session)]
            assert refused(await http.post("/admin/users/dora/disconnect")) == (
                404,
                "user_unknown",
            )
            ended = await http.post("/admin/users/alice/disconnect")
            assert ended.json() == {"sessions": 1, "sockets": 1}
            assert await ending(our_alice) == (1008, "token_revoked")
            await is_alive(their_alice)
        (event,) = events(service, "admin_disconnect")
        assert (event["by"], event["by_issuer"]) == ("boss", ISSUER)


# ------------------------------------------------------------------------- disconnect


@on_one_loop
async def test_disconnecting_ends_all_of_the_user_and_nothing_else(
    service: Service, api: httpx.AsyncClient, root: Grant
) -> None:
    grants = {s: await grant(service, s) for s in STRATEGIES}
    idle = await grant(service, "query-param")  # a session without a socket
    bob = await grant(service, "session-cookie", "bob")
    before = len(events(service, "admin_disconnect"))
    async with (
        enter(service, "/ws/session-cookie", bob) as bystander,
        enter(service, "/ws/first-message", root.access()) as own,
        enter(service, "/ws/query-param", grants["query-param"]) as one,
        enter(service, "/ws/first-message", grants["first-message"]) as two,
        enter(service, "/ws/session-cookie", grants["session-cookie"]) as three,
        enter(service, "/ws/session-cookie/echo", grants["session-cookie"]) as four,
    ):
        sessions = await service.call(service.house.sessions.list_for("alice"))
        answer = await api.post("/admin/users/ALICE/disconnect")
        assert answer.status_code == 200
        assert answer.json() == {"sessions": len(sessions), "sockets": 4}
        for strategy, peer in zip(STRATEGIES, (one, two, three), strict=True):
            assert await ending(peer) == REVOKED[strategy]
        assert await ending(four) == REVOKED["session-cookie"]
        for peer in (bystander, own):
            await is_alive(peer)
    for strategy, ended in {**grants, "query-param": idle}.items():
        path = f"/ws/{strategy}"
        assert await present(service, path, ended.credential) == REVOKED[strategy]
    assert await service.call(service.house.sessions.list_for("alice")) == []

    again = await api.post("/admin/users/alice/disconnect")
    assert again.json() == {"sessions": 0, "sockets": 0}
    first, second = events(service, "admin_disconnect")[before:]
    assert first == {
        "time": first["time"],
        "event": "admin_disconnect",
        "subject": "alice",
        "address": "127.0.0.1",
        "by": "root",
        "sessions": str(len(sessions)),
        "sockets": "4",
    }
    assert (second["sessions"], second["sockets"]) == ("0", "0")
    # it is no lock: who logs in anew is in
    async with await service.connect("query-param", "alice") as peer:
        await is_alive(peer)


@on_one_loop
@pytest.mark.parametrize(
    "name", ["nobody", "%00", "é", "a b", "a" * 300, "-", "%F0%9F"]
)
async def test_user_that_is_none_is_unknown(api: httpx.AsyncClient, name: str) -> None:
    answer = await api.post(f"/admin/users/{name}/disconnect")
    assert refused(answer) == (404, "user_unknown")


@on_one_loop
async def test_administrators_may_end_their_own(service: Service) -> None:
    own = await grant(service, "query-param", "root")
    async with (
        calling(service, headers=bearer(own.access(scopes=["admin"]))) as http,
        enter(service, "/ws/query-param", own.access()) as peer,
    ):
        answer = await http.post("/admin/users/root/disconnect")
        assert answer.json()["sockets"] == 1
        assert await ending(peer) == (1008, "token_revoked")
        late = await http.get("/admin/connections")
        assert refused(late) == (401, "token_revoked")


# ------------------------------------------------------------------------ one session


@on_one_loop
@pytest.mark.parametrize("strategy", STRATEGIES)
async def test_ending_a_session_ends_its_sockets_and_no_other_devices(
    service: Service, api: httpx.AsyncClient, strategy: str
) -> None:
    lost, kept = await grant(service, strategy), await grant(service, strategy)
    path = f"/ws/{strategy}"
    before = len(events(service, "admin_session_ended"))
    async with (
        enter(service, path, kept) as other_device,
        enter(service, path, lost) as one,
        enter(service, f"{path}/echo", lost) as two,
    ):
        listed = (await api.get("/admin/connections?subject=alice")).json()
        sessions = [item["session"] for item in listed["connections"]]
        assert sorted(sessions) == sorted([lost.session] * 2 + [kept.session])
        for _ in range(2):
            answer = await api.delete(f"/admin/sessions/{lost.session}")
            assert (answer.status_code, answer.content) == (204, b"")
        assert await ending(one) == await ending(two) == REVOKED[strategy]
        await is_alive(other_device)
    assert await present(service, path, lost.credential) == REVOKED[strategy]
    first, second = events(service, "admin_session_ended")[before:]
    assert first == {
        "time": first["time"],
        "event": "admin_session_ended",
        "subject": "alice",
        "address": "127.0.0.1",
        "by": "root",
        "session": lost.session[:8],
        "sockets": "2",
    }
    assert second["sockets"] == "0"


@on_one_loop
async def test_session_that_is_none_is_unknown(api: httpx.AsyncClient) -> None:
    for id in ("a" * 43, "%00", "é", "a" * 300, "alice"):
        answer = await api.delete(f"/admin/sessions/{id}")
        assert refused(answer) == (404, "session_unknown")


@on_one_loop
async def test_without_the_database_nothing_is_ended_and_nothing_is_said_to_be(
    service: Service, api: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(*_: object) -> None:
        raise UnavailableError("database: OperationalError")

    one = await grant(service, "query-param")
    seen = len(service.security_events)
    async with enter(service, "/ws/query-param", one) as peer:
        for store, name in (
            (service.house.users, "disconnect"),
            (service.house.sessions, "revoke"),
        ):
            monkeypatch.setattr(store, name, fail)
        for call in (
            api.post("/admin/users/alice/disconnect"),
            api.delete(f"/admin/sessions/{one.session}"),
        ):
            answer = await call
            assert refused(answer) == (503, "unavailable")
            assert int(answer.headers["retry-after"]) >= 1
        await is_alive(peer)
    names = {event["event"] for event in service.security_events[seen:]}
    assert not names & {"admin_disconnect", "admin_session_ended"}
