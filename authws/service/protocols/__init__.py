"""What stands between a TCP connection and the app: Uvicorn's protocols, bounded.

Uvicorn parses, frames and speaks ASGI; these classes add the limits it does not have,
so that no stranger can hold a connection, memory or the log for longer than we say.
"""

from __future__ import annotations

from authws.service.protocols.http import HttpProtocol
from authws.service.protocols.limits import ProtocolLimits
from authws.service.protocols.websocket import WebSocketProtocol

__all__ = ["HttpProtocol", "ProtocolLimits", "WebSocketProtocol"]
