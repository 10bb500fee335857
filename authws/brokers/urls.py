"""Where a broker is, read from one URL, and never shown with its password."""

from __future__ import annotations

import re
import ssl
from dataclasses import dataclass, field
from ipaddress import IPv6Address
from pathlib import Path
from urllib.parse import parse_qsl, unquote

from authws.exceptions import ConfigurationError

__all__ = ["SCHEMES", "BrokerUrl"]

SCHEMES = {
    "memory": ("memory", False, 0),
    "redis": ("redis", False, 6379),
    "rediss": ("redis", True, 6379),
    "nats": ("nats", False, 4222),
    "tls": ("nats", True, 4222),
    "amqp": ("rabbitmq", False, 5672),
    "amqps": ("rabbitmq", True, 5671),
}
"""By scheme: which broker, whether by TLS, and its usual port."""

OPTIONS = {
    "memory": frozenset[str](),
    "redis": frozenset({"cluster", "sentinel", "ca", "cert", "key"}),
    "nats": frozenset({"tls", "ca", "cert", "key"}),
    "rabbitmq": frozenset({"partitions", "ca", "cert", "key"}),
}
"""What may stand behind the question mark."""

_SCHEME = re.compile(r"[a-z][a-z0-9+.-]{0,19}", re.IGNORECASE)
# urlsplit takes one host, and what it makes of several depends on Python's version
_HOST = re.compile(
    r"(?:\[(?P<ip6>[^\[\]]+)\]|(?P<name>[a-z0-9._-]+))(?::(?P<port>\d{1,5}))?",
    re.ASCII | re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class BrokerUrl:
    """A broker's address. ``repr`` and ``str`` leave the credentials out."""

    kind: str
    """``memory``, ``redis``, ``nats`` or ``rabbitmq``."""
    hosts: tuple[tuple[str, int], ...]
    username: str = field(default="", repr=False)
    password: str = field(default="", repr=False)
    path: str = ""
    """What stands behind the hosts: a database's number, a virtual host."""
    is_tls: bool = False
    options: dict[str, str] = field(default_factory=dict)

    @classmethod
    def parse(cls, text: str) -> BrokerUrl:
        """Read ``scheme://user:password@host:port,host:port/path?option=value``.

        Raises:
            ConfigurationError: with what is wrong, and never with the URL itself.
        """
        scheme, found, rest = text.strip().partition("://")
        if not found or scheme.lower() not in SCHEMES:
            # what is no scheme may be a password that stands in the wrong place
            is_one = found and _SCHEME.fullmatch(scheme)
            raise ConfigurationError(
                "AUTHWS_BROKER_URL: there are "
                + ", ".join(f"{name}://" for name in SCHEMES)
                + (f", and not {scheme}://" if is_one else "")
            )
        kind, is_tls, port = SCHEMES[scheme.lower()]
        rest, _, query = rest.partition("?")
        authority, _, path = rest.partition("/")
        if "@" in path:
            raise ConfigurationError(
                "AUTHWS_BROKER_URL: an @ behind the hosts; in a password write / as "
                "%2F and ? as %3F, in a path @ as %40"
            )
        options = _options(kind, query)
        is_tls = is_tls or options.get("tls") in {"1", "true"}
        if not is_tls and {"ca", "cert", "key"} & options.keys():
            raise ConfigurationError(
                "AUTHWS_BROKER_URL: ca, cert and key are for TLS, and this is without "
                "(with it: rediss://, tls://, amqps://)"
            )
        userinfo, _, hosts = authority.rpartition("@")
        if "@" in userinfo and "," in userinfo:
            raise ConfigurationError(
                "AUTHWS_BROKER_URL: more than one @: user and password stand once, "
                "before the first host; in them write @ as %40"
            )
        if path and kind in {"memory", "nats"}:
            raise ConfigurationError(
                f"AUTHWS_BROKER_URL: there is nothing behind the hosts of {kind}; in a "
                "password write / as %2F, and several hosts as h1,h2 behind one scheme"
            )
        if hosts and kind == "memory":
            raise ConfigurationError(
                "AUTHWS_BROKER_URL: memory:// has no host: it is in this process"
            )
        username, _, password = userinfo.partition(":")
        return cls(
            kind=kind,
            hosts=tuple(_host(host, port) for host in hosts.split(",")) if port else (),
            username=unquote(username),
            password=unquote(password),
            path=unquote(path),
            is_tls=is_tls,
            options=options,
        )

    def __str__(self) -> str:
        hosts = ",".join(_joined(host, port) for host, port in self.hosts)
        return f"{self.kind} at {hosts}" if hosts else self.kind

    @property
    def has_password(self) -> bool:
        """Whether the broker is to be shown a secret, or a certificate of ours."""
        is_token = self.kind == "nats" and bool(self.username)
        return bool(self.password or is_token or "cert" in self.options)

    def ssl_context(self) -> ssl.SSLContext | None:
        """Return what TLS demands of the other end: a certificate from a known
        authority, for the name in the URL. None without TLS.

        Raises:
            ConfigurationError: a file cannot be used.
        """
        if not self.is_tls:
            return None
        try:
            context = ssl.create_default_context(cafile=self._file("ca"))
            cert = self._file("cert")
            if cert is not None:
                context.load_cert_chain(cert, self._file("key"))
        except OSError as error:  # ssl.SSLError is one
            raise ConfigurationError(
                "AUTHWS_BROKER_URL: ca, cert or key cannot be used "
                f"({error.strerror or type(error).__name__}); they are PEM files"
            ) from None
        return context

    def _file(self, option: str) -> Path | None:
        name = self.options.get(option)
        return Path(name) if name else None


def _options(kind: str, query: str) -> dict[str, str]:
    try:
        pairs = parse_qsl(query, keep_blank_values=True, strict_parsing=bool(query))
    except ValueError:
        pairs = [("", "")]
    options = dict(pairs)
    is_each_once = len(pairs) == len(options) and all(options.values())
    if not (is_each_once and options.keys() <= OPTIONS[kind]):
        known = ", ".join(sorted(OPTIONS[kind])) or "nothing"
        raise ConfigurationError(
            f"AUTHWS_BROKER_URL: after the question mark {kind} takes {known}; each "
            "at most once, as name=value"
        )
    if options.get("tls", "0") not in {"0", "1", "false", "true"}:
        raise ConfigurationError("AUTHWS_BROKER_URL: tls is 1 or 0")
    if "key" in options and "cert" not in options:
        raise ConfigurationError("AUTHWS_BROKER_URL: a key goes with its cert")
    return options


def _host(text: str, port: int) -> tuple[str, int]:
    match = _HOST.fullmatch(text)
    given = port if match is None else int(match["port"] or port)
    if match is None or not 0 < given < 2**16:
        raise _no_host()
    if match["name"]:
        return match["name"].lower(), given
    try:
        return str(IPv6Address(match["ip6"])), given
    except ValueError:
        raise _no_host() from None


def _no_host() -> ConfigurationError:
    return ConfigurationError(
        "AUTHWS_BROKER_URL: a host is missing or none, or its port is no number from "
        "1 to 65535; an IPv6 address stands in brackets"
    )


def _joined(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
