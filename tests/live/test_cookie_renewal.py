"""A cookie's connections live for as long as its session is used, and no longer.

Use is a request or a handshake with the cookie. A message is none: an open socket is
no person who is there.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import pytest_asyncio
from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed

from tests.grants import Grant, grant, hear, knock, say, until
from tests.live.calls import calling
from tests.machine import Machine
from tests.running import Service, running

pytestmark = pytest.mark.asyncio(loop_scope="module")

AssertPrompt = Callable[..., None]
IDLE = 1.2
"""Seconds without use after which these sessions end."""
"""Seconds after its end by which a connection is closed."""
EXPIRED = (1008, "session_expired")
ROOMS = "/ws/session-cookie"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def service(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Service]:
    async with running(tmp_path_factory.mktemp("service")) as service:
        await service.add_user("alice")
        yield service


class Page:
    """A browser's page: a session's cookie, and a socket that notes what it hears."""

    def __init__(self, granted: Grant, peer: ClientConnection) -> None:
        self.granted = granted
        self.peer = peer
        self.heard: list[dict[str, Any]] = []
        self.closed_at = 0.0
        self.ending: tuple[int, str] | None = None
        self._listening = asyncio.create_task(self._listen())

    async def _listen(self) -> None:
        try:
            while True:
                self.heard.append(await hear(self.peer))
        except ConnectionClosed as closed:
            self.closed_at = time.time()
            if closed.rcvd is not None:
                self.ending = (int(closed.rcvd.code), closed.rcvd.reason)

    @property
    def ends_at(self) -> float:
        """As it was last told."""
        return float(self.of_type("auth_ok")[-1]["expires_at"])

    def of_type(self, kind: str) -> list[dict[str, Any]]:
        return [message for message in self.heard if message["type"] == kind]

    async def over(self) -> None:
        """Wait for its end."""
        async with asyncio.timeout(10):
            await self._listening

    async def told(self, kind: str, times: int) -> dict[str, Any]:
        """Wait until it was told this so many times; return the last."""
        await until(lambda: len(self.of_type(kind)) >= times)
        return self.of_type(kind)[-1]

    async def request(self) -> float:
        """Ask over HTTP who one is; return the end that the answer names."""
        headers = {"cookie": f"authws={self.granted.cookie}"}
        async with calling(self.granted.service, headers=headers) as http:
            answer = await http.get("/auth/me")
        assert answer.status_code == 200
        return float(answer.json()["expires_at"])


@asynccontextmanager
async def page(
    service: Service, granted: Grant | None = None, path: str = ROOMS
) -> AsyncIterator[Page]:
    """Open a page's socket, in a session of its own unless it shares one."""
    granted = granted or await grant(service, "session-cookie", idle_ttl=IDLE)
    async with await knock(service, path, granted.cookie) as peer:
        opened = Page(granted, peer)
        if path == ROOMS:
            await opened.told("auth_ok", 1)
        yield opened
        await peer.close()
        await opened.over()


async def during(
    use: Callable[[], Awaitable[Any]], moment: float, every: float = 0.1
) -> None:
    """Use it again and again, until a moment has come."""
    while time.time() < moment:
        await use()
        await asyncio.sleep(every)


@pytest.fixture
def assert_prompt(machine: Machine) -> AssertPrompt:
    """None is early; that they are late at all is the machine's doing, so the best of
    them tells."""

    def check(*lateness: float) -> None:
        assert machine.is_prompt(min(lateness)), (lateness, machine.late)
        assert max(lateness) < 2, lateness

    return check


async def test_without_use_it_ends_at_the_idle_limit(
    service: Service, assert_prompt: AssertPrompt
) -> None:
    one = await grant(service, "session-cookie", idle_ttl=IDLE)
    async with (
        page(service, one) as a,
        page(service, one) as b,
        page(service, one) as c,
    ):
        for shown in (a, b, c):
            await shown.over()
            assert shown.ending == EXPIRED
            assert len(shown.of_type("auth_ok")) == 1
        assert_prompt(*(shown.closed_at - shown.ends_at for shown in (a, b, c)))


async def test_a_request_with_the_cookie_keeps_every_socket_of_the_session_open(
    service: Service, assert_prompt: AssertPrompt
) -> None:
    one = await grant(service, "session-cookie", idle_ttl=IDLE)
    async with (
        page(service, one) as used,
        page(service, one) as beside,
        page(service, one, f"{ROOMS}/echo") as echo,
    ):
        first_end = used.ends_at
        await during(used.request, moment=first_end + IDLE)
        for shown in (used, beside):
            await say(shown.peer, type="ping")
        await echo.peer.send('{"type":"echo"}')
        last_end = await used.request()
        assert last_end > first_end + 0.8 * IDLE
        for shown in (used, beside, echo):
            await shown.over()
            assert shown.ending == EXPIRED
            assert shown.closed_at >= last_end
        assert used.of_type("pong")
        assert beside.of_type("pong")
        # the server says nothing of its own on an echo, extended or not
        assert echo.heard == [{"type": "echo"}]
        assert_prompt(*(shown.closed_at - last_end for shown in (used, beside, echo)))


