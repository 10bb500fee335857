"""Token validation.

Every token here is the mint's good one with one thing spoiled, and the good one is
admitted beside it: what is refused is refused for that one thing. Each goes over all
three carriers a token has: the query, the first message, and ``Authorization``.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import hmac
import json
import re
import secrets
import statistics
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from pydantic import SecretStr, ValidationError

from authws.decisions.keys import PublicKey, SigningKey, hmac_key
from authws.exceptions import InvalidTokenError
from authws.service.settings import Settings
from tests.builders import ABSENT, b64url, compact, make_eddsa_key, make_token, sign
from tests.running import ENDPOINTS, PASSWORD, Service, running
from tests.security.attacks import (
    ADMITTED,
    CARRIERS,
    Mint,
    Outcome,
    mint_for,
    one_refusal,
    outcome,
    present,
    refusal,
)
from tests.security.peers import bearer, control, controlled, eventually
from tests.wire import TEXT, frame, handshake, request, wire

pytestmark = pytest.mark.asyncio(loop_scope="module")

EVERY_CARRIER = pytest.mark.parametrize("carrier", CARRIERS)
ROOT = Path(__file__).parents[2]

PUBLISHED = ("secret", "changeme", "your-256-bit-secret", "password", "supersecret")
"""Secrets of tutorials and of token debuggers."""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def service(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Service]:
    async with running(
        tmp_path_factory.mktemp("tokens"), recheck_interval=0.2
    ) as service:
        await service.add_user("alice")
        async with controlled(service):
            yield service


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def mint(service: Service) -> Mint:
    return await mint_for(service)


@asynccontextmanager
async def beside(service: Service, carrier: str, good: str) -> AsyncIterator[None]:
    """Prove that the good token is admitted before an attack and after it."""
    assert await present(service, carrier, good) == ADMITTED[carrier]
    yield
    assert await present(service, carrier, good) == ADMITTED[carrier]


def sections(token: str) -> list[str]:
    return token.split(".")


def spoiled_payload(token: str) -> str:
    """Flip one bit of the payload, and leave the signature."""
    header, payload, signature = sections(token)
    claims = bytearray(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
    claims[len(claims) // 2] ^= 1
    return f"{header}.{b64url(bytes(claims))}.{signature}"


def with_header(token: str, header: dict[str, Any]) -> str:
    """Put another header before a payload and a signature."""
    return ".".join([b64url(json.dumps(header).encode()), *sections(token)[1:]])


def hmac_token(mint: Mint, secret: bytes, digest: str = "sha256", **header: Any) -> str:
    """Sign good claims by any HMAC, with any bytes for a secret."""
    head = {k: v for k, v in mint.header(**header).items() if v is not ABSENT}
    signed = f"{b64url(json.dumps(head).encode())}.{b64url(mint.claims_bytes())}"
    signature = hmac.new(secret, signed.encode(), digest).digest()
    return f"{signed}.{b64url(signature)}"


def unsigned(mint: Mint, algorithm: str, signature: str = "") -> str:
    """The good token's own claims, under an algorithm that signs nothing."""
    return (
        with_header(mint.good, mint.header(alg=algorithm)).rpartition(".")[0]
        + "."
        + signature
    )


def times(mint: Mint, **offsets: float) -> str:
    """A token whose times are so many seconds from now."""
    now = mint.service.clock.now()
    claims: dict[str, Any] = {name: now + offset for name, offset in offsets.items()}
    return mint.token(**claims)


def exp_literal(mint: Mint, literal: str) -> str:
    """A token whose ``exp`` is these characters, JSON or not."""
    claims = mint.claims_bytes(exp="EXP").replace(b'"EXP"', literal.encode())
    return mint.raw(claims=claims)


def repeated(part: bytes, member: str) -> bytes:
    """Write a member of a JSON object a second time, before the others."""
    return part.replace(b"{", b"{" + member.encode() + b", ", 1)


def embedded_key(mint: Mint) -> str:
    """Sign with a key that the header itself brings along (CVE-2018-0114)."""
    own = make_eddsa_key("mine")
    return mint.token(key=own, header={"jwk": own.jwk()})


def embedded_key_beside_ours(mint: Mint) -> str:
    own = make_eddsa_key(mint.key.kid)
    return mint.token(key=own, header={"jwk": own.jwk()})


def jwe(**header: Any) -> str:
    """Five parts: an encrypted token, where a signed one is expected."""
    head = {"alg": "dir", "enc": "A256GCM", **header}
    return ".".join([b64url(json.dumps(head).encode()), "", "aXY", "Y2lwaGVy", "dGFn"])


def serialized(mint: Mint) -> str:
    """The same token in the JSON serialization of RFC 7515, 7.2."""
    header, payload, signature = sections(mint.good)
    return json.dumps({"protected": header, "payload": payload, "signature": signature})


