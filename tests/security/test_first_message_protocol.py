"""First-message protocol.

The server accepts a stranger here, and must then neither tell nor do anything but ask
who it is, once, within a time. Frames are written byte by byte where a client library
would be too polite.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import resource
import secrets
import socket
import statistics
import struct
import time
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from authws.principal import Principal
from tests.builders import ABSENT, b64url
from tests.running import Service, running
from tests.security.attacks import ADMITTED, Mint, mint_for, one_refusal, present
from tests.security.peers import (
    control,
    controlled,
    eventually,
    hear,
    join,
    say,
    silence,
)
from tests.wire import BINARY, CLOSE, TEXT, WirePeer, frame, handshake, wire

pytestmark = pytest.mark.asyncio(loop_scope="module")

PATHS = ("/ws/first-message", "/ws/first-message/echo")
EITHER_PATH = pytest.mark.parametrize("path", PATHS, ids=["rooms", "echo"])
TIMEOUT = 0.4


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def service(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Service]:
    async with running(tmp_path_factory.mktemp("first-message")) as service:
        for name in ("alice", "bob"):
            await service.add_user(name)
        async with controlled(service):
            yield service


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def mint(service: Service) -> Mint:
    return await mint_for(service)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def hasty(
    service: Service, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Service]:
    """A second process over the same database, with little patience."""
    async with running(
        tmp_path_factory.mktemp("hasty"),
        data_dir=service.house.settings.data_dir,
        auth_timeout=TIMEOUT,
    ) as hasty:
        await control(hasty)
        yield hasty
        await control(hasty)


@asynccontextmanager
async def asked(service: Service, path: str = PATHS[0]) -> AsyncIterator[WirePeer]:
    """Connect, and hear the question that must be answered."""
    async with wire(service.port) as peer:
        await peer.upgrade(path)
        question = json.loads((await peer.frame()).payload)
        assert question == {
            "type": "auth_required",
            "timeout": service.house.settings.auth_timeout,
        }
        yield peer


async def heard(peer: WirePeer) -> dict[str, Any]:
    got = await peer.frame()
    assert got.opcode == TEXT, got.close
    message = json.loads(got.payload)
    assert isinstance(message, dict)
    return message


def auth(token: str, **more: Any) -> bytes:
    return frame(TEXT, json.dumps({"type": "auth", "token": token, **more}).encode())


def text(message: str) -> bytes:
    return frame(TEXT, message.encode("utf-8", "surrogatepass"))


async def only_close(peer: WirePeer) -> tuple[int, str]:
    """The next frame is a close frame: nothing was told before it, nothing after."""
    got = await peer.frame()
    assert got.opcode == CLOSE, got
    await peer.send(frame(CLOSE, got.payload))
    assert await peer.is_ended()
    return got.close


@pytest.fixture
async def still_good(service: Service, mint: Mint) -> AsyncIterator[None]:
    """Before each attack and after it, the good token is admitted."""
    admitted = ADMITTED["first-message"]
    assert await present(service, "first-message", mint.good) == admitted
    yield
    assert await present(service, "first-message", mint.good) == admitted


# ------------------------------------------------------------------------------ silence


async def say_nothing(peer: WirePeer) -> None:
    pass


async def ping_only(peer: WirePeer) -> None:
    """A peer that shows every sign of life but the one that is asked for."""
    for _ in range(40):
        await peer.send(frame(9, b"alive"))
        await asyncio.sleep(TIMEOUT / 40)


async def half_a_message(peer: WirePeer) -> None:
    await peer.send(frame(TEXT, b'{"type":"auth",', fin=False))
    await peer.send(frame(0, b'"token":"', fin=False))


async def half_a_frame(peer: WirePeer) -> None:
    await peer.send(frame(TEXT, b"x" * 4000)[:2000])


@EITHER_PATH
@pytest.mark.parametrize(
    "conduct",
    [
        pytest.param(say_nothing, id="FMA-01"),
        pytest.param(ping_only, id="FMA-01-pings"),
        pytest.param(half_a_message, id="FMA-01-fragments"),
        pytest.param(half_a_frame, id="FMA-01-half-a-frame"),
    ],
)
async def test_silent_socket_is_closed_at_the_deadline(
    hasty: Service, conduct: Callable[[WirePeer], Awaitable[None]], path: str
) -> None:
    """The deadline is absolute: nothing but the token moves it."""
    async with one_refusal(hasty), asked(hasty, path) as peer:
        began = time.monotonic()
        await conduct(peer)
        assert await peer.close_frame() == (1008, "auth_timeout")
        assert TIMEOUT / 2 < time.monotonic() - began < TIMEOUT + 3
    assert not hasty.house.hub.connections


@pytest.mark.parametrize("case", ["FMA-01-default"])
async def test_default_deadline_is_in_the_range_of_the_field(
    service: Service, case: str
) -> None:
    async with asked(service):
        assert 3 <= service.house.settings.auth_timeout <= 5


# ------------------------------------------------------------------ what may come first

FIRST = {
    # another message: not executed, not broadcast
    "FMA-03-publish": ('{"type":"publish","room":"spied","data":1}', "auth_missing"),
    "FMA-03-join": ('{"type":"join","room":"spied"}', "auth_missing"),
    "FMA-03-ping": ('{"type":"ping"}', "auth_missing"),
    "FMA-03-chat": ('{"type":"chat","text":"hello"}', "auth_missing"),
    "FMA-03-no-token": ('{"type":"auth"}', "auth_missing"),
    "FMA-03-null-token": ('{"type":"auth","token":null}', "auth_missing"),
    "FMA-03-empty-token": ('{"type":"auth","token":""}', "auth_missing"),
    # no message at all
    "FMA-08-invalid-json": ('{"type":"auth"', "auth_malformed"),
    "FMA-08-empty": ("", "auth_malformed"),
    "FMA-08-space": (" ", "auth_malformed"),
    "FMA-08-null": ("null", "auth_malformed"),
    "FMA-08-list": ("[]", "auth_malformed"),
    "FMA-08-list-of-one": ('[{"type":"auth"}]', "auth_malformed"),
    "FMA-08-string": ('"x"', "auth_malformed"),
    "FMA-08-number": ("1", "auth_malformed"),
    "FMA-08-true": ("true", "auth_malformed"),
    "FMA-08-object": ("{}", "auth_malformed"),
    "FMA-08-no-type": ('{"token":"%s"}', "auth_malformed"),
    "FMA-08-list-type": ('{"type":["auth"],"token":"%s"}', "auth_malformed"),
    "FMA-08-number-type": ('{"type":1,"token":"%s"}', "auth_malformed"),
    "FMA-08-null-type": ('{"type":null,"token":"%s"}', "auth_malformed"),
    "FMA-08-object-type": ('{"type":{"auth":1},"token":"%s"}', "auth_malformed"),
    "FMA-08-two-texts": ('{"type":"auth","token":"%s"}{}', "auth_malformed"),
    "FMA-08-trailing-comma": ('{"type":"auth","token":"%s",}', "auth_malformed"),
    "FMA-08-single-quotes": ("{'type':'auth','token':'%s'}", "auth_malformed"),
    "FMA-08-bom": ('\ufeff{"type":"auth","token":"%s"}', "auth_malformed"),
    "FMA-08-NaN": ('{"type":"auth","token":"%s","x":NaN}', "auth_malformed"),
    "FMA-08-deep": ("[" * 4000, "auth_malformed"),
    "FMA-08-deep-object": ('{"type":"auth","x":' + '{"a":' * 1000, "auth_malformed"),
    "FMA-08-list-token": ('{"type":"auth","token":["%s"]}', "auth_malformed"),
    "FMA-08-number-token": ('{"type":"auth","token":7}', "auth_malformed"),
    "FMA-08-object-token": ('{"type":"auth","token":{"a":"%s"}}', "auth_malformed"),
    "FMA-08-lone-surrogate": ('{"type":"\\ud800","token":"%s"}', "auth_missing"),
    "FMA-08-long-integer": ('{"type":' + "1" * 5000 + "}", "auth_malformed"),
    # nearly the word
    "FMA-10-upper-case": ('{"type":"AUTH","token":"%s"}', "auth_missing"),
    "FMA-10-space": ('{"type":"auth ","token":"%s"}', "auth_missing"),
    "FMA-10-cyrillic": ('{"type":"\u0430uth","token":"%s"}', "auth_missing"),
    "FMA-10-full-width": ('{"type":"\uff41uth","token":"%s"}', "auth_missing"),
    "FMA-10-nul": ('{"type":"auth\\u0000","token":"%s"}', "auth_missing"),
    "FMA-10-member-case": ('{"Type":"auth","token":"%s"}', "auth_malformed"),
    "FMA-10-token-case": ('{"type":"auth","Token":"%s"}', "auth_missing"),
    # one member twice
    "FMA-11": ('{"type":"auth","token":"bad","token":"%s"}', "auth_malformed"),
    "FMA-11-reverse": ('{"type":"auth","token":"%s","token":"bad"}', "auth_malformed"),
    "FMA-11-same": ('{"type":"auth","token":"%s","token":"%s"}', "auth_malformed"),
    "FMA-11-type": ('{"type":"ping","type":"auth","token":"%s"}', "auth_malformed"),
    "FMA-11-escaped": (
        '{"type":"auth","token":"bad","\\u0074oken":"%s"}',
        "auth_malformed",
    ),
    "FMA-11-nested": (
        '{"type":"auth","token":"%s","x":{"a":1,"a":2}}',
        "auth_malformed",
    ),
}


@EITHER_PATH
@pytest.mark.parametrize("case", FIRST)
async def test_first_message_that_is_no_auth_ends_it(
    service: Service, mint: Mint, still_good: None, case: str, path: str
) -> None:
    message, slug = FIRST[case]
    async with one_refusal(service), asked(service, path) as peer:
        await peer.send(text(message.replace("%s", mint.good)))
        assert await only_close(peer) == (1008, slug)


@pytest.mark.parametrize("case", ["FMA-03", "FMA-03-after-refusal"])
async def test_message_before_auth_is_not_executed(
    service: Service, mint: Mint, still_good: None, case: str
) -> None:
    """Not even if the token comes right behind it, in the same segment."""
    async with await service.connect("first-message", "bob") as bob:
        await join(bob, "spied")
        publish = text('{"type":"publish","room":"spied","data":"early"}')
        entry = text('{"type":"join","room":"spied"}')
        async with one_refusal(service), asked(service) as peer:
            late = auth(mint.good) if "after" in case else b""
            await peer.send(publish + entry + late + publish)
            assert await only_close(peer) == (1008, "auth_missing")
        await silence(bob)


@EITHER_PATH
@pytest.mark.parametrize("case", ["FMA-09", "FMA-09-empty", "FMA-09-good-token"])
async def test_binary_first_message_ends_it(
    service: Service, mint: Mint, still_good: None, case: str, path: str
) -> None:
    payload = {
        "FMA-09": b"\x00\xff\xfe",
        "FMA-09-empty": b"",
        "FMA-09-good-token": json.dumps({"type": "auth", "token": mint.good}).encode(),
    }[case]
    async with one_refusal(service), asked(service, path) as peer:
        await peer.send(frame(BINARY, payload))
        assert await only_close(peer) == (1008, "auth_malformed")


@EITHER_PATH
@pytest.mark.parametrize("case", ["FMA-08-invalid-utf8"])
async def test_first_message_that_is_no_utf8_closes_1007(
    service: Service, still_good: None, case: str, path: str
) -> None:
    async with one_refusal(service), asked(service, path) as peer:
        await peer.send(frame(TEXT, b'{"type":"auth","token":"\xff\xfe"}'))
        assert (await only_close(peer))[0] == 1007


# -------------------------------------------------------------------- order and timing


@pytest.mark.parametrize("case", ["FMA-05"])
async def test_messages_behind_auth_in_one_segment_count_once_and_after_it(
    service: Service, mint: Mint, case: str
) -> None:
    async with await service.connect("first-message", "bob") as bob:
        await join(bob, "segment")
        async with asked(service) as peer:
            entry = text('{"type":"join","room":"segment"}')
            publish = text('{"type":"publish","room":"segment","data":"once","id":1}')
            await peer.send(auth(mint.good) + entry + publish)
            types = [(await heard(peer))["type"] for _ in range(4)]
            assert types == ["auth_ok", "joined", "message", "ack"]
            assert (await hear(bob))["event"] == "joined"
            message = await hear(bob)
            assert (message["from"], message["data"]) == ("alice", "once")
            await silence(bob)


@EITHER_PATH
@pytest.mark.parametrize("case", ["FMA-06", "FMA-06-second-segment"])
async def test_frames_before_the_handshake_is_answered_open_nothing(
    service: Service, mint: Mint, still_good: None, case: str, path: str
) -> None:
    since = len(service.records)
    async with wire(service.port) as peer:
        early = auth(mint.good)
        if case == "FMA-06":
            await peer.send(handshake(path) + early)
        else:  # as one write, cut after the head's last line break but one
            data = handshake(path) + early
            cut = data.index(b"\r\n\r\n") + 2
            await peer.send(data[:cut])
            await peer.send(data[cut:])
        response = await peer.response()
        assert response.status == 400
        assert json.loads(response.body) == {"detail": "data_before_handshake"}
        assert await peer.is_ended()
    lines = [r.getMessage() for r in service.records[since:]]
    assert sum("refused 400" in line for line in lines) == 1
    assert not [line for line in lines if '"connected"' in line]


@EITHER_PATH
@pytest.mark.parametrize("case", ["FMA-07"])
async def test_unauthenticated_socket_hears_of_no_room(
    service: Service, mint: Mint, case: str, path: str
) -> None:
    canary = secrets.token_hex(16)
    async with (
        await service.connect("first-message", "alice") as alice,
        await service.connect("first-message", "bob") as bob,
        asked(service, path) as stranger,
    ):
        present_before = len(service.house.hub.connections)
        assert (await join(alice, "private"))["members"] == ["alice"]
        assert (await join(bob, "private"))["members"] == ["alice", "bob"]
        assert (await hear(alice))["event"] == "joined"
        for _ in range(20):
            await say(alice, type="publish", room="private", data=canary)
        for peer in (alice, bob):
            for _ in range(20):
                assert (await hear(peer))["data"] == canary
        assert len(service.house.hub.connections) == present_before
        # the first thing that it hears is the answer to what it says next
        await stranger.send(auth(mint.good))
        welcome = await heard(stranger)
        assert welcome["type"] == "auth_ok"
        for peer in (alice, bob):
            await silence(peer)


@pytest.mark.parametrize("case", ["FMA-17"])
async def test_auth_at_the_very_deadline_is_either_in_or_out(
    hasty: Service, mint: Mint, case: str
) -> None:
    """Verification ends in the tick of the deadline, a little before, or after it."""
    authority = hasty.house.authority
    real = authority.by_token
    offsets = [step / 2000 for step in range(-10, 11)] + [0.0] * 10
    pending = iter(offsets)

    real_timeout = asyncio.timeout
    deadlines: dict[object, float] = {}

    def timeout(delay: float | None) -> asyncio.Timeout:
        bound = real_timeout(delay)
        when = bound.when()
        if delay == TIMEOUT and when is not None:
            deadlines[asyncio.current_task()] = when
        return bound

    async def by_token(token: str, **options: Any) -> Principal:
        loop = asyncio.get_running_loop()
        due = deadlines[asyncio.current_task()] + next(pending)
        principal = await real(token, **options)
        moment = asyncio.Event()
        loop.call_at(due, moment.set)
        await moment.wait()
        return principal

    async def one() -> str:
        async with asked(hasty, PATHS[1]) as peer:
            await peer.send(auth(mint.good))
            got = await peer.frame()
            if got.opcode == CLOSE:
                assert got.close == (1008, "auth_timeout")
                await peer.send(frame(CLOSE, got.payload))
                assert await peer.is_ended()
                return "closed"
            assert json.loads(got.payload)["type"] == "auth_ok"
            await peer.send(text("still here"))
            assert (await peer.frame()).payload == b"still here"
            return "admitted"

    tasks = await tasks_of(hasty)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(authority, "by_token", by_token)
        patch.setattr(hasty.house.clock, "timeout", timeout)
        since = len(hasty.records)
        outcomes = await asyncio.gather(*(one() for _ in offsets))
    assert len(outcomes) == len(offsets)
    assert set(outcomes) == {"admitted", "closed"}
    events = [e["event"] for e in hasty.security_events]
    await eventually(lambda: not hasty.house.hub.connections)
    assert "handler_failed" not in events
    records = hasty.records[since:]
    assert not [r for r in records if r.exc_info or r.levelname == "ERROR"]
    await eventually_tasks(hasty, tasks)


async def tasks_of(service: Service) -> int:
    async def count() -> int:
        return len(asyncio.all_tasks())

    return await service.call(count())


async def eventually_tasks(service: Service, at_most: int) -> None:
    """Wait until no more tasks are left on the server's loop than there were."""
    async with asyncio.timeout(10):
        while await tasks_of(service) > at_most:  # noqa: ASYNC110 - no event tells
            await asyncio.sleep(0.02)


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="counts in /proc")
@pytest.mark.parametrize("case", ["FMA-18-reset", "FMA-18-close", "FMA-18-after-auth"])
async def test_client_that_vanishes_during_verification_leaves_nothing(
    hasty: Service, mint: Mint, case: str
) -> None:
    authority = hasty.house.authority
    real = authority.by_token
    waiting: list[asyncio.Event] = []

    async def by_token(token: str, **options: Any) -> Principal:
        gate = asyncio.Event()
        waiting.append(gate)
        await gate.wait()
        return await real(token, **options)

    await eventually(lambda: not hasty.house.hub.connections)
    tasks, open_files = await tasks_of(hasty), descriptors()
    since = len(hasty.records)
    with pytest.MonkeyPatch.context() as patch:
        if case != "FMA-18-after-auth":
            patch.setattr(authority, "by_token", by_token)
        for number in range(1, 21):
            reader, writer = await asyncio.open_connection("127.0.0.1", hasty.port)
            writer.write(handshake(PATHS[0]))
            await reader.readuntil(b"\r\n\r\n")
            writer.write(auth(mint.good))
            if case == "FMA-18-after-auth":
                writer.close()
                continue
            await eventually(lambda: len(waiting) == number)  # noqa: B023
            if case == "FMA-18-reset":
                peer = writer.get_extra_info("socket")
                linger = struct.pack("ii", 1, 0)
                peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            writer.close()
            hasty.loop.call_soon_threadsafe(waiting[-1].set)
        await eventually_tasks(hasty, tasks)
    await eventually(lambda: not hasty.house.hub.connections)
    await eventually(lambda: descriptors() <= open_files)
    records = hasty.records[since:]
    assert not [r for r in records if r.exc_info or r.levelname == "ERROR"]
    async with await hasty.connect("first-message", "bob") as bob:
        assert (await join(bob, "lobby"))["members"] == ["bob"]


