"""Uvicorn, configured so that its defaults leave no door open, and ended in time.

Uvicorn's defaults suit an app behind a proxy that guards it: forwarded headers are
believed from loopback, messages may have 16 MiB, compression is negotiated with
strangers, and nothing has a deadline. Here each of these is decided, once.

Its end is ours too: Uvicorn closes every WebSocket in one breath, and what ignores its
cancellation keeps it alive for ever.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import math
import os
import signal
import socket
import ssl
import sys
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType, MethodType
from typing import Any, Literal, NoReturn

import uvicorn
from uvicorn.server import HANDLED_SIGNALS

from authws.decisions.limits import Headcount
from authws.decisions.redaction import install_log_redaction, log_failure
from authws.exceptions import ConfigurationError
from authws.service.protocols import (
    ArrivalProtocol,
    ProtocolLimits,
    WebSocketProtocol,
)
from authws.service.watchdog import Watchdog

if sys.platform == "win32":
    from asyncio import ProactorEventLoop as _Loop
else:
    from uvloop import Loop as _Loop

__all__ = [
    "LogLevel",
    "Server",
    "ServerConfig",
    "build_config",
    "end_process_by",
    "new_event_loop",
]

logger = logging.getLogger("uvicorn.error")

LogLevel = Literal["critical", "error", "warning", "info", "debug"]
"""Uvicorn's names but ``trace``, at which it logs every message, credentials too."""

TLS_HANDSHAKE_TIMEOUT = 10.0
"""Seconds; asyncio's default of 60 lets a silent peer hold a connection that long."""

POLL = 0.02
"""Seconds between two looks at what is still open: nothing tells of it."""

LAST_CALL = 0.5
"""Seconds from a peer's first packet to its request, at most, with TLS in between."""

DRAIN_MIN = 0.4
"""Seconds that an end takes at most when it shall take none."""

TLS_SHUTDOWN_TIMEOUT = 1.0
"""Seconds for the peer's half of TLS's own closing handshake; 30 by default."""


class ServerConfig(uvicorn.Config):
    """Uvicorn's configuration, with what our protocols need beside it."""

    def __init__(
        self, app: Any, *, protocol_limits: ProtocolLimits, drain: float, **options: Any
    ) -> None:
        self.protocol_limits = protocol_limits
        self.pending = Headcount(
            protocol_limits.max_pending, protocol_limits.max_pending_per_address
        )
        """Who has connected and not sent a whole head yet, by the system's address."""
        self.is_last_call = False
        """Whether a successor accepts who comes: HTTP connections end with their next
        answer then."""
        self.drain = drain
        super().__init__(app, http=ArrivalProtocol, ws=WebSocketProtocol, **options)

    def load(self) -> None:
        """Load the app, and call ours without a frame of its own for each peer."""
        super().load()
        # asked of the class: what is wrapped around an app shall see what goes in
        direct = getattr(type(self.loaded_app), "authws_asgi", None)
        if direct is not None:
            self.loaded_app = MethodType(direct, self.loaded_app)

    def configure_logging(self) -> None:
        """Set up the loggers; each worker process calls this for itself."""
        install_log_redaction()
        super().configure_logging()


def build_config(
    app: Any,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    workers: int = 1,
    tls_cert: Path | None = None,
    tls_key: Path | None = None,
    max_message_bytes: int = 65_536,
    drain: float = 20.0,
    trusted_proxies: Sequence[str] = (),
    ping_interval: float = 20.0,
    ping_timeout: float = 20.0,
    keep_alive: int = 5,
    log_level: LogLevel = "info",
    log_config: dict[str, Any] | None = uvicorn.config.LOGGING_CONFIG,
    factory: bool = False,
    protocol_limits: ProtocolLimits | None = None,
) -> ServerConfig:
    """Configure a server for ``app``; run it with ``Server(config)``.

    Args:
        app: an ASGI app, or its import string (``module:name``) for several workers.
        host: the address to bind.
        port: 0 lets the system choose one.
        workers: how many processes; more than one needs an import string.
        tls_cert: a PEM file with the certificate chain: serves https and wss.
        tls_key: its private key, when that is in a file of its own.
        max_message_bytes: of one WebSocket message; a bigger one closes 1009.
            0 is off.
        drain: seconds in which the server has stopped, once it is told to; 0 ends
            everything at once.
        trusted_proxies: addresses or networks whose ``X-Forwarded-For`` and
            ``X-Forwarded-Proto`` are believed. None is by default, loopback included.
        ping_interval: seconds between our pings on a WebSocket; 0 is off.
        ping_timeout: seconds that a peer has for its pong.
        keep_alive: seconds that an idle HTTP connection is kept.
        log_level: of Uvicorn's loggers.
        log_config: of ``logging.config``; None leaves the loggers as they are.
        factory: whether ``app`` is a function that makes the app.
        protocol_limits: deadlines and sizes below the app.

    Raises:
        ConfigurationError: a proxy that is no address, or a key without certificate.
    """
    if tls_key is not None and tls_cert is None:
        raise ConfigurationError("a TLS key needs its certificate: set --tls-cert too")
    return ServerConfig(
        app,
        protocol_limits=protocol_limits or ProtocolLimits(),
        drain=drain,
        host=host,
        port=port,
        workers=workers,  # never from WEB_CONCURRENCY: it decides which broker is safe
        factory=factory,
        interface="asgi3",
        loop=f"{__name__}:new_event_loop",
        ssl_certfile=tls_cert,
        ssl_keyfile=tls_key,
        ssl_context_factory=_tls_context if tls_cert is not None else None,
        ws_max_size=max_message_bytes or sys.maxsize,
        ws_per_message_deflate=False,  # CRIME, and bombs before authentication
        ws_ping_interval=ping_interval,
        ws_ping_timeout=ping_timeout,
        proxy_headers=bool(trusted_proxies),
        forwarded_allow_ips=_proxies(trusted_proxies),
        server_header=False,
        timeout_keep_alive=keep_alive,
        timeout_graceful_shutdown=math.ceil(drain),
        log_level=log_level,
        log_config=log_config,
    )


