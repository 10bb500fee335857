"""Login and password: enumeration, guessing, hashing, what may be set.

Nothing here needs a socket's speed but the last: logins may not stop open sockets.
"""

from __future__ import annotations

import asyncio
import json
import re
import sqlite3
import statistics
import time
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio
from argon2 import PasswordHasher as Argon2

from authws.exceptions import ConfigurationError, UnavailableError
from authws.service.app import create_app
from authws.service.settings import Settings
from tests.running import PASSWORD, Service, running
from tests.security.peers import bearer, controlled, ending, hear, say
from tests.wire import request as http_request
from tests.wire import wire

pytestmark = pytest.mark.asyncio(loop_scope="module")

WRONG = "not the right battery staple"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def service(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Service]:
    async with running(tmp_path_factory.mktemp("logins"), message_rate=0) as service:
        for name in ("alice", "bob", "disabled"):
            await service.add_user(name)
        await service.call(service.house.users.disable("disabled"))
        async with controlled(service):
            yield service


async def log_in(
    service: Service, username: Any, password: Any, **headers: str
) -> httpx.Response:
    async with service.http(headers=headers) as http:
        return await http.post(
            "/auth/login", json={"username": username, "password": password}
        )


async def add(service: Service, name: str, password: str) -> None:
    await service.call(service.house.users.add(name, password, ("join:*",)))


def database(service: Service) -> sqlite3.Connection:
    return sqlite3.connect(
        service.house.settings.data_dir / "authws.db", isolation_level=None
    )


def hash_of(service: Service, name: str) -> str:
    db = database(service)
    try:
        (row,) = db.execute("SELECT password_hash FROM users WHERE name = ?", [name])
    finally:
        db.close()
    return str(row[0])


# ----------------------------------------------------------------------- who is a user


NOBODY = {
    "LOG-01-unknown": "nobody",
    "LOG-01-impossible-name": "no such name, ever!",
    "LOG-01-disabled": "disabled",
    "LOG-01-empty-after-folding": "   ",
    "LOG-01-long": "a" * 256,
}


@pytest.mark.parametrize("route", ["/auth/login", "/auth/session"])
@pytest.mark.parametrize("name", NOBODY.values(), ids=NOBODY.keys())
async def test_an_unknown_user_is_told_what_a_wrong_password_is_told(
    service: Service, route: str, name: str
) -> None:
    async with service.http() as http:
        wrong, unknown = [
            await http.post(route, json={"username": who, "password": password})
            for who, password in (("alice", WRONG), (name, PASSWORD))
        ]
    assert wrong.status_code == unknown.status_code == 401
    assert wrong.content == unknown.content
    for answer in (wrong, unknown):
        del answer.headers["date"]
    assert wrong.headers.raw == unknown.headers.raw
    assert "set-cookie" not in wrong.headers


TIMED = {
    "LOG-02-unknown": ("nobody", WRONG),
    "LOG-02-impossible-name": ("no such name, ever!", WRONG),
    "LOG-02-disabled": ("disabled", PASSWORD),
    "LOG-02-password-too-long": ("alice", "x" * 200),
}


@pytest.mark.parametrize(("name", "password"), TIMED.values(), ids=TIMED.keys())
async def test_the_time_taken_does_not_tell_who_exists(
    service: Service, name: str, password: str
) -> None:
    """One missing hash would make it ten times faster; noise does not double it."""

    async def timed(http: httpx.AsyncClient, who: str, secret: str) -> float:
        content = json.dumps({"username": who, "password": secret})
        begun = time.perf_counter()
        answer = await http.post(
            "/auth/login", content=content, headers={"content-type": "application/json"}
        )
        taken = time.perf_counter() - begun
        assert answer.status_code == 401
        return taken

    async with service.http() as http:
        pairs = [
            (await timed(http, "alice", WRONG), await timed(http, name, password))
            for _ in range(15)
        ]
    known, unknown = (statistics.median(side) for side in zip(*pairs, strict=True))
    assert 0.5 < unknown / known < 2


# ------------------------------------------------------------------------ odd requests


VALUES: dict[str, Any] = {
    "null": None,
    "list": ["alice"],
    "object": {"$ne": 1},
    "number": 1,
    "float": 1.5,
    "true": True,
    "empty": "",
    "huge": "x" * 5000,
}


