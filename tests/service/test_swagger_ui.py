"""The vendored files of Swagger UI are the released ones, and all of them."""

from __future__ import annotations

import hashlib
import re

import pytest

from authws.service.routes.pages import PAGES

SWAGGER_UI = PAGES / "swagger-ui"
SUMS = {
    match[2]: match[1]
    for match in re.finditer(
        r"^ {4}([0-9a-f]{64})  (\S+)$",
        (SWAGGER_UI / "VERSION.md").read_text(),
        re.MULTILINE,
    )
}


def test_every_file_of_swagger_ui_has_its_checksum() -> None:
    assert {*SUMS} == {path.name for path in SWAGGER_UI.iterdir()} - {"VERSION.md"}


@pytest.mark.parametrize("name", SUMS)
def test_file_of_swagger_ui_is_the_released_one(name: str) -> None:
    assert hashlib.sha256((SWAGGER_UI / name).read_bytes()).hexdigest() == SUMS[name]
