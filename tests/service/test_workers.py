"""Several processes as one service: started, killed, replaced and ended, for real."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
import ssl
import sys
import time
from collections.abc import AsyncIterator
from io import FileIO
from pathlib import Path
from typing import Any

import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from authws.service.watchdog import CUT_SHORT
from authws.service.workers.supervisor import restart_delay
from tests.certificates import Authority
from tests.daemon import Daemon, daemon
from tests.wire import handshake, request, wire

pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="processes are found in /proc"
)

WORKERS = 3
DRAIN = 4.0
PATIENCE = 20.0
RESTART = (1012, "restart")

APP = """
import asyncio, errno, json, logging, os, random, secrets, sys, time
from pathlib import Path
from types import SimpleNamespace

from authws.exceptions import ConfigurationError
from authws.service import listeners as binding, workers
from authws.service.listeners import Listeners
from authws.service.server import Server, build_config, end_process_by
from authws.service.settings import Settings
from authws.service.workers import process

directory, count, drain = Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
number = None
process.START_TIMEOUT = 5
fork = os.fork

def fork_if_there_is_room():
    if (directory / "full").exists():
        raise OSError(errno.EAGAIN, "no room for a process")
    return fork()

os.fork = fork_if_there_is_room
if (directory / "shared").exists():
    binding.sys = SimpleNamespace(platform="of another kind")

async def ignores():
    while True:
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            pass

async def app(scope, receive, send):
    if scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.accept"})
        await send({"type": "websocket.send", "text": str(os.getpid())})
        if scope["path"] == "/ignores":
            await ignores()
        while (event := await receive())["type"] == "websocket.receive":
            await send({"type": "websocket.send", "text": event["text"]})
        return
    facts = {
        "pid": os.getpid(),
        "number": number,
        "chance": random.random(),
        "secret": secrets.token_hex(8),
        "files": sorted(os.listdir("/proc/self/fd")),
    }
    body = json.dumps(facts).encode()
    length = str(len(body)).encode()
    start = {"type": "http.response.start", "status": 200}
    await send({**start, "headers": [(b"content-length", length)]})
    await send({"type": "http.response.body", "body": body})

class Told(Server):
    heeds_second_signal = False

    def __init__(self, config, worker):
        super().__init__(config)
        self.worker = worker
        worker.on_end, worker.on_retire = self.end, self.retire

    async def startup(self, sockets=None):
        await super().startup(sockets)
        self.worker.tell_ready()

    async def shutdown(self, sockets=None):
        self.worker.tell_leaving()
        await super().shutdown(sockets)

def work(worker):
    global number
    number = worker.number
    failure = directory / f"failure-{number}"
    if failure.exists():
        raise ConfigurationError(failure.read_text())
    while (directory / f"hang-{number}").exists():
        time.sleep(0.01)
    tls = directory / "tls.pem"
    config = build_config(
        app,
        port=0,
        drain=drain,
        log_config=None,
        tls_cert=tls if tls.exists() else None,
    )
    config.lifespan = "off"
    Told(config, worker).run(sockets=[worker.listener])

logging.basicConfig(level=logging.INFO)
settings = Settings(_env_file=None, port=0, workers=count)
try:
    with Listeners(settings) as listeners:
        say = lambda: print(f"at http://127.0.0.1:{listeners.port}", flush=True)
        status = workers.run(
            work, listeners, count=count, drain=drain, on_listening=say
        )
except ConfigurationError as error:
    sys.exit(str(error))
if status < 0:
    end_process_by(-status)
