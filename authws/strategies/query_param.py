"""A JWT or a single-use ticket in the URL: ``/ws/query-param?token=…``.

Its danger is that a URL is written down everywhere: the token is taken out of the
ASGI scope before anyone else sees it, and a ticket is worthless after its first use.
"""

from __future__ import annotations

from authws.decisions import carriers
from authws.decisions.origins import OriginPolicy
from authws.principal import Principal
from authws.strategies.base import Accepts, Authority, Strategy
from authws.strategies.handshake import Credentials, Handshake

__all__ = ["QueryParam"]


class QueryParam(Strategy):
    """Exactly one ``token`` in the query; an Origin, if sent, must be allowed."""

    name = "query_param"

    def __init__(
        self,
        authority: Authority,
        origins: OriginPolicy,
        *,
        cookie_name: str,
        accepts: Accepts = "any",
    ) -> None:
        super().__init__(authority, origins, cookie_name=cookie_name)
        self._accepts: Accepts = accepts

    async def authenticate(self, handshake: Handshake) -> Principal:
        return await self._verify(handshake.credentials, opening=True)

    async def identify(self, credentials: Credentials) -> Principal:
        return await self._verify(credentials, opening=False)

    async def _verify(self, credentials: Credentials, *, opening: bool) -> Principal:
        self._refuse_other_carriers(credentials, "authorization")
        token = carriers.one_token(
            carriers.query_values(credentials.query_string, carriers.TOKEN_PARAMETER)
        )
        return await self._authority.by_token(
            token,
            strategy=self.name,
            accepts=self._accepts,
            cookies_beside=self.cookies(credentials),
            opening=opening,
        )