# ------------------------------------------------------------------- whose word counts


@pytest.mark.parametrize("case", ["FMA-13"])
async def test_identity_comes_from_the_token_alone(
    service: Service, mint: Mint, case: str
) -> None:
    claimed = {
        "user": "bob",
        "subject": "bob",
        "sub": "bob",
        "role": "admin",
        "is_admin": True,
        "scopes": ["admin"],
        "scope": "admin",
        "exp": 9_999_999_999,
        "expires_at": 9_999_999_999,
        "session": "another",
        "__proto__": {"admin": True},
    }
    async with asked(service) as peer:
        await peer.send(auth(mint.good, **claimed))
        welcome = await heard(peer)
        assert (welcome["type"], welcome["subject"]) == ("auth_ok", "alice")
        assert welcome["scopes"] == ["join:*", "publish:*"]
        assert welcome["expires_at"] < time.time() + 1000


@pytest.mark.parametrize("case", ["FMA-14-same-user"])
async def test_second_auth_of_the_same_session_renews(
    service: Service, mint: Mint, case: str
) -> None:
    async with await service.open(PATHS[0]) as peer:
        await hear(peer)
        await say(peer, type="auth", token=mint.token(exp=time.time() + 60))
        first = await hear(peer)
        await join(peer, "renewal")
        await say(peer, type="auth", token=mint.token())
        second = await hear(peer)
        assert second["type"] == "auth_ok"
        assert second["connection"] == first["connection"]
        assert second["expires_at"] > first["expires_at"]
        await silence(peer)


