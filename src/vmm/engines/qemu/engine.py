"""Machines run by qemu's microvm machine type: the same virtio-mmio devices and serial console as Firecracker's."""

from __future__ import annotations

import os
import platform
import re
from pathlib import Path

from vmm.engines import emulation, launch
from vmm.errors import EngineError
from vmm.host import process
from vmm.model.engine import BootPlan, Disk, EngineFeatures, EngineStatus
from vmm.model.machine import EngineName, ProcessIdentity
from vmm.model.value import Value

# qemu's RunState (qapi/run-state.json), as far as one of our guests can be in it.
_STATUS = {
    "prelaunch": EngineStatus.STARTING,
    "running": EngineStatus.RUNNING,
    "paused": EngineStatus.PAUSED,
    "shutdown": EngineStatus.RUNNING,
}
_DEFAULT_TSC_HZ = 2_000_000_000
# qemu's local APIC counts a virtual GHz, divided by 16 as Linux has it (hw/intc/apic.c), in Linux's terms: 2^32 / 16.
# A kernel measures that at its boot within 100 ms; where the host lets it stand meanwhile, the result is wrong, and all
# its timers come late or early for good (seen: every sleep many times too long). Stage-1 compares, and boots again.
_LAPIC_MULT = 2**32 // 16
# Without elevateprivileges=deny, which forbids qemu to give root up by -runas (seccomp kills it); once it has, the
# filter's no_new_privs keeps it from becoming root again.
_SANDBOX = "on,obsolete=deny,spawn=deny,resourcecontrol=deny"


class QemuEngine(Value):
    """`binary` is the path of qemu-system-ARCH; `kvm` whether it is to use KVM (else TCG)."""

    binary: Path
    kvm: bool

    @property
    def name(self) -> EngineName:
        return EngineName.QEMU

    @property
    def features(self) -> EngineFeatures:
        return EngineFeatures(snapshot=False, pause=True, jailer=False, power_off_ends=True)

    def spawn(self, plan: BootPlan) -> ProcessIdentity:
        if not os.access(self.binary, os.X_OK):
            raise EngineError(
                "qemu is not on this host.",
                details=f"{self.binary} is not a program that can be run.",
                resolution="Install it: sudo vmm setup --install-packages",
            )
        argv = arguments(self.binary, plan, kvm=self.kvm)
        if plan.uid != 0:
            argv += ["-sandbox", _SANDBOX, *_user(plan.uid, newer=self._knows_run_with())]
        return launch.spawn(argv, plan, marker=_uuid(plan.id))

    def markers(self, *, machine_id: str, socket: Path) -> tuple[str, ...]:
        # Of one that a vmm of before started its socket's path alone tells.
        return (_uuid(machine_id), str(socket))

    def holes(self) -> tuple[str, ...]:
        """Return nothing: the distribution mends its qemu."""
        return ()

    def adopt(self, machine_id: str, *, socket: Path, jails: Path, group: int | None) -> None:
        """Do nothing: qemu makes its socket in its place."""

    def put_back(self, machine_id: str, disk: Path, *, jails: Path) -> bool:  # noqa: ARG002  # as every engine's
        """Do nothing: what qemu has open has no name."""
        return False

    def clean_up(self, machine_id: str, *, jails: Path) -> None:
        """Do nothing: qemu leaves nothing but its socket."""

    def _knows_run_with(self) -> bool:
        """Whether this qemu has `-run-with user=` (9.1), which took the place of `-runas`."""
        words = process.run([str(self.binary), "--version"], timeout_s=10, check=False).stdout
        match = re.search(r"version (\d+)\.(\d+)", words)
        return match is not None and (int(match[1]), int(match[2])) >= (9, 1)

    def await_running(self, plan: BootPlan, process: ProcessIdentity, *, timeout_s: float) -> None:
        launch.await_running(
            plan,
            process,
            timeout_s=timeout_s,
            ask=lambda limit: self.status(plan.socket, timeout_s=limit),
            ready=plan.socket.exists,
        )

    def is_hollow(self, process: ProcessIdentity) -> bool:  # noqa: ARG002  # no such end of qemu's is known
        return False

    def status(self, socket: Path, *, timeout_s: float = 2.0) -> EngineStatus:
        # As Firecracker's: imported while the process starts.
        from vmm.engines.qemu import qmp
        from vmm.engines.sockets import silent

        answer = qmp.execute(socket, "query-status", timeout_s=timeout_s)
        match answer:
            case {"status": str(state)} if state in _STATUS:
                return _STATUS[state]
            case _:
                raise silent(socket, f"it reports the state {answer!r}")

    def press_power_button(self, socket: Path) -> bool:
        """Press the ACPI power button; a guest without anyone listening to it does not notice."""
        from vmm.engines.qemu import qmp

        qmp.execute(socket, "system_powerdown", timeout_s=2.0)
        return True


