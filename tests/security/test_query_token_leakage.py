"""Query-token transport and leakage.

A URL is written down by everybody who handles it. Here canary credentials travel in
URLs, headers, cookies and messages, accepted and refused, and then every place where
this service writes is searched for them: not only for the whole, but for each part
that would be worth having.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
import secrets
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import httpx
import pytest
import pytest_asyncio
from uvicorn.logging import AccessFormatter, DefaultFormatter

from tests.running import PASSWORD, Service, free_port, running
from tests.security.attacks import (
    ADMITTED,
    CARRIERS,
    Outcome,
    one_refusal,
    outcome,
    present,
    refusal,
)
from tests.security.peers import bearer, control, controlled, eventually
from tests.wire import TEXT, Response, frame, handshake, request, wire

pytestmark = pytest.mark.asyncio(loop_scope="module")

OWN_CLIENTS = ("httpx", "httpcore", "websockets.client")
"""Loggers of this test's own clients, which are no part of the service."""


# ----------------------------------------------------------------------------- canaries


@dataclass
class Canaries:
    """Credentials of one user, of every kind, and some that were never any good."""

    token: str
    refresh_token: str
    ticket: str
    cookie: str
    password: str = PASSWORD
    opaque: list[str] = field(default_factory=list)

    def another(self) -> str:
        """Make a credential without any shape that a filter could know it by."""
        self.opaque.append(f"canary{secrets.token_hex(12)}")
        return self.opaque[-1]

    def parts(self) -> Iterator[str]:
        """Everything that may appear nowhere."""
        yield self.password
        yield self.refresh_token
        yield from self.opaque
        for token in (self.token, self.ticket, self.cookie):
            yield token
            yield from (part for part in token.split(".") if len(part) > 16)

    def assert_absent(self, text: str, where: str) -> None:
        for part in self.parts():
            at = text.find(part)
            assert at < 0, f"{where}: …{text[max(0, at - 90) : at]}[HERE]"


async def canaries_of(service: Service, name: str = "alice") -> Canaries:
    tokens = await service.login(name)
    token = tokens["access_token"]
    cookie = (await service.cookie(name)).partition("=")[2]
    ticket = await service.ticket(token)
    return Canaries(token, tokens["refresh_token"], ticket, cookie)


@contextmanager
def verbose() -> Iterator[None]:
    """Let every logger say all it can."""
    named = [logging.getLogger(name) for name in list(logging.root.manager.loggerDict)]
    loggers = [logging.getLogger(), *named]
    levels = [(logger, logger.level) for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.DEBUG)
    try:
        yield
    finally:
        for logger, level in levels:
            logger.setLevel(level)


FORMATTERS = (
    logging.Formatter("%(name)s %(message)s %(args)s %(msg)s"),
    DefaultFormatter("%(levelprefix)s %(message)s", use_colors=False),
)


def written(records: Iterable[logging.LogRecord]) -> str:
    """All that a handler could make of these records, whatever it looks at."""
    lines: list[str] = []
    for record in records:
        if record.name.startswith(OWN_CLIENTS):
            continue
        lines += [formatter.format(record) for formatter in FORMATTERS]
        lines += [f"{name}={value!r}" for name, value in vars(record).items()]
        if record.name == "uvicorn.access":
            access = AccessFormatter("%(client_addr)s %(request_line)s %(status_code)s")
            lines.append(access.format(record))
        if record.exc_info and record.exc_info[1]:
            lines += traceback.TracebackException.from_exception(
                record.exc_info[1], capture_locals=True
            ).format()
    return "\n".join(lines)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def service(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Service]:
    with verbose():
        async with running(tmp_path_factory.mktemp("leakage")) as service:
            await service.add_user("alice")
            await service.add_user("bob")
            async with controlled(service):
                yield service


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def strict(
    service: Service, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Service]:
    """A second process over the same database: it refuses before accept, and its
    query takes tickets only."""
    async with running(
        tmp_path_factory.mktemp("strict"),
        data_dir=service.house.settings.data_dir,
        refuse="before_accept",
        query_param_accepts="ticket",
    ) as strict:
        await control_of_tickets(strict)
        yield strict
        await control_of_tickets(strict)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def token(service: Service) -> str:
    return await service.token()


