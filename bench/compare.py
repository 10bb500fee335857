"""authws beside others: the handshake, an echo, and a room, each on one core.

A load generator in C (`bench/wsload.c`) on one core loads one server after another on
the other: plain FastAPI without any authentication (the floor), the `websockets`
library's own server, nats-server where it is installed, and `authws serve` with all
that it does. Interleaved rounds, every other one backwards; ratios are medians of the
ratios within a round.

    python -m bench.compare [--rounds 5] [--seconds 1.5]
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import uvloop

from bench import reporting
from bench.reporting import Load, Progress
from bench.served import served, use_cores

HERE = Path(__file__).parent
FLOOR = "plain FastAPI, no authentication"
NATS = "nats-server"
START_TIMEOUT = 20.0
BOUND = 3600.0

JOIN = '{"type":"join","room":"r"}'
PUBLISH = ("--pre", '{"type":"publish","room":"r","data":"', "--post", '"}')
HELLO = (
    r'CONNECT {"verbose":false,"pedantic":false,"echo":true,"auth_token":"bench-token"}'
    r"\r\n"
)
OF_NATS = ("--binary", "--marker", "--wait", "PONG", "--post", r"\r\n", "--path", "/")

MEASURES: dict[str, tuple[str, ...]] = {
    "handshake": ("connect", "-c", "32"),
    "echo, 64 connections": ("echo", "-c", "64", "-b", "128"),
    **{
        f"room of 100, window {window}": (
            *("fanout", "-c", "100", "-b", "128"),
            *("-w", str(window)),
        )
        for window in (1, 4, 16, 64)
    },
    "room of 1,000, window 4": ("fanout", "-c", "1000", "-b", "128", "-w", "4"),
}
"""What the generator does; a window is how many messages of the publisher's are on
their way at a time. Handshakes, or messages that arrived, per second."""


@dataclass(frozen=True)
class Contender:
    """A running server, and how it is asked for each kind of work."""

    name: str
    pid: int
    port: int
    asks: Mapping[str, tuple[str, ...]]
    """By the generator's word: connect, echo, fanout."""


def plain(name: str, pid: int, port: int) -> Contender:
    echo, room = ("--path", "/ws"), ("--path", "/room")
    asks = {"connect": echo, "echo": echo, "fanout": room}
    return Contender(name, pid, port, asks)


def ours(pid: int, port: int, token: str) -> list[Contender]:
    """The service, by each of its strategies that needs no page."""
    query = f"/ws/query-param/echo?token={token}"
    room = ("--path", f"/ws/query-param?token={token}", "--first", JOIN)
    by_query = {
        "connect": ("--path", query),
        "echo": ("--path", query),
        "fanout": (*room, "--wait", "joined", *PUBLISH),
    }
    auth = json.dumps({"type": "auth", "token": token}, separators=(",", ":"))
    first = ("--path", "/ws/first-message/echo", "--first", auth, "--wait", "auth_ok")
    refused = ("--path", "/ws/query-param/echo?token=abc")
    return [
        Contender("authws, query_param", pid, port, by_query),
        Contender("authws, first_message", pid, port, {"connect": first}),
        Contender("authws, a refused token", pid, port, {"connect": refused}),
    ]


def nats(pid: int, port: int) -> Contender:
    ping = r"PING\r\n"
    asks = {
        "connect": (*OF_NATS, "--first", HELLO + ping),
        "fanout": (
            *(*OF_NATS, "--first", HELLO + r"SUB r 1\r\n" + ping),
            *("--pre", r"PUB r 128\r\n"),
        ),
    }
    return Contender(NATS, pid, port, asks)


