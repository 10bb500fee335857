"""``/auth``: logins, sessions, tickets, passwords."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request, Response, status

from authws.decisions import carriers
from authws.decisions.session_cookies import COOKIE_NAME, SECURE_COOKIE_NAME
from authws.exceptions import (
    ExpiredSessionError,
    ExpiredTokenError,
    ForbiddenError,
    RevokedSessionError,
    RevokedTokenError,
)
from authws.service.accounts import Tokens
from authws.service.house import House
from authws.service.routes.identity import (
    ClientDependency,
    Documented,
    DocumentedCookie,
    HouseDependency,
    PrincipalDependency,
    check_login_origin,
    require_json,
)
from authws.service.routes.own_route import OwnRoute
from authws.service.routes.schemas import (
    CREDENTIAL_SLUGS,
    Login,
    Me,
    PasswordChange,
    Refresh,
    SessionItem,
    TicketResponse,
    TokenResponse,
    refusals,
    sets_cookie,
)
from authws.strategies.handshake import Credentials

__all__ = ["router"]

router = APIRouter(prefix="/auth", tags=["auth"], route_class=OwnRoute)


LOGIN_SLUGS = (
    "credentials_invalid",
    "origin_forbidden",
    "body_too_large",
    "json_expected",
    "request_invalid",
    "rate_limited",
    "unavailable",
)


@router.post(
    "/login",
    response_model=TokenResponse,
    responses=refusals(*LOGIN_SLUGS),
    dependencies=[Depends(check_login_origin), Depends(require_json)],
)
async def login(
    body: Login, house: HouseDependency, client: ClientDependency
) -> TokenResponse:
    """Log in: an access token for requests, a refresh token for more of them."""
    password = body.password.get_secret_value()
    return _tokens(await house.accounts.log_in(body.username, password, client))


@router.post(
    "/refresh",
    response_model=TokenResponse,
    responses=refusals(
        "token_invalid",
        "token_expired",
        "token_revoked",
        "origin_forbidden",
        "body_too_large",
        "json_expected",
        "request_invalid",
        "unavailable",
    ),
    dependencies=[Depends(check_login_origin), Depends(require_json)],
)
async def refresh(
    body: Refresh, house: HouseDependency, client: ClientDependency
) -> TokenResponse:
    """Rotate: new access and refresh token. A used one ends the whole session."""
    token = body.refresh_token.get_secret_value()
    return _tokens(await house.accounts.refresh(token, client))


@router.post(
    "/logout",
    status_code=204,
    responses=refusals(
        "auth_missing", "auth_malformed", "token_invalid", "forbidden", "unavailable"
    ),
)
async def logout(request: Request, house: HouseDependency, _: Documented) -> Response:
    """End the token's session: its tokens, its tickets, its sockets.

    An expired token may still end its session; a session that is over already is
    what was asked for. A foreign issuer's token has no session here to end.
    """
    token = carriers.bearer(Credentials(request.scope).header(b"authorization"))
    try:
        principal = await house.authority.by_token(
            carriers.one_token([token] if token else []),
            strategy="first_message",
            accepts="access",
        )
    except ExpiredTokenError as error:
        if error.session:
            await house.accounts.end_session(error.session, "logout")
    except (RevokedTokenError, RevokedSessionError, ExpiredSessionError):
        pass
    else:
        _own(principal.issuer, principal.subject)
        await house.accounts.end_session(principal.session, "logout", principal.subject)
    return Response(status_code=204)


@router.post(
    "/session",
    response_model=Me,
    responses={
        **sets_cookie(
            200,
            f"`{SECURE_COOKIE_NAME}=…; HttpOnly; Path=/; SameSite=Strict; Secure`; "
            f"`{COOKIE_NAME}=…` without `Secure` on a loopback http origin",
        ),
        **refusals(*LOGIN_SLUGS, "auth_malformed"),
    },
    dependencies=[Depends(check_login_origin), Depends(require_json)],
)
async def open_session(
    body: Login,
    request: Request,
    response: Response,
    house: HouseDependency,
    client: ClientDependency,
) -> Me:
    """Log in with a session cookie; its id is new at every login.

    The session that the browser held before, whoever planted it there, is ended.
    """
    cookies = house.session_cookie.cookies(Credentials(request.scope))
    password = body.password.get_secret_value()
    value = await house.accounts.open_session(body.username, password, client)
    await _end_held(house, cookies, "replaced")  # session fixation (ASVS 7.2.4)
    response.set_cookie(house.cookie_name, value, **_cookie_attributes(house))
    principal = await house.authority.by_cookie(value)
    return _me(
        principal.subject, principal.scopes, principal.session, principal.expires_at
    )


@router.delete(
    "/session",
    status_code=204,
    responses={
        **sets_cookie(
            204,
            "the cookie of that name, empty, with `Max-Age=0`",
            **{"Clear-Site-Data": '`"cookies"`, where the whole origin is authws\'s'},
        ),
        **refusals("auth_malformed", "origin_forbidden", "unavailable"),
    },
)
async def close_session(
    request: Request, house: HouseDependency, _: DocumentedCookie
) -> Response:
    """Log out of the cookie's session; doing so twice is no error.

    Of every session, if there are several cookies; and whatever other credential the
    request carries: 204 says that none of them opens anything any more.
    """
    credentials = Credentials(request.scope)
    house.session_cookie.check_origin(credentials)
    await _end_held(house, house.session_cookie.cookies(credentials), "logout")
    response = Response(status_code=204)
    if house.owns_origin:  # it clears every cookie of the host, ours or not
        response.headers["clear-site-data"] = '"cookies"'
    response.delete_cookie(house.cookie_name, **_cookie_attributes(house))
    return response


@router.post(
    "/ticket",
    response_model=TicketResponse,
    responses=refusals(
        *CREDENTIAL_SLUGS, "forbidden", "origin_forbidden", "unavailable"
    ),
)
async def ticket(
    principal: PrincipalDependency, house: HouseDependency
) -> TicketResponse:
    """Get a single-use ticket, good for opening one connection within its life."""
    if principal.issuer:
        raise ForbiddenError("tickets are for this service's own sessions")
    value, expires_in = house.accounts.ticket(principal)
    return TicketResponse(ticket=value, expires_in=expires_in)


@router.get(
    "/me", response_model=Me, responses=refusals(*CREDENTIAL_SLUGS, "unavailable")
)
async def me(principal: PrincipalDependency) -> Me:
    """Who am I?"""
    return _me(
        principal.subject, principal.scopes, principal.session, principal.expires_at
    )


@router.get(
    "/sessions",
    response_model=list[SessionItem],
    responses=refusals(*CREDENTIAL_SLUGS, "forbidden", "unavailable"),
)
async def sessions(
    principal: PrincipalDependency, house: HouseDependency
) -> list[SessionItem]:
    """Own sessions that are live, the latest used first."""
    records = await house.sessions.list_for(_own(principal.issuer, principal.subject))
    return [
        SessionItem(
            id=record.id,
            kind=record.kind,
            created_at=record.created_at,
            last_seen_at=record.last_seen_at,
            expires_at=record.expires_at,
            user_agent=record.user_agent,
            address=record.address,
            current=record.id == principal.session,
        )
        for record in records
    ]


@router.delete(
    "/sessions/{session_id}",
    status_code=204,
    responses=refusals(
        *CREDENTIAL_SLUGS,
        "forbidden",
        "origin_forbidden",
        "session_unknown",
        "request_invalid",
        "unavailable",
    ),
)
async def end_session(
    session_id: str, principal: PrincipalDependency, house: HouseDependency
) -> Response:
    """End one of one's own sessions; somebody else's looks like none at all."""
    _own(principal.issuer, principal.subject)
    if not await house.accounts.end_own_session(principal, session_id):
        raise UnknownSessionError
    return Response(status_code=status.HTTP_204_NO_CONTENT)


@router.post(
    "/password",
    status_code=204,
    responses=refusals(
        *CREDENTIAL_SLUGS,
        "forbidden",
        "origin_forbidden",
        "body_too_large",
        "json_expected",
        "request_invalid",
        "password_too_short",
        "rate_limited",
        "unavailable",
    ),
)
async def change_password(
    body: PasswordChange,
    principal: PrincipalDependency,
    house: HouseDependency,
    client: ClientDependency,
    _: Annotated[None, Depends(require_json)],  # who it is comes first
) -> Response:
    """Change one's own password; every other session of the user ends."""
    _own(principal.issuer, principal.subject)
    await house.accounts.change_password(
        principal,
        body.current_password.get_secret_value(),
        body.new_password.get_secret_value(),
        client,
    )
    return Response(status_code=204)


