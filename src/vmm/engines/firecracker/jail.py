"""Firecracker's jail: a directory a machine that holds what its engine may see, and nothing else.

The jailer copies itself in no order that anyone could rely on, follows what it finds (CVE-2026-1386), takes a directory
that is there for its own and cleans nothing up. So vmm makes the directory, checks it, fills it and removes it.
"""

from __future__ import annotations

import errno
import json
import os
import stat

from vmm import TYPE_CHECKING
from vmm.errors import HostError
from vmm.host import files
from vmm.model.value import Value

if TYPE_CHECKING:
    from pathlib import Path

    from vmm.model.engine import BootPlan

# Firecracker opens its disks, its tap, KVM, its socket and its log: some twenty descriptors.
_NO_FILE = 1024
_MIB = 1024 * 1024
_KERNEL, _INITRD, _CONFIG, _LOG = "vmlinux", "initrd", "config.json", "log"


class Jail(Value):
    """One machine's jail. `program` is firecracker's real path; the jailer names the directory after it."""

    base: Path
    program: Path
    id: str

    @property
    def directory(self) -> Path:
        return files.confined(files.confined(self.base, self.program.name), self.id)

    @property
    def root(self) -> Path:
        return self.directory / "root"

    @property
    def socket(self) -> Path:
        """The API socket, as the host sees it; inside it is `marker`."""
        return self.root / f"{self.id}.sock"

    @property
    def marker(self) -> str:
        return marker_of(self.id)

    def pid(self) -> int:
        """Return the engine's pid as the jailer wrote it down; OSError or ValueError where it did not.

        The engine runs by now, and the directory is its own: what stands there is not followed, and not waited for.
        """
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        fd = os.open(self.root / f"{self.program.name}.pid", flags)
        try:
            return int(os.read(fd, 16))
        finally:
            os.close(fd)


def marker_of(machine_id: str) -> str:
    """Return the argument that only the jailed engine of this machine has: the name of its socket inside."""
    return f"/{machine_id}.sock"


def every(machine_id: str, base: Path) -> list[Jail]:
    """Return each jail that a machine may have there: a release of another name has another directory."""
    try:
        return [Jail(base=base, program=program, id=machine_id) for program in sorted(base.iterdir())]
    except (FileNotFoundError, NotADirectoryError):
        return []


