"""The kernel command line of a machine."""

from __future__ import annotations

from vmm import TYPE_CHECKING

if TYPE_CHECKING:
    from vmm.model.network import Lease, Subnet

# What the original gives its guests; `reboot=k panic=1` make a guest's reboot and panic end the engine's process.
_BASE = "console=ttyS0 reboot=k panic=1 pci=off"
# What makes boots slow is left out: the console stays, but says only what matters; no probing of a PS/2 controller
# that has no mouse; entropy from the CPU at once.
_FAST = "i8042.noaux i8042.nomux i8042.dumbkbd random.trust_cpu=on"
_SILENT = "quiet loglevel=1"
# After a boot that came to nothing, the next says all on the way, from before the console's driver is there.
_SPEAKS = "loglevel=7 earlycon=uart8250,io,0x3f8"
# A panic says all that the kernel had kept to itself (bit 5: the messages of its ring); until then it costs nothing.
_PANIC = "panic_print=32"


def command_line(lease: Lease, subnet: Subnet, *, stage1: bool, speaks: bool = False) -> str:
    """Return the command line. `ip=` serves kernels with IP autoconfiguration and tells stage-1 the address as well.

    Without stage-1 the kernel mounts /dev/vda itself. With `speaks` its words are on the console as it boots.
    """
    address = f"ip={lease.address}::{subnet.gateway}:{subnet.netmask}::eth0:off"
    root = "" if stage1 else " root=/dev/vda rw"
    return f"{_BASE} {_SPEAKS if speaks else _SILENT} {_FAST} {_PANIC} {address}{root}"
