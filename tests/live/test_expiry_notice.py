"""A peer whose credential runs out is asked to renew, where a renewal is taken."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from websockets.exceptions import ConnectionClosed

from tests.grants import hear, say
from tests.running import running


async def test_a_room_connection_is_warned_before_its_end(tmp_path: Path) -> None:
    async with running(tmp_path, access_ttl=2) as service:
        await service.add_user()
        async with await service.connect("query-param") as peer:
            notice = await hear(peer)
            assert notice["type"] == "auth_expiring"
            assert service.clock.now() < notice["expires_at"]
            with pytest.raises(ConnectionClosed) as ended:
                await peer.recv()
            assert ended.value.rcvd is not None
            assert ended.value.rcvd.reason == "token_expired"
        async with await service.connect("query-param", echo=True) as echo:
            with pytest.raises(ConnectionClosed):
                await echo.recv()


async def test_a_renewed_connection_is_warned_again(tmp_path: Path) -> None:
    async with running(tmp_path, access_ttl=2) as service:
        await service.add_user()
        login = await service.login()
        path = f"/ws/query-param?token={login['access_token']}"
        async with await service.open(path) as peer:
            first = await hear(peer)
            assert (await hear(peer))["type"] == "auth_expiring"
            async with service.http() as http:
                answer = await http.post(
                    "/auth/refresh", json={"refresh_token": login["refresh_token"]}
                )
            await say(peer, type="auth", token=answer.json()["access_token"])
            renewed = json.loads(await peer.recv())
            assert renewed["type"] == "auth_ok"
            assert renewed["expires_at"] > first["expires_at"]
            notice = await hear(peer)
            assert notice["type"] == "auth_expiring"
            assert notice["expires_at"] == renewed["expires_at"]


async def test_a_message_limit_of_zero_is_off(tmp_path: Path) -> None:
    async with running(tmp_path, max_message_bytes=0) as service:
        await service.add_user()
        async with await service.connect("query-param", echo=True) as peer:
            await peer.send("x" * 100_000)
            assert await peer.recv() == "x" * 100_000
