"""WebSocket frames (RFC 6455, section 5) without I/O: bytes in, what they mean out.

Ours, because it stands between every byte of every peer and the app: one object and no
generator per connection, limits that hold while a message arrives, no copy of a frame
that came whole. It takes and refuses what the ``websockets`` library does; a test
gives both the same bytes, whole and in pieces, and compares.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from websockets.exceptions import ProtocolError
from websockets.frames import Close, CloseCode

from authws import close_codes
from authws.decisions.frames import (
    BINARY,
    CLOSE,
    MAX_CONTROL_PAYLOAD,
    encode_close,
    encode_frame,
)
from authws.decisions.limits import TokenBucket
from authws.service.protocols.limits import ProtocolLimits

try:
    from websockets.speedups import apply_mask
except ImportError:  # where no wheel was built for it
    from websockets.utils import apply_mask

__all__ = [
    "FrameParser",
    "FrameSink",
    "close_answer",
    "ping",
    "pong",
]

CONTINUATION = 0x0
PING, PONG = 0x9, 0xA

_FIN = 0x80
_MASKED = 0x80
_RESERVED = 0x70
_LENGTH = 0x7F
_CONTROL = 0x8


class FrameSink(Protocol):
    """Hears what the peer said."""

    def message_received(self, message: str | bytes) -> None:
        """A whole message: text as ``str``, binary as ``bytes``."""

    def ping_received(self, payload: bytes) -> None: ...

    def pong_received(self, payload: bytes) -> None: ...

    def close_received(self, close: Close) -> None:
        """The peer's close frame; nothing after it is parsed."""

    def protocol_violated(self, code: int, reason: str) -> None:
        """The connection must fail (RFC 6455, 7.1.7); nothing more is parsed."""


class _ViolationError(Exception):
    def __init__(self, code: int, reason: str = "") -> None:
        super().__init__(code, reason)
        self.code = code
        self.reason = reason


class FrameParser:
    """A peer's frames, from the first byte after the opening handshake."""

    __slots__ = (
        "_clock",
        "_control",
        "_fragments",
        "_is_done",
        "_is_feeding",
        "_kind",
        "_limits",
        "_parts",
        "_rest",
        "_size",
        "is_paused",
        "max_message_size",
        "messages",
    )

    def __init__(
        self,
        *,
        max_message_size: int,
        limits: ProtocolLimits,
        clock: Callable[[], float],
    ) -> None:
        self.max_message_size = max_message_size
        """In bytes of payload, all fragments together; holds from the next frame on."""
        self.messages = 0
        """How many messages have come to their end."""
        self._limits = limits
        self._clock = clock
        self._control: TokenBucket | None = None  # most peers never need it
        self._rest: bytearray | None = None
        """What came of a frame whose end has not."""
        self._kind = CONTINUATION
        """Of the message whose fragments are coming; CONTINUATION if none is."""
        self._parts: list[bytes] | None = None
        self._size = 0
        self._fragments = 0
        self._is_done = False
        self._is_feeding = False
        self.is_paused = False
        """Whether nothing is looked at for now."""

    @property
    def within_message(self) -> bool:
        """Whether a message, or a frame, has begun and, for all we know, not ended."""
        if self.is_paused:
            return False  # it may be whole: it was not looked at
        return self._rest is not None or self._kind != CONTINUATION

    def stop(self) -> None:
        """Parse nothing any more."""
        self._is_done = True
        self._rest = self._parts = None
        self._kind = CONTINUATION

    def pause(self) -> None:
        """Look at no further frame: who hears them has enough for now."""
        self.is_paused = True

    def resume(self, sink: FrameSink) -> None:
        """Go on with what was kept."""
        self.is_paused = False
        # a sink that was just told a message may say so: the loop goes on by itself
        if self._rest is not None and not self._is_feeding:
            self.feed(b"", sink)

    def feed(self, data: bytes | bytearray, sink: FrameSink) -> None:
        """Take what the peer sent, and tell ``sink`` what it means.

        The sink may ``pause`` it: what was not looked at by then is kept as it came.
        """
        if self._is_done:
            return
        if self._rest is not None:
            self._rest += data
            data = self._rest
        at = 0
        self._is_feeding = True
        try:
            while not (self._is_done or self.is_paused):
                end = self._parse_frame(data, at, sink)
                if end == at:
                    break
                at = end
        except _ViolationError as violation:
            self.stop()
            sink.protocol_violated(violation.code, violation.reason)
        finally:
            self._is_feeding = False
        if not self._is_done:
            self._keep(data, at)

    def _keep(self, data: bytes | bytearray, at: int) -> None:
        """Keep what follows the last whole frame."""
        if at == len(data):
            self._rest = None
        elif data is self._rest:
            del self._rest[:at]
        else:
            self._rest = bytearray(data[at:])

    # ---------------------------------------------------------------------- one frame

    def _parse_frame(self, data: bytes | bytearray, at: int, sink: FrameSink) -> int:
        """Take the frame that begins at ``at``; return its end, or ``at`` if that has
        not come."""
        there = len(data) - at
        if there < 2:
            return at
        first, length = data[at], data[at + 1]
        opcode = first & 0x0F
        payload_at = at + 6
        if not length & _MASKED:
            raise _ViolationError(CloseCode.PROTOCOL_ERROR, "incorrect masking")
        length &= _LENGTH
        if opcode >= _CONTROL or first & _RESERVED:
            _check_control(first, opcode, length)
        else:
            if length == 126:
                if there < 4:
                    return at
                length = int.from_bytes(data[at + 2 : at + 4], "big")
                payload_at += 2
            elif length == 127:
                if there < 10:
                    return at
                length = int.from_bytes(data[at + 2 : at + 10], "big")
                payload_at += 8
            self._check_data(opcode, length)
        end = payload_at + length
        if end > len(data):
            return at
        payload = apply_mask(data[payload_at:end], data[payload_at - 4 : payload_at])
        if opcode >= _CONTROL:
            self._take_control(opcode, payload, sink)
        else:
            self._take_data(opcode, first & _FIN, payload, sink)
        return end

    def _check_data(self, opcode: int, length: int) -> None:
        """Refuse a data frame by its head, before its payload is there."""
        if opcode == CONTINUATION:
            if self._kind == CONTINUATION:
                raise _ViolationError(
                    CloseCode.PROTOCOL_ERROR, "unexpected continuation frame"
                )
        elif opcode > BINARY:
            raise _ViolationError(CloseCode.PROTOCOL_ERROR, "invalid opcode")
        elif self._kind != CONTINUATION:
            raise _ViolationError(
                CloseCode.PROTOCOL_ERROR, "expected a continuation frame"
            )
        if self._size + length > self.max_message_size:
            raise _ViolationError(*_TOO_BIG)

    def _take_data(
        self, opcode: int, is_last: int, payload: bytes, sink: FrameSink
    ) -> None:
        if opcode == CONTINUATION or not is_last:
            whole = self._add_fragment(opcode, is_last, payload)
            if whole is None:
                return
            opcode, payload = whole
        self.messages += 1
        if opcode == BINARY:
            sink.message_received(payload)
            return
        try:
            text = payload.decode()
        except UnicodeDecodeError:  # RFC 6455, 8.1
            raise _ViolationError(CloseCode.INVALID_DATA) from None
        sink.message_received(text)

    def _add_fragment(
        self, opcode: int, is_last: int, payload: bytes
    ) -> tuple[int, bytes] | None:
        """Return the kind and payload of the message that this fragment ends."""
        self._fragments += 1
        if self._fragments > self._limits.max_fragments:
            raise _ViolationError(*_TOO_MANY)
        if self._parts is None:
            self._parts = []
            self._kind = opcode
        self._parts.append(payload)
        self._size += len(payload)
        if not is_last:
            return None
        kind, message = self._kind, b"".join(self._parts)
        self._kind, self._parts = CONTINUATION, None
        self._size = self._fragments = 0
        return kind, message

    def _take_control(self, opcode: int, payload: bytes, sink: FrameSink) -> None:
        if opcode == CLOSE:
            close = _parse_close(payload)
            self.stop()
            sink.close_received(close)
            return
        if self._control is None:
            rate = self._limits.control_rate
            self._control = TokenBucket(rate, max(rate, 1.0), self._clock())
        if not self._control.take(self._clock()):
            raise _ViolationError(*_TOO_MANY)
        if opcode == PING:
            sink.ping_received(payload)
        else:
            sink.pong_received(payload)