@pytest.mark.parametrize("field", ["username", "password"])
@pytest.mark.parametrize("value", VALUES.values(), ids=[f"LOG-03-{v}" for v in VALUES])
async def test_a_field_of_another_type_is_refused_without_quoting_it(
    service: Service, field: str, value: Any
) -> None:
    body = {"username": "alice", "password": PASSWORD, field: value}
    answer = await log_in(service, body["username"], body["password"])
    assert answer.status_code == 422
    assert answer.json() == {"detail": "request_invalid", "fields": [f"body.{field}"]}


BODIES = {
    "LOG-03-missing-both": b"{}",
    "LOG-03-missing-password": b'{"username":"alice"}',
    "LOG-03-body-null": b"null",
    "LOG-03-body-list": b"[]",
    "LOG-03-body-text": b'"alice"',
    "LOG-03-body-empty": b"",
    "LOG-03-body-cut": b'{"username":"alice","pass',
    "LOG-03-body-not-utf-8": b'{"username":"\xff","password":"x"}',
    "LOG-03-body-deep": b"[" * 30_000,
    "LOG-03-body-long-number": b'{"username":' + b"9" * 5000 + b"}",
    "LOG-03-body-nan": b'{"username":NaN,"password":Infinity}',
}


@pytest.mark.parametrize("content", BODIES.values(), ids=BODIES.keys())
async def test_a_body_that_is_no_login_is_refused_and_never_our_error(
    service: Service, content: bytes
) -> None:
    async with service.http(headers={"content-type": "application/json"}) as http:
        answer = await http.post("/auth/login", content=content)
    assert answer.status_code in (400, 422)
    assert answer.json()["detail"] == "request_invalid"


