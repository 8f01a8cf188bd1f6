"""Room for the last writes on a full disk: a file that is given up when there is none other."""

from __future__ import annotations

import contextlib
import os

from vmm import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

# A write's journal and what it adds take 40 KiB at most: this is enough for stopping and deleting a few machines.
_BYTES = 512 * 1024
_NAME = "reserve"


def make_room(directory: Path) -> None:
    """Give the reserve up where a write would find no room."""
    with contextlib.suppress(OSError):
        if _free_bytes(directory) < _BYTES:
            (directory / _NAME).unlink(missing_ok=True)


def renew(directory: Path) -> None:
    """Make the reserve again once there is room for more than that."""
    path = directory / _NAME
    with contextlib.suppress(OSError):
        if path.exists() or _free_bytes(directory) < 8 * _BYTES:
            return
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            # Blocks, not a hole.
            os.posix_fallocate(fd, 0, _BYTES)
        finally:
            os.close(fd)


def _free_bytes(directory: Path) -> int:
    there = os.statvfs(directory)
    # What is kept for root is ours too: only root writes here.
    return there.f_bfree * there.f_frsize
