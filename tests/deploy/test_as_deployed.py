"""The deployment of compose.yaml without its containers: every process is a real one,
and is told what Compose would tell it. Only addresses and paths are the test's own.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from tests.certificates import issue
from tests.deploy.brokers import ShippedRedis
from tests.deploy.browser import CLIENT, NAME, ORIGIN, Browser
from tests.deploy.shipped import (
    CONTAINERFILE,
    a_copy,
    compose,
    environment,
    make_secrets,
)
from tests.grants import hear, say
from tests.running import PASSWORD
from tests.security.peers import bearer, ending, eventually
from tests.servers.nginx import NginxServer
from tests.servers.postgres import PostgresServer
from tests.servers.process import ServerProcess, free_ports

pytestmark = pytest.mark.asyncio(loop_scope="module")

READY = CONTAINERFILE.with_name("ready.py")


class AuthwsProcess(ServerProcess):
    """What the image runs; it is there when the image's health check says so."""

    def __init__(self, told: Mapping[str, str]) -> None:
        super().__init__()
        (self.port,) = free_ports(1)
        self._told = told

    def environment(self) -> dict[str, str]:
        kept = {name: os.environ[name] for name in ("PATH", "HOME")}
        return {
            **kept,
            **self._told,
            "AUTHWS_HOST": "127.0.0.1",
            "AUTHWS_PORT": str(self.port),
            "AUTHWS_DATA_DIR": str(self.directory / "data"),
        }

    def command(self) -> Sequence[str | Path]:
        return [sys.executable, "-m", "authws", "serve", "--behind-proxy"]

    async def ask(self) -> None:
        status, said = await self.run(sys.executable, str(READY))
        assert status == 0, said

    async def run(self, *command: str, given: str = "") -> tuple[int, str]:
        """Run a command beside it, as ``docker compose exec`` does."""
        process = await asyncio.create_subprocess_exec(
            *command,
            cwd=self.directory,
            env=self.environment(),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        said, _ = await asyncio.wait_for(process.communicate(given.encode()), 60)
        assert process.returncode is not None
        return process.returncode, said.decode()

    @property
    def security_events(self) -> list[dict[str, Any]]:
        lines = [line for line in self.log.splitlines() if line.startswith("{")]
        return [json.loads(line) for line in lines]


@dataclass
class Deployment(Browser):
    """All that is deployed, found by its name."""

    services: tuple[AuthwsProcess, AuthwsProcess]
    nginx: NginxServer
    secrets: Path

    async def add_users(self, *names: str) -> None:
        """Add them as an operator does, beside a service that runs."""
        for name in names:
            status, said = await self.services[0].run(
                *(sys.executable, "-m", "authws"),
                *("user", "add", name, "--password-stdin"),
                given=PASSWORD,
            )
            assert status == 0, said

    async def enter(self, cookie: str) -> Any:
        peer = await self.open("/ws/session-cookie", cookie=cookie, origin=ORIGIN)
        assert (await hear(peer))["type"] == "auth_ok"
        return peer


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def deployed(
    tmp_path_factory: pytest.TempPathFactory,
) -> AsyncIterator[Deployment]:
    folder = a_copy(tmp_path_factory.mktemp("deployed"))
    assert make_secrets(folder, "redis").returncode == 0
    secrets = folder / "secrets"
    certificates = issue(secrets, NAME)
    told = environment(compose("redis", RUN_AS="10001:10001"), folder)
    told["AUTHWS_TRUSTED_PROXIES"] = "127.0.0.1"
    async with AsyncExitStack() as stack:
        redis = await stack.enter_async_context(ShippedRedis(secrets))
        postgres = await stack.enter_async_context(PostgresServer())
        database = await stack.enter_async_context(postgres.fresh_database())
        moved(
            secrets / "broker_url", f"redis://:{redis.password}@127.0.0.1:{redis.port}"
        )
        moved(secrets / "database_url", database)
        one, two = AuthwsProcess(told), AuthwsProcess(told)
        for service in (one, two):
            await stack.enter_async_context(service)
        nginx = await stack.enter_async_context(
            NginxServer(certificates, (one.port, two.port))
        )
        tls = certificates.trusting()
        yield Deployment(nginx.port, tls, (one, two), nginx, secrets)


def moved(file: Path, text: str) -> None:
    """Say where it is here, the file's owner and mode as they were made."""
    mode = file.stat().st_mode
    file.chmod(0o600)
    file.write_text(text)
    file.chmod(mode)


async def test_a_team_talks_across_its_services_while_one_is_replaced(
    deployed: Deployment,
) -> None:
    one, two = deployed.services
    await deployed.add_users("alice", "bob")
    cookies = [await deployed.log_in(name) for name in ("alice", "bob")]
    # nginx sends each to the service with fewer connections: one to each
    alice, bob = [await deployed.enter(cookie) for cookie in cookies]
    for peer in (alice, bob):
        await say(peer, type="join", room="lobby")
    await heard(alice, type="joined")
    await heard(bob, type="joined")
    await eventually(lambda: sorted(map(entered, (one, two))) == [["alice"], ["bob"]])
    is_alice_leaving = entered(one) == ["alice"]
    await say(alice, type="publish", room="lobby", data="across")
    assert (await heard(bob, type="message"))["data"] == "across"

    leaving, staying = (alice, bob) if is_alice_leaving else (bob, alice)
    await one.stop()  # as a replacement begins: SIGTERM, and a drain
    assert await ending(leaving) == (1012, "restart")
    back = await deployed.enter(cookies[0] if leaving is alice else cookies[1])
    await say(back, type="join", room="lobby")
    await heard(back, type="joined")
    await say(staying, type="publish", room="lobby", data="still here")
    assert (await heard(back, type="message"))["data"] == "still here"
    await one.start()
    for peer in (back, staying):
        await peer.close()


async def test_it_lets_in_by_ticket_and_not_by_token(deployed: Deployment) -> None:
    """AUTHWS_QUERY_PARAM_ACCEPTS=ticket, and AUTHWS_DOCS=false."""
    await deployed.add_users("carol")
    async with deployed.http() as http:
        answer = await http.post(
            "/auth/login", json={"username": "carol", "password": PASSWORD}
        )
        token = answer.json()["access_token"]
        answer = await http.post("/auth/ticket", headers=bearer(token))
        ticket = answer.json()["ticket"]
        assert (await http.get("/docs")).status_code == 404
        assert (await http.get("/metrics")).status_code == 403
    refused = await deployed.open(f"/ws/query-param?token={token}")
    assert (await ending(refused))[0] == 1008
    async with await deployed.open(f"/ws/query-param?token={ticket}") as peer:
        assert (await hear(peer))["type"] == "auth_ok"
    # used once is used everywhere: the other service is asked now
    again = await deployed.open(f"/ws/query-param?token={ticket}")
    assert await ending(again) == (1008, "ticket_used")


async def test_who_came_is_logged_and_nothing_that_lets_in(
    deployed: Deployment,
) -> None:
    await deployed.add_users("dave")
    async with await deployed.enter(await deployed.log_in("dave")):
        pass
    events = [event for one in deployed.services for event in one.security_events]
    assert {event["address"] for event in events if "address" in event} == {CLIENT}
    assert {"connected", "login"} <= {event["event"] for event in events}
    written = deployed.nginx.written + "".join(one.log for one in deployed.services)
    assert "Traceback" not in written
    for file in deployed.secrets.iterdir():
        secret = file.read_text().strip()
        assert secret not in written, file.name
    assert "eyJ" not in written


def entered(service: AuthwsProcess) -> list[str]:
    """Who is connected to it, by its security log."""
    here: dict[str, str] = {}
    for event in service.security_events:
        if event["event"] == "connected":
            here[event["connection"]] = event["subject"]
        elif event["event"] == "disconnected":
            here.pop(event["connection"], None)
    return sorted(here.values())


async def heard(peer: Any, **expected: str) -> dict[str, Any]:
    """Wait for a message like this; what comes before it is presence, and dropped."""
    while True:
        message = await hear(peer)
        if expected.items() <= message.items():
            return message
