"""``authws connect``: log in and talk, from a terminal or in a pipe."""

from __future__ import annotations

import asyncio
import getpass
import os
import sys
from typing import Annotated, Any

import typer

from authws.cli.talk import Talk
from authws.cli.terminal import Lines, note
from authws.client import Client, Strategy

__all__ = ["StrategyOption", "connect"]

PASSWORD_VARIABLE = "AUTHWS_PASSWORD"  # noqa: S105 - the variable's name

Url = Annotated[
    str, typer.Argument(metavar="URL", help="The service, such as https://host:8000.")
]
UserName = Annotated[str, typer.Option("--user", help="The user's name.")]


def _strategy(name: str) -> Strategy:
    """Take a strategy by either spelling: the URL's, or the one of code."""
    try:
        return Strategy(name.replace("_", "-"))
    except ValueError:
        raise typer.BadParameter(f"{name!r:.40} is none of {STRATEGIES}") from None


STRATEGIES = ", ".join(Strategy)
StrategyOption = Annotated[
    Strategy,
    typer.Option(
        parser=_strategy,
        metavar="|".join(Strategy),
        help="How the credential travels to the WebSocket.",
    ),
]
Room = Annotated[str, typer.Option(help="The room to join.")]
Echo = Annotated[
    bool, typer.Option("--echo", help="Use the echo endpoint instead of a room.")
]
PasswordStdin = Annotated[
    bool,
    typer.Option(
        "--password-stdin",
        help="Read the password from the first line of standard input.",
    ),
]
Insecure = Annotated[
    bool,
    typer.Option(
        "--insecure",
        help="Trust any certificate, and allow http to other machines. For tests.",
    ),
]


def connect(
    url: Url,
    user: UserName,
    strategy: StrategyOption = Strategy.FIRST_MESSAGE,
    room: Room = "lobby",
    echo: Echo = False,
    password_stdin: PasswordStdin = False,
    insecure: Insecure = False,
) -> None:
    """Log in, connect and talk: each line of standard input is a message.

    What is said goes to standard output, what happens to the connection to standard
    error. A connection that is lost comes back, with what was missed where the room
    keeps it.

    The password comes from AUTHWS_PASSWORD, from --password-stdin, or is asked for.
    Ctrl-C or the end of the input leaves.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a test may have put another in its place
            stream.reconfigure(errors="backslashreplace")
    if insecure:
        note(
            "*** INSECURE: certificates are not checked, and http is allowed: whoever"
            " is on the way can read the password and everything said. ***"
        )
    lines = Lines()
    client_options: dict[str, Any] = (
        {"verify": False, "allow_plain_http": True} if insecure else {}
    )
    client = Client(url, **client_options)
    password = _password(lines if password_stdin else None)
    talk = Talk(client, strategy, room=None if echo else room)
    try:
        status = asyncio.run(talk.run(user, password, lines))
    except KeyboardInterrupt:
        status = 0
    except BrokenPipeError:
        # nobody reads on (`… | head -1`): leave, and spare Python's own complaint
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 0
    if status:
        raise typer.Exit(status)


def _password(lines: Lines | None) -> str:
    """Get the password from where no other process of the machine can read it."""
    if lines is not None:
        password = lines.read()
    elif PASSWORD_VARIABLE in os.environ:
        password = os.environ[PASSWORD_VARIABLE]
    elif _has_terminal():
        password = getpass.getpass("Password: ")
    else:
        note(
            f"authws: there is no terminal to ask for the password: set"
            f" {PASSWORD_VARIABLE}, or write it to standard input and say"
            " --password-stdin"
        )
        raise typer.Exit(1)
    if not password:
        note("authws: the password is empty")
        raise typer.Exit(1)
    return password


def _has_terminal() -> bool:
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY))
    except OSError:
        return sys.stdin.isatty()
    return True
