"""Which engine a host supports, and why."""

from __future__ import annotations

import os
import platform
import re
import shutil
from pathlib import Path

from vmm.errors import EngineError, UsageError
from vmm.model.machine import EngineName
from vmm.model.value import Value

_KVM = Path("/dev/kvm")
_CPUINFO = Path("/proc/cpuinfo")


class KvmReport(Value):
    """What KVM can do here. `can_run_guests`: an unmodified guest's kernel and user space run on it."""

    device_opens: bool
    cpu_flags: bool
    can_run_guests: bool
    why: str


def kvm_report(device: Path = _KVM, cpuinfo: Path = _CPUINFO) -> KvmReport:
    """Look at the device and the CPU's flags.

    A KVM device on a CPU without vmx or svm (software-emulated nesting) makes VMs that cannot run an unmodified guest.
    """
    opens = _opens(device)
    arm = platform.machine() == "aarch64"
    text = cpuinfo.read_text(encoding="utf-8", errors="replace")
    flags = arm or re.search(r"^flags\b.*\b(vmx|svm)\b", text, re.MULTILINE) is not None
    if not opens:
        why = f"{device} {'cannot be opened for reading and writing' if device.exists() else 'does not exist'}"
    elif not flags:
        why = f"{device} opens, but the CPU shows neither vmx nor svm: it cannot run an unmodified guest"
    else:
        why = f"{device} opens" + ("" if arm else " and the CPU shows vmx or svm")
    return KvmReport(device_opens=opens, cpu_flags=flags, can_run_guests=opens and flags, why=why)


def pick(wish: str, *, firecracker: Path, qemu: Path, report: KvmReport | None = None) -> EngineName:
    """Return the engine for `auto`, `firecracker` or `qemu`: firecracker where KVM can run guests, else qemu.

    Raises:
        EngineError: the engine's program is not on this host, or there is no KVM for Firecracker.
        UsageError: there is no engine of that name.
    """
    report = report or kvm_report()
    match wish:
        case "auto":
            name = EngineName.FIRECRACKER if report.can_run_guests and _is_there(firecracker) else EngineName.QEMU
        case "firecracker" | "qemu":
            name = EngineName(wish)
        case _:
            raise UsageError(
                f"There is no engine {wish!r}.",
                details="The engines are firecracker and qemu; auto takes what the host supports.",
                resolution="Give --engine auto, --engine firecracker or --engine qemu.",
            )
    if name is EngineName.FIRECRACKER and not report.device_opens:
        raise EngineError(
            "Firecracker needs KVM, which this host does not give.",
            details=report.why,
            resolution="Give --engine qemu, or enable virtualization (vmm doctor says how).",
        )
    binary = firecracker if name is EngineName.FIRECRACKER else qemu
    if not _is_there(binary):
        raise EngineError(
            f"The engine {name} is not on this host.",
            details=f"{binary} is not a program that can be run.",
            resolution="Install it: sudo vmm setup --install-packages",
        )
    return name


def qemu_program(configured: str) -> Path:
    """Return qemu's path: the configured one, else the one on the host; a path that is not there when there is none."""
    arch = {"x86_64": "x86_64", "aarch64": "aarch64"}.get(platform.machine(), platform.machine())
    return Path(
        configured
        or shutil.which(f"qemu-system-{arch}", path="/usr/local/bin:/usr/bin")
        or f"/usr/bin/qemu-system-{arch}"
    )


def _is_there(binary: Path) -> bool:
    return binary.is_file() and os.access(binary, os.X_OK)


def _opens(device: Path) -> bool:
    try:
        os.close(os.open(device, os.O_RDWR | os.O_CLOEXEC))
    except OSError:
        return False
    return True