_TOO_BIG = (close_codes.MESSAGE_TOO_BIG.code, close_codes.MESSAGE_TOO_BIG.reason)
_TOO_MANY = (close_codes.RATE_LIMITED.code, close_codes.RATE_LIMITED.reason)


def _check_control(first: int, opcode: int, length: int) -> None:
    """Refuse what RFC 6455, 5.2 and 5.5, does not allow by its first two bytes."""
    if opcode > PONG or BINARY < opcode < CLOSE:
        raise _ViolationError(CloseCode.PROTOCOL_ERROR, "invalid opcode")
    if first & _RESERVED:  # no extension was negotiated
        raise _ViolationError(CloseCode.PROTOCOL_ERROR, "reserved bits must be 0")
    if length > MAX_CONTROL_PAYLOAD:
        raise _ViolationError(CloseCode.PROTOCOL_ERROR, "control frame too long")
    if not first & _FIN:
        raise _ViolationError(CloseCode.PROTOCOL_ERROR, "fragmented control frame")


def _parse_close(payload: bytes) -> Close:
    try:
        return Close.parse(payload)
    except ProtocolError as error:
        raise _ViolationError(CloseCode.PROTOCOL_ERROR, str(error)) from None
    except UnicodeDecodeError:
        raise _ViolationError(CloseCode.INVALID_DATA) from None


# ---------------------------------------------------------------------- what we send


def close_answer(close: Close) -> bytes:
    """The answer to a peer's close frame: its own code and reason."""
    if close.code == CloseCode.NO_STATUS_RCVD:  # there was none
        return encode_frame(CLOSE, b"")
    return encode_close(close.code, close.reason)


def ping(payload: bytes) -> bytes:
    """A ping."""
    return encode_frame(PING, payload)


def pong(payload: bytes) -> bytes:
    """The answer to a ping: its own payload (RFC 6455, 5.5.3)."""
    return encode_frame(PONG, payload)
