"""``authws token``: issue a token without a login, and look into one."""

from __future__ import annotations

import base64
import json
import secrets
import sys
from typing import Annotated, Any

import typer

from authws.cli.stores import existing, require_secrets, run
from authws.clock import Clock
from authws.decisions.session_cookies import session_digest
from authws.decisions.tokens import Claims, TokenIssuer, TokenVerifier
from authws.exceptions import (
    AuthError,
    AuthwsError,
    ConfigurationError,
    ExpiredTokenError,
    InvalidTokenError,
)
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
        int | None,
        typer.Option(
            min=1, max=MAX_TTL, help="Seconds the token lives; AUTHWS_ACCESS_TTL."
        ),
    ] = None,
) -> None:
    """Print an access token for a user, in a session of its own."""
    settings = Settings()
    life = _life(settings, ttl)
    require_secrets(settings)
    issuer = TokenIssuer(
        load_secrets(settings).keyring,
        issuer=settings.issuer,
        audience=settings.audience,
        ticket_audience=ticket_audience(settings),
    )

    async def work() -> str:
        async with existing(settings) as stores:
            user = await stores.users.get(name)
            if user is None:
                raise UnknownUserError(name)
            if user.disabled:
                raise AuthwsError(
                    f"user {user.name!r} is disabled; let them in again with: "
                    f"authws user enable {user.name}"
                )
            session = session_digest(secrets.token_urlsafe(32))
            now = Clock().now()
            await stores.sessions.create(
                session, user.name, "token", 0, now + life, user_agent="authws token"
            )
            return issuer.access(
                user.name, session, user.scopes, now=now, expires_at=now + life
            )

    typer.echo(run(work()))


def _life(settings: Settings, ttl: int | None) -> float:
    """How long a token may live: no longer than any session."""
    longest = settings.session_absolute_ttl
    if ttl is not None and ttl > longest:
        raise ConfigurationError(
            f"a session, and its token, ends after AUTHWS_SESSION_ABSOLUTE_TTL="
            f"{longest:g} seconds; give a --ttl of no more"
        )
    return min(settings.access_ttl, longest) if ttl is None else ttl


@app.command()
def inspect() -> None:
    """Read a token from standard input; print what it says, and whether it holds.

    Never as an argument: every process on the machine can read those, and a shell
    keeps them. Asks the session's record too; whether a ticket was used is not asked.
    """
    settings = Settings()
    token = sys.stdin.readline().strip()
    parts = token.split(".")
    if len(parts) != 3:
        typer.echo("authws: not a compact JWT", err=True)
        raise typer.Exit(1)
    for part in parts[:2]:
        typer.echo(json.dumps(_decode(part), indent=2, sort_keys=True))
    verdict = run(_verdict(settings, token))
    typer.echo(verdict)
    if verdict != "valid":
        raise typer.Exit(1)


def _decode(part: str) -> Any:
    try:
        return json.loads(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)))
    except ValueError:
        typer.echo("authws: not a compact JWT", err=True)
        raise typer.Exit(1) from None


async def _verdict(settings: Settings, token: str) -> str:
    """Verify as the service does: what was signed, then the session's record."""
    require_secrets(settings)
    try:
        claims = _claims(settings, token)
    except ExpiredTokenError:
        return "expired"
    except AuthError as error:
        return f"invalid: {error}"
    async with existing(settings) as stores:
        record = await stores.sessions.load(claims.session)
    if record is None or record.subject != claims.subject:
        return "invalid: the token names no session of its subject"
    if record.user_disabled:
        return "revoked: its user is disabled or removed"
    if record.revoked_at is not None:
        return "revoked: its session was ended"
    if record.expires_at <= Clock().now():
        return "expired: its session reached its absolute limit"
    return "valid"


def _claims(settings: Settings, token: str) -> Claims:
    """Verify as an access token, else as a ticket.

    Raises:
        AuthError: it is neither; the first refusal counts.
    """
    keyring = load_secrets(settings).keyring
    refusal: AuthError | None = None
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
            return verifier.verify(token, now=Clock().now())
        except InvalidTokenError as error:
            refusal = refusal or error
    raise refusal or InvalidTokenError("no verifier takes such a token")
