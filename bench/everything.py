"""All benchmarks but the soak, one after another: `make bench`.

Each is a process of its own, as if it were run by its own command, and writes its own
section of docs/performance.md; each tells how long all of them will take. One that
fails leaves its section as it was, and the others go on. At the end stand the goals.

    python -m bench.everything [--only compare,growth] [--quick]
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

from bench import document, goals, reporting
from bench.reporting import EXPECTED, LATER, PART

MINUTE = 60


@dataclass(frozen=True)
class Part:
    """One benchmark, how many seconds it takes, and how it is only tried out."""

    name: str
    seconds: float
    quick: str


PARTS = (
    Part("compare", 20 * MINUTE, "--rounds 1 --seconds 0.3 --connections 1000"),
    Part("growth", 14 * MINUTE, "--rounds 1 --seconds 0.3"),
    Part("held", 2.5 * MINUTE, "--connections 1000"),
    Part("footprint", 0.5 * MINUTE, "--connections 500"),
    Part("revocation", 6 * MINUTE, "--connections 1000 --revocations 20"),
    Part("workers", 10 * MINUTE, "--rounds 1 --seconds 0.3"),
    Part("presence", 4 * MINUTE, "--steps 10,100 --times 20"),
    Part("quarantine", 4.5 * MINUTE, "--strangers 200 --rounds 1 --seconds 2"),
    Part("stalled_peer", 10 * MINUTE, "--rounds 1 --seconds 1"),
    Part("login_burst", 2 * MINUTE, "--rounds 1 --logins 40"),
    Part("flame", 0.7 * MINUTE, "--seconds 2"),
    Part("scaling", 0.2 * MINUTE, ""),
)
QUICK = 40.0
"""Seconds that a part takes which is only tried out."""


def run(part: Part, number: int, parts: Sequence[Part], *, quick: bool) -> bool:
    """Run one of the parts; tell whether it went well."""
    expected = [QUICK if quick else one.seconds for one in parts]
    options = ["--patience", "0", "--no-write", *part.quick.split()] if quick else []
    environment = {
        PART: f"{number + 1} of {len(parts)}",
        EXPECTED: str(expected[number]),
        LATER: str(sum(expected[number + 1 :])),
    }
    left = reporting.seconds_left(sum(expected[number:]))
    print(f"\n=== {part.name}: part {environment[PART]}, {left}", file=sys.stderr)
    command = [sys.executable, "-m", f"bench.{part.name}", *options]
    with subprocess.Popen(  # noqa: S603 - our own modules
        command, env={**os.environ, **environment}
    ) as process:
        # who ends us ends the part too, and that ends its servers
        signal.signal(signal.SIGTERM, lambda *_: _stop(process))
        return process.wait() == 0


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    raise SystemExit(128 + signal.SIGTERM)


def main(arguments: argparse.Namespace) -> int:
    """Run the parts; return the exit status."""
    chosen = arguments.only.split(",") if arguments.only else []
    assert {*chosen} <= {part.name for part in PARTS}, f"no such part: {arguments.only}"
    parts = [part for part in PARTS if not chosen or part.name in chosen]
    started = time.monotonic()
    failed = [
        part.name
        for number, part in enumerate(parts)
        if not run(part, number, parts, quick=arguments.quick)
    ]
    print(f"\n{goals.report(document.results())}")
    minutes = (time.monotonic() - started) / MINUTE
    print(f"\n{len(parts)} benchmarks in {minutes:.0f} minutes", file=sys.stderr)
    if failed:
        print(f"*** FAILED: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--only",
        default="",
        metavar="PARTS",
        help=f"some of {','.join(part.name for part in PARTS)}",
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="only try each of them out: a few minutes in all, and nothing is written",
    )
    sys.exit(main(parser.parse_args()))
