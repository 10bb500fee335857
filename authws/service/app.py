"""The application: FastAPI for HTTP, plain ASGI for the WebSocket endpoints."""

from __future__ import annotations

from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any, cast

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.types import Receive, Scope, Send

from authws.clock import Clock
from authws.decisions.passwords import PasswordError
from authws.decisions.redaction import install_log_redaction
from authws.exceptions import AuthError
from authws.live.connection import Take
from authws.live.door import DoorStyle, NotAdmittedError
from authws.live.room_protocol import RoomProtocol, echo
from authws.service.accounts import BadCredentialsError
from authws.service.answers import (
    headers_of,
    http_refusal,
    note_refusal,
    refusal,
    validation_refusal,
)
from authws.service.gate import Endpoint, Gate, WebSocketGate
from authws.service.house import House
from authws.service.routes import admin, auth, operations, pages
from authws.service.settings import Settings
from authws.stores.users import UnknownUserError
from authws.strategies.base import Strategy
from authws.strategies.handshake import Handshake

__all__ = ["add_error_handlers", "create_app"]

DESCRIPTION = """Authenticated WebSockets. Log in here, then connect to
`/ws/query-param`, `/ws/first-message` or `/ws/session-cookie`."""

ECHO = DoorStyle(announce=False, renewable=False)
ROOMS = DoorStyle()


def create_app(
    settings: Settings | None = None, *, clock: Clock | None = None
) -> FastAPI:
    """Return the service as an ASGI application.

    Raises:
        ConfigurationError: a setting is unsafe or impossible.
    """
    install_log_redaction()
    settings = settings or Settings()
    house = House(settings, clock=clock, owns_origin=True)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await house.start()
        try:
            yield
        finally:
            await house.stop()

    app = _Service(
        title="authws",
        description=DESCRIPTION,
        version=_version(),
        lifespan=lifespan,
        docs_url=None,  # its page loads scripts from elsewhere; pages has our own
        openapi_url="/openapi.json" if settings.docs else None,
        redoc_url=None,
    )
    app.state.authws = house
    app.include_router(auth.router)
    app.include_router(admin.router)
    app.include_router(operations.router)
    if settings.docs:
        app.include_router(pages.router)
    add_error_handlers(app)
    app.add_exception_handler(RequestValidationError, _validation_error)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_middleware(Gate, http=house.gate)
    app.websockets = WebSocketGate(
        super(_Service, app).__call__,
        http=house.gate,
        endpoints=websocket_endpoints(house),
    )
    return app


class _Service(FastAPI):
    """FastAPI for HTTP; WebSockets are not kept waiting for it."""

    websockets: WebSocketGate

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        # a coroutine function, by which other servers know an ASGI app
        await self.authws_asgi(scope, receive, send)

    def authws_asgi(
        self, scope: Scope, receive: Receive, send: Send
    ) -> Coroutine[Any, Any, None]:
        """The same for our own server, which would hold its frame for every peer."""
        if scope["type"] == "websocket":
            return self.websockets(scope, receive, send)
        return super().__call__(scope, receive, send)


def websocket_endpoints(house: House) -> dict[str, Endpoint]:
    """The service's six WebSocket endpoints, by path."""
    rooms = RoomProtocol(house.hub.rooms, house.log).take
    endpoints: dict[str, Endpoint] = {}
    for strategy in (house.query_param, house.first_message, house.session_cookie):
        path = "/ws/" + strategy.name.replace("_", "-")
        endpoints[path] = _endpoint(house, strategy, ROOMS, rooms)
        endpoints[f"{path}/echo"] = _endpoint(house, strategy, ECHO, echo)
    return endpoints


def _endpoint(
    house: House,
    strategy: Strategy,
    style: DoorStyle,
    take: Take,
) -> Endpoint:
    async def endpoint(handshake: Handshake) -> None:
        try:
            opened = house.door.open_connection(strategy, handshake, style)
            async with opened as connection:
                await connection.each(take)
        except NotAdmittedError:
            return

    return endpoint


def add_error_handlers(app: FastAPI) -> None:
    """Answer our own errors, and no others: the app may be somebody else's."""
    app.add_exception_handler(AuthError, _auth_error)
    app.add_exception_handler(BadCredentialsError, _bad_credentials)
    app.add_exception_handler(PasswordError, _password_error)
    app.add_exception_handler(auth.UnknownSessionError, _unknown_session)
    app.add_exception_handler(UnknownUserError, _unknown_user)


async def _auth_error(request: Request, exc: Exception) -> JSONResponse:
    error = cast(AuthError, exc)
    note_refusal(request.app.state.authws, request, error)
    return refusal(error.status, error.close.reason, headers_of(error))


async def _bad_credentials(_: Request, __: Exception) -> JSONResponse:
    return refusal(401, "credentials_invalid", {"www-authenticate": "Bearer"})


async def _password_error(_: Request, exc: Exception) -> JSONResponse:
    error = cast(PasswordError, exc)
    return JSONResponse({"detail": error.slug, "message": str(error)}, status_code=422)


async def _unknown_session(_: Request, __: Exception) -> JSONResponse:
    return refusal(404, "session_unknown")


async def _unknown_user(_: Request, __: Exception) -> JSONResponse:
    return refusal(404, "user_unknown")


async def _validation_error(_: Request, exc: Exception) -> JSONResponse:
    return validation_refusal(cast(RequestValidationError, exc))


async def _http_error(_: Request, exc: Exception) -> JSONResponse:
    return http_refusal(cast(HTTPException, exc))


def _version() -> str:
    from importlib.metadata import version

    return version("authws")
