"""``authws serve``: run the service, unless its configuration is unsafe."""

from __future__ import annotations

import contextlib
import copy
import gc
import os
import secrets
import socket
import sys
from collections.abc import Coroutine
from pathlib import Path
from typing import Annotated, Any

import typer
from uvicorn.config import LOGGING_CONFIG

from authws.cli.stores import opened, run
from authws.cli.user import DEFAULT_SCOPES
from authws.decisions.origins import is_loopback
from authws.exceptions import ConfigurationError, UnavailableError
from authws.live.security_log import LOGGER_NAME
from authws.service import doctor as checks
from authws.service.app import create_app
from authws.service.house import House
from authws.service.key_files import prepare_data_dir
from authws.service.log_lines import LineHandler
from authws.service.protocols import ProtocolLimits
from authws.service.server import Server, ServerConfig, build_config
from authws.service.settings import Settings, unknown_variables

__all__ = [
    "BehindProxy",
    "Demo",
    "Drain",
    "Host",
    "Port",
    "TlsCert",
    "TlsKey",
    "Workers",
    "configured",
    "reach_database",
    "resolve",
    "serve",
    "server_config",
]

if sys.platform != "win32":
    import resource

DEMO_USER = "demo"

UNSENT_BYTES = 262_144
"""What the system keeps for a peer that does not read, beyond what is on its way. Linux
takes 4 MiB by default (tcp_wmem): more than our own outbox, and no limit of ours sees
it. Half as much costs a fast reader of small messages a tenth of its speed."""

SPARE_FILES = 64
"""Descriptors for what is no connection: the database, logs, listeners, libraries."""

Host = Annotated[str | None, typer.Option(help="The address to bind.")]
Port = Annotated[int | None, typer.Option(min=0, max=65535, help="0: any free port.")]
Workers = Annotated[int | None, typer.Option(min=1, help="How many processes.")]
Demo = Annotated[
    bool, typer.Option("--demo", help="Make a demo user and say how to connect.")
]
TlsCert = Annotated[Path | None, typer.Option(help="PEM certificate chain.")]
TlsKey = Annotated[Path | None, typer.Option(help="PEM private key.")]
BehindProxy = Annotated[
    bool, typer.Option("--behind-proxy", help="A proxy in front speaks TLS.")
]
Drain = Annotated[
    int | None, typer.Option(min=0, help="Seconds that open work has at the end.")
]


def serve(
    host: Host = None,
    port: Port = None,
    workers: Workers = None,
    demo: Demo = False,
    tls_cert: TlsCert = None,
    tls_key: TlsKey = None,
    behind_proxy: BehindProxy = False,
    drain: Drain = None,
) -> None:
    """Run the service. Refuses to start on an unsafe configuration."""
    settings = configured(
        host=host,
        port=port,
        workers=workers,
        tls_cert=tls_cert,
        tls_key=tls_key,
        behind_proxy=behind_proxy or None,
        drain=drain,
    )
    checks.check(settings, unknown_variables())
    reach_database(_open_database(settings))
    with _bind(settings) as listener:
        _allow_connections(settings.max_connections)
        settings = settings.model_copy(update={"port": listener.getsockname()[1]})
        lines = _welcome(settings)
        if demo:
            lines += _demo_lines(settings, _demo_user(settings))
        else:
            lines.append("Users are added with: authws user add NAME")
        app = create_app(settings)
        house: House = app.state.authws
        config = server_config(app, settings, log_config=_log_config(settings))
        with contextlib.suppress(KeyboardInterrupt):
            _Server(config, house, lines).run(sockets=[listener])


def reach_database(work: Coroutine[Any, Any, None]) -> None:
    """Run what asks the database, and tell in a sentence if it does not answer."""
    try:
        run(work)
    except UnavailableError as error:
        raise ConfigurationError(
            f"the database cannot be used ({error}); see that it runs, and that "
            "AUTHWS_DATABASE_URL names it"
        ) from None


async def _open_database(settings: Settings) -> None:
    """Open it before anything listens, its tables brought up to date."""
    async with opened(settings):
        pass


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


class _Server(Server):
    """Says where to go next as soon as it listens."""

    def __init__(self, config: ServerConfig, house: House, lines: list[str]) -> None:
        super().__init__(config, drain=house.drain)
        self._lines = lines

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            _exempt_from_collection()
            print("\n".join(self._lines), flush=True)


def _exempt_from_collection() -> None:
    """Spare the collector what lives as long as the process does.

    A full collection stops the process while it looks at every object; most of those
    of an idle service are modules, classes and routes, which it would find alive each
    time. The thresholds stay as they are, so cycles are still found.
    """
    gc.collect()
    gc.freeze()


def configured(**options: Any) -> Settings:
    """The environment's settings, and the options over them."""
    given = {name: value for name, value in options.items() if value is not None}
    return Settings(**given)


