"""A secret in a file of its own, as Compose, Kubernetes and systemd hand it out.

What stands in the environment is inherited by every child and shown by ``docker
inspect`` and ``systemctl show``; a file has an owner and a mode.
"""

from __future__ import annotations

import stat
from pathlib import Path

from authws.exceptions import ConfigurationError

__all__ = ["MAX_BYTES", "read_secret"]

MAX_BYTES = 65_536
"""A dozen keys or a URL has two thousand."""


def read_secret(path: Path) -> str:
    """Return what a secret's file says, without the space around it.

    Its group may read it: that is how Kubernetes and systemd let a service in that is
    not root.

    Raises:
        ConfigurationError: it cannot be read, is not a file, says nothing or too much,
            or is open to others.
    """
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):  # a pipe might never end
            raise ConfigurationError(f"{path} is not a file; name the secret's own")
        with path.open("rb") as file:
            said = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise ConfigurationError(
            f"{path} cannot be read ({error.strerror}); see that it is there, and "
            "that whoever runs this may read it"
        ) from None
    if status.st_mode & 0o027:
        raise ConfigurationError(
            f"{path} can be read or changed by others; run: chmod 440 {path}"
        )
    return _text(path, said)


def _text(path: Path, said: bytes) -> str:
    if len(said) > MAX_BYTES:
        raise ConfigurationError(
            f"{path} has more than {MAX_BYTES} bytes; a secret's file holds it alone"
        )
    try:
        text = said.decode().strip()
    except UnicodeDecodeError:
        text = ""
    if not text:
        raise ConfigurationError(f"{path} says nothing; write the secret into it")
    return text
