"""deploy/container: the image's recipe, and the health check that it brings."""

from __future__ import annotations

import asyncio
import fnmatch
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.deploy.shipped import CONTAINERFILE, ROOT, hadolint
from tests.running import free_port, running

READY = CONTAINERFILE.with_name("ready.py")
IGNORED = CONTAINERFILE.with_name("Containerfile.dockerignore")


def instructions() -> list[tuple[str, str]]:
    """The recipe's lines, continued ones joined: what to do, and with what."""
    text = CONTAINERFILE.read_text().replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return [tuple(re.split(r"\s+", line.strip(), maxsplit=1)) for line in lines]  # type: ignore[misc]


def of(name: str) -> list[str]:
    return [rest for instruction, rest in instructions() if instruction == name]


def test_the_linter_has_nothing_to_say() -> None:
    done = subprocess.run(
        [hadolint(), "--no-color", str(CONTAINERFILE)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stdout) == (0, "")


def test_the_linter_does_look(tmp_path: Path) -> None:
    spoiled = tmp_path / "Containerfile"
    text = CONTAINERFILE.read_text().replace(":3.13-slim", ":latest")
    spoiled.write_text(text)
    done = subprocess.run(
        [hadolint(), "--no-color", str(spoiled)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert "DL3007" in done.stdout


def test_two_stages_and_no_root() -> None:
    stages = of("FROM")
    assert stages == ["python:3.13-slim AS build", "python:3.13-slim"]
    assert of("USER") == ["10001:10001"]
    made = " ".join(of("RUN"))
    assert "--uid 10001 --gid 10001" in re.sub(r"\s+", " ", made)
    assert "--mode=0700 --owner=10001 --group=10001 /var/lib/authws" in made
    after = [name for name, _ in instructions()]
    assert after.index("USER") > after.index("COPY", after.index("FROM", 1))
    assert "ADD" not in after


def test_only_what_the_lock_knows_is_installed() -> None:
    installs = [line for line in of("RUN") if " install " in line and "pip" in line]
    assert len(installs) == 2
    assert "--require-hashes -r requirements.lock" in installs[0]
    assert "--no-build-isolation --no-deps" in installs[1]
    for line in of("RUN"):
        assert not re.search(r"curl|wget|https?:|apt-get|--index|--extra-index", line)


def test_the_build_sees_what_it_copies_and_nothing_else() -> None:
    lines = [
        line for line in IGNORED.read_text().splitlines() if not line.startswith("#")
    ]
    assert lines[0] == "*"
    admitted = {line[1:] for line in lines if line.startswith("!")}
    copied = {
        source.removeprefix("./")
        for line in of("COPY")
        if not line.startswith("--from")
        for source in line.split()[:-1]
    }
    assert copied == admitted
    assert all((ROOT / name).exists() for name in admitted)
    for private in (".git", ".env", "data", "deploy/compose/secrets"):
        assert not any(fnmatch.fnmatch(private, one) for one in admitted)


def test_it_serves_behind_a_proxy_or_not_at_all(tmp_path: Path) -> None:
    """With what the image says by itself there is no proxy to be believed."""
    environment = dict(
        pair.split("=", 1) for line in of("ENV") for pair in line.split()
    )
    assert environment.pop("PATH") == "/opt/authws/bin:$PATH"
    environment["AUTHWS_DATA_DIR"] = str(tmp_path / "data")
    assert of("ENTRYPOINT") == ['["authws"]']
    assert of("CMD") == ['["serve", "--behind-proxy"]']
    done = subprocess.run(
        [sys.executable, "-m", "authws", "serve", "--behind-proxy"],
        env={"PATH": os.environ["PATH"], **environment},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1
    assert "AUTHWS_PUBLIC_ORIGIN" in done.stderr
    assert "AUTHWS_TRUSTED_PROXIES" in done.stderr


# -------------------------------------------------------------------- the health check


async def check(port: int, origin: str) -> tuple[int, str]:
    """Run it as the engine does, with the container's environment."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-I", str(READY)),
        env={"AUTHWS_PORT": str(port), "AUTHWS_PUBLIC_ORIGIN": origin},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    said, _ = await asyncio.wait_for(process.communicate(), 30)
    assert process.returncode is not None
    return process.returncode, said.decode()


async def test_ready_while_the_service_is(tmp_path: Path) -> None:
    async with running(
        tmp_path,
        behind_proxy=True,
        trusted_proxies=("192.0.2.1",),
        public_origin="https://chat.example.com",
    ) as service:
        status, said = await check(service.port, "https://chat.example.com")
        assert (status, '"ready"' in said) == (0, True), said
        status, said = await check(service.port, "https://other.example.com")
        assert (status, "400" in said) == (1, True), said
        await service.call(service.house.drain(1))
        status, said = await check(service.port, "https://chat.example.com")
        assert (status, "draining" in said) == (1, True), said


async def test_not_ready_without_a_service() -> None:
    status, said = await check(free_port(), "https://chat.example.com")
    assert status == 1
    assert "no answer" in said
    assert "Traceback" not in said


@pytest.mark.parametrize("answer", [b"", b"not HTTP\r\n\r\n"])
async def test_not_ready_beside_something_else(answer: bytes) -> None:
    async def answered(
        reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        writer.close()
        await writer.wait_closed()

    server = await asyncio.start_server(answered, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        status, said = await check(port, "https://chat.example.com")
    assert (status, "no answer" in said) == (1, True), said
