"""An archive's files below a directory, and nowhere else.

Each is made in a directory that was opened step by step from the top, never through a link; so a link that the archive
itself made leads nothing out. Setuid bits and owners are the guest's: the directory lies where only root may enter.
"""

import contextlib
import errno
import os
from collections.abc import Generator
from pathlib import Path
from typing import BinaryIO

from vmm.errors import HostError, ImageError
from vmm.host import files
from vmm.images.packed import Packing, unpacked
from vmm.images.sparse import BadArchive
from vmm.images.tarball import Entry, Kind, TarReader, shown
from vmm.model.progress import Progress
from vmm.model.sizes import DISK_MIB

MIB = 1024 * 1024
# What the largest disk could not hold is not looked at, however little of it is stored.
LARGEST_BYTES = DISK_MIB[1] * MIB
# A root file system of a development machine has some 50,000 files.
MOST_ENTRIES = 1_000_000
# Of what Linux allows (PATH_MAX, 4096) and what programs can stand that go down into directories.
_LONGEST_PATH, _MOST_LEVELS = 3072, 256
# Of the directories' paths, which are kept to the end: a million of 256 bytes, with what a dictionary takes for each.
_MOST_PATHS_BYTES = 256 * MIB
# Left free for the host: a twentieth of the file system, a GiB at most.
_RESERVE_PART, _RESERVE_BYTES = 20, 1024 * MIB
_XATTRS = ("user.", "security.capability", "security.selinux")
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
# What the host did, rather than the archive.
_HOST_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EMFILE, errno.ENFILE, errno.ENOMEM)

_Parts = tuple[bytes, ...]


def unpack(path: Path, packing: Packing | None, tree: Path, *, progress: Progress) -> None:
    """Unpack a tar into the new directory `tree`.

    Raises:
        ImageError: it is no good archive, leads out of `tree`, or has more than there is room for.
        HostError: the host has no room, or lacks the program that it is packed with.
    """
    files.make_dir(tree, mode=0o755)
    with unpacked(path, packing) as stream, _told(path), contextlib.closing(_Tree(tree)) as opened:
        left_out = _fill(opened, stream, room=room_for_tree(tree))
    if left_out:
        progress.note(f"{left_out} device nodes were left out: a guest's kernel makes its own.")


def room_for_tree(directory: Path) -> int:
    """Return the bytes that a tree may take here: half of what is free, for the image will hold all of it again."""
    found = os.statvfs(directory)
    reserve = min(found.f_blocks * found.f_frsize // _RESERVE_PART, _RESERVE_BYTES)
    return max(0, found.f_bavail * found.f_frsize - reserve) // 2


def _fill(tree: "_Tree", stream: BinaryIO, *, room: int) -> int:
    """Make all files; return how many device nodes were left out."""
    reader = TarReader(stream)
    entries = left_out = taken = size = 0
    for entry in reader:
        entries += 1
        # A block at least: the name has to be somewhere.
        taken += max(4096, entry.stored)
        size += entry.size
        _check_amount(entry, entries=entries, taken=taken, size=size, room=room)
        parts = _parts(entry.path)
        if entry.kind is Kind.DEVICE:
            left_out += 1
        elif parts[:1] != (b"dev",) or len(parts) == 1:  # what is in /dev a guest's kernel makes
            tree.make(entry, parts, reader)
    if entries == 0:
        raise BadArchive("It has no entry.")
    tree.set_times()
    return left_out


def _check_amount(entry: Entry, *, entries: int, taken: int, size: int, room: int) -> None:
    if entries > MOST_ENTRIES:
        raise BadArchive(f"It has more than {MOST_ENTRIES} entries.")
    if taken > room:
        raise BadArchive(f"Its content has more than the {room // MIB} MiB that there is room for here.")
    if size >= LARGEST_BYTES:
        raise BadArchive(
            f"With {shown(entry.path)} its files have more than the {DISK_MIB[1]} MiB of the largest disk."
        )


def _parts(path: bytes) -> _Parts:
    """Return a path's steps from the top of the archive; one that leads out of it is refused."""
    parts = tuple(part for part in path.split(b"/") if part not in (b"", b"."))
    if b".." in parts:
        raise BadArchive(f"The entry {shown(path)} leads out of the archive.")
    if len(path) > _LONGEST_PATH or len(parts) > _MOST_LEVELS:
        raise BadArchive(f"The entry {shown(path)} has a path of {len(path)} bytes and {len(parts)} levels.")
    return parts


class _Tree:
    """What has been made so far. The directory that was used last stays open: neighbours come one after another."""

    def __init__(self, root: Path) -> None:
        self._root = os.open(root, _DIRECTORY)
        self._last: tuple[_Parts, int] = ((), os.dup(self._root))
        self._times: dict[bytes, int] = {}
        self._paths_bytes = 0

    def close(self) -> None:
        os.close(self._last[1])
        os.close(self._root)

    def make(self, entry: Entry, parts: _Parts, reader: TarReader) -> None:
        try:
            if entry.kind is Kind.DIRECTORY:
                fd = self._enter(parts)
                _dress(fd, entry)
                self._remember(b"/".join(parts), entry.mtime_ns)
            elif parts:
                self._make_in(self._enter(parts[:-1]), parts[-1], entry, reader)
            else:
                raise BadArchive(f"Its top is a {entry.kind} and no directory.")
        except OSError as error:
            if error.errno in _HOST_ERRORS:
                raise
            raise BadArchive(_refusal(entry, error)) from error

    def set_times(self) -> None:
        """Give directories their times, which every file that was made in them has changed."""
        for path, mtime_ns in self._times.items():
            os.utime(self._enter(_parts(path)), ns=(mtime_ns, mtime_ns))

    def _remember(self, path: bytes, mtime_ns: int) -> None:
        if path not in self._times:
            self._paths_bytes += len(path)
        if self._paths_bytes > _MOST_PATHS_BYTES:
            raise BadArchive(f"The paths of its directories have more than {_MOST_PATHS_BYTES // MIB} MiB.")
        self._times[path] = mtime_ns

    def _enter(self, parts: _Parts) -> int:
        """Return a directory that is opened, and made where it is missing; it stays open until the next is entered."""
        if self._last[0] != parts:
            fd = os.dup(self._root)
            try:
                for part in parts:
                    below = _step(fd, part)
                    os.close(fd)
                    fd = below
            except BaseException:
                os.close(fd)
                raise
            os.close(self._last[1])
            self._last = (parts, fd)
        return self._last[1]

    def _make_in(self, directory: int, name: bytes, entry: Entry, reader: TarReader) -> None:
        # An archive may hold a file more than once: the last is the one that counts.
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name, dir_fd=directory)
        match entry.kind:
            case Kind.HARD_LINK:
                self._link(directory, name, entry)
                return
            case Kind.SYMLINK:
                os.symlink(entry.link, name, dir_fd=directory)
            case Kind.FIFO:
                os.mkfifo(name, 0o600, dir_fd=directory)
                os.chmod(name, entry.mode, dir_fd=directory)
            case _:
                _write(directory, name, entry, reader)
                return
        os.chown(name, entry.uid, entry.gid, dir_fd=directory, follow_symlinks=False)
        os.utime(name, ns=(entry.mtime_ns, entry.mtime_ns), dir_fd=directory, follow_symlinks=False)

    def _link(self, directory: int, name: bytes, entry: Entry) -> None:
        target = _parts(entry.link)
        if not target:
            raise BadArchive(f"The entry {shown(entry.path)} is a link to nothing.")
        # Entering the other directory closes this one.
        here = os.dup(directory)
        try:
            there = self._enter(target[:-1])
            os.link(target[-1], name, src_dir_fd=there, dst_dir_fd=here, follow_symlinks=False)
        finally:
            os.close(here)


