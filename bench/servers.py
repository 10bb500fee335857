"""How each server that is measured is started, and what its client needs to know."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Protocol

from authws.decisions.verified_tokens import MAX_TOKENS
from bench.crowds import claims_of, issuer_of
from bench.served import Served, cpu_of, pinned, rss_of, served

__all__ = [
    "AbsentError",
    "Authws",
    "Nats",
    "Nchan",
    "Node",
    "Python",
    "Running",
    "Server",
]

HERE = Path(__file__).parent / "contenders"
START_TIMEOUT = 20.0


class AbsentError(Exception):
    """A server that cannot be had on this machine; says why."""


@dataclass(frozen=True, slots=True)
class Running:
    """A server that listens, and what a client of it needs to know."""

    pid: int
    port: int
    version: str = ""
    facts: Mapping[str, str] = field(default_factory=dict)

    def cpu(self) -> float:
        """Seconds of processor time it has used."""
        return cpu_of(self.pid)

    def rss(self) -> int:
        """Bytes of memory that it occupies."""
        return rss_of(self.pid)


class Server(Protocol):
    """Runs while the block does; raises ``AbsentError`` if it cannot."""

    def running(self, core: int | None) -> AbstractAsyncContextManager[Running]: ...


@dataclass(frozen=True)
class Python:
    """A module of ``bench/contenders``, which needs a distribution."""

    module: str
    distribution: str

    @asynccontextmanager
    async def running(self, core: int | None) -> AsyncIterator[Running]:
        try:
            release = f"{self.distribution} {version(self.distribution)}"
        except PackageNotFoundError:
            raise AbsentError(f"{self.distribution} is not installed") from None
        port = _free_port()
        command = (sys.executable, "-m", f"bench.contenders.{self.module}", str(port))
        async with _running(*command, core=core, port=port) as pid:
            yield Running(pid, port, release)


class Node:
    """Node's `ws`, which `scripts/bench_packages.sh` installs."""

    @asynccontextmanager
    async def running(self, core: int | None) -> AsyncIterator[Running]:
        node = _program("node")
        package = HERE / "node" / "node_modules" / "ws" / "package.json"
        if not package.exists():
            raise AbsentError("the npm package ws is not installed")
        release = json.loads(package.read_text(encoding="utf-8"))["version"]
        port = _free_port()
        command = (node, str(HERE / "node" / "server.mjs"), str(port))
        async with _running(*command, core=core, port=port) as pid:
            yield Running(pid, port, f"ws {release} on Node {_told(node, '--version')}")


class Nats:
    """nats-server with a token, on one core as all the others are."""

    @asynccontextmanager
    async def running(self, core: int | None) -> AsyncIterator[Running]:
        nats, port = _program("nats-server"), _free_port()
        async with _running(
            *(nats, "-c", str(HERE / "nats.conf")),
            core=core,
            port=port,
            GOMAXPROCS="1",
            BENCH_PORT=str(port),
            BENCH_NATS_PORT=str(_free_port()),
        ) as pid:
            yield Running(pid, port, f"nats-server {_told(nats, '--version')}")


class Nchan:
    """nginx with nchan."""

    MODULE = Path("/usr/lib/nginx/modules/ngx_nchan_module.so")

    @asynccontextmanager
    async def running(self, core: int | None) -> AsyncIterator[Running]:
        nginx = _program("nginx")
        if not self.MODULE.exists():
            raise AbsentError(f"there is no {self.MODULE}")
        port = _free_port()
        with tempfile.TemporaryDirectory(prefix="authws-bench-nginx-") as directory:
            config = self._configure(directory, port)
            command = (nginx, "-e", f"{directory}/error.log", "-c", config)
            async with _running(*command, core=core, port=port) as pid:
                yield Running(pid, port, f"nginx {_told(nginx, '-v')}")

    def _configure(self, directory: str, port: int) -> str:
        text = (HERE / "nchan.conf").read_text(encoding="utf-8")
        text = text.replace("@PORT@", str(port)).replace("@DIRECTORY@", directory)
        config = Path(directory, "nginx.conf")
        config.write_text(text, encoding="utf-8")
        return str(config)


@dataclass(frozen=True)
class Authws:
    """`authws serve`, or a program that starts as it does.

    Its limits are in force, as in service, but so high that no load meets them.
    """

    program: tuple[str, ...] = ()
    settings: tuple[tuple[str, Any], ...] = ()

    @asynccontextmanager
    async def running(self, core: int | None) -> AsyncIterator[Running]:
        options: dict[str, Any] = {"program": self.program} if self.program else {}
        async with served(
            ("alice",),
            core=core,
            max_connections_per_user=16_384,
            message_rate=10_000_000,
            byte_rate=1_000_000_000_000,
            access_ttl=86_400,
            session_idle_ttl=43_200,
            **options,
            **dict(self.settings),
        ) as service:
            token = await service.token("alice")
            facts = {
                "token": token,
                "tokens": self._more_like(token, service),
                "forged": _forged(token),
                "cookie": await service.cookie("alice"),
                "origin": service.origin,
            }
            yield Running(service.pid, service.port, facts=facts)

    def _more_like(self, token: str, service: Served) -> str:
        """Make a file of tokens of one session, one more than are remembered.

        Whoever comes with one after the other comes with one that must be verified.
        """
        chosen = {k: v for k, v in self.settings if k == "signing_algorithm"}
        issuer, claims = issuer_of(service, **chosen), claims_of(token)
        tokens = (
            issuer.access(
                claims["sub"],
                claims["sid"],
                claims["scope"].split(),
                now=claims["iat"],
                expires_at=claims["exp"],
            )
            for _ in range(MAX_TOKENS + 1)
        )
        path = service.data_dir.parent / "tokens"
        path.write_text("\n".join(tokens), encoding="ascii")
        return str(path)


def _forged(token: str) -> str:
    """The token as one would have it whose signature is wrong, and nothing else."""
    head, _, signature = token.rpartition(".")
    return f"{head}.{signature[1:]}{signature[0]}"


def _program(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        raise AbsentError(f"{name} is not installed")
    return found


def _told(*command: str) -> str:
    """The version that a program tells of itself."""
    answer = subprocess.run(  # noqa: S603
        command, capture_output=True, text=True, check=True
    )
    words = (answer.stdout + answer.stderr).replace("/", " ").split()
    return next(word.lstrip("v") for word in words if word.lstrip("v")[:1].isdigit())


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@asynccontextmanager
async def _running(
    *command: str, core: int | None, port: int, **environment: str
) -> AsyncIterator[int]:
    """Run a server until the block ends; yield its process id."""
    with tempfile.TemporaryFile() as log:
        process = await asyncio.create_subprocess_exec(
            *(*pinned(core), *command),
            env={**os.environ, **environment},
            stdout=asyncio.subprocess.DEVNULL,
            stderr=log,
        )
        try:
            async with asyncio.timeout(START_TIMEOUT):
                while not _listens(port):
                    if process.returncode is not None:
                        log.seek(0)
                        last = log.read().decode(errors="replace").strip().splitlines()
                        raise AbsentError(f"it did not start: {''.join(last[-1:])}")
                    await asyncio.sleep(0.05)
            yield process.pid
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
            await process.wait()


def _listens(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
        return True
    return False
