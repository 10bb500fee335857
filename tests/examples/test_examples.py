"""Every example runs as its docstring says, and its own client talks to it."""

from __future__ import annotations

import ast
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

ROOT = Path(__file__).parents[2]
PASSWORD = "correct horse battery staple"
FOLDERS = ("query_param", "first_message", "session_cookie")


def environment(data_dir: Path) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if k != "AUTHWS_PORT"}
    return {
        **kept,
        "AUTHWS_DATA_DIR": str(data_dir),
        "AUTHWS_PASSWORD": PASSWORD,
        "PYTHONPATH": str(ROOT),
    }


def add_user(data_dir: Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "authws", "user", "add", "alice", "--password-stdin"],
        input=PASSWORD,
        text=True,
        env=environment(data_dir),
        check=True,
        timeout=60,
    )


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


@contextmanager
def served(app: str, data_dir: Path) -> Iterator[str]:
    """Run an example under Uvicorn, by a port that only Uvicorn knows."""
    port = free_port()
    command = ["-m", "uvicorn", app, "--port", port]
    with started(command, port, environment(data_dir)) as url:
        yield url


@contextmanager
def started(command: list[str], port: str, env: dict[str, str]) -> Iterator[str]:
    """Run an example; yield its URL."""
    server = subprocess.Popen(
        [sys.executable, *command], cwd=ROOT, env=env, stderr=subprocess.PIPE, text=True
    )
    try:
        url = f"http://127.0.0.1:{port}"
        wait_until_up(url, server)
        yield url
    finally:
        server.terminate()
        _, errors = server.communicate(timeout=30)
        assert "Traceback" not in errors, errors


def wait_until_up(url: str, server: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        assert server.poll() is None, "the example stopped at once"
        try:
            httpx.get(url, timeout=1)
        except httpx.TransportError:
            time.sleep(0.05)  # a poll for a condition, bounded by the deadline
        else:
            return
    pytest.fail("the example did not start in 60 s")


@pytest.mark.parametrize("folder", FOLDERS)
def test_example_talks_with_its_own_client(folder: str, tmp_path: Path) -> None:
    add_user(tmp_path / "data")
    port = free_port()
    env = {**environment(tmp_path / "data"), "AUTHWS_PORT": port}
    with started([f"examples/{folder}/app.py"], port, env) as url:
        client = subprocess.run(
            [sys.executable, f"examples/{folder}/client.py", "alice", url],
            cwd=ROOT,
            env=environment(tmp_path / "data"),
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert client.returncode == 0, client.stderr
        assert '"subject":"alice"' in client.stdout
        assert f'"strategy":"{folder}"' in client.stdout
        assert client.stdout.splitlines()[-1] == '{"echo":"hello"}'
        page = httpx.get(url).text
        assert "<script" in page


def test_library_example_guards_socket_and_route(tmp_path: Path) -> None:
    add_user(tmp_path / "data")
    with served("examples.library:app", tmp_path / "data") as url:
        login = {"username": "alice", "password": PASSWORD}
        token = httpx.post(f"{url}/auth/login", json=login).json()["access_token"]
        bearer = {"authorization": f"Bearer {token}"}
        assert httpx.get(f"{url}/whoami", headers=bearer).json() == "alice"
        assert httpx.get(f"{url}/whoami").status_code == 401
        page = {"origin": url}  # of the app itself, wherever it is served
        answer = httpx.post(f"{url}/auth/session", json=login, headers=page)
        assert answer.status_code == 200


def test_library_example_is_at_most_25_lines_of_code() -> None:
    source = (ROOT / "examples/library.py").read_text()
    tree = ast.parse(source)
    docstring = tree.body[0]
    code = [
        line
        for number, line in enumerate(source.splitlines(), 1)
        if line.strip() and number > (docstring.end_lineno or 0)
    ]
    assert len(code) <= 25


def test_the_three_folders_have_one_shape() -> None:
    def shape(folder: str) -> list[str]:
        source = (ROOT / "examples" / folder / "app.py").read_text()
        body = source.split('"""')[2]
        return re.sub(rf"auth\.{folder}", "auth.STRATEGY", body).splitlines()

    assert shape("query_param") == shape("first_message") == shape("session_cookie")
    for folder in FOLDERS:
        files = {path.name for path in (ROOT / "examples" / folder).glob("*.*")}
        assert files == {"app.py", "client.py", "index.html"}
