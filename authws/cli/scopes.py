"""Scopes as an operator writes them, and what was probably meant by another."""

from __future__ import annotations

import re
from collections.abc import Iterable
from difflib import get_close_matches

import typer

__all__ = ["doubt", "warn_of_doubts"]

ROOM = r"[A-Za-z0-9][A-Za-z0-9_.:-]{0,127}"
"""As ``decisions/messages.py`` takes them: a pattern that names none grants nothing."""
HEEDED = re.compile(rf"admin|(join|publish):(\*|{ROOM}\*?)")
ACTIONS = ("admin", "join", "publish")


def warn_of_doubts(scopes: Iterable[str]) -> None:
    """Say on standard error which scopes grant nothing in this service.

    They are granted all the same: an app may demand scopes of its own
    (``Guard.requires``).
    """
    for scope in scopes:
        if told := doubt(scope):
            typer.echo(f"authws: {told}", err=True)


def doubt(scope: str) -> str | None:
    """Tell what is odd about a scope; None if the service itself heeds it."""
    if HEEDED.fullmatch(scope):
        return None
    meant = _meant(scope)
    advice = (
        f"did you mean {meant}?"
        if meant
        else "it heeds admin, join:ROOM and publish:ROOM, where * stands for the rest "
        "of a name"
    )
    return f"the scope {scope!r:.140} grants nothing in the service itself; {advice}"


def _meant(scope: str) -> str | None:
    parts = [part for part in scope.split(",") if part]
    if len(parts) > 1 and all(HEEDED.fullmatch(part) for part in parts):
        return " ".join(f"--scope {part}" for part in parts)
    action, _, room = scope.partition(":")
    near = get_close_matches(action.lower(), ACTIONS, n=1)
    if not near:
        return None
    meant = "admin" if near[0] == "admin" else f"{near[0]}:{room or '*'}"
    return meant if HEEDED.fullmatch(meant) else None
