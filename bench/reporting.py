"""What the benchmarks share: their command line, progress, tables and pictures."""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import uvloop

__all__ = [
    "IMAGES",
    "Load",
    "Progress",
    "Watch",
    "can_draw",
    "digits",
    "megabytes",
    "milliseconds",
    "options",
    "percentile",
    "picture",
    "run",
    "seconds_left",
    "table",
]

Result = TypeVar("Result")

ROOT = Path(__file__).parent.parent
IMAGES = ROOT / "docs" / "images"
PART, EXPECTED, LATER = "BENCH_PART", "BENCH_EXPECTED", "BENCH_LATER"
"""What `bench.everything` tells its parts: which they are, how many seconds each takes,
and how many those after it take."""
DISTURBED = 0.15
"""Share of one core that others may use before a measurement is made again."""


def options(description: str | None) -> argparse.ArgumentParser:
    """The command line that all of them have."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--no-write",
        dest="write",
        action="store_false",
        help="leave docs/performance.md and its pictures as they are",
    )
    parser.add_argument(
        "--patience",
        type=float,
        default=60,
        metavar="SECONDS",
        help="how long to wait, before each round, for others to use the machine less",
    )
    return parser


def run(main: Coroutine[Any, Any, Result]) -> Result:
    """Run a benchmark. SIGTERM ends it as Ctrl-C does: with the servers it started."""

    async def until_told() -> Result:
        task = asyncio.current_task()
        assert task is not None
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
        return await main

    try:
        return uvloop.run(until_told())
    except asyncio.CancelledError:
        raise SystemExit(128 + signal.SIGTERM) from None


# ------------------------------------------------------------------------- numbers


def percentile(values: Sequence[float], percent: float) -> float:
    """The value below which ``percent`` of them lie (nearest rank)."""
    ordered = sorted(values)
    rank = round(percent / 100 * len(ordered) + 0.5)
    return ordered[min(len(ordered), max(1, rank)) - 1]


def milliseconds(seconds: float) -> str:
    """As text, with as many digits as mean something."""
    return digits(seconds * 1000)


def digits(value: float) -> str:
    """As text, with as many as mean something."""
    return f"{value:,.{0 if value >= 100 else 1 if value >= 10 else 2}f}"


def megabytes(size: float) -> str:
    """As text."""
    return f"{size / 1e6:,.1f}"


# ------------------------------------------------------------------------ progress


class Progress:
    """One line that tells how far it is: rewritten, or now and then a new one.

    With the number of its steps it tells how long it will take; as a part of all
    benchmarks (`make bench`) also how long they will.
    """

    EVERY = 5.0
    """Seconds between two lines where a line cannot be rewritten."""

    def __init__(self, steps: int = 0) -> None:
        self._is_terminal = sys.stderr.isatty()
        self._started = time.monotonic()
        self._last = 0.0
        self._width = 0
        self._steps = steps
        self._done = 0
        self._first = self._started
        self._part = os.environ.get(PART, "")
        self._expected = float(os.environ.get(EXPECTED, 0))
        self._later = float(os.environ.get(LATER, 0))

    def step(self) -> None:
        """Another of the steps begins; what stands before the first is none."""
        if not self._done:
            self._first = time.monotonic()
        self._done += 1

    def __call__(self, text: str, *, always: bool = False) -> None:
        """Show where it is now; ``always`` begins a new line after it."""
        now = time.monotonic()
        line = f"{now - self._started:6.1f} s  {self._outlook(now)}{text}"
        if self._is_terminal:
            print(f"\r{line:<{self._width}}", end="", file=sys.stderr, flush=True)
            self._width = len(line)
            if always:
                print(file=sys.stderr)
        elif always or now - self._last >= self.EVERY:
            print(line, file=sys.stderr, flush=True)
            self._last = now

    def _outlook(self, now: float) -> str:
        if self._done > 1:
            each = (now - self._first) / (self._done - 1)
            left = each * (self._steps - self._done + 1)
        elif self._expected:
            left = max(0.0, self._expected - (now - self._started))
        else:
            return ""
        if not self._part:
            return f"[{seconds_left(left)}] "
        return f"[part {self._part}, {seconds_left(left + self._later)}] "


def seconds_left(seconds: float) -> str:
    """As one says it."""
    if seconds < 90:
        return f"about {seconds:.0f} s left"
    return f"about {seconds / 60:.0f} min left"


# ----------------------------------------------------------- who else uses the machine


class Load:
    """How busy the machine is, with what is not this benchmark's."""

    def __init__(self) -> None:
        self._at_start = os.getloadavg()[0]
        self._elapsed = self._others = 0.0
        self._again = 0

    @contextmanager
    def watching(self, server_cpu: Callable[[], float]) -> Iterator[Watch]:
        """Watch the others while the block runs.

        ``server_cpu`` tells the processor time that the server has used so far.
        """
        watch = Watch(server_cpu)
        try:
            yield watch
        finally:
            self._elapsed += watch.elapsed
            self._others += watch.others

    async def wait_for_quiet(
        self, server_cpu: Callable[[], float], progress: Progress, within: float
    ) -> None:
        """Wait until others let two seconds pass without much work, or long enough."""
        until = time.monotonic() + within
        while time.monotonic() < until:
            watch = Watch(server_cpu)
            await asyncio.sleep(2)
            if watch.share <= DISTURBED:
                return
            progress(f"others use {watch.share:.0%} of a core: waiting for quiet")

    def is_disturbed(self, watch: Watch, left: int) -> bool:
        """Tell whether a measurement should be made again; ``left`` times at most."""
        again = watch.share > DISTURBED and self._again < left
        self._again += again
        return again

    def describe(self) -> str:
        """As the document says it."""
        share = self._others / self._elapsed if self._elapsed else 0.0
        text = (
            f"load average {self._at_start:.2f} at the start; while it measured, "
            f"others used {share:.0%} of one core"
        )
        if self._again:
            text += (
                f"; {self._again} rounds were measured again, as others used more "
                f"than {DISTURBED:.0%} during them"
            )
        return text


