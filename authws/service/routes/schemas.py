"""The bodies of requests and answers, with the examples that OpenAPI shows."""

from __future__ import annotations

from http import HTTPStatus
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, SecretStr

__all__ = [
    "CREDENTIAL_SLUGS",
    "ConnectionItem",
    "ConnectionList",
    "Disconnected",
    "Health",
    "InvalidRequest",
    "KeySet",
    "Login",
    "Me",
    "PasswordChange",
    "Readiness",
    "Refresh",
    "Refusal",
    "SessionItem",
    "TicketResponse",
    "TokenResponse",
    "refusals",
    "sets_cookie",
]

MAX_PASSWORD = 1024
"""Characters of a field; what may be a password is decided behind it."""


class _Body(BaseModel):
    model_config = ConfigDict(extra="ignore", str_max_length=4096)


class Refusal(BaseModel):
    """An error: ``detail`` is a stable slug."""

    detail: str


class InvalidRequest(Refusal):
    """A body that is not as it should be: which fields, or why not that password."""

    fields: list[str] | None = None
    message: str | None = None


_STATUS = {
    "auth_missing": 401,
    "credentials_invalid": 401,
    "session_invalid": 401,
    "session_expired": 401,
    "session_revoked": 401,
    "token_invalid": 401,
    "token_expired": 401,
    "token_revoked": 401,
    "auth_malformed": 401,
    "forbidden": 403,
    "origin_forbidden": 403,
    "session_unknown": 404,
    "user_unknown": 404,
    "body_too_large": 413,
    "json_expected": 415,
    "rate_limited": 429,
    "unavailable": 503,
}
_INVALID = {
    "request_invalid": {"detail": "request_invalid", "fields": ["body.username"]},
    "password_too_short": {
        "detail": "password_too_short",
        "message": "Please use at least 12 characters; a short sentence is fine.",
    },
}
_RETRY_AFTER = {
    "Retry-After": {
        "description": "Seconds to wait before the next attempt",
        "schema": {"type": "integer", "minimum": 1},
    }
}

CREDENTIAL_SLUGS = tuple(
    slug
    for slug, status in _STATUS.items()
    if status == 401 and slug != "credentials_invalid"
)
"""What a bearer token or a session cookie is refused for."""


def sets_cookie(status: int, what: str, **more: str) -> dict[int | str, dict[str, Any]]:
    """Document an answer that sets the session cookie, and its other headers."""
    headers = {"Set-Cookie": what, **more}
    return {
        status: {
            "description": HTTPStatus(status).phrase,
            "headers": {
                name: {"description": text, "schema": {"type": "string"}}
                for name, text in headers.items()
            },
        }
    }


def refusals(*slugs: str) -> dict[int | str, dict[str, Any]]:
    """Document how a route refuses: each status, with an example of each slug."""
    documented: dict[int | str, dict[str, Any]] = {}
    for slug in slugs:
        status = 422 if slug in _INVALID else _STATUS[slug]
        answer = documented.setdefault(status, _refusal(status))
        example = {"value": _INVALID.get(slug, {"detail": slug})}
        answer["content"]["application/json"]["examples"][slug] = example
    return documented


def _refusal(status: int) -> dict[str, Any]:
    return {
        "model": InvalidRequest if status == 422 else Refusal,
        "description": HTTPStatus(status).phrase,
        "content": {"application/json": {"examples": {}}},
        **({"headers": _RETRY_AFTER} if status in (429, 503) else {}),
    }


class Login(_Body):
    """A user name and password."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"username": "demo", "password": "correct horse battery"}]
        }
    )
    username: Annotated[str, Field(min_length=1, max_length=256)]
    password: Annotated[SecretStr, Field(min_length=1, max_length=MAX_PASSWORD)]


class Refresh(_Body):
    """A refresh token, good for one use."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"refresh_token": "rt_…"}]}
    )
    refresh_token: Annotated[SecretStr, Field(min_length=1, max_length=512)]


