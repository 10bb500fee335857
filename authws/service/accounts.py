"""What a person does with an account: log in, refresh, log out, change a password."""

from __future__ import annotations

import asyncio
import secrets
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from authws.clock import Clock
from authws.decisions.limits import Limit, household
from authws.decisions.session_cookies import SessionCookieSigner, session_digest
from authws.decisions.tokens import TokenIssuer
from authws.exceptions import (
    AuthError,
    ExpiredTokenError,
    ForbiddenError,
    InvalidTokenError,
    LimitError,
    RateLimitedError,
    RevokedTokenError,
)
from authws.live.authority import SessionRecords
from authws.live.security_log import SecurityLog
from authws.principal import Principal
from authws.service.login_throttle import LoginThrottle
from authws.service.revocation_feed import RevocationFeed
from authws.stores.refresh_tokens import RefreshTokens
from authws.stores.sessions import Revocation, SessionKind, Sessions, UserChangedError
from authws.stores.users import (
    InvalidUsernameError,
    User,
    Users,
    normalize_username,
)

__all__ = [
    "Accounts",
    "BadCredentialsError",
    "Client",
    "Ended",
    "Lifetimes",
    "Tokens",
]

MAX_WAITING = 256
"""Logins from one address that may wait for one another."""


class BadCredentialsError(InvalidTokenError):
    """No such user, or not the password; the two are told apart by nobody."""


@dataclass(frozen=True, slots=True)
class Lifetimes:
    """How long things last, in seconds."""

    access: float
    ticket: float
    refresh: float
    session_idle: float
    session_absolute: float


@dataclass(frozen=True, slots=True)
class Client:
    """Where a request comes from."""

    address: str
    user_agent: str


@dataclass(frozen=True, slots=True)
class Tokens:
    """What a login gives."""

    access_token: str
    expires_in: int
    refresh_token: str


@dataclass(frozen=True, slots=True)
class Ended:
    """How much an administrator ended."""

    sessions: int
    sockets: int
    """On all workers that answered."""


