"""Secrets, configuration, supply chain.

An unsafe configuration does not start; a safe one keeps its secrets to itself; and what
is installed is what was locked.
"""

from __future__ import annotations

import ast
import importlib.metadata
import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import jwt
import pytest
import pytest_asyncio
from itsdangerous import URLSafeTimedSerializer
from typer.testing import CliRunner

from authws.cli import app
from authws.decisions.keys import derive_key
from authws.exceptions import ConfigurationError
from authws.service import doctor
from authws.service.app import create_app
from authws.service.key_files import FILE_NAME, rotate_keys
from authws.service.settings import Settings
from tests.grants import Grant, enter, grant, present
from tests.running import ENDPOINTS, STRATEGIES, Service, running
from tests.security.peers import bearer, controlled

pytestmark = pytest.mark.asyncio(loop_scope="module")

ROOT = Path(__file__).parents[2]
STRONG = "kT3vQ9xZr7Lm2Np8Wc5Yb1Hd6Fg4Js0A-uE_oIiRtP"
OTHER = "Zx8Cv7Bn6Mq5Wl4Er3Tk2Yj1Uh0Ig9Of-Ap_SdDfGhJ"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def service(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Service]:
    async with running(
        tmp_path_factory.mktemp("configuration"), secret_keys=STRONG
    ) as service:
        await service.add_user("alice")
        async with controlled(service):
            yield service


def settings(tmp_path: Path, **changes: Any) -> Settings:
    return Settings(_env_file=None, data_dir=tmp_path / "data", **changes)


