"""Starlette without FastAPI: `/ws` is an echo, `/room` sends to one after another."""

from __future__ import annotations

from starlette.applications import Starlette
from starlette.routing import WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

from bench.contenders import stock

active: list[WebSocket] = []


async def echo(websocket: WebSocket) -> None:
    await websocket.accept()
    try:
        while True:
            await websocket.send_text(await websocket.receive_text())
    except WebSocketDisconnect:
        pass


async def room(websocket: WebSocket) -> None:
    await websocket.accept()
    active.append(websocket)
    try:
        while True:
            message = await websocket.receive_text()
            for member in list(active):
                await member.send_text(message)
    except WebSocketDisconnect:
        active.remove(websocket)


app = Starlette(routes=[WebSocketRoute("/ws", echo), WebSocketRoute("/room", room)])

if __name__ == "__main__":
    stock.run(app)