def build(jail: Jail, plan: BootPlan) -> None:
    """Make the jail afresh, with all that the engine needs in it by hard links, so that nothing is copied.

    Raises:
        HostError: someone else can write where it would stand, something that is not ours stands there, or a file
            cannot be placed in it.
    """
    try:
        refuse_unsafe(jail.base)
        _refuse_mount(jail.base)
        demolish(jail)
        for directory in (jail.base, jail.directory.parent):
            files.make_dir(directory, mode=0o700)
        jail.directory.mkdir(mode=0o700)
        jail.root.mkdir(mode=0o700)
        _place(plan.kernel, jail.root / _KERNEL)
        if plan.initrd is not None:
            _place(plan.initrd, jail.root / _INITRD, owner=plan.uid)
        for number, disk in enumerate(plan.disks):
            _place(disk.path, jail.root / f"disk{number}", owner=plan.uid)
        _place(plan.log, jail.root / _LOG, owner=plan.uid)
        fd = os.open(jail.root / _CONFIG, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(fd, "w") as stream:
            os.fchown(fd, plan.uid, plan.uid)
            stream.write(json.dumps(_inside(plan)))
    except OSError as error:
        raise HostError(
            f"The jail of {plan.name!r} cannot be made.",
            details=str(error),
            resolution="Check the data directory and the room in it: vmm doctor",
        ) from error


def arguments(jail: Jail, plan: BootPlan, *, jailer: Path) -> list[str]:
    """Return the jailer's argument list. The cgroup is inherited: the jailer is given none to make."""
    # The console is a file too: its bound is far below that of any disk.
    most = max((disk.path.stat().st_size for disk in plan.disks), default=0)
    return [
        str(jailer), "--id", jail.id, "--exec-file", str(jail.program),
        "--uid", str(plan.uid), "--gid", str(plan.uid), "--chroot-base-dir", str(jail.base),
        "--new-pid-ns", "--cgroup-version", "1",
        "--resource-limit", f"no-file={_open_files()}", "--resource-limit", f"fsize={max(most, 64 * _MIB)}",
        "--", "--api-sock", jail.marker, "--config-file", f"/{_CONFIG}", "--log-path", f"/{_LOG}", "--level", "Error",
    ]  # fmt: skip


def _open_files() -> int:
    """What the engine may open; where this process may not give it that much, as much as it has itself."""
    import resource

    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    return _NO_FILE if most == resource.RLIM_INFINITY else min(_NO_FILE, most)


def expose(jail: Jail, place: Path, *, group: int | None) -> bool:
    """Give the API socket its place among the others, root's alone (or also `group`'s); False while it is not there.

    What lies in the jail is its engine's to replace. So it is opened without following anything, looked at, and linked
    as what was looked at.
    """
    try:
        fd = os.open(jail.socket, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        if not stat.S_ISSOCK(os.fstat(fd).st_mode):
            raise OSError(errno.EINVAL, f"{jail.socket} is no socket")
        there = f"/proc/self/fd/{fd}"
        os.chown(there, 0, group or 0)
        os.chmod(there, 0o660 if group is not None else 0o600)  # noqa: PTH101  # of the descriptor
        _link_what_is_open(fd, place)
    except FileExistsError:
        pass
    except OSError as error:
        raise HostError(
            f"The API socket {place.name} cannot be reached.",
            details=str(error),
            resolution=f"Stop its machine (vmm stop --force {place.stem}), and look at {jail.root}.",
        ) from error
    finally:
        os.close(fd)
    return True


def put_back(jail: Jail, disk: Path) -> bool:
    """Link the root disk to where it was, if it was removed there and the jail has its last name; whether it did.

    One that has another name was moved, and is left to whoever did that.
    """
    try:
        fd = os.open(jail.root / "disk0", os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        there = os.fstat(fd)
        # Of root is only what a disk of another file system was bound over.
        if not stat.S_ISREG(there.st_mode) or there.st_nlink != 1 or there.st_uid == 0:
            return False
        files.make_dir(disk.parent)
        _link_what_is_open(fd, disk)
    except OSError:
        return False
    finally:
        os.close(fd)
    return True


def _link_what_is_open(fd: int, place: Path) -> None:
    """Give a file that is open a name: this very file, whatever its old name leads to by now."""
    # Python calls the link(2) that follows nothing unless it is given a directory, which an absolute path ignores.
    os.link(f"/proc/self/fd/{fd}", place, src_dir_fd=fd, follow_symlinks=True)


def demolish(jail: Jail) -> None:
    """Remove the jail with all that is in it; none is no error. HostError for one that vmm did not make."""
    # Each before what is in it: a link above would lead elsewhere.
    if all(_is_ours(path) for path in (jail.directory.parent, jail.directory)):
        files.remove_tree(jail.directory, unmount=True)


def _is_ours(path: Path) -> bool:
    """Whether there is such a directory; HostError for something that vmm did not make."""
    try:
        there = path.lstat()
    except FileNotFoundError:
        return False
    if not stat.S_ISDIR(there.st_mode) or there.st_uid != 0:
        raise HostError(
            "Something that is not vmm's stands where a jail is to be.",
            details=f"{path} is {stat.filemode(there.st_mode)}, of user {there.st_uid}; it was left alone.",
            resolution=f"Look at it, then remove it: rm -r {path}",
        )
    return True


def refuse_unsafe(base: Path) -> None:
    """Raise HostError where anyone but root could put something in the way to the jails (parents included)."""
    if not base.is_dir():
        files.make_dir(base, mode=0o700)
    files.refuse_unsafe(base)


def _refuse_mount(base: Path) -> None:
    """Raise HostError where neither devices nor programs of a jail would work, in the words of `vmm doctor`."""
    if not os.statvfs(base).f_flag & (os.ST_NODEV | os.ST_NOEXEC):
        return
    from vmm.host import facts

    found = facts.data_directory(base)
    raise HostError("Jails do not work in this data directory.", details=f"{found.proof}.", resolution=found.fix)


def _inside(plan: BootPlan) -> dict[str, object]:
    """Return Firecracker's configuration with the paths as they are inside."""
    from vmm.engines.firecracker.configuration import configuration

    initrd = None if plan.initrd is None else f"/{_INITRD}"
    return configuration(
        plan, kernel=f"/{_KERNEL}", initrd=initrd, disks=[f"/disk{number}" for number in range(len(plan.disks))]
    )


def _place(source: Path, target: Path, *, owner: int | None = None) -> None:
    """Let `source` be seen at `target`: by a hard link, or where that cannot be by a bind mount."""
    source = source.resolve()
    if owner is not None:
        os.chown(source, owner, owner)
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno not in (errno.EXDEV, errno.EPERM, errno.EMLINK):
            raise
        from vmm.host import mounts

        mounts.bind(source, target, read_only=owner is None)
