"""Uvicorn, configured so that its defaults leave no door open.

Uvicorn's defaults suit an app behind a proxy that guards it: forwarded headers are
believed from loopback, messages may have 16 MiB, compression is negotiated with
strangers, and nothing has a deadline. Here each of these is decided, once.
"""

from __future__ import annotations

import asyncio
import ipaddress
import math
import ssl
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import uvicorn

from authws.decisions.redaction import install_log_redaction
from authws.exceptions import ConfigurationError
from authws.service.protocols import (
    HttpProtocol,
    ProtocolLimits,
    WebSocketProtocol,
)

if sys.platform == "win32":
    from asyncio import ProactorEventLoop as _Loop
else:
    from uvloop import Loop as _Loop

__all__ = ["LogLevel", "ServerConfig", "build_config", "new_event_loop"]

LogLevel = Literal["critical", "error", "warning", "info", "debug"]
"""Uvicorn's names but ``trace``, at which it logs every message, credentials too."""

TLS_HANDSHAKE_TIMEOUT = 10.0
"""Seconds; asyncio's default of 60 lets a silent peer hold a connection that long."""

TLS_SHUTDOWN_TIMEOUT = 1.0
"""Seconds for the peer's half of TLS's own closing handshake; 30 by default."""


class ServerConfig(uvicorn.Config):
    """Uvicorn's configuration, with what our protocols need beside it."""

    def __init__(
        self, app: Any, *, protocol_limits: ProtocolLimits, **options: Any
    ) -> None:
        self.protocol_limits = protocol_limits
        super().__init__(app, http=HttpProtocol, ws=WebSocketProtocol, **options)

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
    """Configure a server for ``app``; run it with ``uvicorn.Server(config)``.

    Args:
        app: an ASGI app, or its import string (``module:name``) for several workers.
        host: the address to bind.
        port: 0 lets the system choose one.
        workers: how many processes; more than one needs an import string.
        tls_cert: a PEM file with the certificate chain: serves https and wss.
        tls_key: its private key, when that is in a file of its own.
        max_message_bytes: of one WebSocket message; a bigger one closes 1009.
            0 is off.
        drain: seconds that running requests have when the server stops.
        trusted_proxies: addresses or networks whose ``X-Forwarded-For`` and
            ``X-Forwarded-Proto`` are believed. None is by default, loopback included.
        ping_interval: seconds between our pings on a WebSocket.
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