@pytest.mark.parametrize(
    "case",
    ["FMA-14-other-user", "FMA-14-other-session", "FMA-14-bad", "FMA-14-expired"],
)
async def test_second_auth_of_anybody_else_ends_it(
    service: Service, mint: Mint, still_good: None, case: str
) -> None:
    token, slug = {
        "FMA-14-other-user": (await service.token("bob"), "subject_changed"),
        "FMA-14-other-session": (await service.token("alice"), "subject_changed"),
        "FMA-14-bad": ("a.b.c", "token_invalid"),
        "FMA-14-expired": (
            mint.token(iat=time.time() - 9, nbf=ABSENT, exp=time.time() - 1),
            "token_expired",
        ),
    }[case]
    async with asked(service) as peer:
        await peer.send(auth(mint.good))
        assert (await heard(peer))["type"] == "auth_ok"
        await peer.send(auth(token))
        assert await only_close(peer) == (1008, slug)


@pytest.mark.parametrize("case", ["FMA-14-echo"])
async def test_second_auth_on_an_echo_is_a_message_like_any_other(
    service: Service, mint: Mint, case: str
) -> None:
    async with asked(service, PATHS[1]) as peer:
        await peer.send(auth(mint.good))
        assert (await heard(peer))["type"] == "auth_ok"
        await peer.send(text('{"type":"auth","token":"a.b.c"}'))
        assert await heard(peer) == {"type": "auth", "token": "a.b.c"}


