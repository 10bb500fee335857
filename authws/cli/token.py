"""``authws token``: issue a token without a login, and look into one."""

from __future__ import annotations

import base64
import json
import secrets
import sys
from typing import Annotated, Any

import typer

from authws.cli.stores import opened, run
from authws.clock import Clock
from authws.decisions.session_cookies import session_digest
from authws.decisions.tokens import TokenIssuer, TokenVerifier
from authws.exceptions import AuthError, ExpiredTokenError
from authws.service.house import ticket_audience
from authws.service.key_files import load_secrets
from authws.service.settings import Settings
from authws.stores.users import UnknownUserError

__all__ = ["app"]

app = typer.Typer(help="Issue and inspect tokens.", no_args_is_help=True)

MAX_TTL = 86_400


@app.command()
def issue(
    name: Annotated[str, typer.Argument(help="The user's name.")],
    ttl: Annotated[
        int, typer.Option(min=1, max=MAX_TTL, help="Seconds the token lives.")
    ] = 900,
) -> None:
    """Print an access token for a user, in a session of its own."""
    settings = Settings()
    issuer = TokenIssuer(
        load_secrets(settings).keyring,
        issuer=settings.issuer,
        audience=settings.audience,
        ticket_audience=ticket_audience(settings),
    )

    async def work() -> str:
        async with opened(settings) as stores:
            user = await stores.users.get(name)
            if user is None or user.disabled:
                raise UnknownUserError(name)
            session = session_digest(secrets.token_urlsafe(32))
            now = Clock().now()
            await stores.sessions.create(
                session, user.name, "token", 0, now + ttl, user_agent="authws token"
            )
            return issuer.access(
                user.name, session, user.scopes, now=now, expires_at=now + ttl
            )

    typer.echo(run(work()))


@app.command()
def inspect() -> None:
    """Read a token from standard input; print what it says, and whether it holds."""
    settings = Settings()
    token = sys.stdin.readline().strip()
    parts = token.split(".")
    if len(parts) != 3:
        typer.echo("authws: not a compact JWT", err=True)
        raise typer.Exit(1)
    for part in parts[:2]:
        typer.echo(json.dumps(_decode(part), indent=2, sort_keys=True))
    verdict = _verdict(settings, token)
    typer.echo(verdict)
    if verdict != "valid":
        raise typer.Exit(1)


def _decode(part: str) -> Any:
    try:
        return json.loads(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)))
    except ValueError:
        typer.echo("authws: not a compact JWT", err=True)
        raise typer.Exit(1) from None


def _verdict(settings: Settings, token: str) -> str:
    """Verify as the service does, but for the session's record in the database."""
    keyring = load_secrets(settings).keyring
    verdict = ""
    for kind, audience in (
        ("access", settings.audience),
        ("ticket", ticket_audience(settings)),
    ):
        verifier = TokenVerifier(
            keyring.get,
            issuer=settings.issuer,
            audience=audience,
            kind="access" if kind == "access" else "ticket",
            leeway=settings.leeway,
            max_lifetime=MAX_TTL,
        )
        try:
            verifier.verify(token, now=Clock().now())
        except ExpiredTokenError:
            return "expired"
        except AuthError as error:
            verdict = verdict or f"invalid: {error}"
        else:
            return "valid"
    return verdict
