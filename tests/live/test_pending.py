"""Connections that have not sent a whole head: counted, bounded, and let go."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest

from authws.service.protocols import ProtocolLimits
from tests.running import Service, running
from tests.wire import WirePeer, handshake, wire

LIMITS = [
    ProtocolLimits(max_pending=3),
    ProtocolLimits(max_pending=0, max_pending_per_address=3),
]


@asynccontextmanager
async def crowded(
    tmp_path: Path, limits: ProtocolLimits
) -> AsyncIterator[tuple[Service, list[WirePeer]]]:
    """A service where as many peers as may are half-way through their heads."""
    async with (
        running(tmp_path, server={"protocol_limits": limits}) as service,
        AsyncExitStack() as stack,
    ):
        peers = []
        for _ in range(3):
            peer = await stack.enter_async_context(wire(service.port))
            await peer.send(b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n")
            peers.append(peer)
        yield service, peers


@pytest.mark.parametrize("limits", LIMITS, ids=["in-all", "per-address"])
async def test_one_connection_too_many_is_cut_off_and_the_others_are_served(
    tmp_path: Path, limits: ProtocolLimits
) -> None:
    async with crowded(tmp_path, limits) as (service, peers):
        async with wire(service.port) as late:
            assert await late.is_ended()
        for peer in peers:
            await peer.send(b"\r\n")
            assert (await peer.response()).status == 200


@pytest.mark.parametrize("limits", LIMITS, ids=["in-all", "per-address"])
async def test_whole_head_frees_its_place_whatever_comes_of_it(
    tmp_path: Path, limits: ProtocolLimits
) -> None:
    async with crowded(tmp_path, limits) as (service, peers):
        await peers[0].send(b"\r\n")
        assert (await peers[0].response()).status == 200
        async with wire(service.port) as silent:  # a stranger, but one with a head
            await silent.send(handshake("/ws/first-message"))
            assert (await silent.response()).status == 101
            async with wire(service.port) as next_one:
                await next_one.send(b"no HTTP\r\n\r\n")
                assert (await next_one.response()).status == 400
            async with wire(service.port) as after_it:
                await after_it.send(handshake("/ws/first-message"))
                assert (await after_it.response()).status == 101
