"""``authws user``: who may log in."""

from __future__ import annotations

import getpass
import sys
from typing import Annotated

import typer

from authws.cli.scopes import warn_of_doubts
from authws.cli.stores import existing, opened, require_database, run
from authws.decisions.passwords import MIN_ADMIN_PASSWORD_LENGTH
from authws.service.settings import Settings

__all__ = ["DEFAULT_SCOPES", "app", "read_password"]

app = typer.Typer(help="Add, list and change users.", no_args_is_help=True)

DEFAULT_SCOPES = ("join:*", "publish:*")
"""What a user may do when no scope is named: chat in every room."""

Name = Annotated[str, typer.Argument(help="The user's name.")]
PasswordStdin = Annotated[
    bool,
    typer.Option("--password-stdin", help="Read the password from standard input."),
]


@app.command()
def add(
    name: Name,
    password_stdin: PasswordStdin = False,
    scope: Annotated[
        list[str] | None,
        typer.Option(
            help="What the user may do, such as join:lobby, publish:team-* or admin; "
            "may be given several times. Default: join:* and publish:*."
        ),
    ] = None,
) -> None:
    """Add a user."""
    password = read_password(password_stdin, confirm=True)
    scopes = tuple(scope or DEFAULT_SCOPES)

    async def work() -> None:
        async with opened(Settings()) as stores:
            user = await stores.users.add(name, password, scopes)
            typer.echo(f"added {user.name} ({' '.join(sorted(user.scopes))})")

    run(work())
    warn_of_doubts(scopes)


@app.command("list")
def list_users() -> None:
    """List the users."""

    async def work() -> None:
        async with existing(Settings()) as stores:
            for user in await stores.users.list():
                state = "disabled" if user.disabled else "enabled"
                typer.echo(f"{user.name}\t{state}\t{' '.join(sorted(user.scopes))}")

    run(work())


@app.command()
def scopes(
    name: Name,
    scope: Annotated[
        list[str],
        typer.Option(
            help="What the user may do from now on, and nothing else; may be given "
            "several times."
        ),
    ],
) -> None:
    """Replace a user's scopes. Ends nothing: what is opened or renewed next knows."""

    async def work() -> None:
        async with existing(Settings()) as stores:
            user = await stores.users.set_scopes(name, scope)
        typer.echo(f"{user.name} may: {' '.join(sorted(user.scopes))}")

    run(work())
    warn_of_doubts(scope)
    if "admin" in scope:
        typer.echo(
            f"authws: an administrator's password has {MIN_ADMIN_PASSWORD_LENGTH} "
            f"characters at least; if this one has fewer: authws user passwd {name}",
            err=True,
        )


@app.command()
def disable(name: Name) -> None:
    """Refuse a user from now on, and end all that the user has open."""

    async def work() -> None:
        async with existing(Settings()) as stores:
            await stores.users.disable(name)
        typer.echo(f"disabled {name}; open connections end within seconds")

    run(work())


@app.command()
def enable(name: Name) -> None:
    """Let a user in again."""

    async def work() -> None:
        async with existing(Settings()) as stores:
            await stores.users.enable(name)
        typer.echo(f"enabled {name}")

    run(work())


@app.command()
def passwd(name: Name, password_stdin: PasswordStdin = False) -> None:
    """Set a user's password, and end all that was opened with the old one."""
    require_database(Settings())  # before a password is asked for in vain
    password = read_password(password_stdin, confirm=True)

    async def work() -> None:
        async with existing(Settings()) as stores:
            await stores.users.set_password(name, password)
        typer.echo(f"changed the password of {name}; its sessions have ended")

    run(work())


@app.command()
def remove(name: Name) -> None:
    """Remove a user, and end all that the user has open."""

    async def work() -> None:
        async with existing(Settings()) as stores:
            await stores.users.remove(name)
        typer.echo(f"removed {name}")

    run(work())


def read_password(from_stdin: bool, *, confirm: bool = False) -> str:
    """Read a password without showing it; never from the command line, which every
    process on the machine can read."""
    if from_stdin:
        return sys.stdin.readline().rstrip("\r\n")
    password = getpass.getpass("Password: ")
    if confirm and getpass.getpass("Again: ") != password:
        typer.echo("authws: the two passwords differ", err=True)
        raise typer.Exit(1)
    return password