@EITHER_PATH
@pytest.mark.parametrize("case", ["FMA-15", "FMA-15-good-one-last"])
async def test_socket_has_one_guess(
    service: Service, mint: Mint, still_good: None, case: str, path: str
) -> None:
    guesses = b"".join(auth(f"a.b.{number}") for number in range(100))
    if "last" in case:
        guesses += auth(mint.good)
    async with one_refusal(service), asked(service, path) as peer:
        await peer.send(guesses)
        assert await only_close(peer) == (1008, "token_invalid")


def with_bad_signature(token: str) -> str:
    return f"{token.rpartition('.')[0]}.{b64url(secrets.token_bytes(32))}"


@pytest.mark.parametrize("case", ["FMA-16"])
async def test_refusals_of_a_token_look_alike(
    service: Service, mint: Mint, still_good: None, case: str
) -> None:
    """In bytes and, as far as a machine can tell, in time."""
    late: dict[str, Any] = {
        "iat": time.time() - 9,
        "nbf": ABSENT,
        "exp": time.time() - 1,
    }
    tokens: dict[str, Callable[[], str]] = {
        "bad signature": lambda: with_bad_signature(mint.good),
        "unknown user": lambda: mint.token(sub="nobody"),
        "unknown session": lambda: mint.token(sid=secrets.token_urlsafe(32)),
        "wrong audience": lambda: mint.token(aud="elsewhere"),
        "garbage": lambda: "garbage",
        "expired, bad signature": lambda: with_bad_signature(mint.token(**late)),
        "expired, wrong audience": lambda: mint.token(aud="elsewhere", **late),
        "expired, wrong issuer": lambda: mint.token(iss="elsewhere", **late),
    }
    answers: dict[str, set[bytes]] = {name: set() for name in tokens}
    durations: dict[str, list[float]] = {name: [] for name in tokens}
    for _ in range(10):
        for name, make in tokens.items():
            message = auth(make())
            async with asked(service) as peer:
                began = time.perf_counter()
                await peer.send(message)
                got = await peer.frame()
                durations[name].append(time.perf_counter() - began)
                assert got.opcode == CLOSE
                answers[name].add(got.payload)
    assert set.union(*answers.values()) == {struct.pack("!H", 1008) + b"token_invalid"}
    medians = {name: statistics.median(times) for name, times in durations.items()}
    assert max(medians.values()) - min(medians.values()) < 0.02, medians
    async with asked(service) as peer:  # good but for its time: this may be told
        await peer.send(auth(mint.token(**late)))
        assert await only_close(peer) == (1008, "token_expired")


