"""Which pages may open a connection, and by which names we may be called.

No browser asks before a WebSocket handshake leaves for another site, and cookies go
with it: the server is the only place where a foreign page can be turned away
(RFC 6455, 10.2). Origin and Host are compared with configured values, never with each
other, because whoever rebinds a DNS name controls both.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import AddressValueError, IPv4Address, IPv6Address, ip_address

from authws.exceptions import ConfigurationError, ForbiddenOriginError

__all__ = ["HostPolicy", "Origin", "OriginPolicy", "check_fetch_site", "is_loopback"]

MAX_HOST = 253
"""RFC 1035, 2.3.4: 255 octets on the wire are 253 characters of text."""
MAX_ORIGIN = len("https://") + MAX_HOST + len(":65535")
DEFAULT_PORTS = {"http": 80, "https": 443}
LOOPBACK_HOSTS = frozenset({"127.0.0.1", "localhost", "::1"})
"""The names by which a browser finds its own machine."""

_LABEL = r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?"
_HOST = rf"(?P<host>{_LABEL}(?:\.{_LABEL})*|\[[0-9a-f:.]{{2,45}}\])"
_PORT = r"(?::(?P<port>[1-9][0-9]{0,4}))?"
# Everything that these do not spell out is refused: user names, paths, backslashes,
# trailing dots, spaces, and all that is not ASCII (a browser sends punycode).
_FLAGS = re.ASCII | re.IGNORECASE
ORIGIN = re.compile(rf"(?P<scheme>https?)://{_HOST}{_PORT}", _FLAGS)
AUTHORITY = re.compile(rf"{_HOST}{_PORT}", _FLAGS)


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a page comes from (RFC 6454, 4), in its one canonical form."""

    scheme: str
    host: str
    """In lower case; an IPv6 address compressed, without brackets."""
    port: int

    @classmethod
    def parse(cls, text: str) -> Origin:
        """Return the origin that the text spells.

        Letter case, a default port and the spelling of an IPv6 address make no
        difference; a surplus of any kind does.

        Raises:
            ValueError: it is not an http or https origin; ``null`` is not.
        """
        if len(text) > MAX_ORIGIN:
            raise ValueError("not an origin: longer than any")
        return _origin(text)

    @property
    def is_trustworthy(self) -> bool:
        """Whether nobody on the way can read or alter what it serves: by TLS, or
        because there is no way (Secure Contexts, 3.1)."""
        return self.scheme == "https" or is_loopback(self.host)

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        default = self.port == DEFAULT_PORTS[self.scheme]
        return f"{self.scheme}://{host}" + ("" if default else f":{self.port}")


@dataclass(frozen=True, slots=True)
class OriginPolicy:
    """The pages that may connect."""

    allowed: frozenset[Origin]
    takes_own_port: bool = False
    """Allow this machine's pages of the port that a request came in by as well: for an
    app of which nobody said by which port it is served."""

    def check(
        self, headers: Sequence[str], required: bool, here: Origin | None = None
    ) -> Origin | None:
        """Return the allowed origin that the ``Origin`` headers name.

        ``here`` is where the request came in: the address and port of our own socket.

        Without a header the answer is None, unless one is ``required``: every browser
        sends it (RFC 6455, 4.1), so who does not is no browser, and holds a cookie by
        other means than a browser's jar.

        Raises:
            ForbiddenOriginError: it is missing and required, repeated, ``null``,
                malformed or not allowed.
        """
        if not headers and not required:
            return None
        if len(headers) != 1:  # RFC 6454, 7.3: a browser sends exactly one
            raise ForbiddenOriginError(", ".join(headers) or None)
        try:
            origin = Origin.parse(headers[0])
        except ValueError:
            raise ForbiddenOriginError(headers[0]) from None
        if origin not in self.allowed and not self._is_own(origin, here):
            raise ForbiddenOriginError(headers[0])
        return origin

    def _is_own(self, origin: Origin, here: Origin | None) -> bool:
        """Tell whether it is a page of this machine, and of that very socket.

        The socket's own port cannot be forged by a peer, and whoever comes in over
        loopback is on this machine, or behind a proxy on it.
        """
        return (
            self.takes_own_port
            and here is not None
            and _is_loopback(here.host)
            and origin.host in LOOPBACK_HOSTS
            and (origin.scheme, origin.port) == (here.scheme, here.port)
        )


