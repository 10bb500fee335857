"""One dependency inside your own FastAPI app. Run: uvicorn examples.library:app

Leaves out: adding users (`authws user add NAME`, with the same AUTHWS_DATA_DIR).
"""

from typing import Annotated

from fastapi import Depends, FastAPI

from authws import AuthWS, Connection, Principal

auth = AuthWS()
app = FastAPI(lifespan=auth.lifespan)
auth.install(app)


@app.websocket("/ws")
async def ws(connection: Annotated[Connection, Depends(auth.first_message)]) -> None:
    async for message in connection:
        await connection.send_json({"echo": message})


@app.get("/whoami")
async def whoami(me: Annotated[Principal, Depends(auth.first_message)]) -> str:
    return me.subject
