"""``authws serve --workers``: the whole service in several processes, with a broker."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import jwt
import pytest
import pytest_asyncio
import websockets
from prometheus_client.parser import text_string_to_metric_families
from websockets.asyncio.client import ClientConnection

from authws.service.key_files import rotate_keys
from authws.service.settings import Settings
from tests.daemon import PASSWORD, Daemon, serve, users
from tests.grants import ending, hear, say
from tests.servers.brokers import BrokerServer, broker_server
from tests.wire import request, wire

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="processes are found in /proc"),
    pytest.mark.asyncio(loop_scope="module"),
]

WORKERS = 3
PATIENCE = 30.0
RESTART = (1012, "restart")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def broker() -> AsyncIterator[BrokerServer]:
    async with broker_server("redis") as server:
        yield server


@pytest.fixture
def temporary(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where the service makes its temporary directories."""
    # a socket's path is short, and that of a test's own directory may not be
    with tempfile.TemporaryDirectory(prefix="authws-test-") as directory:
        monkeypatch.setenv("TMPDIR", directory)
        yield Path(directory)


def serving(
    broker: BrokerServer, directory: Path, *options: str, **settings: object
) -> AbstractAsyncContextManager[Daemon]:
    """Serve with several workers; add users before."""
    defaults: dict[str, Any] = {
        "broker_url": broker.url,
        "broker_prefix": f"w{secrets.token_hex(4)}",
        "presence_lease": 2,
    }
    options = ("--workers", str(WORKERS), "--drain", "4", *options)
    return serve(directory, *options, **{**defaults, **settings})


async def log_in(server: Daemon) -> str:
    async with server.http() as http:
        login = {"username": "alice", "password": PASSWORD}
        answer = await http.post("/auth/login", json=login)
    answer.raise_for_status()
    return str(answer.json()["access_token"])


async def enter(server: Daemon, token: str) -> ClientConnection:
    """Connect and join the lobby, on whatever worker it is."""
    url = f"ws://127.0.0.1:{server.port}/ws/query-param?token={token}"
    peer = await websockets.connect(url, proxy=None, open_timeout=PATIENCE)
    assert (await hear(peer))["type"] == "auth_ok"
    await say(peer, type="join", room="lobby")
    while (await hear(peer))["type"] != "joined":
        pass
    return peer


async def hears(peer: ClientConnection, data: str) -> bool:
    """Read up to a message in a room."""
    async with asyncio.timeout(PATIENCE):
        while True:
            said = await hear(peer)
            if said["type"] == "message" and said["data"] == data:
                return True


async def get(server: Daemon, path: str) -> str:
    """Ask any worker that answers."""
    async with asyncio.timeout(PATIENCE):
        while True:
            # a worker that stands still accepts nobody, and never will
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(4), wire(server.port) as peer:
                    await peer.send(request(path, "Connection: close"))
                    response = await peer.response()
                    assert response.status == 200, response
                    return response.body.decode()


Samples = dict[str, dict[tuple[str, ...], float]]
"""By name, then by the values of the labels, of which ``worker`` is the first."""


def parsed(text: str) -> Samples:
    found: Samples = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = dict(sample.labels)
            values = (labels.pop("worker", ""), *labels.values())
            found.setdefault(sample.name, {})[values] = sample.value
    return found


async def metrics(server: Daemon) -> Samples:
    return parsed(await get(server, "/metrics"))


async def until_answered(server: Daemon, count: int) -> Samples:
    async with asyncio.timeout(PATIENCE):
        while True:
            found = await metrics(server)
            if found["authws_workers_scraped"]["", "answered"] == count:
                return found


def connections(samples: Samples) -> dict[str, float]:
    """How many connections each worker has."""
    by_worker: dict[str, float] = {}
    for (worker, _), count in samples["authws_connections"].items():
        by_worker[worker] = by_worker.get(worker, 0) + count
    return by_worker


async def peers_on_all(server: Daemon, token: str) -> list[ClientConnection]:
    """Enter until each worker has somebody."""
    peers = [await enter(server, token) for _ in range(2 * WORKERS)]
    async with asyncio.timeout(PATIENCE):
        while 0 in connections(await metrics(server)).values():
            peers.append(await enter(server, token))
    return peers


# ------------------------------------------------------------------------ one service


