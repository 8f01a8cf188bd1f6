"""Images from what people have: an ext4 file, a directory, a tar. Nothing is mounted, nothing gets out."""

import os
import shutil
import tarfile
from enum import StrEnum
from pathlib import Path

from vmm.errors import ImageError, UsageError
from vmm.host import files, process
from vmm.images.ext4 import is_ext4, read_superblock
from vmm.model.progress import Progress

MIB = 1024 * 1024
# A root file system of a development machine has some 50,000 files.
MOST_ENTRIES = 2_000_000
_COMPRESSED = {b"\x1f\x8b": "gzip", b"\xfd7zXZ\0": "xz", b"BZh": "bzip2", b"\x28\xb5\x2f\xfd": "zstd"}
_CONVERT_S = 1800.0


class Kind(StrEnum):
    EXT4 = "ext4"
    DIRECTORY = "directory"
    TAR = "tar"


def kind_of(path: Path) -> Kind:
    """Return what `path` is; raise ImageError when it is nothing that can become an image."""
    if path.is_dir():
        return Kind.DIRECTORY
    try:
        with path.open("rb") as stream:
            head = stream.read(4096)
    except OSError as error:
        raise ImageError(
            f"{path} cannot be read.", details=str(error), resolution="Check the path, then try again."
        ) from error
    if is_ext4(head):
        return Kind.EXT4
    if head[257:262] == b"ustar" or _compression(head):
        return Kind.TAR
    raise ImageError(
        f"{path} cannot become an image.",
        details=f"It is no ext4 file system, no directory and no tar; it begins with {head[:8].hex(' ') or 'nothing'}.",
        resolution="Give an ext4 image without a partition table, a directory, or a tar (.gz, .xz, .bz2, .zst).",
    )


def convert(path: Path, kind: Kind, out: Path, *, work: Path, size_mib: int | None, progress: Progress) -> None:
    """Write the image of `path` to `out`; what is needed on the way lies in `work`."""
    match kind:
        case Kind.EXT4:
            if size_mib is not None:
                raise UsageError(
                    "An ext4 image keeps its size when it is imported.",
                    details="--size is for directories and tars.",
                    resolution="Leave --size out; give a machine a larger disk with --disk.",
                )
            read_superblock(path)
            with progress.step(f"Copying {path.name}"):
                files.copy_disk(path, out, size_mib=0, mode=0o644)
        case Kind.DIRECTORY:
            with progress.step("Making the file system"):
                make_ext4(path, out, size_mib=size_mib)
        case Kind.TAR:
            tree = work / "tree"
            with progress.step(f"Unpacking {path.name}"):
                unpack(path, tree)
            with progress.step("Making the file system"):
                make_ext4(tree, out, size_mib=size_mib)


def make_ext4(tree: Path, out: Path, *, size_mib: int | None) -> None:
    """Make an ext4 file system with the content of `tree`; its size is `size_mib`, or what the content needs.

    Raises:
        UsageError: the content does not fit into `size_mib`.
    """
    used = _content_bytes(tree)
    # An eighth and 64 MiB more: inodes, journal, and room to live in.
    needed = max(256, (used + used // 8) // MIB + 64)
    if size_mib is not None and size_mib * MIB < used:
        raise UsageError(
            f"The content of {tree.name!r} does not fit into {size_mib} MiB.",
            details=f"It has {used // MIB} MiB.",
            resolution=f"Give --size {needed} or more, or leave --size out.",
        )
    size = size_mib or needed
    # -m 1: five per cent kept back for root makes no sense where everyone is root.
    process.run(
        ["mke2fs", "-q", "-F", "-t", "ext4", "-m", "1", "-d", str(tree), str(out), f"{size}M"], timeout_s=_CONVERT_S
    )


def unpack(path: Path, tree: Path) -> None:
    """Unpack a tar into the new directory `tree`; what would lead out of it is refused before anything is written."""
    with path.open("rb") as stream:
        zstd = _compression(stream.read(8)) == "zstd"
    plain = path
    files.make_dir(tree, mode=0o755)
    try:
        if zstd:
            plain = tree.with_name("plain.tar")
            process.run(["zstd", "-q", "-d", "-f", str(path), "-o", str(plain)], timeout_s=_CONVERT_S)
        _inspect(plain, room=shutil.disk_usage(tree).free)
        # GNU tar puts off links that lead outside until all is written, and strips leading slashes: without -P nothing
        # is written through a link that the archive itself made. Devices are made by the guest's kernel, not by us.
        argv = ["tar", "-xpf", str(plain), "-C", str(tree), "--numeric-owner", "--xattrs", "--xattrs-include=*"]
        process.run([*argv, "--exclude=./dev/*", "--exclude=dev/*"], timeout_s=_CONVERT_S)
    finally:
        if zstd:
            plain.unlink(missing_ok=True)


def _inspect(path: Path, *, room: int) -> None:
    """Read a tar's list before it is unpacked: it must stay inside, and must fit."""
    total = entries = 0
    try:
        with tarfile.open(path, mode="r|*") as archive:
            for member in archive:
                entries += 1
                total += member.size if member.isreg() else 0
                _check_member(path, member, entries, total, room)
    except (tarfile.TarError, EOFError, OSError) as error:
        raise ImageError(
            f"The archive {path.name} cannot be read.", details=str(error), resolution="Fetch or make it again."
        ) from error
    if entries == 0:
        raise ImageError(
            f"The archive {path.name} is empty.",
            details="It has no entry.",
            resolution="Give a tar of a root file system.",
        )


def _check_member(path: Path, member: tarfile.TarInfo, entries: int, total: int, room: int) -> None:
    problem = ""
    parts = Path(member.name).parts
    if ".." in parts or (member.islnk() and ".." in Path(member.linkname).parts):
        problem = f"The entry {member.name!r} leads out of the archive."
    elif entries > MOST_ENTRIES:
        problem = f"It has more than {MOST_ENTRIES} entries."
    elif total > room:
        problem = f"Its content has more than the {room // MIB} MiB that are free here."
    if problem:
        raise ImageError(
            f"The archive {path.name} is refused.",
            details=problem,
            resolution="Unpack and look at it where it can do no harm, or make room.",
        )


def _compression(head: bytes) -> str | None:
    return next((name for magic, name in _COMPRESSED.items() if head.startswith(magic)), None)


def _content_bytes(tree: Path) -> int:
    """Return what the files below `tree` take in blocks of 4 KiB, links not followed."""
    total = 0
    for directory, names, found in os.walk(tree):
        total += 4096 * (len(names) + 1)
        for name in found:
            total += -(-(Path(directory) / name).lstat().st_size // 4096) * 4096
    return total
