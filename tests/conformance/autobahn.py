"""The original Autobahn TestSuite against the three echo endpoints: ``make autobahn``.

It needs Python 2.7 and is therefore no part of ``make test``; the tables beside this
file hold the same cases in our own words. The suite knows no credentials, so where one
does not fit into a URL a relay presents it and then passes bytes on as they come.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from tests.daemon import PASSWORD, Daemon, serve, users
from tests.wire import TEXT, frame

__all__ = ["MISSING", "find_python", "main", "verdict"]

HERE = Path(__file__).parent
SUITE = HERE.parent.parent / ".autobahn"
"""Where the suite is installed, and its reports are written."""
LOCK = HERE / "requirements-autobahn.lock"
CASES = [f"{category}.*" for category in range(1, 8)]
PATIENCE = 900.0

MISSING = (
    "The Autobahn TestSuite runs on Python 2.7 only, and none with pip was found: "
    "install one (pyenv install 2.7.18; or name it: make autobahn PYTHON2=/path/to/"
    "python2.7) and run make autobahn again."
)

PASSED = {"OK", "INFORMATIONAL"}
LENIENT = {"NON-STRICT"}
"""Allowed by RFC 6455, and not what the suite likes best: told, and no failure."""

# The suite's packages share a namespace (zope), which only a site directory may.
RUN = "import site, sys; site.addsitedir(sys.argv.pop(1)); " + (
    "from autobahntestsuite.wstest import run; run()"
)


# ----------------------------------------------------------------------- the suite


def find_python(
    environ: Mapping[str, str], home: Path, named: str | None = None
) -> str | None:
    """Return a Python 2.7 that has pip, or None; each is run before it is believed."""
    candidates = [named] if named else _candidates(environ, home)
    for candidate in candidates:
        path = shutil.which(candidate, path=environ.get("PATH", ""))
        if path is not None and _is_python_2_7(path):
            return path
    return None


def _candidates(environ: Mapping[str, str], home: Path) -> Iterator[str]:
    yield from ("python2.7", "python2", "pypy2.7", "pypy")
    versions = Path(environ.get("PYENV_ROOT", home / ".pyenv")) / "versions"
    yield from (str(path) for path in sorted(versions.glob("*2.7*/bin/python")))


def _is_python_2_7(path: str) -> bool:
    probe = "import sys, pip; sys.exit(sys.version_info[:2] != (2, 7))"
    try:
        done = subprocess.run([path, "-c", probe], capture_output=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0


def install(python: str) -> None:
    """Install the suite, pinned and with its hashes checked, unless it is there."""
    stamp = SUITE / ".installed"
    if stamp.exists() and stamp.read_bytes() == LOCK.read_bytes():
        return
    print("installing the Autobahn TestSuite (pinned, hashes checked)", flush=True)
    shutil.rmtree(SUITE, ignore_errors=True)
    command = [python, "-W", "ignore", "-m", "pip", "install", "-qq", "--no-deps"]
    command += ["--disable-pip-version-check", "--require-hashes"]
    command += ["--target", str(SUITE / "packages"), "-r", str(LOCK)]
    subprocess.run(command, check=True)
    stamp.write_bytes(LOCK.read_bytes())


async def run_suite(python: str, urls: Mapping[str, str]) -> dict[str, Any]:
    """Run the cases against each server; return the suite's own index of results."""
    reports = SUITE / "reports"
    shutil.rmtree(reports, ignore_errors=True)
    specification = SUITE / "fuzzingclient.json"
    specification.write_text(
        json.dumps(
            {
                "outdir": str(reports),
                "servers": [{"agent": name, "url": url} for name, url in urls.items()],
                "cases": CASES,
            }
        )
    )
    arguments = ["-m", "fuzzingclient", "-s", str(specification)]
    with (SUITE / "log.txt").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            *(python, "-W", "ignore", "-c", RUN, str(SUITE / "packages"), *arguments),
            stdout=log,
            stderr=asyncio.subprocess.STDOUT,
            cwd=SUITE,
        )
        try:
            async with asyncio.timeout(PATIENCE):
                await process.wait()
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
    index: dict[str, Any] = json.loads((reports / "index.json").read_text())
    return index


# ------------------------------------------------------------------- the credentials