async def control_of_tickets(service: Service) -> None:
    ticket = await service.ticket(await service.token())
    assert await present(service, "query", ticket) == ADMITTED["query"]


# ------------------------------------------------------------------------------ traffic


async def answer_to(port: int, data: bytes) -> str:
    """Send bytes on a connection of their own; return all that came back, as text."""
    async with wire(port) as peer:
        await peer.send(data)
        response = await peer.response()
        text = repr(response)
        if response.status == 101:
            await peer.send(frame(TEXT, b'{"type":"auth","token":"a.b.c"}'))
            text += repr(await peer.frame())
        return text


async def first_message(port: int, message: bytes) -> str:
    async with wire(port) as peer:
        await peer.upgrade("/ws/first-message")
        await peer.frame()
        await peer.send(frame(TEXT, message))
        return repr(await peer.frame())


def post(path: str, body: dict[str, Any], *lines: str) -> bytes:
    data = json.dumps(body).encode()
    head = ["Content-Type: application/json", f"Content-Length: {len(data)}", *lines]
    return request(path, *head, method="POST") + data


async def travel(port: int, canaries: Canaries) -> list[str]:
    """Send canaries in every way there is; return all answers but the logins'."""
    good, another = canaries.token, canaries.another
    query = "/ws/query-param"
    targets = [
        f"{query}?token={good}",
        f"{query}/echo?token={good}",
        f"{query}?token={canaries.ticket}",
        f"{query}?token={canaries.ticket}",  # used
        f"{query}?token={canaries.refresh_token}",
        f"{query}?token={good[:-3]}",
        f"{query}?token={another()}",
        f"{query}?token={good}&token={another()}",
        f"{query}?%74oken={another()}",
        f"{query}?tok%65n={good}",
        f"{query}?TOKEN={another()}",
        f"{query}?access_token={another()}",
        f"{query}?jwt={good}",
        f"{query}?anything={another()}",
        f"{query}?{another()}"[:40] + f"&token={another()}",
        f"{query}#token={another()}",
        f"{query};token={another()}",
        f"{query}%3Ftoken={another()}",
        f"{query}%3Ftoken%3D{another()}",
        f"/ws/token={another()}",
        f"{query}/{good}",
        f"/{good}/ws/query-param",
        f"/nowhere?token={another()}",
        f"/ws/first-message?token={good}",
        f"/ws/session-cookie?token={another()}",
        f"/ws/session-cookie/echo?access_token={good}",
    ]
    answers = [await answer_to(port, handshake(target)) for target in targets]
    # refused below the app, which has a log line of its own for that
    early = b"\x81\x80\0\0\0\0"
    answers += [await answer_to(port, handshake(target) + early) for target in targets]
    origin = f"Origin: http://127.0.0.1:{port}"
    for path in ("/ws/first-message", "/ws/session-cookie", query):
        for line in (
            f"Authorization: Bearer {good}",
            f"Authorization: Basic {another()}",
            f"Cookie: authws={canaries.cookie}",
            f"Cookie: authws={another()}",
            f"Sec-WebSocket-Protocol: authws.v1, {good}",
            f"Referer: http://127.0.0.1:{port}/?token={good}",
            f"X-Token: {another()}",
        ):
            data = handshake(path, headers=(origin, line))
            answers.append(await answer_to(port, data))
    foreign = (f"Origin: http://evil.example/{good}", f"Cookie: authws={another()}")
    answers.append(await answer_to(port, handshake(query, headers=foreign)))
    for message in (
        {"type": "auth", "token": good},
        {"type": "auth", "token": good[:-3]},
        {"type": "auth", "token": another()},
        {"type": another(), "token": another()},
        {"type": "publish", "room": "lobby", "data": good},
        {"type": "auth", "token": {"x": another()}},
    ):
        answers.append(await first_message(port, json.dumps(message).encode()))
    answers.append(await first_message(port, f"not JSON {good}".encode()))
    for data in (
        request("/auth/me", f"Authorization: Bearer {good}"),
        request("/auth/me", f"Authorization: Bearer {another()}"),
        request(f"/auth/me?token={another()}&access_token={good}"),
        request(f"/healthz?password={another()}"),
        request(f"/{good}"),
        request("/auth/me", f"Cookie: authws={another()}"),
        post("/auth/login", {"username": "alice", "password": another()}),
        post("/auth/login", {"username": another(), "password": {"x": another()}}),
        post("/auth/refresh", {"refresh_token": another()}),
        post("/auth/refresh", {"refresh_token": [another()]}),
        post("/auth/password", {"new_password": another()}, f"Authorization: {good}"),
        request(f"/healthz?token={good}", "Host: evil.example"),
    ):
        answers.append(await answer_to(port, data))
    return answers


