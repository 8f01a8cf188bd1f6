"""`vmm stop` and `vmm delete`: the guest is asked first, and the result says whether it went by itself."""

from __future__ import annotations

import contextlib
import time
from enum import StrEnum

from vmm import TYPE_CHECKING
from vmm.errors import EngineError, StateError, VmmError
from vmm.model.event import EventKind, Happening
from vmm.model.last_words import is_down
from vmm.model.lifecycle import LIVE, Verb, check_legal, is_needed, is_waiting
from vmm.model.machine import Machine, MachineState, Owner, ProcessIdentity
from vmm.model.value import Value
from vmm.operations.clear import clear_away, refuse_anothers, release
from vmm.operations.observe import observed

if TYPE_CHECKING:
    from vmm.model.site import Site

STOP_TIMEOUT_S = 30.0
# A guest that honours the power button is on its way down well within this; one that does not is asked over ssh.
_BUTTON_S = 0.3
_POLL_S = 0.1
_ASK_AGAIN_S = 1.0
# How long it waits for a command that is at work on the machine; one from within the machine's unit does not.
_LOCK_S = 60.0


class StopMethod(StrEnum):
    """How a machine came to stand."""

    ALREADY = "already stopped"
    GUEST = "shut down by the guest"
    UNCLEAN = "shut down by the guest, which did not unmount its disk: what it wrote last may be lost"
    KILLED = "killed"
    GONE = "its engine ended before its guest had shut down"


class Stopped(Value):
    machine: Machine
    method: StopMethod
    seconds: float


class Deleted(Value):
    name: str


def stop(
    site: Site,
    name: str,
    *,
    timeout_s: float = STOP_TIMEOUT_S,
    force: bool = False,
    keep_wanted: bool = False,
    in_unit: bool = False,
) -> Stopped:
    """Stop a machine: ask the guest, wait `timeout_s` at most, then kill; `force` kills at once.

    `keep_wanted` (a host going down) leaves the wish that the machine runs, so that the next boot brings it back.
    `in_unit`: it is the machine's own unit that ends, and waits for this.

    Raises:
        ConflictError: another command is at work on the machine, and goes on.
    """
    began = time.monotonic()
    with site.store.lock(name, timeout_s=0.0 if in_unit else _LOCK_S):
        # Counted from here, and not from when the guest was asked: of fifty that are stopped at once, the last is told
        # a quarter of a second later, and all are to stand at the same time.
        deadline = time.monotonic() + timeout_s if timeout_s > 0 and not force else None
        machine = observed(site, site.store.machine(name))
        refuse_anothers(site, machine)
        wanted = machine.wanted if keep_wanted else False
        method = StopMethod.ALREADY
        if is_needed(Verb.STOP, machine.state) and not is_waiting(machine):
            method = _bring_down(site, machine, deadline, wanted=wanted)
        try:
            release(site, machine)
        finally:
            # Whatever is left of its network, it stands: the next start, delete or reconcile takes the rest.
            clear_away(site, machine)
            _record_stopped(site, machine, method, wanted=wanted)
            if not in_unit:
                # A host that goes down ends it itself, and may be waiting for this command before it does.
                _end_unit(site, machine, wait=not keep_wanted)
        stopped = site.store.machine(name)
        site.files.describe(stopped, site.store.forwards(name))
        return Stopped(machine=stopped, method=method, seconds=time.monotonic() - began)


def delete(site: Site, name: str, *, force: bool = False) -> Deleted:
    """Delete a machine with its disk, address and forwards. Works on a full disk; run again, it finishes.

    Raises:
        ConflictError: it runs, or its disk is another machine's of its name, and `force` was not given.
    """
    with site.store.lock(name):
        machine = observed(site, site.store.machine(name))
        check_legal(Verb.DELETE, machine, force=force)
        if not force:
            refuse_anothers(site, machine)
        elif not site.files.is_its_own(machine):
            return _forget(site, machine)
        # Before anything is ended: a machine whose files stay would be killed for nothing.
        site.files.check_removable(name)
        if machine.state in LIVE:
            # As with stop: whatever happens to this command, nobody starts again what its user wants gone.
            with contextlib.suppress(StateError):
                site.store.record(name, MachineState.STOPPING, process=machine.process, wanted=False)
        if machine.process is not None and machine.process.marker:
            _kill(site, machine.process)
        release(site, machine)
        clear_away(site, machine)
        # Files first: that frees the room which removing the row may need; a row without files is deleted next time.
        site.files.remove(name)
        site.store.remove(name, event=Happening(kind=EventKind.DELETED))
        _end_unit(site, machine, wait=True)
    return Deleted(name=name)