class Accounts:
    """Every change of what somebody may do goes through here, and is logged here."""

    def __init__(
        self,
        *,
        users: Users,
        sessions: Sessions,
        refresh_tokens: RefreshTokens,
        issuer: TokenIssuer,
        cookies: SessionCookieSigner,
        records: SessionRecords,
        feed: RevocationFeed,
        throttle: LoginThrottle,
        log: SecurityLog,
        clock: Clock,
        lifetimes: Lifetimes,
    ) -> None:
        self._users = users
        self._sessions = sessions
        self._refresh_tokens = refresh_tokens
        self._issuer = issuer
        self._cookies = cookies
        self._records = records
        self._feed = feed
        self._throttle = throttle
        self._log = log
        self._clock = clock
        self._lifetimes = lifetimes
        self._turns: defaultdict[str, _Turn] = defaultdict(_Turn)

    # ------------------------------------------------------------------------- logins

    async def log_in(self, username: str, password: str, client: Client) -> Tokens:
        """Open a session of tokens.

        Raises:
            BadCredentialsError: unknown, disabled, or the wrong password.
            RateLimitedError: too many failures; the password was not looked at.
        """
        user = await self._authenticate(username, password, client)
        session = session_digest(secrets.token_urlsafe(32))
        await self._open(session, "token", user, self._lifetimes.refresh, client)
        return await self._issue(session, user.name, user.scopes)

    async def open_session(self, username: str, password: str, client: Client) -> str:
        """Open a cookie's session; return the cookie's value.

        Raises:
            BadCredentialsError, RateLimitedError: as ``log_in``.
        """
        user = await self._authenticate(username, password, client)
        secret_id = self._cookies.new()
        session = session_digest(secret_id)
        await self._open(session, "cookie", user, self._lifetimes.session_idle, client)
        return self._cookies.sign(secret_id)

    async def refresh(self, refresh_token: str, client: Client) -> Tokens:
        """Rotate a refresh token (RFC 9700, 4.14.2).

        Raises:
            InvalidTokenError, ExpiredTokenError, RevokedTokenError: and for a token
                that was used before, the whole session is ended.
        """
        redeemed = await self._refresh_tokens.redeem(refresh_token, self._clock.now())
        if redeemed is None:
            unknown = InvalidTokenError("no such refresh token")
            raise self._refused("refresh_refused", unknown, client)
        session = redeemed.session_id
        if redeemed.reused:
            await self._revoke(session)
            reused = RevokedTokenError("a used refresh token came back")
            raise self._refused("refresh_reused", reused, client, session=session[:8])
        # from the row itself: what is granted here outlives every re-read of a cache
        self._records.evict(session)
        record = await self._records.get(session)
        if record is None or self._records.is_revoked(record):
            ended = RevokedTokenError("the session was ended")
            raise self._refused("refresh_refused", ended, client, session=session[:8])
        if redeemed.expired or record.expires_at <= self._clock.now():
            expired = ExpiredTokenError("the refresh token has expired")
            raise self._refused("refresh_refused", expired, client, session=session[:8])
        await self._sessions.touch(session, self._clock.now())
        self._records.evict(session)
        return await self._issue(session, record.subject, record.user_scopes)

    def ticket(self, principal: Principal) -> tuple[str, int]:
        """Return a single-use ticket and its life in seconds."""
        now = self._clock.now()
        expires_at = min(now + self._lifetimes.ticket, principal.expires_at)
        ticket = self._issuer.ticket(
            principal.subject,
            principal.session,
            principal.scopes,
            now=now,
            expires_at=expires_at,
            connect_until=principal.expires_at,
        )
        return ticket, int(expires_at - now)

    # ------------------------------------------------------------------------ endings

    async def end_session(self, session: str, why: str, subject: str = "") -> None:
        """End a session: its tokens, its tickets, its sockets. Idempotent."""
        ended = await self._revoke(session)
        self._log.write(
            "session_ended", reason=why, subject=subject, sockets=str(ended)
        )

    async def end_own_session(self, principal: Principal, session: str) -> bool:
        """End one of a person's own sessions; False if they have no such session."""
        record = await self._records.get(session)
        if record is None or record.subject != principal.subject:
            return False
        await self.end_session(session, "ended_by_user", principal.subject)
        return True

    async def change_password(
        self, principal: Principal, current: str, new: str, client: Client
    ) -> None:
        """Change one's own password, and end one's other sessions.

        Raises:
            ForbiddenError: the current password is wrong.
            PasswordError: the new one is refused.
            RateLimitedError: too many wrong ones.
        """
        try:
            user = await self._authenticate(principal.subject, current, client)
        except BadCredentialsError:
            wrong = ForbiddenError("the current password is wrong")
            wrong.is_logged = True  # as the failed login that it is
            raise wrong from None
        try:
            others = await self._users.set_password(
                user.name,
                new,
                except_session=principal.session,
                as_of=user.updated_at,
            )
        except UserChangedError:
            # another change came first: what was given is not the password any more
            raise ForbiddenError("the current password was just changed") from None
        for revocation in others:
            self._feed.end(revocation)
        self._log.write(
            "password_changed",
            subject=user.name,
            address=client.address,
            sessions_ended=str(len(others)),
        )

    async def disconnect(self, subject: str, by: Principal, client: Client) -> Ended:
        """End all that a user has opened up to now. Idempotent.

        Raises:
            UnknownUserError: there is no such user.
        """
        sessions, revocation = await self._users.disconnect(subject)
        sockets = await self._feed.end_everywhere(revocation)
        self._log.write(
            "admin_disconnect",
            subject=revocation.key,
            address=client.address,
            by=by.subject,
            by_issuer=by.issuer,
            sessions=str(sessions),
            sockets=str(sockets),
        )
        return Ended(sessions, sockets)

    async def end_any_session(
        self, session: str, by: Principal, client: Client
    ) -> bool:
        """End anybody's session. Idempotent; False if there is no such session."""
        record = await self._records.get(session)
        if record is None:
            return False
        at = self._clock.now()
        await self._sessions.revoke(session)
        sockets = await self._feed.end_everywhere(Revocation("session", session, at))
        self._log.write(
            "admin_session_ended",
            subject=record.subject,
            address=client.address,
            by=by.subject,
            by_issuer=by.issuer,
            session=session[:8],
            sockets=str(sockets),
        )
        return True

    # ---------------------------------------------------------------------- internals

    async def _authenticate(self, username: str, password: str, client: Client) -> User:
        account = _account(username)
        address = household(client.address)
        async with self._turn(address):
            try:
                async with self._throttle.attempt(account, address) as outcome:
                    user = await self._users.authenticate(username, password)
                    outcome.is_success = user is not None
            except RateLimitedError as error:
                raise self._refused(
                    "login_throttled", error, client, subject=account
                ) from None
        if user is None:
            wrong = BadCredentialsError("unknown user or wrong password")
            raise self._refused("login_failed", wrong, client, subject=account)
        return user

    @asynccontextmanager
    async def _turn(self, address: str) -> AsyncIterator[None]:
        """Take logins from one address one by one: what is under way counts as failed,
        and would refuse others of one office who come at once."""
        turn = self._turns[address]
        if turn.waiting >= MAX_WAITING:
            raise RateLimitedError(
                "too many logins at once from one address", Limit.LOGIN_RATE
            )
        turn.waiting += 1
        try:
            async with turn.lock:
                yield
        finally:
            turn.waiting -= 1
            if not turn.waiting:
                self._turns.pop(address, None)

    async def _open(
        self,
        session: str,
        kind: SessionKind,
        user: User,
        idle_ttl: float,
        client: Client,
    ) -> None:
        try:
            await self._sessions.create(
                id=session,
                subject=user.name,
                kind=kind,
                idle_ttl=idle_ttl,
                expires_at=self._clock.now() + self._lifetimes.session_absolute,
                user_agent=client.user_agent,
                address=client.address,
                user_as_of=user.updated_at,
            )
        except UserChangedError as error:
            late = BadCredentialsError(str(error))
            raise self._refused(
                "login_failed", late, client, subject=user.name
            ) from None
        self._log.write("login", subject=user.name, address=client.address)

    async def _issue(
        self, session: str, subject: str, scopes: frozenset[str]
    ) -> Tokens:
        now = self._clock.now()
        record = await self._records.get(session)
        if record is None:
            raise InvalidTokenError("the session is gone")
        expires_at = min(now + self._lifetimes.access, record.expires_at)
        access = self._issuer.access(
            subject, session, scopes, now=now, expires_at=expires_at
        )
        refresh = await self._refresh_tokens.issue(
            session, min(now + self._lifetimes.refresh, record.expires_at)
        )
        return Tokens(access, int(expires_at - now), refresh)

    async def _revoke(self, session: str) -> int:
        # first to the database, then to the sockets: what survives is the truth
        at = self._clock.now()
        await self._sessions.revoke(session)
        return self._feed.end(Revocation("session", session, at))

    def _refused(
        self, event: str, error: AuthError, client: Client, **who: str
    ) -> AuthError:
        """Write a refusal to the security log under a name of its own."""
        wrong = isinstance(error, BadCredentialsError)
        reason = "credentials_invalid" if wrong else error.close.reason
        limit = error.limit if isinstance(error, LimitError) else ""
        self._log.write(
            event, reason=reason, address=client.address, limit=limit, **who
        )
        error.is_logged = True
        return error


class _Turn:
    __slots__ = ("lock", "waiting")

    def __init__(self) -> None:
        self.lock = asyncio.Lock()
        self.waiting = 0


def _account(username: str) -> str:
    """The name under which failures are counted, also for what is no user's name."""
    try:
        return normalize_username(username)
    except InvalidUsernameError:
        return username.casefold()[:64]
