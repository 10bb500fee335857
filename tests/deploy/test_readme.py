"""deploy/README.md: its commands, run as they are written wherever they can be."""

from __future__ import annotations

import asyncio
import re
import shutil
import ssl
import subprocess
import sys
from pathlib import Path

import pytest

from tests.deploy.shipped import DEPLOY, ROOT, compose, configured
from tests.deploy.test_systemd import SECRETS, of, one
from tests.requirements import require
from tests.running import PASSWORD
from tests.servers.brokers import broker_server
from tests.servers.nginx import moved

ELSEWHERE = ("docker ", "sudo ", "kubectl ")
"""What needs an engine, a cluster, or root."""
PROGRAM = "/opt/authws/bin/authws"


def commands() -> list[str]:
    text = (DEPLOY / "README.md").read_text()
    blocks = re.findall(r"```sh\n(.*?)```", text, re.DOTALL)
    return [line for block in blocks for line in block.splitlines()]


def here() -> list[str]:
    return [line for line in commands() if not line.startswith(ELSEWHERE)]


@pytest.fixture(scope="module")
def walked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clone's root, after every command that can be run here was."""
    for tool in ("bash", "openssl", "sed", "grep", "python3"):
        require(tool, shutil.which(tool) is not None, f"no {tool} on the PATH")
    root = tmp_path_factory.mktemp("clone")
    ignore = shutil.ignore_patterns("secrets", ".env")
    shutil.copytree(DEPLOY, root / "deploy", ignore=ignore)
    for command in here():
        done = subprocess.run(
            ["bash", "-c", command],
            cwd=root,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, (command, done.stdout + done.stderr)
    return root


def test_a_key_is_made_that_is_taken(walked: Path) -> None:
    said = {"AUTHWS_SECRET_KEYS_FILE": str(walked / "secret_keys")}
    (key,) = configured(said).secret_keys
    assert len(key.get_secret_value()) == 64


def test_the_name_is_changed_everywhere(walked: Path) -> None:
    for file in (walked / "deploy").rglob("*"):
        if file.is_file() and file.name not in ("fullchain.pem", "README.md"):
            assert "chat.example.com" not in file.read_text(), file
    site = (walked / "deploy" / "nginx" / "authws.conf").read_text()
    assert "server_name chat.your-name.example;" in site


def test_the_secrets_are_complete(walked: Path) -> None:
    folder = walked / "deploy" / "compose"
    deployment = compose("redis", RUN_AS="1:1")
    for secret in deployment["secrets"].values():
        assert (folder / secret["file"]).is_file(), secret
    # nginx reads both as a user of its own
    for name in ("fullchain.pem", "privkey.pem"):
        assert (folder / "secrets" / name).stat().st_mode & 0o777 == 0o444
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(
        folder / "secrets" / "fullchain.pem", folder / "secrets" / "privkey.pem"
    )


def test_every_path_in_a_command_exists() -> None:
    for command in commands():
        for path in re.findall(r"\bdeploy/[\w./-]+", command):
            if "/secrets/" not in path:  # those are made
                assert (ROOT / path).exists(), command
    assert (ROOT / "requirements.lock").exists()


def test_what_compose_is_asked_for_is_there() -> None:
    services = compose("redis", RUN_AS="1:1")["services"].keys()
    for command in commands():
        if command.startswith("docker compose"):
            words = command.split()[3:]
            named = [w for w in words if re.fullmatch(r"authws-\d|proxy", w)]
            assert set(named) <= services
            assert named or "up" in command


def test_the_unit_finds_what_was_installed() -> None:
    installed = set()
    for command in commands():
        words = command.split()
        if words[:2] == ["sudo", "install"] and "-d" not in words:
            *sources, target = [word for word in words[2:] if not word.startswith("-")]
            sources = [one for one in sources if not re.fullmatch(r"0\d+|authws", one)]
            for source in sources:
                name = "" if not target.endswith("/") else Path(source).name
                installed.add(target + name)
    wanted = {value.partition(":")[2] for value in of("LoadCredential")}
    wanted |= {one("EnvironmentFile"), "/etc/systemd/system/authws.service"}
    assert wanted <= installed
    assert one("ExecStart").split()[0] == PROGRAM
    assert any(PROGRAM in command for command in commands())
    assert any(f"venv {PROGRAM.removesuffix('/bin/authws')}" in c for c in commands())
    (made,) = [line for line in commands() if "useradd" in line]
    assert made.split()[-1] == one("User")


async def test_commands_beside_the_unit_work(tmp_path: Path) -> None:
    """As they are written, but for who runs them and where things are."""
    shutil.copy(DEPLOY / "systemd" / "authws.env", tmp_path)
    for name, secret in {
        **SECRETS,
        "database_url": f"sqlite:///{tmp_path}/users.db",
    }.items():
        (tmp_path / name).write_text(secret)
        (tmp_path / name).chmod(0o440)
    there = {
        "sudo -u authws ": "",
        "/etc/authws": str(tmp_path),
        "/var/lib/authws": f"{tmp_path}/data",
        PROGRAM: str(Path(sys.executable).with_name("authws")),
    }

    def run(command: str) -> str:
        done = subprocess.run(
            ["bash", "-c", moved(command, there)],
            cwd=tmp_path,
            input=f"{PASSWORD}\n{PASSWORD}\n",
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    doctor, add = (line for line in commands() if f"{PROGRAM} " in line)
    assert "user add alice" in add
    assert "alice" in run(f"{add} --password-stdin")
    async with broker_server("redis") as broker:
        (tmp_path / "broker_url").write_text(broker.url)
        assert "0 errors, 0 warnings" in await asyncio.to_thread(run, doctor)


def test_the_secret_has_what_the_pods_mount() -> None:
    (command,) = [line for line in commands() if "create secret generic" in line]
    named = set(re.findall(r"--from-file=(\w+)", command))
    assert named == {"secret_keys", "database_url", "broker_url"}
    assert " generic authws " in command
