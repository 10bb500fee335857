"""Ending a connection so that the peer still reads why."""

from __future__ import annotations

import asyncio

__all__ = ["end_our_half"]


def end_our_half(transport: asyncio.Transport) -> None:
    """Stop sending, and keep reading; the caller cuts the peer off in a while.

    A socket closed while bytes of the peer lie unread sends a reset, and a reset may
    take away the answer that the peer has not read yet (RFC 9112, 9.6). So we end our
    half only; the protocol drops what still comes, until the peer ends its half.
    """
    if not transport.is_closing():
        if transport.can_write_eof():
            transport.write_eof()
        else:  # TLS has no half-close; its own closing handshake reads on
            transport.close()
