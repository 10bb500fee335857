"""Lines of the security log: what is in one, and who may have a say in its record."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from authws.decisions.redaction import install_log_redaction
from authws.live.security_log import LOGGER_NAME, SecurityLog
from tests.manual_clock import ManualClock


class Lines(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)
        self.lines.append(self.format(record))


@pytest.fixture
def lines() -> Iterator[Lines]:
    logger, handler = logging.getLogger(LOGGER_NAME), Lines()
    level = logger.level
    logger.setLevel(logging.INFO)
    logger.addHandler(handler)
    factory = logging.getLogRecordFactory()
    install_log_redaction()
    yield handler
    logging.setLogRecordFactory(factory)
    logger.removeHandler(handler)
    logger.setLevel(level)


@pytest.fixture
def log() -> SecurityLog:
    return SecurityLog(ManualClock())


def test_a_line_says_what_it_is_told_in_order(lines: Lines, log: SecurityLog) -> None:
    log.write(
        "refused",
        reason="token_expired",
        detail='said "so"',
        subject="alïce",
        address="192.0.2.1",
        strategy="query_param",
        connection="abc",
        limit="",
    )
    (line,) = lines.lines
    said = json.loads(line)
    assert list(said) == [
        *("time", "event", "reason", "detail", "subject", "address"),
        *("strategy", "connection"),
    ]
    assert said["detail"] == 'said "so"'
    assert said["subject"] == "alïce"
    assert said["time"].endswith("+00:00")
    assert len(said["time"]) == len("2026-01-01T00:00:00.000+00:00")


@pytest.mark.parametrize("name", ["reason", "detail", "subject", "address", "by"])
def test_no_value_breaks_out_of_its_line_or_shows_a_credential(
    lines: Lines, log: SecurityLog, name: str
) -> None:
    token = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJhbGljZSJ9.c2lnbmF0dXJlc2ln"
    hostile = f'a"b\\c\nd\x1b[31m\u2028\u202e\ud800 token={token}'
    values: dict[str, Any] = {name: hostile}
    log.write("refused", **values)
    (line,) = lines.lines
    assert line.isprintable()
    assert token not in line
    assert json.loads(line)[name].startswith('a"b\\c\nd')
    assert len(line) < 700


def test_a_tracers_factory_has_its_fields_in_the_record(
    lines: Lines, log: SecurityLog
) -> None:
    plain = logging.getLogRecordFactory()

    def tracing(*args: Any, **options: Any) -> logging.LogRecord:
        record = plain(*args, **options)
        record.trace = "4bf92f35"
        return record

    logging.setLogRecordFactory(tracing)
    lines.setFormatter(logging.Formatter("%(trace)s %(message)s"))
    log.write("connected", subject="alice")
    assert lines.lines[0].startswith('4bf92f35 {"time": ')


def test_another_thread_is_named(lines: Lines, log: SecurityLog) -> None:
    lines.setFormatter(logging.Formatter("%(threadName)s"))
    log.write("connected")
    other = threading.Thread(target=log.write, args=("connected",), name="another")
    other.start()
    other.join()
    assert lines.lines == [threading.current_thread().name, "another"]


def test_a_record_is_what_logging_itself_would_make(
    lines: Lines, log: SecurityLog
) -> None:
    log.write("connected", subject="alice")
    (record,) = lines.records
    usual = logging.LogRecord(LOGGER_NAME, logging.INFO, "", 0, "", (), None)
    assert vars(record).keys() >= vars(usual).keys()
    assert record.levelname == "INFO"
    assert record.created == pytest.approx(ManualClock().now())