def authws(tmp_path: Path, *arguments: str, **variables: str) -> tuple[int, str]:
    """Run the command; return its status and all that it printed."""
    own = {"AUTHWS_DATA_DIR": str(tmp_path / "data"), **variables}
    kept = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    done = subprocess.run(
        [sys.executable, "-m", "authws", *arguments],
        env={**kept, **own},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


# --------------------------------------------------------------- refused at the start

WEAK = {
    "CFG-01-short": "k7Gq2Zr9",
    "CFG-01-31-bytes": STRONG[:31],
    "CFG-01-placeholder": "your-256-bit-secret-your-256-bit-secret",
    "CFG-01-changeme": "changeme-changeme-changeme-changeme-1",
    "CFG-01-one-character": "a" * 64,
    "CFG-01-low-entropy": "abababababababababababababababababab",
}


@pytest.mark.parametrize("secret", WEAK.values(), ids=WEAK.keys())
async def test_weak_secret_is_refused_and_not_printed(
    tmp_path: Path, secret: str
) -> None:
    for keys in (secret, f"{STRONG},{secret}", f"{secret},{STRONG}"):
        weak = settings(tmp_path, secret_keys=keys)
        errors = [p for p in doctor.problems(weak) if p.severity == "error"]
        assert len(errors) == 1
        assert "AUTHWS_SECRET_KEYS" in errors[0].what
        with pytest.raises(ConfigurationError) as checked:
            doctor.check(weak)
        with pytest.raises(ConfigurationError) as created:
            create_app(weak)
        for said in (str(errors[0]), str(checked.value), str(created.value)):
            assert secret not in said
            assert STRONG not in said


@pytest.mark.parametrize("case", ["CFG-01-command"])
async def test_serve_refuses_a_weak_secret(tmp_path: Path, case: str) -> None:
    secret = WEAK["CFG-01-short"]
    status, printed = authws(tmp_path, "serve", AUTHWS_SECRET_KEYS=secret)
    assert status != 0
    assert "AUTHWS_SECRET_KEYS" in printed
    assert secret not in printed
    assert "Traceback" not in printed


@pytest.mark.parametrize("case", ["CFG-01-missing"])
async def test_missing_secret_is_generated_strong_and_private(
    tmp_path: Path, case: str
) -> None:
    apps = [create_app(settings(tmp_path / name)) for name in ("one", "two")]
    files = [tmp_path / name / "data" / FILE_NAME for name in ("one", "two")]
    secrets = [json.loads(file.read_text())["secret_keys"] for file in files]
    assert secrets[0] != secrets[1]
    assert all(len(one) == 1 and len(one[0]) >= 43 for one in secrets)
    assert [file.stat().st_mode & 0o777 for file in files] == [0o600, 0o600]
    assert [file.parent.stat().st_mode & 0o777 for file in files] == [0o700, 0o700]
    rings = [app.state.authws.keyring for app in apps]
    assert rings[0].newest.kid != rings[1].newest.kid


ORIGINS: dict[str, dict[str, Any]] = {
    "CFG-03-wildcard": {"allowed_origins": "*"},
    "CFG-03-subdomains": {"allowed_origins": "https://*.example.com"},
    "CFG-03-among-others": {"allowed_origins": "https://a.example,*"},
    "CFG-03-public": {"public_origin": "*"},
    "CFG-03-null": {"allowed_origins": "null"},
    "CFG-03-path": {"allowed_origins": "https://a.example/app"},
    "CFG-03-none": {"host": "0.0.0.0", "behind_proxy": True},  # noqa: S104 - refused
}


@pytest.mark.parametrize("changes", ORIGINS.values(), ids=ORIGINS.keys())
async def test_origins_that_let_anybody_in_are_refused(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    open_to_all = settings(tmp_path, **changes)
    with pytest.raises(ConfigurationError) as refused:
        doctor.check(open_to_all)
    assert "origin" in str(refused.value).lower()
    if "host" not in changes:
        with pytest.raises(ConfigurationError):
            create_app(open_to_all)


CLEAR: dict[str, dict[str, Any]] = {
    "CFG-16": {},
    "CFG-16-port": {"public_origin": "http://chat.example.com:8000"},
    "CFG-16-looks-local": {"public_origin": "http://127.0.0.1.example.com"},
    "CFG-16-address": {"public_origin": "http://192.168.1.7"},
}


@pytest.mark.parametrize("changes", CLEAR.values(), ids=CLEAR.keys())
async def test_no_cookie_without_secure_beyond_this_machine(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    clear = settings(tmp_path, **{"public_origin": "http://chat.example.com"} | changes)
    with pytest.raises(ConfigurationError, match="https"):
        doctor.check(clear)
    with pytest.raises(ConfigurationError, match="https"):
        create_app(clear)


WARNED: dict[str, tuple[dict[str, Any], str]] = {
    "CFG-16-nobody-speaks-tls": (
        {"public_origin": "https://chat.example.com"},
        "nothing here speaks TLS",
    ),
    "CFG-16-pages-in-the-clear": (
        {"allowed_origins": "http://app.example.com"},
        "http://app.example.com",
    ),
}


@pytest.mark.parametrize(("changes", "what"), WARNED.values(), ids=WARNED.keys())
async def test_origins_that_do_not_fit_what_is_served_are_warned_of(
    tmp_path: Path, changes: dict[str, Any], what: str
) -> None:
    found = doctor.problems(settings(tmp_path, **changes))
    assert [p.severity for p in found if what in p.what] == ["warning"]
    local = {"public_origin": "http://localhost:8000"}
    assert not any(what in p.what for p in doctor.problems(settings(tmp_path, **local)))


EXPOSED: dict[str, dict[str, Any]] = {
    "CFG-06": {"host": "0.0.0.0"},  # noqa: S104 - refused
    "CFG-06-ipv6": {"host": "::"},
    "CFG-06-address": {"host": "192.168.1.7"},
    "CFG-06-name": {"host": "chat.example.com"},
    "CFG-06-looks-local": {"host": "127.evil.example.com"},
    "CFG-06-key-only": {"host": "0.0.0.0", "tls_key": "key.pem"},  # noqa: S104
    "CFG-06-wildcard-host": {"allowed_hosts": "*"},
    "CFG-06-proxy-undeclared": {"trusted_proxies": "127.0.0.1"},
    "CFG-06-proxy-everybody": {
        "behind_proxy": True,
        "trusted_proxies": "0.0.0.0/1,128.0.0.0/1",
        "public_origin": "https://chat.example.com",
    },
    "CFG-06-proxy-unnamed": {
        "behind_proxy": True,
        "public_origin": "https://chat.example.com",
    },
}


@pytest.mark.parametrize("changes", EXPOSED.values(), ids=EXPOSED.keys())
async def test_exposed_without_protection_is_refused(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    with pytest.raises(ConfigurationError) as refused:
        doctor.check(settings(tmp_path, **changes))
    assert ";" in str(refused.value)  # what is wrong; what to change


@pytest.mark.parametrize("case", ["CFG-06-command"])
async def test_serve_refuses_to_be_exposed(tmp_path: Path, case: str) -> None:
    status, printed = authws(tmp_path, "serve", "--host", "0.0.0.0")  # noqa: S104
    assert status != 0
    assert "--tls-cert" in printed
    assert "Traceback" not in printed


@pytest.mark.parametrize("case", ["CFG-06-control"])
async def test_safe_configurations_are_not_refused(tmp_path: Path, case: str) -> None:
    for changes in (
        {},
        {"secret_keys": STRONG},
        {
            "host": "0.0.0.0",  # noqa: S104 - with all that it takes
            "behind_proxy": True,
            "trusted_proxies": "10.0.0.1",
            "public_origin": "https://chat.example.com",
        },
    ):
        doctor.check(settings(tmp_path, **changes))


@pytest.mark.parametrize("case", ["CFG-04"])
async def test_pages_in_production_are_warned_of_and_debug_is_not_to_be_had(
    tmp_path: Path, case: str
) -> None:
    production: dict[str, Any] = {
        "host": "0.0.0.0",  # noqa: S104 - behind a proxy
        "behind_proxy": True,
        "trusted_proxies": "10.0.0.1",
        "public_origin": "https://chat.example.com",
    }

    def warned(**changes: Any) -> bool:
        found = doctor.problems(settings(tmp_path, **production, **changes))
        return any("AUTHWS_DOCS" in problem.change for problem in found)

    assert warned()
    assert not warned(docs=False)
    assert not {"debug", "reload"} & set(Settings.model_fields)
    assert create_app(settings(tmp_path)).debug is False


MODES = {
    "CFG-10-file": (FILE_NAME, 0o644),
    "CFG-10-file-group": (FILE_NAME, 0o640),
    "CFG-10-folder": ("", 0o755),
    "CFG-10-folder-group": ("", 0o710),
}


@pytest.mark.parametrize(("name", "mode"), MODES.values(), ids=MODES.keys())
async def test_secrets_that_others_can_read_are_refused(
    tmp_path: Path, name: str, mode: int
) -> None:
    create_app(settings(tmp_path))
    (tmp_path / "data" / name).chmod(mode)
    with pytest.raises(ConfigurationError, match="chmod"):
        create_app(settings(tmp_path))
    with pytest.raises(ConfigurationError, match="chmod"):
        doctor.check(settings(tmp_path))


@pytest.mark.parametrize("case", ["CFG-10-named"])
async def test_a_secrets_own_file_that_others_can_read_is_refused(
    tmp_path: Path, case: str
) -> None:
    path = tmp_path / "keys"
    path.write_text(STRONG)
    path.chmod(0o644)
    status, printed = authws(tmp_path, "serve", AUTHWS_SECRET_KEYS_FILE=str(path))
    assert status != 0
    assert f"chmod 440 {path}" in printed
    assert STRONG not in printed
    assert "Traceback" not in printed


@pytest.mark.parametrize(
    "name",
    ["AUTHWS_SECRET_KEY", "AUTHWS_QUERY_PARAM_ACCEPT", "AUTHWS_RFUSE"],
    ids=["CFG-15-secret", "CFG-15-accepts", "CFG-15-refuse"],
)
async def test_a_misspelt_setting_does_not_leave_a_default_in_force(
    tmp_path: Path, name: str
) -> None:
    status, printed = authws(tmp_path, "serve", **{name: STRONG})
    assert status != 0
    assert name in printed
    assert STRONG not in printed
    assert "Traceback" not in printed


# ------------------------------------------------------------ one secret per purpose


@pytest.mark.parametrize("case", ["CFG-02-derived"])
async def test_each_purpose_has_a_key_of_its_own(service: Service, case: str) -> None:
    house = service.house
    signing = house.keyring.newest.private
    assert isinstance(signing, bytes)
    assert signing != STRONG.encode()
    assert derive_key(STRONG.encode(), "one") != derive_key(STRONG.encode(), "two")
    cookie = house.cookies.sign(house.cookies.new())
    value, _, signature = cookie.rpartition(".")
    for key in (STRONG.encode(), signing):
        forged = URLSafeTimedSerializer(key).dumps(value)
        assert signature not in forged


@pytest.mark.parametrize("path", ENDPOINTS)
@pytest.mark.parametrize("case", ["CFG-02-master"])
async def test_the_secret_itself_signs_nothing_that_is_taken(
    service: Service, path: str, case: str
) -> None:
    granted = await grant(service, "query-param")
    good = granted.access()
    claims = jwt.decode(good, options={"verify_signature": False})
    header = jwt.get_unverified_header(good)
    forged = jwt.encode(claims, STRONG, algorithm="HS256", headers=header)
    slug = "session_invalid" if "cookie" in path else "token_invalid"
    assert await present(service, path, forged) == (1008, slug)


@pytest.mark.parametrize("case", ["CFG-02-crossed"])
async def test_no_credential_passes_for_another(service: Service, case: str) -> None:
    token = await grant(service, "query-param")
    cookie = await grant(service, "session-cookie")
    for path in ENDPOINTS:
        if "cookie" in path:
            crossed, slug = (token.access(), token.ticket()), "session_invalid"
        else:
            crossed, slug = (cookie.cookie, f"rt_{'A' * 43}"), "token_invalid"
        for credential in crossed:
            assert await present(service, path, credential) == (1008, slug)
    async with service.http(headers=bearer(token.ticket())) as http:
        assert (await http.get("/auth/me")).status_code == 401


# ------------------------------------------------------------- secrets kept to itself


@pytest.mark.parametrize("case", ["CFG-05-objects"])
async def test_no_object_shows_a_secret(service: Service, case: str) -> None:
    house = service.house
    signing = house.keyring.newest.private
    assert isinstance(signing, bytes)
    shown = [
        settings(
            Path("x"), secret_keys=STRONG, database_url=f"postgresql://u:{OTHER}@h"
        ),
        house.settings,
        house.keyring,
        house.keyring.newest,
        house.cookies,
        house.issuer,
        house,
        vars(house),
    ]
    for one in shown:
        for text in (repr(one), str(one)):
            assert STRONG not in text
            assert OTHER not in text
            assert repr(signing) not in text


@pytest.mark.parametrize("case", ["CFG-05-invalid"])
async def test_an_invalid_setting_is_named_and_not_quoted(
    tmp_path: Path, case: str
) -> None:
    status, printed = authws(
        tmp_path,
        "doctor",
        AUTHWS_SECRET_KEYS=STRONG,
        AUTHWS_DATABASE_URL=f"nonsense://user:{OTHER}@host/db",
        AUTHWS_PORT="not a port",
    )
    assert status != 0
    assert STRONG not in printed
    assert OTHER not in printed
    assert "Traceback" not in printed
    assert "port" in printed.lower()


@pytest.mark.parametrize("case", ["CFG-05-answers"])
async def test_no_answer_shows_a_secret(service: Service, case: str) -> None:
    async with service.http() as http:
        for path in ("/openapi.json", "/docs", "/metrics", "/.well-known/jwks.json"):
            answer = await http.get(path)
            assert STRONG not in answer.text
            assert str(service.house.settings.data_dir) not in answer.text


@pytest.mark.parametrize("case", ["CFG-05-arguments"])
async def test_no_secret_is_given_as_an_argument(case: str) -> None:
    """What stands on a command line stands in ``ps`` and in a shell's history."""
    for command in (
        ["serve"],
        ["user", "add"],
        ["user", "passwd"],
        ["token", "issue"],
        ["keys", "rotate"],
        ["connect"],
    ):
        shown = CliRunner().invoke(app, [*command, "--help"])
        assert shown.exit_code == 0, shown.output
        options = set(re.findall(r"--[a-z-]+", shown.output))
        assert not options & {"--password", "--secret", "--secret-keys", "--token"}


# ------------------------------------------------------------- nobody is here at first

COMMON = [
    ("admin", "admin"),
    ("admin", "password"),
    ("demo", "demo"),
    ("demo", "correct horse battery"),
    ("root", "toor"),
    ("authws", "authws"),
    ("test", "test"),
]


@pytest.mark.parametrize("case", ["CFG-07"])
async def test_a_fresh_service_knows_nobody(tmp_path: Path, case: str) -> None:
    async with running(tmp_path) as service:
        assert await service.call(service.house.users.list()) == []
        for name, password in COMMON:
            with pytest.raises(httpx.HTTPStatusError, match="401"):
                await service.login(name, password)


@pytest.mark.parametrize("case", ["CFG-14"])
async def test_there_are_no_routes_but_the_documented_ones(
    service: Service, case: str
) -> None:
    async with service.http() as http:
        documented = set((await http.get("/openapi.json")).json()["paths"])
    served = {getattr(route, "path", "") for route in service.app.routes}
    pages = {"/docs", "/docs/assets", "/openapi.json", "/metrics", "/", "/docs/{path}"}
    assert served - documented <= pages | {""}
    assert not [path for path in served if re.search("test|debug|sample|echo", path)]


@pytest.mark.parametrize("case", ["CFG-14-wheel"])
async def test_the_package_holds_no_test(case: str) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    wheel = project["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert wheel["packages"] == ["authws"]
    for file in (ROOT / "authws").rglob("*.py"):
        assert not file.name.startswith(("test_", "conftest"))
        for node in ast.walk(ast.parse(file.read_text())):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            roots = {name.partition(".")[0] for name in names}
            assert not roots & {"tests", "pytest", "hypothesis", "unittest"}, file


# --------------------------------------------------------------------------- rotation


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("case", ["CFG-11"])
async def test_rotation_drops_nobody_until_the_key_is_removed(
    tmp_path: Path, strategy: str, case: str
) -> None:
    path = f"/ws/{strategy}"
    first, second, third = STRONG, OTHER, STRONG[::-1]
    async with running(tmp_path, secret_keys=first) as service:
        await service.add_user("alice")
        old = await grant(service, strategy)
        credential = old.credential
        await admitted(service, path, credential)
    async with running(tmp_path, secret_keys=f"{first},{second}") as service:
        await admitted(service, path, credential)
        fresh = Grant(service, strategy, "alice", old.session, old.cookie).credential
        if strategy != "session-cookie":
            kid = jwt.get_unverified_header(fresh)["kid"]
            assert kid == service.house.keyring.newest.kid
            assert kid != jwt.get_unverified_header(credential)["kid"]
    async with running(tmp_path, secret_keys=f"{second},{third}") as service:
        slug = "session_invalid" if "cookie" in path else "token_invalid"
        assert await present(service, path, credential) == (1008, slug)


@pytest.mark.parametrize("case", ["CFG-11-file"])
async def test_rotation_in_the_file_outlives_a_restart(
    tmp_path: Path, case: str
) -> None:
    data = tmp_path / "data"
    async with running(tmp_path, data_dir=data) as service:
        await service.add_user("alice")
        credential = (await grant(service, "query-param")).access()
    kids = {jwt.get_unverified_header(credential)["kid"]}
    for rotation in range(3):
        kids.add(rotate_keys(settings(tmp_path)))
        async with running(tmp_path, data_dir=data) as service:
            assert service.house.keyring.newest.kid in kids
            if rotation < 2:
                await admitted(service, "/ws/query-param", credential)
            else:  # two older keys verify, and this is the fourth
                assert await present(service, "/ws/query-param", credential) == (
                    1008,
                    "token_invalid",
                )
    assert len(kids) == 4
    assert (data / FILE_NAME).stat().st_mode & 0o777 == 0o600


async def admitted(service: Service, path: str, credential: str) -> None:
    async with enter(service, path, credential):
        pass


# -------------------------------------------------------------------- the supply chain

FLOORS = {
    "pyjwt": (2, 13, 0),
    "starlette": (1, 3, 1),
    "uvicorn": (0, 50, 2),
    "websockets": (13,),
    "h11": (0, 16, 0),
}


@pytest.mark.parametrize("name", FLOORS, ids=[f"CFG-08-{name}" for name in FLOORS])
async def test_no_dependency_is_below_the_release_that_mended_it(name: str) -> None:
    def numbers(text: str) -> tuple[int, ...]:
        return tuple(int(part) for part in re.findall(r"\d+", text)[:3])

    assert numbers(importlib.metadata.version(name)) >= FLOORS[name]
    lock = (ROOT / "requirements.lock").read_text()
    locked = re.search(rf"^{name}==([0-9.]+)", lock, re.MULTILINE)
    assert locked is not None
    assert numbers(locked[1]) >= FLOORS[name]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for wanted in project["dependencies"]:
        match = re.match(rf"{name}(?:\[\w+\])?>=([0-9.]+)", wanted)
        if match:
            assert numbers(match[1]) >= FLOORS[name][: len(numbers(match[1]))]


@pytest.mark.parametrize("name", ["requirements.lock", "requirements-dev.lock"])
@pytest.mark.parametrize("case", ["CFG-09"])
async def test_every_locked_file_has_its_hashes(name: str, case: str) -> None:
    text = (ROOT / name).read_text().replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line and line[0].isalnum()]
    assert len(lines) > 20
    for line in lines:
        assert re.match(r"[\w.-]+(\[[\w,]+\])?==[\w.+!-]+", line), line
        assert re.search(r"--hash=sha256:[0-9a-f]{64}\b", line), line
    assert not re.search(r"^\s*--(extra-)?index-url|^-e|://", text, re.MULTILINE)


@pytest.mark.parametrize("case", ["CFG-09-install"])
async def test_everything_is_installed_from_the_lock(case: str) -> None:
    makefile = (ROOT / "Makefile").read_text()
    installs = re.findall(r"\$\(PIP\) install (.*)", makefile)
    assert installs
    for options in installs:
        assert "--require-hashes" in options or "--no-deps -e ." in options, options