class Counting:
    """Counts how often a password was hashed."""

    def __init__(self, service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
        self.hashed = 0
        verify = service.house.hasher.verify

        async def counted(password: str, hash: str | None) -> tuple[bool, str | None]:
            self.hashed += 1
            return await verify(password, hash)

        monkeypatch.setattr(service.house.hasher, "verify", counted)


BIG = {
    "LOG-07-password-1-mib": (
        "application/json",
        json.dumps({"username": "alice", "password": "x" * 2**20}).encode(),
        413,
    ),
    "LOG-07-password-1025": (
        "application/json",
        json.dumps({"username": "alice", "password": "x" * 1025}).encode(),
        422,
    ),
    "LOG-07-blank-1-mib": ("application/json", b" " * 2**20, 413),
    "LOG-23-urlencoded-100000-fields": (
        "application/x-www-form-urlencoded",
        b"&".join(b"a%d=" % n for n in range(100_000)),
        413,
    ),
    "LOG-23-urlencoded-few": (
        "application/x-www-form-urlencoded",
        b"&".join(b"a%d=" % n for n in range(5000)),
        415,
    ),
    "LOG-23-multipart-junk": (
        "multipart/form-data; boundary=b",
        b"junk\r\n" * 10_000 + b"--b--",
        415,
    ),
    "LOG-23-multipart-huge-part": (
        "multipart/form-data; boundary=b",
        b'--b\r\nContent-Disposition: form-data; name="username"\r\n\r\n'
        + b"x" * 2**21,
        413,
    ),
    "LOG-23-multipart-content-type": (
        "multipart/form-data; boundary=" + "\\" * 10_000,
        b"x",
        415,
    ),
}


@pytest.mark.parametrize("chunked", [False, True], ids=["announced", "chunked"])
@pytest.mark.parametrize(
    ("content_type", "content", "status"), BIG.values(), ids=BIG.keys()
)
async def test_a_body_too_big_or_of_another_kind_is_refused_before_any_hash(
    service: Service,
    monkeypatch: pytest.MonkeyPatch,
    content_type: str,
    content: bytes,
    status: int,
    chunked: bool,
) -> None:
    counting = Counting(service, monkeypatch)

    async def pieces() -> AsyncIterator[bytes]:
        for start in range(0, len(content), 16_384):
            yield content[start : start + 16_384]

    async with service.http(headers={"content-type": content_type}) as http:
        begun = time.monotonic()
        try:
            answer = await http.post(
                "/auth/login", content=pieces() if chunked else content
            )
        except httpx.TransportError:
            # the answer came before the whole body was sent, and the end with it
            assert status == 413
        else:
            assert answer.status_code == status
        assert time.monotonic() - begun < 5
    assert counting.hashed == 0


INJECTIONS = (
    "' OR '1'='1",
    "alice'--",
    'alice"; DROP TABLE users; --',
    "alice' UNION SELECT * FROM users --",
    '{"$gt": ""}',
    "*)(uid=*))(|(uid=*",
    "{{7*7}}",
    "${7*7}",
    "%s%s%n",
    "alice\0",
    "../../etc/passwd",
    "%",
    "a_ice",
)


@pytest.mark.parametrize("name", INJECTIONS, ids=lambda name: f"LOG-16-{name!r}")
async def test_a_name_that_is_code_somewhere_is_nobodys_name(
    service: Service, name: str
) -> None:
    for username, password in ((name, PASSWORD), ("alice", name)):
        answer = await log_in(service, username, password)
        assert answer.status_code == 401
        assert answer.json() == {"detail": "credentials_invalid"}


HOSTILE_NAMES = {
    "LOG-17-crlf": 'x\r\n{"event":"login","subject":"admin"}',
    "LOG-17-ansi": "\x1b[2K\x1b[1Aadmin\x07",
    "LOG-17-bidi": "\u202enimda\u2066",
    "LOG-17-separators": "a\u2028b\u2029c\x85d",
    "LOG-17-nul": "a\0b\x9b1m",
    "LOG-17-quote": '","event":"login',
    "LOG-17-surrogate": "a\ud800b",
    "LOG-17-long": "x" * 250,
}


@pytest.mark.parametrize("name", HOSTILE_NAMES.values(), ids=HOSTILE_NAMES.keys())
async def test_a_hostile_name_makes_one_clean_log_line(
    service: Service, name: str
) -> None:
    seen = len(service.records)
    async with service.http(headers={"content-type": "application/json"}) as http:
        body = json.dumps({"username": name, "password": WRONG})
        answer = await http.post("/auth/login", content=body)
    assert answer.status_code in (401, 422)
    lines = [
        record.getMessage()
        for record in service.records[seen:]
        if record.name == "authws.security"
    ]
    if answer.status_code == 401:
        (line,) = lines
        assert json.loads(line)["event"] == "login_failed"
    for line in lines:
        assert line.encode()
        assert not re.search("[\x00-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e]", line)
        assert not re.search("[\u2066-\u2069]", line)


DEFAULTS = ("admin", "root", "demo", "test", "guest", "user", "authws", "witness-1")


@pytest.mark.parametrize("name", DEFAULTS, ids=lambda name: f"LOG-18-{name}")
async def test_no_account_has_a_password_that_can_be_guessed(
    service: Service, name: str
) -> None:
    for password in (name, "admin", "password", "demo", "changeme", "authws"):
        assert (await log_in(service, name, password)).status_code == 401


@pytest.mark.parametrize("method", ["TRACE", "PUT", "DELETE", "OPTIONS", "PATCH"])
@pytest.mark.parametrize("case", ["LOG-28"])
async def test_other_methods_are_not_offered(
    service: Service, method: str, case: str
) -> None:
    async with wire(service.port) as peer:
        await peer.send(
            http_request("/auth/login", "X-Secret: canary-header", method=method)
        )
        response = await peer.response()
    assert response.status == 405
    assert b"canary-header" not in response.body
    assert response.headers["allow"] == "POST"


@pytest.mark.parametrize("case", ["LOG-25"])
async def test_the_oauth_password_grant_is_not_offered(
    service: Service, case: str
) -> None:
    form = {"grant_type": "password", "username": "alice", "password": PASSWORD}
    async with service.http() as http:
        for path in ("/auth/login", "/auth/refresh", "/auth/session"):
            answer = await http.post(path, data=form)
            assert answer.status_code == 415
        for path in ("/token", "/auth/token", "/oauth/token", "/oauth2/token"):
            answer = await http.post(path, data=form)
            assert answer.status_code == 404
        schemes = (await http.get("/openapi.json")).json()["components"][
            "securitySchemes"
        ]
    assert {scheme["type"] for scheme in schemes.values()} <= {"http", "apiKey"}


@pytest.mark.parametrize("case", ["LOG-22"])
async def test_what_holds_a_token_is_kept_by_nobody_on_the_way(
    service: Service, case: str
) -> None:
    tokens = await service.login()
    async with service.http() as http:
        answers = [
            await http.post(
                "/auth/login", json={"username": "alice", "password": password}
            )
            for password in (PASSWORD, WRONG)
        ]
        answers.append(
            await http.post(
                "/auth/refresh", json={"refresh_token": tokens["refresh_token"]}
            )
        )
        answers.append(
            await http.post("/auth/ticket", headers=bearer(str(tokens["access_token"])))
        )
        answers.append(
            await http.post(
                "/auth/session", json={"username": "alice", "password": PASSWORD}
            )
        )
    assert [a.status_code for a in answers] == [200, 401, 200, 200, 200]
    for answer in answers:
        assert answer.headers["cache-control"] == "no-store"
        assert answer.headers["content-type"] == "application/json"
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert "server" not in answer.headers


@pytest.mark.parametrize("case", ["LOG-27"])
async def test_success_and_failure_are_logged_without_the_password(
    service: Service, case: str
) -> None:
    seen = len(service.records)
    await log_in(service, "alice", PASSWORD)
    await log_in(service, "alice", WRONG)
    success, failure = (
        json.loads(record.getMessage())
        for record in service.records[seen:]
        if record.name == "authws.security"
    )
    assert success["event"] == "login"
    assert (failure["event"], failure["reason"]) == (
        "login_failed",
        "credentials_invalid",
    )
    for event in (success, failure):
        assert event["subject"] == "alice"
        assert event["address"] == "127.0.0.1"
        assert re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d", event["time"])
    logged = " ".join(record.getMessage() for record in service.records[seen:])
    assert PASSWORD not in logged
    assert WRONG not in logged


# -------------------------------------------------------------------------- passwords


@pytest.mark.parametrize(
    "length", [64, 72, 73, 128], ids=lambda length: f"LOG-04-{length}"
)
async def test_a_password_is_taken_verbatim_to_its_last_byte(
    service: Service, length: int
) -> None:
    alphabet = "correct horse battery staple and nothing else but sentences; "
    password = (alphabet * 3)[:length]
    await add(service, f"length-{length}", password)
    assert (await log_in(service, f"length-{length}", password)).status_code == 200
    for other in (
        password[:-1],
        password[:-1] + "#",
        password[:72] + "#",
        password * 2,
    ):
        if other != password:
            answer = await log_in(service, f"length-{length}", other)
            assert answer.status_code == 401


@pytest.mark.parametrize("case", ["LOG-04-72-shared"])
async def test_two_that_share_72_bytes_are_two_passwords(
    service: Service, case: str
) -> None:
    shared = "what bcrypt would read of it ends after seventy-two bytes and no more. "
    shared = shared.ljust(72, ".")
    await add(service, "shared", f"{shared}one")
    assert (await log_in(service, "shared", f"{shared}two")).status_code == 401
    assert (await log_in(service, "shared", shared)).status_code == 401
    assert (await log_in(service, "shared", f"{shared}one")).status_code == 200


@pytest.mark.parametrize("case", ["LOG-04-multibyte"])
async def test_512_bytes_in_128_characters_are_a_password(
    service: Service, case: str
) -> None:
    password = "🐎🔋📎✨" * 32
    await add(service, "multibyte", password)
    assert (await log_in(service, "multibyte", password)).status_code == 200
    assert (await log_in(service, "multibyte", f"{password[:-1]}🐎")).status_code == 401


PAIRS = {
    "LOG-06-nfc-nfd": ("crème brûlée à point", "crème brûlée à point", True),
    "LOG-06-nfkc": ("ﬁrst ﬂoor, room ①②", "first floor, room 12", True),
    "LOG-06-full-width": (
        "\uff57\uff49\uff44\uff45 letters here",
        "wide letters here",
        True,
    ),
    "LOG-06-case": ("Correct Horse Battery", "correct horse battery", False),
    "LOG-06-inner-spaces": ("two  spaces  in here", "two spaces in here", False),
    "LOG-06-outer-spaces": (" spaces around it ", "spaces around it", False),
    "LOG-06-trailing-newline": ("a line of its own", "a line of its own\n", False),
}


@pytest.mark.parametrize(
    ("number", "first", "second", "same"),
    [(n, *pair) for n, pair in enumerate(PAIRS.values())],
    ids=PAIRS.keys(),
)
async def test_normalisation_is_nfkc_and_nothing_more(
    service: Service, number: int, first: str, second: str, same: bool
) -> None:
    name = f"unicode-{number}"
    await add(service, name, first)
    assert (await log_in(service, name, first)).status_code == 200
    answer = await log_in(service, name, second)
    assert answer.status_code == (200 if same else 401)


@pytest.mark.parametrize("case", ["LOG-08"])
async def test_what_is_stored_is_argon2id_with_a_salt_of_its_own(
    service: Service, case: str
) -> None:
    hashes = [hash_of(service, name) for name in ("alice", "bob")]  # one password
    salts = set()
    for stored in hashes:
        match = re.fullmatch(
            r"\$argon2id\$v=19\$m=(\d+),t=(\d+),p=(\d+)\$([^$]+)\$([^$]+)", stored
        )
        assert match is not None
        memory, passes, lanes = (int(match[n]) for n in (1, 2, 3))
        assert memory >= 19_456
        assert passes >= 2
        assert lanes == 1
        assert len(match[4]) >= 22  # 128 bits as unpadded base64
        salts.add(match[4])
    assert len(salts) == 2


@pytest.mark.parametrize("case", ["LOG-08-rehash"])
async def test_a_weaker_hash_is_replaced_at_the_next_login(
    service: Service, case: str
) -> None:
    await add(service, "veteran", PASSWORD)
    weaker = Argon2(time_cost=1, memory_cost=8192, parallelism=1).hash(PASSWORD)
    db = database(service)
    db.execute("UPDATE users SET password_hash = ? WHERE name = 'veteran'", [weaker])
    db.close()
    assert (await log_in(service, "veteran", WRONG)).status_code == 401
    assert hash_of(service, "veteran") == weaker
    assert (await log_in(service, "veteran", PASSWORD)).status_code == 200
    assert hash_of(service, "veteran").startswith("$argon2id$v=19$m=19456,t=2,p=1$")
    assert (await log_in(service, "veteran", PASSWORD)).status_code == 200


SPOILED_HASHERS: dict[str, Any] = {
    "LOG-09-always-no": lambda *_: (False, None),
    "LOG-09-always-yes": lambda *_: (True, None),
    "LOG-09-raises": lambda *_: 1 // 0,
}


@pytest.mark.parametrize("spoiled", SPOILED_HASHERS.values(), ids=SPOILED_HASHERS)
async def test_a_hasher_that_does_not_work_keeps_the_service_from_starting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spoiled: Any
) -> None:
    settings = Settings(_env_file=None, data_dir=tmp_path / "data")
    app = create_app(settings)
    monkeypatch.setattr(app.state.authws.hasher, "_verify", spoiled)
    with pytest.raises(ConfigurationError, match=r"hash"):
        async with app.router.lifespan_context(app):
            pytest.fail("it started")


