"""``authws serve``: run the service, unless its configuration is unsafe."""

from __future__ import annotations

import contextlib
import os
import secrets
import sys
from collections.abc import Coroutine
from pathlib import Path
from typing import Annotated, Any

import typer

from authws.cli.broker import why_broker_is_away
from authws.cli.stores import opened, run
from authws.cli.user import DEFAULT_SCOPES
from authws.exceptions import ConfigurationError, UnavailableError
from authws.service import doctor as checks
from authws.service.key_files import prepare_data_dir
from authws.service.listeners import Listeners
from authws.service.server import end_process_by
from authws.service.serving import serve_by_workers, serve_here
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
    "serve",
]

if sys.platform != "win32":
    import resource

DEMO_USER = "demo"

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
    why_broker_is_away(settings)  # it may come back; what can never work is refused
    with Listeners(settings) as listeners:
        _allow_connections(settings.max_connections)
        settings = settings.model_copy(update={"port": listeners.port})
        lines = _welcome(settings)
        if demo:
            lines += _demo_lines(settings, _demo_user(settings))
        else:
            lines.append("Users are added with: authws user add NAME")

        def say_where() -> None:
            print("\n".join(lines), flush=True)

        if settings.workers > 1:
            _end_as(serve_by_workers(settings, listeners, say_where))
        else:
            with contextlib.suppress(KeyboardInterrupt):
                serve_here(settings, listeners.of(0), say_where)


def _end_as(status: int) -> None:
    """End as the workers did; see ``workers.run``."""
    if status < 0:
        end_process_by(-status)
    if status > 0:
        raise typer.Exit(status)


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


def configured(**options: Any) -> Settings:
    """The environment's settings, and the options over them."""
    given = {name: value for name, value in options.items() if value is not None}
    return Settings(**given)


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
