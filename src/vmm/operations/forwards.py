"""`vmm port-forward`: in force while the machine runs, remembered while it does not."""

from __future__ import annotations

from vmm import TYPE_CHECKING
from vmm.errors import ConflictError, NotFoundError
from vmm.model.machine import MachineState
from vmm.operations.observe import observed

if TYPE_CHECKING:
    from vmm.model.machine import Machine
    from vmm.model.network import PortForward
    from vmm.model.site import Site


def add_forward(site: Site, forward: PortForward) -> PortForward:
    """Remember a forward and, when the machine runs, put it in force.

    Raises:
        ConflictError: another machine, or a program of the host, has the port.
    """
    with site.store.lock(forward.machine):
        machine = observed(site, site.store.machine(forward.machine))
        if site.network.port_is_bound(forward):
            raise ConflictError(
                f"Port {forward.host_port}/{forward.protocol} of the host is in use.",
                details="A program of the host listens on it.",
                resolution=f"Choose another host port, or end the program: ss -lnp 'sport = :{forward.host_port}'",
            )
        _remember(site, forward, machine)
        if machine.state is MachineState.RUNNING:
            try:
                site.network.open_forward(machine.lease, forward)
            except BaseException:
                site.store.remove_forward(forward)
                raise
        site.files.describe(machine, site.store.forwards(forward.machine))
    return forward


def _remember(site: Site, forward: PortForward, machine: Machine) -> None:
    try:
        site.store.add_forward(forward)
    except ConflictError:
        # Its own, whose command may have been killed before it was in force.
        if machine.state is MachineState.RUNNING and forward in site.store.forwards(forward.machine):
            site.network.open_forward(machine.lease, forward)
        raise


def list_forwards(site: Site, name: str) -> tuple[PortForward, ...]:
    site.store.machine(name)
    return tuple(site.store.forwards(name))


def remove_forward(site: Site, forward: PortForward) -> PortForward:
    """Take a forward out of force and forget it. Raises NotFoundError when the machine has none such."""
    with site.store.lock(forward.machine):
        machine = site.store.machine(forward.machine)
        if forward not in site.store.forwards(forward.machine):
            raise NotFoundError(
                f"The machine {forward.machine!r} has no forward {_words(forward)}.",
                details=_known(site, forward.machine),
                resolution=f"See its forwards: vmm port-forward list {forward.machine}",
            )
        # Whatever is recorded of the machine: a stop that was interrupted leaves rules, and forgotten they would stay.
        site.network.close_forward(machine.lease, forward)
        site.store.remove_forward(forward)
        site.files.describe(machine, site.store.forwards(forward.machine))
    return forward


def _known(site: Site, name: str) -> str:
    known = [_words(forward) for forward in site.store.forwards(name)]
    return f"It has {', '.join(known)}." if known else "It has none."


def _words(forward: PortForward) -> str:
    return f"{forward.host_address}:{forward.host_port}:{forward.guest_port}/{forward.protocol}"
