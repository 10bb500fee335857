"""The README's commands, run as they are written: only the port is a private one.

``make test`` is this run, and ``make security`` is part of it, so those two are not run
again from within themselves; ``make run`` and the walk behind it are.
"""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.requirements import require

ROOT = Path(__file__).parents[1]
COPIED = ("Makefile", "pyproject.toml", "requirements.lock", "README.md", "LICENSE")


def shell_blocks() -> list[str]:
    return re.findall(r"```sh\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)


def commands() -> list[str]:
    return [line for block in shell_blocks() for line in block.splitlines()]


class Walk:
    """A directory with a running ``make run``, as a newcomer has it."""

    def __init__(self, directory: Path, port: int, password: str) -> None:
        self.directory = directory
        self.port = port
        self.password = password

    def run(self, command: str) -> str:
        command = command.replace("127.0.0.1:8000", f"127.0.0.1:{self.port}")
        done = subprocess.run(
            ["bash", "-c", command],
            cwd=self.directory,
            env={**os.environ, "AUTHWS_PASSWORD": self.password},
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr


@pytest.fixture(scope="module")
def walk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Walk]:
    for tool in ("make", "curl", "bash"):
        require(tool, shutil.which(tool) is not None, f"no {tool} on the PATH")
    directory = tmp_path_factory.mktemp("newcomer")
    copy_project(directory)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    assert commands()[0] == "make run"
    server = subprocess.Popen(
        ["make", "run"],
        cwd=directory,
        env={**os.environ, "AUTHWS_PORT": str(port)},
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        printed = read_until(server, "Ctrl-C stops the service.")
        password = re.search(r"password:\s+(\S+)", printed)
        assert password is not None, printed
        yield Walk(directory, port, password[1])
    finally:
        # the service is make's child: the session's processes are ours, and only ours
        os.killpg(server.pid, 15)
        server.communicate(timeout=60)


def copy_project(directory: Path) -> None:
    """Copy what ``make run`` needs, older than the environment: it must not install.

    An editable install from here would leave the environment pointing at a directory
    that is gone after the test.
    """
    for name in COPIED:
        shutil.copy2(ROOT / name, directory / name)
        os.utime(directory / name, (0, 0))
    for name in ("authws", "scripts"):
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, directory / name, ignore=ignore)
    if (ROOT / ".venv").exists():
        (directory / ".venv").symlink_to(ROOT / ".venv")


def read_until(server: subprocess.Popen[str], last: str) -> str:
    printed = ""
    assert server.stdout is not None
    for line in server.stdout:
        printed += line
        if line.strip() == last:
            return printed
    raise AssertionError(f"make run ended: {printed}")


def test_the_apps_code_is_whole(tmp_path: Path) -> None:
    (code,) = re.findall(
        r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL
    )
    (tmp_path / "app.py").write_text(code)
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "import app; print([getattr(r, 'path', '') for r in app.app.routes])",
        ],
        cwd=tmp_path,
        env={k: v for k, v in os.environ.items() if not k.startswith("AUTHWS_")},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert "'/ws'" in done.stdout


def test_quick_start_is_two_commands_and_a_third_to_try() -> None:
    makes = [command for command in commands() if command.startswith("make ")]
    assert makes == ["make run", "make test", "make security"]


def test_login_over_rest_returns_tokens(walk: Walk) -> None:
    (curl,) = [command for command in commands() if command.startswith("curl ")]
    assert '"token_type":"bearer"' in walk.run(curl)


def test_each_strategy_connects_and_hears_itself(walk: Walk) -> None:
    connects = [command for command in commands() if " connect " in command]
    assert len(connects) == 3
    for command in connects:
        assert "hello" in walk.run(command), command


def test_a_wrong_credential_is_refused_with_1008_and_a_reason(walk: Walk) -> None:
    (refused,) = [command for command in commands() if "token=wrong" in command]
    assert "1008 (policy violation) token_invalid" in walk.run(refused)


def test_what_make_run_made_is_private(walk: Walk) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "authws", "user", "list"],
        cwd=walk.directory,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert done.stdout.startswith("demo\tenabled\tjoin:* publish:*")
    assert (walk.directory / "data").stat().st_mode & 0o777 == 0o700
    assert (walk.directory / "data/secrets.json").stat().st_mode & 0o777 == 0o600