def _proxies(names: Sequence[str]) -> list[str]:
    """Check proxies: Uvicorn takes any word for one, and ``*`` for everybody."""
    for name in names:
        try:
            ipaddress.ip_network(name)
        except ValueError as error:
            raise ConfigurationError(
                f"trusted proxy {name!r} is neither an address nor a network: {error}"
            ) from None
    return list(names)


def _tls_context(
    config: uvicorn.Config, default: Callable[[], ssl.SSLContext]
) -> ssl.SSLContext:
    """Make the context; below TLS 1.2 there is nothing to offer (RFC 8996)."""
    context = default()
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


class _ServerLoop(_Loop):
    """An event loop that does not wait a minute for a TLS handshake.

    Uvicorn's ``Server`` has no option for it, but its ``create_server`` call is the
    loop's, so the loop supplies what is missing.
    """

    async def create_server(self, *args: Any, **options: Any) -> Any:
        if options.get("ssl") is not None:
            options.setdefault("ssl_handshake_timeout", TLS_HANDSHAKE_TIMEOUT)
            options.setdefault("ssl_shutdown_timeout", TLS_SHUTDOWN_TIMEOUT)
        return await super().create_server(*args, **options)


def new_event_loop() -> asyncio.AbstractEventLoop:
    """Make the server's event loop: uvloop where it runs, with bounded TLS."""
    return _ServerLoop()