async def test_workers_are_one_service_with_one_metrics(
    broker: BrokerServer, tmp_path: Path
) -> None:
    await users(tmp_path, "alice")
    async with serving(broker, tmp_path) as server:
        peers = await peers_on_all(server, await log_in(server))
        await say(peers[0], type="publish", room="lobby", data="hello")
        assert all([await hears(peer, "hello") for peer in peers])

        text = await get(server, "/metrics")
        samples = parsed(text)
        assert sum(connections(samples).values()) == len(peers)
        assert {*connections(samples)} == {"0", "1", "2"}
        assert samples["authws_workers_scraped"] == {
            ("", "answered"): 3,
            ("", "silent"): 0,
        }
        workers = {name: {key[0] for key in of} for name, of in samples.items()}
        del workers["authws_workers_scraped"]
        assert len(workers) > 10
        assert all(found == {"0", "1", "2"} for found in workers.values())
        headers = [line for line in text.splitlines() if line.startswith("# TYPE")]
        assert len(headers) == len(set(headers))


async def test_who_is_alone_needs_no_label(tmp_path: Path) -> None:
    async with serve(tmp_path) as server:
        text = await get(server, "/metrics")
    assert "authws_connections{" in text
    assert "worker=" not in text
    assert "authws_workers_scraped" not in text


async def test_worker_that_stands_still_is_left_out_of_the_metrics_and_counted(
    broker: BrokerServer, tmp_path: Path
) -> None:
    async with serving(broker, tmp_path) as server:
        still = min(server.workers())
        os.kill(still, signal.SIGSTOP)
        try:
            samples = await until_answered(server, WORKERS - 1)
        finally:
            os.kill(still, signal.SIGCONT)
        assert samples["authws_workers_scraped"]["", "silent"] == 1
        assert len(connections(samples)) == WORKERS - 1
        await until_answered(server, WORKERS)


async def test_killed_worker_comes_back_and_only_its_own_peers_have_to(
    broker: BrokerServer, tmp_path: Path, temporary: Path
) -> None:
    await users(tmp_path, "alice")
    async with serving(broker, tmp_path) as server:
        token = await log_in(server)
        peers = await peers_on_all(server, token)
        before = connections(await metrics(server))
        killed = max(server.workers())
        os.kill(killed, signal.SIGKILL)
        started = time.monotonic()
        await server.until_gone(killed)
        samples = await until_answered(server, WORKERS)
        print(f"a worker was back after {time.monotonic() - started:.2f} s")
        survivors = [peer for peer in peers if await lives(peer)]
        assert len(survivors) == len(peers) - lost(before, connections(samples))
        assert 0 < len(survivors) < len(peers)
        back = await enter(server, token)
        await say(back, type="publish", room="lobby", data="again")
        assert all([await hears(peer, "again") for peer in (back, *survivors)])
        server.send()
        for peer in survivors:
            assert await ending(peer) == RESTART
        assert (await server.ended())[0] == 0
        assert os.listdir(temporary) == []


async def lives(peer: ClientConnection) -> bool:
    """Ask for a pong of the protocol; who lost its worker is told 1006."""
    try:
        await say(peer, type="ping", id="alive")
        while (await hear(peer)).get("id") != "alive":
            pass
    except websockets.ConnectionClosed:
        assert peer.close_code == 1006
        return False
    return True


def lost(before: dict[str, float], after: dict[str, float]) -> int:
    """How many connections the worker had that began anew."""
    gone = [before[worker] for worker, count in after.items() if count < before[worker]]
    (count,) = gone
    return int(count)


# -------------------------------------------------------------------- being replaced


async def test_keys_are_rotated_and_no_request_fails(
    broker: BrokerServer, tmp_path: Path
) -> None:
    log = tmp_path / "security.log"
    await users(tmp_path, "alice")
    async with serving(broker, tmp_path, security_log=log) as server:
        token = await log_in(server)
        settings = Settings(_env_file=None, data_dir=tmp_path / "data")
        newest = rotate_keys(settings)
        log.rename(tmp_path / "security.log.1")
        before = server.workers()
        peer = await enter(server, token)
        over = asyncio.Event()
        busy = [
            asyncio.create_task(ask(server, over)),
            asyncio.create_task(come_and_go(server, token, over)),
        ]
        server.send(signal.SIGHUP)
        await until_replaced(server)
        over.set()
        done = await asyncio.gather(*busy)
        assert min(done) > 5
        assert not before & server.workers()
        assert await ending(peer) == RESTART
        fresh = await log_in(server)
        assert jwt.get_unverified_header(fresh)["kid"] == newest
        await (await enter(server, token)).close()  # the older key verifies on
        events = [json.loads(line)["event"] for line in log.read_text().splitlines()]
        assert "connected" in events  # in the file that is there now
    assert "Traceback" not in server.errors


async def ask(server: Daemon, over: asyncio.Event) -> int:
    """Ask one question after another; none may fail."""
    count = 0
    while not over.is_set():
        async with server.http() as http:
            for _ in range(5):
                assert (await http.get("/healthz")).status_code == 200
                count += 1
    return count