ATTACKS: dict[str, Callable[[Mint], str]] = {
    # malformed shapes
    "TOK-03-one-part": lambda m: "a",
    "TOK-03-dot": lambda m: ".",
    "TOK-03-two-dots": lambda m: "..",
    "TOK-03-two-parts": lambda m: "a.b",
    "TOK-03-three-letters": lambda m: "a.b.c",
    "TOK-03-four-parts": lambda m: m.good + ".d",
    "TOK-03-json-serialization": serialized,
    "TOK-03-braces": lambda m: "{}",
    "TOK-03-quotes": lambda m: f'"{m.good}"',
    "TOK-03-prefix": lambda m: f"Bearer.{m.good}",
    "TOK-03-inner-space": lambda m: m.good.replace(".", ". ", 1),
    "TOK-03-newline": lambda m: m.good + "\\n",
    "TOK-03-no-payload": lambda m: "{0}..{2}".format(*sections(m.good)),
    # signatures and algorithms
    "TOK-04": lambda m: unsigned(m, "none"),
    "TOK-04-with-signature": lambda m: unsigned(m, "none", sections(m.good)[2]),
    "TOK-04-empty-signature": lambda m: m.good.rpartition(".")[0] + ".",
    "TOK-04-no-alg": lambda m: m.token(header={"alg": ABSENT}),
    "TOK-05-None": lambda m: unsigned(m, "None", "AA"),
    "TOK-05-NONE": lambda m: unsigned(m, "NONE", "AA"),
    "TOK-05-nOnE": lambda m: unsigned(m, "nOnE", "AA"),
    "TOK-05-space": lambda m: unsigned(m, "none ", "AA"),
    "TOK-05-NoNe": lambda m: unsigned(m, "NoNe"),
    "TOK-07": lambda m: spoiled_payload(m.good),
    "TOK-08-typ": lambda m: with_header(m.good, m.header(typ="JWT")),
    "TOK-08-member": lambda m: with_header(m.good, m.header(x=1)),
    "TOK-08-order": lambda m: with_header(
        m.good, dict(reversed(list(m.header().items())))
    ),
    "TOK-09": lambda m: hmac_token(m, b""),
    "TOK-09-no-kid": lambda m: hmac_token(m, b"", kid=ABSENT),
    "TOK-11-HS384": lambda m: hmac_token(m, m.secret, "sha384", alg="HS384"),
    "TOK-11-HS512": lambda m: hmac_token(m, m.secret, "sha512", alg="HS512"),
    "TOK-11-lower-case": lambda m: m.token(header={"alg": "hs256"}),
    "TOK-11-trailing-space": lambda m: m.token(header={"alg": "HS256 "}),
    "TOK-11-list": lambda m: m.token(header={"alg": ["HS256"]}),
    "TOK-14": embedded_key,
    "TOK-14-our-kid": embedded_key_beside_ours,
    "TOK-14-our-signature": lambda m: m.token(header={"jwk": {"kty": "oct"}}),
    # header members that would change what is verified, correctly signed
    "TOK-16-integer": lambda m: m.token(header={"kid": 7}),
    "TOK-16-list": lambda m: m.token(header={"kid": [m.key.kid]}),
    "TOK-16-absent": lambda m: m.token(header={"kid": ABSENT}),
    "TOK-18": lambda m: m.token(header={"crit": ["x"], "x": 1}),
    "TOK-18-b64": lambda m: m.token(header={"crit": ["b64"], "b64": False}),
    "TOK-18-empty": lambda m: m.token(header={"crit": []}),
    # times
    "TOK-22": lambda m: m.token(exp=ABSENT),
    "TOK-22-no-iat": lambda m: m.token(iat=ABSENT),
    "TOK-23-null": lambda m: m.token(exp=None),
    "TOK-23-list": lambda m: m.token(exp=[]),
    "TOK-23-true": lambda m: m.token(exp=True),
    "TOK-23-word": lambda m: m.token(exp="tomorrow"),
    "TOK-23-numeric-string": lambda m: m.token(exp=str(int(time.time()) + 900)),
    "TOK-23-NaN": lambda m: exp_literal(m, "NaN"),
    "TOK-23-Infinity": lambda m: exp_literal(m, "Infinity"),
    "TOK-23-overflow": lambda m: exp_literal(m, "1e400"),
    "TOK-23-huge": lambda m: exp_literal(m, "1" + "0" * 30),
    "TOK-23-negative": lambda m: m.token(exp=-1),
    "TOK-23-too-long-a-life": lambda m: times(m, exp=86_400 + 10),
    "TOK-24-nbf": lambda m: times(m, nbf=120),
    "TOK-24-iat": lambda m: times(m, iat=120),
    "TOK-24-nbf-null": lambda m: m.token(nbf=None),
    "TOK-24-nbf-string": lambda m: m.token(nbf="0"),
    "TOK-24-iat-null": lambda m: m.token(iat=None),
    "TOK-24-iat-string": lambda m: m.token(iat="0"),
    # for whom, and from whom
    "TOK-26-absent": lambda m: m.token(aud=ABSENT),
    "TOK-26-wrong": lambda m: m.token(aud="elsewhere"),
    "TOK-26-prefix": lambda m: m.token(aud="auth"),
    "TOK-26-superset": lambda m: m.token(aud="authws2"),
    "TOK-26-case": lambda m: m.token(aud="AuthWS"),
    "TOK-26-list": lambda m: m.token(aud=["authws"]),
    "TOK-26-list-with-another": lambda m: m.token(aud=["authws", "elsewhere"]),
    "TOK-26-object": lambda m: m.token(aud={"authws": 1}),
    "TOK-26-null": lambda m: m.token(aud=None),
    "TOK-27-absent": lambda m: m.token(iss=ABSENT),
    "TOK-27-wrong": lambda m: m.token(iss="https://evil.example"),
    "TOK-27-substring": lambda m: m.token(iss="auth"),
    "TOK-27-superstring": lambda m: m.token(iss="authws.evil.example"),
    "TOK-27-list": lambda m: m.token(iss=["authws"]),
    "TOK-27-null": lambda m: m.token(iss=None),
    # whose
    "TOK-28-absent": lambda m: m.token(sub=ABSENT),
    "TOK-28-empty": lambda m: m.token(sub=""),
    "TOK-28-number": lambda m: m.token(sub=1),
    "TOK-28-other-user": lambda m: m.token(sub="witness-1"),
    "TOK-28-no-session": lambda m: m.token(sid=ABSENT),
    "TOK-28-unknown-session": lambda m: m.token(sid=secrets.token_urlsafe(32)),
    "TOK-28-no-jti": lambda m: m.token(jti=ABSENT),
    # other tokens
    "TOK-29": lambda m: m.refresh_token,
    "TOK-30-session-cookie": lambda m: m.cookie,
    "TOK-30-id-token": lambda m: m.token(header={"typ": "JWT"}, nonce="n"),
    "TOK-30-reset-link": lambda m: m.token(header={"typ": "reset+jwt"}),
    "TOK-31-wrong": lambda m: m.token(header={"typ": "JWT"}),
    "TOK-31-JWE": lambda m: m.token(header={"typ": "JWE"}),
    "TOK-31-absent": lambda m: m.token(header={"typ": ABSENT}),
    "TOK-31-long-form": lambda m: m.token(header={"typ": "application/at+jwt"}),
    "TOK-31-list": lambda m: m.token(header={"typ": ["at+jwt"]}),
    "TOK-32": lambda m: jwe(),
    "TOK-32-real-parts": lambda m: f"{m.good}.{'.'.join(sections(m.good)[1:])}",
    # what two parsers may read differently
    "TOK-33-header": lambda m: m.raw(
        header=repeated(m.header_bytes(), '"alg": "none"')
    ),
    "TOK-33-claims": lambda m: m.raw(
        claims=repeated(m.claims_bytes(), '"sub": "admin"')
    ),
    "TOK-33-same-value": lambda m: m.raw(
        claims=repeated(m.claims_bytes(), '"aud": "authws"')
    ),
    "TOK-34-utf16": lambda m: m.raw(header=m.header_bytes().decode().encode("utf-16")),
    "TOK-34-utf32": lambda m: m.raw(header=m.header_bytes().decode().encode("utf-32")),
    "TOK-34-bom": lambda m: m.raw(header=b"\xef\xbb\xbf" + m.header_bytes()),
    "TOK-34-bom-in-claims": lambda m: m.raw(claims=b"\xef\xbb\xbf" + m.claims_bytes()),
    "TOK-34-NaN": lambda m: m.raw(header=repeated(m.header_bytes(), '"x": NaN')),
    "TOK-34-invalid-utf8": lambda m: m.raw(header=b'{"alg":"\xff"}'),
    "TOK-34-not-an-object": lambda m: m.raw(header=b'["HS256"]'),
    "TOK-34-claims-not-an-object": lambda m: m.raw(claims=b'"alice"'),
    # spellings
    "TOK-35": lambda m: m.good + "=",
    "TOK-35-two": lambda m: m.good + "==",
    "TOK-35-padded-payload": lambda m: "{}.{}=.{}".format(*sections(m.good)),
    "TOK-35-loose-bits": lambda m: m.good[:-1] + _next_letter(m.good[-1]),
    "TOK-37": lambda m: "\ud800.a.b",
    "TOK-37-in-a-good-one": lambda m: m.good + "\udfff",
    "TOK-37-other-digits": lambda m: m.good.replace("e", "\uff45", 1),
    # what costs
    "TOK-39": lambda m: m.raw(header=b"[" * 4000),
    "TOK-39-claims": lambda m: m.raw(claims=b'{"a":' * 1000),
    "TOK-40": lambda m: m.raw(header=b'{"alg":' + b"1" * 5000 + b"}"),
    "TOK-40-claims": lambda m: exp_literal(m, "1" * 5000),
    "TOK-41-bomb": lambda m: jwe(zip="DEF"),
    "TOK-41-pbes2": lambda m: jwe(
        alg="PBES2-HS256+A128KW", p2c=10**9, p2s="c2FsdHNhbHQ"
    ),
    "TOK-41-signed-zip": lambda m: m.token(header={"zip": "DEF"}),
    "TOK-41-signed-p2c": lambda m: m.token(header={"p2c": 10**9}),
    "TOK-44": lambda m: m.token(aud="sibling-service"),
    "TOK-44-tickets-audience": lambda m: m.token(aud="authws/ws"),
}


