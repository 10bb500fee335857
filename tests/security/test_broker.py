"""The broker: what somebody who may write there can do, which is nothing but noise.

The attacker here has the broker's password, and listens and publishes on the very
channels of two running services: by the same client, without their secrets.
"""

from __future__ import annotations

import asyncio
import json
import pickle
import secrets
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from authws.brokers import open_broker
from authws.decisions import gossip
from authws.decisions.envelopes import Envelope, Kind, Sealer
from authws.decisions.history import HistoryRules
from authws.exceptions import ConfigurationError
from authws.service import doctor
from authws.service.settings import Settings
from tests.brokers.peers import Peer
from tests.grants import enter, grant, hear, say, until
from tests.running import Service, free_port, running
from tests.servers.brokers import BrokerServer, broker_server

pytestmark = pytest.mark.asyncio(loop_scope="module")

KINDS = ("redis", "nats", "rabbitmq")
HISTORY = "plain*=0,*=100/300"
KEPT = HistoryRules(HISTORY.split(",")).kept
SECRET = "kT3vQ9xZr7Lm2Np8Wc5Yb1Hd6Fg4Js0A-uE_oIiRtP"


@dataclass
class Scene:
    """Two services on one broker, and an attacker with its password."""

    one: Service
    other: Service
    attacker: Peer

    def refused(self, why: str) -> int:
        return self.one.house.hub.carrier.refused[why]


@pytest.fixture(params=KINDS, scope="module")
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def broker(kind: str) -> AsyncIterator[BrokerServer]:
    async with broker_server(kind) as server:
        yield server


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def scene(
    broker: BrokerServer, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Scene]:
    directory: Path = tmp_path_factory.mktemp("broker")
    settings = {
        "broker_url": broker.url,
        "broker_prefix": "ours",
        "secret_keys": SECRET,
        "data_dir": directory / "data",
        "history": HISTORY,
        "presence_lease": 2,
    }
    async with AsyncExitStack() as stack:
        one, other = [
            await stack.enter_async_context(running(directory, **settings))
            for _ in range(2)
        ]
        await one.add_user("alice")
        await one.add_user("bob")
        attacker = Peer(open_broker(broker.url, prefix="ours", kept=KEPT))
        await attacker.start()
        stack.push_async_callback(attacker.broker.stop)
        yield Scene(one, other, attacker)


HOSTILE: dict[str, bytes] = {
    "BRK-01-bare-json": b'{"type":"message","room":"lobby","from":"root","data":1}',
    "BRK-01-gossip": gossip.encode(gossip.Revoked("subject", "alice", 9e9)),
    "BRK-01-other-key": Sealer([b"guessed" * 8]).seal(
        "lobby", Envelope(Kind.MESSAGE, "x" * 11, 0, b'{"type":"message"}')
    ),
    "BRK-02-pickle": pickle.dumps(print),
    "BRK-02-yaml": b"!!python/object/apply:os.system ['true']",
    "BRK-02-msgpack-ext": b"\xc7\x04\x01abcd",
    "BRK-03-empty": b"",
    "BRK-03-binary": bytes(range(256)) * 200,
    "BRK-03-not-utf8": b"\xff\xfe\xfd",
    "BRK-03-truncated": b"\xa1" + b"\0" * 10,
    "BRK-03-head-only": b"\xa1" + b"\0" * 36,
}


@pytest.mark.parametrize("channel", ["lobby", "plain", "@all"])
@pytest.mark.parametrize("data", HOSTILE.values(), ids=HOSTILE.keys())
async def test_what_is_forged_is_not_believed_and_harms_nothing(
    scene: Scene, channel: str, data: bytes
) -> None:
    rules = HistoryRules(HISTORY.split(","))
    keep = None if channel.startswith("@") else rules.of(channel)
    alice = await grant(scene.one, "query-param")
    async with enter(scene.one, "/ws/query-param", alice) as peer:
        for room in ("lobby", "plain"):
            await say(peer, type="join", room=room)
            assert (await hear(peer))["type"] == "joined"
        before = scene.refused("forged")
        await scene.attacker.publish(channel, data, keep)
        await until(lambda: scene.refused("forged") == before + 1)
        await say(peer, type="publish", room="lobby", data="still here", id=1)
        heard = [await hear(peer), await hear(peer)]
    assert sorted(message["type"] for message in heard) == ["ack", "message"]
    assert {m["data"] for m in heard if m["type"] == "message"} == {"still here"}


