"""The documents are true: each table in them is compared with what it describes."""

from __future__ import annotations

import ast
import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr
from pydantic_core import PydanticUndefined

import authws
from authws import close_codes
from authws.brokers.urls import SCHEMES
from authws.decisions import messages
from authws.live.connection import ConnectionLimits
from authws.service.app import create_app, websocket_endpoints
from authws.service.protocols import ProtocolLimits, limits
from authws.service.protocols.limits import Refusal
from authws.service.settings import Settings

ROOT = Path(__file__).parent.parent
DOCUMENTS = (
    *(ROOT / name for name in ("README.md", "SECURITY.md", "CHANGELOG.md")),
    ROOT / "examples" / "README.md",
    ROOT / "deploy" / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
)
PROTOCOL, SETTINGS, REST = (
    ROOT / "docs" / name for name in ("protocol.md", "settings.md", "rest.md")
)
SECURITY = ROOT / "SECURITY.md"

UNLISTED = {("GET", "/metrics"), ("GET", "/docs"), ("GET", "/openapi.json")}
"""Documented, and on purpose not in the OpenAPI document."""

FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
PATH = re.compile(r"`((?:tests|authws|docs|examples|scripts|deploy)/[\w./-]*)`")
CASE = re.compile(r"\b[A-Z]{2,5}-\d{2}\b")


def prose(document: Path) -> str:
    """What a document says outside its code blocks."""
    return FENCE.sub("", document.read_text(encoding="utf-8"))


def rows(text: str) -> Iterator[list[str]]:
    """The cells of every row of every table, without backticks."""
    for line in text.splitlines():
        if line.startswith("|") and not set(line) <= set("|-: "):
            cells = re.split(r"(?<!\\)\|", line.strip("|"))
            yield [cell.strip().strip("`") for cell in cells]


def section(text: str, heading: str) -> str:
    """What stands under a heading, deeper headings included."""
    level = heading.partition(" ")[0]
    start = f"\n{text}".index(f"\n{heading}\n") + len(heading)
    following = re.search(rf"^#{{1,{len(level)}}} ", text[start:], re.MULTILINE)
    return text[start : start + following.start() if following else None]


def anchors(document: Path) -> set[str]:
    """The fragments that a document's headings have on the usual forges."""
    headings = re.findall(r"^#+ (.+)$", prose(document), re.MULTILINE)
    return {
        re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        for heading in headings
    }


# --------------------------------------------------------------------------- settings


def shown(default: Any) -> str:
    """How a default stands in the table."""
    if isinstance(default, SecretStr):
        default = default.get_secret_value()
    if isinstance(default, tuple):
        default = ",".join(default)
    if isinstance(default, bool):
        default = str(default).lower()
    return "none" if default in (None, "") else str(default)


def test_every_setting_is_documented_with_its_default() -> None:
    documented = {
        row[0]: row[1]
        for row in rows(prose(SETTINGS))
        if re.fullmatch(r"AUTHWS_[A-Z_]+", row[0])
    }
    assert documented == {
        f"AUTHWS_{name.upper()}": shown(field.default)
        for name, field in Settings.model_fields.items()
        if field.default is not PydanticUndefined
    }
    assert len(documented) == len(Settings.model_fields)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_variable_named_is_a_setting(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    named = set(re.findall(r"AUTHWS_([A-Z][A-Z_]*[A-Z])\b", text))
    # The README's own walk keeps a password there for its commands.
    assert named - {"PASSWORD"} <= {name.upper() for name in Settings.model_fields}


def test_every_form_of_the_brokers_url_is_documented() -> None:
    (row,) = (row for row in rows(prose(SETTINGS)) if row[0] == "AUTHWS_BROKER_URL")
    assert set(re.findall(r"`(\w+)://`", row[2])) == SCHEMES.keys()


def test_the_limits_of_a_connection_are_the_settings() -> None:
    defaults = {
        field.name: field.default for field in dataclasses.fields(ConnectionLimits)
    }
    for name, field in Settings.model_fields.items():
        assert field.default == defaults.get(name, field.default), name


def test_every_limit_below_the_app_is_documented_with_its_value() -> None:
    text = section(prose(SETTINGS), "## Limits below the app")
    names = {field.name for field in dataclasses.fields(ProtocolLimits)}
    documented = {row[0]: float(row[1]) for row in rows(text) if row[0] in names}
    assert documented == {
        field.name: float(field.default)  # type: ignore[arg-type]
        for field in dataclasses.fields(ProtocolLimits)
    }


def test_every_refusal_below_the_app_is_documented() -> None:
    text = section(prose(SETTINGS), "## Limits below the app")
    for refusal in vars(limits).values():
        if isinstance(refusal, Refusal):
            assert f"`{refusal.slug}`" in text
            assert re.search(rf"\b{int(refusal.status)}\b", text), refusal


# --------------------------------------------------------------------------- protocol


def test_the_close_table_is_the_close_table() -> None:
    text = section(prose(PROTOCOL), "## How a connection ends")
    documented = {
        row[1]: (int(row[0]), row[3])
        for row in rows(text)
        if len(row) == 5 and row[0].isdigit()
    }
    assert documented == {
        slug: (int(close.code), str(close.retry))
        for slug, close in close_codes.BY_SLUG.items()
    }


def test_every_retry_class_is_explained() -> None:
    text = section(prose(PROTOCOL), "## How a connection ends")
    explained = {row[0] for row in rows(text) if len(row) == 2}
    assert {str(retry) for retry in close_codes.Retry} <= explained


def message_types() -> set[str]:
    """The types that ``decisions/messages.py`` reads, and those that it writes."""
    read = {
        struct.__struct_config__.tag
        for struct in vars(messages).values()
        if isinstance(struct, type) and hasattr(struct, "__struct_config__")
    }
    tree = ast.parse(Path(messages.__file__).read_text(encoding="utf-8"))
    written = {
        value.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Dict)
        for key, value in zip(node.keys, node.values, strict=True)
        if isinstance(key, ast.Constant) and key.value == "type"
        if isinstance(value, ast.Constant)
    }
    return {str(name) for name in read | written if name}


