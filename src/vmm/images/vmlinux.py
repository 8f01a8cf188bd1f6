"""From a kernel as distributions ship it to the uncompressed ELF that engines boot."""

import os
import platform
import struct
from pathlib import Path
from typing import BinaryIO

from vmm.errors import HostError, ImageError
from vmm.host.reading import open_plain
from vmm.images.packed import packing_of, unpacked

# No kernel comes near this; what is larger, or expands further, is none.
MOST_BYTES = 512 * 1024 * 1024
_CHUNK = 1024 * 1024
_HEAD_BYTES = 4096
_ELF_MACHINES = {"x86_64": 62, "aarch64": 183}  # EM_X86_64, EM_AARCH64 (elf.h)
# The arm64 boot header's magic at offset 56 (the kernel's Documentation/arch/arm64/booting).
_ARM64_MAGIC = b"ARM\x64"
_GZIP = b"\x1f\x8b"


def extract_vmlinux(kernel: Path, out: Path, *, staging: Path) -> None:
    """Write the uncompressed kernel in `kernel` (vmlinux, vmlinuz or bzImage) to `out`, and flush it to disk.

    Raises:
        ImageError: it is no kernel, one of another architecture, too large, or packed in a way that is not known.
        HostError: the program that it is packed with is missing, or there is no room.
    """
    packed = staging / "payload"
    try:
        with os.fdopen(open_plain(kernel), "rb") as stream:
            if (size := os.fstat(stream.fileno()).st_size) > MOST_BYTES:
                raise _too_large(kernel, f"It has {size} bytes")
            head = stream.read(_HEAD_BYTES)
            if _is_bootable(head):
                stream.seek(0)
                _copy(stream, out, kernel, most=MOST_BYTES)
            else:
                _cut_out(stream, packed, kernel, head)
    except OSError as error:
        raise ImageError(
            f"The kernel {kernel} cannot be read.", details=str(error), resolution="Check the path, then try again."
        ) from error
    if packed.exists():
        _unpack(packed, out, kernel)
        packed.unlink()
    _check(kernel, out)


def _is_bootable(head: bytes) -> bool:
    return head[:4] == b"\x7fELF" or head[56:60] == _ARM64_MAGIC


def _cut_out(stream: BinaryIO, packed: Path, kernel: Path, head: bytes) -> None:
    """Write what is packed inside a bzImage to `packed`: its setup header says where it lies (boot protocol 2.08)."""
    start, length = 0, os.fstat(stream.fileno()).st_size
    if head[:2] != _GZIP:  # an arm64 vmlinuz is nothing but a compressed Image
        if len(head) < 0x260 or head[0x202:0x206] != b"HdrS":
            raise _no_kernel(
                kernel, f"It is neither an ELF vmlinux nor a bzImage; it begins with {head[:8].hex(' ') or 'nothing'}"
            )
        offset, found = struct.unpack_from("<II", head, 0x248)
        start = ((head[0x1F1] or 4) + 1) * 512 + offset
        if found < 8 or start + found > length:
            raise ImageError(
                f"The kernel {kernel} is cut off.",
                details=f"Its header promises {found} bytes at {start}; the file ends at {length}.",
                resolution="Fetch it again.",
            )
        length = found
    stream.seek(start)
    _copy(stream, packed, kernel, most=MOST_BYTES, length=length)


def _unpack(packed: Path, out: Path, kernel: Path) -> None:
    """Unpack to what the last four bytes promise: every x86 kernel's build appends its plain size, as gzip does."""
    with packed.open("r+b") as stream:
        packing = packing_of(stream.read(8))
        stream.seek(-4, os.SEEK_END)
        promised = int.from_bytes(stream.read(4), "little")
        if packing is None:
            stream.seek(0)
            raise ImageError(
                f"The kernel {kernel} is packed in a way that vmm does not know.",
                details=f"Its payload begins with {stream.read(6).hex(' ')}; gzip, xz, bzip2, lz4 and zstd are known.",
                resolution="Give an uncompressed vmlinux (the kernel's scripts/extract-vmlinux makes one).",
            )
        if packing.name != "gzip":  # which has the size in itself; to others it is rubbish that follows their end
            stream.truncate(stream.seek(-4, os.SEEK_END))
    if promised > MOST_BYTES:
        raise _too_large(kernel, f"It would expand to {promised} bytes")
    with unpacked(packed, packing) as plain:
        written = _copy(plain, out, kernel, most=promised)
        if written != promised:
            raise ImageError(
                f"The kernel {kernel} cannot be unpacked.",
                details=f"It expands to {written} bytes, and promises {promised}.",
                resolution="Fetch it again.",
            )


def _copy(source: BinaryIO, out: Path, kernel: Path, *, most: int, length: int | None = None) -> int:
    """Copy what comes, or `length` bytes of it; refuse more than `most`. What is written is on disk when this ends."""
    written = 0
    try:
        with out.open("xb") as target:
            while data := source.read(min(_CHUNK, _CHUNK if length is None else length - written)):
                written += len(data)
                if written > most:
                    raise _too_large(kernel, f"It has more than the {most} bytes that it may have")
                target.write(data)
            target.flush()
            os.fchmod(target.fileno(), 0o644)
            os.fsync(target.fileno())
    except OSError as error:
        raise HostError(
            f"The kernel {kernel} cannot be copied.",
            details=str(error),
            resolution="Make room on the file system of the data directory (df -h), then try again.",
        ) from error
    return written


def _check(kernel: Path, out: Path) -> None:
    arch, size = platform.machine(), out.stat().st_size
    with out.open("rb") as stream:
        head = stream.read(64)
    if arch == "aarch64" and head[56:60] == _ARM64_MAGIC:
        return
    if head[:4] != b"\x7fELF" or len(head) < 64:
        raise ImageError(
            f"{kernel} holds no kernel that an engine can boot.",
            details=f"It unpacks to {size} bytes that are no ELF file.",
            resolution="Give the kernel of this host's architecture as vmlinux or vmlinuz.",
        )
    machine = struct.unpack_from("<H", head, 18)[0]
    if head[4] != 2 or machine != _ELF_MACHINES.get(arch):
        raise ImageError(
            f"The kernel {kernel} is for another machine than this.",
            details=f"It is a {64 if head[4] == 2 else 32}-bit ELF for machine {machine}; this host is {arch}.",
            resolution=f"Give a 64-bit kernel for {arch}.",
        )


def _no_kernel(kernel: Path, why: str) -> ImageError:
    return ImageError(
        f"{kernel} is not a kernel.",
        details=f"{why}.",
        resolution="Give a vmlinux or a vmlinuz, such as /boot/vmlinuz-$(uname -r).",
    )


def _too_large(kernel: Path, why: str) -> ImageError:
    return ImageError(
        f"The kernel {kernel} is refused.",
        details=f"{why}; the largest that vmm takes has {MOST_BYTES >> 20} MiB.",
        resolution="Check where it comes from; strip a kernel of its debugging information (strip -g vmlinux).",
    )
