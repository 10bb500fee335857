"""Every setting, with its default: ``AUTHWS_*`` in the environment or in ``.env``."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import Field, SecretStr, field_validator, model_validator
from pydantic_settings import (
    BaseSettings,
    DotEnvSettingsSource,
    EnvSettingsSource,
    NoDecode,
    SettingsConfigDict,
)

from authws.decisions.history import DEFAULT_RULES
from authws.decisions.origins import Origin, is_loopback
from authws.exceptions import ConfigurationError
from authws.service.secret_files import read_secret

__all__ = [
    "PREFIX",
    "PerAddress",
    "Settings",
    "known_settings",
    "nearest_setting",
    "unknown_variables",
]

PREFIX = "AUTHWS_"
NO_SETTING = re.compile(r"AUTHWS_(PASSWORD|TEST_\w+)")
"""Variables of our name that are no settings: the password that ``authws connect``
reads, and what the tests read."""

FILED = ("secret_keys", "database_url", "broker_url")
"""The settings that are secrets. Each may stand in a file, which the setting of its
name and ``_file`` names."""

N = TypeVar("N", int, float)
Names = Annotated[tuple[str, ...], NoDecode]
"""A comma-separated list."""
Limit = Annotated[int, Field(ge=0)]
Rate = Annotated[float, Field(ge=0)]
"""Per second."""
Seconds = Annotated[float, Field(ge=0)]


@dataclass(frozen=True, slots=True)
class PerAddress:
    """The limits that hold for one address."""

    handshake_rate: float
    connections: int
    unauthenticated: int


EXPOSED = PerAddress(handshake_rate=50, connections=1000, unauthenticated=128)
"""The defaults where strangers can come: the address may be a whole office."""
LOCAL = PerAddress(handshake_rate=0, connections=0, unauthenticated=0)
"""The defaults on this machine alone, where all share one address."""


class Settings(BaseSettings):
    """What an operator may set. A limit of 0 is off; times are seconds."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        env_file=".env",
        env_file_encoding="utf-8",
        env_ignore_empty=True,  # as Compose files and scripts leave a variable
        extra="ignore",
        hide_input_in_errors=True,
        frozen=True,
    )

    # where things are
    data_dir: Path = Path("data")
    secret_keys: Annotated[tuple[SecretStr, ...], NoDecode] = ()
    secret_keys_file: Path | None = None
    database_url: SecretStr | None = None
    database_url_file: Path | None = None
    database_pool: Annotated[int, Field(ge=1, le=100)] = 5
    broker_url: SecretStr = SecretStr("memory://")
    broker_url_file: Path | None = None
    broker_prefix: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,32}$")] = "authws"

    # who may come in from where
    public_origin: str = ""
    allowed_origins: Names = ()
    allowed_hosts: Names = ()
    trusted_proxies: Names = ()
    behind_proxy: bool = False
    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 8000
    tls_cert: Path | None = None
    tls_key: Path | None = None
    workers: Annotated[int, Field(ge=1)] = 1

    # tokens
    issuer: str = "authws"
    audience: str = "authws"
    signing_algorithm: Literal["HS256", "EdDSA", "ES256"] = "HS256"
    access_ttl: Annotated[float, Field(ge=1, le=86_400)] = 900
    ticket_ttl: Annotated[float, Field(ge=1, le=30)] = 30
    refresh_ttl: Annotated[float, Field(gt=0)] = 43_200
    leeway: Annotated[float, Field(ge=0, le=60)] = 0
    jwks_url: str = ""
    jwks_issuer: str = ""
    jwks_audience: str = ""
    jwks_token_types: Names = ("at+jwt",)
    jwks_max_lifetime: Annotated[float, Field(gt=0)] = 86_400

    # sessions
    session_idle_ttl: Seconds = 1800
    session_absolute_ttl: Annotated[float, Field(gt=0)] = 43_200

    # the three strategies
    refuse: Literal["after_accept", "before_accept"] = "after_accept"
    auth_timeout: Annotated[float, Field(gt=0, le=60)] = 5
    query_param_accepts: Literal["any", "ticket"] = "any"

    # limits on connections
    max_connections: Limit = 16_384
    max_connections_per_user: Limit = 100
    when_user_is_full: Literal["reject_new", "evict_oldest"] = "reject_new"
    max_connections_per_address: Limit | None = None
    max_unauthenticated: Limit = 4096
    max_unauthenticated_per_address: Limit | None = None
    handshake_rate: Rate | None = None

    # limits on messages
    max_message_bytes: Limit = 65_536
    max_first_message_bytes: Annotated[int, Field(gt=0)] = 8192
    message_rate: Rate = 500
    byte_rate: Rate = 16_777_216
    strikes: Limit = 10
    max_rooms: Limit = 100

    # rooms
    history: Names = DEFAULT_RULES
    history_bytes: Limit = 67_108_864
    max_presence: Limit = 1000
    presence_lease: Annotated[float, Field(ge=1, le=300)] = 10

    # slow and silent peers
    outbox_messages: Limit = 1024
    outbox_bytes: Limit = 1_048_576
    outbox_policy: Literal["close", "drop_oldest", "drop_newest"] = "close"
    ping_interval: Seconds = 20
    ping_timeout: Annotated[float, Field(gt=0)] = 20
    expiry_notice: Seconds = 60

    # limits on logins
    login_rate: Limit = 5
    password_hash_concurrency: Limit = 0

    # operations
    recheck_interval: Annotated[float, Field(gt=0, le=300)] = 5
    fail_closed_after: Seconds = 60
    drain: Annotated[int, Field(ge=0)] = 20
    security_log: str = "-"
    docs: bool = True

    @model_validator(mode="before")
    @classmethod
    def _read_files(cls, given: dict[str, Any]) -> dict[str, Any]:
        """Put what the files say where the settings are."""
        return {**given, **_said_by_files(given)}

    @field_validator(
        "allowed_origins",
        "allowed_hosts",
        "trusted_proxies",
        "history",
        "jwks_token_types",
        "secret_keys",
        mode="before",
    )
    @classmethod
    def _split(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        listed = re.split("[,\n]", value)  # a file has a line for each
        parts = tuple(part.strip() for part in listed if part.strip())
        if value and not parts:
            raise ValueError(
                "nothing stands between the commas; unset it, or list some"
            )
        return parts

    @property
    def is_tls(self) -> bool:
        """Whether this process itself speaks TLS."""
        return self.tls_cert is not None

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach the service."""
        return is_loopback(self.host)

    @property
    def is_exposed(self) -> bool:
        """Whether strangers can reach the service, through a proxy or directly."""
        return self.behind_proxy or not self.is_loopback

    @property
    def per_address(self) -> PerAddress:
        """The limits for one address: as set, else by who can reach the service."""
        usual = EXPOSED if self.is_exposed else LOCAL
        return PerAddress(
            _given(self.handshake_rate, usual.handshake_rate),
            _given(self.max_connections_per_address, usual.connections),
            _given(self.max_unauthenticated_per_address, usual.unauthenticated),
        )

    @property
    def is_secure(self) -> bool:
        """Whether browsers reach the service over https."""
        return self.is_tls or self.public_origin.lower().startswith("https://")

    @property
    def own_origins(self) -> tuple[str, ...]:
        """Where browsers find the service itself; nothing if it cannot know."""
        if self.public_origin:
            return (self.public_origin,)
        scheme = "https" if self.is_tls else "http"
        return tuple(f"{scheme}://{name}:{self.port}" for name in self._loopback_names)

    @property
    def origins(self) -> tuple[str, ...]:
        """The origins whose pages may connect: the service's own, and further ones."""
        return (*self.own_origins, *self.allowed_origins)

    @property
    def hosts(self) -> frozenset[str]:
        """The names that a Host header may carry: the service's own, and further ones;
        by default those of all origins, and of a loopback bind."""
        if self.allowed_hosts:
            own = {Origin.parse(text).host for text in self.own_origins}
            return frozenset(own.union(self.allowed_hosts))
        names = {Origin.parse(text).host for text in self.origins}
        return frozenset(names.union(self._loopback_names))

    @property
    def _loopback_names(self) -> tuple[str, ...]:
        """By which names the service is called on a loopback bind."""
        if not self.is_loopback:
            return ()
        bound = f"[{self.host}]" if ":" in self.host else self.host.lower()
        return tuple(dict.fromkeys(("127.0.0.1", "localhost", "[::1]", bound)))

    @property
    def database(self) -> str:
        """The database's URL; by default an SQLite file in the data directory."""
        if self.database_url is not None:
            return self.database_url.get_secret_value()
        return f"sqlite:///{(self.data_dir / 'authws.db').absolute()}"


def known_settings(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings as they were given by name, all of them known.

    Raises:
        ConfigurationError: one is not: misspelt, it would leave a default in force.
    """
    for name in given:
        # pydantic-settings' own, such as _env_file, begin so
        if name not in Settings.model_fields and not name.startswith("_"):
            near = nearest_setting(name)
            change = (
                f"did you mean {near}?" if near else "docs/settings.md has them all"
            )
            raise ConfigurationError(f"there is no setting {name!r:.80}; {change}")
    return dict(given)


def unknown_variables() -> list[str]:
    """Return the variables of our name that set nothing, from where settings come.

    Those are the environment and ``.env``; misspelt, a variable would leave a default
    in force and nobody would hear of it.
    """
    sources = (EnvSettingsSource(Settings), DotEnvSettingsSource(Settings))
    named = {name.upper() for source in sources for name in source.env_vars}
    settings = {f"{PREFIX}{name.upper()}" for name in Settings.model_fields}
    return sorted(
        name
        for name in named - settings
        if name.startswith(PREFIX) and not NO_SETTING.fullmatch(name)
    )


def nearest_setting(name: str) -> str | None:
    """Return the setting whose name is most like this one, if one is."""
    found = get_close_matches(name.lower(), Settings.model_fields, n=1)
    return found[0] if found else None


def _said_by_files(given: Mapping[str, Any]) -> dict[str, str]:
    """Read each secret whose file is named.

    Raises:
        ConfigurationError: a file cannot be used, or the secret was given beside it.
    """
    said = {}
    for name in FILED:
        path = given.get(f"{name}_file")
        if path is None:
            continue
        variable = f"{PREFIX}{name.upper()}"
        if given.get(name) is not None:
            raise ConfigurationError(
                f"{variable} and {variable}_FILE are both set; unset one"
            )
        try:
            said[name] = read_secret(Path(path))
        except ConfigurationError as error:
            raise ConfigurationError(f"{variable}_FILE: {error}") from None
    return said


def _given(value: N | None, usual: N) -> N:
    return usual if value is None else value