def _next_letter(letter: str) -> str:
    """Another letter whose first bits are the same: the last ones decode to nothing."""
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    return letters[letters.index(letter) ^ 1]


@EVERY_CARRIER
@pytest.mark.parametrize("case", ATTACKS)
async def test_spoiled_token_is_refused(
    service: Service, mint: Mint, case: str, carrier: str
) -> None:
    attack = ATTACKS[case](mint)
    async with beside(service, carrier, mint.good), one_refusal(service):
        started = time.perf_counter()
        assert await present(service, carrier, attack) == refusal(
            carrier, "token_invalid"
        )
        assert time.perf_counter() - started < 2


@EVERY_CARRIER
@pytest.mark.parametrize("case", ["TOK-46"])
async def test_good_tokens_are_admitted_between_attacks(
    service: Service, mint: Mint, case: str, carrier: str
) -> None:
    """Without this a server that refuses everything would pass."""
    for attack in ("TOK-03-dot", "TOK-04", "TOK-22", "TOK-37", "TOK-40"):
        async with beside(service, carrier, mint.token()):
            await present(service, carrier, ATTACKS[attack](mint))


# -------------------------------------------------------------- no credential, or empty


@pytest.mark.parametrize("case", ["TOK-01", "TOK-02"])
@pytest.mark.parametrize("path", ENDPOINTS)
async def test_no_endpoint_opens_without_a_credential(
    service: Service, path: str, case: str
) -> None:
    empty = case == "TOK-02"
    headers: tuple[str, ...] = ()
    if "session-cookie" in path:
        headers = (f"Origin: {service.origin}", *(["Cookie: authws="] * empty))
    async with one_refusal(service), wire(service.port) as peer:
        query = "?token=" if empty and "query-param" in path else ""
        await peer.send(handshake(path + query, headers=headers))
        if "first-message" in path:
            assert (await peer.response()).status == 101
            assert json.loads((await peer.frame()).payload)["type"] == "auth_required"
            token = {"token": ""} if empty else {}
            await peer.send(frame(TEXT, json.dumps({"type": "auth", **token}).encode()))
            assert await peer.close_frame() == (1008, "auth_missing")
        else:
            assert await outcome(peer) == Outcome(101, 1008, "auth_missing")