# ---------------------------------------------------------------------- the servers


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@asynccontextmanager
async def running(
    *command: str, core: int | None, port: int, **environment: str
) -> AsyncIterator[int]:
    """Run a server until the block ends; yield its process id."""
    pinned = [] if core is None else ["taskset", "-c", str(core)]
    process = await asyncio.create_subprocess_exec(
        *(*pinned, *command),
        env={**os.environ, **environment},
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        async with asyncio.timeout(START_TIMEOUT):
            while not _listens(port):
                assert process.returncode is None, f"{command[0]} did not start"
                await asyncio.sleep(0.05)
        yield process.pid
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        await process.wait()


def _listens(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
        return True
    return False


@asynccontextmanager
async def everybody(core: int | None) -> AsyncIterator[list[Contender]]:
    """All servers at once; only one at a time has work."""
    async with AsyncExitStack() as stack:
        contenders = []
        for name, module in (
            (FLOOR, "naive_fastapi"),
            ("websockets", "plain_websockets"),
        ):
            port = free_port()
            command = (sys.executable, "-m", f"bench.contenders.{module}", str(port))
            run = running(*command, core=core, port=port)
            contenders.append(plain(name, await stack.enter_async_context(run), port))
        if shutil.which(NATS):
            port = free_port()
            run = running(
                *(NATS, "-c", str(HERE / "contenders" / "nats.conf")),
                core=core,
                port=port,
                GOMAXPROCS="1",
                BENCH_PORT=str(port),
                BENCH_NATS_PORT=str(free_port()),
            )
            contenders.append(nats(await stack.enter_async_context(run), port))
        service = await stack.enter_async_context(
            served(
                ("alice",),
                core=core,
                max_connections_per_user=0,
                message_rate=0,
                byte_rate=0,
            )
        )
        token = await service.token("alice")
        yield [*contenders, *ours(service.pid, service.port, token)]


# --------------------------------------------------------------------- the generator


def build(directory: str) -> str:
    """Compile the load generator; return its path."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    assert compiler, "a C compiler is needed: apt-get install gcc libc6-dev"
    program = f"{directory}/wsload"
    source = str(HERE / "wsload.c")
    subprocess.run([compiler, "-O2", "-o", program, source], check=True)  # noqa: S603
    return program


async def load(
    wsload: str, core: int | None, one: Contender, work: Sequence[str], seconds: float
) -> float:
    """Load a server; return what it did per second."""
    pinned = [] if core is None else ["taskset", "-c", str(core)]
    process = await asyncio.create_subprocess_exec(
        *(*pinned, wsload, *work, "-p", str(one.port)),
        *("-d", str(seconds), "--warm", "0.3"),
        *one.asks[work[0]],
        stdout=asyncio.subprocess.PIPE,
    )
    output, _ = await process.communicate()
    result = json.loads(output.decode().strip().splitlines()[-1])
    wrong = [key for key in ("io_err", "timeouts", "proto_err") if result.get(key)]
    assert not wrong, f"{one.name}, {' '.join(work)}: {result}"
    return float(result["rate"])


# ------------------------------------------------------------------------- the result

Rates = dict[str, dict[str, list[float]]]
"""By measure and contender, one for each round."""


def results_table(rates: Rates) -> str:
    rows: list[list[object]] = []
    for measure, by_name in rates.items():
        for name, rounds in by_name.items():
            row: list[object] = [measure, name, f"{statistics.median(rounds):,.0f}"]
            for base in (FLOOR, NATS):
                others = by_name.get(base)
                ratios = sorted(
                    a / b for a, b in zip(rounds, others or (), strict=False)
                )
                row.append(
                    f"{statistics.median(ratios):.2f} ({ratios[0]:.2f} to "
                    f"{ratios[-1]:.2f})"
                    if ratios and base != name
                    else "1"
                    if base == name
                    else ""
                )
            rows.append(row)
    head = ["what, per second", "server", "median", "x floor", "x nats-server"]
    return reporting.table(head, rows, left=2)


def ratio(rounds: list[float], others: list[float] | None) -> str:
    """Median and spread of the ratios within each round."""
    if others is None:
        return ""
    ratios = sorted(a / b for a, b in zip(rounds, others, strict=True))
    return f"{statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})"


def draw(rates: Rates) -> None:
    with reporting.picture("compare", size=(7.5, 4.2)) as (axes,):
        names = list(dict.fromkeys(name for by in rates.values() for name in by))
        measures = list(rates)
        width = 0.8 / len(names)
        for number, name in enumerate(names):
            places, heights = [], []
            for at, measure in enumerate(measures):
                if name in rates[measure]:
                    base = rates[measure][FLOOR]
                    ratios = [
                        a / b for a, b in zip(rates[measure][name], base, strict=True)
                    ]
                    places.append(at + (number - len(names) / 2 + 0.5) * width)
                    heights.append(statistics.median(ratios))
            axes.bar(places, heights, width, label=name)
        axes.set_yscale("log")
        axes.set_xticks(
            range(len(measures)), [m.replace(", ", "\n") for m in measures], fontsize=7
        )
        axes.axhline(1, color="#888888", linewidth=0.8)
        axes.set(title="Per second, as a multiple of plain FastAPI's (log scale)")
        axes.yaxis.set_major_formatter("{x:g}")
        axes.legend(loc="upper left", fontsize=7)


async def main(arguments: argparse.Namespace) -> None:
    cores = use_cores()
    watched, progress = Load(), Progress()
    rates: Rates = {measure: {} for measure in MEASURES}
    async with asyncio.timeout(BOUND), everybody(cores.server) as contenders:
        with tempfile.TemporaryDirectory(prefix="authws-bench-") as directory:
            wsload = build(directory)
            for number in range(arguments.rounds):
                order = contenders if number % 2 == 0 else contenders[::-1]
                with watched.watching(lambda: 0.0):
                    for measure, work in MEASURES.items():
                        for one in order:
                            if work[0] not in one.asks:
                                continue
                            rate = await load(
                                wsload, cores.generator, one, work, arguments.seconds
                            )
                            rates[measure].setdefault(one.name, []).append(rate)
                            progress(
                                f"round {number + 1} of {arguments.rounds}: "
                                f"{measure}, {one.name}: {rate:,.0f}"
                            )
    names = [one.name for one in contenders]
    rates = {
        measure: {name: by[name] for name in names if name in by}
        for measure, by in rates.items()
    }
    body = f"{results_table(rates)}\n\nMedians of {arguments.rounds} rounds."
    print(body)
    if arguments.write:
        load_at_start = watched.describe().partition(";")[0]
        reporting.write_section(
            "compare", body, cores_apart=cores.are_apart, load=load_at_start
        )
        draw(rates)


if __name__ == "__main__":
    parser = reporting.options(__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--seconds", type=float, default=1.5, help="of each measurement"
    )
    uvloop.run(main(parser.parse_args()))
