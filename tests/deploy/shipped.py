"""What stands in deploy/, read as whoever runs it reads it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from authws.service.settings import Settings
from tests.requirements import require

__all__ = [
    "CONTAINERFILE",
    "DEPLOY",
    "ROOT",
    "a_copy",
    "by_module",
    "compose",
    "configured",
    "documents",
    "environment",
    "files",
    "hadolint",
    "make_secrets",
    "seconds",
]

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
CONTAINERFILE = DEPLOY / "container" / "Containerfile"
TOOLS = Path(__file__).parent / ".tools"
MISSING = "scripts/deploy_tools.sh has not installed it"

INTERPOLATED = re.compile(r"\$\{(\w+):\?[^}]*\}|\$\$")
APPENDED = {"secrets", "configs", "volumes", "tmpfs", "ports"}


def files() -> Iterator[Path]:
    """Every file that is shipped; what secrets.sh makes is not."""
    for file in sorted(DEPLOY.rglob("*")):
        made = file.name == ".env" or file.parent.name == "secrets"
        if file.is_file() and not made and "__pycache__" not in file.parts:
            yield file


def documents(file: Path) -> list[dict[str, Any]]:
    """The YAML documents of a file."""
    return list(yaml.safe_load_all(file.read_text(encoding="utf-8")))


def compose(broker: str, **variables: str) -> dict[str, Any]:
    """The deployment with this broker, merged and interpolated as Compose does.

    Only what the shipped files use of either: mappings are merged, lists of some keys
    are joined, and everything else is replaced; ``${NAME:?…}`` and ``$$``.
    """
    merged: dict[str, Any] = {}
    for name in ("compose.yaml", f"compose.{broker}.yaml"):
        text = (DEPLOY / "compose" / name).read_text(encoding="utf-8")
        text = INTERPOLATED.sub(
            lambda found: variables[found[1]] if found[1] else "$", text
        )
        merged = _merged(merged, yaml.safe_load(text))
    return {key: value for key, value in merged.items() if not key.startswith("x-")}


def _merged(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    result = dict(under)
    for key, value in over.items():
        below = result.get(key)
        if isinstance(below, Mapping) and isinstance(value, Mapping):
            result[key] = _merged(below, value)
        elif isinstance(below, list) and isinstance(value, list) and key in APPENDED:
            result[key] = below + value
        else:
            result[key] = value
    return result


def a_copy(folder: Path) -> Path:
    """Copy what Compose is run with, to make secrets beside it."""
    copy = folder / "compose"
    ignore = shutil.ignore_patterns("secrets", ".env")
    shutil.copytree(DEPLOY / "compose", copy, ignore=ignore)
    return copy


def make_secrets(folder: Path, *brokers: str) -> subprocess.CompletedProcess[str]:
    """Run secrets.sh in a copy of the folder."""
    return subprocess.run(
        ["sh", folder / "secrets.sh", *brokers],
        capture_output=True,
        text=True,
        timeout=30,
    )


def environment(deployment: dict[str, Any], folder: Path) -> dict[str, str]:
    """What a service is told, its secrets being where they were made."""
    told = deployment["services"]["authws-1"]["environment"]
    return {
        name: value.replace("/run/secrets/", f"{folder}/secrets/")
        for name, value in told.items()
    }


def seconds(text: str) -> int:
    """Read a duration as Compose and nginx write them."""
    found = re.fullmatch(r"(\d+)(s|m)", text)
    assert found is not None, text
    return int(found[1]) * {"s": 1, "m": 60}[found[2]]


def configured(environment: Mapping[str, str]) -> Settings:
    """The settings that a process with this environment has, and nothing beside it."""
    given = {
        name.removeprefix("AUTHWS_").lower(): value
        for name, value in environment.items()
        if name.startswith("AUTHWS_")
    }
    assert given.keys() <= Settings.model_fields.keys()
    return Settings(_env_file=None, **given)  # type: ignore[arg-type]


def hadolint() -> str:
    """Where the linter of container files is."""
    program = TOOLS / "bin" / "hadolint"
    require("hadolint", program.exists(), MISSING)
    return str(program)


def by_module(module: str, code: str, given: str) -> subprocess.CompletedProcess[str]:
    """Run code that uses one of the tools' modules, apart from ours, on ``given``."""
    require(module, (TOOLS / module).is_dir(), MISSING)
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(TOOLS)},
        input=given,
        capture_output=True,
        text=True,
        timeout=120,
    )
