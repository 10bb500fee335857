"""The whole house, put together in one place from its settings."""

from __future__ import annotations

import asyncio
import contextlib
import logging

from authws.brokers.base import Broker
from authws.brokers.memory import MemoryBroker
from authws.clock import Clock
from authws.decisions.origins import HostPolicy, Origin, OriginPolicy
from authws.decisions.session_cookies import (
    COOKIE_NAME,
    SECURE_COOKIE_NAME,
    SessionCookieSigner,
)
from authws.decisions.tokens import TokenIssuer, TokenVerifier
from authws.exceptions import ConfigurationError, UnavailableError
from authws.live.authority import HouseAuthority, RemoteTokens, SessionRecords
from authws.live.connection import ConnectionLimits
from authws.live.door import Door
from authws.live.hub import Hub
from authws.live.security_log import SecurityLog
from authws.service.accounts import Accounts, Lifetimes
from authws.service.key_files import load_secrets
from authws.service.login_throttle import LoginThrottle
from authws.service.metrics import Metrics
from authws.service.settings import Settings
from authws.stores.database import Database, migrate
from authws.stores.key_sets import RemoteKeySet
from authws.stores.passwords import PasswordHasher
from authws.stores.refresh_tokens import RefreshTokens
from authws.stores.sessions import Sessions
from authws.stores.tickets import UsedTickets
from authws.stores.users import Users
from authws.strategies.first_message import FirstMessage
from authws.strategies.query_param import QueryParam
from authws.strategies.session_cookie import SessionCookie

__all__ = ["House", "ticket_audience"]

PRUNE_EVERY = 300.0
OVERLAP = 10.0
"""Seconds that revocations are read again: transactions show later than their time."""

logger = logging.getLogger("authws")


