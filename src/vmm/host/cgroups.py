"""What a machine's engine may use, held by the kernel: one cgroup a machine, of version 1 or 2, or of a host's mix.

A machine's groups are MOUNT/vmm/NAME: with version 1 one in the hierarchy of each controller, with version 2 one for
all. Nothing else below a mount is touched, and no link is followed. A group outlives the command that made it, and goes
only by `remove`.
"""

from __future__ import annotations

import contextlib
import errno
import os
import time
from pathlib import Path

from vmm import TYPE_CHECKING
from vmm.errors import HostError
from vmm.host import ceilings, files
from vmm.host.ceilings import Ceiling, Throttle, ceiling
from vmm.model.value import Value

if TYPE_CHECKING:
    from collections.abc import Generator

__all__ = [
    "Ceiling",
    "Group",
    "Throttle",
    "ceiling",
    "ended_by_oom",
    "join",
    "make",
    "members",
    "names",
    "remove",
    "version",
]

_MOUNTS = Path("/proc/self/mounts")
_TOP = "vmm"
# Made without limits too: they count a machine's processes and what they use.
_ALWAYS = frozenset({"cpu", "memory", "pids"})
_GONE_TIMEOUT_S = 1.0
# The group of all machines goes with the last one, perhaps just before the next is made in it.
_TRIES = 100
_VANISHED = (errno.ENOENT, errno.ENODEV)
_NO_RIGHT = (errno.EACCES, errno.EPERM, errno.EROFS)
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class Group(Value):
    """One machine's cgroup: a directory for each hierarchy that it is in; none where the host has no cgroups."""

    directories: tuple[Path, ...]


class _Hierarchy(Value):
    root: Path
    version: int
    controllers: frozenset[str]

    @property
    def top(self) -> Path:
        return self.root / _TOP


def version() -> int:
    """Return the version that has more of the controllers for CPU, memory and processes; 0 where neither has any."""
    count = {1: 0, 2: 0}
    for hierarchy in _hierarchies():
        count[hierarchy.version] += len(hierarchy.controllers & _ALWAYS)
    if not any(count.values()):
        return 0
    return 2 if count[2] >= count[1] else 1


def make(name: str, ceiling: Ceiling) -> Group:
    """Make a machine's group and write its limits; one that a crash has left loses its old limits first.

    Raises:
        HostError: a limit is asked for that this host cannot set. Nothing is left of the group then.
    """
    _check(name)
    chosen = _chosen(_hierarchies(), ceiling.controllers)
    directories: list[Path] = []
    try:
        for hierarchy, controllers in chosen:
            if _settle(hierarchy, name, controllers, ceiling):
                directories.append(hierarchy.top / name)
    except BaseException:
        for hierarchy, _ in chosen:
            with contextlib.suppress(OSError):
                _unmake(hierarchy, name)
        raise
    return Group(directories=tuple(directories))


def join(group: Group) -> tuple[int, ...]:
    """Open what a child writes b"0" to, between fork and exec, to be in the group. The caller closes them.

    With version 1 that is `tasks`: it moves the thread that writes, which after a fork is the whole process, and takes
    none of the locks behind `cgroup.procs` (measured: 0.06 ms and 9 ms). Version 2 has only the latter.
    """
    doors: list[int] = []
    try:
        doors.extend(_door(directory) for directory in group.directories)
    except OSError as error:
        for door in doors:
            os.close(door)
        raise _told(error, f"The cgroup {group.directories[len(doors)]} cannot be joined.") from error
    return tuple(doors)


def ended_by_oom(name: str) -> bool:
    """Whether the kernel ended a process of this group for want of memory; False where that cannot be read."""
    _check(name)
    for hierarchy in _hierarchies():
        file = "memory.events" if hierarchy.version == 2 else "memory.oom_control"
        with contextlib.suppress(OSError):
            for line in _read_of(hierarchy, name, file).splitlines():
                key, _, count = line.partition(" ")
                if key == "oom_kill" and int(count) > 0:
                    return True
    return False


def remove(name: str) -> None:
    """Remove a machine's group from every hierarchy; none is no error.

    Raises:
        HostError: after a second there are still processes in it.
    """
    _check(name)
    deadline = time.monotonic() + _GONE_TIMEOUT_S
    for hierarchy in _hierarchies():
        try:
            while not _unmake(hierarchy, name):
                if time.monotonic() > deadline:
                    raise _busy(hierarchy.top / name, members(name))
                time.sleep(0.002)
        except OSError as error:
            raise _told(error, f"The cgroup {hierarchy.top / name} cannot be removed.") from error


