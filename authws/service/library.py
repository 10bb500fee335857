"""authws inside somebody else's FastAPI app: one dependency per strategy."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from fastapi import FastAPI, HTTPException, WebSocket
from starlette.requests import HTTPConnection
from starlette.websockets import WebSocketDisconnect

from authws.clock import Clock
from authws.decisions.redaction import install_log_redaction
from authws.exceptions import AuthError, ConfigurationError, ForbiddenError
from authws.live.connection import Connection
from authws.live.door import DoorStyle, NotAdmittedError
from authws.principal import Principal
from authws.service.answers import headers_of, note_refusal
from authws.service.app import add_error_handlers
from authws.service.house import House
from authws.service.routes import auth
from authws.service.routes.identity import SAFE_METHODS
from authws.service.settings import Settings, known_settings
from authws.strategies.base import Strategy
from authws.strategies.handshake import Credentials, Handshake

__all__ = ["AuthWS", "Guard"]


class Guard:
    """A strategy as a FastAPI dependency.

    In a WebSocket route it gives a live ``Connection``; in an HTTP route, an SSE
    stream for one, the ``Principal`` (a query parameter, ``Authorization: Bearer`` in
    place of the first message, or the cookie).
    """

    def __init__(
        self, owner: AuthWS, strategy: Strategy, scopes: frozenset[str] = frozenset()
    ) -> None:
        self._owner = owner
        self._strategy = strategy
        self._scopes = scopes

    def requires(self, *scopes: str) -> Guard:
        """Return a guard that also demands scopes; without them: ``forbidden``.

        A scope that ends in ``*`` covers those that start with what stands before it.
        """
        return Guard(self._owner, self._strategy, self._scopes | frozenset(scopes))

    async def __call__(
        self, connection: HTTPConnection
    ) -> AsyncIterator[Connection | Principal]:
        house = self._owner.house
        if not isinstance(connection, WebSocket):
            try:
                principal = await self._identify(connection)
            except AuthError as error:
                raise _answerable(house, connection, error) from None
            yield principal
            return
        handshake = Handshake(connection.scope, connection.receive, connection.send)
        await connection.receive()  # websocket.connect
        style = DoorStyle(pump=True, scopes=self._scopes)
        async with house.door.open_connection(self._strategy, handshake, style) as live:
            yield live

    async def _identify(self, request: HTTPConnection) -> Principal:
        credentials = Credentials(request.scope)
        # a browser names no origin with its own page's GET, and always with the rest
        unsafe = request.scope["method"] not in SAFE_METHODS
        self._strategy.check_origin(
            credentials, required=unsafe and self._strategy.origin_required
        )
        principal = await self._strategy.identify(credentials)
        if not principal.covers(self._scopes):
            raise ForbiddenError("a required scope is missing")
        return principal


class AuthWS:
    """Authentication for the WebSockets of a FastAPI app.

    Example::

        auth = AuthWS(data_dir="data", allowed_origins=["https://app.example.com"])
        app = FastAPI(lifespan=auth.lifespan)
        auth.install(app)

        @app.websocket("/ws")
        async def ws(connection: Annotated[Connection, Depends(auth.first_message)]):
            async for message in connection:
                await connection.send_json({"echo": message})
    """

    def __init__(
        self, *, login: bool = True, clock: Clock | None = None, **settings: Any
    ) -> None:
        """Settings are those of the service, by their names in lower case.

        Args:
            login: keep users of our own, in ``data_dir`` or ``database_url``, and add
                the ``/auth`` routes. Without it nothing is kept, and only the tokens
                of the issuer behind ``jwks_url`` are believed.
            clock: where the time is read.
            **settings: what the environment (``AUTHWS_*``) does not say.

        Raises:
            ConfigurationError: a setting is unsafe or impossible.
        """
        settings = known_settings(settings)
        self._login = login
        self._nothing_kept: tempfile.TemporaryDirectory[str] | None = None
        if not login:
            if not settings.get("jwks_url"):
                raise ConfigurationError("login=False needs jwks_url: whose tokens?")
            self._nothing_kept = tempfile.TemporaryDirectory(prefix="authws-")
            settings["data_dir"] = Path(self._nothing_kept.name)
        self._house = House(Settings(**settings), clock=clock)
        self._started = False
        self.query_param = Guard(self, self._house.query_param)
        self.first_message = Guard(self, self._house.first_message)
        self.session_cookie = Guard(self, self._house.session_cookie)

    @property
    def house(self) -> House:
        """What is behind the guards.

        Raises:
            ConfigurationError: the app was made without ``lifespan=auth.lifespan``.
        """
        if not self._started:
            raise ConfigurationError(
                "authws is not running: FastAPI(lifespan=auth.lifespan)"
            )
        return self._house

    @asynccontextmanager
    async def lifespan(self, app: FastAPI) -> AsyncIterator[None]:
        """Start with the app and stop with it."""
        await self._house.start()
        self._started = True
        try:
            yield
        finally:
            self._started = False
            await self._house.stop()
            if self._nothing_kept is not None:
                self._nothing_kept.cleanup()

    def install(self, app: FastAPI) -> None:
        """Add what the guards need: quiet endings, clean logs, the login routes.

        A peer that leaves during the handshake would otherwise have Uvicorn log a
        traceback: any stranger could fill the log with them.
        """
        install_log_redaction()
        app.state.authws = self._house
        add_error_handlers(app)
        app.add_exception_handler(NotAdmittedError, _quiet)
        # no error of ours: an app that has an answer to it keeps that
        if WebSocketDisconnect not in app.exception_handlers:
            app.add_exception_handler(WebSocketDisconnect, _quiet)
        if self._login:
            app.include_router(auth.router)


def _answerable(house: House, request: HTTPConnection, error: AuthError) -> Exception:
    """Return a refusal that the app around the route has an answer to.

    The handlers that ``install`` adds are those of one app: in another that is mounted
    there ours is unknown, and anybody without a credential would log a traceback.
    """
    if AuthError in request.app.exception_handlers:
        return error
    note_refusal(house, request, error)
    return HTTPException(error.status, error.close.reason, headers_of(error))


async def _quiet(_connection: Any, _error: Exception) -> None:
    """The handshake was answered, or nobody is there to answer."""
