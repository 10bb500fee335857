"""Every setting, with its default: ``AUTHWS_*`` in the environment or in ``.env``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, SecretStr, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

__all__ = ["Settings"]

Names = Annotated[tuple[str, ...], NoDecode]
"""A comma-separated list."""
Limit = Annotated[int, Field(ge=0)]
Seconds = Annotated[float, Field(ge=0)]


class Settings(BaseSettings):
    """What an operator may set. A limit of 0 is off; times are seconds."""

    model_config = SettingsConfigDict(
        env_prefix="AUTHWS_",
        env_file=".env",
        env_file_encoding="utf-8",
        extra="ignore",
        hide_input_in_errors=True,
        frozen=True,
    )

    # where things are
    data_dir: Path = Path("data")
    secret_keys: Annotated[tuple[SecretStr, ...], NoDecode] = ()
    database_url: SecretStr | None = None
    broker_url: SecretStr = SecretStr("memory://")

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
    access_ttl: Annotated[float, Field(gt=0, le=86_400)] = 900
    ticket_ttl: Annotated[float, Field(gt=0, le=30)] = 30
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

    # limits
    max_message_bytes: Limit = 65_536
    max_first_message_bytes: Annotated[int, Field(gt=0)] = 8192
    max_connections_per_user: Limit = 100
    max_connections_per_address: Limit = 0
    max_rooms: Limit = 100
    handshake_rate: Annotated[float, Field(ge=0)] = 0
    message_rate: Annotated[float, Field(ge=0)] = 500
    login_rate: Limit = 5
    outbox_messages: Limit = 1024
    outbox_bytes: Limit = 1_048_576
    strikes: Limit = 10
    password_hash_concurrency: Limit = 0

    # operations
    recheck_interval: Annotated[float, Field(gt=0, le=300)] = 5
    drain: Annotated[int, Field(ge=0)] = 20
    security_log: str = "-"
    docs: bool = True

    @field_validator(
        "allowed_origins",
        "allowed_hosts",
        "trusted_proxies",
        "jwks_token_types",
        "secret_keys",
        mode="before",
    )
    @classmethod
    def _split(cls, value: object) -> object:
        if isinstance(value, str):
            return tuple(part.strip() for part in value.split(",") if part.strip())
        return value

    @property
    def is_tls(self) -> bool:
        """Whether this process itself speaks TLS."""
        return self.tls_cert is not None

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach the service."""
        return self.host in {"127.0.0.1", "localhost", "::1"} or (
            self.host.startswith("127.")
        )

    @property
    def is_secure(self) -> bool:
        """Whether browsers reach the service over https."""
        return self.is_tls or self.public_origin.lower().startswith("https://")

    @property
    def origins(self) -> tuple[str, ...]:
        """The origins whose pages may connect; by default the service's own."""
        configured = (*filter(None, [self.public_origin]), *self.allowed_origins)
        if configured:
            return configured
        scheme = "https" if self.is_tls else "http"
        if not self.is_loopback:
            return ()
        return tuple(
            f"{scheme}://{host}:{self.port}"
            for host in ("127.0.0.1", "localhost", "[::1]")
        )

    @property
    def hosts(self) -> frozenset[str]:
        """The names that a Host header may carry; by default those of the origins."""
        if self.allowed_hosts:
            return frozenset(self.allowed_hosts)
        from authws.decisions.origins import Origin

        names = {Origin.parse(text).host for text in self.origins}
        if self.is_loopback:
            names |= {"127.0.0.1", "localhost", "[::1]"}
        return frozenset(names)

    @property
    def database(self) -> str:
        """The database's URL; by default an SQLite file in the data directory."""
        if self.database_url is not None:
            return self.database_url.get_secret_value()
        return f"sqlite:///{(self.data_dir / 'authws.db').absolute()}"