async def come_and_go(server: Daemon, token: str, over: asyncio.Event) -> int:
    """Come in with an old token again and again; nobody may be turned away."""
    count = 0
    while not over.is_set():
        url = f"ws://127.0.0.1:{server.port}/ws/query-param?token={token}"
        async with websockets.connect(url, proxy=None) as peer:
            assert (await hear(peer))["type"] == "auth_ok"
            count += 1
    return count


async def until_replaced(server: Daemon) -> None:
    async with asyncio.timeout(PATIENCE):
        while "All workers are replaced" not in server.errors:  # noqa: ASYNC110
            await asyncio.sleep(0.02)


# --------------------------------------------------------------------- what is written


async def test_lines_of_all_workers_stay_whole(
    broker: BrokerServer, tmp_path: Path
) -> None:
    log = tmp_path / "security.log"
    wrong = "x" * 4000  # a line's detail is cut off, and a line stays long
    async with serving(broker, tmp_path, security_log=log) as server:
        url = f"ws://127.0.0.1:{server.port}/ws/query-param?token={wrong}"

        async def knock() -> None:
            for _ in range(40):
                async with websockets.connect(url, proxy=None) as peer:
                    with contextlib.suppress(websockets.ConnectionClosed):
                        await peer.recv()

        await asyncio.gather(*(knock() for _ in range(20)))
        samples = await metrics(server)
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert len([line for line in lines if line["event"] == "refused"]) == 800
    refused = {
        key[0]: count
        for key, count in samples["authws_events_total"].items()
        if "refused" in key
    }
    assert sum(refused.values()) == 800
    assert min(refused.values()) > 100  # all of them wrote, and at the same time


async def test_what_an_operator_is_told_is_told_once(
    broker: BrokerServer, tmp_path: Path
) -> None:
    async with serving(broker, tmp_path, "--demo") as server:
        workers = server.workers()
        server.send()
        assert server.process.stdout is not None
        said = (await server.process.stdout.read()).decode()
        assert (await server.ended())[0] == 0
    assert len(re.findall(r"password: \S+   \(shown this once\)", said)) == 1
    assert "authws is at" not in said  # that line was read before
    for pid in workers:  # each says whose lines are whose
        assert f"[{pid}] INFO:     Finished server process [{pid}]" in server.errors


# ------------------------------------------------------------------------ a bad start


def run(directory: Path, *options: str, **settings: object) -> tuple[int, list[str]]:
    """Run it to its end, the workers' included; return status and errors."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith("AUTHWS_")}
    given = {f"AUTHWS_{name.upper()}": str(value) for name, value in settings.items()}
    ended = subprocess.run(
        [sys.executable, "-m", "authws", "serve", "--workers", "3", *options],
        env={**clean, "AUTHWS_DATA_DIR": str(directory / "data"), **given},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    return ended.returncode, ended.stderr.splitlines()


async def test_worker_that_cannot_start_is_one_sentence(
    broker: BrokerServer, tmp_path: Path, temporary: Path
) -> None:
    wrong = {"broker_url": broker.url, "security_log": "/nowhere/security.log"}
    status, said = await asyncio.to_thread(run, tmp_path, "--port", "0", **wrong)
    assert status == 1
    sentence = "authws: AUTHWS_SECURITY_LOG: cannot write /nowhere/security.log"
    assert [line for line in said if "security.log" in line] == [
        f"{sentence}: No such file or directory"
    ]
    assert os.listdir(temporary) == []


async def test_port_of_another_service_of_ours_is_not_shared(
    broker: BrokerServer, tmp_path: Path
) -> None:
    async with serving(broker, tmp_path) as server:
        port = str(server.port)
        status, said = await asyncio.to_thread(
            run, tmp_path, "--port", port, broker_url=broker.url
        )
        assert status == 1
        assert said[-1].startswith(f"authws: cannot listen on 127.0.0.1 port {port}: ")
        assert json.loads(await get(server, "/healthz")) == {"status": "ok"}


# --------------------------------------------------------------------------- the end


async def test_workers_of_a_killed_parent_leave_nothing(
    broker: BrokerServer, tmp_path: Path, temporary: Path
) -> None:
    await users(tmp_path, "alice")
    async with serving(broker, tmp_path) as server:
        peers = await peers_on_all(server, await log_in(server))
        workers = server.workers()
        (sockets,) = os.listdir(temporary)
        assert len(os.listdir(temporary / sockets)) == WORKERS
        server.send(signal.SIGKILL)
        for peer in peers:
            assert await ending(peer) == RESTART
        await server.until_gone(*workers)
        assert time.monotonic() - server.told_at < 4
    assert os.listdir(temporary) == []
