"""TLS, proxy and host.

What a peer says about itself is believed from configured proxies alone, and a service
that browsers reach over https is not to be had without.
"""

from __future__ import annotations

import asyncio
import json
import ssl
import struct
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio
import websockets
from websockets.exceptions import InvalidStatus

from authws.client import Client, UnreachableError
from authws.exceptions import ConfigurationError
from authws.service.server import build_config
from tests.certificates import Certificates, issue
from tests.grants import grant, hear, present, say
from tests.running import STRATEGIES, Service, running
from tests.security.peers import bearer, controlled
from tests.wire import PING, handshake, request, wire

pytestmark = pytest.mark.asyncio(loop_scope="module")

LOGIN = {"username": "nobody", "password": "not the password of anybody"}


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return issue(tmp_path_factory.mktemp("certificates"))


# ----------------------------------------------------------------------------- services


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def plain(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Service]:
    """A service on loopback that knows no proxy."""
    async with running(tmp_path_factory.mktemp("plain")) as service:
        await service.add_user("alice")
        async with controlled(service):
            yield service


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def secure(
    tmp_path_factory: pytest.TempPathFactory, certificates: Certificates
) -> AsyncIterator[Service]:
    """A service that speaks TLS itself."""
    files = {"tls_cert": certificates.certificate, "tls_key": certificates.key}
    async with running(
        tmp_path_factory.mktemp("secure"), server=dict(files), **files
    ) as service:
        await service.add_user("alice")
        await works_over_tls(service, certificates)
        yield service
        await works_over_tls(service, certificates)
        assert [r.getMessage() for r in service.records if r.exc_info] == []


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def proxied(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Service]:
    """A service behind a proxy on this machine that speaks TLS for it."""
    async with running(
        tmp_path_factory.mktemp("proxied"),
        behind_proxy=True,
        trusted_proxies=("127.0.0.1",),
        public_origin="https://chat.example.com",
    ) as service:
        await service.add_user("alice")
        await works_through_the_proxy(service)
        yield service
        await works_through_the_proxy(service)
        assert [r.getMessage() for r in service.records if r.exc_info] == []


async def works_over_tls(service: Service, certificates: Certificates) -> None:
    """The positive control: log in and talk, in each way, over TLS."""
    tls = certificates.trusting()
    root = f"https://127.0.0.1:{service.port}"
    async with httpx.AsyncClient(base_url=root, verify=tls) as http:
        assert (await http.get("/healthz")).json() == {"status": "ok"}
    for strategy in STRATEGIES:
        granted = await grant(service, strategy)
        headers, query = {}, ""
        if granted.cookie:
            headers = {"cookie": f"__Host-authws={granted.cookie}", "origin": root}
        elif strategy == "query-param":
            query = f"?token={granted.access()}"
        async with websockets.connect(
            f"wss://127.0.0.1:{service.port}/ws/{strategy}{query}",
            ssl=tls,
            additional_headers=headers,
            proxy=None,
        ) as peer:
            if strategy == "first-message":
                assert (await hear(peer))["type"] == "auth_required"
                await say(peer, type="auth", token=granted.access())
            assert (await hear(peer))["type"] == "auth_ok"


BY_PROXY = {"x-forwarded-proto": "https", "x-forwarded-for": "203.0.113.9"}


async def works_through_the_proxy(service: Service) -> None:
    """The positive control: the proxy's own way of asking."""
    token = (await grant(service, "query-param")).access()
    names = {"host": "chat.example.com", **BY_PROXY}
    async with httpx.AsyncClient(base_url=service.origin, headers=names) as http:
        answer = await http.get("/auth/me", headers=bearer(token))
        assert answer.json()["subject"] == "alice"
    async with await open_behind(service, token, **BY_PROXY) as peer:
        assert (await hear(peer))["type"] == "auth_ok"


async def open_behind(service: Service, token: str, **headers: str) -> Any:
    return await service.open(
        f"/ws/query-param?token={token}",
        headers=[(name.replace("_", "-"), value) for name, value in headers.items()],
        host="127.0.0.1",
        port=service.port,
    )


