"""What two servers on one broker agree on: rooms, presence, endings, limits."""

from __future__ import annotations

import asyncio
import secrets
import signal
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from tests.fleet.fleet import LEASE, Fleet, Talker, eventually

pytestmark = pytest.mark.asyncio(loop_scope="module")

MEMBERS = 4
MESSAGES = 25


@pytest_asyncio.fixture(loop_scope="module")
async def fleet(two_sites: Fleet) -> AsyncIterator[Fleet]:
    yield two_sites
    await two_sites.dismiss()
    async with two_sites.http(
        authorization=f"Bearer {await two_sites.token('root')}"
    ) as http:

        async def is_empty() -> bool:
            return bool((await http.get("/admin/connections")).json()["total"] == 0)

        await eventually(is_empty)


def room() -> str:
    return f"room.{secrets.token_hex(4)}"


def place(message: dict[str, object]) -> dict[str, object]:
    return {"epoch": message["epoch"], "offset": message["offset"]}


# ------------------------------------------------------------------------------- rooms


async def test_all_members_hear_all_messages_once_in_each_publishers_order(
    fleet: Fleet,
) -> None:
    name = room()
    users = ("alice", "bob", "carol", "dave")
    peers = [await fleet.enter(n, user, name) for n, user in enumerate(users)]

    async def speak(number: int, peer: Talker) -> None:
        for count in range(MESSAGES):
            assert await peer.publish([number, count], name)

    await asyncio.gather(*(speak(n, peer) for n, peer in enumerate(peers)))
    for peer in peers:
        await peer.until(lambda peer=peer: len(peer.texts(name)) >= 4 * MESSAGES)  # type: ignore[misc]
        for number in range(MEMBERS):
            said = [count for who, count in peer.texts(name) if who == number]
            assert said == list(range(MESSAGES))
    orders = [[place(m) for m in peer.of("message", room=name)] for peer in peers]
    assert orders[0] == orders[1] == orders[2] == orders[3]


async def test_a_burst_of_publishes_is_acknowledged_and_heard_in_order(
    fleet: Fleet,
) -> None:
    name = room()
    alice = await fleet.enter(0, "alice", name)
    bob = await fleet.enter(1, "bob", name)
    for number in range(300):
        await alice.say(type="publish", room=name, data=number, id=number)
    await bob.until(lambda: len(bob.texts(name)) >= 300)
    await alice.until(lambda: len(alice.of("ack")) >= 300)
    assert bob.texts(name) == list(range(300))
    assert [m["id"] for m in alice.of("ack")] == list(range(300))


async def test_presence_is_of_both_servers_and_counts_tabs(fleet: Fleet) -> None:
    name = room()
    alice = await fleet.enter(0, "alice", name)
    bob = await fleet.enter(1, "bob", name)
    assert bob.here(name) == {"alice", "bob"}
    await alice.until(lambda: alice.here(name) == {"alice", "bob"})
    tab = await fleet.enter(1, "alice", name)
    await alice.close()
    carol = await fleet.enter(0, "carol", name)
    assert carol.here(name) == {"alice", "bob", "carol"}
    await tab.say(type="leave", room=name)
    for peer in (bob, carol):
        await peer.until(lambda peer=peer: peer.here(name) == {"bob", "carol"})  # type: ignore[misc]
    left = [m["subject"] for m in bob.of("presence", event="left")]
    assert left == ["alice"]


async def test_what_was_missed_is_replayed_by_the_other_server(fleet: Fleet) -> None:
    name = room()
    alice = await fleet.enter(0, "alice", name)
    bob = await fleet.enter(0, "bob", name)
    await alice.publish("heard", name)
    await bob.until(lambda: bob.texts(name) == ["heard"])
    since = place(bob.of("message")[0])
    await bob.close()
    for number in range(10):
        await alice.publish(number, name)
    back = await fleet.enter(1, "bob")
    joined = await back.join(name, since=since)
    assert joined["recovered"] is True
    await alice.publish("now", name)
    await back.until(lambda: "now" in back.texts(name))
    assert back.texts(name) == [*range(10), "now"]
    await alice.until(lambda: "now" in alice.texts(name))
    assert back.of("message") == alice.of("message")[1:]
    never = {"epoch": since["epoch"], "offset": 10**12}
    carol = await fleet.enter(1, "carol")
    assert (await carol.join(name, since=never))["recovered"] is False


