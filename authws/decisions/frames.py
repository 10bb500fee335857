"""Messages as they stand on the wire: one frame each (RFC 6455, 5.2).

Encoded once for a whole room, a message is then only copied.
"""

from __future__ import annotations

import struct

from websockets.exceptions import ProtocolError
from websockets.frames import Close

__all__ = [
    "BINARY",
    "CLOSE",
    "MAX_CONTROL_PAYLOAD",
    "TEXT",
    "encode_close",
    "encode_frame",
    "encode_message",
]

TEXT, BINARY, CLOSE = 0x1, 0x2, 0x8
MAX_CONTROL_PAYLOAD = 125
_FIN = 0x80

_length_16 = struct.Struct("!BBH").pack
_length_64 = struct.Struct("!BBQ").pack


def encode_message(payload: str | bytes) -> bytes:
    """One whole message as one frame.

    Raises:
        ValueError: text that UTF-8 cannot hold: a surrogate without its other half.
    """
    if isinstance(payload, str):
        return encode_frame(TEXT, payload.encode())
    return encode_frame(BINARY, payload)


def encode_close(code: int, reason: str = "") -> bytes:
    """A close frame.

    Raises:
        ValueError: a code that is not for the wire (RFC 6455, 7.4), a reason over 123
            bytes.
    """
    try:
        payload = Close(code, reason).serialize()
    except ProtocolError:
        raise ValueError(f"{code} is no close code to send") from None
    if len(payload) > MAX_CONTROL_PAYLOAD:
        raise ValueError("a close reason has at most 123 bytes")
    return encode_frame(CLOSE, payload)


def encode_frame(opcode: int, payload: bytes) -> bytes:
    """A whole frame of a server, which does not mask (RFC 6455, 5.1)."""
    size = len(payload)
    if size < 126:
        return bytes((_FIN | opcode, size)) + payload
    if size < 65_536:
        return _length_16(_FIN | opcode, 126, size) + payload
    return _length_64(_FIN | opcode, 127, size) + payload
