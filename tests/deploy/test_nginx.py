"""The shipped proxy, really proxying: nginx and its files in front of real services."""

from __future__ import annotations

import asyncio
import json
import ssl
import subprocess
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio
from websockets.asyncio.client import ClientConnection
from websockets.exceptions import InvalidStatus

from tests.certificates import Certificates, issue
from tests.deploy.browser import CLIENT, NAME, ORIGIN, Browser
from tests.grants import grant, hear, say
from tests.running import STRATEGIES, Service, running
from tests.security.peers import bearer, ending, eventually
from tests.servers.nginx import NginxServer

pytestmark = pytest.mark.asyncio(loop_scope="module")

FORGED = "203.0.113.9"


@dataclass
class Site(Browser):
    """What a browser sees as one: the proxy, and the services behind it."""

    nginx: NginxServer
    services: tuple[Service, Service]
    lives: tuple[AsyncExitStack, AsyncExitStack]

    async def stop(self, number: int) -> None:
        """End one of the services, as an operator does."""
        await self.lives[number].aclose()

    async def enter(self, strategy: str, **headers: str) -> ClientConnection:
        """Connect with a fresh credential, up to and including ``auth_ok``."""
        granted = await grant(self.services[0], strategy)
        path = f"/ws/{strategy}"
        if granted.cookie:
            cookie = f"__Host-authws={granted.cookie}"
            headers = {"cookie": cookie, "origin": ORIGIN, **headers}
        elif strategy == "query-param":
            path += f"?token={granted.access()}"
        peer = await self.open(path, **headers)
        if strategy == "first-message":
            assert (await hear(peer))["type"] == "auth_required"
            await say(peer, type="auth", token=granted.access())
        assert (await hear(peer))["type"] == "auth_ok"
        return peer

    def addresses(self, event: str) -> set[str]:
        """From where the security logs saw an event."""
        return {
            line["address"]
            for service in self.services
            for line in service.security_events
            if line["event"] == event
        }


@asynccontextmanager
async def a_site(
    folder: Path, *, changes: dict[str, str] | None = None, **server: Any
) -> AsyncIterator[Site]:
    """Two services with one data directory, and the shipped proxy before them."""
    certificates = issue(folder, NAME)
    proxied: dict[str, Any] = {
        "behind_proxy": True,
        "trusted_proxies": ("127.0.0.1",),
        "public_origin": ORIGIN,
        "server": server,
    }
    async with AsyncExitStack() as one, AsyncExitStack() as two:
        first = await one.enter_async_context(running(folder, **dict(proxied)))
        second = await two.enter_async_context(running(folder, **dict(proxied)))
        await first.add_user("alice")
        ports = (first.port, second.port)
        async with NginxServer(certificates, ports, changes) as nginx:
            tls = certificates.trusting()
            yield Site(nginx.port, tls, nginx, (first, second), (one, two))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def site(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Site]:
    async with a_site(tmp_path_factory.mktemp("site")) as site:
        yield site


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return issue(tmp_path_factory.mktemp("certificates"), NAME)


