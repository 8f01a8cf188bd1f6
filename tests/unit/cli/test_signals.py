"""Signals that were ignored when vmm was started, as nohup and a shell's `&` have it; and that these tests hear them."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from machines import a_machine

from vmm.cli.commands import foreground
from vmm.cli.signals import Ended
from vmm.operations.start import Mode
from vmm.operations.stop import StopMethod

TOP = Path(__file__).parents[3]
PROGRAM = """
import os, signal, sys
from vmm.cli.signals import Ended, end_in_good_order
end_in_good_order()
try:
    os.kill(os.getpid(), int(sys.argv[1]))
    print("went on")
except Ended as ended:
    print(f"ended by {ended.number}")
except KeyboardInterrupt:
    print("interrupted")
"""


def run(number: int, *ignored: int) -> str:
    argv = ["env", "--default-signal", *(f"--ignore-signal={signal.Signals(n).name[3:]}" for n in ignored)]
    argv += [sys.executable, "-c", PROGRAM, str(int(number))]
    return subprocess.run(argv, capture_output=True, text=True, check=True).stdout.strip()


def test_what_asks_it_to_end_is_heard() -> None:
    assert run(signal.SIGHUP) == f"ended by {signal.SIGHUP.value}"
    assert run(signal.SIGTERM) == f"ended by {signal.SIGTERM.value}"
    assert run(signal.SIGINT) == "interrupted"


@pytest.mark.fault(31)
def test_nohup_and_the_background_are_respected() -> None:
    assert run(signal.SIGHUP, signal.SIGHUP) == "went on"
    assert run(signal.SIGINT, signal.SIGINT) == "went on"
    # Nobody who ends vmm by SIGTERM is to be left without an answer.
    assert run(signal.SIGTERM, signal.SIGTERM) == f"ended by {signal.SIGTERM.value}"


def test_programs_of_tests_ignore_and_block_nothing() -> None:
    child = subprocess.run(["cat", "/proc/self/status"], capture_output=True, text=True, check=True).stdout
    masks = dict(line.split(":\t") for line in child.splitlines() if line.startswith(("SigIgn", "SigBlk")))
    heard = sum(1 << (number - 1) for number in (signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGTERM))
    assert {name: int(mask, 16) & heard for name, mask in masks.items()} == {"SigIgn": 0, "SigBlk": 0}


@pytest.mark.parametrize("started", [["nohup"], ["env", "--ignore-signal=INT"], ["env", "--block-signal=INT"]])
def test_that_is_so_whoever_starts_them(started: list[str]) -> None:
    this = f"{__file__}::{test_programs_of_tests_ignore_and_block_nothing.__name__}"
    argv = [*started, sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", this]
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("VMM_", "PYTEST_"))}
    done = subprocess.run(argv, cwd=TOP, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("said", [Ended(signal.SIGTERM), KeyboardInterrupt()])
def test_in_the_foreground_a_signal_as_soon_as_it_runs_ends_the_machine(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, said: BaseException
) -> None:
    stopped: list[str] = []

    def warn(_: object) -> None:
        raise said

    def stop(_: object, name: str, *, timeout_s: float) -> SimpleNamespace:
        assert timeout_s == 5
        stopped.append(name)
        return SimpleNamespace(method=StopMethod.GUEST)

    monkeypatch.setattr(foreground, "start", lambda *_: SimpleNamespace(machine=a_machine("m")))
    monkeypatch.setattr(foreground, "stop", stop)
    monkeypatch.setattr(foreground.render, "warnings", warn)
    site: Any = SimpleNamespace(files=SimpleNamespace(console=lambda name: tmp_path / name))
    assert foreground.run_foreground(site, "m", Mode(), stop_timeout_s=5) == 0
    assert stopped == ["m"]
