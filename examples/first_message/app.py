"""A credential in the first message.

How it travels: in {"type":"auth","token":…}, within five seconds after accept.

    authws user add alice
    python examples/first_message/app.py

Leaves out: TLS and settings for anything but this machine (docs/deploying.md).
"""

from pathlib import Path
from typing import Annotated

import uvicorn
from fastapi import Depends, FastAPI
from fastapi.responses import FileResponse

from authws import AuthWS, Connection, Settings

auth = AuthWS()
app = FastAPI(lifespan=auth.lifespan)
auth.install(app)


@app.get("/")
async def page() -> FileResponse:
    return FileResponse(Path(__file__).with_name("index.html"))


@app.websocket("/ws")
async def ws(connection: Annotated[Connection, Depends(auth.first_message)]) -> None:
    async for message in connection:
        await connection.send_json({"echo": message})


if __name__ == "__main__":
    port = Settings().port  # AUTHWS_PORT, as pages of this port may connect
    uvicorn.run(app, port=port, ws_per_message_deflate=False, ws_max_size=65_536)
