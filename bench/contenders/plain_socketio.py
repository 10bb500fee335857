"""python-socketio on Uvicorn, WebSocket transport only, in its own protocol.

The event "m" is echoed; for those who connect with `?room=1` it goes to the room.
"""

from __future__ import annotations

from typing import Any

import socketio

from bench.contenders import stock

server = socketio.AsyncServer(async_mode="asgi", transports=["websocket"])
members: set[str] = set()


@server.event  # type: ignore[untyped-decorator]
async def connect(sid: str, environ: dict[str, Any]) -> None:
    if "room=1" in environ["QUERY_STRING"]:
        members.add(sid)
        await server.enter_room(sid, "room")


@server.event  # type: ignore[untyped-decorator]
async def disconnect(sid: str, reason: str) -> None:
    members.discard(sid)


@server.on("m")  # type: ignore[untyped-decorator]
async def message(sid: str, data: str) -> None:
    await server.emit("m", data, to="room" if sid in members else sid)


if __name__ == "__main__":
    stock.run(socketio.ASGIApp(server))
