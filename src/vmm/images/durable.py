"""What holds when the power fails: names that are on disk, and one item put in the place of another in one step."""

from __future__ import annotations

import contextlib
import os

from vmm import TYPE_CHECKING
from vmm.errors import HostError

if TYPE_CHECKING:
    from pathlib import Path

# linux/fs.h: exchange two names; linux/fcntl.h: relative to the working directory.
_RENAME_EXCHANGE, _AT_FDCWD = 2, -100


def flush_directory(path: Path) -> None:
    """Bring the names in a directory to disk: a rename alone is only in memory."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def put_in_place(new: Path, place: Path) -> None:
    """Give the directory `new`, whose files are on disk, the name `place`; what stood there gets the name of `new`.

    Raises:
        HostError: the file system refuses it; what stood there stands there still.
    """
    try:
        flush_directory(new)
        if not place.exists():
            new.rename(place)
        elif not _exchanged(new, place):
            # A file system that cannot: between these two lines there is neither.
            place.rename(new.with_name("old"))
            new.rename(place)
        flush_directory(place.parent)
    except OSError as error:
        raise HostError(
            f"{place} cannot be put in place.",
            details=str(error),
            resolution="Check the file system it lies on (df -h, dmesg), then try again.",
        ) from error


def _exchanged(one: Path, other: Path) -> bool:
    """Exchange two names in one step; False where the C library or the file system cannot."""
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    with contextlib.suppress(AttributeError):  # a C library without it
        done = libc.renameat2(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE)
        return done == 0
    return False
