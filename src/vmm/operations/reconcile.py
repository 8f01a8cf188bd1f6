"""`vmm reconcile`: what is remembered, compared with the host, and what differs mended."""

from __future__ import annotations

import contextlib

from vmm import TYPE_CHECKING
from vmm.errors import ConflictError, NotFoundError, StateError, VmmError
from vmm.model.event import EventKind, Happening
from vmm.model.facts import Moment, Standing
from vmm.model.lifecycle import LIVE, is_waiting
from vmm.model.machine import Machine, MachineState, UnreadableRecord
from vmm.model.value import Value
from vmm.operations.clear import clear_away, put_back_disk, refuse_anothers
from vmm.operations.observe import observed
from vmm.operations.settle import settle_locked

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vmm.model.facts import Answer
    from vmm.model.machine import ProcessIdentity
    from vmm.model.network import PortForward
    from vmm.model.site import Site, Traces


_MOST_TOLD = 4


class Repair(Value):
    """One thing that was not as it should be. `done` is false for what only its user can mend."""

    subject: str
    what: str
    done: bool = True


def reconcile(site: Site) -> tuple[Repair, ...]:
    """Make the host what the records say, and the records what the host shows; return what was done.

    Nothing that is someone else's is touched, and no disk is ever removed. A machine that another command is working on
    is left to it.
    """
    repairs: list[Repair] = []
    machines: list[Machine] = []
    for record in site.store.machines():
        if isinstance(record, UnreadableRecord):
            what = f"its record cannot be read: {record.problem}"
            repairs.append(Repair(subject=record.name, what=what, done=False))
        else:
            machines.append(record)
    engines, traces = _engines(site, machines), site.traces()
    for machine in machines:
        if not _is_in_order(site, machine, engines.get(machine.name), traces):
            repairs += _mend(site, machine.name, engines.get(machine.name))
        if not site.files.is_described(machine.name) and site.files.is_made(machine.name):
            # One of a vmm that wrote none, or whose disk was full: what can be made again is no repair.
            site.files.describe(machine, site.store.forwards(machine.name))
    repairs += [
        Repair(subject=stray.name, what=f"{stray.problem}; {stray.advice}", done=False) for stray in site.strays()
    ]
    repairs += mend_network(site)
    repairs += _mend_host(site)
    repairs += _sweep(site)
    if site.store.any_live():
        repairs += _watch(site)
    return tuple(repairs)


def _watch(site: Site) -> list[Repair]:
    try:
        site.ensure_supervisor()
    except VmmError as error:
        what = f"no supervisor could be started: {_trouble(error)}"
        return [Repair(subject="host", what=what, done=False)]
    return []


def _sweep(site: Site) -> list[Repair]:
    try:
        return [Repair(subject=subject, what=what) for subject, what in site.sweep()]
    except VmmError as error:
        return [Repair(subject="host", what=_trouble(error), done=False)]


def _engines(site: Site, machines: Sequence[Machine]) -> dict[str, ProcessIdentity]:
    """Return the engines that run, by their machine's name: one walk over all processes, whatever the records say."""
    names: dict[str, str] = {}
    for machine in machines:
        engine = site.engine(machine.spec.engine)
        socket = site.files.socket(machine.name)
        names |= dict.fromkeys(engine.markers(machine_id=machine.id, socket=socket), machine.name)
    return {names[marker]: process for marker, process in site.processes.find_all(names).items()}


def _is_in_order(site: Site, machine: Machine, engine: ProcessIdentity | None, traces: Traces) -> bool:
    """Whether nothing is to be mended, as far as can be seen without the machine's lock."""
    if machine.state in LIVE:
        return observed(site, machine) == machine and site.files.is_made(machine.name)
    return engine is None and not _traced(machine, traces) and site.files.is_made(machine.name)


def _traced(machine: Machine, traces: Traces) -> list[str]:
    """Return what stands on the host of a machine, in words."""
    kinds = {
        "jail": machine.id in traces.jails,
        "cgroup": machine.id in traces.groups,
        "socket": machine.name in traces.sockets,
        "tap": machine.lease.tap in traces.taps,
    }
    return [kind for kind, there in kinds.items() if there]


def _mend(site: Site, name: str, engine: ProcessIdentity | None) -> list[Repair]:
    try:
        with site.store.lock(name, timeout_s=0.0):
            return _mend_locked(site, site.store.machine(name), engine)
    except (ConflictError, NotFoundError):
        # Another command is at work on it, or has deleted it meanwhile.
        return []
    except VmmError as error:
        return [Repair(subject=name, what=_trouble(error), done=False)]