REFUSED = {
    "LOG-19-short": ("7 chars", "password_too_short"),
    "LOG-19-eleven": ("elevenchars", "password_too_short"),
    "LOG-19-password": ("password1234", "password_common"),
    "LOG-19-password-plain": ("passwords", "password_too_short"),
    "LOG-19-upper-case": ("PASSWORD1234!", "password_common"),
    "LOG-19-breached": ("finalfantasy", "password_common"),
    "LOG-19-counting": ("123456789012", "password_common"),
    "LOG-19-one-character": ("aaaaaaaaaaaaaa", "password_common"),
    "LOG-19-user-name": ("chooser-chooser", "password_personal"),
    "LOG-19-user-name-digits": ("chooser20252026", "password_personal"),
    "LOG-19-product": ("authwsauthws", "password_personal"),
    "LOG-19-product-digits": ("authws123456", "password_personal"),
    "LOG-19-129": ("a sentence that goes on " * 6, "password_too_long"),
    "LOG-19-1024-bytes": ("long and longer, " * 61, "request_invalid"),
}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def chooser(service: Service) -> str:
    """An access token of a user that chooses passwords."""
    await service.add_user("chooser")
    return await service.token("chooser")


async def choose(service: Service, token: str, current: Any, new: Any) -> Any:
    body = {"current_password": current, "new_password": new}
    async with service.http(headers=bearer(token)) as http:
        return await http.post("/auth/password", json=body)


