"""A client as it comes to a deployed service: by its name, over TLS, from elsewhere."""

from __future__ import annotations

import ssl
from dataclasses import dataclass

import httpx
import websockets
from websockets.asyncio.client import ClientConnection

from tests.running import PASSWORD

__all__ = ["CLIENT", "NAME", "ORIGIN", "Browser"]

NAME = "chat.example.com"
ORIGIN = f"https://{NAME}"
CLIENT = "127.0.0.2"
"""Where it comes from; the proxy comes from 127.0.0.1."""


@dataclass
class Browser:
    """Finds the service at a port of this machine."""

    port: int
    tls: ssl.SSLContext

    def http(self, **headers: str) -> httpx.AsyncClient:
        transport = httpx.AsyncHTTPTransport(verify=self.tls, local_address=CLIENT)
        return httpx.AsyncClient(
            base_url=f"https://127.0.0.1:{self.port}",
            headers={"host": NAME, "origin": ORIGIN, **headers},
            transport=_Named(transport),
            timeout=20,
        )

    async def open(self, path: str, **headers: str) -> ClientConnection:
        """Open a WebSocket; a header's name has ``_`` for ``-``."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return await websockets.connect(
            f"wss://{NAME}{path}",
            host="127.0.0.1",
            port=self.port,
            ssl=self.tls,
            local_addr=(CLIENT, 0),
            additional_headers=named,
            compression=None,
            open_timeout=20,
            ping_interval=None,
            proxy=None,
        )

    async def log_in(self, name: str) -> str:
        """Start a session as a page does; return the Cookie header."""
        async with self.http() as http:
            answer = await http.post(
                "/auth/session", json={"username": name, "password": PASSWORD}
            )
        assert answer.status_code == 200, answer.text
        assert "; Secure" in answer.headers["set-cookie"]
        return str(answer.headers["set-cookie"].partition(";")[0])


class _Named(httpx.AsyncBaseTransport):
    """Asks for the service by its name, wherever it is."""

    def __init__(self, transport: httpx.AsyncBaseTransport) -> None:
        self._transport = transport

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        request.extensions["sni_hostname"] = NAME
        return await self._transport.handle_async_request(request)

    async def aclose(self) -> None:
        await self._transport.aclose()
