"""`vmm ssh`: the command that reaches a machine."""

from __future__ import annotations

from vmm import TYPE_CHECKING
from vmm.errors import GuestError
from vmm.model import names
from vmm.model.clock import seconds_since
from vmm.model.lifecycle import Verb, check_legal
from vmm.model.session import Session, remote_line
from vmm.operations.observe import observed
from vmm.operations.start import SSH_TIMEOUT_S
from vmm.operations.until_ssh import await_ssh

if TYPE_CHECKING:
    from vmm.model.machine import Machine
    from vmm.model.progress import Progress
    from vmm.model.site import Site

# A machine that is up answers within the first; one that had its time to boot, and did not answer, has the second more.
_AT_ONCE_S, _LEAST_S = 1.0, 10.0
SHELL = Session()


def ssh_command(site: Site, name: str, session: Session = SHELL) -> list[str]:
    """Return the argument list of the system's ssh. Raises ConflictError when the machine does not run."""
    check(session)
    machine = observed(site, site.store.machine(name))
    check_legal(Verb.SSH, machine)
    return site.guest.ssh_command(machine, session)


def missing_key(site: Site, machine: Machine, session: Session) -> str | None:
    """Return what to say to someone whom the machine will hardly let in: ssh itself says "Permission denied" alone."""
    if site.guest.has_key(machine, session):
        return None
    name = machine.name
    return (
        f"No key of yours is one that {name} was given; what else there is in ~/.ssh is offered. To be let in:"
        f" sudo vmm ssh {name} (a machine is given a key of yours with `create --ssh-key ~/.ssh/id_ed25519.pub`)"
    )


def check(session: Session) -> None:
    """Raise UsageError for a session that can never be had: before anything is made for it."""
    names.valid_user(session.user)
    if session.words:
        remote_line(session.words)


def await_boot(site: Site, name: str, *, progress: Progress) -> Machine:
    """Wait for the ssh of a machine that was started a moment ago, and return it.

    One that is known to have answered is not asked.

    Raises:
        ConflictError: it does not run.
        GuestError: it ended, or did not answer in the time that a boot takes.
    """
    machine = observed(site, site.store.machine(name))
    check_legal(Verb.SSH, machine)
    if site.guest.has_answered(machine):
        return machine
    try:
        await_ssh(site, machine, timeout_s=_AT_ONCE_S)
    except GuestError:
        with progress.step(f"Waiting until {name} has booted"):
            await_ssh(site, machine, timeout_s=_patience_s(machine))
    return machine


def _patience_s(machine: Machine) -> float:
    return max(_LEAST_S, SSH_TIMEOUT_S - seconds_since(machine.started_at))
