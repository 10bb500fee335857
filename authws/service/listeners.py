"""The sockets that the service listens on.

One process has one. Of several workers each has its own where the system spreads new
connections over all that listen on an address (Linux): taken from one that all share,
most would go to whoever looks first. All are bound by the parent, which keeps them: a
worker that dies leaves who waits there to its successor.
"""

from __future__ import annotations

import contextlib
import socket
import sys
from types import TracebackType
from typing import Any

from authws.decisions.origins import is_loopback
from authws.exceptions import ConfigurationError
from authws.service.settings import Settings

__all__ = ["UNSENT_BYTES", "Listeners", "resolve"]

UNSENT_BYTES = 262_144
"""What the system keeps for a peer that does not read, beyond what is on its way. Linux
takes 4 MiB by default (tcp_wmem): more than our own outbox, and no limit of ours sees
it. Half as much costs a fast reader of small messages a tenth of its speed."""

BACKLOG = 2048
"""How many may wait to be accepted; what Uvicorn asks for, too."""

Address = tuple[int, int, int, Any]
"""Family, kind, protocol and address, as ``socket`` takes them."""


class Listeners:
    """What ``settings.workers`` processes listen on: one address, one port."""

    def __init__(self, settings: Settings) -> None:
        """Bind before anything else, so that a taken port is told in a sentence.

        Raises:
            ConfigurationError: it cannot be bound.
        """
        self._spreads = settings.workers > 1 and sys.platform == "linux"
        try:
            self._address = resolve(settings)
            self._sockets = self._bind_all(settings.workers)
        except OSError as error:
            raise ConfigurationError(
                f"cannot listen on {settings.host} port {settings.port}: "
                f"{error.strerror or error}; choose another with --port or AUTHWS_PORT"
            ) from None

    @property
    def port(self) -> int:
        """The port, also where the system chose it."""
        return int(self._address[3][1])

    def of(self, number: int) -> socket.socket:
        """Return the listener of a worker, bound again if it was taken down.

        Raises:
            OSError: somebody else has the port now.
        """
        listener = self._sockets[number]
        if listener.fileno() < 0:
            listener = self._sockets[number] = _bind(self._address, shared=True)
        return listener

    def take_down(self, number: int) -> None:
        """Have nobody wait for a worker that will not be there for a while: what comes
        goes to the others. Not where they share a listener."""
        if self._spreads:
            self._sockets[number].close()

    def keep_only(self, number: int) -> None:
        """In a worker: let go of what the others listen on."""
        for other in self._sockets:
            if other is not self._sockets[number]:
                other.close()

    def close(self) -> None:
        """Listen no more, as far as it is this process that does."""
        for listener in self._sockets:
            listener.close()

    def __enter__(self) -> Listeners:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _bind_all(self, count: int) -> list[socket.socket]:
        # a second service of the same user may share the port, too, and would be given
        # our connections: the first bind is one that shares with nobody
        alone = _bind(self._address, shared=False)
        self._address = (*self._address[:3], alone.getsockname())
        if not self._spreads:
            return [alone] * count
        alone.close()
        with contextlib.ExitStack() as unless_bound:
            sockets = []
            for _ in range(count):
                listener = _bind(self._address, shared=True)
                unless_bound.callback(listener.close)
                listener.listen(BACKLOG)  # from here on nobody else can bind alone
                sockets.append(listener)
            unless_bound.pop_all()
        return sockets


def resolve(settings: Settings) -> Address:
    """Find the address to bind; what the settings take for loopback must be one.

    Raises:
        ConfigurationError: it is not, or there is none.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            settings.host, settings.port, type=socket.SOCK_STREAM
        )[0]
    except (OSError, UnicodeError) as error:
        raise ConfigurationError(
            f"{settings.host!r:.80} names no address here "
            f"({getattr(error, 'strerror', None) or error}); "
            "give --host an address of this machine"
        ) from None
    if settings.is_loopback and not is_loopback(str(address[0])):
        raise ConfigurationError(
            f"{settings.host} is {address[0]} here, which other machines can reach; "
            "give --host 127.0.0.1, or mend the name in /etc/hosts"
        )
    return family, kind, protocol, address


def _bind(address: Address, *, shared: bool) -> socket.socket:
    """Bind one socket; ``shared`` with others of this user that are ``shared``."""
    family, kind, protocol, place = address
    with contextlib.ExitStack() as unless_bound:
        listener = socket.socket(family, kind, protocol)
        unless_bound.callback(listener.close)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        _bound_unsent_bytes(listener)
        listener.bind(place)
        unless_bound.pop_all()
    return listener


def _bound_unsent_bytes(listener: socket.socket) -> None:
    """Bound what the system keeps for each peer, where it can; see UNSENT_BYTES."""
    if hasattr(socket, "TCP_NOTSENT_LOWAT"):
        with contextlib.suppress(OSError):  # accepted sockets inherit it
            listener.setsockopt(
                socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, UNSENT_BYTES
            )
