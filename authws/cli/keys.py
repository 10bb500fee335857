"""``authws keys``: rotation without dropping anyone."""

from __future__ import annotations

import typer

from authws.cli.stores import require_secrets
from authws.service.key_files import rotate_keys
from authws.service.settings import Settings

__all__ = ["app"]

app = typer.Typer(help="Rotate the signing keys.", no_args_is_help=True)


@app.callback()
def keys() -> None:
    """Rotate the signing keys."""


@app.command()
def rotate() -> None:
    """Add a new key. It signs from the next start on; two older ones still verify."""
    settings = Settings()
    require_secrets(settings)
    kid = rotate_keys(settings)
    typer.echo(
        f"added key {kid}; restart the service now: until then it does not know what "
        "`authws token issue` signs with it"
    )
