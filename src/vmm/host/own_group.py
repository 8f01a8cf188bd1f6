"""The cgroup that this process is in: whether what systemd was asked for is so, and the way out of it."""

from __future__ import annotations

import contextlib
from pathlib import Path

from vmm import TYPE_CHECKING
from vmm.errors import HostError
from vmm.host import ceilings

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vmm.model.machine import Limits

# A limit's field: its controller, the file of cgroup v1 and that of v2.
_FILES = {
    "cpus": ("cpu", "cpu.cfs_quota_us", "cpu.max"),
    "memory_mib": ("memory", "memory.limit_in_bytes", "memory.max"),
    "pids": ("pids", "pids.max", "pids.max"),
    "io_read_bps": ("blkio", "blkio.throttle.read_bps_device", "io.max"),
    "io_write_bps": ("blkio", "blkio.throttle.write_bps_device", "io.max"),
    "io_read_iops": ("blkio", "blkio.throttle.read_iops_device", "io.max"),
    "io_write_iops": ("blkio", "blkio.throttle.write_iops_device", "io.max"),
}
# v1 has no word for "no limit" of memory: it is the largest multiple of a page in 63 bits.
_NO_MEMORY_LIMIT = 1 << 60


def require(limits: Limits, *, mounts: Path = Path("/proc/self/mounts"), own: Path = Path("/proc/self/cgroup")) -> None:
    """Raise HostError unless each of these limits is in force on this process's cgroup.

    systemd leaves out what it cannot set, and says nothing: in a container, or without a controller.
    """
    places = dict(_places(mounts, own))
    missing: list[str] = []
    for field, value in limits.__dict__.items():
        if value is None:
            continue
        controller, old, new = _FILES[field]
        found = (_read(places.get(controller), old), _read(places.get(""), new))
        if not any(_is_set(text) for text in found):
            missing.append(field)
    if missing:
        raise HostError(
            "This host's systemd does not set the limits of the machine.",
            details=f"Not in force on its unit: {', '.join(missing)}. A container's controllers are often read-only.",
            resolution="Take them off (vmm set NAME --cpu-limit none ...), or run it where cgroups can be set.",
        )


def leave(*, mounts: Path = Path("/proc/self/mounts")) -> None:
    """Move this process to the top of every hierarchy that counts, out of reach of the limits on its cgroup.

    For what works beside an engine in its cgroup: its memory and its processes must not be what ends the engine. Where
    that cannot be done (a container) it stays.
    """
    counting = {controller for controller, _, _ in _FILES.values()}
    for line in ceilings.table_lines(mounts):
        _, point, kind, options, *_ = line.split(" ")
        if kind == "cgroup2" or (kind == "cgroup" and counting & set(options.split(","))):
            with contextlib.suppress(OSError):
                (Path(ceilings.unescaped(point)) / "cgroup.procs").write_text("0", encoding="ascii")


def _places(mounts: Path, own: Path) -> Iterator[tuple[str, Path]]:
    """Give (controller, directory) of this process's cgroups; the controller of v2's one directory is ''."""
    paths: dict[str, str] = {}
    for line in own.read_text(encoding="utf-8").splitlines():
        _, names, path = line.split(":", 2)
        paths |= dict.fromkeys(names.split(","), path)
    for line in ceilings.table_lines(mounts):
        _, point, kind, options, *_ = line.split(" ")
        root = Path(ceilings.unescaped(point))
        if kind == "cgroup2" and "" in paths:
            yield "", root / paths[""].lstrip("/")
        elif kind == "cgroup":
            for controller in set(options.split(",")) & paths.keys():
                yield controller, root / paths[controller].lstrip("/")


def _read(directory: Path | None, file: str) -> str:
    try:
        return "" if directory is None else (directory / file).read_text(encoding="ascii").strip()
    except OSError:
        return ""


def _is_set(text: str) -> bool:
    first = text.partition(" ")[0]
    return bool(text) and first not in ("max", "-1") and not (first.isdigit() and int(first) >= _NO_MEMORY_LIMIT)
