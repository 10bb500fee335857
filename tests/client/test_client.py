"""The Python client, against a live service and against servers that mean harm."""

from __future__ import annotations

import asyncio
import logging
import ssl
import subprocess
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import pytest_asyncio

from authws.client import (
    Ack,
    Client,
    Dropped,
    EndedError,
    Ending,
    Joined,
    Message,
    RefusedError,
    Restarting,
    Strategy,
    Unknown,
    UnreachableError,
)
from authws.client.events import read_event
from authws.close_codes import BY_SLUG, Retry
from authws.decisions import messages
from authws.exceptions import ConfigurationError
from tests.running import PASSWORD, Service, running

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def service(
    tmp_path_factory: pytest.TempPathFactory,
) -> AsyncIterator[Service]:
    async with running(tmp_path_factory.mktemp("client")) as service:
        await service.add_user("alice")
        yield service


@asynccontextmanager
async def logged_in(service: Service, strategy: Strategy) -> AsyncIterator[Client]:
    async with Client(service.origin) as client:
        if strategy is Strategy.SESSION_COOKIE:
            await client.open_session("alice", PASSWORD)
        else:
            await client.log_in("alice", PASSWORD)
        yield client


@asynccontextmanager
async def answering(
    answer: bytes, tls: ssl.SSLContext | None = None
) -> AsyncIterator[tuple[int, list[bytes]]]:
    """A server that says one thing; yield its port and what it was asked."""
    asked: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(answer)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=tls)
    async with server:
        yield server.sockets[0].getsockname()[1], asked


@pytest.mark.parametrize("strategy", Strategy)
async def test_rooms_over_each_strategy(service: Service, strategy: Strategy) -> None:
    async with (
        logged_in(service, strategy) as client,
        await client.connect(strategy) as connection,
    ):
        assert connection.welcome is not None
        assert connection.welcome.subject == "alice"
        assert connection.welcome.strategy == strategy.replace("-", "_")
        await connection.join("lobby")
        joined = await connection.receive_event()
        assert isinstance(joined, Joined)
        assert (joined.room, joined.members) == ("lobby", ("alice",))
        await connection.publish("lobby", {"x": 1}, message_id="m1")
        events = [await connection.receive_event() for _ in range(2)]
        (message,) = (e for e in events if isinstance(e, Message))
        assert (message.room, message.sender, message.data) == (
            "lobby",
            "alice",
            {"x": 1},
        )
        assert Ack("m1") in events


@pytest.mark.parametrize("strategy", Strategy)
async def test_echo_over_each_strategy(service: Service, strategy: Strategy) -> None:
    async with (
        logged_in(service, strategy) as client,
        await client.connect(strategy, echo=True) as connection,
    ):
        for message in ("text", b"\x00\xff", ""):
            await connection.send(message)
            assert await connection.receive() == message


@pytest.mark.parametrize("strategy", [Strategy.QUERY_PARAM, Strategy.FIRST_MESSAGE])
async def test_session_alone_opens_the_token_endpoints_by_ticket(
    service: Service, strategy: Strategy
) -> None:
    async with (
        logged_in(service, Strategy.SESSION_COOKIE) as client,
        await client.connect(strategy) as connection,
    ):
        assert connection.welcome is not None


async def test_renewal_is_of_the_same_session(service: Service) -> None:
    async with (
        logged_in(service, Strategy.FIRST_MESSAGE) as client,
        await client.connect(Strategy.FIRST_MESSAGE) as connection,
    ):
        before = connection.welcome
        await client.renew(connection)
        after = await connection.receive_event()
        assert after is connection.welcome
        assert before is not None
        assert after is not before


async def test_log_out_ends_the_connections_and_the_error_says_what_to_do(
    service: Service,
) -> None:
    async with (
        logged_in(service, Strategy.FIRST_MESSAGE) as client,
        await client.connect(Strategy.FIRST_MESSAGE) as connection,
    ):
        await client.log_out()
        with pytest.raises(EndedError, match="1008 token_revoked") as ended:
            await connection.receive()
        assert ended.value.retry is Retry.REAUTHENTICATE
        with pytest.raises(EndedError):
            await connection.send("more")
        with pytest.raises(ConfigurationError, match="log in first"):
            await client.connect(Strategy.FIRST_MESSAGE)


async def test_wrong_password_is_refused(service: Service) -> None:
    async with Client(service.origin) as client:
        with pytest.raises(RefusedError) as refused:
            await client.log_in("alice", "wrong")
    assert (refused.value.status, refused.value.slug) == (401, "credentials_invalid")
    assert refused.value.retry is Retry.REAUTHENTICATE