class House:
    """One process's worth of authws."""

    def __init__(self, settings: Settings, *, clock: Clock | None = None) -> None:
        """Put it together; nothing is opened before ``start``.

        Raises:
            ConfigurationError: a setting is unsafe or impossible.
        """
        self.settings = settings
        self.clock = clock or Clock()
        self.metrics = Metrics()
        self.log = SecurityLog(self.clock, self.metrics.count_event)
        self._put_together_decisions()
        self._put_together_stores()
        self._put_together_live()
        self._background: list[asyncio.Task[None]] = []

    # ---------------------------------------------------------------- putting together

    def _put_together_decisions(self) -> None:
        settings = self.settings
        secrets = load_secrets(settings)
        self.keyring = secrets.keyring
        self.cookies = SessionCookieSigner(secrets.cookie_secrets)
        self.cookie_name = SECURE_COOKIE_NAME if settings.is_secure else COOKIE_NAME
        self.issuer = TokenIssuer(
            secrets.keyring,
            issuer=settings.issuer,
            audience=settings.audience,
            ticket_audience=ticket_audience(settings),
        )
        self._access = TokenVerifier(
            secrets.keyring.get,
            issuer=settings.issuer,
            audience=settings.audience,
            kind="access",
            leeway=settings.leeway,
            max_lifetime=86_400,
        )
        self._ticket = TokenVerifier(
            secrets.keyring.get,
            issuer=settings.issuer,
            audience=ticket_audience(settings),
            kind="ticket",
            leeway=settings.leeway,
            max_lifetime=settings.ticket_ttl,
        )
        try:
            self.origins = OriginPolicy(
                frozenset(Origin.parse(text) for text in settings.origins)
            )
        except ValueError as exc:
            raise ConfigurationError(
                "AUTHWS_PUBLIC_ORIGIN and AUTHWS_ALLOWED_ORIGINS hold origins such as "
                f"https://app.example.com: {exc}"
            ) from None
        self.hosts = HostPolicy(settings.hosts)

    def _put_together_stores(self) -> None:
        settings = self.settings
        self.database = Database(settings.database)
        self.hasher = PasswordHasher(settings.password_hash_concurrency or None)
        self.users = Users(self.database, self.hasher, self.clock)
        self.sessions = Sessions(self.database, self.clock)
        self.refresh_tokens = RefreshTokens(self.database, self.clock)
        self.tickets = UsedTickets(self.database)

    def _put_together_live(self) -> None:
        settings = self.settings
        self.broker: Broker = _broker(settings)
        self.hub = Hub(
            self.broker,
            clock=self.clock,
            max_connections_per_user=settings.max_connections_per_user,
            max_rooms=settings.max_rooms,
        )
        self.records = SessionRecords(self.sessions, self.hub.revocations, self.clock)
        self.authority = HouseAuthority(
            access=self._access,
            ticket=self._ticket,
            cookies=self.cookies,
            records=self.records,
            tickets=self.tickets,
            clock=self.clock,
            foreign=self._foreign(),
        )
        self.door = Door(
            self.hub,
            self.authority,
            self.log,
            clock=self.clock,
            limits=ConnectionLimits(
                max_message_bytes=settings.max_message_bytes,
                message_rate=settings.message_rate,
                outbox_messages=settings.outbox_messages,
                outbox_bytes=settings.outbox_bytes,
                strikes=settings.strikes,
            ),
            refuse=settings.refuse,
            handshake_rate=settings.handshake_rate,
            max_connections_per_address=settings.max_connections_per_address,
        )
        self.accounts = Accounts(
            users=self.users,
            sessions=self.sessions,
            refresh_tokens=self.refresh_tokens,
            issuer=self.issuer,
            cookies=self.cookies,
            records=self.records,
            hub=self.hub,
            throttle=LoginThrottle(settings.login_rate, self.clock),
            log=self.log,
            clock=self.clock,
            lifetimes=Lifetimes(
                access=settings.access_ttl,
                ticket=settings.ticket_ttl,
                refresh=settings.refresh_ttl,
                session_idle=settings.session_idle_ttl,
                session_absolute=settings.session_absolute_ttl,
            ),
        )
        self.metrics.watch(self.hub)
        self._put_together_strategies()

    def _put_together_strategies(self) -> None:
        settings = self.settings
        self.query_param = QueryParam(
            self.authority,
            self.origins,
            cookie_name=self.cookie_name,
            accepts="any" if settings.query_param_accepts == "any" else "ticket",
        )
        self.first_message = FirstMessage(
            self.authority,
            self.origins,
            cookie_name=self.cookie_name,
            timeout=settings.auth_timeout,
            max_bytes=settings.max_first_message_bytes,
        )
        self.session_cookie = SessionCookie(
            self.authority, self.origins, cookie_name=self.cookie_name
        )

    def _foreign(self) -> RemoteTokens | None:
        settings = self.settings
        self._key_set: RemoteKeySet | None = None
        if not settings.jwks_url:
            return None
        if not settings.jwks_issuer or not settings.jwks_audience:
            raise ConfigurationError(
                "AUTHWS_JWKS_URL needs AUTHWS_JWKS_ISSUER and AUTHWS_JWKS_AUDIENCE: "
                "a key alone does not say whose tokens, for whom"
            )
        self._key_set = RemoteKeySet(settings.jwks_url, clock=self.clock)
        verifier = TokenVerifier(
            self._key_set.get,
            issuer=settings.jwks_issuer,
            audience=settings.jwks_audience,
            kind="access",
            leeway=settings.leeway,
            max_lifetime=settings.jwks_max_lifetime,
            types=settings.jwks_token_types,
            require_session=False,
        )
        return RemoteTokens(self._key_set, verifier, self.keyring.get)

    # ------------------------------------------------------------------ start and stop

    async def start(self) -> None:
        """Bring the database up to date and begin to serve.

        Raises:
            ConfigurationError, UnavailableError: it cannot.
        """
        await asyncio.to_thread(migrate, self.settings.database)
        await asyncio.to_thread(self.hasher.self_test)
        await self.hub.start()
        self._background = [
            asyncio.create_task(self._watch_revocations()),
            asyncio.create_task(self._prune()),
        ]

    async def stop(self) -> None:
        """Let go of everything; connections are the server's to end."""
        for task in self._background:
            task.cancel()
        await asyncio.gather(*self._background, return_exceptions=True)
        await self.broker.stop()
        if self._key_set is not None:
            await self._key_set.aclose()
        self.hasher.close()
        await self.database.dispose()

    async def is_ready(self) -> dict[str, bool]:
        """Tell which of the things a handshake needs can be reached."""
        reachable = {"database": True, "broker": await self.broker.ping()}
        try:
            await self.database.ping()
        except UnavailableError:
            reachable["database"] = False
        return reachable

    async def _watch_revocations(self) -> None:
        """Act on what other processes revoke: a lost push heals here."""
        since = self.clock.now() - OVERLAP
        seen: set[tuple[str, str, float]] = set()
        while True:
            await asyncio.sleep(self.settings.recheck_interval)
            started = self.clock.now()
            try:
                revocations = await self.sessions.revocations_since(since)
            except UnavailableError as error:
                logger.warning("revocations could not be read: %s", error)
                continue
            for revocation in revocations:
                key = (revocation.kind, revocation.key, revocation.at)
                if key not in seen:
                    self.accounts.forget(revocation.kind, revocation.key, revocation.at)
            since = started - OVERLAP
            seen = {(r.kind, r.key, r.at) for r in revocations}

    async def _prune(self) -> None:
        while True:
            now = self.clock.now()
            self.hub.revocations.forget_before(now - 86_400)
            with contextlib.suppress(UnavailableError):
                await self.sessions.prune(now)
                await self.tickets.prune(now)
            await asyncio.sleep(PRUNE_EVERY)


def ticket_audience(settings: Settings) -> str:
    """The audience of tickets: the WebSocket endpoints, and nothing else."""
    return f"{settings.audience}/ws"


def _broker(settings: Settings) -> Broker:
    url = settings.broker_url.get_secret_value()
    if url == "memory://":
        return MemoryBroker()
    scheme = url.partition("://")[0]
    raise ConfigurationError(
        f"AUTHWS_BROKER_URL: no broker for {scheme!r:.20}; this release has memory://"
    )
