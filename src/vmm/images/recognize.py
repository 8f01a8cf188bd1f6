"""What a file is that people take for a root file system, and is none: each with its name, and what to do with it."""

import shlex
from pathlib import Path
from typing import BinaryIO

from vmm.errors import ImageError
from vmm.images.ext4 import is_ext4
from vmm.images.packed import packing_of
from vmm.images.partitions import beginning_of, is_partitioned, likely_root, table_of
from vmm.model.value import Value

# As far in as the last of what is looked for: btrfs keeps its name at 64 KiB and 64 bytes.
HEAD_BYTES = 68 * 1024
_CONVERT = "Convert it: qemu-img convert -O raw {path} disk.raw; then: vmm image import disk.raw --name NAME"
_FILES = "Copy its files into a directory or a tar, and import that."
_ROOT_FILE = "Give the root file system's own file."
_CPIO = "Unpack it: cpio -idm <{path}; import the directory. A machine has a root file system and no initramfs."
_FETCH = "Fetch it again, and look at what comes: head -c 200 {path}"
_UNPACK = "Unpack it, and import the directory with the root file system."


class Format(Value):
    """A format that is no root file system: where its mark is, what it is called, and what to do.

    `holds_root`: where it lies in an archive it is likely to be what the archive is about.
    """

    offset: int
    magic: bytes
    name: str
    advice: str = _FILES
    holds_root: bool = True


_FORMATS = (
    Format(offset=0, magic=b"QFI\xfb", name="a qcow2 disk image", advice=_CONVERT),
    Format(
        offset=0,
        magic=b"\x3a\xff\x26\xed",
        name="an Android sparse image",
        advice="Make it a plain one: simg2img {path} plain.img; then: vmm image import plain.img --name NAME",
    ),
    Format(offset=0, magic=b"WithoutFreeSpace", name="a Parallels disk image", advice=_CONVERT),
    Format(offset=0, magic=b"WithouFreSpacExt", name="a Parallels disk image", advice=_CONVERT),
    Format(offset=0, magic=b"QED\0", name="a QED disk image", advice=_CONVERT),
    Format(offset=0, magic=b"KDMV", name="a VMDK disk image", advice=_CONVERT),
    Format(offset=0, magic=b"COWD", name="a VMDK disk image", advice=_CONVERT),
    Format(
        offset=0,
        magic=b"# Disk DescriptorFile",
        name="a VMDK disk's description; the disk is in other files",
        advice=_CONVERT,
    ),
    Format(offset=64, magic=b"\x7f\x10\xda\xbe", name="a VDI disk image", advice=_CONVERT),
    Format(offset=0, magic=b"conectix", name="a VHD disk image", advice=_CONVERT),
    Format(offset=0, magic=b"vhdxfile", name="a VHDX disk image", advice=_CONVERT),
    Format(
        offset=0,
        magic=b"hsqs",
        name="a squashfs file system",
        advice="Unpack it: unsquashfs -d tree {path}; then: vmm image import tree --name NAME",
    ),
    Format(offset=0, magic=b"XFSB", name="an XFS file system"),
    Format(offset=65600, magic=b"_BHRfS_M", name="a btrfs file system"),
    Format(offset=1024, magic=b"\xe2\xe1\xf5\xe0", name="an EROFS file system"),
    Format(offset=1024, magic=b"\x10\x20\xf5\xf2", name="an F2FS file system"),
    Format(offset=82, magic=b"FAT32", name="a FAT file system"),
    Format(offset=54, magic=b"FAT1", name="a FAT file system"),
    Format(offset=3, magic=b"NTFS", name="an NTFS file system"),
    Format(offset=3, magic=b"EXFAT", name="an exFAT file system"),
    Format(
        offset=32769,
        magic=b"CD001",
        name="an ISO 9660 image: an installer's or a live system's medium",
        advice="Give what it installs: a root file system as ext4, directory or tar. `vmm image pull` builds one.",
    ),
    Format(offset=1024, magic=b"H+\0\4", name="an HFS+ file system"),
    Format(offset=32, magic=b"NXSB", name="an APFS container"),
    Format(offset=32768, magic=b"JFS1", name="a JFS file system"),
    Format(offset=65588, magic=b"ReIsEr", name="a ReiserFS file system"),
    Format(offset=1030, magic=b"\x34\x34", name="a NILFS file system"),
    Format(offset=4120, magic=bytes.fromhex("c68573f64e1a45ca8265f57f48ba6d81"), name="a bcachefs file system"),
    Format(offset=0, magic=b"\x45\x3d\xcd\x28", name="a cramfs file system"),
    Format(offset=0, magic=b"-rom1fs-", name="a romfs file system"),
    Format(offset=0, magic=b"UBI#", name="an image for flash memory (UBI)"),
    Format(offset=0, magic=b"\x31\x18\x10\x06", name="an image for flash memory (UBIFS)"),
    Format(offset=32769, magic=b"BEA01", name="a UDF file system"),
    Format(offset=0, magic=b"LUKS\xba\xbe", name="an encrypted disk (LUKS)"),
    Format(offset=4096, magic=b"\xfc\x4e\x2b\xa9", name="a member of a RAID (md)"),
    *(Format(offset=at, magic=b"LABELONE", name="a physical volume of LVM") for at in (512, 0, 1024, 1536)),
    *(
        Format(offset=at, magic=magic, name="a swap area", advice=_ROOT_FILE, holds_root=False)
        for at in (4086, 16374, 65526)
        for magic in (b"SWAPSPACE2", b"SWAP-SPACE")
    ),
    *(
        Format(offset=0, magic=magic, name="a cpio archive: an initramfs", advice=_CPIO)
        for magic in (b"070701", b"070702", b"070707", b"\xc7\x71", b"\x71\xc7")
    ),
    *(
        Format(offset=0, magic=magic, name=name, advice=_UNPACK, holds_root=False)
        for magic, name in (
            (b"PK\x03\x04", "a zip archive"),
            (b"PK\x05\x06", "a zip archive, and empty"),
            (b"7z\xbc\xaf", "a 7z archive"),
            (b"Rar!\x1a\x07", "a RAR archive"),
            (b"MSWIM\0\0\0", "a WIM archive of Windows"),
            (b"!<arch>", "a Debian package or an archive of ar"),
            (b"\xed\xab\xee\xdb", "an RPM package"),
            (b"LZIP", "a file that is packed by lzip"),
            (b"\x1f\x9d", "a file that is packed by compress"),
        )
    ),
    *(
        Format(offset=0, magic=magic, name="a page of the web: an answer in place of the file", advice=_FETCH)
        for magic in (b"<!DOCTYPE html", b"<!doctype html", b"<html")
    ),
    Format(offset=0, magic=b"version https://git-lfs", name="a pointer of git-lfs, and not the file", advice=_FETCH),
    Format(
        offset=0,
        magic=b"\x7fELF",
        name="a program, or a kernel",
        advice="A kernel is imported with: vmm kernel import {path} --name NAME",
        holds_root=False,
    ),
)


