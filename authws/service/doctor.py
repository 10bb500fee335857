"""Unsafe configurations, each with the sentence that says what to change.

``authws serve`` refuses to start on an error; ``authws doctor`` explains warnings too.
"""

from __future__ import annotations

import ssl
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, collapse_addresses, ip_network
from pathlib import Path
from typing import Literal

from authws.brokers.urls import BrokerUrl
from authws.decisions.history import HistoryRules
from authws.decisions.keys import check_secret
from authws.decisions.origins import Origin, is_loopback
from authws.exceptions import ConfigurationError
from authws.service.key_files import FILE_NAME
from authws.service.settings import PREFIX, Settings, nearest_setting

__all__ = ["Problem", "check", "problems"]

WIDEST = {4: 8, 6: 7}
"""The prefix lengths of the widest private networks, 10.0.0.0/8 and fc00::/7: what is
wider holds strangers."""
MESSAGES_IN_AN_OUTBOX = 4
"""How many of the largest messages must fit: a peer that reads has one on its way, and
an answer and a presence behind it."""
SMALLEST_HISTORY = 1_048_576
"""Bytes: some of the largest messages in each of a broker's streams."""
SMALLEST_MESSAGE = 1024
"""Bytes; an ``auth`` message with one of our own tokens has some 500."""


@dataclass(frozen=True, slots=True)
class Problem:
    """Something unsafe, and what to change."""

    severity: Literal["error", "warning"]
    what: str
    change: str

    def __str__(self) -> str:
        return f"{self.severity}: {self.what}; {self.change}"


def problems(settings: Settings, unknown: Sequence[str] = ()) -> list[Problem]:
    """Everything that is unsafe about these settings, errors first.

    ``unknown`` are variables that were set beside them and are no settings.
    """
    found = [
        *_names(unknown),
        *_secrets(settings),
        *_network(settings),
        *_public_origin(settings),
        *_origins(settings),
        *_workers(settings),
        *_broker(settings),
        *_limits(settings),
        *_advice(settings),
    ]
    return sorted(found, key=lambda problem: problem.severity)


def check(settings: Settings, unknown: Sequence[str] = ()) -> None:
    """Refuse an unsafe configuration.

    Raises:
        ConfigurationError: naming every error, and what to change.
    """
    errors = [p for p in problems(settings, unknown) if p.severity == "error"]
    if errors:
        raise ConfigurationError("\n".join(f"{p.what}; {p.change}" for p in errors))


def _error(what: str, change: str) -> Problem:
    return Problem("error", what, change)


def _names(unknown: Sequence[str]) -> Iterator[Problem]:
    for name in unknown:
        near = nearest_setting(name.removeprefix(PREFIX))
        yield _error(
            f"{name:.80} is no setting: whatever it was to change is as it was",
            f"did you mean {PREFIX}{near.upper()}?" if near else "unset it",
        )


def _secrets(settings: Settings) -> Iterator[Problem]:
    for number, secret in enumerate(settings.secret_keys, 1):
        try:
            check_secret(secret.get_secret_value())
        except ConfigurationError as error:
            yield _error(
                f"key {number} of AUTHWS_SECRET_KEYS: {error}",
                "generate one with: python3 -c "
                "'import secrets; print(secrets.token_urlsafe(48))'",
            )
    try:
        yield from _readable_by_others(settings.data_dir)
    except OSError as error:
        yield _error(
            f"{settings.data_dir} cannot be read ({error.strerror})",
            "set AUTHWS_DATA_DIR to a directory of your own",
        )


def _readable_by_others(data_dir: Path) -> Iterator[Problem]:
    if data_dir.exists() and not data_dir.is_dir():
        yield _error(f"{data_dir} is not a directory", "set AUTHWS_DATA_DIR to one")
        return
    for path, mode in ((data_dir, "700"), (data_dir / FILE_NAME, "600")):
        if path.exists() and path.stat().st_mode & 0o077:
            yield _error(
                f"others on this machine can read {path}", f"run: chmod {mode} {path}"
            )