@EITHER_PATH
@pytest.mark.parametrize("case", ["FMA-22"])
async def test_auth_ok_holds_what_the_contract_lists(
    service: Service, mint: Mint, case: str, path: str
) -> None:
    async with asked(service, path) as peer:
        await peer.send(auth(mint.good))
        got = await peer.frame()
        welcome = json.loads(got.payload)
    assert set(welcome) == {
        "type",
        "subject",
        "strategy",
        "connection",
        "scopes",
        "expires_at",
        "server_time",
    }
    payload = got.payload.decode()
    for part in (*mint.good.split("."), mint.session, mint.refresh_token, mint.key.kid):
        assert part not in payload
    assert service.house.settings.data_dir.name not in payload


# ------------------------------------------------------------------------ sizes, bombs


@EITHER_PATH
@pytest.mark.parametrize(
    "size",
    [
        pytest.param(8193, id="FMA-21"),
        pytest.param(65_536, id="FMA-21-64KiB"),
        pytest.param(65_537, id="FMA-21-over-any-message"),
        pytest.param(1_048_576, id="FMA-21-1MiB"),
    ],
)
async def test_big_first_message_is_refused_unparsed(
    service: Service, mint: Mint, still_good: None, size: int, path: str
) -> None:
    """It would be good: a token, and blanks which JSON allows."""
    message = json.dumps({"type": "auth", "token": mint.good})
    parsed: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("authws.decisions.messages.parse_auth", parsed.append)
        async with one_refusal(service), asked(service, path) as peer:
            await peer.send(text(message + " " * (size - len(message))))
            assert await only_close(peer) == (1009, "message_too_big")
    assert not parsed


