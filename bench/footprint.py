"""Where the memory of an idle connection goes: which part of the code asked for it.

Opens idle authenticated connections to one service, with Python's own tracer on, and
divides what is held more than before by their number. What the tracer does not see
(libuv's own memory, the gaps between what is held) is the rest of the resident memory,
which ``bench.held`` measures.

    python -m bench.footprint [--connections 2000] [--no-write]
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

from bench import document, reporting
from bench.peers import Credential, Peer, connect
from bench.reporting import Load, Progress
from bench.served import Served, served, use_cores

AT_ONCE = 64
WARM_UP = 300
BOUND = 600.0

PARTS = {
    "the protocol: frames, deadlines": ("service/protocols/",),
    "the connection: its life, outbox, writer, deadline": (
        *("live/connection.py", "live/outbox.py", "live/writers.py"),
        *("live/deadline.py", "live/turn.py", "decisions/lifecycle.py", "/clock.py"),
    ),
    "the door and the hub: who is here": ("live/door.py", "live/hub.py"),
    "the handshake, the principal and the session's record": (
        *("strategies/", "principal.py", "live/authority.py", "decisions/"),
        "stores/",
    ),
    "coroutines of the app, waiting": ("service/app.py", "service/gate.py"),
    "uvloop and asyncio: transport, socket, task": ("asyncio/", "uvloop", "uvicorn"),
}
"""By what stands in a file's name; the first that fits."""
OTHER = "everything else"


async def ask(window: Path, question: str) -> dict[str, Any]:
    """Ask at the window; see bench/watched.py."""
    reader, writer = await asyncio.open_unix_connection(str(window), limit=2**20)
    writer.write(question.encode() + b"\n")
    answer = dict(json.loads(await reader.readline()))
    writer.close()
    return answer


async def fill(server: Served, count: int, credential: Credential) -> list[Peer]:
    peers: list[Peer] = []
    left = itertools.repeat(None, count)

    async def opener() -> None:
        for _ in left:
            peers.append(await connect(server, credential))

    await asyncio.gather(*(opener() for _ in range(AT_ONCE)))
    return peers


async def drop(peers: list[Peer]) -> None:
    for peer in peers:
        peer.close()
    await asyncio.gather(*(peer.wait_closed() for peer in peers))


def by_part(holds: dict[str, int], connections: int) -> dict[str, float]:
    """Bytes of a connection, by the part of the code that asked for them."""
    parts: Counter[str] = Counter()
    for name, size in holds.items():
        part = next(
            (part for part, files in PARTS.items() if any(f in name for f in files)),
            OTHER,
        )
        parts[part] += size
    return {part: size / connections for part, size in parts.most_common()}


def table(parts: dict[str, float]) -> str:
    traced = sum(parts.values())
    rows: list[list[object]] = [
        [part, f"{size / 1000:.1f}"] for part, size in parts.items() if size >= 50
    ]
    rows.append(["seen by the tracer", f"{traced / 1000:.1f}"])
    return reporting.table(["an idle connection's memory", "kB"], rows)


async def main(arguments: argparse.Namespace) -> None:
    cores, load, progress = use_cores(), Load(), Progress()
    async with asyncio.timeout(BOUND):
        with tempfile.TemporaryDirectory(prefix="authws-bench-") as directory:
            window = Path(directory) / "window"
            async with served(
                ("alice",),
                core=cores.server,
                program=("-m", "bench.watched", str(window)),
                max_connections_per_user=0,
                access_ttl=3600,
            ) as server:
                token = await server.token("alice")
                credential = Credential("query-param", token)
                await drop(await fill(server, WARM_UP, credential))
                await ask(window, "trace")
                progress(f"opening {arguments.connections:,} connections", always=True)
                peers = await fill(server, arguments.connections, credential)
                holds = (await ask(window, "holds"))["holds"]
                await drop(peers)
    parts = by_part(holds, arguments.connections)
    body = table(parts)
    print(body)
    if arguments.write:
        load_at_start = load.describe().partition(";")[0]
        document.write("footprint", body, {}, cores=cores, load=load_at_start)


if __name__ == "__main__":
    parser = reporting.options(__doc__)
    parser.add_argument("--connections", type=int, default=2000)
    reporting.run(main(parser.parse_args()))