def _network(settings: Settings) -> Iterator[Problem]:
    protected = settings.is_tls or settings.behind_proxy
    if not settings.is_loopback and not protected:
        yield _error(
            f"{settings.host} can be reached from other machines without TLS",
            "give --tls-cert and --tls-key, or --behind-proxy if a proxy speaks TLS, "
            "or bind 127.0.0.1",
        )
    if settings.behind_proxy and not settings.public_origin:
        yield _error(
            "behind a proxy the service cannot know its own origin",
            "set AUTHWS_PUBLIC_ORIGIN, such as https://chat.example.com",
        )
    if settings.behind_proxy and not settings.trusted_proxies:
        yield _error(
            "behind a proxy every peer seems to come from the proxy's address",
            "set AUTHWS_TRUSTED_PROXIES to the proxy's address",
        )
    if settings.trusted_proxies and not settings.behind_proxy:
        yield _error(
            "AUTHWS_TRUSTED_PROXIES lets those addresses name any peer as theirs",
            "add --behind-proxy if there is one, or unset it",
        )
    yield from _proxies(settings)
    yield from _tls_files(settings)


def _proxies(settings: Settings) -> Iterator[Problem]:
    """Proxies are few: not everybody, neither by one network nor by several."""
    change = "name the proxy's address or its network in AUTHWS_TRUSTED_PROXIES"
    v4: list[IPv4Network] = []
    v6: list[IPv6Network] = []
    for proxy in settings.trusted_proxies:
        try:
            network = ip_network(proxy)
        except ValueError as error:
            yield _error(f"{proxy!r:.80} is no trusted proxy: {error!s:.80}", change)
            continue
        if isinstance(network, IPv4Network):
            v4.append(network)
        else:
            v6.append(network)
    trusted: list[IPv4Network | IPv6Network] = [
        *collapse_addresses(v4),
        *collapse_addresses(v6),
    ]
    for wide in trusted:
        if wide.prefixlen < WIDEST[wide.version]:
            yield _error(
                f"trusting {wide} as proxies lets too many choose their own address",
                change,
            )


def _tls_files(settings: Settings) -> Iterator[Problem]:
    cert, key = settings.tls_cert, settings.tls_key
    if cert is None:
        if key is not None:
            yield _error("a TLS key without its certificate", "give --tls-cert too")
        return
    try:
        ssl.create_default_context(ssl.Purpose.CLIENT_AUTH).load_cert_chain(cert, key)
    except FileNotFoundError:
        yield _error(
            f"{cert} or {key or 'its key'} does not exist",
            "give --tls-cert and --tls-key the files' paths",
        )
    except OSError as error:  # ssl.SSLError is one
        yield _error(
            f"{cert} cannot be used with {key or 'the key in it'} "
            f"({error.strerror or type(error).__name__})",
            "give a PEM certificate chain and its own unencrypted PEM key, readable",
        )


def _public_origin(settings: Settings) -> Iterator[Problem]:
    """Browsers come over https, but on this machine; and to where it is spoken."""
    text = settings.public_origin
    try:
        origin = Origin.parse(text)
    except ValueError:  # told with the other origins
        return
    protected = settings.is_tls or settings.behind_proxy
    if origin.scheme == "http" and (protected or not origin.is_trustworthy):
        yield _error(
            f"the public origin {text} is http, so credentials would cross networks "
            "in the clear, the session cookie without Secure",
            "serve https (--tls-cert and --tls-key, or --behind-proxy if a proxy "
            "speaks TLS), and set AUTHWS_PUBLIC_ORIGIN to the https origin",
        )
    if origin.scheme == "https" and not protected:
        yield Problem(
            "warning",
            f"nothing here speaks TLS for the public origin {text}",
            "give --tls-cert and --tls-key, or --behind-proxy if a proxy speaks it",
        )


def _origins(settings: Settings) -> Iterator[Problem]:
    configured = [*filter(None, [settings.public_origin]), *settings.allowed_origins]
    for text in configured:
        if "*" in text:
            yield _error(
                "a wildcard origin lets any page use a visitor's session cookie",
                "list each origin, such as https://app.example.com",
            )
            continue
        try:
            origin = Origin.parse(text)
        except ValueError:
            yield _error(
                f"not an origin: {text!r:.100}",
                "an origin is scheme://host or scheme://host:port, with nothing after",
            )
            continue
        if text in settings.allowed_origins and not origin.is_trustworthy:
            yield Problem(
                "warning",
                f"whoever is on the way to {text} can alter its pages, which may "
                "connect here",
                "serve them over https, and name that origin in AUTHWS_ALLOWED_ORIGINS",
            )
    if not settings.origins:
        yield _error(
            "no origin is allowed, so no page could connect",
            "set AUTHWS_PUBLIC_ORIGIN to where browsers find the service",
        )
    elif not settings.own_origins:
        yield Problem(
            "warning",
            "the service does not know its own origin, so its own pages and "
            "`authws connect --strategy session-cookie` could not connect",
            "set AUTHWS_PUBLIC_ORIGIN to where browsers find the service",
        )
    if "*" in settings.allowed_hosts:
        yield _error(
            "a wildcard host accepts names that others point here (DNS rebinding)",
            "list the names in AUTHWS_ALLOWED_HOSTS",
        )


