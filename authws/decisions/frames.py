"""Messages as they stand on the wire: one frame each (RFC 6455, 5.2).

Encoded once for a whole room, a message is then only copied.
"""

from __future__ import annotations

import struct

__all__ = ["BINARY", "TEXT", "encode_frame", "encode_message"]

TEXT, BINARY = 0x1, 0x2
_FIN = 0x80

_length_16 = struct.Struct("!BBH").pack
_length_64 = struct.Struct("!BBQ").pack


def encode_message(payload: str | bytes) -> bytes:
    """One whole message as one frame."""
    if isinstance(payload, str):
        return encode_frame(TEXT, payload.encode())
    return encode_frame(BINARY, payload)


def encode_frame(opcode: int, payload: bytes) -> bytes:
    """A whole frame of a server, which does not mask (RFC 6455, 5.1)."""
    size = len(payload)
    if size < 126:
        return bytes((_FIN | opcode, size)) + payload
    if size < 65_536:
        return _length_16(_FIN | opcode, 126, size) + payload
    return _length_64(_FIN | opcode, 127, size) + payload
