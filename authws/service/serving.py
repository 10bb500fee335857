"""The service as a server: in this process, or by several workers."""

from __future__ import annotations

import copy
import gc
import logging.config
import os
import shutil
import socket
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from uvicorn.config import LOGGING_CONFIG

from authws.brokers import open_broker
from authws.exceptions import ConfigurationError
from authws.live.security_log import LOGGER_NAME
from authws.service import workers
from authws.service.app import create_app
from authws.service.house import House
from authws.service.listeners import Listeners
from authws.service.log_lines import LineHandler
from authws.service.protocols import ProtocolLimits
from authws.service.server import Server, ServerConfig, build_config
from authws.service.settings import Settings
from authws.service.workers import Siblings, Worker, private_directory

__all__ = ["serve_by_workers", "serve_here", "server_config"]


def serve_here(
    settings: Settings, listener: socket.socket, say_so: Callable[[], object]
) -> None:
    """Serve in this process until a signal ends it; ``say_so`` once it listens.

    Raises:
        ConfigurationError: it cannot be.
    """
    _Server(settings, say_so).run(sockets=[listener])


def serve_by_workers(
    settings: Settings, listeners: Listeners, say_so: Callable[[], object]
) -> int:
    """Serve by several processes until a signal ends them; ``say_so`` once all listen.

    Returns:
        what is left to say of how they ended, as ``workers.run`` does.

    Raises:
        ConfigurationError: it cannot be.
    """
    logging.config.dictConfig(_plain_log_config(settings))
    # made and let go: its client, 7 MB, is in the memory that all share from now on
    open_broker(settings.broker_url.get_secret_value())
    with private_directory() as directory:
        return workers.run(
            lambda worker: _WorkerServer(settings, worker, directory).run(
                sockets=[worker.listener]
            ),
            listeners,
            count=settings.workers,
            drain=settings.drain,
            on_listening=say_so,
        )


def server_config(
    app: Any, settings: Settings, *, log_config: dict[str, Any] | None
) -> ServerConfig:
    """Configure the server as the settings say.

    Raises:
        ConfigurationError: it cannot be.
    """
    return build_config(
        app,
        host=settings.host,
        port=settings.port,
        tls_cert=settings.tls_cert,
        tls_key=settings.tls_key,
        max_message_bytes=settings.max_message_bytes,
        drain=settings.drain,
        trusted_proxies=settings.trusted_proxies,
        protocol_limits=_protocol_limits(settings),
        ping_interval=settings.ping_interval,
        ping_timeout=settings.ping_timeout,
        log_config=log_config,
    )


def _protocol_limits(settings: Settings) -> ProtocolLimits:
    """A stranger counts from its TCP connection on; behind a proxy all that is seen
    there is the proxy."""
    seen = not settings.behind_proxy
    return ProtocolLimits(
        max_pending=settings.max_unauthenticated,
        max_pending_per_address=settings.per_address.unauthenticated if seen else 0,
    )


class _Server(Server):
    """Serves the app, and says so as soon as it listens."""

    def __init__(self, settings: Settings, say_so: Callable[[], object]) -> None:
        app = create_app(settings)
        self.house: House = app.state.authws
        config = server_config(app, settings, log_config=_log_config(settings))
        super().__init__(config, drain=self.house.drain)
        self._say_so = say_so

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            _exempt_from_collection()
            await self.on_listening()

    async def on_listening(self) -> None:
        """Say so."""
        self._say_so()


class _WorkerServer(_Server):
    """The same as one of several processes."""

    heeds_second_signal = False

    def __init__(self, settings: Settings, worker: Worker, directory: Path) -> None:
        super().__init__(settings, worker.tell_ready)
        self._worker = worker
        metrics = self.house.metrics
        self._siblings = Siblings(
            directory, worker.number, settings.workers, metrics.render
        )
        metrics.share(self._siblings.exposition)
        worker.on_end = self.end
        worker.on_retire = self.retire
        # nobody else is left to do it then
        worker.on_orphaned = partial(shutil.rmtree, directory, ignore_errors=True)

    async def on_listening(self) -> None:
        await self._siblings.start()
        await super().on_listening()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._worker.tell_leaving()
        await super().shutdown(sockets)
        await self._siblings.stop()


def _exempt_from_collection() -> None:
    """Spare the collector what lives as long as the process does.

    A full collection stops the process while it looks at every object; most of those
    of an idle service are modules, classes and routes, which it would find alive each
    time. The thresholds stay as they are, so cycles are still found.
    """
    gc.collect()
    gc.freeze()


def _log_config(settings: Settings) -> dict[str, Any]:
    """Uvicorn's logging, and the security log beside it as bare JSON lines."""
    config = _plain_log_config(settings)
    config["handlers"]["security"] = {
        "()": LineHandler,
        "path": _writable(settings.security_log),
    }
    config["loggers"][LOGGER_NAME] = {
        "handlers": ["security"],
        "level": "INFO",
        "propagate": False,
    }
    return config


def _plain_log_config(settings: Settings) -> dict[str, Any]:
    """Uvicorn's logging; of several processes each says which it is."""
    config: dict[str, Any] = copy.deepcopy(LOGGING_CONFIG)
    config["loggers"]["authws"] = {"handlers": ["default"], "level": "INFO"}
    if settings.workers > 1:
        for formatter in config["formatters"].values():
            formatter["fmt"] = f"[%(process)d] {formatter['fmt']}"
    return config


def _writable(security_log: str) -> str:
    """Make the security log's file, for its owner alone.

    Raises:
        ConfigurationError: it cannot be written to.
    """
    if security_log != "-":
        try:
            flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
            os.close(os.open(security_log, flags, 0o600))
        except OSError as error:
            raise ConfigurationError(
                f"AUTHWS_SECURITY_LOG: cannot write {security_log}: {error.strerror}"
            ) from None
    return security_log