def test_every_message_is_documented() -> None:
    text = section(PROTOCOL.read_text(encoding="utf-8"), "## Messages")
    described = re.findall(r"^### `(\w+)`$", text, re.MULTILINE)
    assert set(described) == message_types()
    listed = [row[0] for row in rows(text) if "server" in row[1]]
    assert listed == described
    for name in described:
        assert f'{{"type": "{name}"' in section(text, f"### `{name}`")


def test_every_endpoint_is_documented(tmp_path: Path) -> None:
    app = create_app(Settings(_env_file=None, data_dir=tmp_path / "data"))
    text = PROTOCOL.read_text(encoding="utf-8")
    for path in websocket_endpoints(app.state.authws):
        assert f"`{path}" in text


# ------------------------------------------------------------------------------- REST


def test_every_call_is_documented(tmp_path: Path) -> None:
    app = create_app(Settings(_env_file=None, data_dir=tmp_path / "data"))
    described = re.findall(
        r"^##+ (GET|POST|PUT|PATCH|DELETE) (/\S*)$", prose(REST), re.M
    )
    assert len(described) == len(set(described))
    calls = {
        (method.upper(), path)
        for path, methods in app.openapi()["paths"].items()
        for method in methods
    }
    assert set(described) == calls | UNLISTED


def test_every_refusal_of_a_call_is_documented(tmp_path: Path) -> None:
    app = create_app(Settings(_env_file=None, data_dir=tmp_path / "data"))
    documented = {
        (row[0], slug)
        for row in rows(section(prose(REST), "## Errors"))
        for slug in re.findall(r"\w+", row[1])
    }
    for methods in app.openapi()["paths"].values():
        for call in methods.values():
            for status, answer in call["responses"].items():
                content = answer.get("content", {}).get("application/json", {})
                for slug in content.get("examples", {}):
                    assert status[0] == "2" or (status, slug) in documented, slug


# --------------------------------------------------------------------- links and paths


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_link_leads_somewhere(document: Path) -> None:
    for target in LINK.findall(prose(document)):
        if "://" in target:
            continue
        path, _, fragment = target.partition("#")
        there = (document.parent / path).resolve() if path else document
        assert there.exists(), target
        assert there.is_relative_to(ROOT), target
        if fragment:
            assert fragment in anchors(there), target


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_file_named_exists(document: Path) -> None:
    for named in PATH.findall(prose(document)):
        assert (ROOT / named).exists(), named


# ------------------------------------------------------------------------ threat table


def threats() -> Iterator[tuple[Path, str]]:
    """Each group of the threat table: its test file, and its text."""
    table = section(prose(SECURITY), "## Threat table")
    for group in re.split(r"^### ", table, flags=re.MULTILINE)[1:]:
        file = re.search(r"\((tests/security/test_\w+\.py)\)", group)
        assert file is not None, group.splitlines()[0]
        yield ROOT / file[1], group


def test_every_case_of_the_threat_table_is_tested() -> None:
    for file, group in threats():
        claimed = {case for row in rows(group) for case in CASE.findall(row[-1])}
        tested = set(CASE.findall(file.read_text(encoding="utf-8")))
        assert claimed <= tested, file.name


def test_every_threat_has_an_answer_a_module_and_a_case() -> None:
    for _, group in threats():
        for row in rows(group):
            assert len(row) == 4, row
            assert all(row), row
            assert row[0] == "threat" or (LINK.search(row[2]) and CASE.search(row[3]))


def test_every_security_test_is_in_the_threat_table() -> None:
    files = set((ROOT / "tests" / "security").glob("test_*.py"))
    assert {file for file, _ in threats()} == files


# ------------------------------------------------------------------------ public names


def test_public_names_are_those_of_the_readme() -> None:
    text = section(prose(ROOT / "README.md"), "## Public names")
    documented = [row[0] for row in rows(text)][1:]
    assert documented == list(dict.fromkeys(documented))
    assert sorted(documented) == sorted(authws.__all__)
    assert all(hasattr(authws, name) for name in authws.__all__)