async def test_nginx_takes_the_configuration_without_a_warning(
    certificates: Certificates,
) -> None:
    nginx = NginxServer(certificates, (8001, 8002))
    done = await asyncio.to_thread(
        subprocess.run,
        [*map(str, nginx.tested())],
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert done.returncode == 0, done.stderr
    assert "[warn]" not in done.stderr


# ------------------------------------------------------------------------ what passes


@pytest.mark.parametrize("strategy", STRATEGIES)
async def test_each_strategy_talks_through_the_proxy(site: Site, strategy: str) -> None:
    async with await site.enter(strategy) as peer:
        await say(peer, type="ping", id="here")
        assert await hear(peer) == {"type": "pong", "id": "here"}


async def test_a_login_through_the_proxy_gives_a_cookie_that_connects(
    site: Site,
) -> None:
    """The whole walk of a browser: log in over https, connect with what was set."""
    cookie = await site.log_in("alice")
    async with await site.open(
        "/ws/session-cookie", cookie=cookie, origin=ORIGIN
    ) as peer:
        assert (await hear(peer))["type"] == "auth_ok"


async def test_a_foreign_page_is_refused_through_the_proxy(site: Site) -> None:
    with pytest.raises(InvalidStatus) as refused:
        await site.enter("session-cookie", origin="https://evil.example")
    assert refused.value.response.status_code == 403


async def test_the_longest_token_reaches_the_service(site: Site) -> None:
    """It is authws that refuses it, with a slug: not nginx, with a page."""
    peer = await site.open("/ws/query-param?token=" + "x" * 8192)
    assert await ending(peer) == (1008, "token_invalid")


async def test_a_body_over_the_limit_ends_at_the_proxy(site: Site) -> None:
    async with site.http(**{"content-type": "application/json"}) as http:
        largest = await http.post("/auth/login", content=b"x" * 65_536)
        over = await http.post("/auth/login", content=b"x" * 65_537)
    assert (largest.status_code, over.status_code) == (422, 413)


@pytest.mark.parametrize("name", ["h2c", "websocket, h2c", "TLS/1.2"])
async def test_no_other_upgrade_is_passed_on(
    certificates: Certificates, name: str
) -> None:
    """h2c smuggling: a tunnel that no route and no limit of ours would see."""
    heads: list[bytes] = []

    async def answered(
        reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        heads.append((await reader.readuntil(b"\r\n\r\n")).lower())
        writer.write(b"HTTP/1.1 204 No Content\r\n\r\n")
        writer.close()
        await writer.wait_closed()

    async with await asyncio.start_server(answered, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        async with NginxServer(certificates, (port, port)) as nginx:
            browser = Browser(nginx.port, certificates.trusting())
            asked = {"upgrade": name, "http2-settings": "AAMAAABk"}
            async with browser.http(connection="upgrade", **asked) as http:
                assert (await http.get("/healthz")).status_code == 204
    (head,) = heads
    assert b"\r\nupgrade:" not in head
    assert b"\r\nconnection: close\r\n" in head


# --------------------------------------------------------------------- who is believed


@pytest.mark.parametrize("strategy", STRATEGIES)
async def test_the_security_log_has_the_clients_own_address(
    site: Site, strategy: str
) -> None:
    for forged in ({}, {"x_forwarded_for": FORGED}, {"x_real_ip": FORGED}):
        async with await site.enter(strategy, **forged):
            pass
    assert site.addresses("connected") == {CLIENT}


@pytest.mark.parametrize(
    "name", ["x-forwarded-for", "forwarded", "x-real-ip", "x-client-ip"]
)
async def test_a_forged_address_is_not_believed(site: Site, name: str) -> None:
    value = f"for={FORGED}" if name == "forwarded" else FORGED
    async with site.http(**{name: value}) as http:
        refused = await http.post(
            "/auth/login", json={"username": "nobody", "password": "not the password"}
        )
    assert refused.status_code == 401
    assert site.addresses("login_failed") == {CLIENT}


async def test_a_forged_scheme_is_not_believed(site: Site) -> None:
    async with site.http(**{"x-forwarded-proto": "http"}) as http:
        assert (await http.get("/healthz")).status_code == 200


async def test_the_proxy_says_that_there_was_tls(site: Site) -> None:
    """Without its word the service would refuse what claims to come without."""
    async with site.http() as http:
        assert "strict-transport-security" in (await http.get("/healthz")).headers
    async with httpx.AsyncClient(
        base_url=site.services[0].origin,
        headers={"host": NAME, "x-forwarded-proto": "http"},
    ) as http:
        assert (await http.get("/healthz")).json() == {"detail": "tls_required"}


# ------------------------------------------------------------------------------- TLS


async def test_another_name_is_told_nothing(site: Site) -> None:
    with pytest.raises(ssl.SSLError):
        await asyncio.open_connection(
            "127.0.0.1",
            site.nginx.port,
            ssl=site.tls,
            server_hostname="other.example.com",
        )


@pytest.mark.parametrize(
    ("newest", "agreed"),
    [(ssl.TLSVersion.TLSv1_2, "TLSv1.2"), (ssl.TLSVersion.TLSv1_3, "TLSv1.3")],
)
async def test_current_versions_of_tls_are_spoken(
    site: Site, newest: ssl.TLSVersion, agreed: str
) -> None:
    site.tls.maximum_version = newest
    try:
        _, writer = await asyncio.open_connection(
            "127.0.0.1", site.nginx.port, ssl=site.tls, server_hostname=NAME
        )
    finally:
        site.tls.maximum_version = ssl.TLSVersion.MAXIMUM_SUPPORTED
    assert writer.get_extra_info("ssl_object").version() == agreed
    writer.close()


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion.TLSv1_1 is deprecated")
async def test_old_versions_of_tls_are_not(site: Site) -> None:
    old = ssl.create_default_context(cafile=None)
    old.check_hostname = False
    old.verify_mode = ssl.CERT_NONE
    old.set_ciphers("ALL:@SECLEVEL=0")
    old.minimum_version = ssl.TLSVersion.TLSv1_1
    old.maximum_version = ssl.TLSVersion.TLSv1_1
    with pytest.raises(ssl.SSLError, match="ALERT_PROTOCOL_VERSION"):
        await asyncio.open_connection(
            "127.0.0.1", site.nginx.port, ssl=old, server_hostname=NAME
        )


# ---------------------------------------------------------------------- what is logged


async def test_no_log_of_the_proxy_has_a_token(
    tmp_path: Path,
) -> None:
    """Neither of a request that went well, nor of those that failed."""
    async with a_site(tmp_path) as site:
        granted = await grant(site.services[0], "query-param")
        token = granted.access()
        cookie = (await grant(site.services[0], "session-cookie")).cookie
        async with await site.open(f"/ws/query-param?token={token}") as peer:
            assert (await hear(peer))["type"] == "auth_ok"
        refused = await site.open("/ws/query-param?token=bad-canary")
        assert await ending(refused) == (1008, "token_invalid")
        await site.stop(0)
        await site.stop(1)
        for path in ("/ws/query-param", "//ws//query-param/echo", "/ws%2fquery-param"):
            with pytest.raises(InvalidStatus) as failed:
                await site.open(f"{path}?token={token}", cookie=f"a={cookie}")
            assert failed.value.response.status_code == 502
        async with site.http(**bearer(token)) as http:
            assert (await http.get("/auth/me")).status_code == 502
        await eventually(lambda: site.nginx.written.count('"status":"502"') == 4)
        access = [json.loads(line) for line in lines(site.nginx.logs / "access.log")]
        assert [one["status"] for one in access] == ["101", "101"] + ["502"] * 4
        assert {one["address"] for one in access} == {CLIENT}
        assert access[2]["path"] == "/ws/query-param"
        assert access[2]["upstream_status"] == "502, 502"
        # the log is one: a REST call that failed is told there
        assert "/auth/me" in (site.nginx.logs / "error.log").read_text()
        for secret in (token, token[:20], cookie, "bad-canary", "token="):
            assert secret not in site.nginx.written


def lines(file: Path) -> list[str]:
    return file.read_text().splitlines()


# --------------------------------------------------------------- time, and who is gone


IMPATIENT = {"proxy_read_timeout 75s": "proxy_read_timeout 2s"}


async def test_pings_keep_a_silent_connection_past_the_proxys_patience(
    tmp_path: Path,
) -> None:
    """The service pings each 20 s, and the proxy gives up after 75; here 0.4 and 2."""
    async with (
        a_site(tmp_path, changes=IMPATIENT, ping_interval=0.4) as site,
        await site.enter("session-cookie") as peer,
    ):
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(peer.recv(), 5)
        await say(peer, type="ping", id="still here")
        assert await hear(peer) == {"type": "pong", "id": "still here"}


async def test_without_pings_the_proxy_ends_a_silent_connection(tmp_path: Path) -> None:
    """So it is the pings that keep it, and the figures that must fit together."""
    async with a_site(tmp_path, changes=IMPATIENT, ping_interval=0) as site:
        peer = await site.enter("session-cookie")
        assert await ending(peer, within=30) == (1006, "")


async def test_a_restart_of_one_service_leaves_the_other(tmp_path: Path) -> None:
    """The peer hears 1012 through the proxy, and whoever comes finds the other."""
    async with a_site(tmp_path) as site:
        peers = [await site.enter("session-cookie") for _ in range(4)]
        held = [len(service.house.hub.connections) for service in site.services]
        assert held == [2, 2]
        await site.stop(1)
        await eventually(lambda: sum(peer.close_code == 1012 for peer in peers) == 2)
        left = [peer for peer in peers if peer.close_code != 1012]
        assert [peer.state.name for peer in left] == ["OPEN"] * 2
        for strategy in STRATEGIES:
            async with await site.enter(strategy) as peer:
                await say(peer, type="ping", id="here")
                assert await hear(peer) == {"type": "pong", "id": "here"}