@pytest.mark.parametrize("case", ["TOK-01-all-routes"])
async def test_every_websocket_route_is_among_the_attacked(
    service: Service, case: str
) -> None:
    from authws.service.app import websocket_endpoints

    assert set(websocket_endpoints(service.house)) == set(ENDPOINTS)
    async with wire(service.port) as peer:
        await peer.send(handshake("/ws/another"))
        assert (await outcome(peer)).status == 403


OPEN_TO_ALL = {
    ("get", "/.well-known/jwks.json"),
    ("get", "/healthz"),
    ("get", "/readyz"),
    ("post", "/auth/login"),
    ("post", "/auth/refresh"),
    ("post", "/auth/session"),
    ("delete", "/auth/session"),
    ("get", "/"),
}
"""What is reached without a credential: logins, logouts, and what tells nothing."""


@pytest.mark.parametrize("case", ["TOK-01-rest", "TOK-02-rest"])
async def test_every_rest_route_but_the_logins_asks_for_a_credential(
    service: Service, case: str
) -> None:
    async with service.http() as http:
        schema = (await http.get("/openapi.json")).json()
        operations = {
            (method, path) for path, item in schema["paths"].items() for method in item
        }
        guarded = operations - OPEN_TO_ALL
        assert ("get", "/auth/me") in guarded
    empty = ["Authorization: Bearer "] if "TOK-02" in case else []
    body = b'{"new_password":"long enough to be one"}'
    lines = ["Content-Type: application/json", f"Content-Length: {len(body)}", *empty]
    for method, path in sorted(guarded):
        async with one_refusal(service), wire(service.port) as peer:
            await peer.send(request(path, *lines, method=method.upper()) + body)
            answer = await peer.response()
            assert answer.status == 401, (method, path)
            assert json.loads(answer.body) == {"detail": "auth_missing"}
            assert answer.headers["www-authenticate"].startswith("Bearer")


# --------------------------------------------------------------------- secrets and keys


@EVERY_CARRIER
@pytest.mark.parametrize("case", ["TOK-10"])
async def test_no_published_secret_signs_our_tokens(
    service: Service, mint: Mint, case: str, carrier: str
) -> None:
    candidates = {*PUBLISHED, *(word * 4 for word in PUBLISHED)}
    for name in ("README.md", ".env.example", "SECURITY.md"):
        document = ROOT / name
        text = document.read_text() if document.exists() else ""
        candidates |= set(re.findall(r"[A-Za-z0-9_-]{16,}", text))
    signed, _, signature = mint.good.rpartition(".")
    for candidate in candidates:
        keys: list[bytes | SigningKey] = [
            candidate.encode(),
            hmac_key(candidate.encode()),
        ]
        for key in keys:
            assert b64url(sign(signed.encode(), key)) != signature
    async with beside(service, carrier, mint.good), one_refusal(service):
        forged = hmac_token(mint, b"your-256-bit-secret")
        assert await present(service, carrier, forged) == refusal(
            carrier, "token_invalid"
        )


def spellings(public: PublicKey) -> dict[str, bytes]:
    """The forms in which a public key may have got into a verifier's hands."""
    pem = public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    der = public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    openssh = public.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
    return {"pem": pem, "pem-stripped": pem.strip(), "der": der, "openssh": openssh}


