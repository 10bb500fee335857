"""The broker: what it promises, by means of Redis."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Iterable, Sequence
from typing import Any

from redis.exceptions import ResponseError

from authws.brokers.base import Listener, Replay
from authws.brokers.lifeline import (
    CALL_TIMEOUT,
    CONNECT_TIMEOUT,
    PROBE_TIMEOUT,
    Lifeline,
)
from authws.brokers.redis.lines import Events, code
from authws.brokers.redis.servers import (
    SLOTS,
    Dial,
    Host,
    Server,
    Shard,
    find_master,
    find_shards,
)
from authws.brokers.redis.wire import Names, Wire, read_message, read_replay
from authws.brokers.urls import BrokerUrl
from authws.clock import Clock
from authws.decisions.complaints import Complaints
from authws.decisions.history import Position, Retention
from authws.exceptions import ConfigurationError, UnavailableError

__all__ = ["RedisBroker"]

logger = logging.getLogger("authws")

HINTS = {
    "OOM": " (it is full: see maxmemory and AUTHWS_HISTORY)",
    "NOPERM": " (its user may not: see docs/brokers.md for what it needs)",
    "WRONGTYPE": " (somebody else uses our names: see AUTHWS_BROKER_PREFIX)",
    "MISCONF": " (it cannot write to its disk)",
}
PAUSE = 0.05
"""Seconds before a cluster is asked where its slots are now: moves come in series."""


class RedisBroker:
    """Carries by pub/sub and keeps in streams.

    All connections live and die together: a cluster of which a part cannot be reached
    is one that cannot be reached.
    """

    crosses_processes = True
    _listener: Listener

    def __init__(
        self,
        address: BrokerUrl,
        *,
        prefix: str,
        kept: Sequence[Retention],
        history_bytes: int,
        clock: Clock | None,
    ) -> None:
        """Redis needs no notice of what will be ``kept``, and bounds its own memory
        (``maxmemory``).

        Raises:
            ConfigurationError: the URL contradicts itself, or names a file that cannot
                be used.
        """
        self.dropped = 0
        self._address = address
        self._sentinel = address.options.get("sentinel", "")
        self._is_sharded = _is_cluster(address)
        self._database = _database(address, is_cluster=self._is_sharded)
        self._wire = Wire(prefix, self._database, is_sharded=self._is_sharded)
        self._dial = Dial(address, self._database)
        self._nodes: set[Host] = set()
        """A cluster's nodes, as it last told."""
        self._servers: dict[Host, Server] = {}
        self._route: list[Server] = []
        """The server of each slot."""
        self._subscribed: dict[bytes, Position | None] = {}
        """What Redis confirmed, and the position of what came there last."""
        self._unsure: set[bytes] = set()
        """Of these, what has to be subscribed again, or has been and the listener does
        not know yet: what arrives there before it does is left out."""
        self._follower: asyncio.Task[None] | None = None
        self._is_moved = False
        self._events = Events(self._lost, self._refused, self._arrived, self._moved)
        self._complaints = Complaints(logger, (clock or Clock()).monotonic)
        self._lifeline = Lifeline(
            str(address),
            connect=self._connect,
            probe=self._probe,
            disconnect=self._disconnect,
            clock=clock,
        )

    @property
    def is_up(self) -> bool:
        return self._lifeline.is_up

    @property
    def heard_at(self) -> float:
        return self._lifeline.heard_at

    async def start(self, listener: Listener) -> None:
        self._listener = listener
        await self._lifeline.start()

    async def subscribe(self, channel: str, keep: Retention | None = None) -> None:
        names = self._wire.names(channel)
        await self._answer(self._server(names).listening.subscribe(names))

    async def unsubscribe(self, channel: str) -> None:
        names = self._wire.names(channel)
        try:
            if not self._route:
                raise UnavailableError("Redis cannot be reached")
            # there is a route already while all is subscribed again: go behind that
            listening = self._route[names.slot].listening
            await self._answer(listening.unsubscribe(names))
        except UnavailableError:
            self._subscribed.pop(names.channel, None)

    def publish(
        self, channel: str, data: bytes, keep: Retention | None = None
    ) -> Awaitable[None]:
        server = self._server(self._wire.names(channel))
        if keep is None:
            packed = self._wire.carry(channel, data)
        else:
            packed = self._wire.keep(channel, data, keep, server.life)
        return server.commands.publish(packed, is_kept=keep is not None)

    async def replay(
        self, channel: str, keep: Retention, since: Position | None
    ) -> Replay:
        server = self._server(self._wire.names(channel))
        words = self._wire.replay(channel, keep, since, server.life)
        answer = await self._answer(server.commands.ask(*words))
        try:
            return read_replay(answer, since)
        except (AttributeError, TypeError, ValueError):
            raise UnavailableError("what Redis has kept is not ours") from None

    async def ping(self) -> bool:
        try:
            async with asyncio.timeout(PROBE_TIMEOUT):
                await self._probe()
        except Exception:
            return False
        return self.is_up

    async def stop(self) -> None:
        await self._lifeline.stop()

    # ------------------------------------------------------------------------- calling

    def _server(self, names: Names) -> Server:
        if not self._lifeline.is_up:
            raise UnavailableError("Redis cannot be reached")
        return self._route[names.slot]

    async def _answer(self, asked: asyncio.Future[Any]) -> Any:
        try:
            async with asyncio.timeout(CALL_TIMEOUT):
                return await asked
        except TimeoutError:
            # whether it will still be done is not known: begin anew, where it is
            self._lifeline.lose("it does not answer")
            raise UnavailableError("Redis does not answer") from None

    # ----------------------------------------------------------------------- listening

    def _arrived(self, name: bytes, payload: bytes) -> None:
        if name in self._unsure or name not in self._subscribed:
            return
        message = read_message(payload)
        if message is None:
            self.dropped += 1
            return
        data, position = message
        channel = self._wire.channel(name)
        if position is not None:
            top = self._subscribed[name]
            if top is not None and position != Position(top.epoch, top.offset + 1):
                self._listener.interrupted([channel])
            self._subscribed[name] = position
        self._listener.deliver(channel, data, position)

    def _lost(self, error: Exception) -> None:
        self._lifeline.lose(error)

    def _refused(self, error: ResponseError) -> None:
        match code(error):
            case "MOVED":
                self._follow()
            case "READONLY" | "CLUSTERDOWN" | "MASTERDOWN" as word:
                self._lifeline.lose(word)
            case "ASK" | "TRYAGAIN" | "NOSCRIPT" | "LOADING":
                pass  # it is on its way to what was asked
            case word:  # for good, such as for want of memory or of a right
                self._complaints.make(
                    f"{self._address} refuses what it is asked: {word}"
                    f"{HINTS.get(word, '')}"
                )

    def _moved(self, name: bytes) -> None:
        if name in self._subscribed:
            self._unsure.add(name)
            self._follow()

    # ---------------------------------------------------------------------- connecting

    async def _connect(self) -> None:
        self._unsure = set(self._subscribed)
        await self._lay_route()
        await self._listen_again()
        if not all(server.is_open for server in self._servers.values()):
            raise UnavailableError("the connection was lost again")

    async def _probe(self) -> None:
        if not self._servers:
            raise UnavailableError("not connected")
        checks = [server.check() for server in self._servers.values()]
        await asyncio.gather(*checks)

    async def _disconnect(self) -> None:
        follower, self._follower = self._follower, None
        if follower is not None:
            follower.cancel()
            await asyncio.gather(follower, return_exceptions=True)
        self._route = []
        await _close(list(self._servers.values()))
        self._servers.clear()

    async def _lay_route(self) -> None:
        """Connect to whoever is a primary now, and know who has which slot."""
        shards = await self._find_shards()
        for host in dict.fromkeys(shard.host for shard in shards):
            if host not in self._servers:
                self._servers[host] = await self._open(host)
        by_slot: dict[int, Server] = {}
        for first, last, host in shards:
            by_slot.update(dict.fromkeys(range(first, last + 1), self._servers[host]))
        count = SLOTS if self._is_sharded else 1
        if len(by_slot) != count:
            raise UnavailableError("some slots of the cluster have no server")
        self._route = [by_slot[slot] for slot in range(count)]

    async def _find_shards(self) -> list[Shard]:
        hosts = self._address.hosts
        if self._is_sharded:
            shards, self._nodes = await find_shards(self._dial, {*hosts, *self._nodes})
            return shards
        if self._sentinel:
            return [Shard(0, 0, await find_master(self._dial, hosts, self._sentinel))]
        return [Shard(0, 0, hosts[0])]

    async def _open(self, host: Host) -> Server:
        return await Server.open(
            self._dial,
            host,
            self._events,
            self._subscribed,
            is_sharded=self._is_sharded,
        )

    async def _listen_again(self) -> None:
        """Subscribe where it is not sure that we are, and say what may be missing."""
        self._unsure &= self._subscribed.keys()
        names = [self._wire.names(self._wire.channel(name)) for name in self._unsure]
        names.sort(key=lambda name: name.slot)  # those of a slot share a command
        await asyncio.gather(
            *(self._route[name.slot].listening.subscribe(name) for name in names)
        )
        # In the next turn: what the listener asks for then, it gets.
        asyncio.get_running_loop().call_soon(
            self._tell, [name.channel for name in names]
        )

    def _tell(self, names: Iterable[bytes]) -> None:
        self._unsure.difference_update(names)
        channels = [
            self._wire.channel(name) for name in names if name in self._subscribed
        ]
        if channels:
            self._listener.interrupted(channels)

    # ------------------------------------------------------------- a cluster that moves

    def _follow(self) -> None:
        if not self._lifeline.is_up:
            return  # it is being found out
        self._is_moved = True
        if self._follower is None or self._follower.done():
            self._follower = asyncio.create_task(self._follow_slots())

    async def _follow_slots(self) -> None:
        """Find out where slots went, and listen there."""
        try:
            while self._is_moved:
                self._is_moved = False
                await asyncio.sleep(PAUSE)
                async with asyncio.timeout(CONNECT_TIMEOUT):
                    before = self._route
                    await self._lay_route()
                    self._unsure.update(self._served_elsewhere(before))
                    # a replica by now would go on telling what its primary tells
                    left = set(self._servers) - {server.host for server in self._route}
                    await _close([self._servers.pop(host) for host in left])
                    await self._listen_again()
        except Exception as error:
            self._lifeline.lose(error)

    def _served_elsewhere(self, before: Sequence[Server]) -> Iterable[bytes]:
        for name in self._subscribed:
            slot = self._wire.names(self._wire.channel(name)).slot
            if before[slot] is not self._route[slot]:
                yield name


async def _close(servers: Iterable[Server]) -> None:
    await asyncio.gather(*(server.close() for server in servers))


def _is_cluster(address: BrokerUrl) -> bool:
    value = address.options.get("cluster", "0")
    if value not in {"0", "1"}:
        raise ConfigurationError("AUTHWS_BROKER_URL: write ?cluster=1, or leave it out")
    if value == "1" and "sentinel" in address.options:
        raise ConfigurationError(
            "AUTHWS_BROKER_URL: a Redis Cluster has no Sentinels: cluster or sentinel"
        )
    if value == "0" and "sentinel" not in address.options and len(address.hosts) > 1:
        raise ConfigurationError(
            "AUTHWS_BROKER_URL: several hosts are those of a cluster (?cluster=1) or "
            "of Sentinels (?sentinel=NAME)"
        )
    return value == "1"


def _database(address: BrokerUrl, *, is_cluster: bool) -> int:
    path = address.path or "0"
    if not (path.isascii() and path.isdigit()) or (is_cluster and int(path)):
        raise ConfigurationError(
            "AUTHWS_BROKER_URL: behind the host of Redis stands the number of a "
            "database, which is 0 for a cluster"
        )
    return int(path)
