"""What an operator lets a user do from now on: it ends nothing, and is soon known."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

import pytest

from authws.clock import Clock
from authws.stores.database import Database
from authws.stores.passwords import PasswordHasher
from authws.stores.users import Users
from tests.grants import Grant, enter, grant, hear, say
from tests.running import STRATEGIES, Service, running

pytestmark = pytest.mark.usefixtures("database")


async def set_scopes(service: Service, name: str, scopes: Sequence[str]) -> None:
    """Do it as ``authws user scopes`` does: from a process that is not the server."""
    database = Database(service.house.settings.database)
    hasher = PasswordHasher(1)
    try:
        await Users(database, hasher, Clock()).set_scopes(name, scopes)
    finally:
        hasher.close()
        await database.dispose()


async def granted_now(service: Service, path: str, held: Grant) -> set[str]:
    """The scopes with which a new connection is welcomed."""
    async with enter(service, path, held.credential):
        (newest,) = list(service.house.hub.connections.values())[-1:]
        return set(newest.principal.scopes)


async def becomes(service: Service, path: str, held: Grant, scopes: set[str]) -> None:
    """Wait until new connections are welcomed with other scopes."""
    async with asyncio.timeout(10):
        while await granted_now(service, path, held) != scopes:
            pass  # each of these handshakes takes its time


@pytest.mark.parametrize("strategy", STRATEGIES)
async def test_other_scopes_hold_from_the_next_handshake_or_renewal_on(
    tmp_path: Path, strategy: str
) -> None:
    path = f"/ws/{strategy}"
    async with running(tmp_path, recheck_interval=0.2) as service:
        await service.add_user("alice")
        held = await grant(service, strategy)
        async with enter(service, path, held.credential) as peer:
            await say(peer, type="join", room="lobby")
            assert (await hear(peer))["type"] == "joined"
            await set_scopes(service, "alice", ["join:other"])
            await becomes(service, path, held, {"join:other"})
            await say(peer, type="publish", room="lobby", data="still open", id=1)
            assert {(await hear(peer))["type"] for _ in range(2)} == {"message", "ack"}
            if strategy == "session-cookie":
                return  # it is renewed by a handshake
            await say(peer, type="auth", token=held.access())
            heard = [await hear(peer), await hear(peer)]
            (welcome,) = [message for message in heard if message["type"] == "auth_ok"]
            assert welcome["scopes"] == ["join:other"]
            assert {message["type"] for message in heard} == {"auth_ok", "left"}
