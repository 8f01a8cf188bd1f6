"""The supervisor's ear: what is heard of each guest, and what is done about one of which nothing is.

A guest that has not said anything since it was started, and does not work on its boot, is reset, once: under emulation
a busy host can make a kernel lose its timer for good. One that was heard before and gives no sign any more is told (its
machine's reason, an event), and left to its user.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from pathlib import Path

from vmm import TYPE_CHECKING
from vmm.errors import EngineError, VmmError
from vmm.host import identity
from vmm.model.clock import now
from vmm.model.event import EventKind, Happening
from vmm.model.hearing import Ear, Heard, Verdict
from vmm.model.last_words import SILENT_MARK, behind_mark
from vmm.model.lifecycle import LIVE
from vmm.model.machine import MachineState

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vmm.app import HostSite
    from vmm.model.engine import EngineStatus
    from vmm.model.machine import EngineName, Machine
    from vmm.model.site import Engine

_EVERY_S = 5.0
# Nobody listens there (RFC 863): the guest's kernel answers that, or at least tells its address (ARP).
_DISCARD = 9
_TICKS = os.sysconf("SC_CLK_TCK")
_SILENT = "nothing is heard of its guest since"


class Hearing:
    """Listens to every guest that runs."""

    def __init__(self, site: HostSite) -> None:
        self._site = site
        self._ears: dict[str, tuple[int, Ear]] = {}
        self._engines: dict[EngineName, Engine] = {}
        self._listened = -_EVERY_S

    def listen(self, machines: Sequence[Machine]) -> None:
        """Listen to the guests of those that run, unless that was done a moment ago."""
        if time.monotonic() - self._listened < _EVERY_S:
            return
        self._listened = time.monotonic()
        frames = _frames()
        running = [m for m in machines if m.state is MachineState.RUNNING and m.process is not None]
        self._ears = {m.name: self._ears[m.name] for m in running if m.name in self._ears}
        for machine in running:
            with contextlib.suppress(OSError, VmmError):
                self._listen_to(machine, frames.get(machine.lease.tap, 0))

    def _listen_to(self, machine: Machine, frames: int) -> None:
        assert machine.process is not None  # noqa: S101  # asked before
        engine = self._engine(machine)
        # Both: what an engine calls its threads is its own affair, and another release's may be another.
        if engine.is_hollow(machine.process) and self._status(machine) is None:
            identity.kill(machine.process)
            return
        heard = Heard(
            frames=frames,
            console=self._site.files.console(machine.name).stat().st_size,
            cpu_s=_cpu_s(machine.process.pid),
        )
        pid, ear = self._ears.get(machine.name, (0, None))
        if ear is None or pid != machine.process.pid:
            ear = self._new_ear(machine, heard)
            self._ears[machine.name] = machine.process.pid, ear
            return
        match ear.listen(heard, time.monotonic()):
            case Verdict.ASK:
                _ask(machine.lease.address)
            case Verdict.STUCK | Verdict.SILENT as verdict:
                self._act(machine, ear, verdict)
            case Verdict.HEARD_AGAIN:
                self._record(machine, None, Happening(kind=EventKind.HEARD, detail="its guest is heard again"))
            case Verdict.WELL:
                pass

    def _new_ear(self, machine: Machine, heard: Heard) -> Ear:
        # A kernel without stage-1 may be silent for good; what boots through stage-1 brings its network up.
        owes_a_word = self._site.kernels.get(machine.spec.kernel).stage1 is not None
        quiet = heard.frames == 0 and not behind_mark(self._site.files.last_words(machine.name)).strip()
        told = (machine.reason or "").startswith(_SILENT)
        return Ear(heard, time.monotonic(), quiet_so_far=owes_a_word and quiet, told=told)

    def _act(self, machine: Machine, ear: Ear, verdict: Verdict) -> None:
        status = self._status(machine)
        answers = status is not None
        if status not in (None, "running"):
            ear.excuse(time.monotonic())
            return
        if verdict is Verdict.STUCK and answers:
            self._reset(machine)
            return
        silence_s = time.monotonic() - ear.heard_at
        since = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() - silence_s))
        how = "no frame, no word on its console" if answers else "its engine does not answer either"
        why = f"{_SILENT} {since}: {how}"
        if self._record(machine, why, Happening(kind=EventKind.SILENT, detail=why)):
            ear.was_told()

    def _status(self, machine: Machine) -> EngineStatus | None:
        """Return what an engine says of its guest, None where it does not answer."""
        try:
            return self._engine(machine).status(self._site.files.socket(machine.name))
        except EngineError:
            return None

    def _engine(self, machine: Machine) -> Engine:
        """Return a machine's engine, made once: to look what this host's CPU can takes its time."""
        name = machine.spec.engine
        if name not in self._engines:
            self._engines[name] = self._site.engine(name)
        return self._engines[name]

    def _reset(self, machine: Machine) -> None:
        """End an engine and leave why on the console, where whoever settles it reads how it ended."""
        assert machine.process is not None  # noqa: S101  # asked before
        with self._site.store.lock(machine.name, timeout_s=0.0):
            if self._site.store.machine(machine.name).process != machine.process:
                return
            why = f"nothing was heard of its guest since it was started, at {machine.started_at or now()}"
            mark = SILENT_MARK.format(name=machine.name, why=why)
            flags = os.O_WRONLY | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
            fd = os.open(self._site.files.console(machine.name), flags)
            try:
                os.write(fd, mark.encode())
            finally:
                os.close(fd)
            identity.kill(machine.process)

    def _record(self, machine: Machine, reason: str | None, event: Happening) -> bool:
        """Record what is told of a machine that runs; False where a command is at work on it, or it is another now."""
        with self._site.store.lock(machine.name, timeout_s=0.0):
            known = self._site.store.machine(machine.name)
            if known.process != machine.process or known.state not in LIVE:
                return False
            self._site.store.record(machine.name, known.state, process=known.process, reason=reason, event=event)
        return True


def _frames() -> dict[str, int]:
    """Return the frames that came in by each link, of this process's own network: proc_net(5)'s dev."""
    found: dict[str, int] = {}
    for line in Path("/proc/net/dev").read_text(encoding="ascii", errors="replace").splitlines()[2:]:
        name, _, counts = line.partition(":")
        found[name.strip()] = int(counts.split()[1])
    return found


def _cpu_s(pid: int) -> float:
    """Return the CPU time that a process has used: fields 14 and 15 of proc_pid_stat(5)."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


def _ask(address: str) -> None:
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.setblocking(False)  # noqa: FBT003  # the call's own shape
        sender.sendto(b"", (address, _DISCARD))
