"""What a machine has of its host while it runs, taken back."""

from __future__ import annotations

import contextlib

from vmm import TYPE_CHECKING
from vmm.errors import ConflictError, NotFoundError, VmmError

if TYPE_CHECKING:
    from vmm.model.machine import Machine
    from vmm.model.site import Site


def refuse_anothers(site: Site, machine: Machine) -> None:
    """Refuse a machine whose directory is another's of its name: a database of before was put back.

    Raises:
        ConflictError: it is so; nothing of the other may be started, changed or removed by this record.
    """
    if not site.files.is_its_own(machine):
        name, disk = machine.name, site.files.disk(machine.name)
        raise ConflictError(
            f"The disk of the machine {name!r} is another machine's of that name.",
            details=f"{disk.parent} is not of {machine.id}, which the database has: a copy of before was put back.",
            resolution="Take in what lies on disk: sudo vmm db restore --rebuild -f; or forget this record alone, and"
            f" leave the disk: sudo vmm delete {name} --force",
        )


def release(site: Site, machine: Machine) -> None:
    """Take back what a running machine has of the host's network; what is gone already is no error."""
    with contextlib.suppress(NotFoundError):
        site.network.detach(machine.lease, site.store.forwards(machine.name))


def adopt(site: Site, machine: Machine) -> None:
    """Take charge of an engine whose starter was ended before it was done with it.

    That its API cannot be reached does not keep a machine from running.
    """
    engine = site.engine(machine.spec.engine)
    with contextlib.suppress(VmmError):
        engine.adopt(machine.id, socket=site.files.socket(machine.name), jails=site.jails, group=site.socket_group)
    site.files.describe(machine, site.store.forwards(machine.name))


def put_back_disk(site: Site, machine: Machine) -> bool:
    """Save a disk that was removed under its machine, which would be gone for good with the jail; whether it was."""
    if site.files.is_made(machine.name):
        return False
    with contextlib.suppress(VmmError):
        engine = site.engine(machine.spec.engine)
        return engine.put_back(machine.id, site.files.disk(machine.name), jails=site.jails)
    return False


def clear_away(site: Site, machine: Machine) -> None:
    """Remove what an engine that has ended left: its socket, its jail, its cgroup.

    What cannot be removed now (a mount that is held, a process the kernel has not let go) does not keep a machine from
    being stopped; the next start, delete or reconcile takes it.
    """
    if site.files.is_its_own(machine):
        site.files.unlink_socket(machine.name)
        put_back_disk(site, machine)
    with contextlib.suppress(VmmError):
        site.engine(machine.spec.engine).clean_up(machine.id, jails=site.jails)
    with contextlib.suppress(VmmError):
        site.processes.remove_group(machine.id)
