"""Tokens of another issuer, whose keys are fetched from its JWKS URL.

The issuer here is PyJWT behind a key server on loopback: neither is ours.
"""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jwt
import pytest
import pytest_asyncio
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from jwt.algorithms import get_default_algorithms
from websockets.exceptions import ConnectionClosed

from tests.builders import b64url, sign
from tests.grants import Grant, ending, enter, grant, hear, present, say
from tests.running import Service, running

ISSUER = "https://issuer.example"
AUDIENCE = "https://chat.example"
LEEWAY = 30.0
COOLDOWN = 30.0
TTL = 300.0
ABSENT: Any = object()

TOKEN_PATHS = ("/ws/query-param", "/ws/first-message")

on_one_loop = pytest.mark.asyncio(loop_scope="module")


class Key:
    """A signing key of the issuer."""

    def __init__(self, algorithm: str, kid: str | None = None) -> None:
        self.algorithm = algorithm
        self.kid = kid or secrets.token_urlsafe(6)
        self.private: Any
        if algorithm == "RS256":
            self.private = rsa.generate_private_key(65_537, 2048)
        elif algorithm == "ES256":
            self.private = generate_private_key(SECP256R1())
        else:
            self.private = Ed25519PrivateKey.generate()

    @property
    def jwk(self) -> dict[str, Any]:
        """What the issuer publishes of it."""
        family = get_default_algorithms()[self.algorithm]
        public = json.loads(family.to_jwk(self.private.public_key()))
        return {**public, "kid": self.kid, "alg": self.algorithm, "use": "sig"}

    @property
    def pem(self) -> bytes:
        """The public key as text: what an HMAC must never be keyed with."""
        return bytes(
            self.private.public_key().public_bytes(
                Encoding.PEM, PublicFormat.SubjectPublicKeyInfo
            )
        )