async def test_refusal_before_accept_is_told_as_such(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    path = tmp_path_factory.mktemp("refusal")
    async with running(
        path, refuse="before_accept", max_connections_per_user=1
    ) as service:
        await service.add_user("alice")
        async with (
            logged_in(service, Strategy.QUERY_PARAM) as client,
            await client.connect(Strategy.QUERY_PARAM),
        ):
            with pytest.raises(RefusedError) as refused:
                await client.connect(Strategy.QUERY_PARAM)
        assert refused.value.status == 403


async def test_credentials_are_in_no_log_and_no_representation(
    service: Service, caplog: pytest.LogCaptureFixture
) -> None:
    shown: list[str] = []
    secrets: list[str] = [PASSWORD]
    with caplog.at_level(logging.DEBUG):
        async with Client(service.origin) as client:
            tokens = await client.log_in("alice", PASSWORD)
            await client.open_session("alice", PASSWORD)
            ticket = await client.ticket()
            secrets += [tokens.access_token, tokens.refresh_token, ticket]
            secrets.append(client._cookie.partition("=")[2])
            for strategy in Strategy:
                async with await client.connect(strategy) as connection:
                    await client.renew(connection) if strategy == "query-param" else 0
                    shown += [repr(connection), str(vars(connection).keys())]
            shown += [repr(client), repr(tokens), str(client._tokens)]
            with pytest.raises(RefusedError) as refused:
                await client.log_in("alice", PASSWORD + "!")
            shown.append(repr(refused.value))
    assert any(record.name.startswith("httpcore") for record in caplog.records)
    shown += [record.getMessage() for record in caplog.records]
    shown += [str(record.args) for record in caplog.records]
    kept = "\n".join(shown)
    for secret in secrets:
        # the end of a token is its signature: half of it is too much as well
        assert secret not in kept
        assert secret[-20:] not in kept


@pytest.mark.parametrize("strategy", Strategy)
async def test_redirect_is_not_followed_with_a_credential(
    service: Service, strategy: Strategy
) -> None:
    async with answering(b"HTTP/1.1 500 No\r\n\r\n") as (elsewhere, asked):
        moved = (
            "HTTP/1.1 307 Moved\r\ncontent-length: 0\r\n"
            f"location: ws://127.0.0.1:{elsewhere}/\r\n\r\n"
        )
        async with (
            answering(moved.encode()) as (port, _),
            logged_in(service, strategy) as client,
            Client(f"http://127.0.0.1:{port}") as strayed,
        ):
            if strategy is not Strategy.QUERY_PARAM:  # whose ticket is a POST before
                strayed._tokens, strayed._cookie = client._tokens, client._cookie
                with pytest.raises(RefusedError) as refused:
                    await strayed.connect(strategy)
                assert refused.value.status == 307
            with pytest.raises(RefusedError):
                await strayed.log_in("alice", PASSWORD)
        assert asked == []


def self_signed(folder: Path) -> tuple[Path, Path]:
    """A certificate of 127.0.0.1 that nobody vouches for, and its key."""
    certificate, key = folder / "cert.pem", folder / "key.pem"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "ec"),
            *("-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "1"),
            *("-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"),
            *("-keyout", str(key), "-out", str(certificate)),
        ],
        check=True,
        capture_output=True,
    )
    return certificate, key


async def test_untrusted_certificate_is_refused_unless_told(tmp_path: Path) -> None:
    certificate, key = self_signed(tmp_path)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificate, key)
    refusal = (
        b'HTTP/1.1 401 No\r\ncontent-length: 32\r\n\r\n{"detail":"credentials_invalid"}'
    )
    async with answering(refusal, tls) as (port, asked):
        url = f"https://127.0.0.1:{port}"
        async with Client(url) as client:
            with pytest.raises(UnreachableError, match="certificate is not trusted"):
                await client.log_in("alice", PASSWORD)
        assert asked == []
        trusted = ssl.create_default_context(cafile=str(certificate))
        for verify in (trusted, False):
            async with Client(url, verify=verify) as client:
                with pytest.raises(RefusedError, match="password is wrong"):
                    await client.log_in("alice", PASSWORD)


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"nonsense\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nno",
        b'HTTP/1.1 403 No\r\ncontent-length: 14\r\n\r\n{"detail": []}',
    ],
)
async def test_server_of_another_kind_is_an_error_of_ours(answer: bytes) -> None:
    async with answering(answer) as (port, _), Client(f"http://[::1]:{port}") as client:
        with pytest.raises((RefusedError, UnreachableError)):
            await client.log_in("alice", PASSWORD)
    async with (
        answering(answer) as (port, _),
        Client(f"http://127.0.0.1:{port}") as client,
    ):
        with pytest.raises((RefusedError, UnreachableError)):
            await client.log_in("alice", PASSWORD)
        client._cookie = "authws=x"
        with pytest.raises((RefusedError, UnreachableError)):
            await client.connect(Strategy.SESSION_COOKIE)


