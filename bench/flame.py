"""Where the server's time goes: flame graphs of a handshake load and of a busy room.

py-spy looks at the server 250 times a second while the load generator keeps it busy;
the wider a function, the more often it was seen. What it calls stands below it.

    python -m bench.flame [--seconds 8]
"""

from __future__ import annotations

import argparse
import asyncio
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path

from bench import document, reporting
from bench.contending import FIRST_MESSAGE, QUERY_PARAM, Started, started
from bench.generator import Generator, generator
from bench.reporting import IMAGES, Load, Progress
from bench.served import use_cores

RATE = 250
"""Samples per second."""
LARGEST = 400_000
"""Bytes of a picture."""
AHEAD = 1.0
"""Seconds of load before it looks, and after."""
LOOP = "Runner.run (asyncio/runners.py"
STANDARD = ("asyncio/", "concurrent/", "logging/", "json/", "collections/", "email/")
WIDTH, TOP, ROW, MARGIN = 1200, 34, 17, 8
LEAST = 1.0
"""Pixels of a box that is drawn."""
COLOURS = {
    "authws": ("#c2410c", "white"),
    "libraries": ("#94a3b8", "black"),
    "Python": ("#e2e8f0", "black"),
}
"""Of a box and of the words in it, by whose code it is."""

WORK: dict[str, tuple[str, Sequence[str], str]] = {
    "handshake": (
        FIRST_MESSAGE.name,
        ("connect", "-c", "32"),
        "one handshake after another, first_message",
    ),
    "fanout": (
        QUERY_PARAM.name,
        ("fanout", "-c", "100", "-b", "128", "-w", "16"),
        "messages into a room of 100, window 16",
    ),
}


async def record(one: Started, seconds: float) -> Node:
    """Look at the server for a while; return what it was seen doing.

    Only at what has the interpreter, so that threads that wait are no part of it.
    """
    spy = shutil.which("py-spy", path=str(Path(sys.executable).parent))
    assert spy, "py-spy is not installed: make bench-flame installs it"
    with tempfile.TemporaryDirectory(prefix="authws-bench-") as directory:
        raw = Path(directory, "raw")
        process = await asyncio.create_subprocess_exec(
            *(spy, "record", "--pid", str(one.running.pid), "--output", str(raw)),
            *("--duration", f"{seconds:.0f}", "--rate", str(RATE)),
            *("--format", "raw", "--nolineno", "--gil"),
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
        )
        _, errors = await process.communicate()
        assert process.returncode == 0, errors.decode()
        return read(raw)


@dataclass
class Node:
    """A function, as called from where it was called."""

    name: str
    seen: int = 0
    calls: dict[str, Node] = field(default_factory=dict)

    def add(self, stack: Sequence[str], seen: int) -> None:
        node = self
        node.seen += seen
        for name in stack:
            node = node.calls.setdefault(name, Node(name))
            node.seen += seen

    @property
    def depth(self) -> int:
        return 1 + max((one.depth for one in self.calls.values()), default=0)


def read(raw: Path) -> Node:
    """Read py-spy's stacks, from the event loop on: what started it says nothing."""
    root = Node("the event loop")
    for line in raw.read_text(encoding="utf-8").splitlines():
        stack, _, seen = line.rpartition(" ")
        frames = stack.split(";")
        for number, frame in enumerate(frames):
            if frame.startswith(LOOP):
                root.add(frames[number + 1 :], int(seen))
    return root


# ------------------------------------------------------------------------ the picture


def picture(root: Node, title: str) -> str:
    """An SVG without scripts: who reads it sees it in a document."""
    height = TOP + ROW * root.depth + MARGIN
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" '
        f'viewBox="0 0 {WIDTH} {height}" font-family="monospace" font-size="11">',
        '<rect width="100%" height="100%" fill="white"/>',
        f'<text x="{MARGIN}" y="20" font-family="sans-serif" font-size="14">'
        f"{escape(title)}</text>",
    ]
    x = WIDTH - MARGIN
    for words, (fill, _) in reversed(COLOURS.items()):
        x -= 7 * len(words) + 24
        lines += [
            f'<rect x="{x}" y="10" width="12" height="12" fill="{fill}"/>',
            f'<text x="{x + 16}" y="20">{words}</text>',
        ]
    lines += boxes(root, MARGIN, TOP, (WIDTH - 2 * MARGIN) / max(1, root.seen), root)
    return "\n".join((*lines, "</svg>", ""))


def boxes(node: Node, x: float, y: int, scale: float, root: Node) -> Iterator[str]:
    """A box as wide as it was often seen, and those of its calls below it."""
    width = node.seen * scale
    if width < LEAST:
        return
    fill, ink = COLOURS[whose(node.name)]
    share = f"{node.seen / root.seen:.1%}"
    fitting = int((width - 6) / 6.7)
    words = f"{node.name.partition(' (')[0]} {share}"
    label = words if len(words) <= fitting else node.name.partition(" (")[0][:fitting]
    yield f"<g><title>{escape(node.name)}: {share}</title>"
    yield (
        f'<rect x="{x:.1f}" y="{y}" width="{width:.1f}" height="{ROW - 1}" '
        f'fill="{fill}" stroke="white" stroke-width="0.5"/>'
    )
    if fitting > 2:
        yield f'<text x="{x + 3:.1f}" y="{y + 12}" fill="{ink}">{escape(label)}</text>'
    yield "</g>"
    for call in sorted(node.calls.values(), key=lambda one: -one.seen):
        yield from boxes(call, x, y + ROW, scale, root)
        x += call.seen * scale


def whose(name: str) -> str:
    """Whose code a function is."""
    file = name.partition(" (")[2]
    if file.startswith("authws/"):
        return "authws"
    return "libraries" if "/" in file and not file.startswith(STANDARD) else "Python"


async def draw(
    name: str, everybody: Sequence[Started], wsload: Generator, seconds: float
) -> str:
    """One flame graph, as an SVG."""
    contender, work, what = WORK[name]
    one = next(one for one in everybody if one.name == contender)
    loading = asyncio.create_task(
        wsload.load(
            work,
            one.ask(work[0]),
            ports=[one.running.port],
            pids=[one.running.pid],
            seconds=seconds + 2 * AHEAD,
        )
    )
    await asyncio.sleep(AHEAD)
    root = await record(one, seconds)
    await loading
    text = picture(root, f"authws serve, {what}: {root.seen:,} samples")
    assert len(text) < LARGEST, f"the flame graph has {len(text):,} bytes"
    return text


async def main(arguments: argparse.Namespace) -> None:
    cores = use_cores()
    load, progress = Load(), Progress(len(WORK))
    texts: dict[str, str] = {}
    with generator(cores) as wsload:
        contenders = (FIRST_MESSAGE, QUERY_PARAM)
        async with started(contenders, cores.server) as (everybody, _):
            for name in WORK:
                progress.step()
                texts[name] = await draw(name, everybody, wsload, arguments.seconds)
                progress(f"{name}: {len(texts[name]):,} bytes", always=True)
    if arguments.write:
        for name, text in texts.items():
            (IMAGES / f"flame-{name}.svg").write_text(text, encoding="utf-8")
        pictures = (
            f"![Where the time goes: {what}](images/flame-{name}.svg)"
            for name, (_, _, what) in WORK.items()
        )
        load_at_start = load.describe().partition(";")[0]
        document.write(
            "flame", "\n\n".join(pictures), {}, cores=cores, load=load_at_start
        )


if __name__ == "__main__":
    parser = reporting.options(__doc__)
    parser.add_argument("--seconds", type=float, default=8, help="of each recording")
    reporting.run(main(parser.parse_args()))