@dataclass
class Travelled:
    """What a journey of the canaries left behind."""

    canaries: Canaries
    answers: list[str]
    records: list[logging.LogRecord]
    metrics: str


@pytest_asyncio.fixture(
    scope="module", loop_scope="module", params=["after-accept", "before-accept"]
)
async def travelled(
    request: pytest.FixtureRequest, service: Service, strict: Service
) -> Travelled:
    target = service if request.param == "after-accept" else strict
    canaries = await canaries_of(service)
    since = len(target.records)
    answers = await travel(target.port, canaries)
    async with target.http() as http:
        metrics = (await http.get("/metrics")).text
    await control(service)
    return Travelled(canaries, answers, target.records[since:], metrics)


@pytest.mark.parametrize("case", ["QRY-01", "QRY-02"])
async def test_no_log_record_holds_a_canary(travelled: Travelled, case: str) -> None:
    lines = written(travelled.records)
    assert '"event": "connected"' in lines or '"event": "refused"' in lines
    assert {record.name for record in travelled.records} >= {
        "authws.security",
        "uvicorn.access",
        "uvicorn.error",
    }
    travelled.canaries.assert_absent(lines, "a log record")
    assert not [record for record in travelled.records if record.exc_info]


@pytest.mark.parametrize("case", ["QRY-03"])
async def test_no_answer_holds_a_canary(travelled: Travelled, case: str) -> None:
    """Status, headers and body; close frames; ``error`` messages."""
    assert len(travelled.answers) > 60
    travelled.canaries.assert_absent("\n".join(travelled.answers), "an answer")


@pytest.mark.parametrize("case", ["QRY-04"])
async def test_no_metric_holds_a_canary(travelled: Travelled, case: str) -> None:
    assert "authws_events_total" in travelled.metrics
    travelled.canaries.assert_absent(travelled.metrics, "a metric")


@pytest.mark.parametrize(
    "variant",
    [
        pytest.param("?TOKEN={}", id="QRY-02-upper-case"),
        pytest.param("?access_token={}", id="QRY-02-access_token"),
        pytest.param("?jwt={}", id="QRY-02-jwt"),
        pytest.param("?token%20={}", id="QRY-02-space"),
        pytest.param("?x=1;token={}", id="QRY-02-semicolon"),
        pytest.param("?%2574oken={}", id="QRY-02-encoded-twice"),
    ],
)
async def test_token_counts_under_its_own_name_only(
    service: Service, variant: str, token: str
) -> None:
    async with one_refusal(service), wire(service.port) as peer:
        await peer.send(handshake("/ws/query-param" + variant.format(token)))
        assert await outcome(peer) == Outcome(101, 1008, "auth_missing")
    assert await present(service, "query", token) == ADMITTED["query"]


@pytest.mark.parametrize(
    "lines",
    [
        pytest.param("Referer: http://127.0.0.1/?token={}", id="QRY-02-referer"),
        pytest.param("X-Access-Token: {}", id="QRY-02-header"),
    ],
)
async def test_token_in_another_header_is_none(
    service: Service, lines: str, token: str
) -> None:
    async with one_refusal(service), wire(service.port) as peer:
        headers = (lines.format(token),)
        await peer.send(handshake("/ws/query-param", headers=headers))
        assert await outcome(peer) == Outcome(101, 1008, "auth_missing")


@pytest.mark.parametrize("case", ["QRY-02-path"])
async def test_token_in_the_path_opens_nothing(
    service: Service, case: str, token: str
) -> None:
    query = "/ws/query-param"
    for path in (
        f"{query}/{token}",
        f"{query};token={token}",
        f"{query}%3Ftoken={token}",
        f"{query}#token={token}",
        f"/ws/token={token}",
    ):
        async with wire(service.port) as peer:
            await peer.send(handshake(path))
            assert (await outcome(peer)).status == 403


