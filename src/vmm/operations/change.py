"""`vmm set`: what can be changed of a stopped machine."""

from __future__ import annotations

from vmm import TYPE_CHECKING
from vmm.errors import UsageError
from vmm.model import names, sizes
from vmm.model.event import EventKind, Happening
from vmm.model.lifecycle import Verb, check_legal
from vmm.model.limits import checked_limits
from vmm.model.network import checked_resolver
from vmm.model.value import Value, replace
from vmm.operations.clear import refuse_anothers
from vmm.operations.observe import observed

if TYPE_CHECKING:
    from collections.abc import Mapping

    from vmm.model.machine import Machine, MachineSpec, RestartPolicy
    from vmm.model.site import Site


class Changes(Value):
    """What to change; None leaves it. A label's value None removes the label. Sizes in MiB.

    `limits` are fields of `Limits`; one that is None is taken off.
    """

    cpus: int | None = None
    memory_mib: int | None = None
    disk_mib: int | None = None
    kernel: str | None = None
    auto_start: bool | None = None
    labels: Mapping[str, str | None] | None = None
    dns: tuple[str, ...] | None = None
    jail: bool | None = None
    limits: Mapping[str, float | int | None] | None = None
    restart: RestartPolicy | None = None


def change(site: Site, name: str, changes: Changes) -> Machine:
    """Change a stopped machine; `auto_start` and labels may be changed while it runs too.

    Raises:
        ConflictError: it runs, or its disk is another machine's.
        UsageError: a value out of bounds, or a disk smaller than it is.
    """
    with site.store.lock(name):
        machine = observed(site, site.store.machine(name))
        refuse_anothers(site, machine)
        if not _harmless(changes):
            check_legal(Verb.SET, machine)
        spec = _changed(site, machine.spec, changes)
        if spec.disk_mib != machine.spec.disk_mib:
            site.files.grow(name, spec.disk_mib)
        detail = ", ".join(key for key, value in spec.__dict__.items() if value != getattr(machine.spec, key))
        site.store.replace_spec(name, spec, event=Happening(kind=EventKind.CHANGED, detail=detail))
        changed = site.store.machine(name)
        site.files.describe(changed, site.store.forwards(name))
        return changed


def _harmless(changes: Changes) -> bool:
    return replace(changes, auto_start=None, labels=None, restart=None) == Changes()


def _changed(site: Site, spec: MachineSpec, changes: Changes) -> MachineSpec:
    if changes.cpus is not None:
        spec = replace(spec, cpus=sizes.within(changes.cpus, sizes.CPUS, what="--cpus"))
    if changes.memory_mib is not None:
        memory = sizes.within(changes.memory_mib, sizes.MEMORY_MIB, what="--memory", unit=" MiB")
        spec = replace(spec, memory_mib=memory)
    if changes.disk_mib is not None:
        spec = replace(spec, disk_mib=_larger(spec, changes.disk_mib))
    if changes.kernel is not None:
        spec = replace(spec, kernel=site.kernels.get(names.valid_name(changes.kernel, what="kernel")).name)
    if changes.auto_start is not None:
        spec = replace(spec, auto_start=changes.auto_start)
    if changes.labels is not None:
        merged = {**spec.labels, **changes.labels}
        spec = replace(spec, labels={key: value for key, value in merged.items() if value is not None})
    spec = _changed_confinement(spec, changes)
    if changes.dns is not None:
        spec = replace(spec, dns=tuple(checked_resolver(server) for server in changes.dns))
    return spec


def _changed_confinement(spec: MachineSpec, changes: Changes) -> MachineSpec:
    if changes.jail is not None:
        spec = replace(spec, jail=changes.jail)
    if changes.limits is not None:
        spec = replace(spec, limits=checked_limits(replace(spec.limits, **changes.limits)))
    if changes.restart is not None:
        spec = replace(spec, restart=changes.restart)
    return spec


def _larger(spec: MachineSpec, disk_mib: int) -> int:
    sizes.within(disk_mib, sizes.DISK_MIB, what="--disk", unit=" MiB")
    if disk_mib < spec.disk_mib:
        raise UsageError(
            f"The disk of {spec.name!r} cannot shrink to {disk_mib} MiB.",
            details=f"It has {spec.disk_mib} MiB; a disk can only grow.",
            resolution=f"Give --disk {spec.disk_mib} or more.",
        )
    return disk_mib