def _forget(site: Site, machine: Machine) -> Deleted:
    """Delete the record alone: disk, socket, address and unit are, or may be, those of another machine of its name."""
    site.store.remove(machine.name, event=Happening(kind=EventKind.DELETED, detail="its record alone"))
    return Deleted(name=machine.name)


def _record_stopped(site: Site, machine: Machine, method: StopMethod, *, wanted: bool) -> None:
    # A machine that failed stays failed, with its reason, until it is started again.
    failed = machine.state is MachineState.FAILED and method is StopMethod.ALREADY
    already = method is StopMethod.ALREADY and not is_waiting(machine)
    state = machine.state if already else MachineState.STOPPED
    event = None if already else Happening(kind=EventKind.STOPPED, detail=method.value)
    site.store.record(
        machine.name, state, process=None, wanted=wanted, reason=machine.reason if failed else None, event=event
    )


def _end_unit(site: Site, machine: Machine, *, wait: bool) -> None:
    """Let systemd forget a machine's unit; that it does not must not keep a machine from being stopped."""
    if machine.supervision.owner is Owner.UNIT and site.units is not None:
        with contextlib.suppress(VmmError):
            site.units.stop(machine, wait=wait)


def _bring_down(site: Site, machine: Machine, deadline: float | None, *, wanted: bool) -> StopMethod:
    process = machine.process
    if process is None or not process.marker:
        return StopMethod.KILLED
    # The wish is recorded first: whatever happens to this command, a reboot will not bring the machine back. A write
    # that fails does not keep a machine from being stopped.
    with contextlib.suppress(StateError):
        site.store.record(machine.name, MachineState.STOPPING, process=process, wanted=wanted)
    if deadline is not None and _guest_goes(site, machine, process, deadline):
        if not is_down(site.files.last_words(machine.name)):
            # Someone else killed it meanwhile, such as a supervisor that ends a whole cgroup.
            return StopMethod.GONE
        site.files.grown(machine.name)
        return StopMethod.GUEST if site.files.is_unmounted(machine.name) else StopMethod.UNCLEAN
    _kill(site, process)
    return StopMethod.KILLED


def _guest_goes(site: Site, machine: Machine, process: ProcessIdentity, deadline: float) -> bool:
    """Ask by the power button, then over ssh; True when the guest went down by itself before the deadline."""
    engine = site.engine(machine.spec.engine)
    with contextlib.suppress(EngineError):
        engine.press_power_button(site.files.socket(machine.name))
    if _wait(site, machine, process, min(deadline, time.monotonic() + _BUTTON_S)):
        return True
    # Firecracker's process ends at a reboot and outlives a power-off; under qemu both end it.
    reboot = not engine.features.power_off_ends
    while True:
        # A guest that has only just been started has no ssh yet: it is asked again until it has.
        remaining = max(0.1, deadline - time.monotonic())
        asked = site.guest.ask_shutdown(machine, reboot=reboot, timeout_s=remaining)
        until = deadline if asked else min(deadline, time.monotonic() + _ASK_AGAIN_S)
        if _wait(site, machine, process, until):
            return True
        if asked or time.monotonic() >= deadline:
            return False


def _wait(site: Site, machine: Machine, process: ProcessIdentity, deadline: float) -> bool:
    while True:
        remaining = deadline - time.monotonic()
        if site.processes.wait_gone(process, timeout_s=max(0.0, min(_POLL_S, remaining))):
            return True
        if is_down(site.files.last_words(machine.name)):
            _kill(site, process)
            return True
        if remaining <= 0:
            return False


def _kill(site: Site, process: ProcessIdentity) -> None:
    site.processes.kill(process)
    if not site.processes.wait_gone(process, timeout_s=10.0):
        raise EngineError(
            f"The engine with pid {process.pid} does not end.",
            details="It was killed (SIGKILL) 10 s ago; the kernel still holds it, most often in a hung disk.",
            resolution=f"See what it waits for: cat /proc/{process.pid}/stack",
        )
