"""What a machine's cgroup is to allow: from a machine's limits to what is written to which file of the kernel's."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from pathlib import Path

from vmm import TYPE_CHECKING
from vmm.errors import HostError
from vmm.model.value import Value, replace

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vmm.model.machine import Limits

_MOUNTINFO = Path("/proc/self/mountinfo")
_SYS = Path("/sys")
_MIB = 1024 * 1024
# Each version's own default: Documentation/scheduler/sched-bwc.rst.
_PERIOD_US = 100_000

# Ours, by their names in version 2; what each is called in messages, and the option that asks for it.
CONTROLLERS = {
    "cpu": ("CPU", "--cpu-limit"),
    "memory": ("Memory", "--memory-limit"),
    "pids": ("Process", "--pids-limit"),
    "io": ("I/O", "the --io options"),
}
# What a kernel may be built or booted without: accounting of swap, and ending a group as a whole (since 4.19).
_OPTIONAL = frozenset({"memory.memsw.limit_in_bytes", "memory.swap.max", "memory.oom.group"})
# Memory with swap may never be below memory alone: it is raised first.
_NO_LIMITS = {
    1: (
        ("cpu.cfs_quota_us", "-1"),
        ("memory.memsw.limit_in_bytes", "-1"),
        ("memory.limit_in_bytes", "-1"),
        ("pids.max", "max"),
    ),
    2: (
        ("cpu.max", "max"),
        ("memory.max", "max"),
        ("memory.swap.max", "max"),
        ("memory.oom.group", "0"),
        ("pids.max", "max"),
    ),
}
_THROTTLES = {
    1: tuple(f"blkio.throttle.{what}_device" for what in ("read_bps", "write_bps", "read_iops", "write_iops")),
    2: ("io.max",),
}
_NO_THROTTLE = {1: "0", 2: "rbps=max wbps=max riops=max wiops=max"}


class Throttle(Value):
    """What may be read and written a second, in bytes and operations, on the device `MAJOR:MINOR`; None is no limit."""

    device: str
    read_bps: int | None = None
    write_bps: int | None = None
    read_iops: int | None = None
    write_iops: int | None = None

    @property
    def rates(self) -> tuple[int | None, ...]:
        return self.read_bps, self.write_bps, self.read_iops, self.write_iops


class Ceiling(Value):
    """What one group is to allow, in the kernel's units; None is no limit. `cpu_quota_us` is for each 100,000."""

    cpu_quota_us: int | None = None
    memory_bytes: int | None = None
    pids: int | None = None
    io: tuple[Throttle, ...] = ()

    @property
    def controllers(self) -> frozenset[str]:
        """The controllers that its limits need, by their names in version 2."""
        limits = {"cpu": self.cpu_quota_us, "memory": self.memory_bytes, "pids": self.pids, "io": self.io or None}
        return frozenset(name for name, limit in limits.items() if limit is not None)


def ceiling(limits: Limits, *, guest_memory_mib: int, disk: Path) -> Ceiling:
    """Return what a machine's group is to allow.

    Raises:
        HostError: I/O is to be limited, and `disk` lies on no single block device.
    """
    throttle = Throttle(
        device="",
        read_bps=limits.io_read_bps,
        write_bps=limits.io_write_bps,
        read_iops=limits.io_read_iops,
        write_iops=limits.io_write_iops,
    )
    throttled = any(rate is not None for rate in throttle.rates)
    return Ceiling(
        cpu_quota_us=None if limits.cpus is None else round(limits.cpus * _PERIOD_US),
        memory_bytes=None if limits.memory_mib is None else (guest_memory_mib + limits.memory_mib) * _MIB,
        pids=limits.pids,
        io=(replace(throttle, device=_device_of(disk)),) if throttled else (),
    )


def take_off(group: int, version: int) -> None:
    """Take every limit off a group (a descriptor of its directory)."""
    for file, value in _NO_LIMITS[version]:
        with contextlib.suppress(FileNotFoundError):
            write_at(group, file, value)
    for file in _THROTTLES[version]:
        with contextlib.suppress(FileNotFoundError):
            for line in read_at(group, file).splitlines():
                write_at(group, file, f"{line.partition(' ')[0]} {_NO_THROTTLE[version]}")


def write(ceiling: Ceiling, group: int, version: int, controllers: frozenset[str]) -> None:
    """Write those limits that are held by these controllers to a group (a descriptor of its directory).

    Raises:
        HostError: the kernel lacks the file, or does not take the limit.
    """
    for file, value in _settings(version, ceiling):
        controller = file.partition(".")[0].replace("blkio", "io")
        if controller in controllers:
            try:
                write_at(group, file, value)
            except OSError as error:
                if file in _OPTIONAL and error.errno == errno.ENOENT:
                    continue
                raise refused(controller, f"{value!r} cannot be written to {file}: {error.strerror}.") from error


def table_lines(table: Path) -> list[str]:
    """Return the lines of a table of mounts; splitlines() would part them wherever a user's mount point says so."""
    return [line for line in table.read_bytes().decode(errors="surrogateescape").split("\n") if line]