@asynccontextmanager
async def relay(
    port: int, path: str, *, lines: Iterable[str] = (), token: str = ""
) -> AsyncIterator[str]:
    """Listen, and pass each connection on to ``path``; yield a URL without secrets.

    ``lines`` are added to the head of the handshake. With ``token`` the first message
    is sent, and the peer hears of the WebSocket once the server has taken it.
    """

    async def serve_one(
        reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        their_reader, their_writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            added = "".join(f"{line}\r\n" for line in lines).encode()
            their_writer.write(_to(path, head)[:-2] + added + b"\r\n")
            answer = await their_reader.readuntil(b"\r\n\r\n")
            if token:
                await _speak_first(their_reader, their_writer, token)
            writer.write(answer)
            await asyncio.gather(
                _pass_on(reader, their_writer), _pass_on(their_reader, writer)
            )
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()
            their_writer.close()

    server = await asyncio.start_server(serve_one, "127.0.0.1", 0)
    async with server:
        yield f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}/"


def _to(path: str, head: bytes) -> bytes:
    """The head with another target."""
    return re.sub(rb"^GET \S+", b"GET " + path.encode(), head, count=1)


async def _speak_first(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, token: str
) -> None:
    for expected in ("auth_required", "auth_ok"):
        _, length = await reader.readexactly(2)
        if length == 126:
            length = int.from_bytes(await reader.readexactly(2), "big")
        message = json.loads(await reader.readexactly(length))
        if message["type"] != expected:
            raise ConnectionError(f"{message['type']} in place of {expected}")
        if expected == "auth_required":
            first = json.dumps({"type": "auth", "token": token})
            writer.write(frame(TEXT, first.encode()))


async def _pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Pass bytes on until one side ends its half, then end that of the other."""
    with contextlib.suppress(ConnectionError):
        while data := await reader.read(65_536):
            writer.write(data)
            await writer.drain()
        writer.write_eof()


@asynccontextmanager
async def echoes(
    port: int, *, token: str, cookie: str
) -> AsyncIterator[dict[str, str]]:
    """Each echo endpoint by its strategy's name, open to whoever knows no secret."""
    lines = (f"Cookie: {cookie}", f"Origin: http://127.0.0.1:{port}")
    async with (
        relay(port, f"/ws/query-param/echo?token={token}") as query_param,
        relay(port, "/ws/first-message/echo", token=token) as first_message,
        relay(port, "/ws/session-cookie/echo", lines=lines) as session_cookie,
    ):
        yield {
            "query_param": query_param,
            "first_message": first_message,
            "session_cookie": session_cookie,
        }


# ------------------------------------------------------------------------ the verdict


def verdict(index: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> list[str]:
    """Print how each server did; return the cases that failed."""
    failed: list[str] = []
    for agent, cases in index.items():
        passed, lenient = 0, []
        for case in sorted(cases, key=_by_number):
            outcome = cases[case]["behavior"], cases[case]["behaviorClose"]
            if set(outcome) <= PASSED:
                passed += 1
            elif set(outcome) <= PASSED | LENIENT:
                lenient.append(case)
            else:
                failed.append(f"{agent} {case}: {' / '.join(outcome)}")
        told = f", {len(lenient)} not strict ({', '.join(lenient)})" if lenient else ""
        print(f"{agent}: {passed} of {len(cases)} passed{told}")
    for line in failed:
        print(f"FAILED {line}")
    return failed


def _by_number(case: str) -> tuple[int, ...]:
    return tuple(map(int, case.split(".")))


async def _log_in(daemon: Daemon) -> tuple[str, str]:
    """A token and a cookie, which outlive the run."""
    who = {"username": "alice", "password": PASSWORD}
    async with daemon.http() as http:
        login = await http.post("/auth/login", json=who)
        session = await http.post("/auth/session", json=who)
    (cookie,) = session.raise_for_status().cookies.items()
    return login.raise_for_status().json()["access_token"], "=".join(cookie)


async def _run(python: str) -> list[str]:
    with tempfile.TemporaryDirectory(prefix="authws-autobahn-") as name:
        directory = Path(name)
        await users(directory, "alice")
        # one case sends a message of 256 KiB
        limits = {"max_message_bytes": 1 << 20, "outbox_bytes": 4 << 20}
        async with serve(directory, access_ttl=3600, **limits) as daemon:
            token, cookie = await _log_in(daemon)
            async with echoes(daemon.port, token=token, cookie=cookie) as urls:
                index = await run_suite(python, urls)
            complaints = daemon.errors
    if set(index) != set(urls):
        return ["the suite did not reach every endpoint"]
    failed = verdict(index)
    if "Traceback" in complaints:
        failed.append("the server logged a traceback")
    return failed


def main() -> int:
    """Run it; return the exit status."""
    python = find_python(os.environ, Path.home(), os.environ.get("PYTHON2"))
    if python is None:
        print(MISSING, file=sys.stderr)
        return 2
    install(python)
    print("the cases 1 to 7 of the Autobahn TestSuite; a few minutes", flush=True)
    failed = asyncio.run(_run(python))
    print(f"the whole report: {SUITE / 'reports' / 'index.html'}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
