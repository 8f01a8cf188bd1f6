"""A machine in Firecracker's own words."""

from __future__ import annotations

from vmm import TYPE_CHECKING
from vmm.engines import emulation

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vmm.model.engine import BootPlan


def configuration(plan: BootPlan, *, kernel: str, initrd: str | None, disks: Sequence[str]) -> dict[str, object]:
    """Return Firecracker's own description of a machine (its API's types, in one file), with paths as it sees them."""
    boot: dict[str, object] = {"kernel_image_path": kernel, "boot_args": plan.command_line + emulation.words_of_host()}
    if initrd is not None:
        boot["initrd_path"] = initrd
    return {
        "boot-source": boot,
        "drives": [
            {
                "drive_id": f"disk{number}",
                "path_on_host": path,
                # The kernel's root is named on its command line, where stage-1 reads it too.
                "is_root_device": False,
                "is_read_only": disk.read_only,
                # What a guest flushed has reached the disk of the host.
                "cache_type": "Writeback",
            }
            for number, (disk, path) in enumerate(zip(plan.disks, disks, strict=True))
        ],
        "machine-config": {"vcpu_count": plan.cpus, "mem_size_mib": plan.memory_mib},
        "network-interfaces": [{"iface_id": "eth0", "guest_mac": plan.mac, "host_dev_name": plan.tap}],
    }
