"""The command line: ``authws serve``, ``user``, ``token``, ``keys``, ``connect``, …"""

from __future__ import annotations

import sys
from importlib.metadata import version
from typing import Annotated

import typer
from pydantic import ValidationError

from authws.cli import keys, token, user
from authws.cli.connect import connect
from authws.cli.doctor import doctor
from authws.cli.serve import serve
from authws.exceptions import AuthwsError

__all__ = ["app", "main"]

app = typer.Typer(
    name="authws",
    help="Authenticated WebSockets: a service and a library.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.command()(serve)
app.command()(doctor)
app.command()(connect)
app.add_typer(user.app, name="user")
app.add_typer(token.app, name="token")
app.add_typer(keys.app, name="keys")


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"authws {version('authws')}")
        raise typer.Exit


Version = Annotated[
    bool,
    # eager, so that no command is asked for
    typer.Option(
        "--version",
        callback=_print_version,
        is_eager=True,
        help="Print the version and exit.",
    ),
]


@app.callback()
def authws(version: Version = False) -> None:
    """Authenticated WebSockets: a service and a library."""


def main() -> None:
    """Run the command line; a failure is a sentence on stderr and status 1."""
    try:
        app()
    except AuthwsError as error:
        sys.exit(f"authws: {error}")
    except ValidationError as error:
        sys.exit(f"authws: {_describe(error)}")


def _describe(error: ValidationError) -> str:
    """Name each setting that is wrong; its value may be a secret and stays out."""
    return "; ".join(
        f"AUTHWS_{'_'.join(map(str, one['loc'][:1])).upper()}: "
        + one["msg"].removeprefix("Value error, ")
        for one in error.errors(include_input=False, include_url=False)
    )
