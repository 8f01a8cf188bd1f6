"""What holds when the power fails: names that are on disk, and one item put in the place of another in one step."""

from __future__ import annotations

import contextlib
import errno
import os

from vmm import TYPE_CHECKING
from vmm.errors import HostError
from vmm.host import files

if TYPE_CHECKING:
    from collections.abc import Generator
    from pathlib import Path

# linux/fs.h: exchange two names; linux/fcntl.h: relative to the working directory.
_RENAME_EXCHANGE, _AT_FDCWD = 2, -100


def make_directory(path: Path) -> None:
    """Make a directory and those above it; the names of all that were missing are on disk when this ends."""
    missing = [each for each in (path, *path.parents) if not each.exists()]
    files.make_dir(path)
    for each in missing:
        files.flush_directory(each.parent)


def put_in_place(new: Path, place: Path) -> None:
    """Give the directory `new`, whose files are on disk, the name `place`; what stood there gets the name of `new`."""
    files.flush_directory(new)
    if not place.exists():
        new.rename(place)
    elif not _exchanged(new, place):
        # A file system that cannot: between these two lines there is neither.
        place.rename(new.with_name("old"))
        new.rename(place)
    files.flush_directory(place.parent)


def take_away(place: Path, away: Path) -> None:
    """Give a directory another name; after a power loss it is there whole or gone, never without some of its files."""
    place.rename(away)
    files.flush_directory(place.parent)


@contextlib.contextmanager
def told(brief: str) -> Generator[None]:
    """Convert what the file system refuses into an error in three parts."""
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        raise HostError(
            brief,
            details=str(error),
            resolution="Make room on the file system of the data directory (df -h, df -i), then try again."
            if full
            else "Check the file system of the data directory (mount, dmesg), then try again.",
        ) from error


def _exchanged(one: Path, other: Path) -> bool:
    """Exchange two names in one step; False where the C library or the file system cannot."""
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    with contextlib.suppress(AttributeError):  # a C library without it
        done = libc.renameat2(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE)
        return done == 0
    return False
