"""Does a burst of 200 logins delay an echo on an open socket?

Runs `authws serve` in a process of its own, echoes on one socket all the time, and logs
200 users in at once meanwhile. Prints the echo's p50 and p99 before and during, as a
ratio: absolute figures are the machine's.

    python bench/login_burst.py [--logins 200] [--rounds 5]
"""

from __future__ import annotations

import argparse
import asyncio
import os
import socket
import statistics
import sys
import tempfile
import time
from pathlib import Path

import httpx
import websockets

PASSWORD = "correct horse battery staple"
USERS = 20


async def serve(directory: Path) -> tuple[asyncio.subprocess.Process, str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {
        **os.environ,
        "AUTHWS_DATA_DIR": str(directory / "data"),
        "AUTHWS_MESSAGE_RATE": "0",
        "AUTHWS_LOGIN_RATE": "0",
    }
    authws = [sys.executable, "-m", "authws"]
    for number in range(USERS):
        add = await asyncio.create_subprocess_exec(
            *authws,
            "user",
            "add",
            f"user{number}",
            "--password-stdin",
            env=environment,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.DEVNULL,
        )
        await add.communicate(PASSWORD.encode())
        print(f"\radding users: {number + 1}/{USERS}", end="", file=sys.stderr)
    print(file=sys.stderr)
    server = await asyncio.create_subprocess_exec(
        *authws,
        "serve",
        "--port",
        str(port),
        env=environment,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    assert server.stdout is not None
    while b"authws is at" not in (line := await server.stdout.readline()):
        assert line or server.returncode is None, "the server did not start"
    return server, f"http://127.0.0.1:{port}"


async def echo_until(
    peer: websockets.ClientConnection, done: asyncio.Event
) -> list[float]:
    """Echo one message after another; return each round trip in milliseconds."""
    times: list[float] = []
    while not done.is_set():
        started = time.perf_counter()
        await peer.send("x" * 128)
        await peer.recv()
        times.append((time.perf_counter() - started) * 1000)
        await asyncio.sleep(0.002)
    return times


async def login(http: httpx.AsyncClient, number: int) -> str:
    answer = await http.post(
        "/auth/login",
        json={"username": f"user{number % USERS}", "password": PASSWORD},
    )
    answer.raise_for_status()
    return str(answer.json()["access_token"])


def p99(times: list[float]) -> float:
    return statistics.quantiles(times, n=100)[98]


async def one_round(url: str, http: httpx.AsyncClient, logins: int) -> list[float]:
    token = await login(http, 0)
    ws = url.replace("http", "ws") + f"/ws/query-param/echo?token={token}"
    async with websockets.connect(ws, compression=None, proxy=None) as peer:
        quiet = asyncio.Event()
        asyncio.get_running_loop().call_later(3, quiet.set)
        before = await echo_until(peer, quiet)
        over = asyncio.Event()
        echoing = asyncio.create_task(echo_until(peer, over))
        started = time.perf_counter()
        await asyncio.gather(*(login(http, n) for n in range(logins)))
        took = time.perf_counter() - started
        over.set()
        during = await echoing
    return [
        statistics.median(before),
        p99(before),
        statistics.median(during),
        p99(during),
        took,
    ]


async def main(logins: int, rounds: int) -> None:
    with tempfile.TemporaryDirectory() as directory:
        server, url = await serve(Path(directory))
        try:
            limits = httpx.Limits(max_connections=logins)
            async with httpx.AsyncClient(
                base_url=url, timeout=120, limits=limits
            ) as http:
                rows = []
                for number in range(rounds):
                    rows.append(await one_round(url, http, logins))
                    print(f"\rround {number + 1}/{rounds}", end="", file=sys.stderr)
                print(file=sys.stderr)
        finally:
            server.terminate()
            await server.wait()
    middle = [statistics.median(column) for column in zip(*rows, strict=True)]
    print(f"{logins} logins at once, median of {rounds} rounds")
    print(f"echo before: p50 {middle[0]:.2f} ms, p99 {middle[1]:.2f} ms")
    print(f"echo during: p50 {middle[2]:.2f} ms, p99 {middle[3]:.2f} ms")
    print(f"the logins took {middle[4]:.1f} s")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--logins", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    asyncio.run(main(arguments.logins, arguments.rounds))
