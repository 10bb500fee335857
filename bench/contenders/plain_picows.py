"""picows (Cython) on uvloop, by its callbacks; `/auth` checks a token with PyJWT."""

from __future__ import annotations

import sys

import jwt
import uvloop
from picows import (
    WSFrame,
    WSListener,
    WSMsgType,
    WSTransport,
    WSUpgradeRequest,
    WSUpgradeResponse,
    WSUpgradeResponseWithListener,
    ws_create_server,
)

from bench.contenders.tokens import SECRET

members: set[WSTransport] = set()


class Echo(WSListener):  # type: ignore[misc]
    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        if frame.msg_type == WSMsgType.CLOSE:
            transport.send_close(frame.get_close_code(), frame.get_close_message())
            transport.disconnect()
        else:
            self.take(transport, frame)

    def take(self, transport: WSTransport, frame: WSFrame) -> None:
        transport.send(frame.msg_type, frame.get_payload_as_memoryview())


class Room(Echo):
    def on_ws_connected(self, transport: WSTransport) -> None:
        members.add(transport)

    def on_ws_disconnected(self, transport: WSTransport) -> None:
        members.discard(transport)

    def take(self, transport: WSTransport, frame: WSFrame) -> None:
        data, kind = frame.get_payload_as_bytes(), frame.msg_type
        for member in members:
            member.send(kind, data)


def listener(request: WSUpgradeRequest) -> WSListener | WSUpgradeResponseWithListener:
    path, _, token = request.path.decode().partition("?token=")
    if path == "/auth":
        try:
            jwt.decode(token, SECRET, algorithms=["HS256"])
        except jwt.InvalidTokenError:
            refusal = WSUpgradeResponse.create_error_response(403, b"")
            return WSUpgradeResponseWithListener(refusal, None)
    return Room() if path == "/room" else Echo()


async def main(port: int) -> None:
    server = await ws_create_server(listener, "127.0.0.1", port, backlog=4096)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1])))