# ------------------------------------------------------------------- forced tracebacks


@pytest.fixture
def quiet(service: Service) -> Iterator[None]:
    """Forget the errors of a test that makes them on purpose."""
    since = len(service.records)
    yield
    del service.records[since:]


class LoudError(Exception):
    """Tells its reader everything."""


@asynccontextmanager
async def failing(service: Service) -> AsyncIterator[None]:
    """Make the verification of tokens and cookies fail as loudly as code can."""
    authority = service.house.authority

    async def fail(credential: str, **_: Any) -> NoReturn:
        copies = {"token": credential, "other": [credential]}
        try:
            raise LoudError(f"cannot verify {credential!r} of {copies}")
        except LoudError as error:
            error.add_note(f"token={credential}")
            raise RuntimeError("while verifying", copies, credential) from error

    authority.by_token = fail  # type: ignore[assignment]
    authority.by_cookie = fail  # type: ignore[assignment]
    try:
        yield
    finally:
        del authority.by_token, authority.by_cookie


@pytest.mark.parametrize("mode", ["after-accept", "before-accept"])
@pytest.mark.parametrize("case", ["QRY-04-traceback"])
async def test_traceback_shows_no_credential_in_message_or_locals(
    quiet: None, tmp_path: Path, case: str, mode: str
) -> None:
    """The server's own failure: 1011 or 500, fails closed, and one correlation id."""
    after = mode == "after-accept"
    async with running(tmp_path, refuse=mode.replace("-", "_")) as service:
        await service.add_user("alice")
        await control(service)
        canaries = await canaries_of(service)
        since = len(service.records)
        with verbose():
            async with failing(service):
                for token in (canaries.token, canaries.ticket, canaries.refresh_token):
                    for carrier in CARRIERS:
                        closed = Outcome(101, 1011, "internal_error")
                        failed = Outcome(500, 0, "internal_error")
                        over_http = carrier == "bearer" or (
                            carrier == "query" and not after
                        )
                        assert await present(service, carrier, token) == (
                            failed if over_http else closed
                        )
                headers = (
                    f"Origin: {service.origin}",
                    f"Cookie: authws={canaries.cookie}",
                )
                async with wire(service.port) as peer:
                    await peer.send(handshake("/ws/session-cookie", headers=headers))
                    assert (await outcome(peer)).reason == "internal_error"
                await renewal_that_fails(service, canaries)
        records = service.records[since:]
        loud = [r for r in records if r.levelno >= logging.ERROR]
        assert len(loud) == 11
        assert all("correlation id" in record.getMessage() for record in loud)
        assert all("RuntimeError" in record.getMessage() for record in loud)
        canaries.assert_absent(written(records), "a traceback")
        await control(service)
        await eventually(lambda: not service.house.hub.connections)


async def renewal_that_fails(service: Service, canaries: Canaries) -> None:
    """On a live connection as well."""
    by_token = service.house.authority.by_token
    del service.house.authority.by_token
    async with await service.open(f"/ws/query-param?token={canaries.token}") as peer:
        assert json.loads(await peer.recv())["type"] == "auth_ok"
        service.house.authority.by_token = by_token  # type: ignore[method-assign]
        await peer.send(json.dumps({"type": "auth", "token": canaries.token}))
        async with asyncio.timeout(5):
            await peer.wait_closed()
        assert (peer.close_code, peer.close_reason) == (1011, "internal_error")


@pytest.mark.parametrize("case", ["QRY-04-any-logger"])
async def test_traceback_of_other_code_is_blanked_too(
    quiet: None, service: Service, case: str
) -> None:
    """A library's logger, made after ours, that knows nothing of any of this."""
    canaries = await canaries_of(service)
    since = len(service.records)
    library = logging.getLogger(f"library.{secrets.token_hex(4)}")
    try:
        raise LoudError(f"GET /ws/query-param?token={canaries.token}")
    except LoudError:
        library.info("failed with %s", canaries.token, exc_info=True)
    library.info("Authorization: Bearer %s", canaries.another())
    library.info({"cookie": f"authws={canaries.cookie}"})
    library.info("refresh %r", {"refresh_token": canaries.refresh_token})
    records = [r for r in service.records[since:] if r.name == library.name]
    assert len(records) == 4
    formatter = logging.Formatter()
    lines = "\n".join(formatter.format(record) for record in records)
    assert "LoudError" in lines
    canaries.assert_absent(lines, "another logger")


