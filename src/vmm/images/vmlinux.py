"""From a kernel as distributions ship it to the uncompressed ELF that engines boot."""

import gzip
import lzma
import platform
import struct
import zlib
from pathlib import Path

from vmm.errors import HostError, ImageError
from vmm.host import files, process

# No kernel comes near this; a payload that expands further is a bomb.
MOST_BYTES = 512 * 1024 * 1024
_READ_MOST = 256 * 1024 * 1024
_ELF_MACHINES = {"x86_64": 62, "aarch64": 183}  # EM_X86_64, EM_AARCH64 (elf.h)
# The arm64 boot header's magic at offset 56 (the kernel's Documentation/arch/arm64/booting).
_ARM64_MAGIC = b"ARM\x64"
_LZ4_LEGACY = b"\x02\x21\x4c\x18"
_ZSTD = b"\x28\xb5\x2f\xfd"
_XZ = b"\xfd7zXZ\0"
_GZIP = b"\x1f\x8b"


def extract_vmlinux(kernel: Path, out: Path, *, staging: Path) -> None:
    """Write the uncompressed kernel in `kernel` (vmlinux, vmlinuz or bzImage) to `out`.

    Raises:
        ImageError: it is no kernel, one of another architecture, or packed in a way that is not known.
        HostError: lz4 or zstd is needed and missing.
    """
    try:
        with kernel.open("rb") as stream:
            data = stream.read(_READ_MOST)
    except OSError as error:
        raise ImageError(
            f"The kernel {kernel} cannot be read.", details=str(error), resolution="Check the path, then try again."
        ) from error
    image = data if _is_bootable(data) else _unpacked(kernel, _payload(kernel, data), staging)
    _check(kernel, image)
    files.write_atomic(out, image)


def _is_bootable(data: bytes) -> bool:
    return data[:4] == b"\x7fELF" or data[56:60] == _ARM64_MAGIC


def _payload(kernel: Path, data: bytes) -> bytes:
    """Return the compressed kernel inside a bzImage: its setup header says where it lies (boot protocol 2.08)."""
    if data[:2] == _GZIP:  # an arm64 vmlinuz is nothing but a compressed Image
        return data
    if len(data) < 0x260 or data[0x202:0x206] != b"HdrS":
        raise ImageError(
            f"{kernel} is not a kernel.",
            details=f"It is neither an ELF vmlinux nor a bzImage; it begins with {data[:8].hex(' ') or 'nothing'}.",
            resolution="Give a vmlinux or a vmlinuz, such as /boot/vmlinuz-$(uname -r).",
        )
    sectors = data[0x1F1] or 4
    offset, length = struct.unpack_from("<II", data, 0x248)
    start = (sectors + 1) * 512 + offset
    payload = data[start : start + length]
    if length == 0 or len(payload) < length:
        raise ImageError(
            f"The kernel {kernel} is cut off.",
            details=f"Its header promises {length} bytes at {start}; the file ends at {len(data)}.",
            resolution="Fetch it again.",
        )
    return payload


def _unpacked(kernel: Path, payload: bytes, staging: Path) -> bytes:
    try:
        if payload.startswith(_GZIP):
            return zlib.decompressobj(zlib.MAX_WBITS | 16).decompress(payload, MOST_BYTES)
        if payload.startswith(_XZ):
            return lzma.LZMADecompressor(memlimit=MOST_BYTES).decompress(payload, MOST_BYTES)
    except (zlib.error, lzma.LZMAError, gzip.BadGzipFile) as error:
        raise ImageError(
            f"The kernel {kernel} cannot be unpacked.", details=str(error), resolution="Fetch it again."
        ) from error
    if payload.startswith(_LZ4_LEGACY):
        # The kernel's build appends the unpacked size, which lz4 takes for the head of another block.
        return _by_program(["lz4", "-q", "-d", "-c"], payload[:-4], staging, package="lz4")
    if payload.startswith(_ZSTD):
        return _by_program(["zstd", "-q", "-d", "-c"], payload, staging, package="zstd")
    raise ImageError(
        f"The kernel {kernel} is packed in a way that vmm does not know.",
        details=f"Its payload begins with {payload[:6].hex(' ')}; gzip, xz, lz4 and zstd are known.",
        resolution="Give an uncompressed vmlinux (the kernel's scripts/extract-vmlinux makes one).",
    )


def _by_program(argv: list[str], payload: bytes, staging: Path, *, package: str) -> bytes:
    packed, plain = staging / "payload", staging / "plain"
    packed.write_bytes(payload)
    with plain.open("wb") as out:
        try:
            done = process.run([*argv, str(packed)], stdout=out, check=False, timeout_s=120)
        except HostError as error:
            fix = f"sudo apt-get install {package}"
            raise HostError(error.brief, details=error.details, resolution=fix) from error
    size = plain.stat().st_size
    # What follows the payload's end may upset the program after it has written all: the ELF check has the last word.
    if size == 0 or size > MOST_BYTES:
        raise ImageError(
            "The kernel cannot be unpacked.",
            details=done.words if size == 0 else f"It expands to {size} bytes.",
            resolution="Fetch it again.",
        )
    return plain.read_bytes()


def _check(kernel: Path, image: bytes) -> None:
    arch = platform.machine()
    if arch == "aarch64" and image[56:60] == _ARM64_MAGIC:
        return
    if image[:4] != b"\x7fELF" or len(image) < 64:
        raise ImageError(
            f"{kernel} holds no kernel that an engine can boot.",
            details=f"It unpacks to {len(image)} bytes that are no ELF file.",
            resolution="Give the kernel of this host's architecture as vmlinux or vmlinuz.",
        )
    machine = struct.unpack_from("<H", image, 18)[0]
    if image[4] != 2 or machine != _ELF_MACHINES.get(arch):
        raise ImageError(
            f"The kernel {kernel} is for another machine than this.",
            details=f"It is a {64 if image[4] == 2 else 32}-bit ELF for machine {machine}; this host is {arch}.",
            resolution=f"Give a 64-bit kernel for {arch}.",
        )
