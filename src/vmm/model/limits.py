"""The bounds of what a machine's engine may have, and how long to wait before it is started again."""

from __future__ import annotations

from vmm.errors import UsageError
from vmm.model import sizes
from vmm.model.machine import Limits

__all__ = ["Limits", "checked_limits", "restart_delay_s"]

# The least that lets an engine live at all; tenths and hundredths of a CPU are common in the field.
CPU_LIMIT = (0.05, 32.0)
# Over the guest's own memory. Firecracker needs some 10 MiB, qemu without KVM up to 256 for what it has translated.
MEMORY_LIMIT_MIB = (16, 65536)
# Firecracker has three threads and one a vCPU.
PIDS_LIMIT = (8, 65536)
RATE = (1, 2**40)


# Between a failure and the next start: 1 s, then twice as long each time, up to a minute; given up after ten in a row.
RESTARTS_MOST = 10
_FIRST_DELAY_S, _LONGEST_DELAY_S = 1.0, 60.0
# A machine that ran for this long is well again: its failures are counted anew.
HEALTHY_S = 600.0
# A guest that reboots again within this of its start has come nowhere: such reboots are counted as failures are.
NOWHERE_S = 60.0


def restart_delay_s(restarts: int) -> float:
    """Return the seconds to wait before the restart that follows `restarts` others in a row."""
    return min(_LONGEST_DELAY_S, _FIRST_DELAY_S * 2.0 ** min(restarts, 10))


def checked_limits(limits: Limits) -> Limits:
    """Return the limits, or raise UsageError for one that can never be right."""
    if limits.cpus is not None and not CPU_LIMIT[0] <= limits.cpus <= CPU_LIMIT[1]:
        raise UsageError(
            f"{limits.cpus:g} is not possible for --cpu-limit.",
            details=f"The least is {CPU_LIMIT[0]:g} CPUs, the most {CPU_LIMIT[1]:g}.",
            resolution="Write it such as --cpu-limit 1.5.",
        )
    whole = {
        "--memory-limit": (limits.memory_mib, MEMORY_LIMIT_MIB, " MiB"),
        "--pids-limit": (limits.pids, PIDS_LIMIT, ""),
        "--io-read-bps": (limits.io_read_bps, RATE, ""),
        "--io-write-bps": (limits.io_write_bps, RATE, ""),
        "--io-read-iops": (limits.io_read_iops, RATE, ""),
        "--io-write-iops": (limits.io_write_iops, RATE, ""),
    }
    for what, (value, bounds, unit) in whole.items():
        if value is not None:
            sizes.within(value, bounds, what=what, unit=unit)
    return limits
