"""Credentials in, a principal out: verified by decisions, believed by the records.

A token's signature says what we once granted; the session's record says whether it
still holds. Records are read once at the door and cached; what ends a session evicts
it, and ``RevocationSnapshot`` covers the time in between.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Protocol

from authws.clock import Clock
from authws.decisions.revocations import RevocationSnapshot
from authws.decisions.session_cookies import SessionCookieSigner, session_digest
from authws.decisions.tokens import Claims, TokenVerifier, key_id
from authws.exceptions import (
    ChangedSubjectError,
    ExpiredSessionError,
    ExpiredTokenError,
    InvalidSessionError,
    InvalidTokenError,
    MalformedCredentialError,
    RevokedSessionError,
    RevokedTokenError,
    UsedTicketError,
)
from authws.principal import Principal, common_scopes
from authws.stores.key_sets import RemoteKeySet
from authws.stores.sessions import SessionRecord, Sessions
from authws.stores.tickets import UsedTickets
from authws.strategies.base import Accepts

__all__ = ["ForeignTokens", "HouseAuthority", "RemoteTokens", "SessionRecords"]

MAX_CACHED_RECORDS = 65_536
TOUCH_EVERY = 60.0
"""Seconds between two writes of a session's last use; a share of the idle limit."""


class ForeignTokens(Protocol):
    """Verifies the tokens of another issuer, whose keys may have to be fetched."""

    async def verify(self, token: str, *, now: float) -> Claims:
        """Return the claims, or raise an AuthError."""


class RemoteTokens:
    """Verifies against a foreign issuer's published keys (RFC 7517)."""

    def __init__(
        self,
        keys: RemoteKeySet,
        verifier: TokenVerifier,
        is_own_key: Callable[[str], object],
    ) -> None:
        """``verifier`` looks its keys up in ``keys``.

        A token that names a key of this service's own was refused by that key, and
        depends on nobody's key set: ``is_own_key`` is true of such a key's id.
        """
        self._keys = keys
        self._verifier = verifier
        self._is_own_key = is_own_key

    async def verify(self, token: str, *, now: float) -> Claims:
        """Verify; fetch the keys first if the token names one not known.

        Raises:
            AuthError: the token is refused.
        """
        kid = key_id(token)
        if kid is None:
            raise InvalidTokenError("token names no key")
        if self._is_own_key(kid):
            raise InvalidTokenError("our own key did not sign this for this use")
        await self._keys.ensure(kid)
        return self._verifier.verify(token, now=now)


class SessionRecords:
    """The sessions' rows, cached until something ends or changes them."""

    def __init__(
        self,
        sessions: Sessions,
        revocations: RevocationSnapshot,
        clock: Clock,
        *,
        on_extended: Callable[[str, float], None] = lambda session, until: None,
        on_evicted: Callable[[str], None] = lambda session: None,
    ) -> None:
        """``on_extended`` is told a session's new end whenever it was used again,
        ``on_evicted`` of each session of which nothing must be remembered any more."""
        self._sessions = sessions
        self._revocations = revocations
        self._clock = clock
        self._on_extended = on_extended
        self._on_evicted = on_evicted
        self._cached: OrderedDict[str, SessionRecord] = OrderedDict()

    async def get(self, session: str) -> SessionRecord | None:
        """Return a session's record, live or ended; None if there is none."""
        record = self._cached.get(session)
        if record is not None:
            self._cached.move_to_end(session)
            return record
        record = await self._sessions.load(session)
        # also not what was ended while it was being read: nothing would evict it
        if record is not None and not self.is_revoked(record):
            self._cached[session] = record
            if len(self._cached) > MAX_CACHED_RECORDS:
                self._cached.popitem(last=False)
        return record

    def is_revoked(self, record: SessionRecord) -> bool:
        """Tell whether a session was ended, as far as this process knows by now."""
        return (
            record.revoked_at is not None
            or record.user_disabled
            or self._revocations.covers(record.id, record.subject, record.created_at)
        )

    def evict(self, session: str) -> None:
        """Read this session's row again when it is next asked for."""
        self._cached.pop(session, None)
        self._on_evicted(session)

    def evict_subject(self, subject: str) -> None:
        """Read all rows of a subject again when they are next asked for."""
        for record in [r for r in self._cached.values() if r.subject == subject]:
            self.evict(record.id)

    async def is_over(self, record: SessionRecord) -> bool:
        """Tell whether a session is at its idle or absolute limit."""
        now = self._clock.now()
        if _deadline(record) > now:
            return False
        # another process may have seen it in use since we read the row
        self.evict(record.id)
        fresh = await self.get(record.id)
        return fresh is None or _deadline(fresh) <= now

    async def idle_until(self, record: SessionRecord) -> float:
        """Note that a session is in use; return when it ends if it is used no more.

        Raises:
            ExpiredSessionError: it was over already.
        """
        if await self.is_over(record):
            raise ExpiredSessionError("the session reached its time limit")
        record = await self.get(record.id) or record
        now = self._clock.now()
        if now - record.last_seen_at >= min(TOUCH_EVERY, record.idle_ttl / 10 or 60):
            await self._sessions.touch(record.id, now)
            self.evict(record.id)
            record = await self.get(record.id) or record
            self._on_extended(record.id, _deadline(record))
        return _deadline(record)


def _deadline(record: SessionRecord) -> float:
    if record.idle_ttl <= 0:
        return record.expires_at
    return min(record.expires_at, record.last_seen_at + record.idle_ttl)