@pytest.mark.parametrize(
    "url",
    [
        "http://chat.example.com",
        "ws://192.168.1.2:8000",
        "http://127.0.0.1.example.com",
        "http://localhost.example.com",
    ],
)
async def test_plain_http_is_for_this_machine_only(url: str) -> None:
    with pytest.raises(ConfigurationError, match="not encrypted"):
        Client(url)
    Client(url, allow_plain_http=True)


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1"])
async def test_websocket_url_means_the_same(service: Service, host: str) -> None:
    async with Client(f"ws://{host}:{service.port}/") as client:
        await client.open_session("alice", PASSWORD)
        async with await client.connect(Strategy.SESSION_COOKIE) as connection:
            assert connection.welcome is not None


@pytest.mark.parametrize(
    "url",
    [
        "127.0.0.1:8000",
        "ftp://127.0.0.1",
        "http://alice:hunter2@127.0.0.1",
        "http://127.0.0.1/ws/first-message",
        "http://127.0.0.1?token=hunter2",
        "http://127.0.0.1\\@chat.example.com",
        "",
    ],
)
async def test_url_of_another_form_is_refused_and_not_repeated(url: str) -> None:
    with pytest.raises(ConfigurationError, match="scheme, host and port") as refused:
        Client(url)
    assert "hunter2" not in str(refused.value)


@pytest.mark.parametrize("slug", BY_SLUG)
async def test_every_ending_of_the_close_table_is_known(slug: str) -> None:
    close = BY_SLUG[slug]
    ending = Ending.of(close.code, slug)
    assert (ending.retry, ending.meaning) == (close.retry, close.meaning)


@pytest.mark.parametrize(
    ("code", "reason", "retry"),
    [
        (1000, "", Retry.NEVER),
        (1001, "", Retry.BACKOFF),
        (1006, "", Retry.BACKOFF),
        (1008, "token_of_the_future", Retry.NEVER),
        (1011, "token_expired", Retry.BACKOFF),  # a slug under another code
        (1012, "anything", Retry.BACKOFF),
        (4999, "anything", Retry.NEVER),
    ],
)
async def test_ending_of_another_kind_goes_by_its_code(
    code: int, reason: str, retry: Retry
) -> None:
    assert Ending.of(code, reason).retry is retry


@pytest.mark.parametrize(
    ("status", "body", "headers", "retry", "after"),
    [
        (429, {"detail": "rate_limited"}, {"retry-after": "7"}, Retry.BACKOFF, 7.0),
        (429, None, {"retry-after": "Wed, 21 Oct 2026"}, Retry.BACKOFF, None),
        (403, {"detail": "origin_forbidden"}, {}, Retry.NEVER, None),
        (403, None, {}, Retry.REAUTHENTICATE, None),
        (400, {"detail": "host_unknown"}, {}, Retry.NEVER, None),
        (502, {"detail": "<html>"}, {}, Retry.BACKOFF, None),
        (418, ["detail"], {}, Retry.NEVER, None),
    ],
)
async def test_refusal_says_what_to_do(
    status: int,
    body: object,
    headers: dict[str, str],
    retry: Retry,
    after: float | None,
) -> None:
    refused = RefusedError.of(status, body, headers)
    assert (refused.retry, refused.retry_after) == (retry, after)
    assert "<" not in str(refused)


NONSENSE: list[Callable[[], str]] = [
    lambda: "",
    lambda: "[]",
    lambda: "null",
    lambda: '{"type": []}',
    lambda: '{"type": "ack"}',
    lambda: '{"type": "ack", "id": []}',
    lambda: '{"type": "joined", "room": "x", "members": 3}',
    lambda: '{"type": "auth_required", "timeout": 1e999}',
    lambda: '{"type": "auth_required", "timeout": ' + "9" * 400 + "}",
    lambda: "[" * 100_000,
    lambda: '{"type": "of the future"}',
]


@pytest.mark.parametrize("text", NONSENSE)
async def test_message_that_is_not_known_is_no_error(text: Callable[[], str]) -> None:
    assert isinstance(read_event(text()), Unknown)


async def test_what_a_slow_or_restarted_client_is_told_is_understood() -> None:
    assert read_event(messages.dropped(17)) == Dropped(17)
    assert read_event(messages.restarting(3.4)) == Restarting(3.4)
