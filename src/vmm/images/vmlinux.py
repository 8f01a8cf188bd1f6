"""From a kernel as distributions ship it to the uncompressed ELF that engines boot."""

import os
import platform
import shlex
import struct
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from vmm.errors import HostError, ImageError
from vmm.host.reading import open_plain
from vmm.images.packed import packing_of, unpacked
from vmm.images.recognize import format_of

# No kernel comes near this; what is larger, or expands further, is none.
MOST_BYTES = 512 * 1024 * 1024
_CHUNK = 1024 * 1024
_HEAD_BYTES = 4096
_ELF_MACHINES = {"x86_64": 62, "aarch64": 183}  # EM_X86_64, EM_AARCH64 (elf.h)
# The arm64 boot header's magic at offset 56 (the kernel's Documentation/arch/arm64/booting).
_ARM64_MAGIC = b"ARM\x64"
_GIVE = "Give a vmlinux or a vmlinuz, such as /boot/vmlinuz-$(uname -r)."
# Of an ELF file (elf.h): what can be linked, a program of any address (which an x86 kernel is not), a dump of memory.
_NO_KERNELS = {1: "an object file, or a module of a kernel", 3: "a program, or a library", 4: "a dump of memory"}
_Found = Callable[[bytes], bool]
# Other shapes of kernels: how the first 4 KiB tell, what it is, what to do.
_OTHERS: tuple[tuple[_Found, str, str], ...] = (
    (
        lambda head: head[:2] == b"MZ" and b".linux\0\0" in head,
        "It is a unified kernel image (UKI): a program for EFI with a kernel and an initramfs in it",
        "Take the kernel out: objcopy -O binary --only-section=.linux {path} vmlinuz; then import vmlinuz",
    ),
    (
        lambda head: head[:2] == b"MZ" and head[4:8] == b"zimg",
        "It is a compressed kernel that only EFI unpacks (vmlinuz.efi)",
        "Give the kernel's Image, uncompressed, or its vmlinux.",
    ),
    (
        lambda head: head[:4] == b"\x27\x05\x19\x56",
        "It is an image for U-Boot (uImage)",
        "Give the kernel's vmlinux or Image.",
    ),
    (lambda head: head[:8] == b"ANDROID!", "It is a boot image of Android", "Give the kernel that is in it."),
)
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
            raise _foreign(kernel, head)
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
    if head[56:60] == _ARM64_MAGIC:
        raise ImageError(
            f"The kernel {kernel} is for another machine than this.",
            details=f"It is an Image for arm64; this host is {arch}.",
            resolution=f"Give a 64-bit kernel for {arch}.",
        )
    if head[:4] != b"\x7fELF" or len(head) < 64:
        raise ImageError(
            f"{kernel} holds no kernel that an engine can boot.",
            details=f"It unpacks to {size} bytes that are no ELF file.",
            resolution="Give the kernel of this host's architecture as vmlinux or vmlinuz.",
        )
    kind, machine = struct.unpack_from("<HH", head, 16)
    if head[4] != 2 or machine != _ELF_MACHINES.get(arch):
        raise ImageError(
            f"The kernel {kernel} is for another machine than this.",
            details=f"It is a {64 if head[4] == 2 else 32}-bit ELF for machine {machine}; this host is {arch}.",
            resolution=f"Give a 64-bit kernel for {arch}.",
        )
    if kind in _NO_KERNELS and (arch, kind) != ("aarch64", 3):
        raise _no_kernel(kernel, f"It is {_NO_KERNELS[kind]}")


def _foreign(kernel: Path, head: bytes) -> ImageError:
    """Return the error for a file that is none of the kinds that are taken, by its name where that is known."""
    word = shlex.quote(str(kernel))
    for found, why, advice in _OTHERS:
        if found(head):
            return _no_kernel(kernel, why, advice.format(path=word))
    if (packing := packing_of(head)) is not None:
        advice = f"Unpack it, and import what comes if that is a kernel: {packing.name} -d -c {word} >unpacked"
        return _no_kernel(kernel, f"It is a file that is packed ({packing.name}): a kernel, or an initramfs", advice)
    known, begins = format_of(head), head[:8].hex(" ") or "nothing"
    neither = f"It is neither an ELF vmlinux nor a bzImage; it begins with {begins}"
    return _no_kernel(kernel, f"It is {known.name}" if known else neither)


def _no_kernel(kernel: Path, why: str, advice: str = _GIVE) -> ImageError:
    return ImageError(f"{kernel} is not a kernel.", details=f"{why}.", resolution=advice)


def _too_large(kernel: Path, why: str) -> ImageError:
    return ImageError(
        f"The kernel {kernel} is refused.",
        details=f"{why}; the largest that vmm takes has {MOST_BYTES >> 20} MiB.",
        resolution="Check where it comes from; strip a kernel of its debugging information (strip -g vmlinux).",
    )
