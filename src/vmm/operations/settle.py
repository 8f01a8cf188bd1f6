"""What becomes of a machine whose engine has ended: its end is recorded, and its restart policy decides."""

from __future__ import annotations

import time

from vmm import TYPE_CHECKING
from vmm.errors import VmmError
from vmm.model.event import EventKind, Happening
from vmm.model.lifecycle import LIVE, is_waiting
from vmm.model.limits import HEALTHY_S, NOWHERE_S, RESTARTS_MOST, restart_delay_s
from vmm.model.machine import Machine, MachineState, Owner, RestartPolicy, Supervision
from vmm.model.value import Value, replace
from vmm.operations.clear import adopt, clear_away, release
from vmm.operations.observe import End, find_engine, how_it_ended, observed
from vmm.operations.start import Mode, start

if TYPE_CHECKING:
    from vmm.model.site import Site

# A guest that reboots within this of its start waits a little for the next.
_QUICK_S = 10.0
# Ends that say themselves what happened; after all others it is said that the machine is restarted.
_GUESTS_WAY = (EventKind.REBOOTED, EventKind.RESET)
# Whoever holds a machine's lock longer than this is at work on it, and knows of its end.
_LOCK_S = 10.0


class Settled(Value):
    """What was found. `end` is None for a machine that had not just ended; `waits` for one that is to be restarted.

    `adopted`: it runs, which was not recorded, and is now.
    """

    machine: Machine
    end: EventKind | None
    waits: bool
    adopted: bool = False


def settle(site: Site, name: str, *, out_of_memory: bool = False) -> Settled:
    """Record the end of a machine whose engine is gone, take back what it had, and decide on its restart.

    One that runs, or whose end is recorded, is left as it is. `out_of_memory`: its supervisor saw that it was for that.
    """
    with site.store.lock(name, timeout_s=_LOCK_S):
        return settle_locked(site, site.store.machine(name), out_of_memory=out_of_memory)


def settle_locked(site: Site, machine: Machine, *, out_of_memory: bool = False) -> Settled:
    """Settle a machine whose lock the caller holds."""
    seen = _seen(site, machine)
    if machine.state not in LIVE or seen.state in LIVE:
        adopted = seen.process is not None and (seen.state, seen.process) != (machine.state, machine.process)
        if seen.process is not None and adopted:
            # The command that started it was ended before it could say that it runs, or as which process.
            event = Happening(kind=EventKind.REPAIRED, detail=f"its engine runs (pid {seen.process.pid})")
            site.store.record(machine.name, seen.state, process=seen.process, event=event)
            adopt(site, seen)
        return Settled(machine=seen, end=None, waits=is_waiting(machine), adopted=adopted)
    end = how_it_ended(site, machine, out_of_memory=out_of_memory)
    release(site, machine)
    clear_away(site, machine)
    waits = _record(site, machine, end)
    return Settled(machine=site.store.machine(machine.name), end=end.kind, waits=waits)


def _seen(site: Site, machine: Machine) -> Machine:
    """Return the machine as the host shows it, whatever engine of it is recorded."""
    seen = observed(site, machine)
    if machine.state not in LIVE or seen.state in LIVE:
        return seen
    # A database of before that was put back by hand: what it knows is gone, and another engine has the disk.
    engine = find_engine(site, machine)
    return seen if engine is None else replace(machine, state=MachineState.RUNNING, process=engine)


def restart_waiting(site: Site, name: str, *, owner: Owner | None) -> Machine:
    """Start a machine that waits for its restart, once it is due; a failure of that is another end.

    Raises:
        VmmError: it could not be started; what is to come is recorded.
    """
    machine = site.store.machine(name)
    while is_waiting(machine) and (left := due_in_s(machine)) > 0:
        time.sleep(min(left, 1.0))
        machine = site.store.machine(name)
    try:
        return start(site, name, Mode(owner=owner, again=True)).machine
    except VmmError as error:
        with site.store.lock(name, timeout_s=_LOCK_S):
            failed = site.store.machine(name)
            if is_waiting(machine) and failed.state is MachineState.FAILED and failed.wanted:
                # The start has counted and cleared; what is left is to wait again, or to give up. What did not come up
                # has not run, however long it had run before.
                counted = replace(failed, supervision=machine.supervision, started_at=None)
                _record(site, counted, End(state=failed.state, reason=error.brief, kind=EventKind.FAILED))
        raise


