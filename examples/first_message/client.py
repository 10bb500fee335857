"""Log in, connect, say hello: python examples/first_message/client.py alice

Reads the password from AUTHWS_PASSWORD, or asks. Leaves out: reconnecting.
"""

import asyncio
import getpass
import json
import os
import sys
from typing import Any

import httpx
import websockets


async def connect(url: str, http: httpx.AsyncClient, login: dict[str, str]) -> Any:
    tokens = (await http.post("/auth/login", json=login)).raise_for_status().json()
    peer = await websockets.connect(f"{url.replace('http', 'ws', 1)}/ws")
    print(await peer.recv())  # auth_required
    await peer.send(json.dumps({"type": "auth", "token": tokens["access_token"]}))
    return peer


async def main(url: str, username: str) -> None:
    password = os.environ.get("AUTHWS_PASSWORD") or getpass.getpass()
    login = {"username": username, "password": password}
    async with httpx.AsyncClient(base_url=url) as http:
        peer = await connect(url, http, login)
    async with peer:
        print(await peer.recv())  # auth_ok
        await peer.send("hello")
        print(await peer.recv())


if __name__ == "__main__":
    username, url = (*sys.argv[1:], "http://127.0.0.1:8000")[:2]
    asyncio.run(main(url, username))