def _workers(settings: Settings) -> Iterator[Problem]:
    memory = settings.broker_url.get_secret_value().startswith("memory:")
    if settings.workers > 1 and memory:
        yield _error(
            f"{settings.workers} workers with the memory broker would each be an "
            "island: rooms, presence and revocations would not cross",
            "set AUTHWS_BROKER_URL to redis://, nats:// or amqp://, or use one worker",
        )
    if settings.workers > 1 and sys.platform == "win32":
        yield _error(
            f"{settings.workers} workers cannot share a port on Windows",
            "use one worker in each of several services behind a proxy",
        )


def _broker(settings: Settings) -> Iterator[Problem]:
    """Whoever may speak to the broker sees what is said in every room."""
    try:
        HistoryRules(settings.history)
    except ValueError as error:
        yield _error(f"AUTHWS_HISTORY: {error}", "mend the rule")
    try:
        url = BrokerUrl.parse(settings.broker_url.get_secret_value())
        url.ssl_context()
    except ConfigurationError as error:
        yield _error(str(error), "mend AUTHWS_BROKER_URL")
        return
    if (url.username, url.password) == ("guest", "guest"):
        yield _error(
            f"{url} has the password that everybody knows",
            "make a user of its own for authws, and remove guest",
        )
    remote = [host for host, _ in url.hosts if not is_loopback(host)]
    if remote and not url.has_password:
        yield _error(
            f"{url} is asked without a password: whoever reaches it reads every room",
            "give the broker a user and password, and name them in AUTHWS_BROKER_URL",
        )
    if remote and not url.is_tls:
        yield Problem(
            "warning",
            f"what goes to {url} can be read on the way, its password too",
            "use TLS (rediss://, tls://, amqps://), or a network that is yours alone",
        )


def _limits(settings: Settings) -> Iterator[Problem]:
    """Limits that only make sense together."""
    largest, outbox = settings.max_message_bytes, settings.outbox_bytes
    if outbox and (largest == 0 or outbox < MESSAGES_IN_AN_OUTBOX * largest):
        yield _error(
            f"AUTHWS_OUTBOX_BYTES={outbox} holds fewer than {MESSAGES_IN_AN_OUTBOX} "
            f"messages of AUTHWS_MAX_MESSAGE_BYTES={largest}: one publisher could end "
            "everybody else in a room as too slow",
            f"set AUTHWS_OUTBOX_BYTES to {MESSAGES_IN_AN_OUTBOX} times "
            "AUTHWS_MAX_MESSAGE_BYTES at least (and bound that)",
        )
    if 0 < largest < SMALLEST_MESSAGE:
        yield _error(
            f"no auth message fits into AUTHWS_MAX_MESSAGE_BYTES={largest}",
            f"set it to {SMALLEST_MESSAGE} at least",
        )
    if 0 < settings.history_bytes < SMALLEST_HISTORY:
        yield _error(
            f"AUTHWS_HISTORY_BYTES={settings.history_bytes} keeps next to nothing, and "
            "brokers divide it among their streams",
            f"set it to {SMALLEST_HISTORY} at least (AUTHWS_HISTORY=*=0 keeps none)",
        )


def _advice(settings: Settings) -> Iterator[Problem]:
    if settings.query_param_accepts == "any":
        yield Problem(
            "warning",
            "/ws/query-param takes access tokens, and a URL is written down in many "
            "places (OWASP ASVS 14.2.1)",
            "set AUTHWS_QUERY_PARAM_ACCEPTS=ticket once your clients use tickets",
        )
    if settings.docs and not settings.is_loopback:
        yield Problem(
            "warning",
            "/docs and /openapi.json are open to everybody (OWASP ASVS 13.4.5)",
            "set AUTHWS_DOCS=false in production",
        )
    if settings.jwks_url:
        yield Problem(
            "warning",
            "the subjects of AUTHWS_JWKS_ISSUER appear in rooms by their own names, "
            "also where a user of this service has the same",
            "let only one of the two name people: add no users here, or know that "
            "issuer's names",
        )
    if settings.login_rate == 0:
        yield Problem(
            "warning", "failed logins are not throttled", "set AUTHWS_LOGIN_RATE=5"
        )
