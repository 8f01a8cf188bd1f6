"""A data directory as it was, to be made so again."""

import os
import stat
from dataclasses import dataclass, field
from pathlib import Path

# Whose the host's network is, is known by this file's text and its inode. The same text so stays the same file: else
# the data directory would become another vmm's with each ground that is laid.
_ID = "state/id"


@dataclass
class Kept:
    """A data directory as it was; `back` makes it so again, touching only what has changed since."""

    root: Path
    copy: Path
    entries: dict[str, tuple[os.stat_result, tuple[int, ...]]] = field(default_factory=dict)

    def take(self) -> None:
        for path in _walk(self.root):
            seen = os.lstat(self.root / path)
            if stat.S_ISSOCK(seen.st_mode):
                # What an engine that is gone left; the next one removes it.
                continue
            self.entries[path] = (seen, _signature(seen))
            target = self.copy / path
            if stat.S_ISDIR(seen.st_mode):
                target.mkdir()
            elif stat.S_ISREG(seen.st_mode):
                _copy(self.root / path, target)
            else:
                target.symlink_to((self.root / path).readlink())

    def back(self) -> None:
        for path in reversed(_walk(self.root)):
            now = os.lstat(self.root / path)
            known = self.entries.get(path)
            same = known is not None and (
                stat.S_ISDIR(now.st_mode) or _signature(now) == known[1] or (path == _ID and self._is_same_id())
            )
            if not same:
                (os.rmdir if stat.S_ISDIR(now.st_mode) else os.unlink)(self.root / path)
        for path, (seen, _) in self.entries.items():
            target = self.root / path
            if not os.path.lexists(target):
                self._make(path, target, seen)
            elif stat.S_IMODE(os.lstat(target).st_mode) != stat.S_IMODE(seen.st_mode):
                target.chmod(stat.S_IMODE(seen.st_mode))

    def _is_same_id(self) -> bool:
        return (self.root / _ID).read_bytes() == (self.copy / _ID).read_bytes()

    def _make(self, path: str, target: Path, seen: os.stat_result) -> None:
        if stat.S_ISDIR(seen.st_mode):
            target.mkdir()
        elif stat.S_ISLNK(seen.st_mode):
            target.symlink_to((self.copy / path).readlink())
        else:
            _copy(self.copy / path, target)
        os.chown(target, seen.st_uid, seen.st_gid, follow_symlinks=False)
        if not stat.S_ISLNK(seen.st_mode):
            target.chmod(stat.S_IMODE(seen.st_mode))
        self.entries[path] = (seen, _signature(os.lstat(target)))


def _walk(root: Path) -> list[str]:
    """Return every path below `root`, relative to it, directories before what is in them."""
    found = []
    for directory, names, others in os.walk(root):
        below = os.path.relpath(directory, root)
        found += [os.path.normpath(f"{below}/{name}") for name in (*names, *others)]
    return found


def _signature(seen: os.stat_result) -> tuple[int, ...]:
    return (seen.st_ino, seen.st_ctime_ns, seen.st_mtime_ns, seen.st_size, seen.st_mode)


def _copy(source: Path, target: Path) -> None:
    """Copy a file's data; holes stay holes."""
    with source.open("rb") as reader, target.open("wb") as writer:
        size = os.fstat(reader.fileno()).st_size
        position = 0
        while position < size:
            try:
                start = os.lseek(reader.fileno(), position, os.SEEK_DATA)
            except OSError:
                break
            position = os.lseek(reader.fileno(), start, os.SEEK_HOLE)
            os.pwrite(writer.fileno(), os.pread(reader.fileno(), position - start, start), start)
        writer.truncate(size)
