"""``authws doctor``: what is unsafe about a configuration, and what would not start.

It may be asked beside the running service: what ``serve`` would make is not made here,
and what it would change is left as it is.
"""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import typer
from pydantic import SecretStr

from authws.cli.broker import why_broker_is_away
from authws.cli.serve import (
    BehindProxy,
    Demo,
    Drain,
    Host,
    Port,
    TlsCert,
    TlsKey,
    Workers,
    configured,
    reach_database,
)
from authws.exceptions import ConfigurationError
from authws.service import doctor as checks
from authws.service.app import create_app
from authws.service.key_files import FILE_NAME, prepare_data_dir
from authws.service.listeners import resolve
from authws.service.serving import server_config
from authws.service.settings import Settings, unknown_variables
from authws.stores.database import Database
from authws.stores.urls import sqlite_file

__all__ = ["doctor"]


def doctor(
    host: Host = None,
    port: Port = None,
    workers: Workers = None,
    demo: Demo = False,
    tls_cert: TlsCert = None,
    tls_key: TlsKey = None,
    behind_proxy: BehindProxy = False,
    drain: Drain = None,
) -> None:
    """Explain what is unsafe about the configuration; takes serve's options."""
    del demo  # a user more: nothing that could be unsafe
    settings = configured(
        host=host,
        port=port,
        workers=workers,
        tls_cert=tls_cert,
        tls_key=tls_key,
        behind_proxy=behind_proxy or None,
        drain=drain,
    )
    found = checks.problems(settings, unknown_variables())
    if not any(problem.severity == "error" for problem in found):
        found = [*_start_problems(settings), *found]
    for problem in found:
        typer.echo(str(problem))
    errors = sum(problem.severity == "error" for problem in found)
    typer.echo(f"{errors} errors, {len(found) - errors} warnings")
    if errors:
        raise typer.Exit(1)


def _start_problems(settings: Settings) -> list[checks.Problem]:
    """What only a start shows, tried step by step as ``serve`` does."""
    with (
        tempfile.TemporaryDirectory(prefix="authws-") as nowhere,
        _removed_afterwards(settings.data_dir),
    ):
        return [
            problem
            for step in (
                lambda: prepare_data_dir(settings.data_dir),
                lambda: _try_database(settings),
                lambda: _try_broker(settings),
                lambda: resolve(settings),
                lambda: _try_security_log(settings),
                lambda: _try_app(_rehearsal(settings, Path(nowhere))),
            )
            for problem in _told(step)
        ]


def _told(step: Callable[[], object]) -> Iterator[checks.Problem]:
    try:
        step()
    except ConfigurationError as error:
        yield checks.Problem("error", str(error), "serve would not start, or not serve")


def _try_database(settings: Settings) -> None:
    """Reach the database, its tables left as they are."""
    file = sqlite_file(settings.database)
    if file is not None and not file.exists():
        if why := _why_unwritable(file):
            raise ConfigurationError(
                f"the database file {file} cannot be opened: {why}"
            )
        return

    async def work() -> None:
        database = Database(settings.database)
        try:
            await database.ping()
        finally:
            await database.dispose()

    reach_database(work())


def _try_broker(settings: Settings) -> None:
    if why := why_broker_is_away(settings):
        raise ConfigurationError(
            f"{why.removesuffix('; trying again')}: see that it runs, and that "
            "AUTHWS_BROKER_URL names it with its password"
        )


def _try_security_log(settings: Settings) -> None:
    path = Path(settings.security_log)
    if settings.security_log != "-" and (why := _why_unwritable(path)):
        raise ConfigurationError(f"AUTHWS_SECURITY_LOG: cannot write {path}: {why}")


def _try_app(settings: Settings) -> None:
    server_config(create_app(settings), settings, log_config=None)


def _rehearsal(settings: Settings, nowhere: Path) -> Settings:
    """The settings, with ``nowhere`` in place of what a first start would make."""
    file = sqlite_file(settings.database)
    database = settings.database
    if file is not None and not file.exists():
        database = f"sqlite:///{nowhere / 'authws.db'}"
    changes: dict[str, object] = {
        "database_url": SecretStr(database),
        "port": settings.port or 1,  # which one, serve learns as it binds
    }
    if not (settings.data_dir / FILE_NAME).exists():
        changes["data_dir"] = nowhere
    return settings.model_copy(update=changes)


@contextmanager
def _removed_afterwards(directory: Path) -> Iterator[None]:
    """Take away again, if it is empty, a directory that was not there before."""
    missing = [path for path in (directory, *directory.parents) if not path.exists()]
    try:
        yield
    finally:
        for path in missing:
            with suppress(OSError):
                path.rmdir()


def _why_unwritable(path: Path) -> str:
    """Tell why a file could not be opened to write, without making it; empty if it
    could."""
    if path.exists():
        try:
            os.close(os.open(path, os.O_WRONLY | os.O_APPEND))
        except OSError as error:
            return os.strerror(error.errno or errno.EIO)
        return ""
    if not path.parent.is_dir():
        return os.strerror(errno.ENOENT)
    return "" if os.access(path.parent, os.W_OK) else os.strerror(errno.EACCES)
