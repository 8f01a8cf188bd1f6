"""`vmm start --foreground`: a machine as an ordinary process, for whoever supervises such: systemd, Nomad, Slurm."""

from __future__ import annotations

import contextlib
import sys
from typing import TYPE_CHECKING

from vmm.cli import output, render
from vmm.cli.commands.console import Screen
from vmm.cli.signals import Ended
from vmm.errors import EngineError
from vmm.model.machine import Machine, MachineState, Owner
from vmm.operations.settle import restart_waiting, settle
from vmm.operations.start import Mode, start
from vmm.operations.stop import StopMethod, stop

if TYPE_CHECKING:
    from pathlib import Path

    from vmm.app import HostSite

_TICK_S = 0.1
_MOST_BYTES = 1024 * 1024


def run_foreground(site: HostSite, name: str, mode: Mode, *, stop_timeout_s: float) -> int:
    """Run a machine until it ends, its console on stdout; return 0 when it shut down, by itself or when asked to.

    Raises:
        EngineError: it failed, or had to be killed after `stop_timeout_s`. A guest's reboot is none of either.
    """
    console = _Console(site.files.console(name))
    started = start(site, name, mode)
    machine = started.machine
    try:
        # It runs: whoever ends vmm from here on ends it.
        render.warnings(started)
        while machine is not None:
            _until_gone(site, machine, console)
            machine = _next(site, name)
    except (KeyboardInterrupt, Ended):
        return _stopped(site, name, console, stop_timeout_s=stop_timeout_s)
    console.show()
    return 0


def _until_gone(site: HostSite, machine: Machine, console: _Console) -> None:
    process = machine.process
    while process is not None and not site.processes.wait_gone(process, timeout_s=_TICK_S):
        console.show()
    console.show()


def _next(site: HostSite, name: str) -> Machine | None:
    """Return the machine after its guest's reboot, None when it is over; EngineError when that was a failure."""
    found = settle(site, name)
    machine = found.machine
    if found.waits:
        return restart_waiting(site, name, owner=Owner.FOREGROUND)
    if machine.state is MachineState.FAILED:
        raise EngineError(
            f"The machine {name!r} failed.",
            details=machine.reason or "Nobody knows why.",
            resolution=f"See its console: vmm console {name}; then start it again.",
        )
    return None


def _stopped(site: HostSite, name: str, console: _Console, *, stop_timeout_s: float) -> int:
    result = stop(site, name, timeout_s=stop_timeout_s)
    console.show()
    if result.method is StopMethod.KILLED:
        raise EngineError(
            f"The machine {name!r} had to be killed.",
            details=f"Its guest did not shut down within {stop_timeout_s:g} s.",
            resolution="Give it longer with --stop-timeout.",
        )
    if result.method is StopMethod.GONE:
        raise EngineError(
            f"The machine {name!r} was cut off.",
            details=f"While its guest was shutting down, {result.method}.",
            resolution="Let its supervisor ask vmm alone, and wait; for systemd that is KillMode=mixed.",
        )
    return 0


class _Console:
    """The part of a console log that was written since this object was made."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._position = self._size()
        self._screen = Screen(raw=False)

    def show(self) -> None:
        with contextlib.suppress(FileNotFoundError), self._path.open("rb") as stream:
            # Turned over since: what is there now is new.
            stream.seek(self._position if self._size() >= self._position else 0)
            data = stream.read(_MOST_BYTES)
            self._position = stream.tell()
            self._write(data)

    def _write(self, data: bytes) -> None:
        try:
            if sys.stdout.isatty():
                self._screen.write(data)
            else:
                output.bytes_as_they_are(data)
        except output.OutputLostError:
            # Whoever read it has gone, or has no room; the machine is not theirs to end.
            output.give_up_stdout()

    def _size(self) -> int:
        try:
            return self._path.stat().st_size
        except FileNotFoundError:
            return 0
