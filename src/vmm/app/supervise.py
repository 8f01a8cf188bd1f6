"""vmm's supervisor: one small process a data directory, there while machines run, and gone with the last of them.

It waits for engines to end and has `vmm settle` deal with each end; it keeps consoles and logs within their bounds; it
ends an engine whose guest has powered off or halted, and listens whether guests are heard at all. It holds nothing that
machines need: killed, it leaves them as they are, and the next command brings it back. Where systemd looks after
machines it leaves their ends to their units.
"""

from __future__ import annotations

import contextlib
import os
import select
import sys
import time

from vmm import TYPE_CHECKING
from vmm.app.hearing import Hearing
from vmm.app.host_watch import HostWatch
from vmm.app.network_watch import NetworkWatch
from vmm.app.supervisor import LOG, own_command
from vmm.errors import VmmError
from vmm.host import files, identity, process
from vmm.model.last_words import is_over
from vmm.model.lifecycle import LIVE, is_waiting
from vmm.model.machine import Machine, Owner, UnreadableRecord
from vmm.model.text import harmless
from vmm.operations.settle import due_in_s
from vmm.storage.machine_files import trim_log

if TYPE_CHECKING:
    from vmm.app import HostSite

_TICK_S = 0.5
# The whole database is read again when it has changed, and this often all the same.
_LOOK_AGAIN_S = 10.0
# An end that someone else is to deal with is dealt with here when it was not within this.
_PATIENCE_S = {Owner.SUPERVISOR: 0.0, Owner.FOREGROUND: 5.0, Owner.UNIT: 30.0}
# What could not be settled (a full disk, a lock that is held) is tried again after this.
_RETRY_S = 5.0
# After a crash of the host thousands may be dead at once; each takes its turn.
_CHILDREN = 8


def supervise(site: HostSite) -> None:
    """Watch until no machine runs or waits. Returns at once where another supervisor is at it."""
    path = site.config.paths.supervisor
    while (lock := files.try_lock(path)) is not None:
        try:
            with contextlib.closing(_Watch(site)) as watch:
                watch.until_idle()
        finally:
            os.close(lock)
        # A machine may have been started after the last look, by a command that still found us here.
        if not any(machine.state in LIVE for machine in _machines(site)):
            return


def _machines(site: HostSite) -> list[Machine]:
    return [record for record in site.store.machines() if not isinstance(record, UnreadableRecord)]


