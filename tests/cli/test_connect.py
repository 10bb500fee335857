"""``authws connect`` against a live service.

What the terminal, signals and the environment have a part in is tried as a process of
its own; the rest as a conversation within this one, which starts in no time.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
import typer
from typer.testing import CliRunner
from websockets.asyncio.client import ClientConnection

from authws.cli.connect import StrategyOption
from authws.cli.talk import Talk
from authws.cli.terminal import Lines, escape
from authws.client import Client, Strategy, lasting
from tests.running import PASSWORD, STRATEGIES, Service, free_port, running
from tests.servers.proxy import Proxy, proxy

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def service(
    tmp_path_factory: pytest.TempPathFactory,
) -> AsyncIterator[Service]:
    async with running(tmp_path_factory.mktemp("connect")) as service:
        await service.add_user("alice")
        await service.add_user("bob")
        await service.add_user("carol")
        await service.add_user("outsider", scopes=())
        await service.add_user("reader", scopes=("join:*",))
        yield service


STARTED: list[asyncio.subprocess.Process] = []


@pytest_asyncio.fixture(autouse=True, loop_scope="module")
async def nothing_left_running() -> AsyncIterator[None]:
    """A test that fails does not leave its process behind."""
    yield
    while STARTED:
        process = STARTED.pop()
        if process.returncode is None:
            process.kill()
        await process.communicate()


class Terminal:
    """A started ``authws connect``, and what it has said so far."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdin
        assert process.stdout
        assert process.stderr
        self.process = process
        self.stdin, self.stdout, self.stderr = (
            process.stdin,
            process.stdout,
            process.stderr,
        )

    async def says(self, text: str, stream: asyncio.StreamReader) -> str:
        """Read on until a line holds the text; return that line."""
        async with asyncio.timeout(20):
            while line := (await stream.readline()).decode():
                if text in line:
                    return line
        raise AssertionError(f"{text!r} was never said")

    async def end(self, stdin: str | None = None) -> tuple[int, str, str]:
        """Write the last of the input, or leave it open; return status and output."""
        last = None if stdin is None else stdin.encode()
        out, err = await asyncio.wait_for(self.process.communicate(last), 20)
        assert self.process.returncode is not None
        return self.process.returncode, out.decode(), err.decode()


async def start(
    service: Service,
    *options: str,
    user: str = "alice",
    strategy: str = "first-message",
    password: str | None = PASSWORD,
    url: str = "",
) -> Terminal:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("AUTHWS_")}
    if password is not None:
        environment["AUTHWS_PASSWORD"] = password
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "authws", "connect", url or service.origin),
        *("--user", user, *(("--strategy", strategy) if strategy else ()), *options),
        env=environment,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        start_new_session=True,  # away from the terminal of whoever runs the tests
    )
    STARTED.append(process)
    return Terminal(process)


class Conversation:
    """A ``Talk`` in this process, its input a pipe and its output two lists."""

    def __init__(self, origin: str, strategy: str, room: str | None) -> None:
        self.said: list[str] = []
        self.noted: list[str] = []
        self._reading, self._writing = os.pipe()
        self._talk = Talk(
            Client(origin),
            Strategy(strategy),
            room=room,
            say=self.said.append,
            note=self.noted.append,
        )
        self._task: asyncio.Task[int] | None = None

    def start(self, user: str, password: str) -> None:
        lines = Lines(self._reading)
        self._task = asyncio.create_task(self._talk.run(user, password, lines))

    async def says(self, text: str) -> str:
        """Wait for a line, of peers or about the connection, that holds the text."""
        found: list[str] = []

        def is_there() -> bool:
            found[:] = [line for line in self.said + self.noted if text in line]
            return bool(found)

        await until(is_there)
        return found[0]

    async def types(self, text: str) -> None:
        """Write some of the input."""
        await asyncio.to_thread(os.write, self._writing, text.encode())

    async def end(self, stdin: str | None = None) -> tuple[int, list[str], str]:
        """Write the last of the input, or leave it open; return status and output."""
        assert self._task is not None
        if stdin is not None:
            await self.types(stdin)
            os.close(self._writing)
        status = await asyncio.wait_for(self._task, 20)
        if stdin is None:
            os.close(self._writing)
        return status, self.said, "\n".join(self.noted)


def converse(
    service: Service,
    *,
    user: str = "alice",
    strategy: str = "first-message",
    password: str = PASSWORD,
    room: str | None = "lobby",
    origin: str = "",
) -> Conversation:
    conversation = Conversation(origin or service.origin, strategy, room)
    conversation.start(user, password)
    return conversation


async def member(
    service: Service, name: str = "bob", room: str = "lobby"
) -> ClientConnection:
    """Somebody else, already in the room."""
    peer = await service.connect("first-message", name)
    await peer.send(json.dumps({"type": "join", "room": room}))
    assert json.loads(await peer.recv())["type"] == "joined"
    return peer


