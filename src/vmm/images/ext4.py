"""What an ext4 superblock says, read as plain bytes: nothing here mounts anything."""

import os
import struct
from pathlib import Path

from vmm.errors import ImageError
from vmm.host.reading import open_plain
from vmm.model.sizes import DISK_MIB
from vmm.model.value import Value

# Offsets of struct ext4_super_block (the kernel's Documentation/filesystems/ext4/super.rst); it lies at byte 1024.
_AT = 1024
_LENGTH = 1024
_MAGIC = 0xEF53
_COMPAT_JOURNAL = 0x4
_INCOMPAT_64BIT = 0x80
_INCOMPAT_EXTENTS = 0x40
# What Linux 6.1 mounts (fs/ext4/ext4.h, EXT4_FEATURE_INCOMPAT_SUPP), and what it mounts for writing as well.
_INCOMPAT_KNOWN = 0x3E7D6
_RO_COMPAT_KNOWN = 0x1A77F
_HAS_ERRORS = 0x2
_LARGEST_BLOCK = 4096  # a page of x86-64, and of arm64 as distributions build it


class Superblock(Value):
    """Sizes in bytes."""

    size: int
    block_size: int


def read_superblock(path: Path) -> Superblock:
    """Return what the file system's superblock says.

    Raises:
        ImageError: the file is no ext4 file system, or shorter than the file system in it.
    """
    try:
        with os.fdopen(open_plain(path), "rb") as stream:
            head = stream.read(_AT + _LENGTH)
            length = os.fstat(stream.fileno()).st_size
    except OSError as error:
        raise ImageError(
            f"The image {path} cannot be read.", details=str(error), resolution="Check the path, then try again."
        ) from error
    if not is_ext4(head):
        raise ImageError(
            f"{path} is not an ext4 file system.",
            details=f"It has no ext4 superblock; it begins with {head[:8].hex(' ') or 'nothing'}.",
            resolution="Give an ext4 image without a partition table, a directory, or a tar of a root file system.",
        )
    return _checked(path, head[_AT:], length)


def is_ext4(head: bytes) -> bool:
    """Whether the first 2 KiB of a file hold an ext4 superblock."""
    if len(head) < _AT + _LENGTH:
        return False
    magic = struct.unpack_from("<H", head, _AT + 0x38)[0]
    incompatible = struct.unpack_from("<I", head, _AT + 0x60)[0]
    return magic == _MAGIC and bool(incompatible & _INCOMPAT_EXTENTS)


def superblock_troubles(head: bytes) -> list[str]:
    """Return why a guest's kernel may not mount this file system, as sentences; `head` are its first 2 KiB."""
    block = head[_AT:]
    if not is_ext4(head):
        return []
    compat, incompat, ro_compat = struct.unpack_from("<III", block, 0x5C)
    inode, device = struct.unpack_from("<II", block, 0xE0)
    size = 1024 << min(struct.unpack_from("<I", block, 0x18)[0], 32)
    found: list[str] = []
    if unknown := incompat & ~_INCOMPAT_KNOWN:
        found.append(f"Its file system has features that Linux 6.1 cannot mount (incompat {unknown:#x}).")
    if unknown := ro_compat & ~_RO_COMPAT_KNOWN:
        found.append(f"Its file system has features with which Linux 6.1 only reads it (ro_compat {unknown:#x}).")
    if size > _LARGEST_BLOCK:
        found.append(f"Its file system has blocks of {size} bytes; a guest's kernel mounts {_LARGEST_BLOCK} at most.")
    if compat & _COMPAT_JOURNAL and device and not inode:
        found.append("Its file system has its journal on another disk, which no machine has.")
    found = [f"{each} Machines may not boot from it: copy its files, and import the directory." for each in found]
    if struct.unpack_from("<H", block, 0x3A)[0] & _HAS_ERRORS:
        found.append("Its file system is marked as damaged. Check it, and import it again: e2fsck -fy IMAGE")
    return found


def _checked(path: Path, block: bytes, length: int) -> Superblock:
    low, log = struct.unpack_from("<I", block, 0x4)[0], struct.unpack_from("<I", block, 0x18)[0]
    incompatible = struct.unpack_from("<I", block, 0x60)[0]
    high = struct.unpack_from("<I", block, 0x150)[0] if incompatible & _INCOMPAT_64BIT else 0
    # The format allows blocks of 1 KiB to 64 KiB.
    size = ((high << 32 | low) << (10 + log)) if log <= 6 else 0
    if size == 0 or size > length:
        raise ImageError(
            f"The image {path} is damaged or cut off.",
            details=f"Its superblock promises {size} bytes; the file has {length}.",
            resolution="Fetch or copy it again.",
        )
    if length > DISK_MIB[1] * 1024 * 1024:
        raise ImageError(
            f"The image {path} is larger than any disk.",
            details=f"It has {length} bytes; the largest disk has {DISK_MIB[1]} MiB.",
            resolution="Give a smaller one; a machine's disk can be larger than its image.",
        )
    return Superblock(size=size, block_size=1024 << log)