def due_in_s(machine: Machine) -> float:
    """Return the seconds until a waiting machine is to be started; 0 when it is due."""
    left = machine.supervision.due_at - time.time()
    # A clock that was set back must not put off a restart for as long as it was set back.
    return max(0.0, left) if left <= 2 * restart_delay_s(RESTARTS_MOST) else 0.0


def _record(site: Site, machine: Machine, end: End) -> bool:
    """Record an end, and whether the machine is to be started again; return that."""
    wish = _wish(site, machine, end)
    if wish is None:
        _record_end(site, machine, end)
        return False
    counted = wish.restarts > machine.supervision.restarts
    reason = f"{end.reason}; restart {wish.restarts} of {RESTARTS_MOST}" if counted else end.reason
    kind = end.kind if end.kind in _GUESTS_WAY else EventKind.RESTARTING
    site.store.record(
        machine.name,
        MachineState.STARTING,
        process=None,
        reason=f"{reason}; it is started again",
        supervision=wish,
        event=Happening(kind=kind, detail=reason),
    )
    return True


def _record_end(site: Site, machine: Machine, end: End) -> None:
    # A power-off is its guest's will, and a reboot of the host does not undo it; a failure is no one's.
    wanted = False if end.kind is EventKind.ENDED else None
    state, kind, detail = end.state, end.kind, end.reason
    if _is_restarted(site, machine, end):
        what = f"{RESTARTS_MOST} restarts in a row were in vain"
        state, kind, detail = MachineState.FAILED, EventKind.GAVE_UP, f"{what}; {end.reason}"
    elif end.kind is EventKind.RESET:
        kind = EventKind.FAILED
    event = Happening(kind=kind, detail=detail)
    site.store.record(machine.name, state, process=None, reason=detail, wanted=wanted, event=event)


def _is_restarted(site: Site, machine: Machine, end: End) -> bool:
    """Whether the machine is one that is started again after such an end, however often that was in vain."""
    if not machine.wanted or machine.state is MachineState.STOPPING or _stays_down(site, machine):
        return False
    if end.kind is EventKind.REBOOTED or (end.kind is EventKind.RESET and machine.supervision.restarts == 0):
        return True
    if machine.supervision.owner is Owner.FOREGROUND:
        # The policy is its owner's, who is told by the exit code.
        return False
    match machine.spec.restart:
        case RestartPolicy.NO:
            return False
        case RestartPolicy.ON_FAILURE:
            return end.kind in (EventKind.FAILED, EventKind.RESET)
        case RestartPolicy.ALWAYS:
            return True


def _stays_down(site: Site, machine: Machine) -> bool:
    """Whether a machine went down with its host, and is not to come back with it: then no policy brings it back."""
    if machine.spec.auto_start or machine.process is None:
        return False
    return machine.process.boot_id != site.processes.this_process().boot_id


def _wish(site: Site, machine: Machine, end: End) -> Supervision | None:
    """Return when the machine is to be started again, None when it is not.

    A guest's reboot is no failure, and is not counted; that of one which does nothing but reboot is.
    """
    if not _is_restarted(site, machine, end):
        return None
    ran_s = _ran_s(machine)
    before = 0 if ran_s >= HEALTHY_S else machine.supervision.restarts
    if end.kind is EventKind.REBOOTED and not _does_nothing_else(site, machine, ran_s):
        delay = 0.0 if ran_s >= _QUICK_S else restart_delay_s(1)
        return replace(machine.supervision, restarts=before, due_at=int(time.time() + delay))
    if before >= RESTARTS_MOST:
        return None
    return replace(machine.supervision, restarts=before + 1, due_at=int(time.time() + restart_delay_s(before)))


def _does_nothing_else(site: Site, machine: Machine, ran_s: float) -> bool:
    """Whether a guest that reboots has come nowhere since its last reboot, and maybe not for many before it."""
    if ran_s >= NOWHERE_S:
        return False
    kinds = [event.kind for event in site.store.events(machine.name, most=2)]
    return kinds == [EventKind.REBOOTED, EventKind.STARTED]


def _ran_s(machine: Machine) -> float:
    import calendar

    if machine.started_at is None:
        return 0.0
    began = calendar.timegm(time.strptime(machine.started_at, "%Y-%m-%dT%H:%M:%SZ"))
    return max(0.0, time.time() - began)
