"""Where the Redis servers are, and how one is reached."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

from redis.asyncio.connection import Connection, SSLConnection
from redis.exceptions import AuthenticationError, RedisError, ResponseError

from authws.brokers.redis.lines import CommandLine, Events, ListenLine, code
from authws.brokers.redis.wire import command
from authws.brokers.urls import BrokerUrl
from authws.decisions.history import Position
from authws.exceptions import ConfigurationError, UnavailableError

__all__ = ["SLOTS", "Dial", "Server", "Shard", "find_master", "find_shards"]

SLOTS = 16_384
"""A cluster's hash slots."""
HOST_TIMEOUT = 2.0
"""Seconds for one host to take a connection and answer, before another is asked."""

Host = tuple[str, int]


class Dial:
    """Opens connections: with the password, and by TLS, if the URL says so."""

    def __init__(self, address: BrokerUrl, database: int) -> None:
        """Raises ConfigurationError if the URL names a file that cannot be used."""
        self._address = address
        self._database = database
        self._context = address.ssl_context()

    async def open(self, host: Host, *, is_plain: bool = False) -> Connection:
        """Connect and log in; ``is_plain``: without login and database."""
        # one try, and no time limit of redis-py's own: both are the lifeline's affair
        options: dict[str, Any] = {
            "host": host[0],
            "port": host[1],
            "protocol": 2,
            "socket_timeout": None,
            "socket_connect_timeout": HOST_TIMEOUT,
            "driver_info": None,
        }
        if not is_plain:
            options |= {
                "username": self._address.username or None,
                "password": self._address.password or None,
                "db": self._database,
            }
        make = Connection if self._context is None else SSLConnection
        connection = make(**options)
        if isinstance(connection, SSLConnection):
            # redis-py would add our authority to the system's, where we name one alone
            connection.ssl_context.context = self._context
        try:
            async with asyncio.timeout(HOST_TIMEOUT):
                await connection.connect()  # type: ignore[no-untyped-call]
        except BaseException:
            await connection.disconnect(nowait=True)
            raise
        return connection

    @asynccontextmanager
    async def asking(
        self, host: Host, *, is_plain: bool = False
    ) -> AsyncIterator[Connection]:
        """Open a connection for a question or two."""
        connection = await self.open(host, is_plain=is_plain)
        try:
            async with asyncio.timeout(HOST_TIMEOUT):
                yield connection
        finally:
            await connection.disconnect(nowait=True)

    @property
    def has_login(self) -> bool:
        return bool(self._address.username or self._address.password)


class Server:
    """One Redis server, which is a primary: the line for commands and that which
    listens."""

    def __init__(self, host: Host, commands: CommandLine, listening: ListenLine):
        self.host = host
        self.commands = commands
        self.listening = listening
        self.life = b""
        """Its replication id: another one if it may have lost something."""

    @classmethod
    async def open(
        cls,
        dial: Dial,
        host: Host,
        events: Events,
        subscribed: dict[bytes, Position | None],
        *,
        is_sharded: bool,
    ) -> Server:
        """Connect.

        Raises:
            ConfigurationError: it belongs to a cluster, and the URL does not say so.
            UnavailableError, RedisError, OSError: it cannot be used now.
        """
        first = await dial.open(host)
        try:
            second = await dial.open(host)
        except BaseException:
            await first.disconnect(nowait=True)
            raise
        server = cls(
            host,
            CommandLine(first, events),
            ListenLine(second, events, subscribed, is_sharded=is_sharded),
        )
        try:
            async with asyncio.timeout(HOST_TIMEOUT):
                server.life = await server._look()
                if not is_sharded and await server._is_of_a_cluster():
                    raise ConfigurationError(
                        "AUTHWS_BROKER_URL: this is a Redis Cluster: add ?cluster=1"
                    )
        except BaseException:
            await server.close()
            raise
        return server

    @property
    def is_open(self) -> bool:
        """Whether both connections are, as far as is known."""
        return self.commands.is_open and self.listening.is_open

    async def check(self) -> None:
        """Ask both connections for a sign of life.

        Raises:
            UnavailableError: it is not what it was any more.
        """
        if await self._look() != self.life:
            raise UnavailableError("Redis began another life")

    async def close(self) -> None:
        """Let go of both connections."""
        await asyncio.gather(self.commands.close(), self.listening.close())

    async def _look(self) -> bytes:
        asked = self.commands.ask(b"INFO", b"replication")
        _, answer = await asyncio.gather(self.listening.ping(), asked)
        info = _fields(answer)
        if info.get(b"role") != b"master":
            raise UnavailableError("this Redis is a replica: it takes no messages")
        return info[b"master_replid"]

    async def _is_of_a_cluster(self) -> bool:
        info = _fields(await self.commands.ask(b"INFO", b"cluster"))
        return info.get(b"cluster_enabled") == b"1"