def _mend_locked(site: Site, machine: Machine, engine: ProcessIdentity | None) -> list[Repair]:
    name = machine.name
    refuse_anothers(site, machine)
    if machine.state in LIVE:
        found = settle_locked(site, machine)
        if found.adopted:
            return [Repair(subject=name, what=f"its engine runs, and was recorded as {machine.state}")]
        if found.end is None:
            return _look_at_disk_in_use(site, found.machine)
        return [Repair(subject=name, what=f"it was recorded as {machine.state}; {found.machine.reason}")]
    if engine is not None and site.processes.is_alive(engine):
        # A database that was restored, or a command that died after it had recorded what it was about to do.
        what = f"its engine runs (pid {engine.pid}), and was recorded as {machine.state}"
        event = Happening(kind=EventKind.REPAIRED, detail=what)
        site.store.record(name, MachineState.RUNNING, process=engine, wanted=True, event=event)
        return [Repair(subject=name, what=what)]
    repairs = _look_at_disk(site, machine)
    left = _traced(machine, site.traces())
    if left:
        site.network.remove_tap(machine.lease.tap)
        clear_away(site, machine)
        what = f"{' and '.join(left)} of its own were left"
        stays = _traced(machine, site.traces())
        if stays:
            what += f"; {' and '.join(stays)} cannot be removed, and vmm start {name} would say why"
        repairs.append(Repair(subject=name, what=what, done=not stays))
    return repairs


def _look_at_disk(site: Site, machine: Machine) -> list[Repair]:
    if site.files.is_made(machine.name):
        return []
    if machine.started_at is None:
        what = f"its creation was interrupted; finish it: vmm start {machine.name}, or vmm delete {machine.name}"
    else:
        what = f"its disk is gone ({site.files.disk(machine.name)}); put it back, or: vmm delete {machine.name}"
    return [Repair(subject=machine.name, what=what, done=False)]


def _look_at_disk_in_use(site: Site, machine: Machine) -> list[Repair]:
    if site.files.is_made(machine.name):
        return []
    disk = site.files.disk(machine.name)
    if put_back_disk(site, machine):
        return [Repair(subject=machine.name, what=f"its disk had been removed while it runs; it is back ({disk})")]
    what = f"its disk is gone ({disk}) while it runs: put it back, or save what is in it before the machine stops"
    return [Repair(subject=machine.name, what=what, done=False)]


def mend_network(site: Site) -> list[Repair]:
    """Make bridge, firewall and taps what the running machines need; what was mended is remembered as one event."""
    found = network_differences(site)
    if not found:
        return []
    site.network.restore()
    # A tap that is gone is lost to the engine that had it open: only the machine's own restart brings another.
    stays = set(network_differences(site))
    repairs = [Repair(subject="network", what=what, done=what not in stays) for what in found]
    mended = [repair.what for repair in repairs if repair.done]
    if mended:
        detail = f"network: {'; '.join(mended[:_MOST_TOLD])}"
        more = len(mended) - _MOST_TOLD
        event = Happening(kind=EventKind.REPAIRED, detail=detail + (f"; and {more} more" if more > 0 else ""))
        with contextlib.suppress(StateError):
            site.store.happened(event)
    return repairs


def _mend_host(site: Site) -> list[Repair]:
    """Mend what machines need of their host; what vmm cannot mend is said, with the command that does."""
    if not site.store.any_live() and not site.network.is_set_up():
        # Nothing needs it yet: the first start makes what it needs, and says what is in its way.
        return []
    # The rules and taps are told one by one, above.
    answers = site.facts.mend(Moment.LOOK, but=("rules",))
    told = [answer for answer in answers if answer.standing is not Standing.OK]
    return [Repair(subject="host", what=_words(answer), done=answer.mended) for answer in told]


def _words(answer: Answer) -> str:
    what = f"{answer.name}: {answer.proof}"
    # Whoever reads this has just given `vmm reconcile`.
    return what if answer.mended or not answer.fix or "vmm reconcile" in answer.fix else f"{what}; {answer.fix}"


def _trouble(error: VmmError) -> str:
    return f"{error.brief} {error.details} To mend it: {error.resolution}"


def _is_held(site: Site, name: str) -> bool:
    """Whether a command is at work on the machine; one that was killed is not."""
    try:
        with site.store.lock(name, timeout_s=0.0):
            return False
    except ConflictError:
        return True


def network_differences(site: Site) -> list[str]:
    """Return what of rules and taps is not as the machines that run need it, but for what a command is at work on."""
    before = _known(site)
    # What waits for its restart gets its tap and rules with it.
    machines = [(machine, forwards) for machine, forwards in before.values() if not is_waiting(machine)]
    live = [(machine.lease, forwards) for machine, forwards in machines if observed(site, machine).state in LIVE]
    live += [(stray.lease, stray.forwards) for stray in site.strays(quick=True) if stray.lease is not None]
    found = list(site.network.differences(live))
    if not found:
        return []
    # Whoever has started, stopped or changed a machine since, or is about to, was or is at its rules and its tap.
    after = _known(site)
    for name in sorted(before.keys() | after.keys()):
        # Two machines, where one of that name was deleted and another created.
        leases = [known[name][0].lease for known in (before, after) if name in known]
        own = {word for lease in leases for word in (lease.tap, lease.address)}
        of_it = [what for what in found if not own.isdisjoint(what.split())]
        if of_it and (before.get(name) != after.get(name) or _is_held(site, name)):
            found = [what for what in found if what not in of_it]
    return found


def _known(site: Site) -> dict[str, tuple[Machine, list[PortForward]]]:
    """Return every machine whose record can be read with its forwards, by name."""
    known: dict[str, tuple[Machine, list[PortForward]]] = {
        record.name: (record, []) for record in site.store.machines() if isinstance(record, Machine)
    }
    for forward in site.store.forwards():
        if forward.machine in known:
            known[forward.machine][1].append(forward)
    return known