@EITHER_PATH
@pytest.mark.parametrize("case", ["FMA-21-at-the-cap", "FMA-21-fragments"])
async def test_first_message_of_8_kib_is_not_too_big(
    service: Service, mint: Mint, case: str, path: str
) -> None:
    message = json.dumps({"type": "auth", "token": mint.good}).ljust(8192).encode()
    async with asked(service, path) as peer:
        if case == "FMA-21-fragments":
            await peer.send(
                frame(TEXT, message[:100], fin=False) + frame(0, message[100:])
            )
        else:
            await peer.send(frame(TEXT, message))
        assert (await heard(peer))["type"] == "auth_ok"


@pytest.mark.parametrize("case", ["FMA-21-multibyte"])
async def test_cap_counts_bytes_and_not_letters(
    service: Service, mint: Mint, still_good: None, case: str
) -> None:
    message = json.dumps({"type": "auth", "token": mint.good, "x": "é" * 5000})
    padded = message.encode().decode("unicode_escape")
    assert len(padded) < 8192 < len(padded.encode())
    async with one_refusal(service), asked(service) as peer:
        await peer.send(text(padded))
        assert await only_close(peer) == (1009, "message_too_big")


@EITHER_PATH
@pytest.mark.parametrize("case", ["FMA-24"])
async def test_compressed_bomb_is_not_inflated_before_auth(
    service: Service, still_good: None, case: str, path: str
) -> None:
    deflate = zlib.compressobj(9, zlib.DEFLATED, -15)
    blanks = b" " * (1 << 20)
    bomb = b"".join(deflate.compress(blanks) for _ in range(64))
    bomb += deflate.flush(zlib.Z_SYNC_FLUSH)[:-4]
    offer = "Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits"
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    since = len(service.records)
    async with wire(service.port) as peer:
        await peer.send(handshake(path, headers=(offer,)))
        response = await peer.response()
        assert response.status == 101
        assert "sec-websocket-extensions" not in response.headers
        assert (await peer.frame()).opcode == TEXT
        compressed = bytearray(frame(TEXT, bomb[:8_000]))  # 7 MiB of blanks
        compressed[0] |= 0x40  # RSV1
        await peer.send(bytes(compressed))
        assert (await peer.close_frame())[0] == 1002
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 16 * 1024  # KiB
    records = service.records[since:]
    assert not [r for r in records if r.exc_info or r.levelname == "ERROR"]


