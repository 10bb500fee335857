"""The `websockets` library's own server on uvloop: `/ws` echo, `/room` broadcast."""

from __future__ import annotations

import sys

import uvloop
from websockets.asyncio.server import ServerConnection, broadcast, serve

room: set[ServerConnection] = set()


async def handler(peer: ServerConnection) -> None:
    if peer.request is None or peer.request.path != "/room":
        async for message in peer:
            await peer.send(message)
        return
    room.add(peer)
    try:
        async for message in peer:
            broadcast(room, message)
    finally:
        room.discard(peer)


async def main(port: int) -> None:
    options = {"compression": None, "backlog": 4096}
    async with serve(handler, "127.0.0.1", port, **options) as server:  # type: ignore[arg-type]
        await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1])))
