"""authws as a library: one dependency in a route of somebody's FastAPI app.

`/ws` is the echo that the README shows, on plain Uvicorn, as a user runs it, or with
`ours` on the server that the service itself runs on. Settings come from `AUTHWS_*`.
"""

from __future__ import annotations

import socket
import sys
from typing import Annotated

import uvicorn
from fastapi import Depends, FastAPI

from authws import AuthWS, Connection
from authws.service.server import Server, build_config

auth = AuthWS()
app = FastAPI(lifespan=auth.lifespan)
auth.install(app)


@app.websocket("/ws")
async def ws(connection: Annotated[Connection, Depends(auth.query_param)]) -> None:
    async for message in connection:
        await connection.send(message)


def server(kind: str) -> uvicorn.Server:
    if kind == "ours":
        return Server(build_config(app, log_level="warning"))
    config = uvicorn.Config(
        app,
        loop="uvloop",
        http="httptools",
        ws="websockets-sansio",
        ws_per_message_deflate=False,
        log_level="warning",
        access_log=False,
    )
    return uvicorn.Server(config)


if __name__ == "__main__":
    with socket.create_server(("127.0.0.1", 0), backlog=4096) as listener:
        port = listener.getsockname()[1]
        print(f"authws is at http://127.0.0.1:{port}", flush=True)
        serving = server(sys.argv[1])
        if isinstance(serving, Server):
            serving.run(sockets=[listener])
        else:
            import uvloop

            uvloop.run(serving.serve(sockets=[listener]))
