"""The sans-IO WebSocket parser, with bounds on what may make up one message."""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator

from websockets.datastructures import Headers
from websockets.exceptions import ProtocolError
from websockets.frames import CloseCode, Frame, Opcode
from websockets.http11 import Response
from websockets.protocol import Protocol
from websockets.server import ServerProtocol
from websockets.typing import Origin, StatusLike

from authws import close_codes
from authws.decisions.limits import TokenBucket
from authws.service.protocols.limits import ProtocolLimits

__all__ = ["FrameParser"]

_DATA = frozenset({Opcode.TEXT, Opcode.BINARY, Opcode.CONT})


class FrameParser(ServerProtocol):
    """The server's side of a connection whose handshake head was parsed before."""

    def __init__(
        self,
        *,
        max_size: int,
        limits: ProtocolLimits,
        clock: Callable[[], float],
        logger: logging.Logger,
    ) -> None:
        super().__init__(max_size=max_size, logger=logger)
        # It would log heads and frames, and both carry credentials.
        self.debug = False
        self.messages = 0
        """How many messages have come to their end."""
        self._fragments = 0
        self._max_fragments = limits.max_fragments
        self._clock = clock
        rate = limits.control_rate
        self._control = TokenBucket(rate, max(rate, 1.0), clock())

    def let_go(self) -> None:
        """Stop the parser, a generator that refers to this object and it to it."""
        self.parser.close()

    def process_origin(self, headers: Headers) -> Origin | None:
        """Leave the page's origin to the app, which answers 403 and logs it.

        The library would answer a repeated one with 400, and nobody would hear of it.
        """
        return None

    @property
    def within_message(self) -> bool:
        """Whether a message, or a frame, has begun and not ended."""
        return self.current_size is not None or bool(self.reader.buffer)

    def parse(self) -> Generator[None]:
        """Parse frames from the start: the head never comes this way.

        The library's own parser of heads stops at lines of 8 KiB, less than a token
        may need, and leaves to its caller to send what it answers then.
        """
        yield from Protocol.parse(self)

    def recv_frame(self, frame: Frame) -> None:
        """Count a frame before the library takes it."""
        if frame.opcode in _DATA:
            self._fragments += 1
            if self._fragments > self._max_fragments:
                self._refuse()
        elif frame.opcode is not Opcode.CLOSE and not self._control.take(self._clock()):
            self._refuse()
        super().recv_frame(frame)
        if frame.opcode in _DATA and frame.fin:
            self._fragments = 0
            self.messages += 1

    def reject(self, status: StatusLike, text: str) -> Response:
        """Refuse the handshake; no cache may answer the next one (RFC 6750, 5.3)."""
        response = super().reject(status, text)
        response.headers["Cache-Control"] = "no-store"
        return response

    def fail(self, code: CloseCode | int, reason: str = "") -> None:
        """Fail the connection (RFC 6455, 7.1.7); our slugs replace the library's."""
        if code == close_codes.MESSAGE_TOO_BIG.code:
            reason = close_codes.MESSAGE_TOO_BIG.reason
        super().fail(code, reason)

    def _refuse(self) -> None:
        close = close_codes.RATE_LIMITED
        self.fail(close.code, close.reason)
        raise ProtocolError(close.reason)  # stops the parser; the close frame stands
