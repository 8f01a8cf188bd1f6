"""What a file is that people take for a root file system, and is none: each with its name, and what to do with it."""

import shlex
import struct
from pathlib import Path
from typing import BinaryIO

from vmm.errors import ImageError
from vmm.images.ext4 import is_ext4
from vmm.model.value import Value

# As far in as the last of what is looked for: btrfs keeps its name at 64 KiB and 64 bytes.
HEAD_BYTES = 68 * 1024
_CONVERT = "Convert it: qemu-img convert -O raw {path} disk.raw; then: vmm image import disk.raw --name NAME"
_FILES = "Copy its files into a directory or a tar, and import that."
_UNPACK = "Unpack it, and import the directory with the root file system."


class Format(Value):
    """A format that is no root file system: where its mark is, what it is called, and what to do."""

    offset: int
    magic: bytes
    name: str
    advice: str = _FILES


_FORMATS = (
    Format(offset=0, magic=b"QFI\xfb", name="a qcow2 disk image", advice=_CONVERT),
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
    Format(offset=0, magic=b"LUKS\xba\xbe", name="an encrypted disk (LUKS)"),
    Format(offset=512, magic=b"LABELONE", name="a physical volume of LVM"),
    Format(offset=4086, magic=b"SWAPSPACE2", name="a swap area", advice="Give the root file system's own file."),
    Format(
        offset=0,
        magic=b"070701",
        name="a cpio archive: an initramfs",
        advice="Unpack it: cpio -idm <{path}; import the directory. A machine has a root file system and no initramfs.",
    ),
    Format(offset=0, magic=b"PK\x03\x04", name="a zip archive", advice=_UNPACK),
    Format(offset=0, magic=b"7z\xbc\xaf", name="a 7z archive", advice=_UNPACK),
    Format(offset=0, magic=b"!<arch>", name="a Debian package or an archive of ar", advice=_UNPACK),
    Format(offset=0, magic=b"\xed\xab\xee\xdb", name="an RPM package", advice=_UNPACK),
    Format(
        offset=0,
        magic=b"\x7fELF",
        name="a program, or a kernel",
        advice="A kernel is imported with: vmm kernel import {path} --name NAME",
    ),
)
# What GPT calls a Linux file system, and the root of x86-64 and of arm64 (the Discoverable Partitions Specification).
_GPT_LINUX = ("0fc63daf-8483-4772-8e79-3d69d8477de4", "4f68bce3-e8cd-4db1-96e7-fbcaf984b709",
              "b921b045-1df0-41c3-af44-4c6f280d3fae")  # fmt: skip
_MBR_LINUX = 0x83


def refuse_foreign(path: Path, head: bytes, stream: BinaryIO | None = None) -> None:
    """Raise ImageError when `head`, the beginning of a file, is that of something known that is no root file system.

    `stream` is the file itself, where it is no packed one: a partition table is then read.
    """
    for known in _FORMATS:
        if head[known.offset : known.offset + len(known.magic)] == known.magic:
            raise _foreign(path, known.name, known.advice.format(path=_word(path)))
    if head[1080:1082] == b"\x53\xef" and not is_ext4(head):
        advice = f"Make it one: tune2fs -O extents {_word(path)}; e2fsck -fy {_word(path)}"
        raise _foreign(path, "an ext2 or ext3 file system, which is no ext4 yet", advice)
    if head[512:520] == b"EFI PART" or (head[510:512] == b"\x55\xaa" and not is_ext4(head)):
        raise _partitioned(path, head, stream)


def refuse_packed(path: Path, head: bytes, *, program: str) -> None:
    """Raise ImageError when what is packed in `path`, and begins with `head`, is no tar but something else known."""
    command = f"{program} -d -c {_word(path)} >unpacked"
    if is_ext4(head):
        raise _foreign(
            path, f"an ext4 file system that is packed ({program})", f"Unpack it: {command}; import unpacked"
        )
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


class _Partition(Value):
    number: int
    start: int
    sectors: int
    is_linux: bool


def _partitioned(path: Path, head: bytes, stream: BinaryIO | None) -> ImageError:
    table = "GPT" if head[512:520] == b"EFI PART" else "MBR"
    found = _gpt(head) if table == "GPT" else _mbr(head)
    roots = sorted((part for part in found if part.is_linux), key=lambda part: -part.sectors)
    if not roots:
        return _foreign(path, f"a disk with a partition table ({table}) and no Linux partition", _FILES)
    chosen = roots[0]
    holds = "" if stream is None or _holds_ext4(stream, chosen) else " (it holds no ext4)"
    return _foreign(
        path,
        f"a disk with a partition table ({table}); its root is most likely partition {chosen.number}{holds}",
        f"Take the partition out: dd if={_word(path)} of=root.ext4 bs=512 skip={chosen.start} count={chosen.sectors}"
        " conv=sparse; then: vmm image import root.ext4 --name NAME",
    )


def _holds_ext4(stream: BinaryIO, part: _Partition) -> bool:
    stream.seek(part.start * 512)
    return is_ext4(stream.read(2048))


def _mbr(head: bytes) -> list[_Partition]:
    found: list[_Partition] = []
    for number in range(4):
        kind = head[446 + 16 * number + 4]
        start, sectors = struct.unpack_from("<II", head, 446 + 16 * number + 8)
        if kind and sectors:
            found.append(_Partition(number=number + 1, start=start, sectors=sectors, is_linux=kind == _MBR_LINUX))
    return found


def _gpt(head: bytes) -> list[_Partition]:
    """Return the partitions of a GPT, as far as its table lies where everyone puts it (UEFI specification, 5.3)."""
    import uuid

    first, count, size = struct.unpack_from("<QII", head, 512 + 72)
    found: list[_Partition] = []
    for number in range(min(count, 128)):
        at = first * 512 + number * size
        if size < 128 or at + 128 > len(head):
            break
        kind = str(uuid.UUID(bytes_le=head[at : at + 16]))
        start, end = struct.unpack_from("<QQ", head, at + 32)
        if any(head[at : at + 16]) and end >= start:
            linux = kind in _GPT_LINUX
            found.append(_Partition(number=number + 1, start=start, sectors=end - start + 1, is_linux=linux))
    return found
