"""`vmm ssh`: the command that reaches a machine."""

from __future__ import annotations

from vmm import TYPE_CHECKING
from vmm.model import names
from vmm.model.lifecycle import Verb, check_legal
from vmm.operations.observe import observed

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vmm.model.site import Site


def ssh_command(site: Site, name: str, *, user: str = "root", arguments: Sequence[str] = ()) -> list[str]:
    """Return the argument list of the system's ssh. Raises ConflictError when the machine does not run."""
    machine = observed(site, site.store.machine(name))
    check_legal(Verb.SSH, machine)
    return site.guest.ssh_command(machine, user=names.valid_user(user), arguments=arguments)
