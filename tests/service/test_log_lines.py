"""Lines on their way to the security log: at once outside an event loop, together in
one, and none is lost at the end."""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from authws.service.log_lines import LineHandler


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "security.log"


@pytest.fixture
def handler(path: Path) -> Iterator[LineHandler]:
    handler = LineHandler(str(path))
    yield handler
    handler.close()


def say(handler: LineHandler, *lines: str) -> None:
    for line in lines:
        handler.handle(logging.makeLogRecord({"msg": line}))


def test_a_line_is_written_as_it_comes(handler: LineHandler, path: Path) -> None:
    say(handler, "one")
    assert path.read_text() == "one\n"


def test_the_lines_of_a_turn_are_written_at_its_end(
    handler: LineHandler, path: Path
) -> None:
    read = path.read_text

    async def turn() -> tuple[str, str]:
        say(handler, "one", "two")
        during = read()
        await asyncio.sleep(0)
        return during, read()

    assert asyncio.run(turn()) == ("", "one\ntwo\n")


def test_what_waits_is_written_at_the_end(handler: LineHandler, path: Path) -> None:
    async def turn() -> None:
        say(handler, "one")
        handler.close()

    asyncio.run(turn())
    assert path.read_text() == "one\n"


def test_what_was_there_stays(path: Path) -> None:
    path.write_text("before\n")
    handler = LineHandler(str(path))
    say(handler, "after")
    handler.close()
    assert path.read_text() == "before\nafter\n"


def test_standard_error_stays_open(capsys: pytest.CaptureFixture[str]) -> None:
    handler = LineHandler()
    say(handler, "one")
    handler.close()
    assert capsys.readouterr().err == "one\n"
    assert not sys.stderr.closed


def test_a_full_disk_costs_a_line_and_not_a_handshake(
    capsys: pytest.CaptureFixture[str],
) -> None:
    handler = LineHandler("/dev/full")
    say(handler, "one")
    assert "No space left" in capsys.readouterr().err
    with pytest.raises(OSError, match="No space left"):
        handler.close()  # Python itself tries once more
