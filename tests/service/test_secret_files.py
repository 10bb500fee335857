"""Secrets that stand in files: read from there, or refused with what to do."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from authws.exceptions import ConfigurationError
from authws.service.key_files import load_secrets, rotate_keys
from authws.service.secret_files import MAX_BYTES
from authws.service.settings import FILED, Settings

STRONG = "kT3vQ9xZr7Lm2Np8Wc5Yb1Hd6Fg4Js0A-uE_oIiRtP"
OTHER = "Zx8Cv7Bn6Mq5Wl4Er3Tk2Yj1Uh0Ig9Of-Ap_SdDfGhJ"
DATABASE = "postgresql://authws:canary-of-the-database@db.example.com/authws"
BROKER = "redis://:canary-of-the-broker@broker.example.com"


@pytest.fixture(autouse=True)
def clean(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An environment that names nothing of ours."""
    for name in tuple(os.environ):
        if name.startswith("AUTHWS_"):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


def secret(path: Path, said: str | bytes = STRONG, mode: int = 0o400) -> Path:
    path.write_bytes(said if isinstance(said, bytes) else said.encode())
    path.chmod(mode)
    return path


def filed(**files: Any) -> Settings:
    return Settings(**files)


def shown(settings: Settings) -> tuple[Any, ...]:
    return (
        [key.get_secret_value() for key in settings.secret_keys],
        settings.database,
        settings.broker_url.get_secret_value(),
    )


@pytest.mark.parametrize("how", ["environment", ".env", "arguments"])
def test_every_secret_is_read_from_its_file(
    how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = {
        "secret_keys": f"{STRONG}\n{OTHER}\n",
        "database_url": f"{DATABASE}\n",
        "broker_url": BROKER,
    }
    assert said.keys() == set(FILED)
    named = {f"{name}_file": secret(tmp_path / name, said[name]) for name in FILED}
    variables = {f"AUTHWS_{name.upper()}": str(path) for name, path in named.items()}
    if how == "environment":
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
    elif how == ".env":
        lines = [f"{name}={value}\n" for name, value in variables.items()]
        (tmp_path / ".env").write_text("".join(lines))
    settings = filed(**named) if how == "arguments" else Settings()
    assert shown(settings) == ([STRONG, OTHER], DATABASE, BROKER)
    for text in (repr(settings), str(settings)):
        assert "canary" not in text
        assert STRONG not in text


@pytest.mark.parametrize("between", ["\n", "\r\n", ",", " ,\n\n"])
def test_keys_in_a_file_stand_on_lines_or_between_commas(
    between: str, tmp_path: Path
) -> None:
    path = secret(tmp_path / "keys", f"{STRONG}{between}{OTHER}")
    assert shown(Settings(secret_keys_file=path))[0] == [STRONG, OTHER]


@pytest.mark.parametrize("mode", [0o400, 0o440, 0o600, 0o640])
def test_an_owner_and_a_group_that_reads_are_let_be(mode: int, tmp_path: Path) -> None:
    path = secret(tmp_path / "keys", mode=mode)
    assert shown(Settings(secret_keys_file=path))[0] == [STRONG]


def test_a_link_to_a_file_is_its_file(tmp_path: Path) -> None:
    """Kubernetes mounts a secret as links, so that it can change all of it at once."""
    (tmp_path / "..data").mkdir()
    secret(tmp_path / "..data" / "keys")
    (tmp_path / "keys").symlink_to("..data/keys")
    assert shown(Settings(secret_keys_file=tmp_path / "keys"))[0] == [STRONG]


def test_the_largest_file_is_read(tmp_path: Path) -> None:
    path = secret(tmp_path / "keys", STRONG + "\n" * (MAX_BYTES - len(STRONG)))
    assert shown(Settings(secret_keys_file=path))[0] == [STRONG]


def a_pipe(path: Path) -> None:
    os.mkfifo(path, 0o600)


REFUSED: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (lambda path: None, "cannot be read (No such file or directory)"),
    "directory": (lambda path: path.mkdir(mode=0o700), "is not a file"),
    "pipe": (a_pipe, "is not a file"),
    "device": (lambda path: path.symlink_to("/dev/zero"), "is not a file"),
    "empty": (lambda path: secret(path, ""), "says nothing"),
    "blank": (lambda path: secret(path, " \n\n"), "says nothing"),
    "binary": (lambda path: secret(path, b"\xff" * 40), "says nothing"),
    "large": (lambda path: secret(path, STRONG + "\n" * MAX_BYTES), "more than 65536"),
    "read-by-others": (lambda path: secret(path, mode=0o444), "chmod 440"),
    "entered-by-others": (lambda path: secret(path, mode=0o401), "chmod 440"),
    "written-by-others": (lambda path: secret(path, mode=0o402), "chmod 440"),
    "written-by-its-group": (lambda path: secret(path, mode=0o460), "chmod 440"),
}


@pytest.mark.parametrize("name", FILED)
@pytest.mark.parametrize(("make", "told"), REFUSED.values(), ids=REFUSED.keys())
def test_a_file_that_cannot_be_used_is_refused_with_its_name(
    make: Callable[[Path], object], told: str, name: str, tmp_path: Path
) -> None:
    path = tmp_path / "a-secret"
    make(path)
    with pytest.raises(ConfigurationError) as refused:
        filed(**{f"{name}_file": path})
    said = str(refused.value)
    assert said.startswith(f"AUTHWS_{name.upper()}_FILE: {path} ")
    assert told in said
    assert STRONG not in said


@pytest.mark.parametrize("name", FILED)
def test_a_secret_is_not_given_twice(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which of the two holds would be a guess."""
    variable = f"AUTHWS_{name.upper()}"
    monkeypatch.setenv(variable, STRONG)
    with pytest.raises(ConfigurationError) as refused:
        filed(**{f"{name}_file": secret(tmp_path / "a-secret")})
    assert str(refused.value) == (
        f"{variable} and {variable}_FILE are both set; unset one"
    )


def test_keys_in_a_file_are_not_rotated_behind_its_back(tmp_path: Path) -> None:
    path = secret(tmp_path / "keys")
    settings = Settings(data_dir=tmp_path / "data", secret_keys_file=path)
    load_secrets(settings)
    with pytest.raises(ConfigurationError, match=f"{path} holds the keys"):
        rotate_keys(settings)
