"""Redis servers of the tests: one alone, a cluster, and one that Sentinels watch."""

from __future__ import annotations

import asyncio
import secrets
import signal
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, Self

from redis.asyncio import Redis

from tests.servers.process import PATIENCE, POLL, ServerProcess, free_ports

__all__ = ["SLOTS", "RedisClusterServer", "RedisSentinelServer", "RedisServer"]

PRIMARIES = 3
SLOTS = 16_384
MASTER = "mymaster"


class RedisServer(ServerProcess):
    """One server with a password. What it keeps is lost with it, unless told."""

    def __init__(
        self, *settings: str, password: str = "", ports: tuple[int, int] = (0, 0)
    ) -> None:
        """``settings`` are further words of its command line; ``ports`` its own and,
        in a cluster, that for the talk among the nodes."""
        super().__init__()
        self.port, self.bus = ports if ports[0] else free_ports(2)
        self.password = password or secrets.token_urlsafe(12)
        self.settings = settings

    @property
    def url(self) -> str:
        return f"redis://:{self.password}@127.0.0.1:{self.port}/0"

    def command(self) -> Sequence[str | Path]:
        return (
            *("redis-server", "--bind", "127.0.0.1", "--port", str(self.port)),
            *("--requirepass", self.password, "--masterauth", self.password),
            *("--save", "", *self.settings),
        )

    def client(self) -> Redis:
        """Return a client to look into it with."""
        return Redis(port=self.port, password=self.password, protocol=2)

    async def run(self, *words: str | bytes | int) -> Any:
        """Have it carry out a command; returns the answer as it came."""
        async with self.client() as client:
            client.response_callbacks.clear()
            return await client.execute_command(*words)  # type: ignore[no-untyped-call]

    async def ask(self) -> None:
        await self.run("PING")


class _Group:
    """Several servers that are one broker, and share a password."""

    def __init__(self) -> None:
        self.password = secrets.token_urlsafe(12)
        self.servers: list[ServerProcess] = []

    async def start(self) -> None:
        await asyncio.gather(*(server.start() for server in self.servers))

    async def stop(self) -> None:
        await asyncio.gather(*(server.stop() for server in self.servers))

    async def kill(self) -> None:
        await asyncio.gather(*(server.kill() for server in self.servers))

    def pause(self) -> None:
        for server in self.servers:
            server.send(signal.SIGSTOP)

    def resume(self) -> None:
        for server in self.servers:
            server.send(signal.SIGCONT)

    async def __aenter__(self) -> Self:
        try:
            await self.start()
        except BaseException:
            await self.__aexit__()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        for server in self.servers:
            await server.__aexit__()


