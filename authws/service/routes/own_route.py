"""A route that answers for itself, in whatever app it stands.

The app around the ``/auth`` routes may be somebody else's: how that one answers errors
is its own affair, and that a password is never quoted is ours.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute

from authws.service.answers import http_refusal, validation_refusal

__all__ = ["OwnRoute"]


class OwnRoute(APIRoute):
    """Refuses what FastAPI itself would refuse, by our slugs."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def answer(request: Request) -> Response:
            try:
                return await handle(request)
            except RequestValidationError as error:
                return validation_refusal(error)
            except HTTPException as error:
                return http_refusal(error)

        return answer