class _Watch:
    def __init__(self, site: HostSite) -> None:
        self._site = site
        self._machines: list[Machine] = []
        self._stamp: object = None
        self._looked = -_LOOK_AGAIN_S
        self._complaint = ""
        self._fds: dict[str, tuple[int, int]] = {}  # name -> pidfd, pid
        self._gone: dict[str, float] = {}  # name -> since when its engine is seen to be gone
        self._children: dict[str, tuple[Machine, process.Begun]] = {}
        self._vain: dict[str, tuple[Machine, float]] = {}  # name -> what could not be settled, and since when
        self._consoles: dict[str, tuple[int, bool]] = {}  # name -> size, whether its end was looked at
        self._host = HostWatch(site)
        self._network = NetworkWatch(site, own_command(site.config))
        self._hearing = Hearing(site)

    def until_idle(self) -> None:
        poller = select.poll()
        while True:
            self._look(poller)
            if not any(machine.state in LIVE for machine in self._machines) and not self._children:
                return
            for machine in self._machines:
                if machine.state in LIVE:
                    self._attend(machine, poller)
            # A pidfd that is ready says that its engine has ended.
            for fd, _ in poller.poll(_TICK_S * 1000):
                self._forget(next(name for name, (known, _) in self._fds.items() if known == fd), poller)
                self._looked = -_LOOK_AGAIN_S
            self._reap()
            self._host.look()
            self._network.look(self._machines)
            self._hearing.listen(self._machines)

    def close(self) -> None:
        self._network.close()

    def _look(self, poller: select.poll) -> None:
        try:
            there = self._site.config.paths.database.stat()
            stamp = (there.st_mtime_ns, there.st_ino, there.st_size)
            if stamp == self._stamp and time.monotonic() - self._looked < _LOOK_AGAIN_S:
                return
            self._machines = _machines(self._site)
            self._stamp, self._looked, self._complaint = stamp, time.monotonic(), ""
            trim_log(self._site.config.paths.logs / LOG)
        except (OSError, VmmError) as error:
            # A database that cannot be read now (held, full, being restored) is no reason to leave the machines alone.
            if str(error) != self._complaint:
                self._complaint = str(error)
                print(harmless(str(error)), file=sys.stderr, flush=True)  # noqa: T201  # its own log
            if not self._site.config.paths.data_dir.exists():
                self._machines = []
            return
        live = {machine.name: machine.process.pid for machine in self._machines if machine.process is not None}
        for name, (_, pid) in list(self._fds.items()):
            if live.get(name) != pid:
                self._forget(name, poller)

    def _attend(self, machine: Machine, poller: select.poll) -> None:
        if is_waiting(machine):
            if due_in_s(machine) == 0.0:
                self._be_patient(machine)
            return
        if machine.process is None:
            return
        if machine.name not in self._fds and not self._watch(machine, poller):
            self._be_patient(machine)
            return
        self._gone.pop(machine.name, None)
        if machine.process.marker:
            self._tend(machine)

    def _be_patient(self, machine: Machine) -> None:
        """Deal with what is due, unless it is for the machine's owner to do, and the owner still has time."""
        since = self._gone.setdefault(machine.name, time.monotonic())
        if time.monotonic() - since >= _PATIENCE_S[machine.supervision.owner]:
            self._settle(machine)

    def _watch(self, machine: Machine, poller: select.poll) -> bool:
        """Open a pidfd of the machine's process; False when that is gone."""
        assert machine.process is not None  # noqa: S101  # asked before
        try:
            fd = os.pidfd_open(machine.process.pid)
        except OSError:
            return False
        # Opened first: what is seen now is what the descriptor stands for.
        if not identity.is_alive(machine.process):
            os.close(fd)
            return False
        self._fds[machine.name] = (fd, machine.process.pid)
        # Of another process, and maybe of another machine that had this name.
        self._consoles.pop(machine.name, None)
        poller.register(fd, select.POLLIN)
        return True

    def _forget(self, name: str, poller: select.poll) -> None:
        fd, _ = self._fds.pop(name)
        poller.unregister(fd)
        os.close(fd)

    def _tend(self, machine: Machine) -> None:
        """Keep the console bounded, and end an engine whose guest is off: any outlives a halt, Firecracker's all."""
        name, site_files = machine.name, self._site.files
        try:
            site_files.trim(name)
            size = site_files.console(name).stat().st_size
        except OSError:
            return
        before, looked = self._consoles.get(name, (-1, False))
        # A console that still grows is not at its end; one that stands still is looked at once.
        if size == before and not looked:
            if is_over(site_files.last_words(name)) and machine.process is not None:
                identity.kill(machine.process)
            looked = True
        self._consoles[name] = (size, looked if size == before else False)

    def _settle(self, machine: Machine) -> None:
        name = machine.name
        if name in self._children or len(self._children) >= _CHILDREN:
            return
        vain, since = self._vain.get(name, (None, 0.0))
        # One that has changed since, if only that its failed restart was counted, is another matter.
        if vain == machine and time.monotonic() - since < _RETRY_S:
            return
        lock = files.confined(self._site.config.paths.locks, name)
        if lock.exists() and files.is_locked(lock):
            # A command is at work on it, and knows of its end: fifty that are stopped at once would be fifty of ours
            # in their way.
            return
        self._children[name] = (machine, process.child([*own_command(self._site.config), "settle", name]))

    def _reap(self) -> None:
        for name, (machine, child) in list(self._children.items()):
            code = child.ended()
            if code is not None:
                del self._children[name]
                self._vain.pop(name, None)
                if code:
                    self._vain[name] = (machine, time.monotonic())
                self._gone.pop(name, None)
                self._looked = -_LOOK_AGAIN_S
