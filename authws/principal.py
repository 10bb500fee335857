"""Who is on the other end: the one type every strategy ends in."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

__all__ = ["Principal", "common_scopes"]


@dataclass(frozen=True, slots=True)
class Principal:
    """Who is on the other end, what they may do, and until when we may believe it."""

    subject: str
    """The user's name: the token's ``sub`` (RFC 7519, 4.1.2)."""
    scopes: frozenset[str]
    """What the user may do, such as ``join:lobby`` (RFC 6749, 3.3)."""
    expires_at: float
    """When the credential ends: seconds since the epoch (RFC 7519, NumericDate)."""
    session: str
    """The session's public id: the token's ``sid``; empty for a foreign issuer's."""
    strategy: str
    """How the credential travelled: ``query_param``, ``first_message``, …"""
    authenticated_at: float = 0.0
    """When the user logged in (OpenID Connect Core, ``auth_time``)."""
    issuer: str = ""
    """Who vouches for the subject; empty for this service itself."""

    def may(self, action: str, resource: str) -> bool:
        """Tell whether a scope grants ``action`` (``join``, ``publish``) on a room.

        A scope ``action:pattern`` grants the resource it names; a pattern that ends
        in ``*`` grants every resource that starts with what stands before it.
        """
        return _cover(self.scopes, f"{action}:{resource}")

    def covers(self, scopes: Iterable[str]) -> bool:
        """Tell whether all that these scopes grant was granted: ``publish:*`` covers
        ``publish:lobby``, and not the other way round."""
        return all(_cover(self.scopes, scope) for scope in scopes)

    def has(self, scope: str) -> bool:
        """Tell whether exactly this scope was granted."""
        return scope in self.scopes


@lru_cache(maxsize=1024)
def common_scopes(one: frozenset[str], other: frozenset[str]) -> frozenset[str]:
    """Return what both grant: of ``join:*`` and ``join:lobby`` the latter."""
    return frozenset(
        {scope for scope in one if _cover(other, scope)}
        | {scope for scope in other if _cover(one, scope)}
    )


@lru_cache(maxsize=16_384)  # asked for each publish: users have few sets of scopes
def _cover(scopes: frozenset[str], wanted: str) -> bool:
    """Tell whether one of the scopes grants all that ``wanted`` grants."""
    return any(
        wanted == scope
        or (":" in scope and scope.endswith("*") and wanted.startswith(scope[:-1]))
        for scope in scopes
    )
