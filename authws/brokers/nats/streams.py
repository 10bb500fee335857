"""What rooms keep, in JetStream: one stream for each ``Retention``.

A message is published into the stream, which keeps it and publishes it again where a
message that is only carried goes (``republish``, nats-server 2.8.3 and later), with its
place in the headers. So a channel needs one subscription, and no consumer.
https://docs.nats.io/nats-concepts/jetstream/streams
"""

from __future__ import annotations

import asyncio
import re
import secrets
from functools import lru_cache
from hashlib import blake2b
from typing import Any, TypeVar

import msgspec

from authws.brokers.base import Replay
from authws.brokers.nats.connection import NOBODY, ApiError, Batch, Connection
from authws.brokers.nats.heard import Heard
from authws.decisions.history import Position, Retention
from authws.exceptions import UnavailableError

__all__ = ["Stream", "live_subject", "read_place"]

FEW = 8
"""Messages that are asked for one by one: for that few a consumer costs the server
more, measured on nats-server 2.9 and 2.15."""
NAMES = 4096
"""Bytes that a message's names take beside it, at most."""
NO_MORE = {b"404", b"408"}
NO_ROOM = b"409"
"""The status of a batch in which the next message finds no room."""
IDLE = 5
"""Seconds after which the server forgets a consumer that is not asked."""
NANOSECONDS = 10**9
MAX_DIGITS = 18
"""Of a number in a stream, so that it is one everywhere."""

# ``err_code``, from nats-server's server/errors.json
STREAM_NOT_FOUND = 10059
NO_MESSAGE_FOUND = 10037
NOT_ENABLED = {NOBODY, 10039, 10076}

F = TypeVar("F")

_NO_TOKEN = re.compile("[^A-Za-z0-9_:@-]")


class State(msgspec.Struct):
    """The numbers that a stream has, the first one beyond the last if it has none."""

    first_seq: int
    last_seq: int


class _Info(msgspec.Struct):
    config: dict[str, Any]
    created: str
    state: State

    @property
    def epoch(self) -> str:
        """Another one for each stream, and for each description of it."""
        text = f"{self.created} {self.config.get('description', '')}"
        return blake2b(text.encode(), digest_size=6).hexdigest()


class _Message(msgspec.Struct):
    seq: int
    data: bytes = b""


class _Found(msgspec.Struct):
    message: _Message


