"""The whole house, put together in one place from its settings."""

from __future__ import annotations

import asyncio
import contextlib

from authws import close_codes
from authws.brokers import open_broker
from authws.clock import Clock
from authws.decisions import gossip
from authws.decisions.history import HistoryRules
from authws.decisions.keys import SigningKey, derive_key
from authws.decisions.origins import HostPolicy, Origin, OriginPolicy
from authws.decisions.session_cookies import (
    COOKIE_NAME,
    SECURE_COOKIE_NAME,
    SessionCookieSigner,
)
from authws.decisions.tokens import Claims, TokenIssuer, TokenVerifier
from authws.decisions.verified_tokens import VerifiedTokens
from authws.exceptions import ConfigurationError, UnavailableError
from authws.live.authority import HouseAuthority, RemoteTokens, SessionRecords
from authws.live.carrier import Carrier
from authws.live.connection import ConnectionLimits
from authws.live.door import Door, DoorLimits
from authws.live.hub import Hub
from authws.live.security_log import SecurityLog
from authws.service.accounts import Accounts, Lifetimes
from authws.service.gate import HttpGate
from authws.service.key_files import load_secrets
from authws.service.login_throttle import LoginThrottle
from authws.service.metrics import Metrics
from authws.service.revocation_feed import RevocationFeed
from authws.service.roll import RollCall
from authws.service.settings import Settings
from authws.stores.database import Database, migrate
from authws.stores.key_sets import RemoteKeySet
from authws.stores.login_attempts import LoginAttempts
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
PURPOSE = "authws broker"
"""What the key that seals messages between workers is derived for."""