# ---------------------------------------------------------------------- a real process


def spawn(data_dir: Path, port: int, **settings: str) -> subprocess.Popen[bytes]:
    environment = {
        **os.environ,
        "AUTHWS_DATA_DIR": str(data_dir),
        "AUTHWS_LOGIN_RATE": "0",
        "PYTHONFAULTHANDLER": "1",
        **settings,
    }
    return subprocess.Popen(
        [sys.executable, "-m", "authws", "serve", "--port", str(port), "--drain", "1"],
        cwd=data_dir.parent,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def files(folder: Path) -> Iterator[tuple[str, str]]:
    """Names and contents of all files below a folder."""
    for file in folder.rglob("*"):
        if file.is_file():
            yield file.name, file.read_bytes().decode("latin-1")


async def healthy(port: int) -> None:
    async with httpx.AsyncClient() as http, asyncio.timeout(30):
        while True:
            try:
                if (await http.get(f"http://127.0.0.1:{port}/healthz")).is_success:
                    return
            except httpx.TransportError:
                await asyncio.sleep(0.05)


@pytest.mark.parametrize("case", ["QRY-01-process"])
async def test_process_writes_no_canary_to_its_streams_or_files(
    tmp_path: Path, case: str
) -> None:
    """``authws serve`` as everybody runs it; at rest there are only hashes."""
    data_dir = tmp_path / "data"
    async with running(tmp_path, data_dir=data_dir) as service:
        await service.add_user("alice")
        await control(service)
        canaries = await canaries_of(service)
        port = free_port()
        process = spawn(data_dir, port)
        try:
            await healthy(port)
            await travel(port, canaries)
            for token, status in ((canaries.token, 200), (canaries.another(), 401)):
                async with httpx.AsyncClient(headers=bearer(token)) as http:
                    answer = await http.get(f"http://127.0.0.1:{port}/auth/me")
                    assert answer.status_code == status
            assert process.poll() is None
        finally:
            process.send_signal(signal.SIGTERM)
            output, _ = await asyncio.to_thread(process.communicate, timeout=20)
        text = output.decode()
        assert '"event": "connected"' in text
        assert '"event": "refused"' in text
        assert "Traceback" not in text
        canaries.assert_absent(text, "standard output or error")
        for name, content in files(tmp_path):
            canaries.assert_absent(content, name)


# ------------------------------------------------------------------- one token, one way


@pytest.mark.parametrize(
    "query",
    [
        pytest.param("token=bad&token={}", id="QRY-07-bad-good"),
        pytest.param("token={}&token=bad", id="QRY-07-good-bad"),
        pytest.param("token={0}&token={0}", id="QRY-07-twice-the-same"),
        pytest.param("token={}&token=", id="QRY-07-good-empty"),
        pytest.param("token=&token={}", id="QRY-07-empty-good"),
        pytest.param("token={}&%74oken=bad", id="QRY-07-encoded-name"),
        pytest.param("&".join(["x=1"] * 40) + "&token={}", id="QRY-07-many"),
    ],
)
async def test_two_tokens_are_none(
    service: Service, strict: Service, query: str, token: str
) -> None:
    ticket = await service.ticket(token)
    for target, credential, refused in (
        (service, token, Outcome(101, 1008, "auth_malformed")),
        (strict, ticket, Outcome(403, 0, "")),
    ):
        async with one_refusal(target), wire(target.port) as peer:
            path = f"/ws/query-param?{query.format(credential)}"
            await peer.send(handshake(path))
            assert await outcome(peer) == refused
        assert await present(target, "query", credential) == ADMITTED["query"]


@pytest.mark.parametrize(
    ("path", "line"),
    [
        pytest.param(
            "/ws/query-param?token={token}",
            "Authorization: Bearer {token}",
            id="QRY-08-query-and-authorization",
        ),
        pytest.param(
            "/ws/query-param?token={token}",
            "Cookie: authws={cookie}",
            id="QRY-08-query-and-cookie-of-another-user",
        ),
        pytest.param(
            "/ws/first-message?token={token}",
            "X: y",
            id="QRY-08-query-and-first-message",
        ),
        pytest.param(
            "/ws/first-message",
            "Authorization: Bearer {token}",
            id="QRY-08-authorization-and-first-message",
        ),
        pytest.param(
            "/ws/session-cookie?token={token}",
            "Cookie: authws={cookie}",
            id="QRY-08-cookie-and-query",
        ),
    ],
)
async def test_two_carriers_are_none(
    service: Service, strict: Service, path: str, line: str, token: str
) -> None:
    cookie = (await service.cookie("bob")).partition("=")[2]
    values = {"token": token, "cookie": cookie}
    for target in (service, strict):
        headers = (f"Origin: {target.origin}", line.format(**values))
        async with one_refusal(target), wire(target.port) as peer:
            await peer.send(handshake(path.format(**values), headers=headers))
            assert await outcome(peer) == (
                Outcome(403, 0, "")
                if target is strict
                else Outcome(101, 1008, "auth_malformed")
            )
    assert await present(service, "query", token) == ADMITTED["query"]


@pytest.mark.parametrize("kind", ["forged.signature", "of-another-login"])
@pytest.mark.parametrize("case", ["QRY-08-query-and-idle-cookie"])
async def test_cookie_that_contradicts_nothing_is_no_carrier(
    service: Service, strict: Service, token: str, case: str, kind: str
) -> None:
    own = (await service.cookie()).partition("=")[2]
    cookie = own if kind == "of-another-login" else kind
    for target, good in ((service, token), (strict, await service.ticket(token))):
        headers = (f"Origin: {target.origin}", f"Cookie: authws={cookie}")
        async with wire(target.port) as peer:
            path = f"/ws/query-param?token={good}"
            await peer.send(handshake(path, headers=headers))
            assert await outcome(peer) == ADMITTED["query"]


# ------------------------------------------------------------------------------ tickets


@pytest.mark.parametrize("case", ["QRY-09-twice"])
async def test_ticket_opens_one_connection(
    service: Service, strict: Service, case: str, token: str
) -> None:
    for target, used in (
        (service, refusal("query", "ticket_used")),
        (strict, Outcome(403, 0, "")),
    ):
        ticket = await target.ticket(token)
        assert await present(target, "query", ticket) == ADMITTED["query"]
        async with one_refusal(target):
            assert await present(target, "query", ticket) == used
    # and no carrier, nor process, is another chance
    async with one_refusal(service):
        assert await present(service, "first-message", ticket) == refusal(
            "first-message", "ticket_used"
        )


@pytest.mark.parametrize("case", ["QRY-09"])
async def test_twenty_uses_of_a_ticket_at_once_open_one_connection(
    service: Service, strict: Service, case: str, token: str
) -> None:
    """Ten to each of two processes."""
    for _ in range(3):
        ticket = await service.ticket(token)
        async with one_refusal(service, 19):
            outcomes = await asyncio.gather(
                *(
                    present(target, "query", ticket)
                    for target in (service, strict)
                    for _ in range(10)
                )
            )
        assert outcomes.count(ADMITTED["query"]) == 1
        refused = {o for o in outcomes if o != ADMITTED["query"]}
        assert refused <= {refusal("query", "ticket_used"), Outcome(403, 0, "")}


@pytest.mark.parametrize("case", ["QRY-10"])
async def test_ticket_is_worthless_after_its_time(
    service: Service, case: str, token: str
) -> None:
    async with service.http(headers=bearer(token)) as http:
        answer = (await http.post("/auth/ticket")).json()
    assert 0 < answer["expires_in"] <= 30
    service.clock.offset = 29
    try:
        fresh = await service.ticket(token)
        service.clock.offset = 31
        for carrier in ("query", "first-message"):
            async with one_refusal(service):
                assert await present(service, carrier, answer["ticket"]) == refusal(
                    carrier, "token_expired"
                )
        assert await present(service, "query", fresh) == ADMITTED["query"]
    finally:
        service.clock.offset = 0


@pytest.mark.parametrize("case", ["QRY-12"])
async def test_access_token_in_the_url_is_refused_where_tickets_are_the_rule(
    service: Service, strict: Service, case: str, token: str
) -> None:
    for path in ("/ws/query-param", "/ws/query-param/echo"):
        async with one_refusal(strict), wire(strict.port) as peer:
            await peer.send(handshake(f"{path}?token={token}"))
            assert await outcome(peer) == Outcome(403, 0, "")
    assert await present(strict, "first-message", token) == ADMITTED["first-message"]
    # the compatible setting, which is the default
    assert await present(service, "query", token) == ADMITTED["query"]


# -------------------------------------------------------------------- headers and sizes


async def responses(service: Service, strict: Service) -> dict[str, Response]:
    """Answers of every kind."""
    token = await service.token()
    me = "/auth/me"
    asked = {
        "login": (service, post("/auth/login", credentials())),
        "session": (service, post("/auth/session", credentials())),
        "ticket": (service, post("/auth/ticket", {}, f"Authorization: Bearer {token}")),
        "me": (service, request(me, f"Authorization: Bearer {token}")),
        "401": (service, request(me)),
        "401-token": (service, request(me, "Authorization: Bearer a.b.c")),
        "401-login": (
            service,
            post("/auth/login", {"username": "x", "password": "y"}),
        ),
        "403": (service, post("/auth/login", credentials(), "Origin: http://evil.x")),
        "404": (service, request("/nowhere")),
        "422": (service, post("/auth/login", {})),
        "docs": (service, request("/docs")),
        "schema": (service, request("/openapi.json")),
        "health": (service, request("/healthz")),
        "ws-403": (strict, handshake("/ws/query-param?token=a.b.c")),
        "ws-403-origin": (
            service,
            handshake("/ws/session-cookie", headers=("Origin: http://evil.x",)),
        ),
        "ws-403-path": (service, handshake("/ws/nowhere")),
        "414": (service, handshake(f"/ws/query-param?token={'a' * 20_000}")),
        "400": (service, handshake("/ws/query-param", without="Sec-WebSocket-Key")),
    }
    answers: dict[str, Response] = {}
    for name, (target, data) in asked.items():
        async with wire(target.port) as peer:
            await peer.send(data)
            answers[name] = await peer.response()
    return answers


def credentials() -> dict[str, str]:
    return {"username": "alice", "password": PASSWORD}


@pytest.mark.parametrize("case", ["QRY-05", "QRY-13"])
async def test_no_answer_is_kept_or_tells_where_the_reader_came_from(
    service: Service, strict: Service, case: str
) -> None:
    answers = await responses(service, strict)
    statuses = {name: answer.status for name, answer in answers.items()}
    for name, status in statuses.items():
        named = re.search(r"\d{3}", name)
        assert status == (int(named[0]) if named else 200), name
    for name, answer in answers.items():
        if case == "QRY-13":
            assert answer.headers.get("cache-control") == "no-store", name
        elif "html" in answer.headers.get("content-type", ""):
            assert answer.headers["referrer-policy"] == "no-referrer", name
    if case == "QRY-05":
        assert "html" in answers["docs"].headers["content-type"]


@pytest.mark.parametrize("case", ["QRY-15", "QRY-15-header", "QRY-15-plain-http"])
async def test_target_of_70_kb_is_answered_at_once(
    service: Service, case: str, token: str
) -> None:
    canary = f"ey{secrets.token_hex(35_000)}"
    since = len(service.records)
    started = time.monotonic()
    async with wire(service.port) as peer:
        if case == "QRY-15":
            await peer.send(handshake(f"/ws/query-param?token={canary}"))
        elif case == "QRY-15-header":
            line = f"Cookie: authws={canary}"
            await peer.send(handshake("/ws/session-cookie", headers=(line,)))
        else:
            await peer.send(request(f"/auth/me?token={canary}"))
        response = await peer.response()
        assert response.status == (431 if case == "QRY-15-header" else 414)
        assert await peer.is_ended()
    assert time.monotonic() - started < 5
    await eventually(lambda: len(service.records) > since)
    lines = written(service.records[since:])
    assert canary[:40] not in lines
    assert lines.count("refused 4") >= 1
    assert await present(service, "query", token) == ADMITTED["query"]