async def address_seen(service: Service, *lines: str) -> str:
    """Fail a login with these header lines; return the address that was logged."""
    body = json.dumps(LOGIN).encode()
    mark = len(service.records)
    async with wire(service.port) as peer:
        head = ("Content-Type: application/json", f"Content-Length: {len(body)}")
        await peer.send(request("/auth/login", *head, *lines, method="POST") + body)
        response = await peer.response()
        assert response.status == 401, response
    logged = [
        json.loads(record.getMessage())
        for record in service.records[mark:]
        if record.name == "authws.security"
    ]
    (failed,) = [event for event in logged if event["event"] == "login_failed"]
    return str(failed["address"])


# ----------------------------------------------------------------------- TLS or nothing


@pytest.mark.parametrize("case", ["TLS-01"])
async def test_tls_port_answers_nothing_in_the_clear(
    secure: Service, case: str
) -> None:
    for opening in (request("/healthz"), handshake("/ws/first-message")):
        async with wire(secure.port) as peer:
            await peer.send(opening)
            with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
                await peer.response()


@pytest.mark.parametrize("path", ["/auth/login", "/auth/me", "/docs", "/", "/healthz"])
@pytest.mark.parametrize("case", ["TLS-01-proxy"])
async def test_plain_request_through_the_proxy_is_refused_and_not_redirected(
    proxied: Service, path: str, case: str
) -> None:
    async with wire(proxied.port) as peer:
        lines = ("X-Forwarded-Proto: http", "X-Forwarded-For: 203.0.113.9")
        opening = request(path, *lines).replace(b"127.0.0.1", b"chat.example.com", 1)
        await peer.send(opening)
        response = await peer.response()
    assert response.status == 403
    assert json.loads(response.body) == {"detail": "tls_required"}
    assert "location" not in response.headers


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("case", ["TLS-01-websocket"])
async def test_plain_handshake_through_the_proxy_is_refused(
    proxied: Service, strategy: str, case: str
) -> None:
    granted = await grant(proxied, strategy)
    for proto in ("ws", "http"):
        lines = [f"X-Forwarded-Proto: {proto}", "Origin: https://chat.example.com"]
        target = f"/ws/{strategy}"
        if granted.cookie:
            lines.append(f"Cookie: __Host-authws={granted.cookie}")
        else:
            target += f"?token={granted.access()}"
        opening = handshake(target, headers=tuple(lines))
        async with wire(proxied.port) as peer:
            await peer.send(opening.replace(b"127.0.0.1", b"chat.example.com", 1))
            response = await peer.response()
        assert response.status == 403
        assert "location" not in response.headers


def client_hello(version: int, suites: tuple[int, ...]) -> bytes:
    """The first flight of a client that offers only this (RFC 5246, 7.4.1.2)."""
    offered = b"".join(struct.pack("!H", suite) for suite in suites)
    curves = struct.pack("!HHHH", 10, 4, 2, 23)
    formats = struct.pack("!HHBB", 11, 2, 1, 0)
    schemes = struct.pack("!HHHHH", 13, 6, 4, 0x0403, 0x0401)
    extensions = curves + formats + schemes
    body = (
        struct.pack("!H", version)
        + bytes(32)
        + b"\0"
        + struct.pack("!H", len(offered))
        + offered
        + b"\1\0"
        + struct.pack("!H", len(extensions))
        + extensions
    )
    message = b"\1" + struct.pack("!I", len(body))[1:] + body
    return b"\x16\3\1" + struct.pack("!H", len(message)) + message


ECDHE_AES128_GCM = 0xC02B
OLD = {
    "TLS-02-ssl3": (0x0300, (0xC009, 0xC013, 0x002F)),
    "TLS-02-tls10": (0x0301, (0xC009, 0xC013, 0x002F)),
    "TLS-02-tls11": (0x0302, (0xC009, 0xC013, 0x002F)),
    "TLS-02-null": (0x0303, (0xC006, 0xC010, 0x0001, 0x0002, 0x003B)),
    "TLS-02-rc4": (0x0303, (0xC007, 0xC011, 0x0004, 0x0005)),
    "TLS-02-3des": (0x0303, (0xC008, 0xC012, 0x000A)),
    "TLS-02-export": (0x0303, (0x0003, 0x0006, 0x0008)),
    "TLS-02-anonymous": (0x0303, (0xC018, 0xC019, 0x0034, 0x0018)),
    "TLS-02-no-forward-secrecy": (0x0303, (0x002F, 0x0035, 0x009C)),
}
HANDSHAKE = 0x16