@pytest.mark.parametrize(("new", "slug"), REFUSED.values(), ids=REFUSED.keys())
async def test_a_password_that_is_guessed_first_cannot_be_set(
    service: Service, chooser: str, new: str, slug: str
) -> None:
    answer = await choose(service, chooser, PASSWORD, new)
    assert answer.status_code == 422
    refusal = answer.json()
    if slug == "request_invalid":  # beyond any length that is looked at
        slug = refusal["detail"]
        assert slug in ("request_invalid", "password_too_long")
    else:
        assert refusal["message"].endswith(".")
    assert refusal["detail"] == slug
    assert new not in answer.text
    assert (await log_in(service, "chooser", PASSWORD)).status_code == 200


ACCEPTED = {
    "LOG-20-lower-case": "all small letters and spaces",
    "LOG-20-emoji": "🐎🔋📎✨🐎🔋📎✨🐎🔋📎🌍",
    "LOG-20-spaces": "  a  b  c  d  e  f  ",
    "LOG-20-other-script": "совершенно обычная фраза",
    "LOG-20-digits": "849301756284",
    "LOG-20-punctuation": "'\"\\;--<>&%$#@!",
}


@pytest.mark.parametrize("new", ACCEPTED.values(), ids=ACCEPTED.keys())
async def test_there_are_no_rules_of_composition(
    service: Service, chooser: str, new: str
) -> None:
    assert (await choose(service, chooser, PASSWORD, new)).status_code == 204
    assert (await log_in(service, "chooser", new)).status_code == 200
    assert (await log_in(service, "chooser", PASSWORD)).status_code == 401
    assert (await choose(service, chooser, new, PASSWORD)).status_code == 204