async def test_a_handshake_with_the_cookie_is_use_as_well(
    service: Service, assert_prompt: AssertPrompt
) -> None:
    async with page(service) as first:
        first_end = first.ends_at
        await asyncio.sleep(IDLE / 2)
        async with page(service, first.granted) as second:
            assert second.ends_at > first_end + IDLE / 4
            for shown in (first, second):
                await shown.over()
                assert shown.ending == EXPIRED
                assert shown.closed_at >= second.ends_at
            late = [shown.closed_at - second.ends_at for shown in (first, second)]
            assert_prompt(*late)


async def test_who_was_asked_to_renew_is_told_of_the_extension(
    service: Service, assert_prompt: AssertPrompt
) -> None:
    async with page(service) as shown:
        for extensions in (1, 2):
            asked = await shown.told("auth_expiring", extensions)
            assert asked["expires_at"] == shown.ends_at
            extended = await shown.request()
            await shown.told("auth_ok", 1 + extensions)
            assert shown.ends_at == extended > asked["expires_at"]
        await shown.over()
        assert shown.ending == EXPIRED
        assert [message["type"] for message in shown.heard] == [
            "auth_ok",
            "auth_expiring",
            "auth_ok",
            "auth_expiring",
            "auth_ok",
            "auth_expiring",
        ]
        first, *others = shown.of_type("auth_ok")
        changing = ("expires_at", "server_time")
        for other in others:  # it is the same connection, of the same user
            assert other == {**first, **{name: other[name] for name in changing}}
        assert_prompt(shown.closed_at - shown.ends_at)


async def test_the_absolute_limit_holds_whatever_is_used(
    service: Service, assert_prompt: AssertPrompt
) -> None:
    absolute = service.clock.now() + 2.5 * IDLE
    one = await grant(service, "session-cookie", idle_ttl=IDLE, ttl=2.5 * IDLE)
    async with page(service, one) as shown, page(service, one) as other:
        ends = []

        async def use() -> None:
            ends.append(await shown.request())

        await during(use, moment=absolute - 0.2)
        for socket in (shown, other):
            await socket.over()
            assert socket.ending == EXPIRED
        # at first the idle limit, in the end the absolute one and nothing later
        assert ends[0] < absolute - IDLE
        assert max(ends) == ends[-1] == pytest.approx(absolute, abs=0.2)
        assert_prompt(*(socket.closed_at - ends[-1] for socket in (shown, other)))


async def test_other_sessions_of_the_user_are_not_extended(
    service: Service, assert_prompt: AssertPrompt
) -> None:
    async with page(service) as used, page(service) as forgotten:
        end = forgotten.ends_at
        await during(used.request, moment=end + 0.3)
        await forgotten.over()
        assert forgotten.ending == EXPIRED
        assert_prompt(forgotten.closed_at - end)
        assert used.ending is None


async def test_messages_alone_are_no_use_of_the_session(
    service: Service, assert_prompt: AssertPrompt
) -> None:
    async with page(service) as shown:
        end = shown.ends_at
        await say(shown.peer, type="join", room="lobby")

        async def talk() -> None:
            await say(shown.peer, type="publish", room="lobby", data="here", id=1)
            await say(shown.peer, type="ping")

        with pytest.raises(ConnectionClosed):
            await during(talk, moment=end + IDLE, every=0.02)
        await shown.over()
        assert shown.ending == EXPIRED
        assert shown.of_type("ack")
        assert_prompt(shown.closed_at - end)


async def test_a_socket_by_ticket_keeps_the_end_it_was_given(service: Service) -> None:
    """It is a token's connection: a new ticket renews it in band, use does not."""
    async with page(service) as shown:
        headers = {"cookie": f"authws={shown.granted.cookie}"}
        async with calling(service, headers=headers) as http:
            ticket = (await http.post("/auth/ticket")).json()["ticket"]
        async with await knock(service, "/ws/query-param", ticket) as peer:
            end = (await hear(peer))["expires_at"]

            async def use() -> None:
                await shown.request()
                await say(peer, type="ping")
                while (await hear(peer))["type"] != "pong":
                    pass

            with pytest.raises(ConnectionClosed) as closed:
                await during(use, moment=end + IDLE)
            assert 0 <= time.time() - end < 1
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.reason == "token_expired"


async def test_an_ended_session_is_not_extended(service: Service) -> None:
    async with page(service) as shown:
        await shown.granted.end()
        headers = {"cookie": f"authws={shown.granted.cookie}"}
        async with calling(service, headers=headers) as http:
            assert (await http.get("/auth/me")).status_code == 401
        await shown.over()
        assert shown.ending == (1008, "session_revoked")