@pytest.mark.parametrize(("version", "suites"), OLD.values(), ids=OLD.keys())
async def test_old_tls_and_weak_ciphers_are_refused(
    secure: Service, version: int, suites: tuple[int, ...]
) -> None:
    assert await first_record(secure, client_hello(version, suites)) != HANDSHAKE


@pytest.mark.parametrize("case", ["TLS-02-control"])
async def test_the_same_hello_with_a_good_offer_is_answered(
    secure: Service, case: str
) -> None:
    hello = client_hello(0x0303, (ECDHE_AES128_GCM,))
    assert await first_record(secure, hello) == HANDSHAKE


async def first_record(service: Service, hello: bytes) -> int | None:
    """Return the type of the server's first TLS record; None for none at all."""
    reader, writer = await asyncio.open_connection("127.0.0.1", service.port)
    try:
        writer.write(hello)
        async with asyncio.timeout(5):
            return (await reader.readexactly(5))[0]
    except (asyncio.IncompleteReadError, ConnectionError):
        return None
    finally:
        writer.transport.abort()


UNTRUSTED = {
    "TLS-03": ("https://127.0.0.1:{port}", False),
    "TLS-03-other-name": ("https://localhost:{port}", True),
    "TLS-03-websocket": ("wss://127.0.0.1:{port}", False),
}


@pytest.mark.parametrize(("url", "trusted"), UNTRUSTED.values(), ids=UNTRUSTED.keys())
async def test_our_client_sends_nothing_to_a_server_that_nobody_vouches_for(
    secure: Service, certificates: Certificates, url: str, trusted: bool
) -> None:
    mark = len(secure.records)
    verify = certificates.trusting() if trusted else True
    client = Client(url.format(port=secure.port), verify=verify)
    async with client:
        with pytest.raises(UnreachableError, match="certificate is not trusted"):
            await client.log_in("alice", "a password to keep")
    assert secure.records[mark:] == []


@pytest.mark.parametrize("case", ["TLS-03-plain"])
async def test_our_client_sends_no_password_in_the_clear_over_a_network(
    case: str,
) -> None:
    with pytest.raises(ConfigurationError, match="not encrypted"):
        Client("http://chat.example.com")


@pytest.mark.parametrize("case", ["TLS-09"])
async def test_https_answers_ask_for_https_for_a_year(
    secure: Service, certificates: Certificates, case: str
) -> None:
    root = f"https://127.0.0.1:{secure.port}"
    async with httpx.AsyncClient(base_url=root, verify=certificates.trusting()) as http:
        for path in ("/healthz", "/auth/me", "/nothing", "/docs"):
            value = (await http.get(path)).headers["strict-transport-security"]
            age, subdomains = value.split("; ")
            assert int(age.removeprefix("max-age=")) >= 31_536_000
            assert subdomains == "includeSubDomains"


@pytest.mark.parametrize("case", ["TLS-09-plain"])
async def test_http_answers_do_not(plain: Service, case: str) -> None:
    """RFC 6797, 7.2: over http the header must not be sent."""
    async with plain.http() as http:
        headers = (await http.get("/healthz")).headers
    assert "strict-transport-security" not in headers


@pytest.mark.parametrize("case", ["TLS-10"])
async def test_http2_is_not_spoken(
    secure: Service, certificates: Certificates, case: str
) -> None:
    context = certificates.trusting()
    context.set_alpn_protocols(["h2", "http/1.1"])
    reader, writer = await asyncio.open_connection(
        "127.0.0.1", secure.port, ssl=context
    )
    try:
        session: ssl.SSLObject = writer.get_extra_info("ssl_object")
        assert session.selected_alpn_protocol() != "h2"
        writer.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(9))
        async with asyncio.timeout(5):
            answer = await reader.read(1000)
        assert answer.startswith(b"HTTP/1.1 400 ")
    finally:
        writer.transport.abort()


@pytest.mark.parametrize("case", ["TLS-11"])
async def test_peers_are_pinged_more_often_than_proxies_give_up(
    tmp_path: Path, case: str
) -> None:
    assert 0 < (build_config(None).ws_ping_interval or 0) <= 30
    async with (
        running(tmp_path, server={"ping_interval": 0.1}) as service,
        wire(service.port) as peer,
    ):
        await peer.upgrade("/ws/first-message")
        while (await peer.frame()).opcode != PING:
            pass


