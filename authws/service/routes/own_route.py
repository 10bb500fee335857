"""A route that answers for itself, in whatever app it stands.

The app around the ``/auth`` routes may be somebody else's: how that one answers errors
is its own affair, and that a password is never quoted is ours. Where no gate stands
before the app, one stands before the route.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from starlette.types import Receive, Scope, Send

from authws.service.answers import http_refusal, validation_refusal
from authws.service.house import House

__all__ = ["OwnRoute"]


class OwnRoute(APIRoute):
    """Refuses what FastAPI itself would refuse, by our slugs, behind a gate."""

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        house: House = scope["app"].state.authws
        if house.owns_origin or scope["method"] not in (self.methods or ()):
            # behind the service's gate; or not this route's to answer (405)
            await super().handle(scope, receive, send)
        else:
            await house.gate.pass_on(super().handle, scope, receive, send)

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
