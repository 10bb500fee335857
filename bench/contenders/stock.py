"""Uvicorn as everybody runs it, with the fastest of what it offers."""

from __future__ import annotations

import sys
from typing import Any

import uvicorn

__all__ = ["run"]


def run(app: Any, *, lifespan: bool = True) -> None:
    """Serve on the port that the command line names, until a signal ends it."""
    uvicorn.run(
        app,
        host="127.0.0.1",
        port=int(sys.argv[1]),
        loop="uvloop",
        http="httptools",
        ws="websockets-sansio",
        ws_per_message_deflate=False,
        lifespan="auto" if lifespan else "off",
        log_level="warning",
        access_log=False,
        backlog=4096,
    )