@pytest.mark.parametrize("over", ["plain", "tls"])
@pytest.mark.parametrize("case", ["TLS-12"])
async def test_compression_is_declined(
    plain: Service,
    secure: Service,
    certificates: Certificates,
    *,
    over: str,
    case: str,
) -> None:
    tls = certificates.trusting() if over == "tls" else None
    async with wire((secure if tls else plain).port, tls=tls) as peer:
        offer = "Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits"
        coding = "Accept-Encoding: gzip, deflate, br"
        await peer.send(handshake("/ws/first-message", headers=(offer, coding)))
        response = await peer.response()
        assert response.status == 101
        assert "sec-websocket-extensions" not in response.headers
        assert "content-encoding" not in response.headers


# ---------------------------------------------------------------- who a peer says it is

CLAIMS = {
    "TLS-05-for": ("X-Forwarded-For: 203.0.113.9",),
    "TLS-05-twice": ("X-Forwarded-For: 203.0.113.9", "X-Forwarded-For: 203.0.113.10"),
    "TLS-07-forwarded": ("Forwarded: for=203.0.113.9;proto=https;by=203.0.113.1",),
    "TLS-07-real-ip": ("X-Real-IP: 203.0.113.9", "True-Client-IP: 203.0.113.9"),
    "TLS-07-cluster": ("X-Cluster-Client-IP: 203.0.113.9", "X-Client-IP: 203.0.113.9"),
    "TLS-07-cdn": ("CF-Connecting-IP: 203.0.113.9", "Fastly-Client-IP: 203.0.113.9"),
}


@pytest.mark.parametrize("lines", CLAIMS.values(), ids=CLAIMS.keys())
async def test_no_header_moves_a_peer(plain: Service, lines: tuple[str, ...]) -> None:
    assert await address_seen(plain, *lines) == "127.0.0.1"


@pytest.mark.parametrize("case", ["TLS-04"])
async def test_headers_of_a_peer_that_is_no_proxy_are_ignored(
    tmp_path: Path, case: str
) -> None:
    async with running(tmp_path, trusted_proxies=("10.0.0.1",)) as service:
        lines = ("X-Forwarded-For: 203.0.113.9", "X-Forwarded-Proto: https")
        assert await address_seen(service, *lines) == "127.0.0.1"


@pytest.mark.parametrize("case", ["TLS-04-proto", "TLS-05-proto"])
async def test_a_peer_that_is_no_proxy_cannot_claim_tls(
    tmp_path: Path, case: str
) -> None:
    proxies = ("10.0.0.1",) if case.startswith("TLS-04") else ()
    async with running(
        tmp_path, trusted_proxies=proxies, public_origin="https://chat.example.com"
    ) as service:
        await service.add_user("alice")
        token = (await grant(service, "query-param")).access()
        with pytest.raises(InvalidStatus) as refused:
            await open_behind(
                service, token, host="chat.example.com", x_forwarded_proto="https"
            )
        assert refused.value.response.status_code in {400, 403}


FORWARDED = {
    "TLS-06": ("203.0.113.9", "203.0.113.9"),
    "TLS-06-forged-first": ("6.6.6.6, 203.0.113.9", "203.0.113.9"),
    "TLS-06-trusted-last": ("203.0.113.9, 127.0.0.1", "203.0.113.9"),
    "TLS-06-forged-trusted": ("127.0.0.1, 203.0.113.9", "203.0.113.9"),
    "TLS-06-ipv6": ("2001:db8::9", "2001:db8::9"),
    "TLS-06-spaces": ("  203.0.113.9  ", "203.0.113.9"),
}


@pytest.mark.parametrize(("value", "address"), FORWARDED.values(), ids=FORWARDED.keys())
async def test_the_proxys_own_word_is_the_right_most(
    proxied: Service, value: str, address: str
) -> None:
    lines = ("X-Forwarded-Proto: https", f"X-Forwarded-For: {value}")
    assert await address_seen_behind(proxied, *lines) == address


