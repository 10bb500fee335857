"""Who is connected, on all workers: each is asked, and says it for itself."""

from __future__ import annotations

from itertools import islice
from typing import Any, NamedTuple

import msgspec

from authws.live.connection import Connection
from authws.live.hub import Hub

__all__ = ["Open", "Roll", "RollCall"]


class Open(msgspec.Struct, frozen=True):
    """An open WebSocket; see ``ConnectionItem`` for what each member is."""

    id: str
    worker: str
    subject: str
    issuer: str
    strategy: str
    address: str
    session: str
    connected_at: float
    expires_at: float
    rooms: list[str]
    dropped: int


class Roll(NamedTuple):
    """Open WebSockets, the newest first."""

    total: int
    """How many there are, listed or not."""
    listed: list[Open]
    workers: int
    """How many workers answered, this one included."""
    silent: int
    """How many did not."""


class RollCall:
    """Asks this worker and the others."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        hub.cluster.answers("connections", self._answer)

    async def of(self, subject: str | None, limit: int) -> Roll:
        """List the connections, of one subject or all."""
        answers, silent = await self._hub.cluster.request(
            "connections", subject=subject, limit=limit
        )
        total, listed = self._here(subject, limit)
        for answer in answers.values():
            theirs = msgspec.convert(answer, _Answer)
            total += theirs.total
            listed += theirs.listed
        listed.sort(key=lambda one: one.connected_at, reverse=True)
        return Roll(total, listed[:limit], 1 + len(answers), len(silent))

    def _answer(self, arguments: dict[str, Any]) -> Any:
        question = msgspec.convert(arguments, _Question)
        total, listed = self._here(question.subject, question.limit)
        return msgspec.to_builtins(_Answer(total, listed))

    def _here(self, subject: str | None, limit: int) -> tuple[int, list[Open]]:
        found = [
            connection
            for connection in reversed(self._hub.connections.values())
            if connection.is_open and subject in (None, connection.principal.subject)
        ]
        return len(found), [self._open(one) for one in islice(found, limit)]

    def _open(self, connection: Connection) -> Open:
        principal = connection.principal
        return Open(
            id=connection.id,
            worker=self._hub.cluster.node,
            subject=principal.subject,
            issuer=principal.issuer,
            strategy=principal.strategy,
            address=connection.address,
            session=principal.session,
            connected_at=connection.opened_at,
            expires_at=principal.expires_at,
            rooms=sorted(connection.rooms),
            dropped=connection.dropped,
        )


class _Question(msgspec.Struct):
    subject: str | None
    limit: int


class _Answer(msgspec.Struct):
    total: int
    listed: list[Open]
