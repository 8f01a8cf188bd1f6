"""Engines that run and are of no record: a database that was put back does not know of them."""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path

from vmm import TYPE_CHECKING
from vmm.errors import StateError
from vmm.host.identity import command_line
from vmm.host.recognition import own_id
from vmm.model.machine import Stray, UnreadableRecord
from vmm.model.network import lease_for
from vmm.storage import rebuild

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from vmm.app import HostSite
    from vmm.model.machine import Machine
    from vmm.model.network import Lease, PortForward

_SOCKET = ".sock"
# As a lease names its tap: by its address.
_TAP = re.compile(r"^iff:\s+vmm-([0-9a-f]{8})$", re.MULTILINE)
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
    described, sockets = _described(site), _sockets(site)
    found: dict[str, Stray] = {}
    for pid, machine_id, name in unknown:
        machine, forwards = described.get(machine_id or "", (None, ()))
        socket = name or sockets.get(_inode(site, machine_id or ""))
        called = machine.name if machine is not None else socket or machine_id or str(pid)
        if called not in unreadable:
            lease = _lease_of(pid) if machine is None else machine.lease
            found[called] = Stray(
                name=called,
                id=machine_id or "",
                pid=pid,
                lease=lease,
                forwards=tuple(forwards),
                is_described=machine is not None,
            )
    return [found[name] for name in sorted(found)]


def may_be_there(site: HostSite) -> bool:
    """Whether a directory or a socket lies among machines' that no record is of: a look that costs next to nothing."""
    paths, names = site.config.paths, set[str]()
    with contextlib.suppress(OSError):
        names |= {name for name in os.listdir(paths.machines) if not name.startswith(".")}  # noqa: PTH208
    with contextlib.suppress(OSError):
        # Of one whose directory is gone.
        names |= {name.removesuffix(_SOCKET) for name in os.listdir(paths.sockets) if name.endswith(_SOCKET)}  # noqa: PTH208
    return bool(names) and not names <= site.store.names()


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
    name, dot, _ = rest.partition(_SOCKET.encode())
    return os.fsdecode(name) if dot and b"/" not in name and b"\0" not in name else None


def _sockets(site: HostSite) -> Mapping[tuple[int, int], str]:
    """Return the names of machines by their sockets: a jailed engine names none, but its jail has the same socket."""
    found: dict[tuple[int, int], str] = {}
    for path in site.config.paths.sockets.glob(f"*{_SOCKET}"):
        with contextlib.suppress(OSError):
            there = path.lstat()
            found[(there.st_dev, there.st_ino)] = path.name.removesuffix(_SOCKET)
    return found


def _inode(site: HostSite, machine_id: str) -> tuple[int, int]:
    """Return device and inode of the socket in a machine's jail, zeros where there is none."""
    for path in site.jails.glob(f"*/{machine_id}/root/{machine_id}{_SOCKET}") if machine_id else ():
        with contextlib.suppress(OSError):
            there = path.lstat()
            return there.st_dev, there.st_ino
    return 0, 0


def _lease_of(pid: int) -> Lease | None:
    """Return the lease of which an engine has the tap open, whatever has become of its description."""
    from ipaddress import IPv4Address

    with contextlib.suppress(OSError):
        for entry in os.listdir(f"/proc/{pid}/fdinfo"):  # noqa: PTH208  # names are all that is needed
            with contextlib.suppress(OSError):
                # tun_chr_show_fdinfo in the kernel's drivers/net/tun.c.
                match = _TAP.search(Path(f"/proc/{pid}/fdinfo/{entry}").read_text(encoding="utf-8", errors="replace"))
                if match is not None:
                    return lease_for(IPv4Address(bytes.fromhex(match[1])))
    return None


def _described(site: HostSite) -> Mapping[str, Described]:
    found: dict[str, Described] = {}
    for directory in rebuild.directories(site.config.paths.machines):
        with contextlib.suppress(OSError, StateError):
            machine, forwards = rebuild.read_description(rebuild.text_of(directory))
            if machine.name == directory.name:
                found[machine.id] = (machine, forwards)
    return found