@pytest.mark.parametrize("algorithm", ["EdDSA", "ES256"])
@pytest.mark.parametrize("case", ["TOK-12", "TOK-20"])
async def test_public_key_is_no_secret_and_serves_one_algorithm(
    tmp_path: Path, case: str, algorithm: str
) -> None:
    async with running(tmp_path, signing_algorithm=algorithm) as service:
        await service.add_user("alice")
        mint = await mint_for(service)
        key = mint.key
        assert key.public is not None
        async with service.http() as http:
            (jwk,) = (await http.get("/.well-known/jwks.json")).json()["keys"]
        assert jwk["kid"] == key.kid
        if case == "TOK-12":
            forms = {
                **spellings(key.public),
                "jwk": json.dumps(jwk).encode(),
                "jwk-compact": json.dumps(jwk, separators=(",", ":")).encode(),
                "x": base64.urlsafe_b64decode(jwk["x"] + "="),
            }
            forged = [
                hmac_token(mint, form, alg="HS256", kid=kid)
                for form in forms.values()
                for kid in (key.kid, ABSENT)
            ]
        else:
            other = "ES256" if algorithm == "EdDSA" else "EdDSA"
            forged = [
                mint.token(header={"alg": alg})
                for alg in (other, "HS256", "RS256", "Ed25519", "none")
            ]
        for token in forged:
            for carrier in CARRIERS:
                async with beside(service, carrier, mint.good), one_refusal(service):
                    assert await present(service, carrier, token) == refusal(
                        carrier, "token_invalid"
                    )


