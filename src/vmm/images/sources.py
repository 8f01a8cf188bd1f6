"""Images from what people have: an ext4 file, a directory, a tar. Nothing is mounted, nothing gets out."""

import errno
import os
import stat
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path

from vmm.errors import ImageError, UsageError
from vmm.host import files, process
from vmm.host.reading import open_plain
from vmm.images.ext4 import is_ext4, read_superblock
from vmm.images.packed import Packing, packing_of, unpacked
from vmm.images.recognize import HEAD_BYTES, refuse_foreign, refuse_packed
from vmm.images.tarball import is_header, shown
from vmm.images.trees import root_of
from vmm.images.unpack import LARGEST_BYTES, MIB, unpack
from vmm.model.progress import Progress
from vmm.model.sizes import DISK_MIB
from vmm.model.value import Value

_CONVERT_S = 1800.0
_BLOCK, _INODE = 4096, 256
# One inode for so many bytes: what mke2fs.conf says for file systems below 512 MiB, and for larger ones.
_INODE_RATIOS = (4096, 16384)


class Kind(StrEnum):
    EXT4 = "ext4"
    DIRECTORY = "directory"
    TAR = "tar"


def kind_of(path: Path) -> Kind:
    """Return what `path` is; raise ImageError when it is nothing that can become an image."""
    if path.is_dir():
        return Kind.DIRECTORY
    head = _head(path)
    if is_ext4(head):
        return Kind.EXT4
    if head[257:262] == b"ustar" or is_header(head):
        return Kind.TAR
    if (packing := packing_of(head)) is not None:
        refuse_packed(path, _packed_head(path, packing), program=packing.name)
        return Kind.TAR
    with os.fdopen(open_plain(path), "rb") as stream:
        refuse_foreign(path, head, stream)
    raise ImageError(
        f"{path} cannot become an image.",
        details=f"It is no ext4 file system, no directory and no tar; it begins with {head[:8].hex(' ') or 'nothing'}.",
        resolution="Give an ext4 image without a partition table, a directory, or a tar (.gz, .xz, .bz2, .zst).",
    )


def _head(path: Path) -> bytes:
    try:
        # A FIFO would keep us waiting for whoever writes to it; a device has no end.
        with os.fdopen(open_plain(path), "rb") as stream:
            return stream.read(HEAD_BYTES)
    except OSError as error:
        raise ImageError(
            f"{path} cannot be read.",
            details=str(error),
            resolution="Give the path of a plain file, or of a directory, that is there.",
        ) from error


class _HeadReadError(ImageError):
    """The beginning of what is packed has been read."""


def _packed_head(path: Path, packing: Packing) -> bytes:
    """Return the beginning of what is packed in a file; empty when it cannot be unpacked, which is told later."""
    head = b""
    try:
        with unpacked(path, packing) as stream:
            head = stream.read(HEAD_BYTES)
            raise _HeadReadError("", details="", resolution="")
    except ImageError:
        return head


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
                files.copy_disk(path, out, size_mib=0)
        case Kind.DIRECTORY:
            root = root_of(path, name=str(path), progress=progress)
            _make(root, out, size_mib=size_mib, progress=progress)
        case Kind.TAR:
            tree = work / "tree"
            with progress.step(f"Unpacking {path.name}"):
                head = _head(path)
                # A plain one's first file may be called as a packed one begins.
                unpack(path, None if is_header(head) else packing_of(head), tree, progress=progress)
            root = root_of(tree, name=str(path), progress=progress)
            _make(root, out, size_mib=size_mib, progress=progress)


def _make(root: Path, out: Path, *, size_mib: int | None, progress: Progress) -> None:
    with progress.step("Making the file system"):
        whiteout = make_ext4(root, out, size_mib=size_mib).whiteout
    if whiteout:
        progress.note(
            f"It is one layer of a container's image, and not the whole root: {shown(os.fsencode(whiteout))} says that"
            " a file of a layer below is gone. Import what `docker export` writes of a container."
        )


