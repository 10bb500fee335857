"""The metrics of all workers, from whichever of them is asked.

A scrape reaches one worker, which asks the others, each by a Unix socket in a directory
that nobody else may enter. Who does not answer in time is left out, and counted.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import socket
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from prometheus_client import CollectorRegistry, Gauge, generate_latest

from authws.exceptions import ConfigurationError

__all__ = ["Siblings", "merge", "private_directory"]

TIMEOUT = 1.0
"""Seconds that a worker has to answer; a scrape of Prometheus has 10."""
LONGEST_PATH = 90
"""Bytes; the address of a Unix socket has room for 108, on some systems for 104."""

_FAMILY = re.compile(rb"^(?=# HELP )", re.MULTILINE)
_NAME = re.compile(rb"^(\w+)([{ ])", re.MULTILINE)


class Siblings:
    """The workers of one parent, seen from one of them."""

    def __init__(
        self, directory: Path, number: int, count: int, render: Callable[[], bytes]
    ) -> None:
        """``render`` returns this worker's own metrics, as text."""
        self._directory = directory
        self._number = number
        self._numbers = range(count)
        self._render = render
        self._server: asyncio.Server | None = None
        self._registry = CollectorRegistry()
        self._states = Gauge(
            "authws_workers_scraped",
            "Workers of this service, by whether they answered to this scrape",
            ["state"],
            registry=self._registry,
        )

    async def start(self) -> None:
        """Answer the others; a predecessor of this number is asked no more."""
        listener = socket.socket(socket.AF_UNIX)
        mine = self._directory / f"{self._number}.{os.getpid()}"
        listener.bind(str(mine))
        self._server = await asyncio.start_unix_server(self._answer, sock=listener)
        mine.replace(self._path(self._number))

    async def stop(self) -> None:
        """Answer nobody any more."""
        if self._server is not None:
            self._server.close()

    async def exposition(self) -> bytes:
        """Return the samples of all workers, each with its number as ``worker``."""
        answers = await asyncio.gather(*map(self._ask, self._numbers))
        answered = {n: text for n, text in enumerate(answers) if text is not None}
        self._states.labels("answered").set(len(answered))
        self._states.labels("silent").set(len(answers) - len(answered))
        return merge(answered) + generate_latest(self._registry)

    def _path(self, number: int) -> Path:
        return self._directory / str(number)

    async def _ask(self, number: int) -> bytes | None:
        """Return a worker's own metrics; None if it does not answer."""
        if number == self._number:
            return self._render()
        try:
            async with asyncio.timeout(TIMEOUT):
                reader, writer = await asyncio.open_unix_connection(self._path(number))
                with contextlib.closing(writer):
                    return await reader.read()
        except OSError:  # TimeoutError is one
            return None

    async def _answer(
        self, _: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        with contextlib.closing(writer):
            writer.write(self._render())


def merge(expositions: Mapping[int, bytes]) -> bytes:
    """Join expositions of the same families, each sample labelled with its worker.

    All samples of a family stand together, as the format demands.
    """
    families: dict[bytes, list[bytes]] = {}
    for number, text in expositions.items():
        label = b'{worker="%d"' % number
        for family in _FAMILY.split(text)[1:]:
            about, kind, samples = (family + b"\n").split(b"\n", 2)
            labelled = _NAME.sub(
                lambda name, label=label: (
                    name[1] + label + (b"," if name[2] == b"{" else b"} ")
                ),
                samples.rstrip(b"\n"),
            )
            families.setdefault(about + b"\n" + kind, []).append(labelled)
    return b"".join(
        b"\n".join([head, *filter(None, samples), b""])
        for head, samples in families.items()
    )


@contextlib.contextmanager
def private_directory() -> Iterator[Path]:
    """Make a directory in which the workers' sockets are, for as long as it is entered.

    Raises:
        ConfigurationError: it cannot be made, or its path is too long.
    """
    try:
        directory = tempfile.TemporaryDirectory(prefix="authws-")
    except OSError as error:
        raise ConfigurationError(
            f"several workers need a temporary directory ({error.strerror}); "
            "set TMPDIR to one that can be written to"
        ) from None
    with directory as name:
        if len(os.fsencode(name)) > LONGEST_PATH:
            raise ConfigurationError(
                f"the path {name} is too long to name sockets in; set TMPDIR to a "
                "shorter one"
            )
        yield Path(name)
