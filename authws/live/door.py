"""The door: from a handshake to a live connection, and every ending to a close frame.

``open_connection`` is the one way in, for the service's own endpoints and for a
dependency in somebody else's route alike.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from typing import Literal

from authws import close_codes
from authws.clock import Clock
from authws.decisions.limits import KeyedBuckets
from authws.decisions.redaction import log_failure
from authws.exceptions import (
    AuthError,
    ConnectionClosed,
    ForbiddenError,
    ForbiddenOriginError,
    RateLimitedError,
    RevokedSessionError,
    RevokedTokenError,
    TooManyConnectionsError,
    UnexpectedError,
)
from authws.live.authority import HouseAuthority
from authws.live.connection import Connection, ConnectionLimits
from authws.live.hub import Hub
from authws.live.security_log import SecurityLog
from authws.principal import Principal
from authws.strategies.base import Strategy
from authws.strategies.handshake import Handshake

__all__ = ["Door", "DoorStyle", "NotAdmittedError"]

Refuse = Literal["after_accept", "before_accept"]

logger = logging.getLogger("authws")


class NotAdmittedError(Exception):
    """The handshake was answered and is over; there is nothing left to do.

    Raised through a FastAPI route to keep its handler from running; the exception
    handler that ``install`` adds lets it end quietly.
    """


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
    """Scopes that a principal must have to come in."""


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
        refuse: Refuse = "after_accept",
        handshake_rate: float = 0.0,
        max_connections_per_address: int = 0,
    ) -> None:
        """``handshake_rate`` is per address and second, twice that at once."""
        self._hub = hub
        self._authority = authority
        self._log = log
        self._clock = clock
        self._limits = limits
        self._refuse = refuse
        self._handshakes = KeyedBuckets(handshake_rate, handshake_rate * 2)
        self._max_connections_per_address = max_connections_per_address
        self._present: Counter[str] = Counter()

    @asynccontextmanager
    async def open_connection(
        self, strategy: Strategy, handshake: Handshake, style: DoorStyle
    ) -> AsyncIterator[Connection]:
        """Authenticate, admit, and see the connection to its end.

        Raises:
            NotAdmittedError: it was refused, or the peer left; all is answered.
        """
        with self._counted(handshake.credentials.address):
            principal = await self._authenticate(strategy, handshake, style)
            connection = await self._admit(strategy, handshake, principal, style)
            try:
                connection.start(pump=style.pump)
                if style.announce or strategy.name == "first_message":
                    connection.announce()
                yield connection
            except ConnectionClosed:
                pass  # the handler met the connection's end: an ending like any other
            except asyncio.CancelledError:
                if not connection.was_cut:
                    connection.end(close_codes.SERVICE_RESTART)
                    raise
                _uncancel()
            except Exception:
                self._report_failure(connection)
            finally:
                await self._farewell(handshake, connection)

    @contextmanager
    def _counted(self, address: str) -> Iterator[None]:
        """Count who is here from an address, silent strangers at the door included."""
        self._present[address] += 1
        try:
            yield
        finally:
            self._present[address] -= 1
            if not self._present[address]:
                del self._present[address]

    async def _authenticate(
        self, strategy: Strategy, handshake: Handshake, style: DoorStyle
    ) -> Principal:
        credentials = handshake.credentials
        try:
            self._check_rate(credentials.address)
            self._check_address(credentials.address)
            strategy.check_origin(credentials)
            principal = await strategy.authenticate(handshake)
            if not style.scopes <= principal.scopes:
                raise ForbiddenError("a required scope is missing")
        except ConnectionClosed:
            self._log_abandoned(strategy, handshake)
        except Exception as error:
            await self._turn_away(strategy, handshake, _refusal(error))
        else:
            return principal
        raise NotAdmittedError

    def _check_rate(self, address: str) -> None:
        wait = self._handshakes.take(address, self._clock.monotonic())
        if wait:
            raise RateLimitedError("too many handshakes from one address", wait)

    def _check_address(self, address: str) -> None:
        limit = self._max_connections_per_address
        if self._present[address] > limit > 0:
            raise TooManyConnectionsError(f"{limit} connections from one address")

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
            limits=self._limits,
            renew=self._authority.renew if style.renewable else None,
        )
        # registered first and asked again then: a revocation that came after the
        # record was read finds the connection in the hub, or is found here
        try:
            self._hub.admit(connection)
            if not await self._authority.still_holds(principal):
                raise revocation(principal)
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
        self._log_refusal(strategy, handshake, error.close.reason, str(error), subject)
        try:
            if (
                error.status == HTTPStatus.TOO_MANY_REQUESTS
                and principal is None  # a limit of the address, not of the user
                and not handshake.accepted
            ):
                wait = error.retry_after if isinstance(error, RateLimitedError) else 1.0
                await handshake.deny(error.status, error.close.reason, wait)
                return
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
        reason: str,
        detail: str,
        subject: str,
    ) -> None:
        self._log.write(
            "refused",
            reason=reason,
            detail=detail,
            subject=subject,
            address=handshake.credentials.address,
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
        ending = connection.ending
        self._log.write(
            "disconnected",
            reason=ending.reason if ending else "peer_left",
            code=str(int(ending.code) if ending else handshake.left_with),
            subject=connection.principal.subject,
            address=connection.address,
            strategy=connection.principal.strategy,
            connection=connection.id,
        )


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