def dissolve() -> None:
    """Remove vmm's own group, which those of machines are in; one that has any, of whatever data directory, stays."""
    for hierarchy in _hierarchies():
        with contextlib.suppress(OSError):
            hierarchy.top.rmdir()


def names() -> list[str]:
    """Return the name of every group below vmm's own, in any hierarchy."""
    found: set[str] = set()
    for hierarchy in _hierarchies():
        try:
            with _opened(hierarchy.top) as top, os.scandir(top) as entries:
                found.update(entry.name for entry in entries if entry.is_dir(follow_symlinks=False))
        except FileNotFoundError:
            continue
        except OSError as error:
            raise _told(error, f"The cgroup {hierarchy.top} cannot be read.") from error
    return sorted(found)


def members(name: str) -> list[int]:
    """Return the pids of the processes in a machine's group; none when there is no such group."""
    _check(name)
    found: set[int] = set()
    for hierarchy in _hierarchies():
        try:
            found.update(int(pid) for pid in _read_of(hierarchy, name, "cgroup.procs").split())
        except OSError as error:
            if error.errno not in _VANISHED:
                raise _told(error, f"The cgroup {hierarchy.top / name} cannot be read.") from error
    # 0 stands for a process of another pid namespace. To kill(2) it would mean our own process group.
    return sorted(found - {0})


def _check(name: str) -> None:
    files.confined(Path(_TOP), name)


def _hierarchies() -> list[_Hierarchy]:
    """Return the hierarchies that are mounted for writing, with what controllers of ours they have."""
    found: list[_Hierarchy] = []
    for line in ceilings.table_lines(_MOUNTS):
        _, point, kind, options, *_ = line.split(" ")
        has = frozenset(options.split(","))
        if kind not in ("cgroup", "cgroup2") or "rw" not in has:
            continue
        root = Path(ceilings.unescaped(point))
        if kind == "cgroup2":
            has = _v2_controllers(root)
        elif not (root / "tasks").exists():
            # Another mount hides it, as a new /sys does in a network namespace.
            continue
        elif "blkio" in has:
            has |= {"io"}
        found.append(
            _Hierarchy(root=root, version=2 if kind == "cgroup2" else 1, controllers=has & ceilings.CONTROLLERS.keys())
        )
    return found


def _v2_controllers(root: Path) -> frozenset[str]:
    try:
        return frozenset((root / "cgroup.controllers").read_text(encoding="ascii").split())
    except OSError:
        return frozenset()


def _chosen(hierarchies: list[_Hierarchy], asked: frozenset[str]) -> list[tuple[_Hierarchy, frozenset[str]]]:
    """Return each hierarchy to be in, with what it is for; HostError when a controller asked for is in none."""
    chosen: list[tuple[_Hierarchy, frozenset[str]]] = []
    left = _ALWAYS | asked
    for hierarchy in hierarchies:
        here = hierarchy.controllers & left
        if here:
            left -= here
            chosen.append((hierarchy, here))
    for controller in sorted(left & asked):
        seen = ", ".join(f"{found.root} (version {found.version})" for found in hierarchies) or "none at all"
        raise ceilings.refused(
            controller, f"No hierarchy mounted for writing has the {controller} controller; there is {seen}."
        )
    return chosen


def _settle(hierarchy: _Hierarchy, name: str, controllers: frozenset[str], ceiling: Ceiling) -> bool:
    """Make the group in one hierarchy and write its limits; False where we may not, and no limit needs it."""
    asked = controllers & ceiling.controllers
    try:
        group, fresh = _open_made(hierarchy, name, controllers, asked)
        try:
            if not fresh:
                ceilings.take_off(group, hierarchy.version)
            ceilings.write(ceiling, group, hierarchy.version, asked)
        finally:
            os.close(group)
    except OSError as error:
        # A container may see hierarchies that it must not write to.
        if not asked and error.errno in _NO_RIGHT:
            return False
        raise _told(error, f"The cgroup {hierarchy.top / name} cannot be made.") from error
    return True


