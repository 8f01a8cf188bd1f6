"""The kernel command line of a machine."""

from __future__ import annotations

from vmm import TYPE_CHECKING

if TYPE_CHECKING:
    from vmm.model.network import Lease, Subnet

# What the original gives its guests; `reboot=k panic=1` make a guest's reboot and panic end the engine's process.
_BASE = "console=ttyS0 reboot=k panic=1 pci=off"
# What makes boots slow is left out: the console stays, but says only what matters; no probing of a PS/2 controller
# that has no mouse; entropy from the CPU at once.
_FAST = "quiet loglevel=1 i8042.noaux i8042.nomux i8042.dumbkbd random.trust_cpu=on"


def command_line(lease: Lease, subnet: Subnet, *, stage1: bool) -> str:
    """Return the command line. `ip=` serves kernels with IP autoconfiguration and tells stage-1 the address as well.

    Without stage-1 the kernel mounts /dev/vda itself.
    """
    address = f"ip={lease.address}::{subnet.gateway}:{subnet.netmask}::eth0:off"
    root = "" if stage1 else " root=/dev/vda rw"
    return f"{_BASE} {_FAST} {address}{root}"