async def test_a_hundred_messages_reach_back_and_a_hundred_and_one_do_not(
    fleet: Fleet,
) -> None:
    name = room()
    alice = await fleet.enter(0, "alice")
    start = place(await alice.join(name))
    for number in range(100):
        await alice.publish(number, name)
    bob = await fleet.enter(1, "bob")
    assert (await bob.join(name, since=start))["recovered"] is True
    await bob.until(lambda: len(bob.texts(name)) >= 100)
    assert bob.texts(name) == list(range(100))
    await alice.publish(100, name)
    carol = await fleet.enter(1, "carol")
    assert (await carol.join(name, since=start))["recovered"] is False
    assert carol.texts(name) == []


# ------------------------------------------------------------------- the right to exist


async def test_a_logout_on_one_ends_what_is_open_on_the_other(fleet: Fleet) -> None:
    token = await fleet.log_in("carol")
    here = await fleet.enter(0, "carol", token=token)
    there = await fleet.enter(1, "carol", token=token)
    other = await fleet.enter(1, "carol")  # another session of hers
    loop = asyncio.get_running_loop()
    async with fleet.http(0, authorization=f"Bearer {token}") as http:
        began = loop.time()
        assert (await http.post("/auth/logout")).status_code in (200, 204)
        for peer in (here, there):
            await peer.until(lambda peer=peer: peer.ending)  # type: ignore[misc]
            assert peer.ending == (1008, "token_revoked")
        # pushed, and not found when the database was read again (5 s)
        assert loop.time() - began < 3
        late = await fleet.open(1, f"/ws/query-param?token={token}")
        await late.wait_closed()
        assert (late.close_code, late.close_reason) == (1008, "token_revoked")
    assert other.ending is None


async def test_an_administrator_sees_and_ends_what_is_open_on_both(
    fleet: Fleet,
) -> None:
    peers = [await fleet.enter(number, "dave") for number in range(4)]
    root = f"Bearer {await fleet.token('root')}"
    async with fleet.http(1, authorization=root) as http:
        roll = (await http.get("/admin/connections?subject=dave")).json()
        workers = 2 * fleet.workers
        assert (roll["total"], roll["workers"], roll["silent"]) == (4, workers, 0)
        ids = {peer.of("auth_ok")[0]["connection"] for peer in peers}
        assert {one["id"] for one in roll["connections"]} == ids
        assert len({one["worker"] for one in roll["connections"]}) >= 2
        newest = (await http.get("/admin/connections?subject=dave&limit=1")).json()
        assert newest["total"] == 4
        assert [one["id"] for one in newest["connections"]] == [
            peers[-1].of("auth_ok")[0]["connection"]
        ]
        ended = (await http.post("/admin/users/dave/disconnect")).json()
        assert ended["sockets"] == 4
    for peer in peers:
        await peer.until(lambda peer=peer: peer.ending)  # type: ignore[misc]
        assert peer.ending == (1008, "token_revoked")
    fleet._tokens.pop("dave")


async def test_a_cookies_session_that_is_used_on_one_lives_on_on_the_other(
    fleet: Fleet,
) -> None:
    cookie = await fleet.cookie("bob")
    headers = {"cookie": cookie, "origin": fleet.origin_of(1)}
    peer = await fleet.open(1, "/ws/session-cookie", additional_headers=headers)
    talker = await fleet.talk(peer)
    async with fleet.http(0, cookie=cookie) as http:
        assert (await http.get("/auth/me")).json()["subject"] == "bob"
        assert (await http.delete("/auth/session")).status_code in (200, 204)
    await talker.until(lambda: talker.ending)
    assert talker.ending == (1008, "session_revoked")


