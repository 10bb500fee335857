"""How the server is configured: proxies, logs, TLS, and what it says of itself."""

from __future__ import annotations

import inspect
import json
import logging
import select
import socket
import ssl
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
)

from authws.exceptions import ConfigurationError
from authws.service import server
from authws.service.app import create_app
from authws.service.listeners import UNSENT_BYTES, Listeners
from authws.service.server import build_config
from authws.service.settings import Settings
from tests.daemon import daemon
from tests.serving import serving
from tests.wire import handshake, request, wire

CANARY = "canary-4f1d"


async def app(scope: Any, receive: Any, send: Any) -> None:
    """Answer a request with where it came from; refuse a WebSocket."""
    if scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.close"})
        return
    assert scope["type"] == "http"
    body = json.dumps([scope["client"][0], scope["scheme"]]).encode()
    length = str(len(body)).encode()
    start = {"type": "http.response.start", "status": 200}
    await send({**start, "headers": [(b"content-length", length)]})
    await send({"type": "http.response.body", "body": body})


@pytest.fixture
def log() -> Iterator[list[str]]:
    """What Uvicorn's loggers wrote, as an operator would read it."""
    lines: list[str] = []

    class Sink(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(self.format(record))

    sink = Sink()
    loggers = [logging.getLogger(name) for name in ("uvicorn.error", "uvicorn.access")]
    for logger in loggers:
        logger.addHandler(sink)
    yield lines
    for logger in loggers:
        logger.removeHandler(sink)


# ------------------------------------------------------------------------ configuration


async def test_forwarded_headers_count_from_configured_proxies_only() -> None:
    lines = ("X-Forwarded-For: 6.6.6.6", "X-Forwarded-Proto: https")
    seen = []
    for proxies in ([], ["10.0.0.0/8"], ["127.0.0.1"]):
        async with (
            serving(app, trusted_proxies=proxies) as port,
            wire(port) as peer,
        ):
            await peer.send(request("/", *lines))
            seen.append(json.loads((await peer.response()).body))
    assert seen == [["127.0.0.1", "http"]] * 2 + [["6.6.6.6", "https"]]


@pytest.mark.parametrize("proxy", ["*", "localhost", "10.0.0.1/8", ""])
def test_proxy_that_is_no_address_is_refused(proxy: str) -> None:
    with pytest.raises(ConfigurationError, match="trusted proxy"):
        build_config(app, trusted_proxies=[proxy], log_config=None)


def test_defaults_of_the_server_are_closed() -> None:
    config = build_config(app, log_config=None, max_message_bytes=1234, drain=2.5)
    assert config.ws_max_size == 1234
    assert config.ws_per_message_deflate is False
    assert config.timeout_graceful_shutdown == 3
    assert not config.proxy_headers


async def test_server_does_not_say_what_it_is() -> None:
    async with serving(app) as port, wire(port) as peer:
        await peer.send(request())
        assert "server" not in (await peer.response()).headers
        await peer.send(b"NONSENSE\r\n\r\n")
        assert "server" not in (await peer.response()).headers


@pytest.mark.parametrize(
    "said",
    [
        request(f"/?token={CANARY}"),
        request(f"/?token={CANARY}{'a' * 20_000}"),
        request(f"/?token={CANARY}", f"X: {'a' * 40_000}"),
        request(f"/?token={CANARY}").rstrip() + b"\r\nX : 1\r\n\r\n",
        handshake(f"/?token={CANARY}"),
        handshake(f"/?token={CANARY}", ws_version="8"),
        handshake(f"/?token={CANARY}", method="POST"),
        handshake(f"/?token={CANARY}") + b"early",
    ],
)
async def test_no_answer_puts_a_token_into_the_log(
    said: bytes, log: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    async with serving(app, log_level="debug") as port, wire(port) as peer:
        await peer.send(said)
        await peer.response()
    assert log
    assert CANARY not in "\n".join(log) + caplog.text


# --------------------------------------------------------------------------------- TLS


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A key and its own certificate for this machine, in one file."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(UTC)
    signed = (
        x509.CertificateBuilder(name, name, key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(hours=1))
        .sign(key, SHA256())
    )
    path = tmp_path_factory.mktemp("tls") / "server.pem"
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    path.write_bytes(pem + signed.public_bytes(Encoding.PEM))
    return path


def client_context() -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


async def test_https_is_served_and_its_refusals_are_read(certificate: Path) -> None:
    tls = client_context()
    async with serving(app, tls_cert=certificate) as port:
        async with wire(port, tls=tls) as peer:
            await peer.send(request())
            assert json.loads((await peer.response()).body)[1] == "https"
        async with wire(port, tls=tls) as peer:
            await peer.send(b"GET /" + b"a" * 70_000)
            assert (await peer.response()).status == 414
            assert await peer.is_ended()


async def test_tls_handshake_has_a_deadline(
    certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "TLS_HANDSHAKE_TIMEOUT", 0.3)
    async with serving(app, tls_cert=certificate) as port, wire(port) as peer:
        assert await peer.is_ended()


async def test_tls_before_1_2_is_refused(certificate: Path) -> None:
    config = build_config(app, tls_cert=certificate, log_config=None)
    config.load()
    assert config.ssl is not None
    assert config.ssl.minimum_version == ssl.TLSVersion.TLSv1_2


def test_key_without_certificate_is_refused(certificate: Path) -> None:
    with pytest.raises(ConfigurationError, match="certificate"):
        build_config(app, tls_key=certificate, log_config=None)


# -------------------------------------------------------------- what the system gives


def test_system_keeps_little_for_a_peer_that_never_reads() -> None:
    """It would take 4 MiB, beyond every bound of ours."""
    if not hasattr(socket, "TCP_NOTSENT_LOWAT"):
        pytest.skip("no such option here")
    settings = Settings(_env_file=None, port=0)
    with Listeners(settings) as listeners:
        listener = listeners.of(0)
        listener.listen()
        with (
            socket.create_connection(listener.getsockname()),
            listener.accept()[0] as accepted,
        ):
            accepted.setblocking(False)
            taken = 0
            while select.select([], [accepted], [], 0.2)[1]:
                taken += accepted.send(b"x" * 65_536)
    # what is on its way is beside it: what the peer's own system holds for it
    assert UNSENT_BYTES / 2 < taken < 4 * UNSENT_BYTES


def test_a_name_for_this_machine_that_leads_elsewhere_is_not_bound(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What is taken for loopback is served without TLS, and without limits."""
    everywhere = (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("0.0.0.0", 0))  # noqa: S104
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: [everywhere])
    with pytest.raises(ConfigurationError, match=r"--host 127\.0\.0\.1"):
        Listeners(Settings(_env_file=None, host="localhost", port=0))


FEW_FILES = """
import resource, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (100, 300))
sys.argv = ["authws", "serve", "--port", "0"]
from authws.cli import main
main()
"""


@pytest.mark.skipif(not Path("/proc/self/limits").exists(), reason="asks /proc")
@pytest.mark.parametrize(("wanted", "is_told"), [(236, False), (237, True)])
async def test_serve_takes_all_files_it_may_open_and_says_if_they_are_few(
    tmp_path: Path, wanted: int, is_told: bool
) -> None:
    few = daemon("-c", FEW_FILES, directory=tmp_path, max_connections=wanted)
    async with few as server:
        limits = Path(f"/proc/{server.process.pid}/limits").read_text()  # noqa: ASYNC240
        errors = [line for line in server.errors.splitlines() if "open files" in line]
    (files,) = [line for line in limits.splitlines() if "open files" in line]
    assert files.split()[3:5] == ["300", "300"]
    assert len(errors) == is_told
    if is_told:
        assert "AUTHWS_MAX_CONNECTIONS is 237" in errors[0]
        assert "300 open files" in errors[0]


def test_the_service_is_known_for_an_asgi_app(tmp_path: Path) -> None:
    """Uvicorn and Hypercorn look whether it is a coroutine function."""
    service = create_app(Settings(_env_file=None, data_dir=tmp_path))
    assert inspect.iscoroutinefunction(type(service).__call__)
    plain = uvicorn.Config(service, log_config=None)
    plain.load()
    assert plain.interface == "asgi3"


def test_our_own_server_holds_no_frame_of_it_for_a_peer(tmp_path: Path) -> None:
    service = create_app(Settings(_env_file=None, data_dir=tmp_path))
    config = build_config(service, log_config=None)
    config.load()
    assert not inspect.iscoroutinefunction(config.loaded_app)