class Listener:
    """A server of the attacker's: it counts who calls, and may publish keys."""

    def __init__(self) -> None:
        self.calls = 0
        self.keys: list[dict[str, str]] | None = []
        self.port = 0

    async def answer(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self.calls += 1
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            await reader.readuntil(b"\r\n\r\n")
            body = json.dumps({"keys": self.keys}).encode()
            status = "200 OK" if self.keys is not None else "500 Oops"
            head = f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n"
            writer.write(f"{head}Connection: close\r\n\r\n".encode() + body)
            await writer.drain()
        writer.close()


@asynccontextmanager
async def listening() -> AsyncIterator[Listener]:
    listener = Listener()
    server = await asyncio.start_server(listener.answer, "127.0.0.1", 0)
    listener.port = server.sockets[0].getsockname()[1]
    async with server:
        yield listener


@EVERY_CARRIER
@pytest.mark.parametrize("member", ["jku", "x5u"])
@pytest.mark.parametrize("case", ["TOK-15"])
async def test_key_is_never_fetched_from_where_a_token_says(
    service: Service, mint: Mint, case: str, member: str, carrier: str
) -> None:
    own = make_eddsa_key("mine")
    jwk = own.jwk()
    assert jwk is not None
    async with listening() as attacker:
        attacker.keys = [jwk]
        url = f"http://127.0.0.1:{attacker.port}/keys.json"
        for key in (own, mint.key):
            async with beside(service, carrier, mint.good), one_refusal(service):
                token = mint.token(key=key, header={member: url})
                assert await present(service, carrier, token) == refusal(
                    carrier, "token_invalid"
                )
        assert attacker.calls == 0


KIDS = {
    "TOK-16-path": "../../../../dev/null",
    "TOK-16-sql": "x' UNION SELECT 'secret' --",
    "TOK-16-crlf": 'kid\r\n{"event":"connected"}',
    "TOK-16-nul": "kid\x00canary",
    "TOK-16-command": "|touch canary",
    "TOK-16-empty": "",
    "TOK-16-long": "k" * 5000,
}


@EVERY_CARRIER
@pytest.mark.parametrize("case", KIDS)
async def test_key_id_reaches_no_path_no_query_and_no_log(
    service: Service, mint: Mint, case: str, carrier: str
) -> None:
    kid = KIDS[case]
    since = len(service.records)
    for key in (b"", mint.secret):
        async with beside(service, carrier, mint.good), one_refusal(service):
            token = hmac_token(mint, key, kid=kid)
            assert await present(service, carrier, token) == refusal(
                carrier, "token_invalid"
            )
    for record in service.records[since:]:
        assert not kid or kid not in record.getMessage()
        assert "canary" not in record.getMessage()


@pytest.mark.parametrize("case", ["TOK-17"])
async def test_unknown_key_ids_cause_one_fetch_in_a_cooldown(
    tmp_path: Path, case: str
) -> None:
    """And the keys that are known survive a fetch that fails."""
    theirs = make_eddsa_key("theirs")
    jwk = theirs.jwk()
    assert jwk is not None
    async with listening() as issuer:
        issuer.keys = [jwk]
        async with running(
            tmp_path,
            jwks_url=f"http://127.0.0.1:{issuer.port}/keys.json",
            jwks_issuer="https://issuer.example",
            jwks_audience="chat",
        ) as service:
            await service.add_user("alice")
            await control(service)
            good = foreign_token(service, theirs)
            assert await present(service, "query", good) == ADMITTED["query"]
            assert issuer.calls == 1

            async def spray() -> set[Outcome]:
                tokens = [
                    foreign_token(service, make_eddsa_key(secrets.token_hex(8)))
                    for _ in range(50)
                ]
                return set(
                    await asyncio.gather(
                        *(present(service, "query", token) for token in tokens)
                    )
                )

            async with one_refusal(service, 50):
                assert await spray() == {Outcome(101, 1008, "token_invalid")}
            assert issuer.calls == 1

            issuer.keys = None  # from now on it fails
            real = service.clock.monotonic
            service.clock.monotonic = lambda: real() + 31  # type: ignore[method-assign]
            refused = await spray()
            assert issuer.calls == 2
            assert refused <= {
                Outcome(101, 1008, "token_invalid"),
                Outcome(101, 1013, "unavailable"),
            }
            for carrier in CARRIERS:
                assert await present(service, carrier, good) == ADMITTED[carrier]
            assert issuer.calls == 2
            await control(service)


def foreign_token(service: Service, key: SigningKey, **claims: Any) -> str:
    now = service.clock.now()
    good = {
        "iss": "https://issuer.example",
        "aud": "chat",
        "sub": "carol",
        "iat": now - 100,
        "nbf": now - 100,
        "exp": now + 900,
    }
    return make_token(key=key, **{**good, **claims})


# --------------------------------------------------------------------------------- time


@EVERY_CARRIER
@pytest.mark.parametrize("case", ["TOK-21", "TOK-21-exactly-now"])
async def test_expired_token_is_refused_as_expired(
    service: Service, mint: Mint, case: str, carrier: str
) -> None:
    past = 0.0 if "now" in case else -1.0
    async with beside(service, carrier, mint.good), one_refusal(service):
        token = times(mint, exp=past, iat=-60, nbf=-60)
        assert await present(service, carrier, token) == refusal(
            carrier, "token_expired"
        )


@EVERY_CARRIER
@pytest.mark.parametrize("case", ["TOK-23-float"])
async def test_time_may_have_a_fraction(
    service: Service, mint: Mint, case: str, carrier: str
) -> None:
    """The one fixed policy: RFC 7519, 2 allows it, and our own tokens have one."""
    token = times(mint, exp=100.25)
    assert await present(service, carrier, token) == ADMITTED[carrier]


@pytest.mark.parametrize("case", ["TOK-25"])
async def test_leeway_is_what_is_configured_and_not_a_second_more(
    tmp_path: Path, case: str
) -> None:
    theirs = make_eddsa_key("theirs")
    jwk = theirs.jwk()
    assert jwk is not None
    async with listening() as issuer:
        issuer.keys = [jwk]
        async with running(
            tmp_path,
            leeway=30,
            jwks_url=f"http://127.0.0.1:{issuer.port}/keys.json",
            jwks_issuer="https://issuer.example",
            jwks_audience="chat",
        ) as service:
            await service.add_user("alice")
            mint = await mint_for(service)
            now = service.clock.now()
            late, later = now - 20, now - 31
            for carrier in CARRIERS:
                for within, beyond in (
                    (
                        mint.token(iat=now - 60, nbf=now - 60, exp=late),
                        mint.token(iat=now - 60, nbf=now - 60, exp=later),
                    ),
                    (
                        foreign_token(service, theirs, exp=late),
                        foreign_token(service, theirs, exp=later),
                    ),
                ):
                    async with beside(service, carrier, within), one_refusal(service):
                        assert await present(service, carrier, beyond) == refusal(
                            carrier, "token_expired"
                        )
            # and whom it admits, it leaves connected as long
            token = foreign_token(service, theirs, exp=late)
            async with await service.open(f"/ws/query-param?token={token}") as peer:
                assert json.loads(await peer.recv())["type"] == "auth_ok"
                await peer.send('{"type":"ping"}')
                assert json.loads(await peer.recv())["type"] == "pong"
            await control(service)
    with pytest.raises(ValidationError):
        Settings(_env_file=None, leeway=61)


# --------------------------------------------------- tokens of one kind used as another


@pytest.mark.parametrize("case", ["TOK-29-reverse", "TOK-30-refresh"])
async def test_only_a_refresh_token_refreshes(
    service: Service, mint: Mint, case: str
) -> None:
    others = {
        "TOK-29-reverse": [mint.good],
        "TOK-30-refresh": [
            await service.ticket(mint.good),
            mint.cookie,
            "rt_" + secrets.token_urlsafe(32),
            mint.refresh_token + "=",
        ],
    }
    async with service.http() as http:
        for other in others[case]:
            async with one_refusal(service):
                answer = await http.post("/auth/refresh", json={"refresh_token": other})
            assert (answer.status_code, answer.json()) == (
                401,
                {"detail": "token_invalid"},
            )
    assert await present(service, "bearer", mint.good) == ADMITTED["bearer"]


@pytest.mark.parametrize("case", ["TOK-30-ticket-over-rest", "TOK-30-typ-of-access"])
async def test_ticket_opens_connections_and_nothing_else(
    service: Service, mint: Mint, case: str
) -> None:
    ticket = await service.ticket(mint.good)
    if case == "TOK-30-typ-of-access":  # whoever could sign could still not mix them
        ticket = mint.token(aud="authws/ws")
    async with beside(service, "bearer", mint.good), one_refusal(service):
        assert await present(service, "bearer", ticket) == Outcome(
            401, 0, "token_invalid"
        )
    if case == "TOK-30-ticket-over-rest":  # and it was not used up by that
        assert await present(service, "query", ticket) == ADMITTED["query"]


@pytest.mark.parametrize(
    "case", ["TOK-30-access-as-cookie", "TOK-30-refresh-as-cookie"]
)
async def test_only_a_session_cookie_is_a_session_cookie(
    service: Service, mint: Mint, case: str
) -> None:
    value = mint.good if "access" in case else mint.refresh_token
    async with one_refusal(service), wire(service.port) as peer:
        headers = (f"Origin: {service.origin}", f"Cookie: authws={value}")
        await peer.send(handshake("/ws/session-cookie", headers=headers))
        assert await outcome(peer) == Outcome(101, 1008, "session_invalid")


# ------------------------------------------------------------------ what was taken back


@EVERY_CARRIER
@pytest.mark.parametrize("case", ["TOK-35-revoked"])
async def test_revoked_token_stays_revoked_however_it_is_spelled(
    service: Service, case: str, carrier: str
) -> None:
    mint = await mint_for(service)
    assert await present(service, carrier, mint.good) == ADMITTED[carrier]
    async with service.http(headers={"authorization": f"Bearer {mint.good}"}) as http:
        assert (await http.post("/auth/logout")).status_code == 204
    for token, slug in (
        (mint.good, "token_revoked"),
        (mint.good + "=", "token_invalid"),
        (mint.token(), "token_revoked"),
    ):
        async with one_refusal(service):
            assert await present(service, carrier, token) == refusal(carrier, slug)


@EVERY_CARRIER
@pytest.mark.parametrize("case", ["TOK-45-password", "TOK-45-disabled"])
async def test_token_from_before_the_users_watermark_is_refused(
    service: Service, case: str, carrier: str
) -> None:
    name = await service.add_user(f"{case.lower()}-{carrier}")
    old, current = await mint_for(service, name), await mint_for(service, name)
    assert await present(service, carrier, old.good) == ADMITTED[carrier]
    if case == "TOK-45-password":
        headers = {"authorization": f"Bearer {current.good}"}
        async with service.http(headers=headers) as http:
            body = {"current_password": PASSWORD, "new_password": PASSWORD[::-1]}
            answer = await http.post("/auth/password", json=body)
            assert answer.status_code == 204, answer.text
        assert await present(service, carrier, current.good) == ADMITTED[carrier]
    else:  # by another process: it is read within the recheck interval
        await service.call(service.house.users.disable(name))
        record = await service.call(service.house.records.get(old.session))
        assert record is not None
        await eventually(lambda: service.house.records.is_revoked(record))
    for token in (old.good, old.token()):
        async with one_refusal(service):
            assert await present(service, carrier, token) == refusal(
                carrier, "token_revoked"
            )


@EVERY_CARRIER
@pytest.mark.parametrize("case", ["TOK-47-letter", "TOK-47-session", "TOK-47-end"])
async def test_remembered_token_admits_nobody_who_would_not_be_admitted_anew(
    service: Service, case: str, carrier: str
) -> None:
    """Of what was verified a moment ago nothing is believed but the signature."""
    name = await service.add_user(f"{case.lower()}-{carrier}")
    mint = await mint_for(service, name)
    for _ in range(2):
        assert await present(service, carrier, mint.good) == ADMITTED[carrier]
    token, slug = mint.good, "token_invalid"
    if case == "TOK-47-letter":
        other = "A" if token[-10] != "A" else "B"
        token = token[:-10] + other + token[-9:]
    elif case == "TOK-47-session":
        slug = "token_revoked"
        async with service.http(headers=bearer(token)) as http:
            assert (await http.post("/auth/logout")).status_code == 204
    else:
        token, slug = mint.token(exp=time.time() + 2), "token_expired"
        assert await present(service, carrier, token) == ADMITTED[carrier]
        await eventually(lambda: jwt_exp(token) <= time.time())
    async with one_refusal(service):
        assert await present(service, carrier, token) == refusal(carrier, slug)


def jwt_exp(token: str) -> float:
    payload = token.split(".")[1]
    claims = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
    return float(claims["exp"])


# --------------------------------------------------------------------- length, and time

BIG = {
    "TOK-38-8KiB": lambda: f"ey{'A' * 4096}.{'A' * 4096}.A",
    "TOK-38-64KiB": lambda: f"ey{'A' * 65_536}.A.A",
    "TOK-38-1MiB": lambda: f"ey{'A' * 1_048_576}.A.A",
    "TOK-39-266KiB": lambda: f"{b64url(b'[' * 200_000)}.A.A",
}


@EVERY_CARRIER
@pytest.mark.parametrize("case", BIG)
async def test_big_token_is_refused_by_its_length(
    service: Service, mint: Mint, case: str, carrier: str
) -> None:
    token = BIG[case]()
    over = {
        "query": Outcome(414, 0, "uri_too_long"),
        "first-message": Outcome(101, 1009, "message_too_big"),
        "bearer": Outcome(431, 0, "headers_too_large"),
    }[carrier]
    if "8KiB" in case and carrier != "first-message":
        over = refusal(carrier, "token_invalid")
    since = len(service.records)
    async with beside(service, carrier, mint.good):
        started = time.perf_counter()
        assert await present(service, carrier, token) == over
        assert time.perf_counter() - started < 2
        lines = [r.getMessage() for r in service.records[since:]]
        assert not [line for line in lines if "AAAA" in line or "Traceback" in line]

        def told() -> int:
            return sum(
                '"refused"' in line or "- refused 4" in line or "abandoned" in line
                for line in (r.getMessage() for r in service.records[since:])
            )

        await eventually(lambda: told() == 1)


@pytest.mark.parametrize("case", ["TOK-38-before-any-work"])
async def test_nothing_is_parsed_or_verified_of_a_long_token(
    service: Service, mint: Mint, case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    touched: list[str] = []
    work = ("authws.decisions.tokens._decode", "authws.decisions.tokens._parse")
    for name in work:
        monkeypatch.setattr(name, lambda *_: touched.append("work"))
    token = BIG["TOK-38-8KiB"]()
    for carrier in ("query", "bearer"):
        assert await present(service, carrier, token) == refusal(
            carrier, "token_invalid"
        )
    assert not touched
    monkeypatch.undo()
    assert await present(service, "query", mint.good) == ADMITTED["query"]


@pytest.mark.parametrize("case", ["TOK-42"])
async def test_signatures_are_compared_in_constant_time(
    service: Service, mint: Mint, case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    verifier = service.house._access
    signed, _, signature = mint.good.rpartition(".")
    right = base64.urlsafe_b64decode(signature + "=")
    now = service.clock.now()
    wrong = bytes(byte ^ 255 for byte in right)
    tokens = {
        length: f"{signed}.{b64url(right[:length] + wrong[length:])}"
        for length in (0, 8, 16, 31)
    }
    samples: dict[int, list[int]] = {length: [] for length in tokens}
    for _ in range(2500):  # interleaved: whatever slows the machine slows them all
        for length, token in tokens.items():
            started = time.perf_counter_ns()
            with contextlib.suppress(InvalidTokenError):
                verifier.verify(token, now=now)
            samples[length].append(time.perf_counter_ns() - started)
    medians = [statistics.median(times) for times in samples.values()]
    assert max(medians) < min(medians) * 1.2, medians

    compared: list[tuple[bytes, bytes]] = []
    real = hmac.compare_digest

    def compare(one: bytes, other: bytes) -> bool:
        compared.append((one, other))
        return real(one, other)

    monkeypatch.setattr(hmac, "compare_digest", compare)
    assert await present(service, "query", tokens[31]) == refusal(
        "query", "token_invalid"
    )
    assert right in [digest for pair in compared for digest in pair]


# ----------------------------------------------------------------------------- rotation


@pytest.mark.parametrize("case", ["TOK-43"])
async def test_rotated_key_verifies_through_its_grace_and_no_longer(
    tmp_path: Path, case: str
) -> None:
    """Four processes over one database, each with the keys of another day."""
    first, second, third = (SecretStr(secrets.token_hex(32)) for _ in range(3))
    days = {
        "before": (first,),
        "in grace": (first, second),
        "after grace": (second,),
        "another": (third,),
    }
    data_dir = tmp_path / "data"
    async with AsyncExitStack() as stack:
        services = {
            day: await stack.enter_async_context(
                running(tmp_path, data_dir=data_dir, secret_keys=keys)
            )
            for day, keys in days.items()
        }
        await services["before"].add_user("alice")
        old = await services["before"].token()
        new = await services["in grace"].token()
        for carrier in CARRIERS:
            admitted, refused = ADMITTED[carrier], refusal(carrier, "token_invalid")
            outcomes = {
                day: [
                    await present(service, carrier, old),
                    await present(service, carrier, new),
                ]
                for day, service in services.items()
            }
            assert outcomes == {
                "before": [admitted, refused],
                "in grace": [admitted, admitted],
                "after grace": [refused, admitted],
                "another": [refused, refused],
            }
        for service in services.values():
            await control(service)


@pytest.mark.parametrize("case", ["TOK-30-cookie-key"])
async def test_one_secret_makes_two_keys_for_two_purposes(
    service: Service, mint: Mint, case: str
) -> None:
    """What the cookies' signer signs with means nothing as a token's key."""
    stored = json.loads((service.house.settings.data_dir / "secrets.json").read_text())
    master: bytes = stored["secret_keys"][0].encode()
    for key in (master, hashlib.sha256(master).digest()):
        async with beside(service, "query", mint.good), one_refusal(service):
            token = compact(mint.header_bytes(), mint.claims_bytes())
            signed = token.rpartition(".")[0]
            token = f"{signed}.{b64url(sign(signed.encode(), key))}"
            assert await present(service, "query", token) == refusal(
                "query", "token_invalid"
            )


# ------------------------------------------------------------------------ before accept


@pytest.mark.parametrize(
    "case",
    ["TOK-03-before-accept", "TOK-04-before-accept", "TOK-21-before-accept"],
)
async def test_refusal_before_accept_is_a_bare_403(
    service: Service, mint: Mint, case: str, tmp_path: Path
) -> None:
    """A second process over the same database, which refuses in the other way."""
    async with running(
        tmp_path, data_dir=service.house.settings.data_dir, refuse="before_accept"
    ) as strict:
        tokens = {
            "TOK-03-before-accept": "a.b.c",
            "TOK-04-before-accept": unsigned(mint, "none"),
            "TOK-21-before-accept": times(mint, iat=-60, nbf=-60, exp=-1),
        }
        async with beside(strict, "query", mint.good), one_refusal(strict):
            assert await present(strict, "query", tokens[case]) == Outcome(403, 0, "")
        async with wire(strict.port) as peer:
            await peer.send(request("/healthz"))
            assert (await peer.response()).status == 200