# ------------------------------------------------------------------------------ limits


async def test_a_user_has_as_many_connections_as_allowed_on_both_together(
    fleet: Fleet,
) -> None:
    """Eight is the limit here (AUTHWS_MAX_CONNECTIONS_PER_USER)."""
    peers = [await fleet.enter(number, "alice") for number in range(8)]

    for number in range(2):
        ninth = await fleet.open(
            number, f"/ws/query-param?token={await fleet.token('alice')}"
        )
        async with asyncio.timeout(10):
            await ninth.wait_closed()
        assert (ninth.close_code, ninth.close_reason) == (1008, "too_many_connections")
    assert [peer.ending for peer in peers] == [None] * 8
    await peers[0].close()

    async def is_let_in() -> bool:
        token = await fleet.token("alice")
        peer = await fleet.open(1, f"/ws/query-param?token={token}")
        try:
            async with asyncio.timeout(1):
                await peer.recv()
                await peer.wait_closed()
        except TimeoutError:
            return True
        except Exception:
            return False
        finally:
            await peer.close()
        return False

    await eventually(is_let_in)
    assert [peer.ending for peer in peers[1:]] == [None] * 7


async def test_of_many_that_come_at_once_no_more_than_allowed_stay(
    fleet: Fleet,
) -> None:
    token = await fleet.token("bob")
    opened = await asyncio.gather(
        *(fleet.open(n, f"/ws/query-param?token={token}") for n in range(20))
    )

    def stay() -> int:
        return sum(peer.close_code is None for peer in opened)

    await eventually(lambda: stay() == 8)
    root = f"Bearer {await fleet.token('root')}"
    async with fleet.http(0, authorization=root) as http:

        async def is_eight() -> bool:
            roll = await http.get("/admin/connections?subject=bob")
            return bool(roll.json()["total"] == 8)

        await eventually(is_eight)
    assert stay() == 8
    for peer in opened:
        await peer.close()


async def test_a_ticket_opens_one_connection_on_one_server(fleet: Fleet) -> None:
    token = await fleet.token("alice")
    async with fleet.http(0, authorization=f"Bearer {token}") as http:
        ticket = (await http.post("/auth/ticket")).json()["ticket"]
    opened = await asyncio.gather(
        *(fleet.open(n, f"/ws/query-param?token={ticket}") for n in range(8))
    )
    first = await asyncio.gather(
        *(asyncio.wait_for(peer.recv(), 10) for peer in opened),
        return_exceptions=True,
    )
    assert sum(isinstance(one, str) for one in first) == 1
    for peer, heard in zip(opened, first, strict=True):
        if not isinstance(heard, str):
            assert (peer.close_code, peer.close_reason) == (1008, "ticket_used")
        await peer.close()


async def test_ready_says_that_both_are(fleet: Fleet) -> None:
    for number in range(2):
        async with fleet.http(number) as http:
            ready = await http.get("/readyz")
            assert (ready.status_code, ready.json()["broker"]) == (200, "ok")


async def test_those_of_a_server_that_was_killed_are_gone_with_its_lease(
    fleet: Fleet,
) -> None:
    """Last: it starts the second server anew."""
    name = room()
    alice = await fleet.enter(0, "alice", name)
    bob = await fleet.enter(1, "bob", name)
    await alice.until(lambda: alice.here(name) == {"alice", "bob"})
    await fleet.sites[1].end(signal.SIGKILL)
    began = asyncio.get_running_loop().time()
    await alice.until(lambda: alice.here(name) == {"alice"})
    took = asyncio.get_running_loop().time() - began
    assert took < 3 * LEASE
    assert bob.ending is not None
    await fleet.sites[1].start()
    back = await fleet.enter(1, "bob", name)
    assert back.here(name) == {"alice", "bob"}
    assert await back.publish("again", name)
    await alice.until(lambda: alice.texts(name) == ["again"])