class PasswordChange(_Body):
    """The current password, and the one to come."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "current_password": "correct horse battery",
                    "new_password": "staple of another horse",
                }
            ]
        }
    )
    current_password: Annotated[
        SecretStr, Field(default=SecretStr(""), max_length=MAX_PASSWORD)
    ]
    new_password: Annotated[SecretStr, Field(min_length=1, max_length=MAX_PASSWORD)]


class TokenResponse(BaseModel):
    """What a login gives (RFC 6749, 5.1)."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "access_token": "eyJhbGciOi…",
                    "token_type": "bearer",
                    "expires_in": 900,
                    "refresh_token": "rt_…",
                }
            ]
        }
    )
    access_token: str
    token_type: str = "bearer"  # noqa: S105 - the type's name (RFC 6750)
    expires_in: int
    refresh_token: str


class TicketResponse(BaseModel):
    """A single-use credential for opening one connection."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"ticket": "eyJhbGciOi…", "expires_in": 30}]}
    )
    ticket: str
    expires_in: int


class Me(BaseModel):
    """One's own identity."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "subject": "demo",
                    "scopes": ["join:*", "publish:*"],
                    "session": "mPvJ…",
                    "expires_at": 1790000000.0,
                }
            ]
        }
    )
    subject: str
    scopes: list[str]
    session: str
    expires_at: float


class SessionItem(BaseModel):
    """One of one's own sessions: a device."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "id": "mPvJ…",
                    "kind": "cookie",
                    "created_at": 1789990000.0,
                    "last_seen_at": 1789996400.0,
                    "expires_at": 1790033200.0,
                    "user_agent": "Mozilla/5.0 …",
                    "address": "127.0.0.1",
                    "current": True,
                }
            ]
        }
    )
    id: str
    kind: str
    created_at: float
    last_seen_at: float
    expires_at: float
    user_agent: str
    address: str
    current: bool


CONNECTION: dict[str, Any] = {
    "id": "Zs3vK0mTqW1x",
    "worker": "q3fUe0Vb1aM",
    "subject": "demo",
    "issuer": "",
    "strategy": "session_cookie",
    "address": "127.0.0.1",
    "session": "mPvJ…",
    "connected_at": 1789996400.0,
    "expires_at": 1789998200.0,
    "rooms": ["lobby"],
    "dropped": 0,
}


class ConnectionItem(BaseModel):
    """An open WebSocket."""

    model_config = ConfigDict(
        use_attribute_docstrings=True,  # they are for the reader of OpenAPI, too
        json_schema_extra={"examples": [CONNECTION]},
    )
    id: str
    """As in its ``auth_ok`` and in the security log."""
    worker: str
    """The process that holds it: another id each time that it starts."""
    subject: str
    issuer: str
    """Who vouches for the subject; empty for this service itself."""
    strategy: str
    address: str
    session: str
    """The session's public id; empty where a foreign issuer names none."""
    connected_at: float
    expires_at: float
    rooms: list[str]
    dropped: int
    """Messages of its rooms that it missed for being slow."""


class ConnectionList(BaseModel):
    """Open WebSockets, the newest first."""

    model_config = ConfigDict(
        use_attribute_docstrings=True,
        json_schema_extra={
            "examples": [
                {"total": 1, "connections": [CONNECTION], "workers": 1, "silent": 0}
            ]
        },
    )
    total: int
    """How many there are, listed here or not."""
    connections: list[ConnectionItem]
    workers: int
    """How many workers answered."""
    silent: int
    """How many workers did not, and may hold more."""


class Disconnected(BaseModel):
    """How much was ended."""

    model_config = ConfigDict(
        use_attribute_docstrings=True,
        json_schema_extra={"examples": [{"sessions": 2, "sockets": 3}]},
    )
    sessions: int
    sockets: int
    """On all workers that answered at once; others end theirs when they hear of it."""


class Health(BaseModel):
    """The process is alive."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"status": "ok"}]})
    status: str


class Readiness(BaseModel):
    """What can be reached."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"status": "ready", "database": "ok", "broker": "ok"}]
        }
    )
    status: str
    database: str
    broker: str


class KeySet(BaseModel):
    """Public keys (RFC 7517)."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "keys": [
                        {
                            "kty": "OKP",
                            "crv": "Ed25519",
                            "x": "11qYAY…",
                            "kid": "u2nVwP…",
                            "alg": "EdDSA",
                            "use": "sig",
                        }
                    ]
                }
            ]
        }
    )
    keys: list[dict[str, str]]