def unescaped(field: str) -> str:
    """Return a field of a table of mounts as it was before the kernel wrote it: proc_pid_mountinfo(5)."""
    for octal, plain in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        field = field.replace(octal, plain)
    return field


def read_at(directory: int, file: str) -> str:
    fd = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
    with os.fdopen(fd, encoding="ascii") as stream:
        return stream.read()


def write_at(directory: int, file: str, value: str) -> None:
    fd = os.open(file, os.O_WRONLY | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
    try:
        os.write(fd, value.encode())
    finally:
        os.close(fd)


def refused(controller: str, details: str) -> HostError:
    what, option = CONTROLLERS[controller]
    return HostError(
        f"{what} limits cannot be set on this host.",
        details=details,
        resolution=f"Leave {option} out, or give the host the controller: cat /proc/cgroups shows what the kernel has, "
        "grep cgroup /proc/mounts where it is mounted; a container needs a writable cgroup of its own, "
        "with its processes in a group below it.",
    )


def _settings(version: int, ceiling: Ceiling) -> Iterator[tuple[str, str]]:
    """Yield the files to write, in their order, with what is to be written."""
    if ceiling.cpu_quota_us is not None:
        if version == 1:
            yield "cpu.cfs_period_us", str(_PERIOD_US)
            yield "cpu.cfs_quota_us", str(ceiling.cpu_quota_us)
        else:
            yield "cpu.max", f"{ceiling.cpu_quota_us} {_PERIOD_US}"
    if ceiling.memory_bytes is not None:
        # Swap would be a way round the limit. With version 2 a machine that is over it ends as a whole.
        if version == 1:
            yield "memory.limit_in_bytes", str(ceiling.memory_bytes)
            yield "memory.memsw.limit_in_bytes", str(ceiling.memory_bytes)
        else:
            yield "memory.max", str(ceiling.memory_bytes)
            yield "memory.swap.max", "0"
            yield "memory.oom.group", "1"
    if ceiling.pids is not None:
        yield "pids.max", str(ceiling.pids)
    for throttle in ceiling.io:
        yield from _throttled(version, throttle)


def _throttled(version: int, throttle: Throttle) -> Iterator[tuple[str, str]]:
    if version == 1:
        for file, rate in zip(_THROTTLES[1], throttle.rates, strict=True):
            if rate is not None:
                yield file, f"{throttle.device} {rate}"
    else:
        pairs = zip(("rbps", "wbps", "riops", "wiops"), throttle.rates, strict=True)
        yield "io.max", " ".join([throttle.device, *(f"{key}={rate}" for key, rate in pairs if rate is not None)])


def _device_of(disk: Path) -> str:
    """Return MAJOR:MINOR of the whole block device that holds a file: the kernel limits no single partition."""
    try:
        fd = os.open(disk, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            number = os.fstat(fd).st_dev
            if os.major(number) == 0:
                number = _mounted_from(fd)
        finally:
            os.close(fd)
        return _whole(f"{os.major(number)}:{os.minor(number)}")
    except OSError as error:
        raise _no_device(disk, str(error)) from error


def _mounted_from(fd: int) -> int:
    """Return the number of the device that the file system of an open file was mounted from (btrfs numbers its own)."""
    kind, source = _mount_of(_mount_id(fd))
    if source.startswith("/"):
        found = Path(source).stat()
        if stat.S_ISBLK(found.st_mode):
            return found.st_rdev
    raise OSError(f"it is on {kind}, mounted from {source!r}, which is no block device")


def _mount_id(fd: int) -> str:
    for line in Path(f"/proc/self/fdinfo/{fd}").read_text(encoding="ascii").splitlines():
        key, _, value = line.partition(":")
        if key == "mnt_id":
            return value.strip()
    raise OSError("the kernel does not say which mount it is on")


def _mount_of(mount_id: str) -> tuple[str, str]:
    """Return the file system and the source of a mount, from the lines of proc_pid_mountinfo(5)."""
    for line in table_lines(_MOUNTINFO):
        if line.startswith(f"{mount_id} "):
            kind, source, *_ = line.partition(" - ")[2].split(" ")
            return kind, unescaped(source)
    raise OSError("the mount that it is on is not listed")


def _whole(device: str) -> str:
    """Return the device itself, or the disk that it is a partition of."""
    directory = _SYS / "dev" / "block" / device
    if not directory.exists():
        raise OSError(f"the device {device} is no block device of this host")
    for member in _SYS.glob(f"fs/btrfs/*/devices/{directory.resolve().name}"):
        others = [other.name for other in member.parent.iterdir()]
        if len(others) > 1:
            raise OSError(f"its file system is spread over {', '.join(sorted(others))}")
    if (directory / "partition").exists():
        # The kernel follows the link first: this is the disk's own directory.
        return (directory / ".." / "dev").read_text(encoding="ascii").strip()
    return device


def _no_device(disk: Path, why: str) -> HostError:
    return HostError(
        "I/O limits cannot be set for this machine: its disk lies on no single block device.",
        details=f"{disk}: {why}",
        resolution="Leave the I/O limits out, or keep vmm's data on a file system such as ext4 or XFS on a local disk.",
    )