SUBPROTOCOLS = {
    "FMA-25": "{token}",
    "FMA-25-beside-ours": "authws.v1, {token}",
    "FMA-25-prefixed": "authws.v1, bearer, {token}",
    "FMA-25-kubernetes": "base64url.bearer.authorization.k8s.io.{encoded}",
}


@EITHER_PATH
@pytest.mark.parametrize("case", SUBPROTOCOLS)
async def test_token_among_the_subprotocols_is_no_credential(
    service: Service, mint: Mint, still_good: None, case: str, path: str
) -> None:
    """Not echoed, not accepted, not logged."""
    encoded = base64.urlsafe_b64encode(mint.good.encode()).decode().rstrip("=")
    offered = SUBPROTOCOLS[case].format(token=mint.good, encoded=encoded)
    since = len(service.records)
    async with one_refusal(service), wire(service.port) as peer:
        line = f"Sec-WebSocket-Protocol: {offered}"
        await peer.send(handshake(path, headers=(line,)))
        response = await peer.response()
        assert response.status == 101
        chosen = response.headers.get("sec-websocket-protocol")
        assert chosen == ("authws.v1" if "authws.v1" in offered else None)
        assert (await heard(peer))["type"] == "auth_required"
        await peer.send(text('{"type":"ping"}'))
        assert await only_close(peer) == (1008, "auth_missing")
    logged = "".join(f"{vars(r)} {r.getMessage()}" for r in service.records[since:])
    for part in (*mint.good.split("."), encoded):
        assert part not in logged