sys.exit(status)
"""
"""Workers of an app without any house."""


@contextlib.asynccontextmanager
async def serving(
    directory: Path, *, count: int = WORKERS, drain: float = DRAIN
) -> AsyncIterator[Daemon]:
    arguments = ("-W", "error", "-c", APP, directory, count, drain)
    async with daemon(*map(str, arguments), directory=directory) as server:
        assert len(server.workers()) == count
        yield server


async def facts(port: int, tls: ssl.SSLContext | None = None) -> dict[str, Any]:
    """Ask one worker, on a connection of its own."""
    async with wire(port, tls=tls) as peer:
        await peer.send(request("/", "Connection: close"))
        response = await peer.response()
    assert response.status == 200
    found: dict[str, Any] = json.loads(response.body)
    return found


async def pids(port: int, count: int) -> set[int]:
    """Ask until so many workers have answered."""
    found: set[int] = set()
    async with asyncio.timeout(PATIENCE):
        while len(found) < count:
            found.add((await facts(port))["pid"])
    return found


async def enter(server: Daemon, path: str = "/") -> tuple[ClientConnection, int]:
    """Open a WebSocket; return it and the pid of its worker."""
    peer = await connect(f"ws://127.0.0.1:{server.port}{path}", proxy=None)
    return peer, int(await peer.recv())


async def enter_all(server: Daemon) -> dict[int, ClientConnection]:
    """Open WebSockets until each worker has one."""
    found: dict[int, ClientConnection] = {}
    async with asyncio.timeout(PATIENCE):
        while len(found) < WORKERS:
            peer, pid = await enter(server)
            if pid in found:
                await peer.close()
            found.setdefault(pid, peer)
    return found


async def ending(peer: ClientConnection) -> tuple[int | None, str | None]:
    with contextlib.suppress(ConnectionClosed):
        async with asyncio.timeout(PATIENCE):
            while True:
                await peer.recv()
    return peer.close_code, peer.close_reason


async def echoes(peer: ClientConnection) -> bool:
    await peer.send("hello")
    return await peer.recv() == "hello"


async def until_said(server: Daemon, *words: str) -> str:
    """Wait for a line of its log that holds these words; return it."""
    async with asyncio.timeout(PATIENCE):
        while True:
            for line in server.errors.splitlines():
                if all(word in line for word in words):
                    return line
            await asyncio.sleep(0.01)


async def is_refused(port: int) -> bool:
    try:
        async with wire(port):
            return False
    except OSError:
        return True


# ------------------------------------------------------------------------ being there


async def test_all_workers_serve_one_port(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        assert await pids(server.port, WORKERS) == server.workers()
        assert server.process.pid not in server.workers()


async def test_each_worker_is_its_own(tmp_path: Path) -> None:
    """What a fork copies must not be what two of them go on with."""
    async with serving(tmp_path) as server:
        found: dict[int, dict[str, Any]] = {}
        async with asyncio.timeout(PATIENCE):
            while len(found) < WORKERS:
                told = await facts(server.port)
                found[told["pid"]] = told
        workers = [*found.values()]
        assert sorted(one["number"] for one in workers) == [*range(WORKERS)]
        for name in ("chance", "secret"):
            assert len({one[name] for one in workers}) == WORKERS
        # nothing of the others' and of the parent's stays open in one: the last that
        # was forked has no more than the first
        assert len({len(one["files"]) for one in workers}) == 1
        sessions = {os.getsid(pid) for pid in found}
        assert sessions == {*found}
        assert os.getsid(server.process.pid) not in sessions
    assert "Warning" not in server.errors  # such as of a fork beside a thread


async def test_connections_are_spread_over_the_workers(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        of_worker: dict[int, int] = {}
        for _ in range(300):
            pid = (await facts(server.port))["pid"]
            of_worker[pid] = of_worker.get(pid, 0) + 1
    # a fair share is 100; one socket for all gave some worker four times another's
    assert min(of_worker.values()) > 50
    assert max(of_worker.values()) < 170


# ---------------------------------------------------------------------- being killed


async def test_killed_worker_is_started_again_and_nobody_is_refused(
    tmp_path: Path,
) -> None:
    async with serving(tmp_path) as server:
        peers = await enter_all(server)
        killed, of_killed = peers.popitem()
        before = server.workers()
        os.kill(killed, signal.SIGKILL)
        started = time.monotonic()
        (successor,) = await until_successor(server, before)
        assert time.monotonic() - started < 2
        assert await ending(of_killed) == (1006, "")
        for peer in peers.values():
            assert await echoes(peer)
            await peer.close()
        line = await until_said(server, f"(pid {killed})")
        assert "was ended by SIGKILL; starting it again" in line
        assert successor in await pids(server.port, WORKERS)


async def until_successor(server: Daemon, before: set[int]) -> set[int]:
    """Ask all the time, and never in vain, until one answers that was not there."""
    async with asyncio.timeout(PATIENCE):
        while not (new := {(await facts(server.port))["pid"]} - before):
            pass
    return new


async def test_worker_that_dies_again_and_again_is_waited_for_and_nobody_waits_with_it(
    tmp_path: Path,
) -> None:
    async with serving(tmp_path) as server:
        victim = min(server.workers())
        for when in ("starting it again", "starting it again in 1 s"):
            number = await number_of(server, victim)
            before = server.workers()
            os.kill(victim, signal.SIGKILL)
            line = await until_said(server, f"worker {number} (pid {victim})")
            assert line.endswith(when)
            if when.endswith("s"):
                # its listener is down: who comes is served by the others, at once
                waited = time.monotonic()
                async with asyncio.timeout(0.8):
                    for _ in range(50):
                        assert (await facts(server.port))["pid"] in before
                assert time.monotonic() - waited < 1
            (victim,) = await until_successor(server, before)
        assert len(await pids(server.port, WORKERS)) == WORKERS


async def number_of(server: Daemon, pid: int) -> int:
    async with asyncio.timeout(PATIENCE):
        while (told := await facts(server.port))["pid"] != pid:
            pass
    return int(told["number"])


def test_delay_grows_up_to_half_a_minute() -> None:
    delays = [restart_delay(deaths) for deaths in (1, 2, 3, 4, 5, 6, 7, 8, 10_000)]
    assert delays == [0, 1, 2, 4, 8, 16, 30, 30, 30]


async def test_worker_that_cannot_start_again_says_why_and_is_tried_again(
    tmp_path: Path,
) -> None:
    async with serving(tmp_path) as server:
        number = await number_of(server, victim := min(server.workers()))
        failure = tmp_path / f"failure-{number}"
        failure.write_text("the disk is full; make room")
        before = server.workers()
        os.kill(victim, signal.SIGKILL)
        line = await until_said(server, "the disk is full; make room")
        assert line.endswith("starting it again in 1 s")
        failure.unlink()
        await until_successor(server, before)


async def test_system_that_has_no_room_for_a_process_is_asked_again(
    tmp_path: Path,
) -> None:
    async with serving(tmp_path) as server:
        before = server.workers()
        full = tmp_path / "full"
        full.touch()
        server.send(signal.SIGHUP)
        line = await until_said(server, "no other can be started")
        assert "no room for a process" in line
        assert server.workers() == before
        os.kill(min(before), signal.SIGKILL)
        line = await until_said(server, "cannot be started: no room for a process")
        assert line.endswith("starting it again in 1 s")
        full.unlink()
        await until_successor(server, before)


async def test_worker_that_hangs_in_its_start_is_ended_and_tried_again(
    tmp_path: Path,
) -> None:
    async with serving(tmp_path) as server:
        before = server.workers()
        number = await number_of(server, victim := min(before))
        hang = tmp_path / f"hang-{number}"
        hang.touch()
        os.kill(victim, signal.SIGKILL)
        await until_said(server, "did not start within 5 s")
        hang.unlink()
        await until_successor(server, before)


async def test_worker_that_somebody_else_ends_is_replaced_while_it_drains(
    tmp_path: Path,
) -> None:
    async with serving(tmp_path) as server:
        peer, pid = await enter(server, "/ignores")
        before = server.workers()
        os.kill(pid, signal.SIGTERM)
        await until_successor(server, before)
        assert pid in server.workers()  # it drains yet
        assert await ending(peer) == RESTART
        assert "was told to end; starting another" in server.errors


# --------------------------------------------------------------------- being replaced


async def test_sighup_replaces_all_and_no_request_fails(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        before = server.workers()
        peers = await enter_all(server)
        over = asyncio.Event()
        work = [ask_anew, ask_on, talk]
        busy = [asyncio.create_task(one(server.port, over)) for one in work * 2]
        server.send(signal.SIGHUP)
        await until_said(server, "All workers are replaced")
        over.set()
        done = await asyncio.gather(*busy)
        assert min(done) > 10
        assert not before & server.workers()
        assert await pids(server.port, WORKERS) == server.workers()
        assert [await ending(peer) for peer in peers.values()] == [RESTART] * WORKERS
        assert server.process.returncode is None
    assert "Traceback" not in server.errors


async def ask_anew(port: int, over: asyncio.Event) -> int:
    """Ask again and again, on a new connection each time."""
    count = 0
    while not over.is_set():
        await facts(port)
        count += 1
    return count


async def ask_on(port: int, over: asyncio.Event) -> int:
    """Ask on one connection for as long as the server keeps it."""
    count = 0
    while not over.is_set():
        async with wire(port) as peer:
            while not over.is_set():
                await peer.send(request("/"))
                response = await peer.response()
                assert response.status == 200
                count += 1
                if response.headers.get("connection") == "close":
                    break
    return count


async def talk(port: int, over: asyncio.Event) -> int:
    """Shake hands and talk; who is told of the restart comes back."""
    count = 0
    while not over.is_set():
        async with wire(port) as peer:
            await peer.send(handshake("/"))
            assert (await peer.response()).status == 101
            await peer.frame()
            count += 1
    return count


async def test_who_has_connected_and_not_asked_yet_is_served(tmp_path: Path) -> None:
    """A head comes a moment after its connection, and by TLS two: meanwhile its worker
    may be told that its successor serves."""
    async with serving(tmp_path) as server, contextlib.AsyncExitStack() as stack:
        before = server.workers()
        came = [wire(server.port) for _ in range(24)]
        peers = [await stack.enter_async_context(one) for one in came]
        server.send(signal.SIGHUP)
        await until_successor(server, before)
        for peer in peers:  # while the first worker leaves
            await asyncio.sleep(0.02)
            await peer.send(handshake("/"))
            assert (await peer.response()).status == 101


async def test_keys_may_change_twice_and_all_workers_are_the_newest(
    tmp_path: Path,
) -> None:
    """A SIGHUP in the middle of it begins anew."""
    async with serving(tmp_path) as server:
        before = server.workers()
        server.send(signal.SIGHUP)
        (first_new,) = await until_successor(server, before)
        server.send(signal.SIGHUP)
        await until_said(server, "All workers are replaced")
        assert not server.workers() & {*before, first_new}
        assert len(server.workers()) == WORKERS


async def test_new_certificate_is_shown_and_no_handshake_fails(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    trust = ssl.create_default_context(cafile=authority.path)
    shown: set[bytes | None] = set()

    def install(name: str) -> None:
        files = authority.issue(name, "127.0.0.1")
        (tmp_path / "tls.pem").write_bytes(b"".join(map(Path.read_bytes, files)))

    async def see(port: int) -> None:
        _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=trust)
        shown.add(writer.get_extra_info("ssl_object").getpeercert(binary_form=True))
        writer.close()
        await writer.wait_closed()

    install("first")
    async with serving(tmp_path) as server:
        await see(server.port)
        first = shown.copy()
        install("second")
        server.send(signal.SIGHUP)
        while "All workers are replaced" not in server.errors:
            await facts(server.port, trust)
        shown.clear()
        for _ in range(20):
            await see(server.port)
        assert len(shown) == 1
        assert not shown & first


async def test_successor_that_cannot_start_replaces_nobody(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        before = server.workers()
        (tmp_path / "failure-1").write_text("the new keys are damaged")
        server.send(signal.SIGHUP)
        line = await until_said(server, "the new keys are damaged")
        assert line.endswith("the workers that are left stay as they are")
        after = await pids(server.port, WORKERS)
        assert len(after & before) == WORKERS - 1  # the first was replaced


async def test_where_all_workers_share_a_listener_nobody_is_refused_either(
    tmp_path: Path,
) -> None:
    (tmp_path / "shared").touch()
    async with serving(tmp_path) as server:
        before = server.workers()
        os.kill(min(before), signal.SIGKILL)
        await until_successor(server, before)
        over = asyncio.Event()
        work = [ask_anew, ask_on, talk]
        busy = [asyncio.create_task(one(server.port, over)) for one in work]
        server.send(signal.SIGHUP)
        await until_said(server, "All workers are replaced")
        over.set()
        assert min(await asyncio.gather(*busy)) > 10
        server.send()
        assert (await server.ended())[0] == 0
        assert await is_refused(server.port)


# -------------------------------------------------------------------------- the end


async def test_sigterm_drains_every_worker(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        peers = await enter_all(server)
        server.send()
        endings = [await ending(peer) for peer in peers.values()]
        assert endings == [RESTART] * WORKERS
        status, seconds = await server.ended()
        assert status == 0
        assert seconds < DRAIN
        assert not server.workers()
        assert await is_refused(server.port)


async def test_signal_to_every_process_is_one_signal(tmp_path: Path) -> None:
    """systemd ends a service so; a worker must not take the second for impatience."""
    async with serving(tmp_path) as server:
        peers = await enter_all(server)
        async with wire(server.port) as peer:
            await peer.upgrade("/ignores")
            server.send()
            for pid in server.workers():
                os.kill(pid, signal.SIGTERM)
            endings = [await ending(peer) for peer in peers.values()]
        status, _ = await server.ended()
    assert endings == [RESTART] * WORKERS
    assert status == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_second_signal_ends_all_at_once(
    tmp_path: Path, number: signal.Signals
) -> None:
    async with serving(tmp_path, drain=20) as server:
        await enter(server, "/ignores")
        server.send()
        await until_said(server, "Draining")
        server.send(number)
        status, seconds = await server.ended()
        assert status == -number
        assert seconds < 0.5
        assert not server.workers()


async def test_worker_that_had_to_be_cut_short_is_told_by_the_status(
    tmp_path: Path,
) -> None:
    async with serving(tmp_path, drain=1) as server:
        _, pid = await enter(server, "/ignores")
        os.kill(pid, signal.SIGSTOP)  # not even its watchdog runs
        server.send()
        status, seconds = await server.ended()
        assert status == CUT_SHORT
        assert 1 < seconds < 10
        assert f"(pid {pid}) did not end in time" in server.errors
        assert not server.workers()


async def test_workers_of_a_killed_parent_drain(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        peers = await enter_all(server)
        workers = server.workers()
        server.send(signal.SIGKILL)
        endings = [await ending(peer) for peer in peers.values()]
        assert endings == [RESTART] * WORKERS
        await server.until_gone(*workers)
        assert time.monotonic() - server.told_at < DRAIN
        assert await is_refused(server.port)


async def test_orphan_that_does_not_end_is_ended(tmp_path: Path) -> None:
    async with serving(tmp_path, drain=1) as server:
        peer, pid = await enter(server, "/ignores")
        server.send(signal.SIGKILL)
        assert await ending(peer) == RESTART
        await server.until_gone(pid)
        assert time.monotonic() - server.told_at < 10


async def test_parent_that_is_told_to_end_in_the_middle_of_a_replacement_ends(
    tmp_path: Path,
) -> None:
    async with serving(tmp_path) as server:
        before = server.workers()
        await enter(server, "/ignores")
        server.send(signal.SIGHUP)
        await until_successor(server, before)
        server.send()
        status, seconds = await server.ended()
        assert status == 0
        assert seconds < DRAIN + 2
        assert not server.workers()


# ----------------------------------------------------------------------- a bad start


@pytest.mark.parametrize(
    ("file", "sentence"),
    [
        ("failure-0", "no key: run keys rotate"),
        ("failure-1", "no key: run keys rotate"),
        ("hang-1", "a worker did not start within 5 s"),
        ("full", "a worker cannot be started: no room for a process"),
    ],
)
async def test_worker_that_cannot_start_is_one_sentence_and_leaves_no_process(
    tmp_path: Path, file: str, sentence: str
) -> None:
    (tmp_path / file).write_text(sentence)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", APP, str(tmp_path), "3", "1"),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(PATIENCE):
            # to the end of both: whoever lived on would hold them open
            out, errors = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode == 1
    said = errors.decode().splitlines()
    assert said.count(sentence) == 1
    assert not [line for line in said if "Traceback" in line]
    assert b"at http://" not in out


# ------------------------------------------------------------------------ a terminal


@contextlib.asynccontextmanager
async def at_a_terminal(directory: Path) -> AsyncIterator[tuple[Daemon, FileIO]]:
    """Run it in the foreground of a terminal; yield the other end of that, too."""
    number, its_end = os.openpty()
    errors = directory / "stderr.txt"
    program = (sys.executable, "-c", APP, str(directory), str(WORKERS), str(DRAIN))
    with errors.open("wb") as stderr:
        process = await asyncio.create_subprocess_exec(
            *("setsid", "--ctty", *program),
            stdin=its_end,
            stdout=its_end,
            stderr=stderr,
        )
    os.close(its_end)
    server = Daemon(process, 0, errors)
    terminal = os.fdopen(number, "r+b", buffering=0)
    try:
        async with asyncio.timeout(PATIENCE):
            said = b""
            while not (found := re.search(rb"at http://127.0.0.1:(\d+)\r\n", said)):
                said += await asyncio.to_thread(terminal.read, 1024)
        server.port = int(found[1])
        yield server, terminal
    finally:
        server.workers()
        if process.returncode is None:
            process.kill()
            await process.wait()
        server.end_workers()
        terminal.close()


async def test_ctrl_c_is_heard_once(tmp_path: Path) -> None:
    """The terminal sends it to every process in its foreground."""
    async with at_a_terminal(tmp_path) as (server, terminal):
        peers = await enter_all(server)
        async with wire(server.port) as peer:
            await peer.upgrade("/ignores")
            terminal.write(b"\x03")
            endings = [await ending(peer) for peer in peers.values()]
        status, _ = await server.ended()
    assert endings == [RESTART] * WORKERS
    assert status == 0


async def test_terminal_that_is_closed_ends_it(tmp_path: Path) -> None:
    """Its goodbye is the signal by which an operator asks for new workers."""
    async with at_a_terminal(tmp_path) as (server, terminal):
        peers = await enter_all(server)
        terminal.close()
        assert [await ending(peer) for peer in peers.values()] == [RESTART] * WORKERS
        status, _ = await server.ended()
        assert status == 0
        assert not server.workers()
