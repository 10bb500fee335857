"""Who is connected, on all workers: each is asked, and says it for itself."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any, NamedTuple

import msgspec

from authws.live.connection import Connection
from authws.live.hub import Hub

__all__ = ["Open", "Roll", "RollCall"]

ANSWERED_AT_ONCE = 262_144
"""Bytes that a worker lists at most for another; NATS takes 1 MiB in one message,
unless it is told otherwise."""


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
    """How many did not, or not in a way that is understood."""


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
        understood = [one for one in map(_read, answers.values()) if one is not None]
        for theirs in understood:
            total += theirs.total
            listed += theirs.listed
        listed.sort(key=lambda one: one.connected_at, reverse=True)
        not_understood = len(answers) - len(understood)
        return Roll(
            total, listed[:limit], 1 + len(understood), len(silent) + not_understood
        )

    def _answer(self, arguments: dict[str, Any]) -> Any:
        question = msgspec.convert(arguments, _Question)
        total, listed = self._here(question.subject, question.limit)
        return msgspec.to_builtins(_Answer(total, list(_within_a_message(listed))))

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


def _within_a_message(listed: list[Open]) -> Iterator[Open]:
    """Cut what a broker would not carry in one message; the total tells that it was."""
    size = 0
    for one in listed:
        size += len(msgspec.json.encode(one))
        if size > ANSWERED_AT_ONCE:
            return
        yield one


class _Question(msgspec.Struct):
    subject: str | None
    limit: int


class _Answer(msgspec.Struct):
    total: int
    listed: list[Open]


def _read(answer: Any) -> _Answer | None:
    """Read a worker's answer; None if it is of a version that this one is not."""
    try:
        return msgspec.convert(answer, _Answer)
    except msgspec.ValidationError:
        return None