@pytest.mark.parametrize("case", ["BRK-01-channel", "BRK-05", "BRK-06", "BRK-15"])
async def test_what_was_genuine_once_is_genuine_there_and_once_only(
    scene: Scene, case: str
) -> None:
    """A message that is taken down, and sent again: there, or elsewhere, or later."""
    alice = await grant(scene.one, "query-param")
    await scene.attacker.broker.subscribe("plain-1")
    async with enter(scene.one, "/ws/query-param", alice) as peer:
        for room in ("plain-1", "plain-2"):
            await say(peer, type="join", room=room)
            assert (await hear(peer))["type"] == "joined"
        for number in range(3):
            await say(peer, type="publish", room="plain-1", data=number)
            assert (await hear(peer))["data"] == number
        await scene.attacker.until(lambda: len(scene.attacker.data("plain-1")) >= 3)
        taken = scene.attacker.data("plain-1")[-1]
        elsewhere = case == "BRK-01-channel"
        why = "forged" if elsewhere else "doubled"
        before = scene.refused(why)
        await scene.attacker.publish("plain-2" if elsewhere else "plain-1", taken)
        await until(lambda: scene.refused(why) == before + 1)
        await say(peer, type="ping", id="quiet")
        assert await hear(peer) == {"type": "pong", "id": "quiet"}
    await scene.attacker.broker.unsubscribe("plain-1")
    scene.attacker.heard.clear()


@pytest.mark.parametrize(
    "name",
    ["*", ">", "a.*", "a.>", "#", "a?c", "[a-z]", "{x}", "a b", "@all", "ro\0om"],
)
async def test_no_room_is_a_pattern(scene: Scene, name: str) -> None:
    """BRK-04"""
    alice = await grant(scene.one, "query-param")
    async with enter(scene.one, "/ws/query-param", alice) as peer:
        await say(peer, type="join", room=name)
        assert (await hear(peer))["slug"] == "room_invalid"


@pytest.mark.parametrize("case", ["BRK-09"])
async def test_a_revocation_here_ends_what_is_open_there(
    scene: Scene, case: str
) -> None:
    bob = await grant(scene.one, "query-param", "bob")
    async with await scene.other.open(
        f"/ws/query-param?token={bob.credential}"
    ) as peer:
        assert json.loads(await peer.recv())["type"] == "auth_ok"
        began = time.monotonic()
        await bob.end()
        async with asyncio.timeout(2):
            await peer.wait_closed()
        assert time.monotonic() - began < 2
        assert (peer.close_code, peer.close_reason) == (1008, "token_revoked")


@pytest.mark.parametrize("case", ["BRK-08"])
async def test_a_revocation_that_is_not_heard_is_read(scene: Scene, case: str) -> None:
    bob = await grant(scene.one, "query-param", "bob")
    async with await scene.other.open(
        f"/ws/query-param?token={bob.credential}"
    ) as peer:
        assert json.loads(await peer.recv())["type"] == "auth_ok"
        # as by another process whose push was lost: in the database, and said to nobody
        await scene.one.call(scene.one.house.sessions.revoke(bob.session))
        async with asyncio.timeout(10):
            await peer.wait_closed()
        assert (peer.close_code, peer.close_reason) == (1008, "token_revoked")


