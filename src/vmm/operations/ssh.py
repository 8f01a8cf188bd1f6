"""`vmm ssh`: the command that reaches a machine."""

from __future__ import annotations

from vmm import TYPE_CHECKING
from vmm.model import names
from vmm.model.lifecycle import Verb, check_legal
from vmm.model.session import Session, remote_line
from vmm.operations.observe import observed

if TYPE_CHECKING:
    from vmm.model.site import Site

SHELL = Session()


def ssh_command(site: Site, name: str, session: Session = SHELL) -> list[str]:
    """Return the argument list of the system's ssh. Raises ConflictError when the machine does not run."""
    check(session)
    machine = observed(site, site.store.machine(name))
    check_legal(Verb.SSH, machine)
    return site.guest.ssh_command(machine, session)


def check(session: Session) -> None:
    """Raise UsageError for a session that can never be had: before anything is made for it."""
    names.valid_user(session.user)
    if session.words:
        remote_line(session.words)
