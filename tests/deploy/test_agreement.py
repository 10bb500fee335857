"""deploy/ as a whole: what its files name exists, and their figures fit together."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from authws.service.gate import MAX_BODY_BYTES
from authws.service.protocols import ProtocolLimits
from authws.service.settings import Settings
from tests.deploy.shipped import DEPLOY, ROOT, files, seconds

FILES = tuple(files())
SITE = (DEPLOY / "nginx" / "authws.conf").read_text()
KNOWN = {"chat.example.com", "127.0.0.1", "authws"}
"""Hosts that may be asked: the service by its example's name, and what is one's own."""


def name(file: Path) -> str:
    return str(file.relative_to(ROOT))


@pytest.mark.parametrize("file", FILES, ids=name)
def test_every_variable_named_is_a_setting(file: Path) -> None:
    named = set(re.findall(r"\bAUTHWS_([A-Z][A-Z_]*[A-Z])\b", file.read_text()))
    assert named <= {setting.upper() for setting in Settings.model_fields}


@pytest.mark.parametrize("file", FILES, ids=name)
def test_nobody_elses_host_is_asked(file: Path) -> None:
    assert set(re.findall(r"https?://([\w.-]+)", file.read_text())) <= KNOWN


@pytest.mark.parametrize("file", FILES, ids=name)
def test_no_file_has_a_password(file: Path) -> None:
    text = file.read_text()
    for said in re.findall(r"\w+://[^\s@/\"]*:([^\s@/\"]+)@", text):
        assert said in ("PASSWORD", "$password"), said
    if file.suffix == ".conf":  # those of the brokers have theirs beside them
        said = re.sub(r"#.*", "", text)
        assert not re.search(r"(?i)requirepass|password|default_pass", said)


def test_every_file_is_explained() -> None:
    readme = DEPLOY / "README.md"
    explained = readme.read_text()
    for file in set(FILES) - {readme}:
        assert file.name in explained, file


# ---------------------------------------------------------------------- nginx's figures


def directive(named: str) -> str:
    (value,) = set(re.findall(rf"^ +{named} +(.+);", SITE, re.M))
    assert isinstance(value, str)
    return value


def kibibytes(text: str) -> int:
    assert text.endswith("k")
    return int(text[:-1]) * 1024


def test_the_proxy_waits_for_a_silent_connection() -> None:
    defaults = Settings(_env_file=None)
    patience = defaults.ping_interval + defaults.ping_timeout
    assert seconds(directive("proxy_read_timeout")) > patience
    assert seconds(directive("proxy_send_timeout")) > patience


def test_the_proxy_takes_what_the_service_takes_and_no_more() -> None:
    limits = ProtocolLimits()
    assert kibibytes(directive("client_max_body_size")) == MAX_BODY_BYTES
    number, size = directive("large_client_header_buffers").split()
    assert kibibytes(size) >= limits.max_target_bytes
    assert kibibytes(size) * int(number) >= limits.max_header_bytes
    assert seconds(directive("client_header_timeout")) == limits.head_timeout
    assert seconds(directive("client_body_timeout")) == limits.body_timeout


def test_the_proxy_sets_what_is_believed() -> None:
    said = dict(re.findall(r"proxy_set_header +(\S+) +(\S+);", SITE))
    assert said == {
        "Host": "$host",
        "Upgrade": "$authws_upgrade",
        "Connection": "$authws_connection",
        "X-Forwarded-For": "$remote_addr",
        "X-Forwarded-Proto": "$scheme",
    }


def test_what_the_proxy_logs_has_no_query_string() -> None:
    (said,) = re.findall(r"log_format authws escape=json\n(.*?);", SITE, re.S)
    logged = set(re.findall(r"\$\w+", said))
    assert logged == {
        "$time_iso8601",
        "$remote_addr",
        "$request_method",
        "$uri",
        "$status",
        "$body_bytes_sent",
        "$request_time",
        "$upstream_addr",
        "$upstream_status",
        "$http_user_agent",
    }
    assert set(re.findall(r"access_log (.*);", SITE)) == {
        "off",
        "/var/log/nginx/access.log authws",
    }
