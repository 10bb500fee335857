"""Who calls an HTTP route: a bearer token, or the session cookie of our own pages."""

from __future__ import annotations

from typing import Annotated, cast

from fastapi import Depends, HTTPException, Request
from fastapi.security import APIKeyCookie, HTTPBearer

from authws.decisions import carriers
from authws.decisions.session_cookies import COOKIE_NAME, SECURE_COOKIE_NAME
from authws.exceptions import ForbiddenError, MissingCredentialError
from authws.principal import Principal
from authws.service.accounts import Client
from authws.service.house import House
from authws.strategies.handshake import Credentials

__all__ = [
    "SAFE_METHODS",
    "AdminDependency",
    "BearerDependency",
    "ClientDependency",
    "Documented",
    "DocumentedCookie",
    "HouseDependency",
    "PrincipalDependency",
    "check_login_origin",
    "require_json",
]

SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})

bearer_scheme = HTTPBearer(
    auto_error=False, description="An access token, as `POST /auth/login` returns it."
)
"""For the documentation (its Authorize button); the strategies read the header."""

cookie_scheme = APIKeyCookie(
    name=SECURE_COOKIE_NAME,
    scheme_name="SessionCookie",
    auto_error=False,
    description=(
        "The cookie that `POST /auth/session` sets; a browser sends it by itself. On a "
        f"loopback http origin its name is `{COOKIE_NAME}`. What changes something by "
        "it needs an allowed `Origin`."
    ),
)

Documented = Annotated[object, Depends(bearer_scheme)]
"""Shows a route's lock in the documentation."""
DocumentedCookie = Annotated[object, Depends(cookie_scheme)]
"""Shows there that the session cookie opens it, too."""


def house(request: Request) -> House:
    """The house that this application serves."""
    return cast(House, request.app.state.authws)


HouseDependency = Annotated[House, Depends(house)]


def client(request: Request) -> Client:
    """Where the request comes from, as the server believes it."""
    address = request.client.host if request.client else ""
    return Client(address, request.headers.get("user-agent", ""))


ClientDependency = Annotated[Client, Depends(client)]


async def bearer(request: Request, house: HouseDependency, _: Documented) -> Principal:
    """The principal of a bearer token (RFC 6750)."""
    credentials = Credentials(request.scope)
    return await house.authority.by_token(
        _token(credentials), strategy="first_message", accepts="access"
    )


BearerDependency = Annotated[Principal, Depends(bearer)]


async def principal(
    request: Request, house: HouseDependency, _: Documented, __: DocumentedCookie
) -> Principal:
    """The principal of a bearer token or, without one, of the session cookie.

    A browser adds the cookie by itself, to a forged request as well: what changes
    something by cookie must come from a page of an allowed origin.
    """
    if request.headers.get("authorization") is not None:
        return await bearer(request, house, None)
    credentials = Credentials(request.scope)
    unsafe = request.method not in SAFE_METHODS
    if unsafe and house.session_cookie.has_cookie(credentials):
        house.session_cookie.check_origin(credentials, required=True)
    return await house.session_cookie.identify(credentials)


PrincipalDependency = Annotated[Principal, Depends(principal)]


async def admin(principal: PrincipalDependency) -> Principal:
    """A principal with the scope ``admin``."""
    if not principal.has("admin"):
        raise ForbiddenError("scope admin is required")
    return principal


AdminDependency = Annotated[Principal, Depends(admin)]


def check_login_origin(request: Request, house: HouseDependency) -> None:
    """Refuse a login that a foreign page submits (login CSRF).

    A browser names the page's origin with every POST, so that none is named means
    that no browser and no page is behind it.
    """
    house.session_cookie.check_origin(Credentials(request.scope), required=False)


def _token(credentials: Credentials) -> str:
    token = carriers.bearer(credentials.header(b"authorization"))
    if token is None:
        raise MissingCredentialError("no Authorization header")
    return token


def require_json(request: Request) -> None:
    """Refuse a body that is not declared as JSON.

    A form on any page can send JSON as ``text/plain`` without asking first; only a
    declared type makes the browser ask (Fetch, CORS-safelisted request-header).
    """
    media_type = request.headers.get("content-type", "").partition(";")[0].strip()
    if media_type.lower() != "application/json":
        raise HTTPException(415)
