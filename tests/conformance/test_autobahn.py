"""What stands around the original suite holds where Python 2.7 is not to be had."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

import pytest
import websockets

from tests.conformance.autobahn import MISSING, echoes, find_python, verdict
from tests.running import running

ROOT = Path(__file__).parent.parent.parent
PATIENCE = 30.0


def a_program(directory: Path, name: str, body: str) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    program = directory / name
    program.write_text(f"#!/bin/sh\n{body}\n")
    program.chmod(0o755)


@pytest.mark.parametrize(
    "body", ["exit 127", "exit 1", f'exec "{sys.executable}" "$@"'], ids=str
)
def test_what_is_named_like_python_2_7_is_run_before_it_is_believed(
    tmp_path: Path, body: str
) -> None:
    for name in ("python2.7", "python2"):
        a_program(tmp_path / "bin", name, body)
    assert find_python({"PATH": str(tmp_path / "bin")}, tmp_path) is None


def test_python_2_7_is_found_by_its_name_or_among_the_versions(tmp_path: Path) -> None:
    versions = tmp_path / ".pyenv" / "versions" / "2.7.18" / "bin"
    a_program(versions, "python", "exit 0")
    assert find_python({"PATH": ""}, tmp_path) == str(versions / "python")
    a_program(tmp_path / "bin", "python2.7", "exit 0")
    here = {"PATH": str(tmp_path / "bin")}
    assert find_python(here, tmp_path) == str(tmp_path / "bin" / "python2.7")
    assert find_python(here, tmp_path, str(tmp_path / "nowhere")) is None


async def test_where_there_is_none_it_says_so_in_one_sentence(tmp_path: Path) -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.conformance.autobahn"),
        cwd=ROOT,
        env={"PATH": str(tmp_path), "HOME": str(tmp_path)},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, errors = await asyncio.wait_for(process.communicate(), PATIENCE)
    assert process.returncode == 2
    assert (out, errors.decode()) == (b"", f"{MISSING}{os.linesep}")
    assert "pyenv install 2.7" in MISSING


def test_verdict_tells_what_failed_and_what_is_not_strict(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def case(behavior: str, close: str = "OK") -> dict[str, str]:
        return {"behavior": behavior, "behaviorClose": close}

    good = {"1.1.10": case("OK"), "1.1.2": case("INFORMATIONAL", "INFORMATIONAL")}
    assert verdict({"one": good}) == []
    lenient = {**good, "6.4.1": case("NON-STRICT")}
    assert verdict({"two": lenient}) == []
    bad = {**lenient, "7.1.1": case("OK", "UNCLEAN"), "3.2": case("FAILED")}
    assert verdict({"three": bad}) == [
        "three 3.2: FAILED / OK",
        "three 7.1.1: OK / UNCLEAN",
    ]
    told = capsys.readouterr().out.splitlines()
    assert told[0] == "one: 2 of 2 passed"
    assert told[1] == "two: 2 of 3 passed, 1 not strict (6.4.1)"
    assert told[-1] == "FAILED three 7.1.1: OK / UNCLEAN"


async def test_relay_lets_in_whoever_knows_no_secret(tmp_path: Path) -> None:
    async with running(tmp_path) as service:
        await service.add_user("alice")
        token, cookie = await service.token(), await service.cookie()
        async with echoes(service.port, token=token, cookie=cookie) as urls:
            assert set(urls) == {"query_param", "first_message", "session_cookie"}
            for url in urls.values():
                async with websockets.connect(url, proxy=None) as peer:
                    for message in ("hello", b"\x00", "x" * 10_000):
                        await peer.send(message)
                        assert await asyncio.wait_for(peer.recv(), 10) == message
                assert peer.close_code == 1000