def check_fetch_site(values: Sequence[str]) -> None:
    """Refuse what a browser itself calls cross-site, by its ``Sec-Fetch-Site``.

    A second line behind the origin. Other values pass, unknown ones too, as the Fetch
    Metadata specification asks; and so does absence, for browsers that lack it.

    Raises:
        ForbiddenOriginError: one of the values says ``cross-site``.
    """
    if any("cross-site" in value.lower() for value in values):
        raise ForbiddenOriginError("Sec-Fetch-Site: cross-site")


def is_loopback(host: str) -> bool:
    """Tell whether a host is this machine itself: a loopback address, or ``localhost``.

    A name that only looks like such an address, ``127.evil.example``, is anybody's.
    """
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


@dataclass(frozen=True, slots=True)
class HostPolicy:
    """The names by which this service may be called, against DNS rebinding.

    Raises:
        ConfigurationError: an allowed name is not a host name or an address; a port,
            a pattern or a URL is not one.
    """

    allowed: frozenset[str]
    """Host names and addresses without ports, brackets around IPv6 as you like."""

    def __post_init__(self) -> None:
        names = frozenset(_configured_host(name) for name in self.allowed)
        object.__setattr__(self, "allowed", names)

    def allows(self, headers: Sequence[str]) -> bool:
        """Tell whether the ``Host`` headers are exactly one and name this service.

        The port is not compared: behind a proxy or a tunnel it is somebody else's.
        """
        # RFC 9112, 3.2: one Host
        if len(headers) != 1 or len(headers[0]) > MAX_ORIGIN:
            return False
        return _named_host(headers[0]) in self.allowed


def _is_loopback(address: str) -> bool:
    try:
        return ip_address(address).is_loopback
    except ValueError:
        return False


def _port(text: str | None) -> int | None:
    port = int(text) if text else None
    if port is not None and port > 65535:
        raise ValueError("no such port")
    return port


@lru_cache(maxsize=1024)
def _origin(text: str) -> Origin:
    match = ORIGIN.fullmatch(text)
    if match is None:
        raise ValueError("not an origin such as https://app.example.com")
    scheme = match["scheme"].lower()
    port = _port(match["port"]) or DEFAULT_PORTS[scheme]
    return Origin(scheme, _canonical_host(match["host"]), port)


@lru_cache(maxsize=1024)
def _named_host(authority: str) -> str | None:
    """Return the host that a ``Host`` header names in its one spelling; None if it is
    not of the grammar (RFC 9112, 3.2): ``good.example/x?`` is not."""
    match = AUTHORITY.fullmatch(authority)
    if match is None:
        return None
    try:
        _port(match["port"])
        return _canonical_host(match["host"])
    except ValueError:
        return None


def _canonical_host(host: str) -> str:
    """Give a host that fits the grammar its one spelling, or raise ValueError."""
    host = host.lower()
    try:
        if host.startswith("["):
            return IPv6Address(host[1:-1]).compressed
        # A last label of digits makes it an IPv4 address to a browser (WHATWG URL,
        # 3.5), which sends its dotted form: 127.1 and 0x7f.1 come from elsewhere.
        if re.fullmatch(r"[0-9]+|0x[0-9a-f]*", host.rpartition(".")[2]):
            return str(IPv4Address(host))
    except AddressValueError:
        raise ValueError("no such address") from None
    if len(host) > MAX_HOST:
        raise ValueError("a host name is at most 253 characters")
    return host


def _configured_host(name: str) -> str:
    bare_ipv6 = ":" in name and not name.startswith("[")
    match = AUTHORITY.fullmatch(f"[{name}]" if bare_ipv6 else name)
    try:
        if match is None or match["port"]:
            raise ValueError("not a host")
        return _canonical_host(match["host"])
    except ValueError:
        raise ConfigurationError(
            f"an allowed host is a name or an address, without a port: {name!r:.200}"
        ) from None
