"""Where a broker is, read from one URL, and never shown with its password."""

from __future__ import annotations

import ssl
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import parse_qsl, unquote, urlsplit

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
    "nats": frozenset({"tls", "ca", "cert", "key", "creds"}),
    "rabbitmq": frozenset({"partitions", "ca", "cert", "key"}),
}
"""What may stand behind the question mark."""


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
        scheme, found, _ = text.partition("://")
        if not found or scheme.lower() not in SCHEMES:
            raise ConfigurationError(
                "AUTHWS_BROKER_URL: there are "
                + ", ".join(f"{name}://" for name in SCHEMES)
                + f", and not {scheme if found else ''!r:.20}"
            )
        kind, is_tls, port = SCHEMES[scheme.lower()]
        try:
            parts = urlsplit(text)
            pairs = parse_qsl(
                parts.query, keep_blank_values=True, strict_parsing=bool(parts.query)
            )
        except ValueError:
            raise ConfigurationError("AUTHWS_BROKER_URL is not a URL") from None
        options = dict(pairs)
        unknown = sorted(options.keys() - OPTIONS[kind])
        if unknown or len(pairs) != len(options):
            known = ", ".join(sorted(OPTIONS[kind])) or "none"
            raise ConfigurationError(
                f"AUTHWS_BROKER_URL: after the question mark {kind} takes {known}, "
                "each once"
            )
        userinfo, _, hosts = parts.netloc.rpartition("@")
        username, _, password = userinfo.partition(":")
        return cls(
            kind=kind,
            hosts=tuple(_host(host, port) for host in hosts.split(",")) if port else (),
            username=unquote(username),
            password=unquote(password),
            path=unquote(parts.path.removeprefix("/")),
            is_tls=is_tls or options.get("tls", "") in {"1", "true"},
            options=options,
        )

    def __str__(self) -> str:
        hosts = ",".join(_joined(host, port) for host, port in self.hosts)
        return f"{self.kind} at {hosts}" if hosts else self.kind

    @property
    def has_password(self) -> bool:
        """Whether the broker is to be shown a secret, or a certificate of ours."""
        is_token = self.kind == "nats" and bool(self.username)
        return bool(
            self.password or is_token or {"creds", "cert"} & self.options.keys()
        )

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


def _host(text: str, port: int) -> tuple[str, int]:
    try:
        parts = urlsplit(f"//{text}")
        name, given = parts.hostname, parts.port
    except ValueError:
        name, given = None, None
    if not name:
        raise ConfigurationError(
            "AUTHWS_BROKER_URL: a host is missing, or its port is no number"
        )
    return name, given or port


def _joined(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
