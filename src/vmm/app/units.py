"""What happens inside a machine's systemd unit: its start, and its end."""

from __future__ import annotations

import os
import time

from vmm import TYPE_CHECKING
from vmm.errors import ConflictError, NotFoundError, VmmError
from vmm.host import own_group, systemd
from vmm.model.event import EventKind
from vmm.model.lifecycle import LIVE, is_waiting
from vmm.model.machine import MachineState, Owner
from vmm.operations.observe import observed
from vmm.operations.settle import restart_waiting, settle
from vmm.operations.start import Mode, start
from vmm.operations.stop import stop

if TYPE_CHECKING:
    from pathlib import Path

    from vmm.app import HostSite

# What tells systemd that a unit has failed; its SuccessExitStatus takes in all that an engine may end with.
RESTART = 75
_LOOK_S = 0.2


def start_in_unit(site: HostSite, name: str, *, error_file: Path, overcommit: bool) -> int:
    """Start a machine as the process of this unit, and tell systemd its pid.

    The first time `vmm start` asks for it; later systemd does, by the machine's restart policy, and then the machine
    must be waiting for it: one that was stopped meanwhile ends its unit instead.
    """
    units = site.machine_units()
    machine = site.store.machine(name)
    try:
        own_group.require(machine.spec.limits)
        if units.is_asked_for(name):
            machine = start(site, name, Mode(owner=Owner.UNIT, overcommit=overcommit)).machine
        elif is_waiting(machine):
            machine = restart_waiting(site, name, owner=Owner.UNIT)
        else:
            units.give_up(machine)
            return 0
    except VmmError as error:
        systemd.write_error(error_file, error)
        raise
    if machine.process is not None:
        units.write_pid(name, machine.process.pid)
    return 0


def stop_in_unit(site: HostSite, name: str) -> int:
    """Shut a machine down because systemd stops its unit: `systemctl stop`, or a host that goes down.

    Nothing waits here for the machine's lock: the command that holds it may be about to wait for this unit to end.
    """
    own_group.leave()
    goes_down = systemd.host_goes_down()
    while True:
        try:
            machine = observed(site, site.store.machine(name))
        except NotFoundError:
            return 0
        if machine.process is None or not machine.process.marker or machine.state not in LIVE:
            return 0
        try:
            stopped = stop(site, name, timeout_s=systemd.UNIT_STOP_S, keep_wanted=goes_down, in_unit=True)
        except ConflictError:
            # Another command is at work on it, such as a `vmm stop`: then its engine is gone in a moment.
            time.sleep(_LOOK_S)
            continue
        site.machine_units().ask_again(stopped.machine)
        return 0


def ended_in_unit(site: HostSite, name: str) -> int:
    """Settle a machine whose unit has ended; the exit code tells systemd whether that was a failure to be mended.

    A machine that someone stops or deletes is in good hands, and those hold its lock.
    """
    try:
        machine = site.store.machine(name)
    except NotFoundError:
        return 0
    if machine.state not in LIVE or machine.state is MachineState.STOPPING or not machine.wanted:
        return 0
    # As systemd says it to its ExecStopPost (systemd.exec(5)).
    found = settle(site, name, out_of_memory=os.environ.get("SERVICE_RESULT") == "oom-kill")
    if not found.waits:
        return 0
    # Under every policy: what systemd would not start again by itself.
    if found.end in (EventKind.REBOOTED, EventKind.RESET):
        site.machine_units().again(found.machine)
        return 0
    return RESTART
