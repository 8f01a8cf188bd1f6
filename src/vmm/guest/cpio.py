"""The format of an initramfs: cpio `newc` (the kernel's Documentation/driver-api/early-userspace/buffer-format)."""

from __future__ import annotations

import stat
from dataclasses import dataclass, field

_TRAILER = "TRAILER!!!"


@dataclass(slots=True)
class Archive:
    """A cpio archive under construction. Times are zero, so that the same content gives the same bytes."""

    _parts: list[bytes] = field(default_factory=list[bytes])
    _made: set[str] = field(default_factory=set[str])
    _inode: int = 0

    def add_file(self, path: str, content: bytes, *, mode: int = 0o644) -> None:
        """Add a file; the directories above it are added as needed. `path` has no leading slash."""
        self._add_parents(path)
        self._add(path, stat.S_IFREG | mode, content)

    def add_directory(self, path: str, *, mode: int = 0o755) -> None:
        if path not in self._made:
            self._add_parents(path)
            self._made.add(path)
            self._add(path, stat.S_IFDIR | mode, b"")

    def add_link(self, path: str, target: str) -> None:
        self._add_parents(path)
        self._add(path, stat.S_IFLNK | 0o777, target.encode())

    def add_character_device(self, path: str, major: int, minor: int, *, mode: int = 0o600) -> None:
        self._add_parents(path)
        self._add(path, stat.S_IFCHR | mode, b"", device=(major, minor))

    def to_bytes(self) -> bytes:
        """Return the archive, ended and padded so that another one can follow it."""
        data = b"".join([*self._parts, _entry(_TRAILER, 0, b"", inode=0)])
        return data + b"\0" * (-len(data) % 512)

    def _add_parents(self, path: str) -> None:
        parent = path.rpartition("/")[0]
        if parent:
            self.add_directory(parent)

    def _add(self, path: str, mode: int, content: bytes, *, device: tuple[int, int] = (0, 0)) -> None:
        self._inode += 1
        self._parts.append(_entry(path, mode, content, inode=self._inode, device=device))


def _entry(path: str, mode: int, content: bytes, *, inode: int, device: tuple[int, int] = (0, 0)) -> bytes:
    name = path.encode() + b"\0"
    links = 2 if stat.S_ISDIR(mode) else 1
    fields = (inode, mode, 0, 0, links, 0, len(content), 0, 0, *device, len(name), 0)
    head = b"070701" + b"".join(b"%08X" % value for value in fields) + name
    return head + b"\0" * (-len(head) % 4) + content + b"\0" * (-len(content) % 4)
