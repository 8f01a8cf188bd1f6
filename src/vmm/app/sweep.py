"""What commands and engines that are gone left on the host: for `vmm reconcile`."""

from __future__ import annotations

from vmm import TYPE_CHECKING
from vmm.host import cgroups, files
from vmm.model.machine import EngineName, UnreadableRecord
from vmm.model.site import Traces
from vmm.storage import backup

if TYPE_CHECKING:
    from pathlib import Path

    from vmm.app import HostSite


def traces(site: HostSite) -> Traces:
    """Return what stands on this host of machines, whether they run or not."""
    return Traces(
        jails=frozenset(jail.name for program in _children(site.jails) for jail in _children(program)),
        groups=frozenset(cgroups.names()),
        sockets=frozenset(path.name.removesuffix(".sock") for path in _children(site.config.paths.sockets)),
        taps=frozenset(site.network.taps()),
    )


def sweep(site: HostSite) -> list[tuple[str, str]]:
    """Remove what is of no machine that is known; return (subject, what) of each. Disks are never among it.

    Of cgroups none: another data directory has its groups beside ours. A machine is recorded before anything of it is
    made, so that what is of no record now never becomes any.

    Raises:
        HostError: something that is not vmm's stands among the jails. It was left alone.
    """
    found: list[tuple[str, str]] = []
    there = traces(site)
    records = site.store.machines()
    ids = {record.id for record in records if not isinstance(record, UnreadableRecord)}
    names = {record.name for record in records}
    if len(ids) < len(names):
        # A record that cannot be read may be of any of them.
        ids |= there.jails
    # Nothing of an engine that runs is removed, whoever has forgotten it.
    living = site.strays()
    names |= {stray.name for stray in living}
    ids |= {stray.id for stray in living}
    for name in sorted(there.sockets - names):
        (site.config.paths.sockets / f"{name}.sock").unlink(missing_ok=True)
        found.append((name, "a socket of no machine was left"))
    paths = site.config.paths
    known = names | {f".unit-{name}" for name in names}
    for lock in _children(paths.locks):
        if lock.name not in known:
            files.remove_lock(lock)
    machines = _children(paths.machines)
    for directory in (paths.staging, paths.ssh, *machines):
        swept = files.sweep_staging(directory)
        found += [(directory.name, f"the working directory {name} was left") for name in swept]
    library = (*_children(paths.kernels), *_children(paths.images))
    written = (paths.config.parent, paths.engines, paths.ssh, paths.state, paths.state / "units", paths.logs)
    for directory in (*written, *machines, *library):
        swept = files.sweep_temporaries(directory)
        found += [(directory.name, f"the unfinished file {name} was left") for name in swept]
    found += [("database", f"the unfinished copy {name} was left") for name in backup.sweep(paths.database)]
    # Last, for one that cannot be removed is an error.
    for machine_id in sorted(there.jails - ids):
        site.engine(EngineName.FIRECRACKER).clean_up(machine_id, jails=site.jails)
        found.append((machine_id, "a jail of no machine was left"))
    return found


def _children(directory: Path) -> list[Path]:
    try:
        return sorted(directory.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []
