"""A connection that is over is gone, with all its objects, at once.

What a reference cycle holds is freed by a full collection only, and that stops the
whole process while it looks at every object there is: a second for ten thousand
connections, whoever comes and goes. So no cycle may be left of a connection, however
it ended.
"""

from __future__ import annotations

import asyncio
import gc
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest
import websockets

from authws.live.connection import Connection
from authws.service.protocols import HttpProtocol, WebSocketProtocol
from authws.service.protocols.frames import FrameParser
from authws.stores.sessions import Revocation
from authws.strategies.handshake import Handshake
from tests.running import STRATEGIES, Service, running

OURS = (Connection, FrameParser, Handshake, HttpProtocol, WebSocketProtocol)
WITHIN = 10.0

Ending = Callable[[Service, str], Awaitable[None]]


async def goodbye(service: Service, strategy: str) -> None:
    peer = await service.connect(strategy)
    await peer.close()


async def a_reset(service: Service, strategy: str) -> None:
    peer = await service.connect(strategy)
    peer.transport.abort()


async def a_revocation(service: Service, strategy: str) -> None:
    peer = await service.connect(strategy)
    await service.call(_disconnect(service))
    await peer.wait_closed()


async def _disconnect(service: Service) -> None:
    service.house.feed.end(Revocation("subject", "alice", service.clock.now()))


async def a_refusal(service: Service, strategy: str) -> None:
    cookie = {"cookie": "authws=x", "origin": service.origin}
    headers = cookie if strategy == "session-cookie" else None
    peer = await service.open(f"/ws/{strategy}?token=x", headers=headers)
    await peer.wait_closed()


async def a_foreign_page(service: Service, strategy: str) -> None:
    with pytest.raises(websockets.InvalidStatus):
        await service.open(
            f"/ws/{strategy}", headers={"origin": "https://evil.example"}
        )


async def a_silent_stranger(service: Service, _: str) -> None:
    peer = await service.open("/ws/first-message")
    await peer.wait_closed()


ENDINGS: tuple[Ending, ...] = (
    goodbye,
    a_reset,
    a_revocation,
    a_refusal,
    a_foreign_page,
    a_silent_stranger,
)


@pytest.fixture
def collecting_nothing() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def left() -> Counter[str]:
    """How many objects of our connections there are, without collecting any."""
    return Counter(type(one).__name__ for one in gc.get_objects() if type(one) in OURS)


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("ending", ENDINGS, ids=lambda ending: ending.__name__)
async def test_nothing_is_left_of_a_connection_that_is_over(
    ending: Ending, strategy: str, tmp_path: Path, collecting_nothing: None
) -> None:
    async with running(tmp_path, auth_timeout=0.2) as service:
        await service.add_user()
        await ending(service, strategy)
        async with asyncio.timeout(WITHIN):
            # what ends an HTTP connection that was kept alive is its own deadline
            while found := left():  # noqa: ASYNC110 - nothing tells of it
                await asyncio.sleep(0.05)
        assert not found