def _open_made(
    hierarchy: _Hierarchy, name: str, controllers: frozenset[str], asked: frozenset[str]
) -> tuple[int, bool]:
    """Return a descriptor of the group's directory, and whether it is new."""
    for _ in range(_TRIES):
        try:
            with contextlib.suppress(FileExistsError):
                hierarchy.top.mkdir(mode=0o755)
            with _opened(hierarchy.top) as top:
                if hierarchy.version == 2:
                    _hand_down(hierarchy, top, controllers, asked)
                fresh = _make_new(top, name)
                return os.open(name, _DIRECTORY, dir_fd=top), fresh
        except OSError as error:
            if error.errno not in _VANISHED:
                raise
    raise OSError(errno.EAGAIN, "another program removes it as often as it is made")


def _make_new(top: int, name: str) -> bool:
    """Make the directory of a group; False when there is one with processes in it."""
    with contextlib.suppress(FileExistsError):
        os.mkdir(name, 0o755, dir_fd=top)
        return True
    try:
        # What a crash left has counted already, processes ended for want of memory above all: a new one starts at zero.
        os.rmdir(name, dir_fd=top)
    except OSError as error:
        if error.errno in (errno.EBUSY, errno.ENOTEMPTY):
            return False
        raise
    os.mkdir(name, 0o755, dir_fd=top)
    return True


def _hand_down(hierarchy: _Hierarchy, top: int, controllers: frozenset[str], asked: frozenset[str]) -> None:
    """Let the groups below vmm's own have these controllers (version 2); HostError when those asked for stay out."""
    if controllers <= _handed_down(top):
        return
    why = f"{hierarchy.top}/cgroup.subtree_control does not keep it"
    with _opened(hierarchy.root) as root:
        for directory, path in ((root, hierarchy.root), (top, hierarchy.top)):
            words = " ".join(f"+{controller}" for controller in sorted(controllers - _handed_down(directory)))
            try:
                # In one write: alone, the CPU could be handed down by a group that holds processes, which then takes
                # none below it. EBUSY is the kernel's no to such a group; the root of the whole host is none.
                if words:
                    ceilings.write_at(directory, "cgroup.subtree_control", words)
            except OSError as error:
                why = f"{path}/cgroup.subtree_control: {error.strerror}"
                break
    for controller in sorted(asked - _handed_down(top)):
        raise ceilings.refused(controller, f"The {controller} controller is not handed down to vmm's groups: {why}.")


def _handed_down(directory: int) -> set[str]:
    return set(ceilings.read_at(directory, "cgroup.subtree_control").split())


def _unmake(hierarchy: _Hierarchy, name: str) -> bool:
    """Remove the group in one hierarchy, and vmm's own with the last; False while processes are in it."""
    try:
        with _opened(hierarchy.top) as top:
            os.rmdir(name, dir_fd=top)
    except OSError as error:
        if error.errno == errno.EBUSY:
            return False
        if error.errno not in _VANISHED:
            raise
    with contextlib.suppress(OSError):
        hierarchy.top.rmdir()
    return True


@contextlib.contextmanager
def _opened(path: Path | str, *, dir_fd: int | None = None) -> Generator[int]:
    fd = os.open(path, _DIRECTORY, dir_fd=dir_fd)
    try:
        yield fd
    finally:
        os.close(fd)


def _door(directory: Path) -> int:
    flags = os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC
    with _opened(directory) as group:
        try:
            return os.open("tasks", flags, dir_fd=group)
        except FileNotFoundError:
            return os.open("cgroup.procs", flags, dir_fd=group)


def _read_of(hierarchy: _Hierarchy, name: str, file: str) -> str:
    with _opened(hierarchy.top) as top, _opened(name, dir_fd=top) as group:
        return ceilings.read_at(group, file)


def _busy(path: Path, pids: list[int]) -> HostError:
    if not pids:
        return HostError(
            f"The cgroup {path} cannot be removed.",
            details="It is busy with no process that can be seen: another program made groups below it, or holds it.",
            resolution=f"See what is in it: find {path} -mindepth 1 -type d",
        )
    listed = " ".join(map(str, pids))
    return HostError(
        f"The cgroup {path} cannot be removed: processes still run in it.",
        details=f"After {_GONE_TIMEOUT_S:.0f} s it holds the processes {listed}.",
        resolution=f"End them, then try again: ps -fp {listed}; sudo kill {listed}",
    )


def _told(error: OSError, brief: str) -> HostError:
    return HostError(
        brief,
        details=str(error),
        resolution="Run vmm as root, and see that no other program keeps groups there: grep cgroup /proc/mounts",
    )
