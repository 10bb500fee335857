"""The pages for people: ``/docs``, the HTTP interface to read and to try.

FastAPI's own page loads its scripts from elsewhere, which our policy forbids and a
machine without a network cannot do; this one has everything beside it.
"""

from __future__ import annotations

import os
from importlib.resources import files
from pathlib import Path

from fastapi import APIRouter, Response
from fastapi.responses import HTMLResponse
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

__all__ = ["router"]

PAGES = Path(str(files("authws.service"))) / "pages"

DOCS_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' data:",  # Swagger UI's icons are in its style sheet
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
)

router = APIRouter(include_in_schema=False)


class _Assets(StaticFiles):
    """Files that a browser may keep, if it asks each time whether they are the same."""

    def file_response(
        self,
        full_path: str | os.PathLike[str],
        stat_result: os.stat_result,
        scope: Scope,
        status_code: int = 200,
    ) -> Response:
        response = super().file_response(full_path, stat_result, scope, status_code)
        response.headers["cache-control"] = "no-cache"
        return response


@router.get("/docs")
def docs() -> HTMLResponse:
    """Swagger UI, with a policy of its own: scripts of this origin, and no others."""
    return HTMLResponse(
        (PAGES / "docs.html").read_text(encoding="utf-8"),
        headers={"content-security-policy": DOCS_POLICY},
    )


router.mount("/docs/assets", _Assets(directory=PAGES))