async def hear(peer: ClientConnection) -> dict[str, Any]:
    message: dict[str, Any] = json.loads(await asyncio.wait_for(peer.recv(), 20))
    return message


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 - the state of another thread
            await asyncio.sleep(0.02)


# ------------------------------------------------------------------- in this process


@pytest.mark.parametrize("strategy", STRATEGIES)
async def test_lines_come_back_before_it_leaves(
    service: Service, strategy: str
) -> None:
    conversation = converse(service, strategy=strategy)
    status, said, noted = await conversation.end("hello\nwörld 🌍\n\nno line end")
    assert status == 0, noted
    assert said == [
        "[lobby] alice: hello",
        "[lobby] alice: wörld 🌍",
        "[lobby] alice: ",
        "[lobby] alice: no line end",
    ]
    assert f"connected as alice by {strategy}" in noted
    assert "joined lobby: alice" in noted


@pytest.mark.parametrize("strategy", STRATEGIES)
async def test_echo_returns_each_line(service: Service, strategy: str) -> None:
    conversation = converse(service, strategy=strategy, room=None)
    status, said, noted = await conversation.end("one\n\n\x1b[2J\n")
    assert (status, said) == (0, ["one", "", "\\x1b[2J"]), noted


@pytest.mark.parametrize("strategy", STRATEGIES)
async def test_it_leaves_no_session_behind(service: Service, strategy: str) -> None:
    conversation = converse(service, user="carol", strategy=strategy)
    assert (await conversation.end("hello\n"))[0] == 0
    assert await service.call(service.house.sessions.list_for("carol")) == []


async def test_peers_are_heard_and_cannot_drive_the_terminal(service: Service) -> None:
    conversation = converse(service, room="den")
    await conversation.says("joined den")
    async with await member(service, "bob", "den") as bob:
        assert await conversation.says("bob") == "[den] * bob joined"
        for data in ("\x1b[2J\a\u202eevil\r\n", {"key": "\x9b"}):
            await bob.send(json.dumps({"type": "publish", "room": "den", "data": data}))
        text = await conversation.says("evil")
        assert text == "[den] bob: \\x1b[2J\\x07\\u202eevil\\r\\n"
        assert await conversation.says("key") == '[den] bob: {"key": "\\u009b"}'
    await conversation.says("* bob left")
    assert (await conversation.end(""))[0] == 0


@pytest.mark.parametrize("strategy", STRATEGIES)
async def test_an_ending_is_told_with_its_code_reason_and_what_to_do(
    service: Service, strategy: str
) -> None:
    conversation = converse(service, user="carol", strategy=strategy)
    await conversation.says("joined lobby")
    (session,) = await service.call(service.house.sessions.list_for("carol"))
    await service.call(service.house.accounts.end_session(session.id, "test"))
    status, _, noted = await conversation.end()
    assert status == 1
    kind = "session" if strategy == "session-cookie" else "token"
    assert f"authws: closed: 1008 {kind}_revoked: the " in noted
    assert noted.endswith(
        "session was ended. Run this command again, to log in afresh."
    )


async def test_wrong_password_is_refused_in_a_sentence(service: Service) -> None:
    status, said, noted = await converse(service, password="not the password").end()
    assert (status, said) == (1, [])
    assert noted == (
        "authws: refused: 401 credentials_invalid: the user name or the password is"
        " wrong, or the user is disabled. Check both and try again."
    )


async def test_room_without_its_scope_is_refused(service: Service) -> None:
    status, said, noted = await converse(service, user="outsider").end("hello\n")
    assert (status, said) == (1, [])
    assert "error forbidden: no scope to join this room" in noted
    assert "not let in" in noted


async def test_line_that_is_refused_is_told_and_counts(service: Service) -> None:
    status, said, noted = await converse(service, user="reader").end("hello\n")
    assert (status, said) == (1, [])
    assert "error forbidden: no scope to publish here" in noted


async def test_message_over_the_limit_is_told(service: Service) -> None:
    status, _, noted = await converse(service).end("x" * 70_000 + "\n")
    assert status == 1
    assert "closed: 1009 message_too_big" in noted
    assert noted.endswith("The same attempt will fail again.")


async def test_a_pipe_faster_than_the_server_allows_is_slowed(
    service: Service,
) -> None:
    lines = [str(number) for number in range(300)]
    status, said, noted = await converse(service, room=None).end("\n".join(lines))
    assert (status, said) == (0, lines), noted


