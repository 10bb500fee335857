"""The command line, on a data directory of its own."""

from __future__ import annotations

import json
import os
import re
import secrets
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import httpx
import jwt
import pytest
from typer.testing import CliRunner, Result

from authws.cli import app, main
from authws.decisions.passwords import PasswordError
from authws.exceptions import ConfigurationError, UnavailableError
from authws.stores.users import InvalidScopeError, UnknownUserError, UserExistsError

PASSWORD = "correct horse battery staple"
PROXIED = {"AUTHWS_PUBLIC_ORIGIN": "https://chat.example.com"}
NO_DATABASE = "postgresql://u:hidden-canary@127.0.0.1:1/x"


@pytest.fixture(autouse=True)
def data_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in list(os.environ):
        if name.startswith("AUTHWS_") and name != "AUTHWS_TEST_REQUIRE":
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AUTHWS_DATA_DIR", str(tmp_path / "data"))
    return tmp_path / "data"


def authws(*arguments: str, stdin: str = "") -> Result:
    return CliRunner().invoke(app, arguments, input=stdin)


def add(name: str = "alice", *options: str, password: str = PASSWORD) -> Result:
    return authws("user", "add", name, "--password-stdin", *options, stdin=password)


def test_user_is_added_listed_disabled_enabled_and_removed() -> None:
    added = add()
    assert added.stdout == "added alice (join:* publish:*)\n"
    assert added.stderr == f"authws: made the data directory {Path.cwd() / 'data'}\n"
    assert authws("user", "disable", "alice").exit_code == 0
    assert authws("user", "list").output == "alice\tdisabled\tjoin:* publish:*\n"
    assert authws("user", "enable", "alice").exit_code == 0
    assert "enabled" in authws("user", "list").output
    assert authws("user", "remove", "alice").exit_code == 0
    assert authws("user", "list").output == ""


def test_scopes_are_what_was_asked_for_and_no_more() -> None:
    add()
    result = add("bob", "--scope", "join:lobby", "--scope", "publish:lobby")
    assert result.output == "added bob (join:lobby publish:lobby)\n"


@pytest.mark.parametrize(
    ("length", "options", "accepted"),
    [
        (11, (), False),
        (12, (), True),
        (14, ("--scope", "admin"), False),
        (15, ("--scope", "admin"), True),
        (128, (), True),
        (129, (), False),
    ],
)
def test_password_length_has_its_bounds(
    length: int, options: tuple[str, ...], accepted: bool
) -> None:
    password = ("zebra-Quilt7" * 11)[:length]
    result = add("carol", *options, password=password)
    assert (result.exit_code == 0) is accepted
    if not accepted:
        assert isinstance(result.exception, PasswordError)
        assert password not in str(result.exception)


def test_a_name_is_taken_once() -> None:
    add()
    assert isinstance(add().exception, UserExistsError)
    assert isinstance(authws("user", "disable", "nobody").exception, UnknownUserError)


def test_issued_token_is_inspected_as_valid_and_shows_its_claims() -> None:
    add()
    token = authws("token", "issue", "alice", "--ttl", "60").output.strip()
    result = authws("token", "inspect", stdin=token)
    assert result.output.splitlines()[-1] == "valid"
    assert '"sub": "alice"' in result.output
    assert '"typ": "at+jwt"' in result.output


def test_tampered_token_is_inspected_as_invalid() -> None:
    add()
    token = authws("token", "issue", "alice").output.strip()
    result = authws("token", "inspect", stdin=token[:-4] + "AAAA")
    assert result.exit_code == 1
    assert "invalid" in result.output


def test_rotated_key_signs_and_the_older_still_verifies(data_dir: Path) -> None:
    add()
    before = authws("token", "issue", "alice").output.strip()
    kid = re.search(r"added key (\S+);", authws("keys", "rotate").output)
    assert kid is not None
    after = authws("token", "issue", "alice").output.strip()
    for token in (before, after):
        assert authws("token", "inspect", stdin=token).output.endswith("valid\n")
    assert f'"kid": "{kid[1]}"' in authws("token", "inspect", stdin=after).output
    assert (data_dir / "secrets.json").stat().st_mode & 0o777 == 0o600


