"""FastAPI with the token in the query, as its tutorials have one check it with PyJWT.

No origin, no scopes, no expiry after the handshake, no revocation, no limits.
"""

from __future__ import annotations

from typing import Annotated

import jwt
from fastapi import FastAPI, Query, WebSocket, WebSocketDisconnect, WebSocketException

from bench.contenders import stock
from bench.contenders.tokens import SECRET

app = FastAPI()


@app.websocket("/ws")
async def echo(websocket: WebSocket, token: Annotated[str, Query()]) -> None:
    try:
        claims = jwt.decode(token, SECRET, algorithms=["HS256"])
    except jwt.InvalidTokenError:
        raise WebSocketException(code=1008) from None
    await websocket.accept()
    websocket.state.user = claims["sub"]
    try:
        while True:
            await websocket.send_text(await websocket.receive_text())
    except WebSocketDisconnect:
        pass


if __name__ == "__main__":
    stock.run(app)