@pytest.mark.parametrize(
    ("current", "status"),
    [(WRONG, 403), (None, 422), ("", 403), ("authws", 403), ("all of it", 403)],
    ids=["LOG-21-wrong", "LOG-21-null", "LOG-21-empty", "LOG-21-x", "LOG-21-y"],
)
async def test_without_the_current_password_it_cannot_be_changed(
    service: Service, chooser: str, current: str | None, status: int
) -> None:
    answer = await choose(service, chooser, current, "a wholly new sentence")
    assert answer.status_code == status
    assert (await log_in(service, "chooser", PASSWORD)).status_code == 200


@pytest.mark.parametrize("case", ["LOG-21-anonymous"])
async def test_a_stranger_who_knows_the_password_logs_in_first(
    service: Service, case: str
) -> None:
    async with service.http() as http:
        answer = await http.post(
            "/auth/password",
            json={"current_password": PASSWORD, "new_password": "a wholly new one"},
        )
    assert answer.status_code == 401


@pytest.mark.parametrize("case", ["LOG-21"])
async def test_changing_it_ends_every_other_session_and_its_sockets(
    service: Service, case: str
) -> None:
    await service.add_user("mover")
    token, new = await service.token("mover"), "a wholly new sentence"
    others = [
        await service.connect(strategy, "mover")
        for strategy in ("query-param", "first-message", "session-cookie")
    ]
    tokens = await service.login("mover")
    async with await service.open(f"/ws/query-param?token={token}") as own:
        assert (await hear(own))["type"] == "auth_ok"
        assert (await choose(service, token, PASSWORD, new)).status_code == 204
        ended = [await ending(other) for other in others]
        assert ended == [
            (1008, "token_revoked"),
            (1008, "token_revoked"),
            (1008, "session_revoked"),
        ]
        await say(own, type="ping", id=1)
        assert (await hear(own))["type"] == "pong"
    async with service.http() as http:
        for old in (
            await http.get("/auth/me", headers=bearer(tokens["access_token"])),
            await http.post(
                "/auth/refresh", json={"refresh_token": tokens["refresh_token"]}
            ),
        ):
            assert old.status_code == 401
        mine = await http.get("/auth/sessions", headers=bearer(token))
    assert [session["current"] for session in mine.json()] == [True]
    assert (await log_in(service, "mover", PASSWORD)).status_code == 401
    assert (await log_in(service, "mover", new)).status_code == 200


# --------------------------------------------------------------------- guessing, floods


PROXY = {"trusted_proxies": ("127.0.0.1",), "behind_proxy": True}


def statuses(answers: list[httpx.Response]) -> Counter[int]:
    return Counter(answer.status_code for answer in answers)