class House:
    """One process's worth of authws."""

    def __init__(
        self,
        settings: Settings,
        *,
        clock: Clock | None = None,
        owns_origin: bool = False,
    ) -> None:
        """Put it together; nothing is opened before ``start``.

        Args:
            settings: what an operator may set.
            clock: where the time is read.
            owns_origin: every path and cookie of the origin is ours. Otherwise they
                are somebody else's app's, and what we say is said of our routes only.

        Raises:
            ConfigurationError: a setting is unsafe or impossible.
        """
        self.settings = settings
        self.owns_origin = owns_origin
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
        self._broker_keys = tuple(
            derive_key(secret, PURPOSE) for secret in secrets.cookie_secrets
        )
        self.cookies = SessionCookieSigner(secrets.cookie_secrets)
        self.cookie_name = SECURE_COOKIE_NAME if settings.is_secure else COOKIE_NAME
        self.issuer = TokenIssuer(
            secrets.keyring,
            issuer=settings.issuer,
            audience=settings.audience,
            ticket_audience=ticket_audience(settings),
        )
        self._verified = VerifiedTokens[Claims, SigningKey]()
        self._access = TokenVerifier(
            secrets.keyring.get,
            issuer=settings.issuer,
            audience=settings.audience,
            kind="access",
            leeway=settings.leeway,
            max_lifetime=86_400,
            verified=self._verified,
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
                frozenset(Origin.parse(text) for text in settings.origins),
                takes_own_port=_is_port_unknown(settings),
            )
        except ValueError as exc:
            raise ConfigurationError(
                "AUTHWS_PUBLIC_ORIGIN and AUTHWS_ALLOWED_ORIGINS hold origins such as "
                f"https://app.example.com: {exc}"
            ) from None
        public = settings.public_origin
        if public and not Origin.parse(public).is_trustworthy:
            raise ConfigurationError(
                f"AUTHWS_PUBLIC_ORIGIN: {public} is http, and the session cookie would "
                "cross networks in the clear; set it to an https origin"
            )
        self.gate = HttpGate(
            hosts=HostPolicy(settings.hosts),
            log=self.log,
            # how a host is reached, and for how long, is for its owner to say
            secure=settings.is_secure and self.owns_origin,
        )

    def _put_together_stores(self) -> None:
        settings = self.settings
        self.database = Database(settings.database, pool=settings.database_pool)
        self.hasher = PasswordHasher(settings.password_hash_concurrency or None)
        self.users = Users(self.database, self.hasher, self.clock)
        self.sessions = Sessions(self.database, self.clock)
        self.refresh_tokens = RefreshTokens(self.database, self.clock)
        self.tickets = UsedTickets(self.database)
        self.attempts = LoginAttempts(self.database, self.clock)

    def _put_together_live(self) -> None:
        settings = self.settings
        try:
            history = HistoryRules(settings.history)
        except ValueError as error:
            raise ConfigurationError(f"AUTHWS_HISTORY: {error}") from None
        self.broker = open_broker(
            settings.broker_url.get_secret_value(),
            prefix=settings.broker_prefix,
            kept=history.kept,
            history_bytes=settings.history_bytes,
            clock=self.clock,
        )
        self.hub = Hub(
            Carrier(self.broker, self._broker_keys, self.clock),
            clock=self.clock,
            history=history,
            lease=settings.presence_lease,
            max_connections_per_user=settings.max_connections_per_user,
            when_full=settings.when_user_is_full,
            max_rooms=settings.max_rooms,
            max_presence=settings.max_presence,
            on_revoked=self.metrics.observe_revocation,
        )
        self.records = SessionRecords(
            self.sessions,
            self.hub.revocations,
            self.clock,
            on_extended=self._extend_session,
            on_evicted=self._verified.forget,
        )
        self.authority = HouseAuthority(
            access=self._access,
            ticket=self._ticket,
            cookies=self.cookies,
            records=self.records,
            tickets=self.tickets,
            clock=self.clock,
            foreign=self._foreign(),
            check_place=self.hub.check_place,
        )
        self.door = Door(
            self.hub,
            self.authority,
            self.log,
            clock=self.clock,
            limits=ConnectionLimits(
                max_message_bytes=settings.max_message_bytes,
                message_rate=settings.message_rate,
                byte_rate=settings.byte_rate,
                outbox_messages=settings.outbox_messages,
                outbox_bytes=settings.outbox_bytes,
                outbox_policy=settings.outbox_policy,
                strikes=settings.strikes,
                expiry_notice=settings.expiry_notice,
            ),
            door_limits=DoorLimits(
                handshake_rate=settings.per_address.handshake_rate,
                connections=settings.max_connections,
                connections_per_address=settings.per_address.connections,
                unauthenticated=settings.max_unauthenticated,
                unauthenticated_per_address=settings.per_address.unauthenticated,
            ),
            refuse=settings.refuse,
        )
        self.roll_call = RollCall(self.hub)
        self.feed = RevocationFeed(
            self.sessions,
            self.records,
            self.hub,
            self.broker,
            self.clock,
            interval=settings.recheck_interval,
            fail_closed_after=settings.fail_closed_after,
            went_blind=self._go_blind,
        )
        self.accounts = Accounts(
            users=self.users,
            sessions=self.sessions,
            refresh_tokens=self.refresh_tokens,
            issuer=self.issuer,
            cookies=self.cookies,
            records=self.records,
            feed=self.feed,
            throttle=LoginThrottle(settings.login_rate, self.attempts),
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
        self.hub.cluster.on(gossip.Extended, self._extended)
        self.metrics.watch(self.hub, self.door)
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
            clock=self.clock,
            timeout=settings.auth_timeout,
            max_bytes=settings.max_first_message_bytes,
        )
        self.session_cookie = SessionCookie(
            self.authority, self.origins, cookie_name=self.cookie_name
        )

    def _foreign(self) -> RemoteTokens | None:
        settings = self.settings
        self._key_set: RemoteKeySet | None = None
        issuer = (settings.jwks_url, settings.jwks_issuer, settings.jwks_audience)
        if not any(issuer):
            return None
        if not all(issuer):
            raise ConfigurationError(
                "AUTHWS_JWKS_URL, AUTHWS_JWKS_ISSUER and AUTHWS_JWKS_AUDIENCE go "
                "together: a key alone does not say whose tokens, for whom; set all "
                "three, or none"
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
            verified=VerifiedTokens(),
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
            *self.feed.start(),
            asyncio.create_task(self._prune()),
        ]

    async def stop(self) -> None:
        """Let go of everything; connections are the server's to end."""
        for task in self._background:
            task.cancel()
        await asyncio.gather(*self._background, return_exceptions=True)
        await self.hub.stop()
        if self._key_set is not None:
            await self._key_set.aclose()
        self.hasher.close()
        await self.database.dispose()

    async def is_ready(self) -> dict[str, bool]:
        """Tell which of the things a handshake needs can be reached."""
        has_entered = self.hub.cluster.has_entered
        reachable = {
            "database": True,
            "broker": await self.broker.ping() and has_entered,
        }
        try:
            await self.database.ping()
        except UnavailableError:
            reachable["database"] = False
        return reachable

    @property
    def is_draining(self) -> bool:
        """Whether the process is about to end, and takes nobody any more."""
        return self.door.is_closing

    @property
    def is_blind(self) -> bool:
        """Whether revocations could not be learnt of for too long: nobody is let in."""
        return self.door.is_blind

    async def drain(self, seconds: float) -> None:
        """Admit nobody any more, and end every connection within ``seconds``."""
        self.door.is_closing = True
        await self.hub.end_all(seconds)

    def _extend_session(self, session: str, expires_at: float) -> None:
        """A cookie's session was used again here: it lives until later everywhere."""
        self.hub.extend_session(session, expires_at)
        self.hub.cluster.tell_all(gossip.Extended(session, expires_at))

    def _extended(self, _: str, extended: gossip.Extended) -> None:
        self.records.evict(extended.session)
        self.hub.extend_session(extended.session, extended.expires_at)

    def _go_blind(self, is_blind: bool) -> None:
        """Fail closed while nothing is known of what was revoked."""
        self.door.is_blind = is_blind
        if is_blind:
            self.hub.end_everything(close_codes.TRY_AGAIN_LATER)

    async def _prune(self) -> None:
        while True:
            now = self.clock.now()
            self.hub.revocations.forget_before(now - 86_400)
            with contextlib.suppress(UnavailableError):
                await self.sessions.prune(now)
                await self.tickets.prune(now)
                await self.attempts.prune(now)
            await self.clock.sleep(PRUNE_EVERY)


def _is_port_unknown(settings: Settings) -> bool:
    """Tell whether nobody said where pages come from, and by which port.

    So it is in somebody else's app, whose server binds what it likes.
    """
    said = settings.model_fields_set & {"public_origin", "allowed_origins", "port"}
    return settings.is_loopback and not settings.behind_proxy and not said


def ticket_audience(settings: Settings) -> str:
    """The audience of tickets: the WebSocket endpoints, and nothing else."""
    return f"{settings.audience}/ws"
