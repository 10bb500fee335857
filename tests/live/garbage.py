"""A server in a process of its own that tells what only a collection frees.

It takes a command a line, and answers each with a line of JSON: ``grant STRATEGY``,
``expire STRATEGY`` (soon), ``revoke SESSION``, ``begin`` and ``collect``. No HTTP is
involved: what a request would leave is not what is looked for. Its argument is how
it serves: ``wire``; ``asgi``, as any other server does; or ``library``, an echo in
somebody else's FastAPI app.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import socket
import sys
from collections import Counter
from typing import Any

from fastapi import Depends, FastAPI
from starlette.types import ASGIApp, Receive, Scope, Send

from authws import AuthWS, Connection
from authws.decisions.session_cookies import session_digest
from authws.service.app import create_app
from authws.service.house import House
from authws.service.library import Guard
from authws.service.server import Server, build_config
from authws.service.settings import Settings
from authws.strategies.handshake import WIRE

SUBJECT = "alice"
SCOPES = ("join:*", "publish:*")
PATIENCE = 20.0


class Watched:
    """The service, and what is left of its connections."""

    def __init__(self, house: House, server: Server) -> None:
        self._house = house
        self._server = server

    async def answer(self, command: str, argument: str) -> Any:
        match command:
            case "grant":
                return await self._grant(argument, 900.0)
            case "expire":
                return await self._grant(argument, 0.3)
            case "revoke":
                await self._house.accounts.end_session(argument, "test")
                return None
            case "begin":
                await self._quiet()
                gc.collect()
                gc.disable()
                return None
            case "collect":
                await self._quiet()
                return self._collect()
        raise ValueError(command)

    async def _grant(self, strategy: str, ttl: float) -> dict[str, str]:
        """Open a session, and return what can be presented for it."""
        house, now = self._house, self._house.clock.now()
        secret_id = house.cookies.new()
        session = session_digest(secret_id)
        by_cookie = strategy == "session-cookie"
        await house.sessions.create(
            id=session,
            subject=SUBJECT,
            kind="cookie" if by_cookie else "token",
            idle_ttl=1800.0,
            expires_at=now + ttl,
        )
        if by_cookie:
            return {"session": session, "credential": house.cookies.sign(secret_id)}
        token = house.issuer.access(
            SUBJECT, session, SCOPES, now=now, expires_at=now + ttl
        )
        return {"session": session, "credential": token}

    async def _quiet(self) -> None:
        """Wait until nobody is connected and nothing runs for anybody."""
        state = self._server.server_state
        async with asyncio.timeout(PATIENCE):
            while state.connections or state.tasks or self._house.hub.connections:  # noqa: ASYNC110 - nothing tells of it
                await asyncio.sleep(0.01)
        await asyncio.sleep(0.05)  # what was cancelled ends in a turn of its own

    def _collect(self) -> dict[str, int]:
        """What was unreachable and yet not freed, by its type."""
        gc.set_debug(gc.DEBUG_SAVEALL)
        try:
            gc.collect()
            return Counter(
                f"{type(one).__module__}.{type(one).__qualname__}" for one in gc.garbage
            )
        finally:
            gc.set_debug(0)
            gc.garbage.clear()
            gc.collect()


async def serve(house: House, server: Server) -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    watched = Watched(house, server)
    started = asyncio.Event()
    start = house.start

    async def tell() -> None:
        await start()
        await house.users.add(SUBJECT, "correct horse battery staple", SCOPES)
        started.set()

    house.start = tell  # type: ignore[method-assign]
    serving = asyncio.create_task(server.serve([listener]))
    await started.wait()
    port = listener.getsockname()[1]
    print(f"watched at http://127.0.0.1:{port}", flush=True)
    commands = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(commands), sys.stdin
    )
    while line := await commands.readline():
        command, _, argument = line.decode().strip().partition(" ")
        print(json.dumps(await watched.answer(command, argument)), flush=True)
    server.should_exit = True
    await serving


def without_wire(app: ASGIApp) -> ASGIApp:
    """Keep from the app what our server offers beside ASGI."""

    async def asgi(scope: Scope, receive: Receive, send: Send) -> None:
        scope.get("extensions", {}).pop(WIRE, None)
        await app(scope, receive, send)

    return asgi


def the_library() -> tuple[ASGIApp, House]:
    auth = AuthWS(data_dir=os.environ["AUTHWS_DATA_DIR"])
    app = FastAPI(lifespan=auth.lifespan)
    auth.install(app)

    def route(path: str, guard: Guard) -> None:
        @app.websocket(path)
        async def echo(connection: Connection = Depends(guard)) -> None:
            async for message in connection:
                await connection.send(message)

    route("/ws/query-param", auth.query_param)
    route("/ws/first-message", auth.first_message)
    route("/ws/session-cookie", auth.session_cookie)
    return app, app.state.authws


def the_service() -> tuple[ASGIApp, House]:
    app = create_app(Settings(_env_file=None))
    return app, app.state.authws


def main() -> None:
    (way,) = sys.argv[1:]
    app, house = the_library() if way == "library" else the_service()
    served = without_wire(app) if way == "asgi" else app
    server = Server(build_config(served, port=0, drain=1, log_config=None))
    with asyncio.Runner(loop_factory=server.config.get_loop_factory()) as runner:
        runner.run(serve(house, server))


if __name__ == "__main__":
    main()
