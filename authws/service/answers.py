"""How an HTTP call is refused: ``{"detail": slug}``, and nothing more than that."""

from __future__ import annotations

from typing import Any

from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.requests import HTTPConnection

from authws.decisions.limits import retry_after
from authws.exceptions import AuthError, LimitError
from authws.service.house import House

__all__ = [
    "headers_of",
    "http_refusal",
    "note_refusal",
    "refusal",
    "validation_refusal",
]

_SLUGS = {404: "not_found", 405: "method_not_allowed", 415: "json_expected"}


def refusal(
    status: int, slug: str, headers: dict[str, Any] | None = None
) -> JSONResponse:
    """Refuse with a slug."""
    return JSONResponse({"detail": slug}, status_code=status, headers=headers)


def headers_of(error: AuthError) -> dict[str, str]:
    """The headers that go with a refused credential, or a limit."""
    headers: dict[str, str] = {}
    if error.status == 401:
        # RFC 6750, 3: no error code where no credential was presented
        missing = error.close.reason == "auth_missing"
        headers["www-authenticate"] = (
            "Bearer" if missing else 'Bearer error="invalid_token"'
        )
    if isinstance(error, LimitError):
        headers["retry-after"] = str(retry_after(error.retry_after))
    elif error.status == 503:
        headers["retry-after"] = "1"
    return headers


def note_refusal(house: House, request: HTTPConnection, error: AuthError) -> None:
    """Write a refusal to the security log, unless it has a line there already."""
    if error.is_logged:
        return
    house.log.write(
        "refused",
        reason=error.close.reason,
        detail=str(error),
        address=request.client.host if request.client else "",
        limit=error.limit if isinstance(error, LimitError) else "",
    )
    error.is_logged = True


def validation_refusal(error: RequestValidationError) -> JSONResponse:
    """Name the fields; FastAPI's own answer quotes the input, passwords included."""
    fields = sorted({".".join(map(str, one["loc"][:3])) for one in error.errors()})
    return JSONResponse(
        {"detail": "request_invalid", "fields": [field[:80] for field in fields]},
        status_code=422,
    )


def http_refusal(error: HTTPException) -> JSONResponse:
    """Refuse as the framework does, by a slug of ours."""
    slug = _SLUGS.get(error.status_code, "request_invalid")
    return refusal(error.status_code, slug, dict(error.headers or {}))
