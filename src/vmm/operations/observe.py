"""What is remembered, compared with what the host shows. Nothing here writes, so that any user may look."""

from __future__ import annotations

from vmm import TYPE_CHECKING
from vmm.model.lifecycle import LIVE
from vmm.model.machine import Machine, MachineState, MachineView, UnreadableRecord
from vmm.model.value import replace

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from vmm.model.network import PortForward
    from vmm.model.site import Site

# What kernels print, at a level that `loglevel=1` lets through, as the last thing of a shutdown (kernel/reboot.c).
_POWERED_OFF = ("reboot: Power down", "reboot: System halted")
_REBOOTED = ("reboot: Restarting system",)
_PANIC = "Kernel panic"


def observed(site: Site, machine: Machine) -> Machine:
    """Return the machine with the state that the host shows, and the reason where it differs from what was recorded."""
    if machine.state not in LIVE:
        return machine
    if machine.process is not None and site.processes.is_alive(machine.process):
        # Its engine is there: whether the command that started it lived to say so makes no difference to its user.
        begun = machine.state is MachineState.STARTING and machine.process.marker
        return replace(machine, state=MachineState.RUNNING) if begun else machine
    if machine.state is MachineState.STARTING:
        # The command that started it may have died between starting the engine and recording it.
        engine = site.processes.find(str(site.files.socket(machine.name)))
        if engine is not None:
            return replace(machine, state=MachineState.RUNNING, process=engine)
    state, reason = _how_it_ended(site, machine)
    return replace(machine, state=state, reason=reason, process=None)


def view(site: Site, name: str) -> MachineView:
    """Return one machine as it is now, with its forwards."""
    machine = observed(site, site.store.machine(name))
    return MachineView(machine=machine, forwards=tuple(site.store.forwards(name)))


def view_all(
    site: Site, *, labels: Mapping[str, str | None] | None = None, states: Sequence[MachineState] = ()
) -> tuple[MachineView | UnreadableRecord, ...]:
    """Return every machine as it is now, by name. A record that cannot be read is in it as such, whatever the filter.

    A label's value None asks only that the label is there.
    """
    forwards = _by_machine(site.store.forwards())
    found: list[MachineView | UnreadableRecord] = []
    for record in site.store.machines():
        if isinstance(record, UnreadableRecord):
            found.append(record)
            continue
        machine = observed(site, record)
        if (not states or machine.state in states) and _has_labels(machine, labels or {}):
            found.append(MachineView(machine=machine, forwards=forwards.get(machine.name, ())))
    return tuple(found)


def guest_is_down(words: str) -> bool:
    """Whether the end of a console says that the guest has shut down (Firecracker's process outlives a power-off)."""
    return any(line in words for line in (*_POWERED_OFF, *_REBOOTED))


def _how_it_ended(site: Site, machine: Machine) -> tuple[MachineState, str]:
    if machine.process is None or not machine.process.marker:
        return MachineState.FAILED, f"the vmm command that was {machine.state} it was ended before it was done"
    words = site.files.last_words(machine.name)
    panic = next((line.strip() for line in words.splitlines() if _PANIC in line), None)
    if panic is not None:
        return MachineState.FAILED, f"the guest's kernel panicked: {panic}"
    if any(line in words for line in _POWERED_OFF):
        return MachineState.STOPPED, "the guest powered off"
    if any(line in words for line in _REBOOTED):
        return MachineState.STOPPED, "the guest rebooted, which ends its engine"
    last = site.files.engine_words(machine.name).strip().rpartition("\n")[2]
    gone = f"its engine (pid {machine.process.pid}) is gone: killed, crashed, or the host was restarted"
    return MachineState.FAILED, f"{gone}; its last words: {last}" if last else gone


def _has_labels(machine: Machine, wanted: Mapping[str, str | None]) -> bool:
    labels = machine.spec.labels
    return all(key in labels and (value is None or labels[key] == value) for key, value in wanted.items())


def _by_machine(forwards: Sequence[PortForward]) -> dict[str, tuple[PortForward, ...]]:
    grouped: dict[str, tuple[PortForward, ...]] = {}
    for forward in forwards:
        grouped[forward.machine] = (*grouped.get(forward.machine, ()), forward)
    return grouped