def _step(directory: int, name: bytes) -> int:
    try:
        return os.open(name, _DIRECTORY, dir_fd=directory)
    except FileNotFoundError:
        os.mkdir(name, dir_fd=directory)
        fd = os.open(name, _DIRECTORY, dir_fd=directory)
        os.fchmod(fd, 0o755)
        return fd


def _write(directory: int, name: bytes, entry: Entry, reader: TarReader) -> None:
    fd = os.open(name, _NEW_FILE, 0o600, dir_fd=directory)
    try:
        for offset, data in reader.content():
            rest = memoryview(data)
            while rest:
                written = os.pwrite(fd, rest, offset + len(data) - len(rest))
                rest = rest[written:]
        if entry.stored != entry.size:
            os.ftruncate(fd, entry.size)
        _dress(fd, entry)
        os.utime(fd, ns=(entry.mtime_ns, entry.mtime_ns))
    finally:
        os.close(fd)


def _dress(fd: int, entry: Entry) -> None:
    """Give owner, mode and attributes, in this order: a change of owner takes setuid bits and capabilities away."""
    os.fchown(fd, entry.uid, entry.gid)
    os.fchmod(fd, entry.mode)
    for key, value in entry.xattrs.items():
        if key.startswith(_XATTRS):
            _attach(fd, key, value, entry)


def _attach(fd: int, key: str, value: bytes, entry: Entry) -> None:
    try:
        os.setxattr(fd, key, value)
    except OSError as error:
        # A program without its capabilities would fail in the guest, where nobody knows why.
        if error.errno == errno.ENOTSUP and key != "security.capability":
            return
        raise BadArchive(f"The attribute {key!r} of {shown(entry.path)} cannot be kept: {error.strerror}.") from error


def _refusal(entry: Entry, error: OSError) -> str:
    match error.errno:
        case errno.ENOTDIR | errno.ELOOP:
            why = "its path, or that of its target, leads through a link or a file"
        case errno.EISDIR | errno.EEXIST:
            why = "a directory of that name is there already"
        case errno.ENOENT:
            why = f"its target {shown(entry.link)} is not in the archive"
        case _:
            why = error.strerror
    return f"The {entry.kind} {shown(entry.path)} cannot be made: {why}."


@contextlib.contextmanager
def _told(path: Path) -> Generator[None]:
    """Convert what is wrong with an archive, and what the host lacks."""
    try:
        yield
    except BadArchive as error:
        raise ImageError(
            f"The archive {path.name} is refused.",
            details=str(error),
            resolution="Unpack it where it can do no harm, look at it, and import the directory; or fetch it again.",
        ) from error
    except OSError as error:
        raise HostError(
            f"The archive {path.name} cannot be unpacked.",
            details=str(error),
            resolution="Make room on the file system of the data directory (df -h, df -i), then try again.",
        ) from error
