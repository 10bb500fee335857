"""For the operator: liveness, readiness, metrics, public keys."""

from __future__ import annotations

import ipaddress
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from authws.exceptions import AuthError, ForbiddenError
from authws.service.house import House
from authws.service.routes.identity import HouseDependency, principal
from authws.service.routes.schemas import Health, KeySet, Readiness

__all__ = ["router"]

router = APIRouter(tags=["operations"])


@router.get("/healthz")
async def healthz() -> Health:
    """The process is alive."""
    return Health(status="ok")


UNREACHABLE = {"status": "unavailable", "database": "unreachable", "broker": "ok"}


@router.get(
    "/readyz",
    response_model=Readiness,
    responses={
        503: {
            "model": Readiness,
            "description": "Something is out of reach, or the process is ending",
            "content": {"application/json": {"example": UNREACHABLE}},
        }
    },
)
async def readyz(house: HouseDependency) -> JSONResponse:
    """The database and the broker can be reached, and the process lets people in."""
    reachable = await house.is_ready()
    ready = all(reachable.values()) and not (house.is_draining or house.is_blind)
    status = "draining" if house.is_draining else "unavailable"
    body: dict[str, Any] = {
        "status": "ready" if ready else status,
        **{name: "ok" if ok else "unreachable" for name, ok in reachable.items()},
    }
    return JSONResponse(body, status_code=200 if ready else 503)


@router.get("/metrics", include_in_schema=False)
async def metrics(request: Request, house: HouseDependency) -> Response:
    """Prometheus metrics: for this machine, or for scope ``admin``."""
    if not _is_local(request, house):
        await _require_admin(request, house)
    return Response(
        await house.metrics.exposition(),
        media_type="text/plain; version=0.0.4; charset=utf-8",
    )


@router.get("/.well-known/jwks.json")
async def jwks(house: HouseDependency) -> KeySet:
    """The public keys that verify our tokens (RFC 7517); empty with HS256."""
    return KeySet.model_validate(house.keyring.jwks())


def _is_local(request: Request, house: House) -> bool:
    """Tell whether the peer is on this machine; behind a proxy all seem to be."""
    if house.settings.behind_proxy or request.client is None:
        return False
    try:
        return ipaddress.ip_address(request.client.host).is_loopback
    except ValueError:
        return False


async def _require_admin(request: Request, house: House) -> None:
    try:
        caller = await principal(request, house, None, None)
    except AuthError:
        raise ForbiddenError("metrics are not open to strangers") from None
    if not caller.has("admin"):
        raise ForbiddenError("metrics need the scope admin")