class Watch:
    """What others use of the processors, from now on."""

    def __init__(self, server_cpu: Callable[[], float]) -> None:
        self._server_cpu = server_cpu
        self._started = time.monotonic()
        self._before = self._others()

    @property
    def elapsed(self) -> float:
        """Seconds."""
        return time.monotonic() - self._started

    @property
    def others(self) -> float:
        """Seconds of processor time that others have used."""
        return max(0.0, self._others() - self._before)

    @property
    def share(self) -> float:
        """The same, as a share of one core."""
        return self.others / max(self.elapsed, 0.01)

    def _others(self) -> float:
        own = sum(os.times()[:4])  # with those of the generators that have ended
        return _busy() - own - self._server_cpu()


def _busy() -> float:
    """Seconds of processor time that all processes have used, or the host took.

    Without interrupts: those of a loopback benchmark are its own.
    """
    fields = Path("/proc/stat").read_text(encoding="ascii").splitlines()[0].split()[1:]
    user, nice, system, _, _, _, _, steal, *_ = map(int, fields)
    return (user + nice + system + steal) / os.sysconf("SC_CLK_TCK")


# ------------------------------------------------------------------------- results


def table(
    head: Sequence[str], rows: Sequence[Sequence[object]], *, left: int = 1
) -> str:
    """A Markdown table; the first ``left`` columns are words, the others figures."""
    texts = [list(map(str, row)) for row in (head, *rows)]
    widths = [
        max(3, *(len(row[column]) for row in texts)) for column in range(len(head))
    ]
    lines = [
        "| "
        + " | ".join(
            cell.ljust(width) if column < left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        + " |"
        for row in texts
    ]
    rule = (
        "-" * (width + 2) if column < left else "-" * (width + 1) + ":"
        for column, width in enumerate(widths)
    )
    lines.insert(1, "|" + "|".join(rule) + "|")
    return "\n".join(lines)


# ------------------------------------------------------------------------ pictures


@contextmanager
def picture(
    name: str,
    *,
    rows: int = 1,
    columns: int = 1,
    size: tuple[float, float],
    **options: Any,
) -> Iterator[list[Any]]:
    """Yield the axes to draw on, row by row; writes ``docs/images/NAME.svg``.

    ``options`` are those of matplotlib's ``subplots``.
    """
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    style = {
        # text stays text, and the same figures make the same file
        "svg.fonttype": "none",
        "svg.hashsalt": name,
        "font.family": "sans-serif",
        "font.size": 10,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "grid.color": "#e4e4e4",
        "axes.axisbelow": True,
        "axes.titlesize": 10.5,
        "axes.titlelocation": "left",
        "legend.frameon": False,
        "figure.facecolor": "white",  # also where the page around it is dark
        "savefig.facecolor": "white",
    }
    with pyplot.rc_context(style):
        figure, axes = pyplot.subplots(
            rows, columns, figsize=size, layout="constrained", squeeze=False, **options
        )
        yield list(axes.flat)
        IMAGES.mkdir(exist_ok=True)
        path = IMAGES / f"{name}.svg"
        figure.savefig(path, metadata={"Date": None})
        pyplot.close(figure)
    lines = path.read_text(encoding="utf-8").splitlines()
    path.write_text("\n".join(line.rstrip() for line in lines) + "\n", encoding="utf-8")


def can_draw() -> bool:
    """Whether matplotlib is here (`make bench-…` installs it)."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        return False
    return True
