"""What stands between a TCP connection and the app.

Uvicorn parses HTTP and runs the server; these classes add the limits that it does not
have, so that no stranger can hold a connection, memory or the log for longer than we
say, and speak WebSocket themselves, for the sake of what an idle peer costs.
"""

from __future__ import annotations

from authws.service.protocols.arrival import ArrivalProtocol
from authws.service.protocols.http import HttpProtocol
from authws.service.protocols.limits import ProtocolLimits
from authws.service.protocols.websocket import WebSocketProtocol

__all__ = [
    "ArrivalProtocol",
    "HttpProtocol",
    "ProtocolLimits",
    "WebSocketProtocol",
]