@pytest.mark.parametrize("parallel", [False, True], ids=["LOG-10", "LOG-10-parallel"])
async def test_guessing_at_one_account_is_throttled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, parallel: bool
) -> None:
    async with running(tmp_path, login_rate=3) as service:
        await service.add_user("alice")
        await service.add_user("bob")
        assert (await log_in(service, "bob", PASSWORD)).status_code == 200
        counting = Counting(service, monkeypatch)
        if parallel:
            guesses = (log_in(service, "alice", f"{WRONG}{n}") for n in range(9))
            answers = list(await asyncio.gather(*guesses))
        else:
            answers = [await log_in(service, "alice", f"{WRONG}{n}") for n in range(9)]
        assert statuses(answers) == {401: 3, 429: 6}
        assert counting.hashed == 3
        throttled = await log_in(service, "alice", PASSWORD)
        assert throttled.status_code == 429  # the right one tells nothing either
        assert throttled.json() == {"detail": "rate_limited"}
        assert 1 <= int(throttled.headers["retry-after"]) <= 61
        assert counting.hashed == 3
        # others are not in the way of one another
        assert (await log_in(service, "bob", PASSWORD)).status_code == 200
        events = Counter(event["event"] for event in service.security_events)
        assert events["login_throttled"] == 7


@pytest.mark.parametrize("parallel", [False, True], ids=["BRK-14", "BRK-14-parallel"])
async def test_guessing_at_two_processes_is_one_limit_and_survives_both(
    tmp_path: Path, url: str, parallel: bool
) -> None:
    """Two services on one database and one set of keys, as workers are."""
    settings = {
        "login_rate": 3,
        "data_dir": tmp_path / "data",
        "database_url": url,
    }
    async with (
        running(tmp_path, **settings) as one,
        running(tmp_path, **settings) as two,
    ):
        await one.add_user("alice")
        guesses = [log_in((one, two)[n % 2], "alice", f"{WRONG}{n}") for n in range(10)]
        if parallel:
            answers = list(await asyncio.gather(*guesses))
        else:
            answers = [await guess for guess in guesses]
        assert statuses(answers) == {401: 3, 429: 7}
    async with running(tmp_path, **settings) as restarted:
        throttled = await log_in(restarted, "alice", PASSWORD)
        assert throttled.status_code == 429
        assert 1 <= int(throttled.headers["retry-after"]) <= 60


@pytest.mark.parametrize("case", ["LOG-10-success"])
async def test_only_failures_count(tmp_path: Path, case: str) -> None:
    async with running(tmp_path, login_rate=2) as service:
        await service.add_user("alice")
        for _ in range(5):
            assert (await log_in(service, "alice", PASSWORD)).status_code == 200
        for _ in range(3):  # a success forgets the failures before it
            assert (await log_in(service, "alice", WRONG)).status_code == 401
            assert (await log_in(service, "alice", PASSWORD)).status_code == 200


@pytest.mark.parametrize("parallel", [False, True], ids=["LOG-11", "LOG-11-parallel"])
async def test_spraying_one_password_over_many_accounts_is_throttled(
    tmp_path: Path, parallel: bool
) -> None:
    async with running(tmp_path, login_rate=2) as service:
        await service.add_user("alice")
        sprayed = (log_in(service, f"user-{n}", PASSWORD) for n in range(20))
        if parallel:
            answers = list(await asyncio.gather(*sprayed))
        else:
            answers = [await one for one in sprayed]
        assert statuses(answers) == {401: 8, 429: 12}
        assert all("retry-after" in a.headers for a in answers if a.status_code == 429)
        assert (await log_in(service, "alice", PASSWORD)).status_code == 429


