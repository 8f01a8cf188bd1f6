"""What every test may use lies in tests/support; here, the count of the faults that a run has held.

With VMM_FAULT_ROWS, a file, several runs of pytest count together: each adds what it saw.

What the tests see is not decided by who starts them: a shell's `&` has its program ignore SIGINT, nohup SIGHUP, and every
program of a test would inherit that, through fork and exec.
"""

import fcntl
import json
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent / "support"))

import fault_table


def _hear_signals() -> None:
    """Take back what was ignored or blocked when pytest was started; programs that it runs start with the defaults."""
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in (signal.SIGHUP, signal.SIGQUIT, signal.SIGTERM):
        if signal.getsignal(number) is signal.SIG_IGN:
            # pytest itself goes on without it, as whoever started it wishes; exec takes a handler back to the default.
            signal.signal(number, lambda *_: None)


_hear_signals()

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
    counted = os.environ.get("VMM_FAULT_ROWS")
    if counted:
        _add_up(Path(counted))
    if _outcomes:
        terminalreporter.section("fault table")
        terminalreporter.write_line(fault_table.summary(_outcomes, whole=bool(counted)))
        for note in fault_table.NOTES:
            terminalreporter.write_line(note)


def _add_up(path: Path) -> None:
    with path.open("a+") as stream:
        # Runs that are side by side end at the same moment.
        fcntl.flock(stream, fcntl.LOCK_EX)
        stream.seek(0)
        for row, seen in json.loads(stream.read() or "{}").items():
            _outcomes.setdefault(int(row), set()).update(seen)
        stream.truncate(0)
        stream.write(json.dumps({row: sorted(seen) for row, seen in _outcomes.items()}))
