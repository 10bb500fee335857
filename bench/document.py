"""docs/performance.md: sections between markers, each of which a benchmark writes.

The figures behind a section are kept beside it (`bench/results/NAME.json`), so that the
table of goals can be made from all of them, whenever they were measured.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from bench import goals
from bench.served import Cores

__all__ = ["between", "results", "write"]

ROOT = Path(__file__).parent.parent
DOCUMENT = ROOT / "docs" / "performance.md"
RESULTS = ROOT / "bench" / "results"
PACKAGES = ("uvicorn", "websockets", "uvloop", "starlette")


def write(
    name: str, body: str, figures: dict[str, Any], *, cores: Cores, load: str
) -> None:
    """Write what was measured, with the figures that the goals are read from."""
    measured = _machine(cores.are_apart, load)
    RESULTS.mkdir(exist_ok=True)
    text = json.dumps({"measured": measured, "figures": figures}, indent=1)
    (RESULTS / f"{name}.json").write_text(text + "\n", encoding="utf-8")
    _put(name, f"{measured}\n\n{body.strip()}")
    _put("goals", goals.report(results()))


def results() -> dict[str, dict[str, Any]]:
    """The figures of every benchmark that has been run, by its name."""
    return {
        path.stem: json.loads(path.read_text(encoding="utf-8"))["figures"]
        for path in sorted(RESULTS.glob("*.json"))
    }


def _put(name: str, text: str) -> None:
    """Put a text between its markers in the document."""
    document = DOCUMENT.read_text(encoding="utf-8")
    document = between(document, f"{name}: measured", f"{name}: end", text)
    DOCUMENT.write_text(document, encoding="utf-8")


def between(document: str, begin: str, end: str, text: str) -> str:
    """Return a document with this text between two of its markers."""
    before, _, rest = document.partition(f"<!-- {begin} -->")
    _, found_end, after = rest.partition(f"<!-- {end} -->")
    assert found_end, f"the document has no markers for {begin}"
    return f"{before}<!-- {begin} -->\n\n{text.strip()}\n\n<!-- {end} -->{after}"


def _machine(cores_apart: bool, load: str) -> str:
    """Where, with what and when this was measured."""
    packages = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    where = (
        "server and generator each on a core of its own"
        if cores_apart
        else "server and generator share the cores"
    )
    return (
        f"Measured {datetime.now(UTC):%Y-%m-%d %H:%M} UTC at {_revision()}: "
        f"{os.cpu_count()} cores of {_processor()}, {_memory()}, "
        f"{platform.system()} {platform.release().partition('-')[0]}, "
        f"Python {platform.python_version()}, {packages}; loopback, {where}; {load}."
    )


def _revision() -> str:
    git = ["git", "-C", str(ROOT)]
    try:
        commit = subprocess.check_output(  # noqa: S603
            [*git, "rev-parse", "--short", "HEAD"], text=True
        ).strip()
        changed = subprocess.check_output(  # noqa: S603
            [*git, "status", "--porcelain", "--", "authws"], text=True
        )
    except (OSError, subprocess.CalledProcessError):
        return f"version {version('authws')}"
    return f"commit {commit}" + (", modified" if changed else "")


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _memory() -> str:
    line = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()[0]
    return f"{int(line.split()[1]) / 2**20:.0f} GiB"


if __name__ == "__main__":
    _put("goals", goals.report(results()))
