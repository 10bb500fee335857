"""The door: from a handshake to a live connection, and every ending to a close frame.

``open_connection`` is the one way in, for the service's own endpoints and for a
dependency in somebody else's route alike.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
from dataclasses import dataclass
from http import HTTPStatus
from types import TracebackType
from typing import Literal

from authws import close_codes
from authws.clock import Clock
from authws.decisions.limits import Headcount, KeyedBuckets, Limit, household
from authws.decisions.redaction import log_failure
from authws.exceptions import (
    AuthError,
    ConnectionClosed,
    ForbiddenError,
    ForbiddenOriginError,
    LimitError,
    RateLimitedError,
    RestartingError,
    RevokedSessionError,
    RevokedTokenError,
    ServerFullError,
    TooManyConnectionsError,
    UnavailableError,
    UnexpectedError,
)
from authws.live.authority import HouseAuthority
from authws.live.connection import Connection, ConnectionLimits
from authws.live.hub import Hub
from authws.live.security_log import SecurityLog
from authws.principal import Principal
from authws.strategies.base import Strategy
from authws.strategies.handshake import Handshake

__all__ = ["Door", "DoorLimits", "DoorStyle", "NotAdmittedError", "Visit"]

Ending = BaseException | None
"""What a handler ended with."""
Refuse = Literal["after_accept", "before_accept"]

logger = logging.getLogger("authws")


class NotAdmittedError(Exception):
    """The handshake was answered and is over; there is nothing left to do.

    Raised through a FastAPI route to keep its handler from running; the exception
    handler that ``install`` adds lets it end quietly.
    """


_LIMITS_BELOW = {
    close_codes.MESSAGE_TOO_BIG.reason: Limit.MESSAGE_BYTES,
    close_codes.RATE_LIMITED.reason: Limit.FRAMES,
}
"""What the server below us ends a connection for, by the slug that it closes with."""


@dataclass(frozen=True, slots=True)
class DoorStyle:
    """What differs between the doors of one house."""

    announce: bool = True
    """Send ``auth_ok`` on every strategy; off, only first-message answers."""
    renewable: bool = True
    """Take an ``auth`` message on a live connection as a renewal."""
    pump: bool = False
    """Receive in a task of its own, for handlers that may be busy elsewhere."""
    scopes: frozenset[str] = frozenset()
    """Scopes that a principal's must cover to come in."""


@dataclass(frozen=True, slots=True)
class DoorLimits:
    """Who may stand at the door, and be inside, at once. A limit of 0 is off.

    A stranger costs what it costs to hold a socket and know nothing of its peer, so
    there is a quarantine: a number of its own for those who are not known yet.
    """

    handshake_rate: float = 0.0
    """Handshakes per address and second on average; twice that at once."""
    connections: int = 0
    connections_per_address: int = 0
    unauthenticated: int = 0
    unauthenticated_per_address: int = 0


