"""Ends a run of this suite alone with a table: threat group, cases, passed.

A file is a threat group, titled by the first line of its docstring. A case is an id of
the threat table found in a test's id, as in ``[TOK-04]`` or ``[TOK-04-no-exp]``; all
its variants must pass. A test without such an id is a case of its own.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Generator
from pathlib import Path

import pytest

CASE = re.compile(r"\b[A-Z]{2,5}-\d{2}\b")

_TABLE = pytest.StashKey["Table"]()


class Table:
    """What passed, by threat group and case."""

    def __init__(self) -> None:
        self._titles: dict[str, str] = {}
        self._outcomes: dict[str, dict[str, bool]] = defaultdict(dict)

    def add(self, item: pytest.Item) -> None:
        file = item.nodeid.partition("::")[0]
        module = item.getparent(pytest.Module)
        docstring = (module.obj.__doc__ if module else None) or file
        self._titles[file] = docstring.strip().splitlines()[0].rstrip(".")

    def record(self, nodeid: str, passed: bool) -> None:
        file, _, test = nodeid.partition("::")
        _, _, parameters = test.partition("[")
        cases = CASE.findall(parameters) or [test]
        for case in cases:
            outcomes = self._outcomes[file]
            outcomes[case] = outcomes.get(case, True) and passed

    def lines(self) -> list[str]:
        rows = [
            (self._titles.get(file, file), len(cases), sum(cases.values()))
            for file, cases in sorted(self._outcomes.items())
        ]
        rows.append(("all", sum(row[1] for row in rows), sum(row[2] for row in rows)))
        width = max(len("threat group"), *(len(title) for title, _, _ in rows))
        rule = "-" * (width + 17)
        body = [
            f"{title:<{width}}  {cases:>6}  {passed:>7}"
            f"{'' if cases == passed else '  <--'}"
            for title, cases, passed in rows
        ]
        head = f"{'threat group':<{width}}  {'cases':>6}  {'passed':>7}"
        return [head, rule, *body[:-1], rule, body[-1]]


def pytest_collection_finish(session: pytest.Session) -> None:
    """Start a table, if this run holds no test of another suite."""
    here = Path(__file__).parent
    if not all(item.path.is_relative_to(here) for item in session.items):
        return
    table = session.config.stash[_TABLE] = Table()
    for item in session.items:
        table.add(item)
    session.config.pluginmanager.register(_Recorder(table))


class _Recorder:
    def __init__(self, table: Table) -> None:
        self._table = table

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" or not report.passed:
            self._table.record(report.nodeid, report.passed)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_sessionfinish(session: pytest.Session) -> Generator[None]:
    """Print the table after pytest's own last line: it is what the run ends with."""
    yield
    table = session.config.stash.get(_TABLE, None)
    if table is not None and session.items and not session.config.option.collectonly:
        writer = session.config.get_terminal_writer()
        writer.line()
        for line in table.lines():
            writer.line(line)
