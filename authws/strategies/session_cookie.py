"""A signed HttpOnly cookie of the same origin, sent by the browser by itself.

Its danger is cross-site WebSocket hijacking (CWE-1385): the browser sends the cookie
along with a handshake that any page starts. So the Origin is checked first, and a
handshake without one, or with two, is refused like a foreign one.
"""

from __future__ import annotations

from authws.exceptions import MalformedCredentialError, MissingCredentialError
from authws.principal import Principal
from authws.strategies.base import Strategy
from authws.strategies.handshake import Credentials

__all__ = ["SessionCookie"]


class SessionCookie(Strategy):
    """Exactly one session cookie, and an allowed Origin before it is looked at."""

    name = "session_cookie"
    origin_required = True

    async def identify(self, credentials: Credentials) -> Principal:
        self._refuse_other_carriers(credentials, "authorization", "query")
        cookies = self.cookies(credentials)
        if len(cookies) > 1:
            raise MalformedCredentialError("more than one session cookie")
        if not cookies or not cookies[0]:
            raise MissingCredentialError("no session cookie")
        return await self._authority.by_cookie(cookies[0])

    def has_cookie(self, credentials: Credentials) -> bool:
        """Tell whether a session cookie came along, whatever it is worth."""
        return bool(self.cookies(credentials))