def refuse_foreign(path: Path, head: bytes, stream: BinaryIO | None = None) -> None:
    """Raise ImageError when `head`, the beginning of a file, is that of something known that is no root file system.

    `stream` is the file itself, where it is no packed one: a partition table is then read.
    """
    if (known := format_of(head)) is not None:
        raise _foreign(path, known.name, known.advice.format(path=_word(path)))
    if head[1080:1082] == b"\x53\xef" and not is_ext4(head):
        advice = f"Make it one: tune2fs -O extents {_word(path)}; e2fsck -fy {_word(path)}"
        raise _foreign(path, "an ext2 or ext3 file system, which is no ext4 yet", advice)
    if is_partitioned(head):
        raise _partitioned(path, head, stream)


def format_of(head: bytes) -> Format | None:
    """Return what begins with `head`, where it is known and no root file system."""
    return next((known for known in _FORMATS if head.startswith(known.magic, known.offset)), None)


def refuse_packed(path: Path, head: bytes, *, program: str) -> None:
    """Raise ImageError when what is packed in `path`, and begins with `head`, is no tar but something else known."""
    command = f"{program} -d -c {_word(path)} >unpacked"
    if is_ext4(head):
        raise _foreign(
            path, f"an ext4 file system that is packed ({program})", f"Unpack it: {command}; import unpacked"
        )
    if (inner := packing_of(head)) is not None:
        raise _foreign(path, f"a file that is packed twice ({inner.name}, and then {program})", f"Unpack it: {command}")
    try:
        refuse_foreign(path, head)
    except ImageError as error:
        name = error.details.partition("It is ")[2].rstrip(".")
        raise _foreign(path, f"{name}, packed ({program})", f"Unpack it first: {command}") from None


def _word(path: Path) -> str:
    """Return a path as a shell takes it."""
    return shlex.quote(str(path))


def _foreign(path: Path, name: str, advice: str) -> ImageError:
    return ImageError(f"{path} cannot become an image.", details=f"It is {name}.", resolution=advice)


def _partitioned(path: Path, head: bytes, stream: BinaryIO | None) -> ImageError:
    table = table_of(head, stream)
    disk = f"a disk with a partition table ({table.name})"
    chosen = likely_root(table, stream)
    if chosen is None:
        return _foreign(path, f"{disk} and no Linux partition", _FILES)
    name = f"{disk}; its root is most likely partition {chosen.number}"
    inside = b"" if stream is None else beginning_of(stream, chosen, table.sector, HEAD_BYTES)
    if stream is not None and not is_ext4(inside):
        held = format_of(inside)
        return _foreign(path, f"{name} (it holds no ext4{f', but {held.name}' if held else ''})", _FILES)
    return _foreign(
        path,
        name,
        f"Take the partition out: dd if={_word(path)} of=root.ext4 bs={table.sector} skip={chosen.start}"
        f" count={chosen.sectors} conv=sparse; then: vmm image import root.ext4 --name NAME",
    )
