"""Authenticated WebSockets: a service and a library."""

from authws.exceptions import AuthError, ConfigurationError, ConnectionClosed
from authws.live.connection import Connection
from authws.principal import Principal
from authws.service.app import create_app
from authws.service.library import AuthWS, Guard
from authws.service.settings import Settings

__all__ = [
    "AuthError",
    "AuthWS",
    "ConfigurationError",
    "Connection",
    "ConnectionClosed",
    "Guard",
    "Principal",
    "Settings",
    "create_app",
]