@pytest.mark.parametrize("parallel", [False, True], ids=["one-by-one", "parallel"])
@pytest.mark.parametrize("case", ["LOG-10-distributed LOG-13"])
async def test_many_addresses_guess_at_most_100_times_and_lock_nobody_out(
    tmp_path: Path, parallel: bool, case: str
) -> None:
    async with running(tmp_path, login_rate=5, **PROXY) as service:
        await service.add_user("alice")
        home = {"x-forwarded-for": "192.0.2.1"}
        assert (await log_in(service, "alice", PASSWORD, **home)).status_code == 200
        answers: list[httpx.Response] = []
        limits = httpx.Limits(max_connections=60)
        async with service.http(limits=limits, timeout=60) as http:

            async def guess(n: int) -> None:
                answer = await http.post(
                    "/auth/login",
                    json={"username": "alice", "password": f"{WRONG}{n}"},
                    headers={"x-forwarded-for": f"198.51.100.{n}"},
                )
                answers.append(answer)

            if parallel:
                await asyncio.gather(*(guess(n) for n in range(160)))
            else:
                for n in range(105):
                    await guess(n)
        counts = statuses(answers)
        assert set(counts) == {401, 429}
        assert counts[401] <= 100
        # whoever logged in from there before still can
        assert (await log_in(service, "alice", PASSWORD, **home)).status_code == 200


@pytest.mark.parametrize("case", ["LOG-15"])
async def test_a_burst_of_logins_does_not_stop_open_sockets(
    service: Service, case: str
) -> None:
    echoed = 0
    burst_is_over = asyncio.Event()

    async def echo() -> None:
        nonlocal echoed
        async with await service.connect("query-param", echo=True) as peer:
            started.set()
            while not burst_is_over.is_set():
                await peer.send("on and on")
                assert await peer.recv() == "on and on"
                echoed += 1

    started = asyncio.Event()
    flowing = asyncio.create_task(echo())
    await started.wait()
    before = echoed
    body = {"username": "alice", "password": PASSWORD}
    async with service.http(timeout=60) as http:
        logins = (http.post("/auth/login", json=body) for _ in range(50))
        try:
            counts = statuses(list(await asyncio.gather(*logins)))
        finally:
            during = echoed - before
            burst_is_over.set()
            await flowing
    assert set(counts) <= {200, 429, 503}
    assert counts[200] >= 25
    # measured: some 300 echoes for each login, and 18 with hashes on the event loop
    assert during >= 60 * counts[200]


# ------------------------------------------------------------------------- fail closed


@pytest.mark.parametrize("route", ["/auth/login", "/auth/session"])
@pytest.mark.parametrize("case", ["LOG-26-user-store"])
async def test_without_the_user_store_nobody_gets_a_token(
    service: Service, route: str, case: str
) -> None:
    body = {"username": "alice", "password": PASSWORD}
    db = database(service)
    db.execute("ALTER TABLE users RENAME TO users_gone")
    try:
        async with service.http() as http:
            answers = [
                await http.post(route, json={**body, "username": name})
                for name in ("alice", "nobody")
            ]
    finally:
        db.execute("ALTER TABLE users_gone RENAME TO users")
        db.close()
    for answer in answers:
        assert answer.status_code == 503
        assert answer.json() == {"detail": "unavailable"}
        assert "retry-after" in answer.headers
        assert "set-cookie" not in answer.headers
    assert (await log_in(service, "alice", PASSWORD)).status_code == 200


@pytest.mark.parametrize("case", ["LOG-26-hasher"])
async def test_without_the_hasher_nobody_gets_a_token(
    service: Service, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    async def fail(*_: object) -> tuple[bool, str | None]:
        raise UnavailableError("too many passwords wait to be hashed")

    with monkeypatch.context() as patch:
        patch.setattr(service.house.hasher, "verify", fail)
        for password in (PASSWORD, WRONG):
            answer = await log_in(service, "alice", password)
            assert answer.status_code == 503
            assert "access_token" not in answer.text
    assert (await log_in(service, "alice", PASSWORD)).status_code == 200


@pytest.mark.parametrize(
    "stored",
    ["", "x", "$argon2id$v=19$m=19456,t=2,p=1$", "plain:correct horse battery staple"],
    ids=lambda stored: f"LOG-26-hash-{stored[:9]!r}",
)
async def test_a_damaged_hash_lets_nobody_in(service: Service, stored: str) -> None:
    db = database(service)
    try:
        whole = hash_of(service, "bob")
        set_hash = "UPDATE users SET password_hash = ? WHERE name = 'bob'"
        db.execute(set_hash, [stored])
        for password in (PASSWORD, stored or "empty", "x"):
            answer = await log_in(service, "bob", password)
            assert answer.status_code in (401, 503)
            assert "access_token" not in answer.text
    finally:
        db.execute(set_hash, [whole])
        db.close()
    assert (await log_in(service, "bob", PASSWORD)).status_code == 200
