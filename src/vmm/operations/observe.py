"""What is remembered, compared with what the host shows. Nothing here writes, so that any user may look."""

from __future__ import annotations

from vmm import TYPE_CHECKING
from vmm.model.lifecycle import LIVE, is_waiting
from vmm.model.machine import Machine, MachineState, MachineView, UnreadableRecord
from vmm.model.value import Value, replace

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from vmm.model.event import EventKind
    from vmm.model.last_words import LastWord
    from vmm.model.machine import ProcessIdentity, Stray
    from vmm.model.network import PortForward
    from vmm.model.site import Site


class End(Value):
    """How an engine that is gone came to its end."""

    state: MachineState
    reason: str
    kind: EventKind


def observed(site: Site, machine: Machine) -> Machine:
    """Return the machine with the state that the host shows, and the reason where it differs from what was recorded."""
    if machine.state not in LIVE or is_waiting(machine):
        return machine
    if machine.process is not None and site.processes.is_alive(machine.process):
        # Its engine is there: whether the command that started it lived to say so makes no difference to its user.
        begun = machine.state is MachineState.STARTING and machine.process.marker
        return replace(machine, state=MachineState.RUNNING) if begun else machine
    if machine.state is MachineState.STARTING:
        # The command that started it may have died between starting the engine and recording it.
        engine = find_engine(site, machine)
        if engine is not None:
            return replace(machine, state=MachineState.RUNNING, process=engine)
    end = how_it_ended(site, machine)
    return replace(machine, state=end.state, reason=end.reason, process=None)


def find_engine(site: Site, machine: Machine) -> ProcessIdentity | None:
    """Return the process that runs this machine, whatever is recorded of it; None where there is none."""
    engine = site.engine(machine.spec.engine)
    markers = engine.markers(machine_id=machine.id, socket=site.files.socket(machine.name))
    return site.processes.find(*markers)


def view(site: Site, name: str) -> MachineView:
    """Return one machine as it is now, with its forwards."""
    # A listing says none of this, and does not pay for it.
    from vmm.model.last_words import boot_notes

    machine = observed(site, site.store.machine(name))
    notes = boot_notes(site.files.first_words(name)) if machine.started_at is not None else ()
    return MachineView(machine=machine, forwards=tuple(site.store.forwards(name)), boot_notes=notes)


def view_all(
    site: Site,
    *,
    labels: Mapping[str, str | None] | None = None,
    states: Sequence[MachineState] = (),
    strays: bool = False,
) -> tuple[MachineView | UnreadableRecord | Stray, ...]:
    """Return every machine as it is now, by name. A record that cannot be read is in it as such, whatever the filter.

    A label's value None asks only that the label is there. `strays`: engines that no record is of are in it too.
    """
    forwards = _by_machine(site.store.forwards())
    found: list[MachineView | UnreadableRecord | Stray] = []
    for record in site.store.machines():
        if isinstance(record, UnreadableRecord):
            found.append(record)
            continue
        machine = observed(site, record)
        if (not states or machine.state in states) and _has_labels(machine, labels or {}):
            found.append(MachineView(machine=machine, forwards=forwards.get(machine.name, ())))
    return (*found, *(site.strays() if strays else ()))


def how_it_ended(site: Site, machine: Machine, *, out_of_memory: bool = False) -> End:
    """Return how a machine came to have no engine, from its console, its log and the kernel's own count.

    `out_of_memory`: someone who could see it says so.
    """
    from vmm.model.event import EventKind

    if machine.state is MachineState.STOPPING:
        # Its user, or a host that goes down, asked for that; how the engine went is no failure.
        return End(state=MachineState.STOPPED, reason="it was being stopped", kind=EventKind.STOPPED)
    from vmm.model.last_words import Ending, last_word

    begun = machine.process is not None and machine.process.marker
    said = last_word(site.files.last_words(machine.name)) if begun else None
    match said and said.ending:
        case Ending.POWERED_OFF:
            return End(
                state=MachineState.STOPPED, reason=_left(site, machine, "the guest powered off"), kind=EventKind.ENDED
            )
        case Ending.HALTED:
            return End(
                state=MachineState.STOPPED, reason=_left(site, machine, "the guest halted"), kind=EventKind.ENDED
            )
        case Ending.REBOOTED:
            return End(
                state=MachineState.STOPPED, reason=_left(site, machine, "the guest rebooted"), kind=EventKind.REBOOTED
            )
        case Ending.SILENT:
            reason = f"its guest was reset: {said.line if said else ''}"
            return End(state=MachineState.FAILED, reason=reason, kind=EventKind.RESET)
        case _:
            reason = _why_it_failed(site, machine, said, out_of_memory=out_of_memory)
            return End(state=MachineState.FAILED, reason=reason, kind=EventKind.FAILED)


def _left(site: Site, machine: Machine, what: str) -> str:
    """Return how a guest went down, and that it left its disk mounted where it did."""
    if site.files.is_unmounted(machine.name):
        return what
    return f"{what}, and did not unmount its disk: what it wrote last may be lost"


def _why_it_failed(site: Site, machine: Machine, said: LastWord | None, *, out_of_memory: bool) -> str:
    if machine.process is None or not machine.process.marker:
        return f"the vmm command that was {machine.state} it was ended before it was done"
    if said is not None:
        what = "its boot failed in stage-1" if said.ending == "stage-1 failed" else "the guest's kernel panicked"
        return f"{what}: {said.line}"
    if out_of_memory or site.processes.ran_out_of_memory(machine.id):
        return "its engine was killed: it wanted more memory than --memory-limit leaves it"
    last = site.files.engine_words(machine.name).strip().rpartition("\n")[2]
    gone = f"its engine (pid {machine.process.pid}) is gone: killed, crashed, or the host was restarted"
    return f"{gone}; its last words: {last}" if last else gone


def _has_labels(machine: Machine, wanted: Mapping[str, str | None]) -> bool:
    labels = machine.spec.labels
    return all(key in labels and (value is None or labels[key] == value) for key, value in wanted.items())


def _by_machine(forwards: Sequence[PortForward]) -> dict[str, tuple[PortForward, ...]]:
    grouped: dict[str, tuple[PortForward, ...]] = {}
    for forward in forwards:
        grouped[forward.machine] = (*grouped.get(forward.machine, ()), forward)
    return grouped