def arguments(binary: Path, plan: BootPlan, *, kvm: bool) -> list[str]:
    """Return qemu's argument list for a machine."""
    machine, cpu, extra = _machine(kvm=kvm)
    argv = [
        str(binary),
        "-name", f"vmm-{plan.name}",
        # What no other machine has, of no other vmm either: a container's may have the same socket, address and user.
        "-uuid", _uuid(plan.id),
        "-nodefaults", "-no-user-config", "-display", "none",
        # A guest's reboot ends the process, as it does with Firecracker; so do its power-off and panic.
        "-no-reboot",
        *machine,
        *cpu,
        "-smp", str(plan.cpus),
        "-m", str(plan.memory_mib),
        # stdout is the console log, opened to append by us: qemu opens no file of its own.
        "-chardev", "stdio,id=console,signal=off,mux=off",
        "-serial", "chardev:console",
        "-qmp", f"unix:{_escaped(plan.socket)},server=on,wait=off",
        "-kernel", str(plan.kernel),
        "-append", plan.command_line + extra,
    ]  # fmt: skip
    if plan.initrd is not None:
        argv += ["-initrd", str(plan.initrd)]
    for number, disk in enumerate(plan.disks):
        argv += _drive(number, disk)
    return [
        *argv,
        "-netdev", f"tap,id=eth0,ifname={plan.tap},script=no,downscript=no,vhost=off",
        "-device", f"virtio-net-device,netdev=eth0,mac={plan.mac}",
    ]  # fmt: skip


def _uuid(machine_id: str) -> str:
    """Return a machine's id as qemu wants it: 32 hexadecimal digits in five groups."""
    parts = (machine_id[:8], machine_id[8:12], machine_id[12:16], machine_id[16:20], machine_id[20:])
    return "-".join(parts)


def _user(uid: int, *, newer: bool) -> list[str]:
    """Return what makes qemu give root up for good, once it has opened its files, its tap and its sockets."""
    return ["-run-with", f"user={uid}:{uid}"] if newer else ["-runas", f"{uid}:{uid}"]


def _machine(*, kvm: bool) -> tuple[list[str], list[str], str]:
    """Return the machine's and the CPU's arguments, and what the kernel command line needs besides."""
    accelerator = "kvm" if kvm else "tcg"
    if platform.machine() == "aarch64":
        return ["-M", f"virt,accel={accelerator}"], ["-cpu", "host" if kvm else "max"], ""
    if kvm:
        # KVM has a PIC and a PIT of its own; pic=on would only add one in qemu that nothing asks (hw/i386/microvm.c).
        return ["-M", "microvm,accel=kvm,pit=on,pic=off,rtc=on"], ["-cpu", "host"], emulation.words_of_host()
    # Without a known TSC frequency the kernel hangs in its calibration under TCG; it must be near the host's real
    # one, or the guest's clock runs fast or slow.
    hertz = tsc_hz(Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace"))
    # pic=off: Linux programs no PIC on this machine type, so the PIT's interrupt would come as vector 0 and panic the
    # guest in silence (measured: 16 of 20 boots with qemu 10, one in 15 to 30 with 7.2; none of 30 and 75 without).
    return (
        ["-M", "microvm,pit=on,pic=off,rtc=on", "-accel", "tcg,thread=multi,tb-size=256"],
        ["-cpu", f"max,tsc-frequency={hertz}"],
        # reliable: the kernel checks the TSC against its tick, which comes late or not at all on a busy host. It then
        # gave up the TSC and counted ticks (measured with load: clocks 11 s behind at login, 22 s more in a minute).
        f" tsc_early_khz={hertz // 1000} tsc=reliable {emulation.WORDS} vmm.lapic_mult={_LAPIC_MULT}",
    )


def tsc_hz(cpuinfo: str) -> int:
    """Return the TSC's frequency in Hz: the one in the model's name (its nominal one), else the current clock."""
    for pattern, scale in ((r"model name.*@ ([0-9.]+)GHz", 1_000_000_000), (r"cpu MHz\s*: ([0-9.]+)", 1_000_000)):
        match = re.search(pattern, cpuinfo)
        if match:
            return int(float(match[1]) * scale)
    return _DEFAULT_TSC_HZ


def _drive(number: int, disk: Disk) -> list[str]:
    # writeback: what a guest flushed has reached the host's disk, what it did not may be lost with the host.
    # discard=unmap: what a guest deletes and trims becomes a hole again.
    read_only = "on" if disk.read_only else "off"
    options = f"if=none,id=disk{number},format=raw,cache=writeback,discard=unmap,read-only={read_only}"
    return ["-drive", f"file={_escaped(disk.path)},{options}", "-device", f"virtio-blk-device,drive=disk{number}"]


def _escaped(path: Path) -> str:
    """Return the path as a value in one of qemu's option lists, where a comma is written twice."""
    return str(path).replace(",", ",,")
