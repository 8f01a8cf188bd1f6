"""Engines that run and are of no record: a database that was put back does not know of them."""

from __future__ import annotations

import contextlib
import os

from vmm import TYPE_CHECKING
from vmm.errors import StateError
from vmm.host.identity import command_line
from vmm.host.recognition import own_id
from vmm.model.machine import Stray, UnreadableRecord
from vmm.storage import rebuild

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from vmm.app import HostSite
    from vmm.model.machine import Machine
    from vmm.model.network import PortForward

Described = tuple["Machine", "tuple[PortForward, ...]"]


def strays(site: HostSite) -> list[Stray]:
    """Return the engines of this data directory that no record is of: one walk over all processes.

    One whose record cannot be read is of none, but has its name among the records.
    """
    records = site.store.machines()
    ids = {record.id for record in records if not isinstance(record, UnreadableRecord)}
    unknown = [engine for engine in _engines(site) if engine[1] not in ids]
    if not unknown:
        return []
    unreadable = {record.name for record in records if isinstance(record, UnreadableRecord)}
    described = _described(site)
    found: dict[str, Stray] = {}
    for pid, machine_id, name in unknown:
        machine, forwards = described.get(machine_id or "", (None, ()))
        called = machine.name if machine is not None else name or machine_id or str(pid)
        if called not in unreadable:
            lease = None if machine is None else machine.lease
            found[called] = Stray(name=called, id=machine_id or "", pid=pid, lease=lease, forwards=tuple(forwards))
    return [found[name] for name in sorted(found)]


def may_be_there(site: HostSite) -> bool:
    """Whether a directory lies among those of machines that no record is of: a look that costs next to nothing."""
    with contextlib.suppress(OSError):
        names = {name for name in os.listdir(site.config.paths.machines) if not name.startswith(".")}  # noqa: PTH208
        return not names <= site.store.names()
    return False


def _engines(site: HostSite) -> Iterator[tuple[int, str | None, str | None]]:
    """Give pid, machine's id and machine's name of each engine that is this data directory's, as far as it tells."""
    known, sockets = site.recognition(), os.fsencode(site.config.paths.sockets) + b"/"
    for entry in os.listdir("/proc"):  # noqa: PTH208  # names are all that is needed, of thousands
        try:
            line = command_line(int(entry)) if entry.isdigit() else b""
        except OSError:
            continue
        name = _socket_name(line, sockets)
        if (name is None and own_id(line) is None) or not known.is_engine(int(entry)):
            continue
        # What names a socket of ours is ours by that; what is in a jail, by the jail.
        if name is not None or known.is_jailed(int(entry)):
            yield int(entry), own_id(line), name


def _socket_name(line: bytes, sockets: bytes) -> str | None:
    start = line.replace(b",,", b",").find(sockets)
    if start < 0:
        return None
    rest = line.replace(b",,", b",")[start + len(sockets) :]
    name, dot, _ = rest.partition(b".sock")
    return os.fsdecode(name) if dot and b"/" not in name and b"\0" not in name else None


def _described(site: HostSite) -> Mapping[str, Described]:
    found: dict[str, Described] = {}
    for directory in rebuild.directories(site.config.paths.machines):
        with contextlib.suppress(OSError, StateError):
            machine, forwards = rebuild.read_description(rebuild.text_of(directory))
            if machine.name == directory.name:
                found[machine.id] = (machine, forwards)
    return found