class RedisClusterServer(_Group):
    """A cluster of three primaries, each with as many replicas as wanted."""

    def __init__(self, replicas: int = 0) -> None:
        super().__init__()
        ports = iter(free_ports(2 * PRIMARIES * (1 + replicas)))
        self.nodes = [self._node(pair) for pair in zip(ports, ports, strict=True)]
        self.servers = [*self.nodes]

    @property
    def url(self) -> str:
        hosts = ",".join(f"127.0.0.1:{node.port}" for node in self.nodes[:2])
        return f"redis://:{self.password}@{hosts}?cluster=1"

    async def start(self) -> None:
        await super().start()
        first, primaries = self.nodes[0], self.nodes[:PRIMARIES]
        for number, node in enumerate(primaries):
            low, high = (SLOTS * part // PRIMARIES for part in (number, number + 1))
            await node.run("CLUSTER", "ADDSLOTSRANGE", low, high - 1)
            await node.run("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
        for node in self.nodes[1:]:
            await node.run("CLUSTER", "MEET", "127.0.0.1", first.port, first.bus)
        await _until(self._is_met)
        for number, node in enumerate(self.nodes[PRIMARIES:]):
            primary = await primaries[number % PRIMARIES].run("CLUSTER", "MYID")
            await node.run("CLUSTER", "REPLICATE", primary)
        await _until(self._is_ready)

    async def owner(self, slot: int) -> RedisServer:
        """Return the primary that has a slot now."""
        return (await self._shard(slot))[0]

    async def replica(self, slot: int) -> RedisServer:
        """Return its replica."""
        return (await self._shard(slot))[1]

    async def _shard(self, slot: int) -> list[RedisServer]:
        for first, last, *found in await self.slots():
            if first <= slot <= last:
                by_port = {node.port: node for node in self.nodes}
                return [by_port[port] for _, port, *_ in found]
        raise AssertionError(f"nobody has {slot}")

    async def slots(self) -> list[list[Any]]:
        """Ask the first that is alive who has what."""
        alive = next(node for node in self.nodes if node.is_running)
        answer: list[list[Any]] = await alive.run("CLUSTER", "SLOTS")
        return answer

    async def move(self, slot: int, to: RedisServer) -> None:
        """Give a slot, and the keys in it, to another primary, as an operator does."""
        source = await self.owner(slot)
        ids = [await node.run("CLUSTER", "MYID") for node in (source, to)]
        await to.run("CLUSTER", "SETSLOT", slot, "IMPORTING", ids[0])
        await source.run("CLUSTER", "SETSLOT", slot, "MIGRATING", ids[1])
        keys = await source.run("CLUSTER", "GETKEYSINSLOT", slot, 1000)
        if keys:
            await source.run(
                *("MIGRATE", "127.0.0.1", to.port, "", 0, 5000),
                *("AUTH", self.password, "KEYS", *keys),
            )
        for node in (to, source):
            await node.run("CLUSTER", "SETSLOT", slot, "NODE", ids[1])

    def _node(self, ports: tuple[int, int]) -> RedisServer:
        return RedisServer(
            *("--cluster-enabled", "yes", "--cluster-port", str(ports[1])),
            *("--cluster-node-timeout", "1500"),
            *("--repl-diskless-sync-delay", "0", "--repl-ping-replica-period", "1"),
            password=self.password,
            ports=ports,
        )

    async def _is_met(self) -> bool:
        return all(
            [
                str(await node.run("CLUSTER", "NODES")).count("connected")
                == len(self.nodes)
                for node in self.nodes
            ]
        )

    async def _is_ready(self) -> bool:
        wanted = len(self.nodes) // PRIMARIES
        for node in self.nodes:
            info = await node.run("CLUSTER", "INFO")
            slots = await node.run("CLUSTER", "SLOTS")
            if b"cluster_state:ok" not in info:
                return False
            if any(len(shard) - 2 != wanted for shard in slots):
                return False
        return True


class RedisSentinelServer(_Group):
    """A primary and its replica, and three Sentinels that watch over them."""

    def __init__(self, *, sentinels_want_password: bool = False) -> None:
        super().__init__()
        self.primary, self.replica = (
            RedisServer(*("--repl-diskless-sync-delay", "0"), password=self.password)
            for _ in range(2)
        )
        self.replica.settings += ("--replicaof", f"127.0.0.1 {self.primary.port}")
        self.sentinels = [
            _Sentinel(self.primary, has_password=sentinels_want_password)
            for _ in range(3)
        ]
        self.servers = [self.primary, self.replica, *self.sentinels]

    @property
    def url(self) -> str:
        hosts = ",".join(f"127.0.0.1:{sentinel.port}" for sentinel in self.sentinels)
        return f"redis://:{self.password}@{hosts}/0?sentinel={MASTER}"

    async def start(self) -> None:
        for server in (self.primary, self.replica):
            await server.start()
        # a Sentinel looks for replicas when it starts, and then each ten seconds
        await _until(self._is_replicating)
        await asyncio.gather(*(sentinel.start() for sentinel in self.sentinels))
        await _until(self._is_watched)

    async def master_port(self) -> int:
        """Ask a Sentinel where the primary is."""
        return await self.sentinels[0].master_port()

    async def _is_replicating(self) -> bool:
        info = await self.primary.run("INFO", "replication")
        return b"state=online" in info

    async def _is_watched(self) -> bool:
        for sentinel in self.sentinels:
            known = await sentinel.master()
            if (known["num-slaves"], known["num-other-sentinels"]) != ("1", "2"):
                return False
        return True


class _Sentinel(RedisServer):
    """One Sentinel. It writes its configuration itself."""

    def __init__(self, watched: RedisServer, *, has_password: bool) -> None:
        super().__init__(password=watched.password)
        self._has_password = has_password
        lines = [
            "bind 127.0.0.1",
            f"port {self.port}",
            f"sentinel monitor {MASTER} 127.0.0.1 {watched.port} 2",
            f"sentinel auth-pass {MASTER} {watched.password}",
            f"sentinel down-after-milliseconds {MASTER} 1000",
            f"sentinel failover-timeout {MASTER} 5000",
        ]
        if has_password:
            lines += [
                f"requirepass {self.password}",
                f"sentinel sentinel-pass {self.password}",
            ]
        self._path = self.directory / "sentinel.conf"
        self._path.write_text("\n".join(lines))

    def command(self) -> Sequence[str | Path]:
        return ("redis-server", self._path, "--sentinel")

    def client(self) -> Redis:
        password = self.password if self._has_password else None
        return Redis(port=self.port, password=password, protocol=2)

    async def master(self) -> dict[str, str]:
        """Return what it knows of the primary."""
        words = [word.decode() for word in await self.run("SENTINEL", "MASTER", MASTER)]
        return dict(zip(words[::2], words[1::2], strict=True))

    async def master_port(self) -> int:
        return int((await self.master())["port"])


async def _until(condition: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not await condition():  # noqa: ASYNC110 - nothing tells of it
            await asyncio.sleep(POLL)