class Door:
    """Admits handshakes to the hub."""

    def __init__(
        self,
        hub: Hub,
        authority: HouseAuthority,
        log: SecurityLog,
        *,
        clock: Clock,
        limits: ConnectionLimits,
        door_limits: DoorLimits = DoorLimits(),
        refuse: Refuse = "after_accept",
    ) -> None:
        self._hub = hub
        self._authority = authority
        self._log = log
        self._clock = clock
        self._limits = limits
        self._refuse = refuse
        self._handshakes = KeyedBuckets(
            door_limits.handshake_rate, door_limits.handshake_rate * 2
        )
        self.present = Headcount(
            door_limits.connections, door_limits.connections_per_address
        )
        """Everyone with a WebSocket here, strangers included."""
        self.strangers = Headcount(
            door_limits.unauthenticated, door_limits.unauthenticated_per_address
        )
        """Those whose credential is still awaited, or being looked at."""
        self.is_closing = False
        """Nobody is admitted any more: the process is about to end."""
        self.is_blind = False
        """Nobody is admitted now: it cannot be known whose session was ended."""

    def open_connection(
        self, strategy: Strategy, handshake: Handshake, style: DoorStyle
    ) -> Visit:
        """Authenticate, admit, and see the connection to its end: an asynchronous
        context manager.

        Raises:
            NotAdmittedError: it was refused, or the peer left; all is answered.
        """
        return Visit(self, strategy, handshake, style)

    async def enter(self, visit: Visit) -> Connection:
        """See a peer in; ``leave`` must follow."""
        strategy, handshake, style = visit.strategy, visit.handshake, visit.style
        try:
            self._check_room(visit.address)
        except AuthError as error:
            await self._deny(strategy, handshake, error)
            raise NotAdmittedError from None
        self.present.enter(visit.address)
        visit.is_present = True
        self.strangers.enter(visit.address)
        try:
            principal = await self._authenticate(strategy, handshake, style)
        finally:
            self.strangers.leave(visit.address)
        connection = await self._admit(strategy, handshake, principal, style)
        handshake.forget_request()
        connection.failed = self._report_failure
        connection.over = visit.be_over
        connection.start(pump=style.pump)
        if style.announce or strategy.name == "first_message":
            connection.announce()
        return connection

    def give_up_place(self, visit: Visit) -> None:
        """Make room for another: this one is over."""
        if visit.is_present:
            visit.is_present = False
            self.present.leave(visit.address)

    async def release(self, connection: Connection) -> None:
        """Let nobody hear of it or reach it any more."""
        await self._hub.release(connection)

    async def leave(self, visit: Visit, connection: Connection, end: Ending) -> bool:
        """See a connection to its end; return whether ``end`` is settled by that."""
        is_settled = self._settle(connection, end)
        try:
            await self._farewell(visit.handshake, connection)
        finally:
            connection.over = None
        return is_settled

    def _settle(self, connection: Connection, end: Ending) -> bool:
        if end is None or isinstance(end, ConnectionClosed):
            # that the handler met the connection's end is an ending like any other
            return True
        if isinstance(end, asyncio.CancelledError):
            if connection.was_cut:
                _uncancel()
                return True
            connection.end(close_codes.SERVICE_RESTART)
        elif isinstance(end, Exception):
            self._report_failure(connection)
            return True
        return False

    # ------------------------------------------------------------- before anything else

    def _check_room(self, address: str) -> None:
        """Refuse a handshake before its credential is looked at.

        Raises:
            RestartingError, UnavailableError, ServerFullError, RateLimitedError,
            TooManyConnectionsError: to be told as an HTTP status, which a proxy
                understands too.
        """
        if self.is_closing:
            raise RestartingError("the server is about to restart")
        self._demand_sight()
        if self.present.is_full():
            raise ServerFullError("this process is full", Limit.CONNECTIONS)
        if self.strangers.is_full():
            raise ServerFullError("too many strangers", Limit.UNAUTHENTICATED)
        wait = self._handshakes.take(address, self._clock.monotonic())
        if wait:
            raise RateLimitedError(
                "too many handshakes from one address", Limit.HANDSHAKE_RATE, wait
            )
        if self.present.is_full_for(address):
            raise TooManyConnectionsError(
                "too many connections from one address", Limit.CONNECTIONS_PER_ADDRESS
            )
        if self.strangers.is_full_for(address):
            raise TooManyConnectionsError(
                "too many strangers from one address", Limit.UNAUTHENTICATED_PER_ADDRESS
            )

    def _demand_sight(self) -> None:
        if self.is_blind:
            raise UnavailableError("nothing is known of what was revoked")

    async def _deny(
        self, strategy: Strategy, handshake: Handshake, error: AuthError
    ) -> None:
        """Answer with an HTTP status and ``Retry-After``, whatever the strategy."""
        self._log_refusal(strategy, handshake, error)
        wait = error.retry_after if isinstance(error, LimitError) else 1.0
        with contextlib.suppress(ConnectionClosed):
            await handshake.deny(error.status, error.close.reason, wait)

    # -------------------------------------------------------------------- who they are

    async def _authenticate(
        self, strategy: Strategy, handshake: Handshake, style: DoorStyle
    ) -> Principal:
        try:
            strategy.check_origin(handshake.credentials)
            principal = await strategy.authenticate(handshake)
            if not principal.covers(style.scopes):
                raise ForbiddenError("a required scope is missing")
        except ConnectionClosed:
            self._log_abandoned(strategy, handshake)
        except Exception as error:
            await self._turn_away(strategy, handshake, _refusal(error))
        else:
            handshake.limit_messages(None)
            return principal
        raise NotAdmittedError

    async def _admit(
        self,
        strategy: Strategy,
        handshake: Handshake,
        principal: Principal,
        style: DoorStyle,
    ) -> Connection:
        connection = Connection(
            handshake,
            principal,
            clock=self._clock,
            turn=self._hub.turn,
            limits=self._limits,
            renew=self._authority.renew if style.renewable else None,
        )
        # registered first and asked again then: a revocation that came after the
        # record was read finds the connection in the hub, or is found here
        try:
            self._hub.admit(connection)
            if not await self._authority.still_holds(principal):
                raise revocation(principal)
            self._demand_sight()  # it may have gone blind since they knocked
            if not handshake.accepted:
                await handshake.accept()
        except ConnectionClosed:
            await self._hub.release(connection)
            self._log_abandoned(strategy, handshake)
            raise NotAdmittedError from None
        except Exception as error:
            await self._hub.release(connection)
            await self._turn_away(strategy, handshake, _refusal(error), principal)
            raise NotAdmittedError from None
        self._log.write(
            "connected",
            subject=principal.subject,
            address=connection.address,
            strategy=strategy.name,
            connection=connection.id,
        )
        return connection

    async def _turn_away(
        self,
        strategy: Strategy,
        handshake: Handshake,
        error: AuthError,
        principal: Principal | None = None,
    ) -> None:
        """Answer a refusal in the form that the contract has for it."""
        subject = principal.subject if principal else ""
        self._log_refusal(strategy, handshake, error, subject)
        try:
            if not handshake.accepted and self._may_accept(error):
                await handshake.accept()
            if (
                not handshake.accepted
                and error.status >= HTTPStatus.INTERNAL_SERVER_ERROR
            ):
                await handshake.deny(error.status, error.close.reason)
            await handshake.close(error.close)
        except ConnectionClosed:
            return

    def _may_accept(self, error: AuthError) -> bool:
        # no handshake is ever completed for a foreign page, whatever the setting
        return self._refuse == "after_accept" and not isinstance(
            error, ForbiddenOriginError
        )

    def _log_abandoned(self, strategy: Strategy, handshake: Handshake) -> None:
        self._log.write(
            "handshake_abandoned",
            address=handshake.credentials.address,
            strategy=strategy.name,
            code=str(handshake.left_with),
        )

    def _log_refusal(
        self,
        strategy: Strategy,
        handshake: Handshake,
        error: AuthError,
        subject: str = "",
    ) -> None:
        self._log.write(
            "refused",
            reason=error.close.reason,
            detail=str(error),
            subject=subject,
            address=handshake.credentials.address,
            limit=error.limit if isinstance(error, LimitError) else "",
            strategy=strategy.name,
        )

    def _report_failure(self, connection: Connection) -> None:
        """A handler failed: 1011 for the peer, a correlation id for the operator."""
        correlation = secrets.token_hex(8)
        log_failure(logger, "handler failed (correlation id %s)", correlation)
        connection.end(close_codes.INTERNAL_ERROR, flush=True)
        self._log.write(
            "handler_failed",
            reason="internal_error",
            subject=connection.principal.subject,
            address=connection.address,
            connection=connection.id,
            correlation=correlation,
        )

    async def _farewell(self, handshake: Handshake, connection: Connection) -> None:
        await self._hub.release(connection)
        await connection.stop()
        self._hub.note_ending(connection)
        ending = connection.ending
        # of the server's own reasons only the slugs: a parser's may quote the peer
        below = handshake.ended_by_server
        below = below if below in close_codes.BY_SLUG else ""
        self._log.write(
            "disconnected",
            reason=ending.reason if ending else below or "peer_left",
            code=str(int(ending.code) if ending else handshake.left_with),
            subject=connection.principal.subject,
            address=connection.address,
            limit=connection.limit or _LIMITS_BELOW.get(below) or "",
            strategy=connection.principal.strategy,
            connection=connection.id,
        )