def test_keys_in_the_environment_are_not_rotated_behind_its_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("AUTHWS_SECRET_KEYS", "Zr4-eFh0_q8Yw2Lk9sVt7Bn3Xc6Md1Pj5GuAiO")
    assert isinstance(authws("keys", "rotate").exception, ConfigurationError)


@pytest.mark.parametrize(
    ("options", "environment", "change"),
    [
        (["--host", "0.0.0.0"], {}, "--tls-cert"),  # noqa: S104
        (["--host", "127.evil.example.com"], {}, "bind 127.0.0.1"),
        (["--host", "127.1"], {}, "bind 127.0.0.1"),
        (["--workers", "2"], {}, "AUTHWS_BROKER_URL to redis://, nats:// or amqp://"),
        ([], {"AUTHWS_SECRET_KEYS": "changeme"}, "token_urlsafe"),
        ([], {"AUTHWS_ALLOWED_ORIGINS": "*"}, "list each origin"),
        (["--behind-proxy"], {}, "AUTHWS_PUBLIC_ORIGIN"),
        ([], {"AUTHWS_TRUSTED_PROXIES": "10.0.0.1"}, "--behind-proxy"),
        ([], {"AUTHWS_TRUSTED_PROXIES": "0.0.0.0/0"}, "the proxy's address"),
        (["--behind-proxy"], {"AUTHWS_PUBLIC_ORIGIN": "http://a.example"}, "https"),
        (["--behind-proxy"], {**PROXIED, "AUTHWS_TRUSTED_PROXIES": "bogus"}, "'bogus'"),
        (
            ["--behind-proxy"],
            {**PROXIED, "AUTHWS_TRUSTED_PROXIES": "10.0.0.0/33"},
            "'10.0.0.0/33'",
        ),
        (
            ["--behind-proxy"],
            {**PROXIED, "AUTHWS_TRUSTED_PROXIES": "0.0.0.0/1,128.0.0.0/1"},
            "trusting 0.0.0.0/0",
        ),
        (
            ["--behind-proxy"],
            {**PROXIED, "AUTHWS_TRUSTED_PROXIES": "10.0.0.1,8000::/1"},
            "trusting 8000::/1",
        ),
        ([], {"AUTHWS_PUBLIC_ORIGIN": "http://a.example"}, "to the https origin"),
        (["--tls-cert", "/nowhere.pem"], {}, "--tls-key the files' paths"),
        ([], {"AUTHWS_DATA_DIR": "/dev/null"}, "AUTHWS_DATA_DIR"),
        ([], {"AUTHWS_DATA_DIR": "/proc/nope"}, "AUTHWS_DATA_DIR"),
        ([], {"AUTHWS_SECURITY_LOG": "/nonexist/x.log"}, "AUTHWS_SECURITY_LOG"),
        ([], {"AUTHWS_SECURITY_LOG": "/proc/self"}, "AUTHWS_SECURITY_LOG"),
        ([], {"AUTHWS_DATABASE_URL": "sqlite:////nonexist/x.db"}, "/nonexist/x.db"),
        ([], {"AUTHWS_DATABASE_URL": NO_DATABASE}, "AUTHWS_DATABASE_URL"),
        ([], {"AUTHWS_BROKER_URL": "redis://x"}, "without a password"),
        ([], {"AUTHWS_BROKER_URL": "kafka://x"}, "memory://"),
        ([], {"AUTHWS_JWKS_URL": "https://a.example/jwks"}, "AUTHWS_JWKS_ISSUER"),
        ([], {"AUTHWS_JWKS_ISSUER": "https://a.example"}, "AUTHWS_JWKS_URL"),
        ([], {"AUTHWS_JWKS_AUDIENCE": "chat"}, "AUTHWS_JWKS_URL"),
        ([], {"AUTHWS_OUTBOX_BYTES": "262143"}, "4 times AUTHWS_MAX_MESSAGE_BYTES"),
        ([], {"AUTHWS_HISTORY_BYTES": "1048575"}, "1048576 at least"),
        ([], {"AUTHWS_HISTORY": "*=100/300,private-*=0"}, "never decides"),
        ([], {"AUTHWS_MAX_MESSAGE_BYTES": "0"}, "4 times AUTHWS_MAX_MESSAGE_BYTES"),
        ([], {"AUTHWS_MAX_MESSAGE_BYTES": "1023"}, "set it to 1024"),
    ],
)
def test_serve_refuses_what_doctor_explains(
    options: list[str],
    environment: dict[str, str],
    change: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    refused = authws("serve", *options)
    assert isinstance(refused.exception, ConfigurationError)
    assert change in str(refused.exception)
    assert "changeme" not in str(refused.exception)
    assert "canary" not in str(refused.exception)
    explained = authws("doctor", *options)
    assert explained.exit_code == 1
    assert change in explained.output


@pytest.mark.parametrize("where", ["environment", ".env"])
@pytest.mark.parametrize(
    ("misspelt", "meant"),
    [
        ("AUTHWS_QUERY_PARAM_ACCEPT", "did you mean AUTHWS_QUERY_PARAM_ACCEPTS?"),
        ("AUTHWS_SECRET_KEY", "did you mean AUTHWS_SECRET_KEYS?"),
        ("authws_rfuse", "did you mean AUTHWS_REFUSE?"),
        ("AUTHWS_PASSWORD_HASH", "did you mean AUTHWS_PASSWORD_HASH_CONCURRENCY?"),
        ("AUTHWS_ZZZ", "unset it"),
    ],
)
def test_a_misspelt_setting_is_named_with_what_was_meant(
    misspelt: str, meant: str, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if where == ".env":
        Path(".env").write_text(f"{misspelt}=hidden-canary\n")
    else:
        monkeypatch.setenv(misspelt, "hidden-canary")
    refused = authws("serve")
    explained = authws("doctor")
    assert isinstance(refused.exception, ConfigurationError)
    assert explained.exit_code == 1
    for said in (str(refused.exception), explained.output):
        assert f"{misspelt.upper()} is no setting" in said
        assert meant in said
        assert "hidden-canary" not in said


def test_what_is_no_setting_and_of_use_is_let_be(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("AUTHWS_PASSWORD", PASSWORD)
    monkeypatch.setenv("AUTHWS_TEST_SOMETHING", "1")
    Path(".env").write_text("REFUSED=1\nAUTHWS_PORT=8001\n")
    assert "0 errors" in authws("doctor").output


def test_doctor_takes_limits_that_just_fit_together(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("AUTHWS_OUTBOX_BYTES", "4096")
    monkeypatch.setenv("AUTHWS_MAX_MESSAGE_BYTES", "1024")
    monkeypatch.setenv("AUTHWS_HISTORY_BYTES", "1048576")
    assert "0 errors" in authws("doctor").output


def test_doctor_finds_no_error_in_the_defaults() -> None:
    result = authws("doctor")
    assert result.exit_code == 0
    assert result.output.splitlines()[-1].startswith("0 errors")


def test_doctor_takes_every_option_of_serve() -> None:
    def options(command: str) -> set[str]:
        return set(re.findall(r"--[a-z-]+", authws(command, "--help").output))

    assert options("doctor") == options("serve")
    given = ("--port", "0", "--demo", "--drain", "1", "--workers", "1")
    assert "0 errors" in authws("doctor", *given).output


def test_doctor_leaves_nothing_behind(
    data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AUTHWS_SECURITY_LOG", str(tmp_path / "security.log"))
    monkeypatch.setenv("AUTHWS_DATA_DIR", str(tmp_path / "deep" / "data"))
    assert "0 errors" in authws("doctor").output
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setenv("AUTHWS_DATA_DIR", str(data_dir))
    data_dir.mkdir(mode=0o700)
    assert "0 errors" in authws("doctor").output
    assert list(data_dir.iterdir()) == []


def test_doctor_changes_nothing_of_what_is_there(data_dir: Path) -> None:
    add()
    before = {file: file.read_bytes() for file in data_dir.glob("secrets*")}
    assert "0 errors" in authws("doctor").output
    assert {file: file.read_bytes() for file in data_dir.glob("secrets*")} == before
    assert authws("user", "list").output == "alice\tenabled\tjoin:* publish:*\n"


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("AUTHWS_SECRET_KEYS", ",", "nothing stands between the commas"),
        ("AUTHWS_ALLOWED_ORIGINS", " , ", "nothing stands between the commas"),
        ("AUTHWS_ACCESS_TTL", "0.5", "greater than or equal to 1"),
        ("AUTHWS_TICKET_TTL", "0.5", "greater than or equal to 1"),
    ],
)
def test_a_setting_that_could_mean_nothing_is_refused(
    name: str,
    value: str,
    told: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "argv", ["authws", "doctor"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert str(ended.value).startswith(f"authws: {name}: ")
    assert told in str(ended.value)
    assert "Value error" not in str(ended.value)


@pytest.mark.parametrize(
    "name",
    ["TLS_CERT", "TLS_KEY", "DATA_DIR", "SECRET_KEYS", "PORT", "SECURITY_LOG"],
)
def test_an_empty_variable_counts_as_not_set(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(f"AUTHWS_{name}", "")
    assert "0 errors" in authws("doctor").output


def test_commands_that_expect_a_service_make_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for command in (
        *((f"user {verb} alice") for verb in ("disable", "enable", "passwd", "remove")),
        "user list",
        "user scopes alice --scope admin",
        "token issue alice",
        "token inspect",
        "keys rotate",
    ):
        refused = authws(*command.split(), stdin="e30.e30.e30")
        assert isinstance(refused.exception, ConfigurationError), command
        assert f"no data directory {tmp_path / 'data'}" in str(refused.exception)
        assert "AUTHWS_DATA_DIR" in str(refused.exception)
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setenv("AUTHWS_DATABASE_URL", f"sqlite:///{tmp_path}/other.db")
    refused = authws("user", "list")
    assert isinstance(refused.exception, ConfigurationError)
    assert "other.db" in str(refused.exception)
    assert list(tmp_path.iterdir()) == []


def test_a_database_elsewhere_needs_no_data_directory_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AUTHWS_DATABASE_URL", NO_DATABASE)
    assert isinstance(authws("user", "list").exception, UnavailableError)
    assert isinstance(authws("token", "issue", "x").exception, ConfigurationError)
    assert list(tmp_path.iterdir()) == []


def test_a_database_without_users_beside_other_files_is_not_made(
    data_dir: Path,
) -> None:
    data_dir.mkdir(mode=0o700)
    refused = authws("user", "list")
    assert isinstance(refused.exception, ConfigurationError)
    assert "authws user add NAME" in str(refused.exception)
    assert list(data_dir.iterdir()) == []


@pytest.mark.parametrize(
    ("settings", "options", "life"),
    [
        ({}, (), 900),
        ({"AUTHWS_ACCESS_TTL": "60"}, (), 60),
        ({"AUTHWS_SESSION_ABSOLUTE_TTL": "30"}, (), 30),
        ({"AUTHWS_SESSION_ABSOLUTE_TTL": "30"}, ("--ttl", "30"), 30),
        ({}, ("--ttl", "7"), 7),
    ],
)
def test_issued_token_lives_as_long_as_the_settings_say(
    settings: dict[str, str],
    options: tuple[str, ...],
    life: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    add()
    token = authws("token", "issue", "alice", *options).output.strip()
    claims = jwt.decode(token, options={"verify_signature": False})
    assert claims["exp"] - claims["iat"] == pytest.approx(life, abs=1)


def test_no_token_is_issued_that_outlives_every_session(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("AUTHWS_SESSION_ABSOLUTE_TTL", "60")
    add()
    refused = authws("token", "issue", "alice", "--ttl", "61")
    assert isinstance(refused.exception, ConfigurationError)
    assert "AUTHWS_SESSION_ABSOLUTE_TTL=60" in str(refused.exception)


def test_a_disabled_user_is_told_from_an_unknown_one() -> None:
    add()
    authws("user", "disable", "alice")
    refused = authws("token", "issue", "alice")
    assert "authws user enable alice" in str(refused.exception)
    assert isinstance(authws("token", "issue", "nobody").exception, UnknownUserError)


@pytest.mark.parametrize(
    ("ending", "verdict"),
    [
        (("user", "disable"), "revoked: its user is disabled or removed"),
        (("user", "remove"), "revoked: its user is disabled or removed"),
        (("user", "passwd", "--password-stdin"), "revoked: its session was ended"),
    ],
)
def test_inspected_token_of_an_ended_session_does_not_hold(
    ending: tuple[str, ...], verdict: str
) -> None:
    add()
    token = authws("token", "issue", "alice").output.strip()
    authws(*ending[:2], "alice", *ending[2:], stdin=f"{PASSWORD}, another")
    inspected = authws("token", "inspect", stdin=token)
    assert inspected.exit_code == 1
    assert inspected.output.splitlines()[-1] == verdict


def test_inspected_token_without_a_session_does_not_hold(data_dir: Path) -> None:
    add()
    token = authws("token", "issue", "alice").output.strip()
    for file in data_dir.glob("authws.db*"):
        file.unlink()
    add()
    inspected = authws("token", "inspect", stdin=token)
    assert inspected.exit_code == 1
    assert "invalid: the token names no session" in inspected.output


@pytest.mark.parametrize(
    ("scope", "meant"),
    [
        ("jion:lobby", "did you mean join:lobby?"),
        ("Admin", "did you mean admin?"),
        ("join", "did you mean join:*?"),
        ("publish:", "did you mean publish:*?"),
        (
            "join:lobby,publish:lobby",
            "did you mean --scope join:lobby --scope publish:lobby?",
        ),
        ("join:a*b", "it heeds admin"),
        ("reports.read", "it heeds admin"),
    ],
)
def test_a_scope_that_grants_nothing_here_is_warned_of(scope: str, meant: str) -> None:
    """And granted: an app may demand scopes of its own."""
    result = add("alice", "--scope", scope)
    assert result.exit_code == 0
    assert f"the scope {scope!r} grants nothing in the service itself" in result.stderr
    assert meant in result.stderr
    assert scope in authws("user", "list").output


@pytest.mark.parametrize("scope", ["join:*", "publish:a.b-c:*", "join:lobby"])
def test_a_scope_that_the_service_heeds_is_not_warned_of(scope: str) -> None:
    add()
    assert add("bob", "--scope", scope).stderr == ""


def test_scopes_are_replaced() -> None:
    add()
    given = ("--scope", "join:lobby", "--scope", "jion:x")
    result = authws("user", "scopes", "alice", *given)
    assert result.stdout == "alice may: jion:x join:lobby\n"
    assert "did you mean join:x?" in result.stderr
    assert authws("user", "list").output == "alice\tenabled\tjion:x join:lobby\n"
    assert (
        "15 characters" in authws("user", "scopes", "alice", "--scope", "admin").stderr
    )
    nobody = authws("user", "scopes", "nobody", "--scope", "admin")
    assert isinstance(nobody.exception, UnknownUserError)
    none = authws("user", "scopes", "alice", "--scope", "a b")
    assert isinstance(none.exception, InvalidScopeError)


COMMANDS = (
    ("serve",),
    ("doctor",),
    ("user", "list"),
    ("user", "add", "alice", "--password-stdin"),
    ("token", "issue", "alice"),
    ("token", "inspect"),
    ("keys", "rotate"),
)


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
@pytest.mark.parametrize("place", ["/proc/nope", "a-file"])
def test_a_data_directory_that_cannot_be_is_told_in_a_sentence(
    command: tuple[str, ...], place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("a-file").touch()
    monkeypatch.setenv("AUTHWS_DATA_DIR", place)
    result = authws(*command, stdin="e30.e30.e30")
    assert result.exit_code == 1
    told = result.output + str(result.exception)
    assert "AUTHWS_DATA_DIR" in told
    assert place in told
    if result.exception is not None and command != ("doctor",):
        assert isinstance(result.exception, ConfigurationError)


DAMAGED = {
    "no-json": "{",
    "no-object": "[]",
    "no-keys": "{}",
    "no-signing-keys": '{"secret_keys": ["SECRET"]}',
    "empty": '{"secret_keys": [], "signing_keys": []}',
    "number": '{"secret_keys": [5], "signing_keys": []}',
    "text": '{"secret_keys": "SECRET", "signing_keys": []}',
    "signing-number": '{"secret_keys": ["SECRET"], "signing_keys": [5]}',
    "weak": '{"secret_keys": ["SECRET", "x"], "signing_keys": []}',
    "nested": "[" * 100_000,
    "binary": "\udcff",
}


@pytest.mark.parametrize("content", DAMAGED.values(), ids=DAMAGED.keys())
@pytest.mark.parametrize("command", ["serve", "doctor"])
def test_a_damaged_file_of_secrets_is_told_in_a_sentence(
    command: str, content: str, data_dir: Path
) -> None:
    data_dir.mkdir(mode=0o700)
    secret = secrets.token_urlsafe(48)
    file = data_dir / "secrets.json"
    file.write_text(content.replace("SECRET", secret), errors="surrogateescape")
    file.chmod(0o600)
    result = authws(command, "--port", "0")
    told = result.output + str(result.exception)
    assert result.exit_code == 1
    assert "restore it from a copy" in told
    assert str(file) in told
    assert secret not in told


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    process = subprocess.Popen(
        [sys.executable, "-m", "authws", "serve", "--demo", "--port", "0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        printed = ""
        assert process.stdout is not None
        for line in process.stdout:
            printed += line
            if line.startswith("Ctrl-C"):
                break
        yield process, printed
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate(timeout=30)


def test_serve_demo_says_where_to_go_and_stops_cleanly(
    server: tuple[subprocess.Popen[str], str],
) -> None:
    process, printed = server
    url = re.search(r"authws is at (\S+)", printed)
    password = re.search(r"password:\s+(\S+)", printed)
    assert url is not None
    assert password is not None
    for strategy in ("query-param", "first-message", "session-cookie"):
        assert f"connect {url[1]} --user demo --strategy {strategy}" in printed
    login = {"username": "demo", "password": password[1]}
    assert httpx.post(f"{url[1]}/auth/login", json=login).status_code == 200
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert "Traceback" not in errors
    assert password[1] not in errors
    events = [json.loads(line) for line in errors.splitlines() if line[:1] == "{"]
    assert [event["event"] for event in events] == ["login"]


def test_a_database_out_of_reach_is_told_in_a_sentence(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("AUTHWS_DATABASE_URL", NO_DATABASE)
    refused = authws("serve", "--port", "0")
    assert isinstance(refused.exception, ConfigurationError)
    assert "AUTHWS_DATABASE_URL" in str(refused.exception)
    assert "hidden-canary" not in str(refused.exception)


def test_a_taken_port_is_told_in_a_sentence() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        result = authws("serve", "--port", str(port))
    assert isinstance(result.exception, ConfigurationError)
    assert "choose another with --port or AUTHWS_PORT" in str(result.exception)


@pytest.mark.parametrize("host", ["LOCALHOST", "127.0.0.2", "::1"])
def test_every_spelling_of_this_machine_is_loopback(host: str) -> None:
    assert "0 errors" in authws("doctor", "--host", host).output


@pytest.mark.parametrize(
    "error", [UnicodeError("label too long"), socket.gaierror(-2, "not known")]
)
def test_a_name_without_an_address_is_told_in_a_sentence(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def resolve(*_: object, **__: object) -> object:
        raise error

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    refused = authws("serve")
    assert isinstance(refused.exception, ConfigurationError)
    for said in (str(refused.exception), authws("doctor").output):
        assert "give --host an address of this machine" in said


def test_version_needs_no_command() -> None:
    result = authws("--version")
    assert (result.exit_code, result.output) == (0, f"authws {version('authws')}\n")


@pytest.mark.parametrize(
    "url",
    [
        "redis://:hidden-canary@127.0.0.1:1/0",
        "nats://hidden-canary@127.0.0.1:1",
        "amqp://u:hidden-canary@127.0.0.1:1",
    ],
    ids=["redis", "nats", "rabbitmq"],
)
def test_doctor_tries_the_broker(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUTHWS_BROKER_URL", url)
    explained = authws("doctor")
    assert explained.exit_code == 1
    assert "at 127.0.0.1:1 cannot be reached: " in explained.output
    assert "AUTHWS_BROKER_URL" in explained.output
    assert "hidden-canary" not in explained.output
