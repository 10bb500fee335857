"""The metrics of several workers as one text, and who answers in time."""

from __future__ import annotations

import contextlib
import socket
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from authws.exceptions import ConfigurationError
from authws.service.metrics import Metrics
from authws.service.workers.siblings import (
    LONGEST_PATH,
    TIMEOUT,
    Siblings,
    merge,
    private_directory,
)

Sample = tuple[str, frozenset[tuple[str, str]], float]


@pytest.fixture
def directory() -> Iterator[Path]:
    # a socket's path is short, and that of a test's own directory may not be
    with tempfile.TemporaryDirectory(prefix="authws-test-") as name:
        yield Path(name)


def counting(*reasons: str) -> Metrics:
    metrics = Metrics()
    for reason in reasons:
        metrics.count_event("refused", reason, "")
    return metrics


def samples(text: bytes) -> set[Sample]:
    return {
        (sample.name, frozenset(sample.labels.items()), sample.value)
        for family in text_string_to_metric_families(text.decode())
        for sample in family.samples
    }


def labelled(text: bytes, worker: str) -> set[Sample]:
    return {
        (name, labels | {("worker", worker)}, value)
        for name, labels, value in samples(text)
    }


@contextlib.asynccontextmanager
async def answering(
    directory: Path, number: int, count: int, metrics: Metrics
) -> AsyncIterator[Siblings]:
    siblings = Siblings(directory, number, count, metrics.render)
    await siblings.start()
    try:
        yield siblings
    finally:
        await siblings.stop()


async def states(siblings: Siblings) -> dict[str, float]:
    return {
        dict(labels)["state"]: value
        for name, labels, value in samples(await siblings.exposition())
        if name == "authws_workers_scraped"
    }


def test_every_sample_of_every_worker_is_there_with_its_number() -> None:
    first = counting("token_expired", "token_expired", "rate_limited").render()
    second = counting("token_expired").render()
    merged = merge({0: first, 7: second})
    assert samples(merged) == labelled(first, "0") | labelled(second, "7")


def test_samples_of_one_family_stand_together() -> None:
    merged = merge({n: counting("token_expired").render() for n in range(4)}).decode()
    for word in ("# HELP", "# TYPE"):
        named = [line.split()[2] for line in merged.splitlines() if word in line]
        assert len(named) == len(set(named)) > 3
    family = ""
    for line in merged.splitlines():
        if line.startswith("# TYPE"):
            family = line.split()[2]
        elif not line.startswith("#"):
            assert line.startswith(family)
    assert "\n\n" not in merged


def test_nobody_and_one_who_has_nothing_to_say() -> None:
    assert merge({}) == b""
    assert merge({0: b""}) == b""


async def test_whoever_is_asked_answers_for_all(directory: Path) -> None:
    first, second = counting("token_expired"), counting("rate_limited")
    async with (
        answering(directory, 0, 2, first) as one,
        answering(directory, 1, 2, second) as other,
    ):
        expected = labelled(first.render(), "0") | labelled(second.render(), "1")
        for siblings in (one, other):
            assert expected <= samples(await siblings.exposition())
            assert await states(siblings) == {"answered": 2, "silent": 0}


async def test_long_answer_is_read_to_its_end(directory: Path) -> None:
    talkative = counting(*(f"reason_{number}" for number in range(4_000)))
    expected = labelled(talkative.render(), "1")
    assert len(talkative.render()) > 200_000  # more than is read at once
    async with (
        answering(directory, 0, 2, counting()) as one,
        answering(directory, 1, 2, talkative),
    ):
        assert expected <= samples(await one.exposition())


async def test_who_is_not_there_is_counted(directory: Path) -> None:
    async with answering(directory, 0, 3, counting()) as one:
        assert await states(one) == {"answered": 1, "silent": 2}
        async with answering(directory, 2, 3, counting()):
            assert await states(one) == {"answered": 2, "silent": 1}
        # it has gone, and its socket's name has not
        assert (directory / "2").exists()
        assert await states(one) == {"answered": 1, "silent": 2}


async def test_who_accepts_and_does_not_answer_is_not_waited_for(
    directory: Path,
) -> None:
    with socket.socket(socket.AF_UNIX) as dumb:
        dumb.bind(str(directory / "1"))
        dumb.listen()
        async with answering(directory, 0, 2, counting()) as one:
            started = time.monotonic()
            assert await states(one) == {"answered": 1, "silent": 1}
            assert time.monotonic() - started >= TIMEOUT


async def test_successor_answers_in_its_predecessors_place(directory: Path) -> None:
    old, new = counting("token_expired"), counting("rate_limited")
    predecessor = Siblings(directory, 1, 2, old.render)
    await predecessor.start()
    async with (
        answering(directory, 0, 2, counting()) as asked,
        answering(directory, 1, 2, new),
    ):
        await predecessor.stop()  # it ends after its successor has begun
        found = samples(await asked.exposition())
    assert labelled(new.render(), "1") <= found
    assert not {
        labels for _, labels, _ in found if ("reason", "token_expired") in labels
    }


@pytest.mark.parametrize(("length", "fits"), [(0, True), (1, False)])
def test_directory_whose_path_is_too_long_is_refused(
    length: int, fits: bool, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = len(str(directory / "authws-12345678")) + 1
    deep = directory / ("d" * (LONGEST_PATH - made + length))
    deep.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(deep))
    refused = pytest.raises(ConfigurationError, match="set TMPDIR to a shorter one")
    with contextlib.nullcontext() if fits else refused, private_directory() as found:
        assert found.stat().st_mode & 0o777 == 0o700
        assert found.parent == deep
    assert [*deep.iterdir()] == []


def test_system_without_a_temporary_directory_is_told_in_a_sentence(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", "/nowhere")
    with (
        pytest.raises(ConfigurationError, match=r"\(No such file or directory\); set"),
        private_directory(),
    ):
        pass
