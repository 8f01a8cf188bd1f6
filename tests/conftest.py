"""What every test may use lies in tests/support; here, the count of the faults that a run has held."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent / "support"))

import fault_table

_outcomes: dict[int, set[str]] = {}


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    """Note how the tests of each row of the fault table (`@pytest.mark.fault(ROW, ...)`) ended."""
    report = yield
    for mark in item.iter_markers("fault"):
        for row in mark.args:
            assert row in fault_table.ROWS, f"{item.nodeid}: the fault table has no row {row}"
            if report.when == "call" or report.outcome != "passed":
                _outcomes.setdefault(row, set()).add(report.outcome)
    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if not _outcomes:
        return
    terminalreporter.section("fault table")
    terminalreporter.write_line(fault_table.summary(_outcomes))