async def test_a_service_with_further_origins_is_its_own_origin_still(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    path = tmp_path_factory.mktemp("further")
    async with running(path, allowed_origins="https://app.example.com") as service:
        await service.add_user("alice")
        conversation = converse(service, strategy="session-cookie")
        status, said, noted = await conversation.end("hello\n")
    assert status == 0, noted
    assert "[lobby] alice: hello" in said


async def test_a_refused_origin_is_told_with_what_helps(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    path = tmp_path_factory.mktemp("elsewhere")
    elsewhere = {"public_origin": "http://localhost:1", "allowed_hosts": "127.0.0.1"}
    async with running(path, **elsewhere) as service:
        await service.add_user("alice")
        conversation = converse(service, strategy="session-cookie")
        status, _, noted = await conversation.end("hello\n")
    assert status == 1
    assert "AUTHWS_PUBLIC_ORIGIN" in noted
    assert "AUTHWS_ALLOWED_ORIGINS" in noted
    assert "Run this command again" not in noted


async def test_a_strategy_has_two_spellings_and_a_default() -> None:
    chosen: list[Strategy] = []
    command = typer.Typer(rich_markup_mode=None)

    @command.command()
    def choose(strategy: StrategyOption = Strategy.FIRST_MESSAGE) -> None:
        chosen.append(strategy)

    for given in ([], ["--strategy", "query_param"], ["--strategy", "session-cookie"]):
        assert CliRunner().invoke(command, given).exit_code == 0
    assert chosen == [
        Strategy.FIRST_MESSAGE,
        Strategy.QUERY_PARAM,
        Strategy.SESSION_COOKIE,
    ]
    refused = CliRunner().invoke(command, ["--strategy", "carrier-pigeon"])
    assert refused.exit_code == 2
    assert "query-param, first-message, session-cookie" in refused.output


async def test_strategy_need_not_be_named(service: Service) -> None:
    terminal = await start(service, strategy="")
    status, said, noted = await terminal.end("hello\n")
    assert status == 0, noted
    assert "alice: hello" in said
    assert "by first-message" in noted


async def test_token_is_renewed_before_it_ends(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    path = tmp_path_factory.mktemp("renewal")
    async with running(path, access_ttl=2) as service:
        await service.add_user("alice")
        conversation = converse(service, strategy="query-param")
        await conversation.says("joined")
        (connection,) = service.house.hub.connections.values()
        first = connection.principal.expires_at
        await until(lambda: connection.principal.expires_at > first)
        await until(lambda: service.clock.now() > first)
        status, said, noted = await conversation.end("still here\n")
        assert (status, said) == (0, ["[lobby] alice: still here"]), noted


async def test_throttled_login_says_when_to_come_back(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    async with running(tmp_path_factory.mktemp("throttle"), login_rate=1) as service:
        await service.add_user("alice")
        noted = ""
        for _ in range(3):
            status, _, noted = await converse(service, password="wrong").end("")
            assert status == 1
        assert "429 rate_limited: too many attempts. Try again in " in noted


@asynccontextmanager
async def cuttable(
    path: Path, monkeypatch: pytest.MonkeyPatch, **settings: Any
) -> AsyncIterator[tuple[Service, Proxy, str]]:
    """A service, a line to it that can be cut, and the origin that it leads to."""
    monkeypatch.setattr(lasting, "FIRST_DELAY", 0.05)
    monkeypatch.setattr(lasting, "LONGEST_DELAY", 0.05)
    port = free_port()
    async with proxy(f"http://127.0.0.1:{port}") as line:
        origin = f"http://127.0.0.1:{line.port}"
        async with running(
            path, port=port, allowed_origins=origin, **settings
        ) as service:
            for name in ("alice", "bob"):
                await service.add_user(name)
            yield service, line, origin


@pytest.mark.parametrize("strategy", STRATEGIES)
async def test_what_was_missed_is_said_after_a_loss(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, strategy: str
) -> None:
    async with cuttable(tmp_path, monkeypatch) as (service, line, origin):
        talk = converse(service, strategy=strategy, origin=origin)
        async with await member(service) as bob:
            await talk.types("before\n")
            await talk.says("alice: before")
            line.cut()
            await talk.says("the connection was lost; coming back in 0.")
            publish = {"type": "publish", "room": "lobby", "data": "missed"}
            await bob.send(json.dumps(publish))
            await talk.types("typed meanwhile\n")
            line.mend()
            await talk.says("bob: missed")
            status, said, noted = await talk.end("after\n")
    assert status == 0, noted
    assert [line for line in said if "*" not in line] == [
        "[lobby] alice: before",
        "[lobby] bob: missed",
        "[lobby] alice: typed meanwhile",
        "[lobby] alice: after",
    ]
    assert noted.count("coming back") == 1
    assert noted.count(f"connected as alice by {strategy}") == 2
    assert "missing" not in noted


async def test_what_may_be_missing_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nothing = {"history": "*=0"}
    async with cuttable(tmp_path, monkeypatch, **nothing) as (service, line, origin):
        talk = converse(service, origin=origin)
        await talk.says("joined lobby: alice")
        rooms = service.house.hub.rooms
        service.loop.call_soon_threadsafe(rooms.interrupted, ["lobby"])
        await talk.says("lobby: something may be missing here")
        line.cut_once()
        await talk.says("lobby: what was said meanwhile may be missing")
        status, said, noted = await talk.end("after\n")
    assert (status, said) == (0, ["[lobby] alice: after"]), noted


async def test_a_message_that_was_cut_off_is_brought_if_it_arrived(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server takes it, and the line is cut before it can say so."""
    async with cuttable(tmp_path, monkeypatch) as (service, line, origin):
        talk = converse(service, origin=origin)
        await talk.says("joined lobby: alice")
        line.cut_after(1)
        await talk.types("did this arrive?\n")
        await talk.says("1 of your messages may not have arrived")
        status, said, noted = await talk.end("")
    assert (status, said) == (0, ["[lobby] alice: did this arrive?"]), noted


# -------------------------------------------------------------- as a process of its own


async def test_piped_line_comes_back(service: Service) -> None:
    terminal = await start(service, strategy="query-param")
    status, out, err = await terminal.end("hello\n")
    assert (status, out) == (0, "[lobby] alice: hello\n"), err
    assert PASSWORD not in err


async def test_control_c_leaves_cleanly(service: Service) -> None:
    async with await member(service) as bob:
        terminal = await start(service)
        assert (await hear(bob))["event"] == "joined"
        await terminal.says("joined", terminal.stderr)
        terminal.process.send_signal(signal.SIGINT)
        assert (await hear(bob))["event"] == "left"
        status, _, err = await terminal.end()
    assert (status, err) == (0, "")


async def test_password_is_the_first_line_of_the_input(service: Service) -> None:
    terminal = await start(service, "--password-stdin", password=None)
    status, out, err = await terminal.end(f"{PASSWORD}\nhello\n")
    assert (status, out) == (0, "[lobby] alice: hello\n"), err
    assert PASSWORD not in err


async def test_without_a_terminal_it_says_where_a_password_may_come_from(
    service: Service,
) -> None:
    terminal = await start(service, password=None)
    status, _, err = await terminal.end("hello\n")
    assert status == 1
    assert "AUTHWS_PASSWORD" in err
    assert "--password-stdin" in err


@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        ("http://chat.example.com", "Use https"),
        ("https://alice:hunter2@chat.example.com/x", "without a path or a user name"),
    ],
)
async def test_url_that_no_password_may_be_sent_to(
    service: Service, url: str, sentence: str
) -> None:
    terminal = await start(service, url=url)
    status, _, err = await terminal.end("hello\n")
    assert status == 1
    assert sentence in err
    assert "hunter2" not in err
    assert "Traceback" not in err


async def test_nobody_listening_is_a_sentence(service: Service) -> None:
    terminal = await start(service, "--insecure", url="http://127.0.0.1:1")
    status, _, err = await terminal.end("hello\n")
    assert status == 1
    assert "*** INSECURE" in err
    assert "cannot reach http://127.0.0.1:1: " in err
    assert "Check the URL, and that the service is running." in err


async def test_reader_that_goes_away_is_no_traceback(service: Service) -> None:
    terminal = await start(service)
    await terminal.says("joined", terminal.stderr)
    transport = terminal.stdout._transport  # type: ignore[attr-defined]
    transport.close()
    terminal.stdin.write(b"hello\n")
    await asyncio.wait_for(terminal.process.wait(), 20)
    assert (await terminal.stderr.read()).decode() == ""
    assert terminal.process.returncode == 0


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain, é, 日本\u3000語, 🌍", "plain, é, 日本\u3000語, 🌍"),
        ("\x1b]0;title\x07", "\\x1b]0;title\\x07"),
        ("a\nb\tc\x7f\x9b", "a\\nb\\tc\\x7f\\x9b"),
        ("\u202e\u2066\u200b\ufeff", "\\u202e\\u2066\\u200b\\ufeff"),
        ("\u2028\ud800\U000e0041", "\\u2028\\ud800\\U000e0041"),
    ],
)
async def test_escape(text: str, shown: str) -> None:
    assert escape(text) == shown


async def test_lines_are_read_as_they_come() -> None:
    reading, writing = os.pipe()
    lines = Lines(reading)
    os.write(writing, "first\r\nsécond\n\xff".encode() + b"\xff\nla")
    assert lines.read() == "first"
    assert lines.read() == "sécond"
    assert lines.read() == "\xff\ufffd"
    os.write(writing, b"st")
    os.close(writing)
    assert lines.read() == "last"
    assert lines.read() is None
    os.close(reading)
