"""deploy/systemd: the unit, by systemd's own tools and by what it means."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from authws.cli.serve import SPARE_FILES
from authws.service import doctor
from authws.service.settings import FILED
from tests.deploy.shipped import DEPLOY, configured
from tests.requirements import require

UNIT = DEPLOY / "systemd" / "authws.service"
SETTINGS = DEPLOY / "systemd" / "authws.env"
SECRETS = {
    "secret_keys": "kT3vQ9xZr7Lm2Np8Wc5Yb1Hd6Fg4Js0A-uE_oIiRtP",
    "database_url": "postgresql://authws:of-the-database@db.example.com/authws",
    "broker_url": "rediss://:of-the-broker@broker.example.com",
}
EXPOSURE = 20
"""In tenths, of 100. Of the 14 that systemd 252 counts most are for the network, which
the service is for."""


def said(text: str) -> Iterator[tuple[str, str]]:
    """The lines ``key=value`` of a unit or of an environment file, in order."""
    for line in text.splitlines():
        key, equals, value = line.partition("=")
        if equals and not line.startswith("#"):
            yield key, value


def of(key: str) -> list[str]:
    """All that the unit says under a key."""
    return [value for name, value in said(UNIT.read_text()) if name == key]


def one(key: str) -> str:
    (value,) = of(key)
    return value


def settings() -> dict[str, str]:
    return dict(said(SETTINGS.read_text()))


@pytest.fixture
def unit(tmp_path: Path) -> Path:
    """The unit, with a program that is there."""
    require("systemd", shutil.which("systemd-analyze") is not None, "no systemd")
    program = Path(sys.executable).with_name("authws")
    copy = tmp_path / UNIT.name
    copy.write_text(UNIT.read_text().replace("/opt/authws/bin/authws", str(program)))
    return copy


def analyze(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["systemd-analyze", "--no-pager", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_systemd_takes_the_unit_without_a_word(unit: Path) -> None:
    done = analyze("verify", "--man=no", unit)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    unit.write_text(unit.read_text().replace("RestartSec", "RestartSecs"))
    assert "RestartSecs" in analyze("verify", "--man=no", unit).stderr  # it does look


def test_the_sandbox_is_as_tight_as_systemd_can_tell(unit: Path) -> None:
    def exposed(unit: Path) -> subprocess.CompletedProcess[str]:
        return analyze("security", "--offline=yes", f"--threshold={EXPOSURE}", unit)

    done = exposed(unit)
    assert done.returncode == 0, done.stdout + done.stderr
    unit.write_text(unit.read_text().replace("CapabilityBoundingSet=\n", ""))
    assert exposed(unit).returncode != 0


def test_nobody_but_the_services_user_reads_its_state() -> None:
    assert one("User") == "authws"
    assert one("StateDirectory") == "authws"
    assert one("StateDirectoryMode") == "0700"
    assert one("UMask") == "0077"


def test_a_drain_has_time_to_end() -> None:
    assert int(one("TimeoutStopSec")) >= int(settings()["AUTHWS_DRAIN"]) + 5
    assert one("KillMode") == "mixed"


def test_a_reload_replaces_the_workers() -> None:
    assert one("ExecReload") == "/bin/kill -HUP $MAINPID"
    assert (
        int(settings()["AUTHWS_WORKERS"]) >= 2
    )  # one alone would end, and that is all
    assert one("Restart") == "always"  # SIGHUP would count as an end that was wanted


def test_there_are_files_for_every_connection() -> None:
    allowed = configured(settings()).max_connections
    assert int(one("LimitNOFILE")) >= allowed + SPARE_FILES


def test_every_secret_is_a_credential() -> None:
    loaded = dict(value.split(":", 1) for value in of("LoadCredential"))
    named = dict(value.split("=", 1) for value in of("Environment"))
    for name in FILED:
        assert loaded[name] == f"/etc/authws/{name}"
        assert named[f"AUTHWS_{name.upper()}_FILE"] == f"%d/{name}"
    assert named.keys() - {f"AUTHWS_{name.upper()}_FILE" for name in FILED} == {
        "AUTHWS_DATA_DIR"
    }
    assert one("EnvironmentFile") == "/etc/authws/authws.env"
    # what stands there would win over Environment=
    assert not settings().keys() & named.keys()


def test_the_service_would_start_with_what_it_is_told(tmp_path: Path) -> None:
    """The settings of both files together, as systemd fills in the directories."""
    for name, secret in SECRETS.items():
        (tmp_path / name).write_text(secret)
        (tmp_path / name).chmod(0o400)
    filled = {"%d": str(tmp_path), "%S": str(tmp_path)}
    environment = dict(value.split("=", 1) for value in of("Environment"))
    environment = {
        name: re.sub("%[dS]", lambda found: filled[found[0]], value)
        for name, value in environment.items()
    }
    told = configured({**environment, **settings()})
    assert one("ExecStart").split()[1:] == ["serve", "--behind-proxy"]
    told = told.model_copy(update={"behind_proxy": True})
    assert doctor.problems(told) == []
    assert told.is_loopback  # the proxy is on this host, and speaks TLS
    assert told.trusted_proxies == ("127.0.0.1",)