JUNK = {
    "TLS-06-empty": ("X-Forwarded-For: ",),
    "TLS-06-commas": ("X-Forwarded-For: ,,, ,",),
    "TLS-06-words": ("X-Forwarded-For: unknown, _hidden, -",),
    "TLS-06-port": ("X-Forwarded-For: 203.0.113.9:4711",),
    "TLS-06-bracket": ("X-Forwarded-For: [2001:db8::9]:4711",),
    "TLS-06-half-bracket": ("X-Forwarded-For: [2001:db8::9",),
    "TLS-06-bytes": ("X-Forwarded-For: \u00ff\u00fe",),
    "TLS-06-long": ("X-Forwarded-For: " + "1.1.1.1, " * 800 + "1.1.1.1",),
    "TLS-06-duplicates": (
        "X-Forwarded-For: 6.6.6.6",
        "X-Forwarded-For: 203.0.113.9",
        "X-Forwarded-Proto: http",
    ),
}


@pytest.mark.parametrize("lines", JUNK.values(), ids=JUNK.keys())
async def test_no_forwarded_header_breaks_a_request(
    proxied: Service, lines: tuple[str, ...]
) -> None:
    mark = len(proxied.records)
    async with wire(proxied.port) as peer:
        opening = request("/healthz", "X-Forwarded-Proto: https", *lines)
        await peer.send(opening.replace(b"127.0.0.1", b"chat.example.com", 1))
        assert (await peer.response()).status in {200, 400, 403}
    assert [r.getMessage() for r in proxied.records[mark:] if r.exc_info] == []


async def address_seen_behind(service: Service, *lines: str) -> str:
    return await address_seen(service, "X-Forwarded-Host: evil.example", *lines)


IDENTITIES = {
    "TLS-07-user": ("X-User-ID: alice", "X-User: alice", "Remote-User: alice"),
    "TLS-07-auth": ("X-Auth-User: alice", "X-Auth-Request-User: alice"),
    "TLS-07-forwarded-user": ("X-Forwarded-User: alice", "X-Forwarded-Email: a@b.c"),
    "TLS-07-certificate": ("X-SSL-Client-S-DN: CN=alice", "X-Client-Cert: alice"),
    "TLS-07-rewritten": ("X-Original-URL: /healthz", "X-Rewrite-URL: /healthz"),
}


@pytest.mark.parametrize("lines", IDENTITIES.values(), ids=IDENTITIES.keys())
async def test_no_header_is_an_identity(plain: Service, lines: tuple[str, ...]) -> None:
    async with wire(plain.port) as peer:
        await peer.send(request("/auth/me", *lines))
        assert (await peer.response()).status == 401
    headers = [tuple(line.split(": ", 1)) for line in lines]
    for path in ("/ws/query-param", "/ws/session-cookie"):
        assert await present(plain, path, headers=headers, origin=plain.origin) == (
            1008,
            "auth_missing",
        )


HOSTS = {
    "TLS-08": ("Host: evil.example",),
    "TLS-08-empty": ("Host: ",),
    "TLS-08-none": (),
    "TLS-08-two": ("Host: 127.0.0.1", "Host: evil.example"),
    "TLS-08-other-address": ("Host: 10.0.0.1",),
    "TLS-08-any-address": ("Host: 0.0.0.0",),
    "TLS-08-suffix": ("Host: localhost.evil.example",),
    "TLS-08-user": ("Host: 127.0.0.1@evil.example",),
    "TLS-08-path": ("Host: 127.0.0.1/evil.example",),
    "TLS-08-rebound": ("Host: evil.example", "X-Forwarded-Host: 127.0.0.1"),
}


@pytest.mark.parametrize("lines", HOSTS.values(), ids=HOSTS.keys())
async def test_unknown_host_is_400(plain: Service, lines: tuple[str, ...]) -> None:
    head = b"GET /healthz HTTP/1.1\r\n"
    own = b"Host: 127.0.0.1\r\n"
    named = "".join(f"{line}\r\n" for line in lines).encode()
    upgrade = handshake("/ws/first-message").replace(own, named, 1)
    for opening in (head + named + b"\r\n", upgrade):
        async with wire(plain.port) as peer:
            await peer.send(opening)
            response = await peer.response()
            assert response.status == 400
            assert b"evil" not in response.body


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]", "LOCALHOST:8000"])
@pytest.mark.parametrize("case", ["TLS-08-control"])
async def test_own_host_is_served(plain: Service, host: str, case: str) -> None:
    async with wire(plain.port) as peer:
        await peer.send(f"GET /healthz HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
        assert (await peer.response()).status == 200