def _bind(settings: Settings) -> socket.socket:
    """Bind before anything else, so that a taken port is told in a sentence."""
    with contextlib.ExitStack() as unless_bound:
        try:
            family, kind, protocol, address = resolve(settings)
            listener = socket.socket(family, kind, protocol)
            unless_bound.callback(listener.close)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            _bound_unsent_bytes(listener)
            listener.bind(address)
        except OSError as error:
            raise ConfigurationError(
                f"cannot listen on {settings.host} port {settings.port}: "
                f"{error.strerror or error}; choose another with --port or AUTHWS_PORT"
            ) from None
        unless_bound.pop_all()
    listener.set_inheritable(True)
    return listener


def resolve(settings: Settings) -> tuple[int, int, int, Any]:
    """Find the address to bind; what the settings take for loopback must be one.

    Raises:
        ConfigurationError: it is not, or there is none.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            settings.host, settings.port, type=socket.SOCK_STREAM
        )[0]
    except (OSError, UnicodeError) as error:
        raise ConfigurationError(
            f"{settings.host!r:.80} names no address here "
            f"({getattr(error, 'strerror', None) or error}); "
            "give --host an address of this machine"
        ) from None
    if settings.is_loopback and not is_loopback(str(address[0])):
        raise ConfigurationError(
            f"{settings.host} is {address[0]} here, which other machines can reach; "
            "give --host 127.0.0.1, or mend the name in /etc/hosts"
        )
    return family, kind, protocol, address


def _protocol_limits(settings: Settings) -> ProtocolLimits:
    """A stranger counts from its TCP connection on; behind a proxy all that is seen
    there is the proxy."""
    seen = not settings.behind_proxy
    return ProtocolLimits(
        max_pending=settings.max_unauthenticated,
        max_pending_per_address=settings.per_address.unauthenticated if seen else 0,
    )


def _bound_unsent_bytes(listener: socket.socket) -> None:
    """Bound what the system keeps for each peer, where it can; see UNSENT_BYTES."""
    if hasattr(socket, "TCP_NOTSENT_LOWAT"):
        with contextlib.suppress(OSError):  # accepted sockets inherit it
            listener.setsockopt(
                socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, UNSENT_BYTES
            )


def _allow_connections(wanted: int) -> None:
    """Take all the file descriptors that the system gives, and say if they are few.

    The usual soft limit of 1024 is for programs that call ``select``; ours do not.
    """
    if sys.platform == "win32":
        return
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):  # macOS: not if it is unlimited
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and wanted > soft - SPARE_FILES:
        typer.echo(
            f"authws: AUTHWS_MAX_CONNECTIONS is {wanted}, but this process may have "
            f"{soft} open files: lower it, or raise the limit (ulimit -Hn, "
            "LimitNOFILE=)",
            err=True,
        )


def _demo_user(settings: Settings) -> str | None:
    """Make the demo user; return its password, None if it was made before."""
    password = secrets.token_urlsafe(15)

    async def work() -> str | None:
        async with opened(settings) as stores:
            if await stores.users.get(DEMO_USER) is not None:
                return None
            await stores.users.add(DEMO_USER, password, DEFAULT_SCOPES)
            return password

    prepare_data_dir(settings.data_dir)
    return run(work())


def _url(settings: Settings) -> str:
    scheme = "https" if settings.is_tls else "http"
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    return settings.public_origin or f"{scheme}://{host}:{settings.port}"


def _welcome(settings: Settings) -> list[str]:
    url = _url(settings)
    return ["", f"authws is at {url}" + (f" (API: {url}/docs)" * settings.docs)]


def _demo_lines(settings: Settings, password: str | None) -> list[str]:
    """Who the demo user is, and three lines to paste into another terminal."""
    program = Path(sys.argv[0])
    command = os.path.relpath(program) if program.name == "authws" else "authws"
    if password is None:
        who = [
            f"The user {DEMO_USER!r} exists; its password was shown when it was made.",
            f"A new one, from this directory: {command} user passwd {DEMO_USER}",
        ]
    else:
        who = [
            f"user:     {DEMO_USER}",
            f"password: {password}   (shown this once)",
        ]
    connect = f"{command} connect {_url(settings)} --user {DEMO_USER}"
    return [
        "",
        *who,
        "",
        "Connect from another terminal, in each of the three ways (each asks for the",
        "password, or reads it from AUTHWS_PASSWORD):",
        f"  {connect} --strategy query-param --room lobby",
        f"  {connect} --strategy first-message --room lobby",
        f"  {connect} --strategy session-cookie --room lobby",
        "",
        "Ctrl-C stops the service.",
        "",
    ]


def _log_config(settings: Settings) -> dict[str, Any]:
    """Uvicorn's logging, and the security log beside it as bare JSON lines."""
    config: dict[str, Any] = copy.deepcopy(LOGGING_CONFIG)
    config["handlers"]["security"] = {
        "()": LineHandler,
        "path": _writable(settings.security_log),
    }
    config["loggers"][LOGGER_NAME] = {
        "handlers": ["security"],
        "level": "INFO",
        "propagate": False,
    }
    config["loggers"]["authws"] = {"handlers": ["default"], "level": "INFO"}
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
