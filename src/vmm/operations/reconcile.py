"""`vmm reconcile`: what is remembered, compared with the host, and what differs mended."""

from __future__ import annotations

from vmm import TYPE_CHECKING
from vmm.errors import VmmError
from vmm.model.event import EventKind, Happening
from vmm.model.lifecycle import LIVE
from vmm.model.machine import Machine, MachineState, UnreadableRecord
from vmm.model.value import Value
from vmm.operations.observe import observed
from vmm.operations.settle import settle

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vmm.model.machine import ProcessIdentity
    from vmm.model.site import Site


class Repair(Value):
    """One thing that was not as it should be. `done` is false for what only its user can mend."""

    subject: str
    what: str
    done: bool = True


def reconcile(site: Site) -> tuple[Repair, ...]:
    """Make the host what the records say, and the records what the host shows; return what was done.

    Nothing that is someone else's is touched, and no disk is ever removed.
    """
    repairs: list[Repair] = []
    records = site.store.machines()
    repairs += [
        Repair(subject=record.name, what=f"its record cannot be read: {record.problem}", done=False)
        for record in records
        if isinstance(record, UnreadableRecord)
    ]
    machines = [record for record in records if isinstance(record, Machine)]
    engines = _engines(site, machines)
    for machine in machines:
        try:
            repairs += _mend_record(site, machine, engines.get(machine.name))
        except VmmError as error:
            repairs.append(Repair(subject=machine.name, what=f"{error.brief} {error.details}", done=False))
    machines = [record for record in site.store.machines() if isinstance(record, Machine)]
    live = [machine for machine in machines if observed(site, machine).state in LIVE]
    repairs += _mend_network(site, machines, live)
    repairs += [Repair(subject=subject, what=what) for subject, what in site.sweep(machines, live)]
    if live:
        site.ensure_supervisor()
    return tuple(repairs)


def _engines(site: Site, machines: Sequence[Machine]) -> dict[str, ProcessIdentity]:
    """Return the engines that run, by their machine's name: one walk over all processes, whatever the records say."""
    names: dict[str, str] = {}
    for machine in machines:
        engine = site.engine(machine.spec.engine)
        socket = site.files.socket(machine.name)
        names |= dict.fromkeys(engine.markers(machine_id=machine.id, socket=socket), machine.name)
    return {names[marker]: process for marker, process in site.processes.find_all(names).items()}


def _mend_record(site: Site, machine: Machine, engine: ProcessIdentity | None) -> list[Repair]:
    name = machine.name
    if machine.state not in LIVE:
        if engine is None:
            return _look_at_disk(site, machine)
        # A database that was restored, or a command that died after it had recorded what it was about to do.
        with site.store.lock(name):
            if site.store.machine(name).state in LIVE or not site.processes.is_alive(engine):
                return []
            what = f"its engine runs (pid {engine.pid}), and was recorded as {machine.state}"
            event = Happening(kind=EventKind.REPAIRED, detail=what)
            site.store.record(name, MachineState.RUNNING, process=engine, wanted=True, event=event)
        return [Repair(subject=name, what=what)]
    found = settle(site, name)
    if found.end is None:
        return []
    return [Repair(subject=name, what=f"it was recorded as {machine.state}; {found.machine.reason}")]


def _look_at_disk(site: Site, machine: Machine) -> list[Repair]:
    if site.files.is_made(machine.name):
        return []
    if machine.started_at is None:
        what = f"its creation was interrupted; finish it: vmm start {machine.name}, or vmm delete {machine.name}"
    else:
        what = f"its disk is gone ({site.files.disk(machine.name)}); put it back, or: vmm delete {machine.name}"
    return [Repair(subject=machine.name, what=what, done=False)]


def _mend_network(site: Site, machines: Sequence[Machine], live: Sequence[Machine]) -> list[Repair]:
    # What has no process now gets its tap and rules when it is started.
    attached = [machine for machine in live if machine.process is not None]
    wanted = [(machine.lease, site.store.forwards(machine.name)) for machine in attached]
    gone = {machine.lease.tap: machine.name for machine in machines} | {machine.lease.tap: "" for machine in live}
    repairs = [
        Repair(subject=name, what="a tap of its was left")
        for tap, name in gone.items()
        if name and site.network.remove_tap(tap)
    ]
    repairs += [Repair(subject="network", what=what) for what in site.network.differences(wanted)]
    if any(repair.subject == "network" for repair in repairs):
        site.network.reconcile(wanted)
    return repairs