class Shard(NamedTuple):
    """A range of slots, and the primary that has it."""

    first: int
    last: int
    host: Host


async def find_master(dial: Dial, sentinels: Iterable[Host], name: str) -> Host:
    """Ask the Sentinels where the primary is.

    Raises:
        UnavailableError: none of them says so.
    """
    why = "it is not watched"
    for sentinel in _shuffled(sentinels):
        # most have no password; those that have one get that of the URL
        for is_plain in (True, False) if dial.has_login else (True,):
            try:
                async with dial.asking(sentinel, is_plain=is_plain) as connection:
                    found = await _ask(
                        connection,
                        b"SENTINEL",
                        b"GET-MASTER-ADDR-BY-NAME",
                        name.encode(),
                    )
            except AuthenticationError as error:
                why = type(error).__name__
            except (RedisError, OSError) as error:
                why = type(error).__name__
                break
            else:
                if found:
                    return found[0].decode(), int(found[1])
                break
    raise UnavailableError(f"no Sentinel says where {name} is: {why}")


async def find_shards(
    dial: Dial, seeds: Iterable[Host]
) -> tuple[list[Shard], set[Host]]:
    """Ask a cluster's nodes who has which slots; also returns all of its nodes.

    Raises:
        ConfigurationError: this is no cluster.
        UnavailableError: it does not work now.
    """
    why = "no answer"
    for seed in _shuffled(seeds):
        try:
            async with dial.asking(seed) as connection:
                state = _fields(await _ask(connection, b"CLUSTER", b"INFO"))
                answer = await _ask(connection, b"CLUSTER", b"SLOTS")
        except ResponseError as error:
            if code(error) == "ERR":
                raise ConfigurationError(
                    "AUTHWS_BROKER_URL: this Redis is no cluster: leave out ?cluster=1"
                ) from None
            why = code(error)
        except (RedisError, OSError) as error:
            why = type(error).__name__
        else:
            if state.get(b"cluster_state") == b"ok":
                return _read_shards(answer, seed)
            why = "its state is not ok"
    raise UnavailableError(f"the cluster cannot be used: {why}")


def _read_shards(answer: list[Any], seed: Host) -> tuple[list[Shard], set[Host]]:
    shards = []
    nodes = set()
    for first, last, *found in answer:
        hosts = [
            # a node that knows no name for itself means: as you reached me
            (name.decode() if name else seed[0], int(port))
            for name, port, *_ in found
        ]
        shards.append(Shard(first, last, hosts[0]))
        nodes.update(hosts)
    return shards, nodes


async def _ask(connection: Connection, *words: bytes) -> Any:
    await connection.send_packed_command(command(*words), check_health=False)
    return await connection.read_response(disable_decoding=True)


def _fields(answer: bytes) -> dict[bytes, bytes]:
    """Read what INFO answers."""
    lines = (line.partition(b":") for line in answer.splitlines())
    return {name: value for name, _, value in lines}


def _shuffled(hosts: Iterable[Host]) -> list[Host]:
    """Another order each time: one that does not answer is not always asked first."""
    known = list(hosts)
    return random.sample(known, len(known))