@pytest.mark.parametrize("case", ["BRK-16"])
async def test_another_deployment_on_the_broker_hears_nothing(
    scene: Scene, broker: BrokerServer, case: str
) -> None:
    theirs = Peer(open_broker(broker.url, prefix="theirs", kept=KEPT))
    await theirs.start()
    try:
        for channel in ("lobby", "@all"):
            await theirs.broker.subscribe(channel, None)
        alice = await grant(scene.one, "query-param")
        async with enter(scene.one, "/ws/query-param", alice) as peer:
            await say(peer, type="join", room="lobby")
            await hear(peer)
            await say(peer, type="publish", room="lobby", data="ours", id=1)
            await hear(peer)
        await theirs.publish("lobby", b"mine")
        await theirs.hears("lobby", b"mine")
    finally:
        await theirs.broker.stop()


@pytest.mark.parametrize("case", ["BRK-13"])
async def test_the_brokers_password_is_in_no_log_metric_or_answer(
    scene: Scene, broker: BrokerServer, case: str
) -> None:
    password = broker.url.partition("://")[2].rpartition("@")[0].rpartition(":")[2]
    assert len(password) >= 8
    async with scene.one.http() as http:
        shown = [(await http.get(path)).text for path in ("/metrics", "/readyz")]
    shown += [record.getMessage() for record in scene.one.records]
    shown.append(repr(scene.one.house.settings))
    assert not [text for text in shown if password in text]


@pytest.mark.parametrize("case", ["BRK-07"])
async def test_a_service_starts_without_its_broker_and_says_that_it_is_not_ready(
    tmp_path: Path, kind: str, case: str
) -> None:
    scheme = {"redis": "redis", "nats": "nats", "rabbitmq": "amqp"}[kind]
    nobody = f"{scheme}://user:{secrets.token_urlsafe(12)}@127.0.0.1:{free_port()}"
    async with running(tmp_path, broker_url=nobody) as service:
        await service.add_user("alice")
        async with service.http() as http:
            assert (await http.get("/healthz")).status_code == 200
            ready = await http.get("/readyz")
            assert (ready.status_code, ready.json()["broker"]) == (503, "unreachable")
        alice = await grant(service, "query-param")
        async with enter(service, "/ws/query-param", alice) as peer:
            await say(peer, type="join", room="lobby")
            assert (await hear(peer))["slug"] == "unavailable"
            await say(peer, type="ping", id=1)
            assert (await hear(peer))["type"] == "pong"


UNSAFE = {
    "BRK-11-no-password": "redis://broker.example.com",
    "BRK-11-guest": "amqp://guest:guest@127.0.0.1",
    "BRK-11-nats-open": "nats://10.0.0.7:4222",
}


@pytest.mark.parametrize("url", UNSAFE.values(), ids=UNSAFE.keys())
async def test_a_broker_that_anybody_may_use_is_refused_at_the_start(
    tmp_path: Path, url: str
) -> None:
    given: Any = url
    open_to_all = Settings(_env_file=None, data_dir=tmp_path / "data", broker_url=given)
    with pytest.raises(ConfigurationError, match="password"):
        doctor.check(open_to_all)


SAFE = {
    "BRK-11": ("redis://:{}@broker.example.com", ["warning"]),
    "BRK-11-tls": ("rediss://:{}@broker.example.com", []),
    "BRK-11-token": ("tls://{}@broker.example.com", []),
    "BRK-11-local": ("redis://127.0.0.1", []),
}


@pytest.mark.parametrize(("url", "told"), SAFE.values(), ids=SAFE.keys())
async def test_one_that_asks_for_a_password_is_not(
    tmp_path: Path, url: str, told: list[str]
) -> None:
    password = secrets.token_urlsafe(12)
    given: Any = url.format(password)
    settings = Settings(_env_file=None, data_dir=tmp_path / "data", broker_url=given)
    found = [p for p in doctor.problems(settings) if "broker" in str(p).lower()]
    assert [problem.severity for problem in found] == told
    assert password not in "".join(map(str, found))
