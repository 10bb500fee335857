"""RFC 6455 on the wire, case by case, at each of the three echo endpoints.

The tables beside this file hold the cases, one file for each category. Wherever a case
``differs`` from what the Autobahn TestSuite likes best, RFC 6455 leaves it open.
"""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import pytest_asyncio

from tests.conformance import (
    closing,
    fragmentation,
    framing,
    opcodes,
    pings,
    reserved_bits,
    utf8,
)
from tests.conformance.cases import Case, Says, goodbye
from tests.grants import Grant, grant, until
from tests.running import STRATEGIES, Service, running
from tests.wire import CLOSE, TEXT, Frame, WirePeer, frame, handshake, wire

pytestmark = pytest.mark.asyncio(loop_scope="module")

TABLES = (framing, pings, reserved_bits, opcodes, fragmentation, utf8, closing)
CASES = [case for table in TABLES for case in table.CASES]
BIG = 1 << 20
"""One case sends a message of 256 KiB, more than the usual limit."""


class Doors:
    """Opens each echo endpoint, with one credential for all cases."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self._granted: dict[str, Grant] = {}

    @asynccontextmanager
    async def open(self, strategy: str) -> AsyncIterator[WirePeer]:
        """A WebSocket made of bytes, on which the server has nothing more to say."""
        if strategy not in self._granted:
            self._granted[strategy] = await grant(self.service, strategy)
        credential = self._granted[strategy].credential
        target = f"/ws/{strategy}/echo"
        lines: tuple[str, ...] = ()
        if strategy == "query-param":
            target += f"?token={credential}"
        elif strategy == "session-cookie":
            lines = (f"Cookie: authws={credential}", f"Origin: {self.service.origin}")
        async with wire(self.service.port) as peer:
            await peer.send(handshake(target, headers=lines))
            assert (await peer.response()).status == 101
            if strategy == "first-message":
                await speak_first(peer, credential)
            yield peer


async def speak_first(peer: WirePeer, token: str) -> None:
    """Authenticate with the first message."""
    assert json.loads((await peer.frame()).payload)["type"] == "auth_required"
    first = json.dumps({"type": "auth", "token": token})
    await peer.send(frame(TEXT, first.encode()))
    assert json.loads((await peer.frame()).payload)["type"] == "auth_ok"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def doors(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Doors]:
    async with running(
        tmp_path_factory.mktemp("conformance"),
        max_message_bytes=BIG,
        outbox_bytes=4 * BIG,
    ) as service:
        await service.add_user("alice")
        yield Doors(service)
        await until(lambda: not service.house.hub.connections)
        errors = [r.getMessage() for r in service.records if r.levelno >= logging.ERROR]
        assert errors == []


async def converse(peer: WirePeer, case: Case) -> Frame:
    """Go through a case; return the frame that is to be its end."""
    unexpected: Frame | None = None
    for step in case.steps:
        if isinstance(step, Says):
            for piece in step.pieces():
                await peer.send(piece)
            continue
        got = unexpected or await peer.frame()
        unexpected = None
        if got != step.frame:
            assert not step.is_certain, (step.frame, got)
            unexpected = got
    if case.ends.says_goodbye:
        await peer.send(goodbye().data)
    return unexpected or await peer.frame()


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
async def test_case(doors: Doors, case: Case, strategy: str) -> None:
    async with doors.open(strategy) as peer:
        last = await converse(peer, case)
        assert (last.fin, last.opcode) == (True, CLOSE), (case.what, last)
        if isinstance(case.ends.close, bytes):
            assert last.payload == case.ends.close, case.what
        else:
            assert last.close[0] == case.ends.close, case.what
        assert await peer.is_ended()


async def test_every_case_of_the_seven_categories_is_there() -> None:
    """As many as the Autobahn TestSuite has, and none twice."""
    ids = [case.id for case in CASES]
    assert len(ids) == len(set(ids))
    counted = Counter(case_id.split(".")[0] for case_id in ids if "+" not in case_id)
    assert counted == {"1": 16, "2": 11, "3": 7, "4": 10, "5": 20, "6": 145, "7": 37}
