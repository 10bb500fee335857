"""Ending a connection so that the peer still reads why."""

from __future__ import annotations

import asyncio

__all__ = ["linger"]


def linger(
    transport: asyncio.Transport, loop: asyncio.AbstractEventLoop, timeout: float
) -> asyncio.TimerHandle:
    """Stop sending, keep reading, and cut the peer off ``timeout`` seconds later.

    A socket closed while bytes of the peer lie unread sends a reset, and a reset may
    take away the answer that the peer has not read yet (RFC 9112, 9.6). So we end our
    half only; the protocol drops what still comes, until the peer ends its half.
    """
    if not transport.is_closing():
        if transport.can_write_eof():
            transport.write_eof()
        else:  # TLS has no half-close; its own closing handshake reads on
            transport.close()
    return loop.call_later(timeout, transport.abort)
