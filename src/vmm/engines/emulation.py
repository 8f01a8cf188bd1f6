"""What a guest's kernel must be told where the CPU is qemu's emulation of one."""

from __future__ import annotations

from pathlib import Path

_CX16 = 4 * 32 + 13  # X86_FEATURE_CX16: linux/arch/x86/include/asm/cpufeatures.h
# The kernel leaves cmpxchg16b alone (programs may use it). Behind that, qemu before 9.1 takes data for flags where the
# next write faults: with 7.2, 6 of 12 boots of Linux 6.12, whose allocator lives on it, panicked, and none of 16 so.
WORDS = f"clearcpuid={_CX16}"
_CPUINFO = Path("/proc/cpuinfo")
_NAME = b"QEMU TCG"  # target/i386/cpu.c; the first CPU's name stands in the first lines


def words_of_host(cpuinfo: Path = _CPUINFO) -> str:
    """Return what guests of KVM need on a host whose own CPU is emulated: a blank and WORDS, or nothing."""
    with cpuinfo.open("rb") as file:
        return f" {WORDS}" if _NAME in file.read(1024) else ""
