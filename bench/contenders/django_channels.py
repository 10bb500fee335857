"""Django Channels on Uvicorn: `/ws` is an echo, `/room` a group of the memory layer.

`/auth` is the echo behind `AuthMiddlewareStack`: Django's own session cookie, with its
sessions in a database (SQLite), as by default. One user is logged in.
"""

from __future__ import annotations

import tempfile
from datetime import timedelta
from pathlib import Path
from typing import Any

import django
from django.conf import settings

from bench.contenders import stock

SESSION = "0123456789abcdefghijklmnopqrstuv"
"""Of the user whom `log_in` logs in; `bench/contending.py` has it in a cookie."""

directory = tempfile.TemporaryDirectory(prefix="authws-bench-channels-")
settings.configure(
    SECRET_KEY="bench-secret-bench-secret-bench-secret-bench-secret",
    ALLOWED_HOSTS=["*"],
    INSTALLED_APPS=[
        "django.contrib.auth",
        "django.contrib.contenttypes",
        "django.contrib.sessions",
        "channels",
    ],
    DATABASES={
        "default": {
            "ENGINE": "django.db.backends.sqlite3",
            "NAME": Path(directory.name, "db.sqlite3"),
        }
    },
    CHANNEL_LAYERS={
        "default": {
            "BACKEND": "channels.layers.InMemoryChannelLayer",
            "CONFIG": {"capacity": 10_000},
        }
    },
    DEFAULT_AUTO_FIELD="django.db.models.AutoField",
    LOGGING_CONFIG=None,
)
django.setup()

# Django's modules can be imported once it is set up, and not before.
from channels.auth import AuthMiddlewareStack  # noqa: E402
from channels.generic.websocket import AsyncWebsocketConsumer  # noqa: E402
from channels.routing import ProtocolTypeRouter, URLRouter  # noqa: E402
from django.contrib import auth  # noqa: E402
from django.contrib.auth.models import User  # noqa: E402
from django.contrib.sessions.backends.db import SessionStore  # noqa: E402
from django.contrib.sessions.models import Session  # noqa: E402
from django.core.management import call_command  # noqa: E402
from django.urls import path  # noqa: E402
from django.utils import timezone  # noqa: E402


class Echo(AsyncWebsocketConsumer):  # type: ignore[misc]
    async def receive(
        self, text_data: str | None = None, bytes_data: bytes | None = None
    ) -> None:
        await self.send(text_data=text_data)


class Member(Echo):
    async def connect(self) -> None:
        if not self.scope["user"].is_authenticated:
            await self.close()
            return
        await self.accept()


class Room(Echo):
    async def connect(self) -> None:
        await self.channel_layer.group_add("room", self.channel_name)
        await self.accept()

    async def disconnect(self, code: int) -> None:
        await self.channel_layer.group_discard("room", self.channel_name)

    async def receive(
        self, text_data: str | None = None, bytes_data: bytes | None = None
    ) -> None:
        event = {"type": "said", "text": text_data}
        await self.channel_layer.group_send("room", event)

    async def said(self, event: dict[str, Any]) -> None:
        await self.send(text_data=event["text"])


def log_in() -> None:
    """Make the database, with a user who has a session."""
    call_command("migrate", verbosity=0)
    user = User.objects.create(username="alice", password="!")
    data = {
        auth.SESSION_KEY: str(user.pk),
        auth.BACKEND_SESSION_KEY: "django.contrib.auth.backends.ModelBackend",
        auth.HASH_SESSION_KEY: user.get_session_auth_hash(),
    }
    Session.objects.create(
        session_key=SESSION,
        session_data=SessionStore().encode(data),
        expire_date=timezone.now() + timedelta(days=1),
    )


app = ProtocolTypeRouter(
    {
        "websocket": URLRouter(
            [
                path("ws", Echo.as_asgi()),
                path("room", Room.as_asgi()),
                path("auth", AuthMiddlewareStack(Member.as_asgi())),
            ]
        )
    }
)

if __name__ == "__main__":
    log_in()
    stock.run(app, lifespan=False)
