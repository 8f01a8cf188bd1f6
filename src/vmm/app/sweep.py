"""What commands and engines that are gone left on the host, found and removed: for `vmm reconcile`."""

from __future__ import annotations

import contextlib

from vmm import TYPE_CHECKING
from vmm.errors import VmmError
from vmm.host import cgroups, files
from vmm.model.machine import EngineName, Machine

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from vmm.app import HostSite


def sweep(site: HostSite, machines: Sequence[Machine], live: Sequence[Machine]) -> list[tuple[str, str]]:
    """Remove jails, cgroups, sockets and working directories that nobody uses; return (subject, what) of each.

    Only what bears the name or id of a machine that does not run, or of none at all. Disks are never among it.
    """
    running = {machine.id for machine in live}
    names = {machine.id: machine.name for machine in machines}
    found = _jails(site, running, names)
    groups = set(cgroups.names())
    for machine_id, name in names.items():
        # Only groups of our own machines: another data directory has its groups beside ours.
        if machine_id not in running and machine_id in groups:
            with contextlib.suppress(VmmError):
                cgroups.remove(machine_id)
                found.append((name, "a cgroup of its was left"))
    live_names = {f"{machine.name}.sock" for machine in live}
    for socket in _children(site.config.paths.sockets):
        if socket.name not in live_names:
            socket.unlink(missing_ok=True)
            found.append((socket.name.removesuffix(".sock"), "a socket of its was left"))
    for directory in (site.config.paths.staging, *_children(site.config.paths.machines)):
        swept = files.sweep_staging(directory)
        found += [(directory.name, f"the working directory {name} was left") for name in swept]
    return found


def _jails(site: HostSite, running: set[str], names: dict[str, str]) -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    engine = site.engine(EngineName.FIRECRACKER)
    for program in _children(site.jails):
        for jail in _children(program):
            if jail.name not in running:
                engine.clean_up(jail.name, jails=site.jails)
                found.append((names.get(jail.name, jail.name), "a jail of its was left"))
    return found


def _children(directory: Path) -> list[Path]:
    try:
        return sorted(directory.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []
