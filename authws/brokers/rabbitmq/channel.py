"""A channel of a connection to RabbitMQ: what is asked, and what comes for it."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

from pamqp.base import Frame
from pamqp.commands import Basic
from pamqp.commands import Channel as Methods

from authws.brokers.rabbitmq import frames
from authws.brokers.rabbitmq.frames import BODY, HEADER, METHOD, Content, Received
from authws.brokers.rabbitmq.promises import (
    Promise,
    break_promise,
    keep_promise,
    promise,
)
from authws.exceptions import UnavailableError

__all__ = ["Channel", "Confirmable", "Delivery", "RefusedError", "Wire"]


class RefusedError(UnavailableError):
    """RabbitMQ said no. Its words quote names of ours, and no password."""

    def __init__(self, said: str, code: int = 0) -> None:
        super().__init__(said)
        self.code = code


class Delivery(NamedTuple):
    """What came for a consumer."""

    tag: int
    key: str
    """The routing key."""
    headers: dict[str, Any]
    body: bytes


class Confirmable(Protocol):
    """Is told what became of what was published on a channel."""

    def confirmed(self, tag: int, is_multiple: bool, is_taken: bool) -> None:
        """Hear of the message with this number, or of all up to it."""

    def returned(self, message_id: str) -> None:
        """Hear, before that, that no queue wanted it."""

    def ended(self, why: str) -> None:
        """Hear that nothing more will be heard."""


class Wire(Protocol):
    """The connection that a channel is of."""

    blocked: str
    """Why RabbitMQ takes nothing that is published here, if it does not."""
    max_frame: int

    async def channel(self) -> Channel:
        """Open a channel."""

    def write(self, data: bytes) -> None:
        """Send frames.

        Raises:
            UnavailableError: the connection has ended.
        """

    def end(self, why: str) -> None:
        """Let go at once."""


class Channel:
    """What is asked one after the other, and what comes for it."""

    def __init__(self, wire: Wire, number: int, *, is_trial: bool) -> None:
        """``is_trial``: when RabbitMQ ends it, because of something that it does not
        allow, the connection goes on."""
        self.confirms: Confirmable | None = None
        self._wire = wire
        self._number = number
        self._is_trial = is_trial
        self._calls: deque[Promise] = deque()
        self._consumers: dict[str, Callable[[Delivery], None]] = {}
        # of the message that is coming
        self._method: Basic.Deliver | Basic.Return | None = None
        self._content = Content(0, {}, "")
        self._parts: list[bytes] = []
        self._missing = 0

    def call(self, method: Frame) -> Promise:
        """Ask for something, in the order of the calls; what is returned ends with the
        answer.

        Raises:
            UnavailableError: here or where it is awaited.
        """
        self._send(method)
        answer = promise()
        self._calls.append(answer)
        return answer

    async def consume(
        self,
        queue: str,
        take: Callable[[Delivery], None],
        *,
        prefetch: int = 0,
        arguments: dict[str, Any] | None = None,
    ) -> None:
        """Have what is in a queue handed on.

        Args:
            queue: its name.
            take: neither raises nor blocks.
            prefetch: how many come before some are acknowledged; 0 is any number, and
                nothing is to be acknowledged.
            arguments: what the kind of queue understands.
        """
        tag = f"{len(self._consumers)}"
        self._consumers[tag] = take
        self.call(Basic.Qos(prefetch_count=prefetch))
        await self.call(
            Basic.Consume(
                queue=queue,
                consumer_tag=tag,
                no_ack=prefetch == 0,
                arguments=arguments,
            )
        )

    def acknowledge(self, tag: int) -> None:
        """Have no more to do with what came, up to and with this."""
        with contextlib.suppress(UnavailableError):  # then it comes again
            self._send(Basic.Ack(tag, multiple=True))

    def publish(
        self,
        exchange: str,
        key: str,
        properties: Basic.Properties,
        body: bytes,
        *,
        is_mandatory: bool,
    ) -> None:
        """Publish; what becomes of it ``confirms`` is told.

        Raises:
            UnavailableError: the connection has ended.
        """
        self._wire.write(
            frames.publish(
                self._number,
                exchange,
                key,
                properties,
                body,
                is_mandatory=is_mandatory,
                max_frame=self._wire.max_frame,
            )
        )

    def end(self, why: str) -> None:
        """Hear that there is no such channel any more."""
        calls, self._calls = self._calls, deque()
        for call in calls:
            break_promise(call, why)
        confirms, self.confirms = self.confirms, None
        if confirms is not None:
            confirms.ended(why)

    def _send(self, method: Frame) -> None:
        self._wire.write(frames.marshal(method, self._number))

    # ---------------------------------------------------------------------- what comes

    def take(self, frame: Received) -> None:
        """Take a frame.

        Raises:
            MalformedError: it does not belong here.
        """
        if frame.kind == METHOD:
            self._take_method(frames.read_method(frame))
        elif frame.kind == HEADER and self._method is not None:
            self._content = frames.read_header(frame)
            self._missing = self._content.size
            self._finish()
        elif frame.kind == BODY and self._method is not None:
            self._parts.append(frame.payload)
            self._missing -= len(frame.payload)
            self._finish()
        else:
            raise frames.MalformedError

    def _take_method(self, method: Frame) -> None:
        match method:
            case Basic.Deliver() | Basic.Return():
                self._method = method
            case Basic.Ack() | Basic.Nack() if self.confirms is not None:
                is_taken = isinstance(method, Basic.Ack)
                tag = method.delivery_tag or 0
                self.confirms.confirmed(tag, method.multiple, is_taken)
            case Basic.Cancel():
                self._wire.end("a queue or a stream of ours was deleted")
            case Methods.Close():
                with contextlib.suppress(UnavailableError):
                    self._send(Methods.CloseOk())
                self._refused(method)
            case _ if self._calls:
                keep_promise(self._calls.popleft(), method)

    def _finish(self) -> None:
        if self._missing > 0:
            return
        method, self._method = self._method, None
        body, self._parts = b"".join(self._parts), []
        if isinstance(method, Basic.Deliver):
            tag, key = method.delivery_tag or 0, method.routing_key or ""
            take = self._consumers[method.consumer_tag or ""]
            take(Delivery(tag, key, self._content.headers, body))
        elif self.confirms is not None:
            self.confirms.returned(self._content.message_id)

    def _refused(self, method: Methods.Close) -> None:
        said = method.reply_text or "RabbitMQ gave no reason"
        if self._calls and not self._calls[0].done():
            self._calls[0].set_exception(RefusedError(said, method.reply_code or 0))
        self.end(said)
        if not self._is_trial:
            self._wire.end(said)
