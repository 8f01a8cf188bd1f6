"""The supervisor's eye on the network: what another tool takes away of it is back within seconds.

The kernel tells what is changed, so that nothing is asked while nothing happens. Whether anything is otherwise than it
should be is then looked at, and mended, by a command of its own (`vmm mend-network`), which records it as an event.
"""

from __future__ import annotations

import sys
import time

from vmm import TYPE_CHECKING
from vmm.errors import VmmError
from vmm.host import files, process
from vmm.model.lifecycle import LIVE, is_waiting
from vmm.network.watch import Change, Changes

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vmm.app import HostSite
    from vmm.model.machine import Machine

# Elements come and go with machines: what was taken out by someone else is found a little later.
_ELEMENTS_S = 3.0
# One look after another, however much is changed.
_PAUSE_S = 1.0


class NetworkWatch:
    """`command` is the argument list that runs this very vmm."""

    def __init__(self, site: HostSite, command: Sequence[str]) -> None:
        self._site = site
        self._command = command
        self._due: float | None = time.monotonic()
        self._not_before = 0.0
        self._child: process.Begun | None = None
        self._ways: tuple[str, ...] | None = None
        self._complaint = ""
        try:
            self._changes = Changes()
        except OSError as error:
            self._changes = None
            self._complain(f"What others change of the network is not seen at once: {error}")

    def close(self) -> None:
        if self._changes is not None:
            self._changes.close()
        # What it puts back it must not put back later, when all is taken away.
        if self._child is not None:
            self._child.finish()

    def look(self, machines: Sequence[Machine]) -> None:
        """Look at what has changed since the last time, and have mended what is not as `machines` need it."""
        try:
            self._take(machines)
            self._follow_ways(machines)
        except (OSError, VmmError) as error:
            self._complain(str(error))
        if self._child is not None and self._child.ended() is not None:
            self._child = None
        now = time.monotonic()
        if self._due is not None and self._due <= now and self._not_before <= now and self._child is None:
            self._due, self._not_before = None, now + _PAUSE_S
            self._child = process.child([*self._command, "mend-network"])

    def _take(self, machines: Sequence[Machine]) -> None:
        changed = set[Change]() if self._changes is None else self._changes.take()
        if Change.FIREWALL in changed:
            self._is_due(0.0)
        if Change.ELEMENTS in changed:
            self._is_due(_ELEMENTS_S)
        if Change.LINKS in changed and self._links_differ(machines):
            self._is_due(0.0)

    def _is_due(self, in_s: float) -> None:
        due = time.monotonic() + in_s
        self._due = due if self._due is None else min(self._due, due)

    def _links_differ(self, machines: Sequence[Machine]) -> bool:
        """Whether bridge or taps are not as they were made, but for those of machines that a command is at work on."""
        settled = [machine for machine in machines if machine.state in LIVE and not is_waiting(machine)]
        if self._site.network.bridge_differences():
            return True
        leases = [machine.lease for machine in settled if machine.process is not None and not self._is_held(machine)]
        return bool(self._site.network.link_differences(leases))

    def _is_held(self, machine: Machine) -> bool:
        lock = files.confined(self._site.config.paths.locks, machine.name)
        return lock.exists() and files.is_locked(lock)

    def _follow_ways(self, machines: Sequence[Machine]) -> None:
        """Let machines leave by what leads out of the host now: a cable that was plugged in, a VPN that came up."""
        if not machines:
            return
        network = self._site.network
        ways = network.ways_out()
        if ways != self._ways:
            if self._ways is not None:
                network.renew_ways()
            self._ways = ways

    def _complain(self, words: str) -> None:
        if words != self._complaint:
            self._complaint = words
            print(words, file=sys.stderr, flush=True)  # noqa: T201  # the supervisor's own log