class Visit:
    """One handshake on its way through the door, and what comes of it.

    Written out, and not as a generator: a connection that idles is held by this one
    object.
    """

    __slots__ = (
        "_connection",
        "_door",
        "address",
        "handshake",
        "is_present",
        "strategy",
        "style",
    )

    def __init__(
        self, door: Door, strategy: Strategy, handshake: Handshake, style: DoorStyle
    ) -> None:
        self._door = door
        self._connection: Connection | None = None
        self.strategy = strategy
        self.handshake = handshake
        self.style = style
        self.address = household(handshake.credentials.address)
        self.is_present = False
        """Whether it counts among those with a WebSocket here."""

    async def __aenter__(self) -> Connection:
        try:
            self._connection = await self._door.enter(self)
        except BaseException:
            self._door.give_up_place(self)
            raise
        return self._connection

    async def __aexit__(
        self, kind: type[BaseException] | None, end: Ending, _: TracebackType | None
    ) -> bool:
        assert self._connection is not None  # noqa: S101 - it came in
        connection, self._connection = self._connection, None
        try:
            return await self._door.leave(self, connection, end)
        finally:
            self._door.give_up_place(self)

    async def be_over(self, connection: Connection) -> None:
        """Give its place back: its handler may be busy elsewhere for long yet."""
        self._door.give_up_place(self)
        await self._door.release(connection)


def _refusal(error: Exception) -> AuthError:
    """Name the refusal; whatever else went wrong, it fails closed and is reported."""
    if isinstance(error, AuthError):
        return error
    correlation = secrets.token_hex(8)
    log_failure(logger, "handshake failed (correlation id %s)", correlation)
    return UnexpectedError(f"correlation id {correlation}")


def _uncancel() -> None:
    task = asyncio.current_task()
    if task is not None:
        task.uncancel()


def revocation(principal: Principal) -> AuthError:
    """Name the refusal of a principal whose session was ended."""
    if principal.strategy == "session_cookie":
        return RevokedSessionError("the session was ended")
    return RevokedTokenError("the token's session was ended")