@dataclass
class Issuer:
    """Publishes keys over HTTP, and counts who asks."""

    keys: list[dict[str, Any]] = field(default_factory=list)
    fetches: int = 0
    is_down: bool = False
    port: int = 0

    async def answer(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        await reader.readuntil(b"\r\n\r\n")
        self.fetches += 1
        body = json.dumps({"keys": self.keys}).encode()
        status = "503 Service Unavailable" if self.is_down else "200 OK"
        head = f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n"
        writer.write(f"{head}Connection: close\r\n\r\n".encode() + body)
        await writer.drain()
        writer.close()

    @property
    def settings(self) -> dict[str, Any]:
        return {
            "jwks_url": f"http://127.0.0.1:{self.port}/jwks.json",
            "jwks_issuer": ISSUER,
            "jwks_audience": AUDIENCE,
        }


@asynccontextmanager
async def issuing(*keys: Key) -> AsyncIterator[Issuer]:
    issuer = Issuer([key.jwk for key in keys])
    server = await asyncio.start_server(issuer.answer, "127.0.0.1", 0)
    issuer.port = server.sockets[0].getsockname()[1]
    async with server:
        yield issuer


def token(
    service: Service,
    key: Key,
    *,
    header: dict[str, Any] | None = None,
    signer: Any = None,
    algorithm: str | None = None,
    **claims: Any,
) -> str:
    """Sign a good token of the issuer, with changes; times are relative to now."""
    now = service.clock.now()
    times = {"iat": -60, "exp": 600, **claims}
    absolute = {
        name: now + value
        for name, value in times.items()
        if name in ("iat", "nbf", "exp") and isinstance(value, int | float)
    }
    good = {"iss": ISSUER, "aud": AUDIENCE, "sub": "dora", "scope": "join:*"}
    payload = {**good, **claims, **absolute}
    members = {"kid": key.kid, "typ": "at+jwt", **(header or {})}
    return jwt.encode(
        {name: value for name, value in payload.items() if value is not ABSENT},
        key.private if signer is None else signer,
        algorithm or key.algorithm,
        {name: value for name, value in members.items() if value is not ABSENT},
    )


# ------------------------------------------------------- one issuer, many tokens of it

KEYS = {name: Key(name, f"their-{name}") for name in ("EdDSA", "ES256", "RS256")}
EDDSA = KEYS["EdDSA"]
PUBLISHED_SECRET = secrets.token_bytes(32)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def service(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Service]:
    async with issuing(*KEYS.values()) as issuer:
        symmetric = json.loads(
            get_default_algorithms()["HS256"].to_jwk(PUBLISHED_SECRET)
        )
        issuer.keys.append({**symmetric, "kid": "their-oct", "alg": "HS256"})
        path = tmp_path_factory.mktemp("service")
        settings = {**issuer.settings, "leeway": LEEWAY}
        async with running(path, **settings) as service:
            await service.add_user("alice")
            yield service


@on_one_loop
@pytest.mark.parametrize("path", TOKEN_PATHS)
@pytest.mark.parametrize("algorithm", KEYS)
async def test_a_token_of_each_algorithm_opens_a_connection(
    service: Service, algorithm: str, path: str
) -> None:
    good = token(service, KEYS[algorithm], scope="join:lobby other")
    async with enter(service, f"{path}/echo", good) as echo:
        await echo.send("hello")
        assert await asyncio.wait_for(echo.recv(), 5) == "hello"
    async with await service.open(
        f"{path}?token={good}" if path.endswith("param") else path
    ) as peer:
        if path.endswith("message"):
            assert (await hear(peer))["type"] == "auth_required"
            await say(peer, type="auth", token=good)
        welcome = await hear(peer)
        assert welcome["subject"] == "dora"
        assert welcome["scopes"] == ["join:lobby", "other"]
        await say(peer, type="join", room="lobby")
        assert (await hear(peer))["members"] == ["dora"]
        await say(peer, type="join", room="hall")
        assert (await hear(peer))["slug"] == "forbidden"


@on_one_loop
async def test_a_token_is_a_bearer_token_of_the_rest_api(service: Service) -> None:
    good = token(service, EDDSA)
    async with service.http(headers={"authorization": f"Bearer {good}"}) as http:
        me = await http.get("/auth/me")
    assert me.status_code == 200
    assert me.json()["subject"] == "dora"


@on_one_loop
@pytest.mark.parametrize("path", TOKEN_PATHS)
@pytest.mark.parametrize("typ", ["AT+JWT", "application/at+jwt"])
async def test_its_type_counts_however_it_is_spelled(
    service: Service, typ: str, path: str
) -> None:
    async with enter(service, path, token(service, EDDSA, header={"typ": typ})):
        pass


def spoil(**claims: Any) -> dict[str, Any]:
    return claims


REFUSED = {
    "unknown-kid": spoil(header={"kid": "nobody"}),
    "no-kid": spoil(header={"kid": ABSENT}),
    "kid-of-another-key": spoil(header={"kid": "their-ES256"}),
    "wrong-issuer": spoil(iss="https://issuer.example.evil.example"),
    "issuer-with-slash": spoil(iss=f"{ISSUER}/"),
    "no-issuer": spoil(iss=ABSENT),
    "wrong-audience": spoil(aud="https://other.example"),
    "two-audiences": spoil(aud=[AUDIENCE, "https://other.example"]),
    "no-audience": spoil(aud=ABSENT),
    "our-own-audience": spoil(aud="authws"),
    "typ-JWT": spoil(header={"typ": "JWT"}),
    "typ-of-a-ticket": spoil(header={"typ": "ticket+jwt"}),
    "typ-of-an-id-token": spoil(header={"typ": "id+jwt"}),
    "no-typ": spoil(header={"typ": ABSENT}),
    "jku": spoil(header={"jku": "https://evil.example/jwks.json"}),
    "embedded-key": spoil(header={"jwk": EDDSA.jwk}),
    "another-signer": spoil(signer=Key("EdDSA").private),
    "published-symmetric-key": spoil(
        header={"kid": "their-oct"}, signer=PUBLISHED_SECRET, algorithm="HS256"
    ),
    "alg-none": spoil(signer="", algorithm="none"),
    "no-subject": spoil(sub=ABSENT),
    "no-exp": spoil(exp=ABSENT),
    "no-iat": spoil(iat=ABSENT),
    "lives-over-a-day": spoil(exp=86_400),
    "issued-beyond-the-leeway": spoil(iat=LEEWAY + 5),
    "not-yet-beyond-the-leeway": spoil(nbf=LEEWAY + 5),
}


@on_one_loop
@pytest.mark.parametrize("path", TOKEN_PATHS)
@pytest.mark.parametrize("changes", REFUSED.values(), ids=REFUSED)
async def test_what_is_not_exactly_its_access_token_is_invalid(
    service: Service, changes: dict[str, Any], path: str
) -> None:
    bad = token(service, EDDSA, **changes)
    assert await present(service, path, bad) == (1008, "token_invalid")


@on_one_loop
@pytest.mark.parametrize("algorithm", KEYS)
async def test_a_public_key_is_no_hmac_secret(service: Service, algorithm: str) -> None:
    key = KEYS[algorithm]
    _, body, _ = token(service, key).split(".")
    header = {"alg": "HS256", "typ": "at+jwt", "kid": key.kid}
    # by hand: PyJWT refuses to sign this
    signed = f"{b64url(json.dumps(header).encode())}.{body}"
    forged = f"{signed}.{b64url(sign(signed.encode(), key.pem))}"
    assert await present(service, TOKEN_PATHS[0], forged) == (1008, "token_invalid")


ACCEPTED = {
    "audience-as-a-list-of-one": spoil(aud=[AUDIENCE]),
    "thumbprint-in-the-header": spoil(header={"x5t": "abc"}),
    "with-sid-and-jti": spoil(sid="s", jti="j"),
    "no-scope": spoil(scope=ABSENT),
    "issued-within-the-leeway": spoil(iat=LEEWAY - 5),
    "not-yet-within-the-leeway": spoil(nbf=LEEWAY - 5),
    "expired-within-the-leeway": spoil(exp=5 - LEEWAY),
}


@on_one_loop
@pytest.mark.parametrize("path", TOKEN_PATHS)
@pytest.mark.parametrize("changes", ACCEPTED.values(), ids=ACCEPTED)
async def test_what_its_issuer_may_do_is_accepted_and_stays(
    service: Service, changes: dict[str, Any], path: str
) -> None:
    good = token(service, EDDSA, **changes)
    async with enter(service, path, good) as peer:
        heard: list[str] = []
        await say(peer, type="ping")
        while "pong" not in heard:
            heard.append((await hear(peer))["type"])
        assert set(heard) <= {"pong", "auth_expiring"}


@on_one_loop
@pytest.mark.parametrize("path", TOKEN_PATHS)
async def test_a_token_expired_beyond_the_leeway_says_so(
    service: Service, path: str
) -> None:
    late = token(service, EDDSA, exp=-LEEWAY - 1)
    assert await present(service, path, late) == (1008, "token_expired")


@on_one_loop
@pytest.mark.parametrize("path", TOKEN_PATHS)
async def test_a_connection_ends_when_its_token_does(
    service: Service, path: str
) -> None:
    brief = token(service, EDDSA, exp=1 - LEEWAY)
    async with enter(service, path, brief) as peer:
        assert await ending(peer) == (1008, "token_expired")


@on_one_loop
@pytest.mark.parametrize("path", TOKEN_PATHS)
async def test_it_renews_its_own_subject_and_no_other(
    service: Service, path: str
) -> None:
    async with enter(service, path, token(service, EDDSA)) as peer:
        await say(peer, type="auth", token=token(service, EDDSA, scope="publish:*"))
        assert (await hear(peer))["scopes"] == ["publish:*"]
        await say(peer, type="auth", token=token(service, EDDSA, sub="eve"))
        assert await ending(peer) == (1008, "subject_changed")


@on_one_loop
async def test_its_alice_is_not_our_alice(service: Service) -> None:
    ours = await grant(service, "query-param", "alice")
    theirs = token(service, EDDSA, sub="alice", sid=ours.session)
    async with enter(service, "/ws/query-param", ours) as peer:
        await say(peer, type="auth", token=theirs)
        assert await ending(peer) == (1008, "subject_changed")
    bearer = {"authorization": f"Bearer {theirs}"}
    async with (
        enter(service, "/ws/query-param", ours) as peer,
        service.http(headers=bearer) as http,
    ):
        answers = [
            await http.get("/auth/sessions"),
            await http.delete(f"/auth/sessions/{ours.session}"),
            await http.post("/auth/ticket"),
            await http.post("/auth/logout"),
            await http.post("/auth/password", json={"new_password": "a" * 20}),
        ]
        assert [a.status_code for a in answers] == [403] * 5
        assert {a.json()["detail"] for a in answers} == {"forbidden"}
        late = token(service, EDDSA, sub="alice", sid=ours.session, exp=-LEEWAY - 1)
        await http.post("/auth/logout", headers={"authorization": f"Bearer {late}"})
        await say(peer, type="ping")
        assert (await hear(peer))["type"] == "pong"


@on_one_loop
async def test_ending_our_alice_leaves_its_alice_alone(service: Service) -> None:
    ours = await grant(service, "query-param", "alice")
    theirs = token(service, EDDSA, sub="alice", sid=ours.session)
    async with (
        enter(service, "/ws/query-param", ours) as our_peer,
        enter(service, "/ws/query-param", theirs) as their_peer,
    ):
        await service.call(service.house.accounts.end_session(ours.session, "logout"))
        assert await ending(our_peer) == (1008, "token_revoked")
        await say(their_peer, type="ping")
        assert (await hear(their_peer))["type"] == "pong"


# ---------------------------------------------------------------- fetching, and failing


@asynccontextmanager
async def trusting(tmp_path: Path, *keys: Key) -> AsyncIterator[tuple[Service, Issuer]]:
    async with (
        issuing(*keys) as issuer,
        running(tmp_path, **issuer.settings) as service,
    ):
        await service.add_user("alice")
        yield service, issuer


@pytest.mark.parametrize("path", TOKEN_PATHS)
async def test_to_a_foreign_token_every_user_of_ours_is_another(
    tmp_path: Path, path: str
) -> None:
    key = Key("EdDSA")
    async with trusting(tmp_path, key) as (service, _):
        ours = await grant(service, "session-cookie", "alice")
        theirs = token(service, key, sub="alice")
        cookie = [("cookie", f"authws={ours.cookie}")]
        beside = await present(service, path, theirs, headers=cookie)
        assert beside == (1008, "auth_malformed")
        await ours.end()
        async with enter(service, path, theirs, headers=cookie):
            pass


def move_on(service: Service, seconds: float) -> None:
    """Let the time pass by which the age of the key set is told."""
    before = service.clock.monotonic

    def monotonic() -> float:
        return before() + seconds

    service.clock.monotonic = monotonic  # type: ignore[method-assign]


async def is_accepted(service: Service, credential: str) -> bool:
    async with await service.open(f"/ws/query-param?token={credential}") as peer:
        try:
            await hear(peer)
        except ConnectionClosed:
            assert await ending(peer) == (1008, "token_invalid")
            return False
        return True


async def test_a_new_key_is_fetched_after_the_cool_down_and_drops_nobody(
    tmp_path: Path,
) -> None:
    old, new = Key("ES256"), Key("ES256")
    async with trusting(tmp_path, old) as (service, issuer):
        assert issuer.fetches == 0
        async with enter(service, "/ws/first-message", token(service, old)) as peer:
            issuer.keys = [new.jwk]
            assert not await is_accepted(service, token(service, new))
            assert issuer.fetches == 1, "the cool-down is not over"
            move_on(service, COOLDOWN)
            assert await is_accepted(service, token(service, new))
            assert issuer.fetches == 2
            assert not await is_accepted(service, token(service, old))
            assert issuer.fetches == 2
            await say(peer, type="ping")
            assert (await hear(peer))["type"] == "pong"


async def test_a_withdrawn_key_is_believed_no_longer_than_the_set_is_kept(
    tmp_path: Path,
) -> None:
    stolen, other = Key("EdDSA"), Key("EdDSA")
    async with trusting(tmp_path, stolen, other) as (service, issuer):
        assert await is_accepted(service, token(service, stolen))
        issuer.keys = [other.jwk]
        move_on(service, TTL)
        assert not await is_accepted(service, token(service, stolen))


async def test_many_unknown_keys_at_once_cause_one_fetch(tmp_path: Path) -> None:
    key = Key("EdDSA")
    async with trusting(tmp_path, key) as (service, issuer):
        bad = [token(service, key, header={"kid": f"k{i}"}) for i in range(20)]
        good = [token(service, key) for _ in range(5)]
        answers = await asyncio.gather(
            *(is_accepted(service, credential) for credential in [*bad, *good])
        )
        assert answers == [False] * 20 + [True] * 5
        assert issuer.fetches == 1


@pytest.mark.parametrize("path", TOKEN_PATHS)
async def test_an_issuer_out_of_reach_closes_1013_for_keys_not_known(
    tmp_path: Path, path: str
) -> None:
    key = Key("RS256")
    async with trusting(tmp_path, key) as (service, issuer):
        issuer.is_down = True
        unknown = token(service, key)
        assert await present(service, path, unknown) == (1013, "unavailable")
        bearer = {"authorization": f"Bearer {unknown}"}
        async with service.http(headers=bearer) as http:
            answer = await http.get("/auth/me")
        assert (answer.status_code, answer.json()) == (503, {"detail": "unavailable"})
        assert int(answer.headers["retry-after"]) >= 1
        assert issuer.fetches == 1, "a failure has a cool-down too"
        await assert_our_own_are_decided_without_it(service, path)
        issuer.is_down = False
        move_on(service, COOLDOWN)
        async with enter(service, path, unknown):
            pass


async def assert_our_own_are_decided_without_it(service: Service, path: str) -> None:
    ours: Grant = await grant(service, "query-param")
    async with enter(service, path, ours):
        pass
    head, body, signature = ours.access().split(".")
    for bad in (f"{head}.{body}.{signature[::-1]}", "garbage", f"{head}.{body}."):
        assert await present(service, path, bad) == (1008, "token_invalid")
    late = ours.access(age=901)
    assert await present(service, path, late) == (1008, "token_expired")
    wrong_kind = {"authorization": f"Bearer {ours.ticket()}"}
    async with service.http(headers=wrong_kind) as http:
        assert (await http.get("/auth/me")).status_code == 401


async def test_known_keys_outlive_an_issuer_out_of_reach(tmp_path: Path) -> None:
    key = Key("EdDSA")
    async with trusting(tmp_path, key) as (service, issuer):
        assert await is_accepted(service, token(service, key))
        issuer.is_down = True
        move_on(service, TTL)
        assert await is_accepted(service, token(service, key))
        assert issuer.fetches == 2
        unknown = token(service, Key("EdDSA"))
        refused = await present(service, "/ws/query-param", unknown)
        assert refused == (1013, "unavailable")


async def test_a_house_with_no_issuer_believes_none(tmp_path: Path) -> None:
    key = Key("EdDSA")
    async with running(tmp_path) as service:
        bad = token(service, key)
        refused = await present(service, "/ws/query-param", bad)
        assert refused == (1008, "token_invalid")