class UnknownSessionError(Exception):
    """The user has no such session."""


async def _end_held(house: House, cookies: Sequence[str], why: str) -> None:
    """End every session that the cookies name; what names none needs no end.

    Raises:
        UnavailableError: that cannot be told; do not say that they were ended.
    """
    for record in await house.authority.sessions_of(cookies):
        await house.accounts.end_session(record.id, why, record.subject)


def _own(issuer: str, subject: str) -> str:
    """A foreign issuer's subject is no user of ours, whatever its name is."""
    if issuer:
        raise ForbiddenError("this is for the service's own users")
    return subject


def _tokens(tokens: Tokens) -> TokenResponse:
    return TokenResponse(
        access_token=tokens.access_token,
        expires_in=tokens.expires_in,
        refresh_token=tokens.refresh_token,
    )


def _me(subject: str, scopes: frozenset[str], session: str, expires_at: float) -> Me:
    return Me(
        subject=subject, scopes=sorted(scopes), session=session, expires_at=expires_at
    )


def _cookie_attributes(house: House) -> dict[str, Any]:
    # no Domain: __Host- forbids it, and it would widen the cookie (RFC 6265bis, 4.1.3)
    return {
        "path": "/",
        "secure": house.settings.is_secure,
        "httponly": True,
        "samesite": "strict",
    }
