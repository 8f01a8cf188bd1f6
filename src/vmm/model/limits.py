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
# Bytes and operations a second. With less a guest does not come up in any time that it is waited for: its boot reads
# some 100 MiB, in thousands of reads. At a byte a second a start hangs in the kernel, where nothing can end it.
BYTES_RATE = (1024 * 1024, 2**40)
OPERATIONS_RATE = (100, 2**40)
# What older releases took; their machines are still ones.
_ANY_RATE = (1, 2**40)


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


def checked_limits(limits: Limits, *, recorded: bool = False) -> Limits:
    """Return the limits, or raise UsageError for one that can never be right.

    Those of a machine that is `recorded` may be ones that older releases took.
    """
    bytes_rate = _ANY_RATE if recorded else BYTES_RATE
    operations_rate = _ANY_RATE if recorded else OPERATIONS_RATE
    if limits.cpus is not None and not CPU_LIMIT[0] <= limits.cpus <= CPU_LIMIT[1]:
        raise UsageError(
            f"{limits.cpus:g} is not possible for --cpu-limit.",
            details=f"The least is {CPU_LIMIT[0]:g} CPUs, the most {CPU_LIMIT[1]:g}.",
            resolution="Write it such as --cpu-limit 1.5.",
        )
    whole = {
        "--memory-limit": (limits.memory_mib, MEMORY_LIMIT_MIB, " MiB"),
        "--pids-limit": (limits.pids, PIDS_LIMIT, ""),
        "--io-read-bps": (limits.io_read_bps, bytes_rate, ""),
        "--io-write-bps": (limits.io_write_bps, bytes_rate, ""),
        "--io-read-iops": (limits.io_read_iops, operations_rate, ""),
        "--io-write-iops": (limits.io_write_iops, operations_rate, ""),
    }
    for what, (value, bounds, unit) in whole.items():
        if value is not None:
            sizes.within(value, bounds, what=what, unit=unit)
    return limits