class HouseAuthority:
    """Believes this service's own tokens, tickets and sessions, and those of one
    foreign issuer if it is given."""

    def __init__(
        self,
        *,
        access: TokenVerifier,
        ticket: TokenVerifier,
        cookies: SessionCookieSigner,
        records: SessionRecords,
        tickets: UsedTickets,
        clock: Clock,
        foreign: ForeignTokens | None = None,
        check_place: Callable[[Principal], None] = lambda principal: None,
    ) -> None:
        """``check_place`` refuses whoever could not open another connection now."""
        self._access = access
        self._ticket = ticket
        self._cookies = cookies
        self._records = records
        self._tickets = tickets
        self._clock = clock
        self._foreign = foreign
        self._check_place = check_place

    async def by_token(
        self,
        token: str,
        *,
        strategy: str,
        accepts: Accepts = "any",
        cookies_beside: Sequence[str] = (),
        opening: bool = False,
    ) -> Principal:
        claims, own = await self._claims(token, accepts)
        await self._check_cookies(cookies_beside, claims, own)
        if not own:
            return _foreign_principal(claims, strategy)
        principal = await self._believe(claims, strategy)
        if claims.kind == "ticket":
            if opening:  # not used up in vain: whoever is full may try it again
                self._check_place(principal)
            if not await self._tickets.redeem(claims.token_id, claims.expires_at):
                raise UsedTicketError("the ticket was used before")
        return principal

    async def by_cookie(self, value: str) -> Principal:
        record = await self._records.get(session_digest(self._cookies.unsign(value)))
        if record is None or record.kind != "cookie":
            raise InvalidSessionError("the cookie names no session")
        if self._records.is_revoked(record):
            raise RevokedSessionError("the session was ended")
        return Principal(
            subject=record.subject,
            scopes=record.user_scopes,
            expires_at=await self._records.idle_until(record),
            session=record.id,
            strategy="session_cookie",
            authenticated_at=record.created_at,
        )

    async def sessions_of(self, cookies: Sequence[str]) -> list[SessionRecord]:
        """Return the sessions that cookies name and nobody has ended yet.

        What we did not sign, or no session answers to, is passed over. A session at
        its time limit is among them: what was opened by its tickets may live on.

        Raises:
            UnavailableError: they cannot be read.
        """
        found: dict[str, SessionRecord] = {}
        for value in cookies:
            try:
                session = session_digest(self._cookies.unsign(value))
            except InvalidSessionError:
                continue
            record = await self._records.get(session)
            if record is None or record.kind != "cookie":
                continue
            if not self._records.is_revoked(record):
                found[session] = record
        return list(found.values())

    async def renew(self, token: str, current: Principal) -> Principal:
        """Verify a token that a live connection presents; it stays who it is.

        Raises:
            ChangedSubjectError: another subject or session.
            AuthError: the token is refused.
        """
        fresh = await self.by_token(token, strategy=current.strategy)
        if (fresh.subject, fresh.session, fresh.issuer) != (
            current.subject,
            current.session,
            current.issuer,
        ):
            raise ChangedSubjectError("a renewal from another subject or session")
        return fresh

    async def still_holds(self, principal: Principal) -> bool:
        """Tell whether nothing ended the session while the door was opening."""
        if principal.issuer:
            return True
        record = await self._records.get(principal.session)
        return record is not None and not self._records.is_revoked(record)

    async def _claims(self, token: str, accepts: Accepts) -> tuple[Claims, bool]:
        """Return the claims, and whether they are our own."""
        now = self._clock.now()
        refusal = InvalidTokenError("no verifier takes such a token")
        for kind, verifier in (("access", self._access), ("ticket", self._ticket)):
            if accepts not in ("any", kind):
                continue
            try:
                return verifier.verify(token, now=now), True
            except InvalidTokenError as error:
                refusal = error
        if self._foreign is not None and accepts != "ticket":
            return await self._foreign.verify(token, now=now), False
        try:
            raise refusal
        finally:
            del refusal  # it holds this frame, by its traceback, as this frame holds it

    async def _check_cookies(
        self, cookies: Sequence[str], claims: Claims, own: bool
    ) -> None:
        """Refuse a token of one beside a live session of another (RFC 6750, section 2).

        A browser sends its cookie whether a page wants that or not: one that opens
        nothing, or opens it for the same user, contradicts no token.
        """
        for record in await self.sessions_of(cookies):
            if own and record.subject == claims.subject:
                continue
            if not await self._records.is_over(record):
                raise MalformedCredentialError("the cookie of another beside the token")

    async def _believe(self, claims: Claims, strategy: str) -> Principal:
        record = await self._records.get(claims.session)
        if record is None or record.subject != claims.subject:
            raise InvalidTokenError("the token names no session of its subject")
        if self._records.is_revoked(record):
            raise RevokedTokenError("the token's session was ended")
        if record.expires_at <= self._clock.now():
            raise ExpiredTokenError("the token's session reached its absolute limit")
        return Principal(
            subject=claims.subject,
            # the record wins: a scope taken from the user is gone from the token
            scopes=common_scopes(claims.scopes, record.user_scopes),
            expires_at=min(claims.connect_until, record.expires_at),
            session=claims.session,
            strategy=strategy,
            authenticated_at=record.created_at,
        )


def _foreign_principal(claims: Claims, strategy: str) -> Principal:
    return Principal(
        subject=claims.subject,
        scopes=claims.scopes,
        expires_at=claims.connect_until,
        session=claims.session,
        strategy=strategy,
        authenticated_at=claims.issued_at,
        issuer=claims.issuer,
    )
