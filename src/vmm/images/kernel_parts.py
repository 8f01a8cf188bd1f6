"""What a kernel needs to run a machine, looked for in the kernel itself and in the modules that come with it."""

import mmap
import platform
import re
from collections.abc import Sequence
from pathlib import Path

# A driver has its name in it, as it registers that with the kernel; ext4 has the beginning of its messages.
_DRIVERS = {
    "virtio_mmio": (b"virtio-mmio\0", "the bus that disks and network hang on"),
    "virtio_blk": (b"virtio_blk\0", "the disk"),
    "virtio_net": (b"virtio_net\0", "the network"),
    "ext4": (b"EXT4-fs", "the root file system"),
}
_SERIAL = (b"serial8250\0", b"of_serial\0")
_INITRAMFS = b"initramfs"
# What qemu enters a vmlinux by (xen/include/public/elfnote.h, XEN_ELFNOTE_PHYS32_ENTRY): type 18, of the name Xen.
_PVH = re.compile(rb"\x04\0\0\0[\x04\x08]\0\0\0\x12\0\0\0Xen\0")
_RELEASE = re.compile(rb"Linux version ([0-9][!-~]{1,100}) ")
_VERMAGIC = re.compile(rb"\0vermagic=([0-9][!-~]{1,100}) ")


def parts_lacking(vmlinux: Path, loaded: Sequence[tuple[str, bytes]], *, stage1: bool) -> list[str]:
    """Return what this kernel lacks, as sentences. `loaded` are the modules (file name, content) of its stage-1."""
    with vmlinux.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as image:
        banner = _RELEASE.search(image)
        release = banner[1] if banner else b""
        if not release:
            return ["The kernel does not say which Linux it is: what it can do is not known."]
        have = {name.removesuffix(".ko") for name, _ in loaded}
        absent = [name for name, (mark, _) in _DRIVERS.items() if name not in have and image.find(mark) < 0]
        has_serial = any(image.find(mark) >= 0 for mark in _SERIAL)
        is_initramfs_read = image.find(_INITRAMFS) >= 0
        has_pvh = platform.machine() != "x86_64" or _PVH.search(image) is not None
    found: list[str] = []
    if absent:
        found.append(
            f"The kernel has no {', no '.join(f'{name} ({_DRIVERS[name][1]})' for name in absent)}: no machine can boot"
            " from it as it is. Give its modules (--modules /lib/modules/VERSION), or build these in."
        )
    if stage1 and not is_initramfs_read:
        found.append("The kernel reads no initramfs: build that in (BLK_DEV_INITRD), or give --no-stage1.")
    if not has_serial:
        found.append("The kernel has no driver of the serial port (SERIAL_8250): its machines' consoles stay empty.")
    if not has_pvh:
        found.append("The kernel has no entry for PVH (CONFIG_PVH): Firecracker boots it, and qemu does not.")
    others = {match[1] for _, content in loaded if (match := _VERMAGIC.search(content))} - {release}
    if others:
        found.append(
            f"The kernel is {release.decode()}, and its modules are of {b', '.join(sorted(others)).decode()}: it"
            " refuses them, and no machine can boot from it. Give the modules of the same version."
        )
    return found