class Stream:
    """The messages that are kept by one ``Retention``."""

    def __init__(self, prefix: str, keep: Retention, max_bytes: int) -> None:
        """``max_bytes`` of 0 is off."""
        kind = _token(f"{keep.messages}-{keep.seconds:g}")
        self.name = f"{prefix}_{kind}"
        self.epoch = ""
        self.confirmed = 0
        """A number up to which subscribers have surely heard all."""
        self.heard = 0
        """The highest number that came with a message, whoever wrote that."""
        self._last = 0
        """The highest number that it was said to have."""
        self._probed = 0
        self._reading: asyncio.Future[State] | None = None
        self._keep = keep
        self._into = f"{prefix}.kept.{kind}."
        self._wanted = {
            "name": self.name,
            "subjects": [f"{self._into}*"],
            "max_msgs_per_subject": keep.messages,
            "max_age": int(keep.seconds * NANOSECONDS),
            "max_bytes": max_bytes or -1,
            "retention": "limits",
            "discard": "old",
            "republish": {
                "src": f"{self._into}*",
                "dest": f"{prefix}.live.{{{{wildcard(1)}}}}",
            },
        }

    def subject(self, channel: str) -> str:
        """Return where a channel's messages are to be published to be kept."""
        return self._into + _token(channel)

    async def open(self, link: Connection) -> bool:
        """Have it be there, and as it is to be; tell whether it is another one.

        Raises:
            UnavailableError: with what the operator can do about it.
        """
        try:
            info = await self._manage(link, "INFO")
        except ApiError as error:
            if error.code in NOT_ENABLED:
                raise UnavailableError(
                    "JetStream is not enabled there: write `jetstream {}` into the "
                    "server's configuration, or set AUTHWS_HISTORY so that no room "
                    "keeps anything"
                ) from None
            if error.code != STREAM_NOT_FOUND:
                raise
            info = await self._manage(link, "CREATE", self._wanted)
        if any(info.config.get(name) != it for name, it in self._wanted.items()):
            info = await self._change(link, info, self._wanted)
        last = info.state.last_seq
        if info.epoch == self.epoch and last < max(self._last, self.heard):
            # It has lost its newest messages, as by a power cut or a backup brought
            # back: their numbers would be given again, to others.
            turn = f"since {secrets.token_urlsafe(6)}"
            info = await self._change(link, info, {"description": turn})
        is_another = info.epoch != self.epoch
        if is_another:
            self.epoch, self.confirmed = info.epoch, 0
        self._last, self.heard, self._probed = last, 0, self.confirmed
        return is_another

    async def probe(self, link: Connection) -> None:
        """Ask whether it is still there.

        Raises:
            UnavailableError: it is not.
        """
        state = await self.read(link)
        # what it had a second ago is republished by now, and came before this answer
        self.confirmed, self._probed = self._probed, state.last_seq

    async def replay(
        self, link: Connection, channel: str, since: Position | None, heard: Heard
    ) -> Replay:
        """Return what a channel has kept since a position.

        Raises:
            UnavailableError: it cannot be read.
        """
        is_here = since is not None and since.epoch == self.epoch
        found: list[tuple[int, bytes]] = []
        if since is not None and is_here and 0 <= since.offset < 10**MAX_DIGITS:
            found = await self._find(link, self.subject(channel), since.offset + 1)
        state = await self.read(link)
        if since is None or not is_here or not 0 <= since.offset <= state.last_seq:
            heard.know(state.last_seq)
            return Replay((), since is None, Position(self.epoch, state.last_seq))
        if heard.last > state.last_seq:
            heard.forget()
        numbers = [number for number, _ in found]
        most = self._keep.messages
        is_whole = heard.is_whole(since.offset, numbers, most, state.first_seq)
        top = numbers[-1] if found else max(since.offset, state.first_seq - 1)
        heard.know(top)
        return Replay(
            tuple(
                (Position(self.epoch, number), data) for number, data in found[-most:]
            ),
            is_whole,
            Position(self.epoch, top),
        )

    # ------------------------------------------------------------------ reading

    async def _find(
        self, link: Connection, subject: str, start: int
    ) -> list[tuple[int, bytes]]:
        """Return what is kept from a number on, all that there is when that ends."""
        found: list[tuple[int, bytes]] = []
        most = self._keep.messages + 1  # one more than can be there at once
        while len(found) < most:
            if len(found) == FEW:
                return found + await self._pull(link, subject, start, most - FEW)
            message = await self._next(link, subject, start)
            if message is None:
                break
            found.append((message.seq, message.data))
            start = message.seq + 1
        return found

    async def _next(
        self, link: Connection, subject: str, start: int
    ) -> _Message | None:
        question = msgspec.json.encode({"seq": start, "next_by_subj": subject})
        try:
            answer = await link.ask(f"$JS.API.STREAM.MSG.GET.{self.name}", question)
        except ApiError as error:
            if error.code == NO_MESSAGE_FOUND:
                return None
            raise
        return _decode(answer, _Found).message

    async def _pull(
        self, link: Connection, subject: str, start: int, count: int
    ) -> list[tuple[int, bytes]]:
        consumer = secrets.token_hex(8)
        place = f"{self.name}.{consumer}"
        await link.ask(
            f"$JS.API.CONSUMER.CREATE.{place}.{subject}",
            msgspec.json.encode(
                {
                    "stream_name": self.name,
                    "config": {
                        "name": consumer,
                        "deliver_policy": "by_start_sequence",
                        "opt_start_seq": start,
                        "filter_subject": subject,
                        "ack_policy": "none",
                        "inactive_threshold": IDLE * NANOSECONDS,
                        "mem_storage": True,
                        "num_replicas": 1,
                    },
                }
            ),
        )
        try:
            return await self._take_out(link, place, count)
        finally:
            link.tell(f"$JS.API.CONSUMER.DELETE.{place}")

    async def _take_out(
        self, link: Connection, place: str, count: int
    ) -> list[tuple[int, bytes]]:
        """Return a consumer's next messages, in batches of about the biggest message:
        of all that are read at once no more is under way than a connection bears."""
        found: list[tuple[int, bytes]] = []
        while len(found) < count:
            left = count - len(found)
            request = {"batch": left, "no_wait": True}
            request["max_bytes"] = link.max_payload + NAMES
            batch: Batch = await link.pull(
                f"$JS.API.CONSUMER.MSG.NEXT.{place}", msgspec.json.encode(request), left
            )
            found += [(_number(reply), data) for reply, data in batch.messages]
            if batch.status in NO_MORE:
                break
            if batch.status and not (batch.status == NO_ROOM and batch.messages):
                status = batch.status.decode("latin-1")
                raise UnavailableError(f"JetStream: status {status}")
        return found

    async def read(self, link: Connection) -> State:
        """Return what it has; who asks in the same turn of the loop, asks together.

        Raises:
            UnavailableError: it is not there any more, or another one is.
        """
        if self._reading is None:
            self._reading = asyncio.ensure_future(self._read(link))
            self._reading.add_done_callback(_let_be)
            asyncio.get_running_loop().call_soon(self._end_turn)
        return await asyncio.shield(self._reading)

    def _end_turn(self) -> None:
        self._reading = None  # it is sent: what is asked now is about later

    async def _read(self, link: Connection) -> State:
        last, heard = self._last, self.heard
        try:
            info = await self._manage(link, "INFO")
        except ApiError as error:
            link.fail(f"stream {self.name}: {error}")
            raise
        if info.epoch != self.epoch or info.state.last_seq < last:
            link.fail(f"stream {self.name} is another one than before")
            raise UnavailableError(link.why_lost)
        if info.state.last_seq < heard:
            self.heard = 0  # a message came with a number that is none of its
        self._last = max(self._last, info.state.last_seq)
        return info.state

    # ------------------------------------------------------------------ managing

    async def _change(
        self, link: Connection, info: _Info, changes: dict[str, Any]
    ) -> _Info:
        try:
            return await self._manage(link, "UPDATE", {**info.config, **changes})
        except ApiError as error:
            raise UnavailableError(
                f"stream {self.name} is not as it has to be, and cannot be changed "
                f"({error}): remove it with `nats stream rm {self.name}`, and it is "
                "made anew"
            ) from None

    async def _manage(
        self, link: Connection, verb: str, config: dict[str, Any] | None = None
    ) -> _Info:
        data = b"" if config is None else msgspec.json.encode(config)
        return _decode(
            await link.ask(f"$JS.API.STREAM.{verb}.{self.name}", data), _Info
        )


