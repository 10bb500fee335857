"""Rotating keys drops nobody: what an older key signed holds until it is removed."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jwt
import pytest

from authws.service.key_files import rotate_keys
from authws.service.settings import Settings
from tests.grants import Grant, enter, grant, hear, present, say
from tests.running import STRATEGIES, Service, running

Algorithm = Literal["HS256", "EdDSA", "ES256"]
ALGORITHMS: tuple[Algorithm, ...] = ("HS256", "EdDSA", "ES256")


@dataclass(frozen=True)
class Held:
    """What clients hold when the keys change."""

    token: str
    refresh_token: str
    ticket: str
    cookie: Grant


@asynccontextmanager
async def serving(tmp_path: Path, **settings: Any) -> AsyncIterator[Service]:
    """Serve from one data directory, again and again."""
    async with running(tmp_path, data_dir=tmp_path / "data", **settings) as service:
        yield service


async def hold(service: Service) -> Held:
    login = await service.login()
    return Held(
        login["access_token"],
        login["refresh_token"],
        await service.ticket(login["access_token"]),
        await grant(service, "session-cookie"),
    )


def rotate(tmp_path: Path, algorithm: Algorithm, **options: int) -> str:
    settings = Settings(
        _env_file=None, data_dir=tmp_path / "data", signing_algorithm=algorithm
    )
    return rotate_keys(settings, **options)


async def assert_believed(service: Service, held: Held) -> None:
    """Everything that was held still opens what it opened."""
    for path in ("/ws/query-param", "/ws/first-message"):
        async with enter(service, path, held.token):
            pass
    async with enter(service, "/ws/query-param", held.ticket):
        pass
    async with enter(service, "/ws/session-cookie", held.cookie.cookie):
        pass
    async with service.http() as http:
        me = await http.get(
            "/auth/me", headers={"authorization": f"Bearer {held.token}"}
        )
        assert me.status_code == 200
        body = {"refresh_token": held.refresh_token}
        assert (await http.post("/auth/refresh", json=body)).status_code == 200


def kid(token: str) -> str:
    return str(jwt.get_unverified_header(token)["kid"])


@pytest.mark.parametrize("algorithm", ALGORITHMS)
async def test_rotation_drops_nobody(tmp_path: Path, algorithm: Algorithm) -> None:
    async with serving(tmp_path, signing_algorithm=algorithm) as service:
        await service.add_user("alice")
        held = await hold(service)
        open_peers = [await service.connect(strategy) for strategy in STRATEGIES]
        newest = rotate(tmp_path, algorithm)
        for peer in open_peers:  # the running process goes on as it was
            await say(peer, type="ping")
            assert (await hear(peer))["type"] == "pong"
            await peer.close()
        assert kid(await service.token()) == kid(held.token) != newest
    async with serving(tmp_path, signing_algorithm=algorithm) as service:
        assert kid(await service.token()) == newest, "the newest signs"
        await assert_believed(service, held)
        fresh = await service.cookie()
        async with service.http(headers={"cookie": fresh}) as http:
            assert (await http.get("/auth/me")).status_code == 200


@pytest.mark.parametrize("algorithm", ALGORITHMS)
async def test_a_key_that_was_rotated_out_is_believed_no_more(
    tmp_path: Path, algorithm: Algorithm
) -> None:
    async with serving(tmp_path, signing_algorithm=algorithm) as service:
        await service.add_user("alice")
        held = await hold(service)
    rotate(tmp_path, algorithm, keep=0)
    async with serving(tmp_path, signing_algorithm=algorithm) as service:
        for path in ("/ws/query-param", "/ws/first-message"):
            for token in (held.token, held.ticket):
                refused = await present(service, path, token)
                assert refused == (1008, "token_invalid")
        refused = await present(service, "/ws/session-cookie", held.cookie.cookie)
        assert refused == (1008, "session_invalid")
        async with service.http() as http:  # it is no signature, and the session lives
            body = {"refresh_token": held.refresh_token}
            answer = await http.post("/auth/refresh", json=body)
        async with enter(service, "/ws/query-param", answer.json()["access_token"]):
            pass


@pytest.mark.parametrize("algorithm", ["EdDSA", "ES256"])
async def test_old_and_new_keys_are_published_together(
    tmp_path: Path, algorithm: Algorithm
) -> None:
    async with serving(tmp_path, signing_algorithm=algorithm) as service:
        await service.add_user("alice")
        old = await service.token()
    newest = rotate(tmp_path, algorithm)
    async with (
        serving(tmp_path, signing_algorithm=algorithm) as service,
        service.http() as http,
    ):
        published = jwt.PyJWKSet.from_dict(
            (await http.get("/.well-known/jwks.json")).json()
        )
        assert {key.key_id for key in published.keys} == {kid(old), newest}
        for token in (old, await service.token()):
            key = published[kid(token)]
            claims = jwt.decode(token, key, [algorithm], audience="authws")
            assert claims["sub"] == "alice"


async def test_a_change_of_algorithm_drops_nobody(tmp_path: Path) -> None:
    async with serving(tmp_path) as service:
        await service.add_user("alice")
        held = await hold(service)
    async with serving(tmp_path, signing_algorithm="EdDSA") as service:
        await assert_believed(service, held)
        asymmetric = await hold(service)
        header = jwt.get_unverified_header(asymmetric.token)
        assert header["alg"] == "EdDSA"
    rotate(tmp_path, "ES256")
    async with serving(tmp_path, signing_algorithm="ES256") as service:
        assert jwt.get_unverified_header(await service.token())["alg"] == "ES256"
        await assert_believed(service, asymmetric)
        newest = await hold(service)
    async with serving(tmp_path) as service:  # and back again
        assert jwt.get_unverified_header(await service.token())["alg"] == "HS256"
        await assert_believed(service, newest)


async def test_configured_secrets_rotate_by_appending(tmp_path: Path) -> None:
    old, new = secrets.token_urlsafe(48), secrets.token_urlsafe(48)
    async with serving(tmp_path, secret_keys=(old,)) as service:
        await service.add_user("alice")
        held = await hold(service)
    async with serving(tmp_path, secret_keys=(old, new)) as service:
        await assert_believed(service, held)
        later = await hold(service)
        assert kid(later.token) != kid(held.token)
    async with serving(tmp_path, secret_keys=(new,)) as service:
        await assert_believed(service, later)
        refused = await present(service, "/ws/query-param", held.token)
        assert refused == (1008, "token_invalid")