class Server(uvicorn.Server):
    """Uvicorn's server, ending gracefully and in time.

    The first SIGTERM or SIGINT begins the drain: nobody is accepted any more, every
    WebSocket is told 1012, what runs may finish; it is over within ``config.drain``
    seconds whatever handlers do. A second one ends the process at once.
    """

    config: ServerConfig
    heeds_second_signal = True
    """Otherwise it means the same as the first: a worker may be sent one that is for
    its parent, which ends it by itself if need be."""

    def __init__(
        self,
        config: ServerConfig,
        *,
        drain: Callable[[float], Awaitable[object]] | None = None,
    ) -> None:
        """``drain`` ends the app's own connections, spread over so many seconds
        (``House.drain``); without it every WebSocket is told at once."""
        super().__init__(config)
        self._drain = drain
        self._told_at: float | None = None
        self._told = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._watchdog: Watchdog | None = None

    # -------------------------------------------------------------------- being told

    def run(self, sockets: list[socket.socket] | None = None) -> None:
        """Serve until a signal comes; see to it that the end is one."""
        with Watchdog(lambda: len(self.server_state.connections)) as self._watchdog:
            super().run(sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin the drain; the system itself ends the process at the next signal.

        A handler of ours could not be relied on for that: Python calls it between two
        instructions of a main thread that may never come to its next.
        """
        # the first process of a container is spared what the system does by default
        at_once = _end_process if os.getpid() == 1 else signal.SIG_DFL
        for handled in HANDLED_SIGNALS:
            signal.signal(
                handled, at_once if self.heeds_second_signal else signal.SIG_IGN
            )
        super().handle_exit(sig, frame)
        self._told_at = time.monotonic()
        if self._watchdog is not None:
            total = max(self.config.drain, DRAIN_MIN)
            self._watchdog.end_process_in(
                total - self._reserve / 2, at_the_latest=total - self._reserve / 4
            )
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._told.set)

    def end(self) -> None:
        """Begin the drain, unless it has begun; callable from any thread."""
        if self._told_at is None:
            os.kill(os.getpid(), signal.SIGTERM)

    def retire(self) -> None:
        """Begin the drain, for a successor has begun to accept who comes.

        Whoever has connected may still ask: nobody shall see that one process follows
        another. Callable from any thread.
        """
        self.config.is_last_call = True
        self.end()

    async def main_loop(self) -> None:
        """Wait until the server shall end; a signal is heard at once."""
        self._loop = asyncio.get_running_loop()
        counter = 0
        while not await self.on_tick(counter):
            counter = (counter + 1) % 864_000
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.1):
                    await self._told.wait()

    # ----------------------------------------------------------------------- the end

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Accept nobody, say goodbye, let what runs finish, and cut off the rest."""
        for server in self.servers:
            server.close()
        for listener in sockets or ():
            listener.close()
        if self._told_at is None:
            self._told_at = time.monotonic()
        if self.config.is_last_call:
            await self._last_call()
        logger.info(
            "Draining %d connections in at most %g s",
            len(self.server_state.connections),
            self.config.drain,
        )
        try:
            async with asyncio.timeout(self._time_left):
                await self._say_goodbye()
                await self._finish_work()
        except TimeoutError:
            await self._cut()
        await self.lifespan.shutdown()
        await asyncio.sleep(0)  # what the last turn said to the log is written

    @property
    def _reserve(self) -> float:
        """Seconds at the end of the drain for cutting off, and for letting go."""
        return max(DRAIN_MIN / 4, min(1.0, self.config.drain / 5))

    @property
    def _time_left(self) -> float:
        """Seconds that graceful work has yet."""
        since = time.monotonic() - (self._told_at or 0.0)
        return max(0.0, self.config.drain - self._reserve - since)

    def _websockets(self) -> Iterator[WebSocketProtocol]:
        for connection in tuple(self.server_state.connections):
            if isinstance(connection, WebSocketProtocol):
                yield connection

    async def _last_call(self) -> None:
        """Serve whoever has come already, and let HTTP go to the successor.

        Who has sent nothing yet is about to. An idle HTTP connection is closed by its
        usual time limit, or with its next answer: closed now, it could cross with a
        request, which would be lost.
        """
        within = self._time_left / 2
        until = time.monotonic() + min(LAST_CALL, within)
        connections = self.server_state.connections
        await _until(
            lambda: (
                time.monotonic() > until
                and len(connections) == sum(1 for _ in self._websockets())
            ),
            within=min(self.config.timeout_keep_alive + LAST_CALL, within),
        )

    async def _say_goodbye(self) -> None:
        """Tell strangers at once, and the app's own connections at its pace.

        Idle HTTP connections live on: a health check on one shall see what is going on.
        """
        for websocket in self._websockets():
            if self._drain is None or websocket.is_stranger:
                websocket.shutdown()
        if self._drain is None:
            return
        try:
            await self._drain(self._time_left / 2)
        except Exception:
            log_failure(logger, "The app could not end its connections")
        # what waits for them goes out before their close frame
        await _until(
            lambda: not any(self._websockets()),
            within=self.config.protocol_limits.close_timeout,
        )

    async def _finish_work(self) -> None:
        """Wait for what runs, then for the last answers to be taken."""
        state = self.server_state
        while state.tasks or any(self._websockets()):
            for websocket in self._websockets():  # those that came since, too
                websocket.shutdown()
            await asyncio.sleep(POLL)
        while state.connections:
            for connection in tuple(state.connections):
                connection.shutdown()
            await asyncio.sleep(POLL)

    async def _cut(self) -> None:
        """End what did not end by itself, as far as it lets itself be ended."""
        state = self.server_state
        logger.warning(
            "The drain is over: cutting %d connections, %d running requests",
            len(state.connections),
            len(state.tasks),
        )
        for connection in tuple(state.connections):
            connection.shutdown()
        for task in tuple(state.tasks):
            task.cancel("the drain is over")
        await _until(
            lambda: not (state.connections or state.tasks), within=self._reserve / 4
        )
        for connection in tuple(state.connections):
            connection.transport.abort()


def end_process_by(sig: int) -> NoReturn:
    """Die of a signal, as whoever waits for this process shall see."""
    signal.signal(sig, signal.SIG_DFL)
    signal.raise_signal(sig)
    _end_process(sig, None)  # the first process of a container is spared


def _end_process(sig: int, _: FrameType | None) -> NoReturn:
    os._exit(128 + sig)


async def _until(condition: Callable[[], bool], *, within: float) -> None:
    """Wait until a condition holds, or the time is over."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(within):
            while not condition():  # noqa: ASYNC110 - see POLL
                await asyncio.sleep(POLL)
