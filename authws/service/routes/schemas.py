"""The bodies of requests and answers, with the examples that OpenAPI shows."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, SecretStr

__all__ = [
    "Login",
    "Me",
    "PasswordChange",
    "Refresh",
    "Refusal",
    "SessionItem",
    "TicketResponse",
    "TokenResponse",
]

MAX_PASSWORD = 1024
"""Characters of a field; what may be a password is decided behind it."""


class _Body(BaseModel):
    model_config = ConfigDict(extra="ignore", str_max_length=4096)


class Refusal(BaseModel):
    """An error: ``detail`` is a stable slug."""

    detail: str


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

    id: str
    kind: str
    created_at: float
    last_seen_at: float
    expires_at: float
    user_agent: str
    address: str
    current: bool
