"""What memory this host has."""

from __future__ import annotations

import contextlib
from pathlib import Path

_MEMINFO = Path("/proc/meminfo")
# What a container may use at most, of either kind of cgroup; "max" or a number beyond all memory means no limit.
_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
_MIB = 1024 * 1024


def total_mib() -> int:
    """Return the host's memory in MiB: what the kernel has, or less where a container's limit is lower."""
    total = 0
    for line in _MEMINFO.read_text(encoding="ascii").splitlines():
        if line.startswith("MemTotal:"):
            total = int(line.split()[1]) // 1024
            break
    for path in _LIMITS:
        with contextlib.suppress(OSError, ValueError):
            total = min(total, int(path.read_text(encoding="ascii")) // _MIB)
    return total
