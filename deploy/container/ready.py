"""The image's health check: exit status 0 if authws in this container is ready.

It asks ``/readyz`` by the name that the service answers to, and needs nothing but the
standard library: it runs every few seconds, and must cost next to nothing.
"""

from __future__ import annotations

import os
import sys
from http.client import HTTPConnection, HTTPException
from urllib.parse import urlsplit

TIMEOUT = 2.0


def main() -> None:
    """Ask, and say what came of it; engines keep that for ``docker inspect``."""
    port = int(os.environ.get("AUTHWS_PORT") or 8000)
    name = urlsplit(os.environ.get("AUTHWS_PUBLIC_ORIGIN", "")).hostname or "localhost"
    connection = HTTPConnection("127.0.0.1", port, timeout=TIMEOUT)
    try:
        connection.request("GET", "/readyz", headers={"Host": name})
        answer = connection.getresponse()
        said = answer.read(1000).decode()
    except (OSError, HTTPException) as error:
        sys.exit(f"no answer on port {port}: {error}")
    if answer.status != 200:
        sys.exit(f"{answer.status}: {said}")
    print(said)


if __name__ == "__main__":
    main()