def make_ext4(tree: Path, out: Path, *, size_mib: int | None) -> "Content":
    """Make an ext4 file system with the content of `tree`, and return that; its size is `size_mib`, or what it needs.

    Raises:
        UsageError: the content does not fit into `size_mib`.
        ImageError: it cannot be read, or is larger than any disk.
    """
    content = _content(tree)
    used = content.stored + content.files * _INODE
    # An eighth and 64 MiB more: journal, the file system's own tables, and room to live in.
    needed = max(256, (used + used // 8) // MIB + 64)
    if size_mib is not None and size_mib * MIB < used:
        raise UsageError(
            f"The content of {tree.name!r} does not fit into {size_mib} MiB.",
            details=f"It has {used // MIB} MiB.",
            resolution=f"Give --size {needed} or more, or leave --size out.",
        )
    size = size_mib or needed
    # -m 1: five per cent kept back for root makes no sense where everyone is root.
    options = ["-q", "-F", "-t", "ext4", "-m", "1", *_inodes(content.files, size * MIB)]
    # Absolute: a name is no option then, and `-` is a directory and not what comes in (mke2fs reads a tar from there).
    process.run(["mke2fs", *options, "-d", str(tree.absolute()), str(out.absolute()), f"{size}M"], timeout_s=_CONVERT_S)
    return content


def _inodes(files_there: int, size: int) -> list[str]:
    """Return the option for more inodes than mke2fs would make, where many small files need them."""
    wanted = files_there + files_there // 4 + 1024
    small, large = _INODE_RATIOS
    usual = size // (small if size < 512 * MIB else large)
    return ["-N", str(wanted)] if wanted > usual else []


class Content(Value):
    """What a tree holds: bytes in blocks (holes are none), and files of any kind.

    `whiteout` is one of the marks for a file that is gone, which a layer of a container's image has; empty for none.
    """

    stored: int
    files: int
    whiteout: str = ""


def _content(tree: Path) -> Content:
    """Return what lies below `tree`; links are not followed, and a file of several names counts once."""
    stored = count = size = 0
    whiteout = ""
    seen: set[tuple[int, int]] = set()
    try:
        for entry in _walk(tree):
            found = entry.stat(follow_symlinks=False)
            count += 1
            if _is_whiteout(entry.name, found):
                whiteout = os.path.relpath(entry.path, tree)
            if found.st_nlink > 1 and not entry.is_dir(follow_symlinks=False):
                if (found.st_dev, found.st_ino) in seen:
                    continue
                seen.add((found.st_dev, found.st_ino))
            size += found.st_size
            stored += -(-_data_bytes(entry, found) // _BLOCK) * _BLOCK
    except OSError as error:
        raise ImageError(
            f"{tree} cannot be read.", details=str(error), resolution="Check what it names, then try again."
        ) from error
    if size >= LARGEST_BYTES:
        raise ImageError(
            f"The content of {tree.name!r} is larger than any disk.",
            details=f"Its files have {size // MIB} MiB, holes included; the largest disk has {DISK_MIB[1]} MiB.",
            resolution="Leave out what a root file system does not need.",
        )
    return Content(stored=stored, files=count, whiteout=whiteout)


def _is_whiteout(name: str, found: os.stat_result) -> bool:
    """Whether it is a mark of an image's layer (OCI's, "Whiteouts"), or the kernel's own (overlayfs: a device 0, 0)."""
    return name.startswith(".wh.") or (stat.S_ISCHR(found.st_mode) and found.st_rdev == 0)


def _walk(top: Path) -> Iterator[os.DirEntry[str]]:
    """Give everything below a directory. Without recursion: a tree can be deeper than Python's stack."""
    waiting = [str(top)]
    while waiting:
        with os.scandir(waiting.pop()) as entries:
            for entry in entries:
                yield entry
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(entry.path)


def _data_bytes(entry: os.DirEntry[str], found: os.stat_result) -> int:
    """Return the bytes of a file that are no holes; a directory counts as a block."""
    if entry.is_dir(follow_symlinks=False):
        return _BLOCK
    if not entry.is_file(follow_symlinks=False) or found.st_blocks * 512 >= found.st_size:
        return found.st_size
    fd = os.open(entry.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        return _data_in(fd, found.st_size)
    finally:
        os.close(fd)


def _data_in(fd: int, size: int) -> int:
    total = end = 0
    while end < size:
        try:
            start = os.lseek(fd, end, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:  # only a hole is left
                break
            raise
        end = os.lseek(fd, start, os.SEEK_HOLE)
        total += end - start
    return total
