"""``/admin``: who is connected, and ending it. For the scope ``admin`` alone.

An administrator sees the ids of sessions, which are public digests, and never a
credential; what is changed here is in the security log with the name of who did it.
"""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Response, status

from authws.service.routes.auth import UnknownSessionError
from authws.service.routes.identity import (
    AdminDependency,
    ClientDependency,
    HouseDependency,
)
from authws.service.routes.schemas import (
    CREDENTIAL_SLUGS,
    ConnectionItem,
    ConnectionList,
    Disconnected,
    refusals,
)

__all__ = ["router"]

MAX_LISTED = 1000

router = APIRouter(prefix="/admin", tags=["admin"])


@router.get(
    "/connections",
    response_model=ConnectionList,
    responses=refusals(
        *CREDENTIAL_SLUGS, "forbidden", "request_invalid", "unavailable"
    ),
)
async def connections(
    _: AdminDependency,
    house: HouseDependency,
    subject: Annotated[
        str | None, Query(max_length=256, description="Only this subject's")
    ] = None,
    limit: Annotated[int, Query(ge=1, le=MAX_LISTED)] = 100,
) -> ConnectionList:
    """The open WebSockets of all workers, the newest first."""
    roll = await house.roll_call.of(subject, limit)
    return ConnectionList(
        total=roll.total,
        connections=[
            ConnectionItem.model_validate(one, from_attributes=True)
            for one in roll.listed
        ],
        workers=roll.workers,
        silent=roll.silent,
    )


@router.post(
    "/users/{subject}/disconnect",
    response_model=Disconnected,
    responses=refusals(
        *CREDENTIAL_SLUGS,
        "forbidden",
        "origin_forbidden",
        "user_unknown",
        "request_invalid",
        "unavailable",
    ),
)
async def disconnect(
    subject: str,
    admin: AdminDependency,
    house: HouseDependency,
    client: ClientDependency,
) -> Disconnected:
    """End all that a user has opened up to now: sessions, tokens, tickets, sockets.

    The user may log in again; `authws user disable` keeps somebody out.
    """
    ended = await house.accounts.disconnect(subject, admin, client)
    return Disconnected(sessions=ended.sessions, sockets=ended.sockets)


@router.delete(
    "/sessions/{session_id}",
    status_code=204,
    responses=refusals(
        *CREDENTIAL_SLUGS,
        "forbidden",
        "origin_forbidden",
        "session_unknown",
        "request_invalid",
        "unavailable",
    ),
)
async def end_session(
    session_id: str,
    admin: AdminDependency,
    house: HouseDependency,
    client: ClientDependency,
) -> Response:
    """End anybody's session: its tokens, its tickets, its sockets."""
    if not await house.accounts.end_any_session(session_id, admin, client):
        raise UnknownSessionError
    return Response(status_code=status.HTTP_204_NO_CONTENT)