def live_subject(prefix: str, channel: str) -> str:
    """Return where what is published on a channel is heard."""
    return f"{prefix}.live.{_token(channel)}"


def read_place(headers: bytes) -> tuple[bytes, int, int] | None:
    """Return what the headers of a republished message say: the stream, the number in
    it, and the number before it of the same subject, 0 if that is not kept. None if
    they are none of these.
    """
    fields: dict[bytes, bytes] = {}
    for line in headers.split(b"\r\n"):
        key, _, value = line.partition(b": ")
        fields[key] = value  # what the server wrote stands last
    name = fields.get(b"Nats-Stream")
    number = fields.get(b"Nats-Sequence", b"")
    before = fields.get(b"Nats-Last-Sequence", b"")
    if name is None or not (number.isdigit() and before.isdigit()):
        return None
    if len(number) > MAX_DIGITS or len(before) > MAX_DIGITS:
        return None
    return name, int(number), int(before)


def _number(reply: bytes) -> int:
    """Read a message's number out of what an acknowledgement would be sent to:
    ``$JS.ACK.STREAM.CONSUMER.TRIES.NUMBER…``, or with a domain and an account before
    the stream (ADR-15)."""
    tokens = reply.split(b".")
    return int(tokens[5] if len(tokens) == 9 else tokens[7])


def _decode(data: bytes, form: type[F]) -> F:
    try:
        return msgspec.json.decode(data, type=form)
    except msgspec.MsgspecError:
        raise UnavailableError("JetStream's answer is none") from None


def _let_be(reading: asyncio.Future[State]) -> None:
    if not reading.cancelled():
        reading.exception()  # whoever asked may be gone


@lru_cache(maxsize=4096)
def _token(name: str) -> str:
    """Return a name as one token of a subject, another one for each name: neither a
    dot nor a wildcard can come of it."""
    return _NO_TOKEN.sub(_escape, name)


def _escape(found: re.Match[str]) -> str:
    return "".join(f"%{byte:02X}" for byte in found[0].encode())
