"""Mounts and namespaces of this process's own, by the kernel's calls: nothing is executed in the middle of a fault."""

import ctypes
import errno
import os
from pathlib import Path

_CLONE_NEWNS, _CLONE_NEWNET = 0x00020000, 0x40000000
# linux/mount.h
_RDONLY, _REMOUNT, _BIND, _REC, _PRIVATE = 1, 1 << 5, 1 << 12, 1 << 14, 1 << 18
_DETACH = 2
_ROOM = "size=512m,nr_inodes=20000"
# Looked up before any process forks or counts its descriptors.
_libc = ctypes.CDLL(None, use_errno=True)
_mount, _umount2 = _libc.mount, _libc.umount2


def enter(namespace: str, root: Path) -> None:
    """Bring this process into a network namespace, and mount a tmpfs at `root` that only it and its children see.

    Not by `ip netns exec`: that hides the host's cgroups.
    """
    with Path(f"/run/netns/{namespace}").open("rb") as there:
        _checked(_libc.setns(there.fileno(), _CLONE_NEWNET), "setns")
    _checked(_libc.unshare(_CLONE_NEWNS), "unshare")
    _mounted("none", "/", None, _REC | _PRIVATE, None)
    root.mkdir(parents=True, exist_ok=True)
    _mounted("tmpfs", str(root), "tmpfs", 0, f"{_ROOM},mode=755")


def bind(source: Path, target: Path) -> None:
    _mounted(str(source), str(target), None, _BIND, None)


def fill(root: str) -> None:
    """Leave no room, of bytes or of files, on the tmpfs at `root`: a real ENOSPC for every program, until it is lifted."""
    for _ in range(100):
        now = os.statvfs(root)
        used = (now.f_blocks - now.f_bfree) * now.f_frsize
        try:
            # A size of nothing means no limit. Without an inode the one page is out of reach.
            _remount(root, f"size={used or 4096},nr_inodes={now.f_files - now.f_ffree}")
        except OSError as error:
            # Something was written meanwhile, by another thread or by a program at work.
            if error.errno != errno.EINVAL:
                raise
        else:
            return
    raise AssertionError(f"{root} is never still enough to be filled")


def make_read_only(root: str) -> None:
    """Lay a read-only view of the directory over itself: a real EROFS for every program, until it is lifted.

    A read-only remount would be refused: every engine has its disk open for writing.
    """
    _mounted(root, root, None, _BIND, None)
    _mounted("none", root, None, _BIND | _REMOUNT | _RDONLY, None)


def lift(root: str) -> None:
    """Give back the room that `fill` took, and the right to write."""
    while points().count(root) > 1:
        take_off(root)
    _remount(root, _ROOM)


def take_off(point: str) -> None:
    _checked(_umount2(point.encode(), _DETACH), f"umount {point}")


def points() -> list[str]:
    """Return the mount points that this process sees, in the order of their mounting."""
    return [line.split(" ")[1] for line in Path("/proc/self/mounts").read_text().splitlines()]


def _remount(root: str, options: str) -> None:
    _mounted("tmpfs", root, "tmpfs", _REMOUNT, options)


def _mounted(source: str, target: str, kind: str | None, flags: int, options: str | None) -> None:
    texts = [None if text is None else text.encode() for text in (source, target, kind, options)]
    _checked(_mount(texts[0], texts[1], texts[2], ctypes.c_ulong(flags), texts[3]), f"mount {target}")


def _checked(result: int, what: str) -> None:
    if result:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
