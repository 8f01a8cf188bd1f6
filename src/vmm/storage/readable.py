"""A copy of the database that any user may read, and by which no user can hold root up.

Whoever may open a file for reading may lock it, and SQLite's writers wait for that (fcntl(2), `F_RDLCK`). So the
database is root's alone, and beside it stand two copies, which nobody locks. After each commit the older of them is
made what the database is now, and becomes the newer one: a reader has a whole one at every instant, and a command that
is killed meanwhile spoils none.

A copy's head says which state of the database it is of. Whether that is of now, anyone may see: by the size, time and
inode of the database's file, and by the copies' own times, which are set to nothing before each commit.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import struct
import time
from zlib import crc32

from vmm import TYPE_CHECKING
from vmm.errors import VmmError
from vmm.host import files
from vmm.model.value import Value

if TYPE_CHECKING:
    from pathlib import Path

_LOCK = "readable.lock"
_NAMES = ("readable.0", "readable.1")
# Magic, number, then size, time, inode and change counter of the database, the boot; and a checksum of all that.
_HEAD = struct.Struct("<8sQQQQII")
_SUM = struct.Struct("<I")
_MAGIC = b"vmmcopy1"
_START = 4096
_CHUNK = 1 << 16
# A copy takes a millisecond or two; whoever has been at it for longer hangs, and waits for nobody.
_LOCK_S = 1.0
_PATIENCE_S = 0.3
_POLL_S = 0.005
# On a busy host a few tries may take all of that time.
_TRIES = 40


class Stamp(Value):
    """What anyone can see of a state of the database's file."""

    size: int
    time_ns: int
    inode: int


class Head(Value):
    """`counter` is SQLite's own count of commits: two within one tick of the clock have the same time."""

    number: int
    stamp: Stamp
    counter: int
    boot: int


class Image(Value):
    """The database as any user may see it; `is_current` is whether it has not been written since."""

    content: bytes
    is_current: bool


# What this process has seen the copy to be of, by the database's path.
_seen: dict[Path, tuple[Stamp, int]] = {}
# Closing a descriptor takes off every lock that this process has on the file (fcntl(2)), SQLite's own among them: what
# is opened here stays open.
_open: dict[Path, int] = {}


def announce(database: Path) -> None:
    """Let it be seen that the copies may soon be of before, should this command be killed.

    Not for more than that: whatever keeps us from it does not keep root from writing.
    """
    for name in _NAMES:
        with contextlib.suppress(OSError):
            os.utime(database.with_name(name), ns=(0, 0))


def renew(connection: sqlite3.Connection, database: Path) -> None:
    """Make the copy what the database is now, unless it is.

    Where that cannot be done, as on a full disk, it stays what it was: nothing that root does fails for it.
    """
    with contextlib.suppress(OSError, sqlite3.Error, VmmError):
        if _seen.get(database) == _state(database):
            return
        with files.locked(database.with_name(_LOCK), what="the readable copy", timeout_s=_LOCK_S):
            # Nobody writes while this transaction lasts, and what is committed is in the file.
            connection.execute("BEGIN")
            try:
                connection.execute("SELECT 1 FROM sqlite_schema LIMIT 1").fetchone()
                _copy(database)
            finally:
                connection.execute("ROLLBACK")


def image(database: Path) -> Image | None:
    """Return the database as it is in the copy, None where there is no copy.

    One that is being written is waited for; what a command that was killed had begun to write is not in it.
    """
    deadline, tries = time.monotonic() + _PATIENCE_S, 0
    while True:
        found = _newest(database)
        late = time.monotonic() - deadline
        if found is None and (late > 0 or not any(database.with_name(name).exists() for name in _NAMES)):
            return None
        if found is not None:
            place, head = found
            path = database.with_name(_NAMES[place])
            content = _content(path, head)
            is_current = content is not None and path.stat().st_mtime_ns != 0 and head.stamp == _stamp(database)
            if content is not None and (is_current or late > 0):
                return Image(content=content, is_current=is_current) if _is_whole(content, head) else None
        tries += 1
        if late > _PATIENCE_S and tries > _TRIES:
            # It is renewed all the time, faster than it can be read.
            return None
        time.sleep(_POLL_S)


def connected(found: Image) -> sqlite3.Connection:
    """Open what is in a copy, in memory."""
    connection = sqlite3.connect(":memory:", isolation_level=None)
    connection.deserialize(found.content)
    return connection


def why_old(database: Path) -> str:
    """Return what keeps the copy from being of now, as far as anyone can see it."""
    if database.with_name(f"{database.name}-journal").exists():
        return "a vmm command is at it, or was killed while it wrote: the next one of root takes that back"
    return "a vmm command was killed before it was done, or something other than vmm changed the database"


def make_private(database: Path) -> None:
    """Let only root open the database, where others may, as they might for versions before.

    It is another file then: whoever has the old one open, and a lock on it, holds up nobody.
    """
    with files.locked(database.with_name(_LOCK), what="the database", timeout_s=10 * _LOCK_S):
        there = database.stat()
        if there.st_mode & 0o077 == 0:
            return
        with files.staging_dir(database.parent, prefix=".private") as staging:
            draft = staging / database.name
            try:
                content = _bytes_of(database, staging)
            except sqlite3.OperationalError:
                raise
            except sqlite3.DatabaseError:
                # Damaged, and as it is it stays: it is only nobody else's to lock any more.
                content = database.read_bytes()
            files.write_atomic(draft, content, mode=0o600)
            draft.replace(database)
        files.flush_directory(database.parent)


def _bytes_of(database: Path, staging: Path) -> bytes:
    """Return a database as it is, without what a killed command had begun to write, whoever has it locked."""
    connection = sqlite3.connect(database, timeout=_LOCK_S, isolation_level=None)
    with contextlib.suppress(sqlite3.OperationalError), contextlib.closing(connection):
        # A vmm of before that is at work ends first. Someone else's lock is no reason to wait.
        with contextlib.suppress(sqlite3.OperationalError):
            connection.execute("BEGIN IMMEDIATE")
        connection.execute("SELECT 1 FROM sqlite_schema LIMIT 1").fetchone()
        return connection.serialize()
    import shutil

    copy = staging / "undone.db"
    for suffix in ("", "-journal"):
        with contextlib.suppress(FileNotFoundError):
            shutil.copyfile(f"{database}{suffix}", f"{copy}{suffix}")
    with contextlib.closing(sqlite3.connect(copy, isolation_level=None)) as connection:
        connection.execute("SELECT 1 FROM sqlite_schema LIMIT 1").fetchone()
        return connection.serialize()


def _copy(database: Path) -> None:
    (stamp, counter), newest, boot = _state(database), _newest(database), _boot()
    place, head = (1, None) if newest is None else newest
    if head is not None and (head.stamp, head.counter, head.boot) == (stamp, counter, boot):
        # As it should be; it may have been announced that it would not be, for a write that came to nothing.
        os.utime(database.with_name(_NAMES[place]))
    else:
        fd = os.open(
            database.with_name(_NAMES[1 - place]), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644
        )
        try:
            os.fchmod(fd, 0o644)
            # From here on it is none, until it is whole.
            os.pwrite(fd, bytes(_HEAD.size + _SUM.size), 0)
            _follow(_opened(database), fd, stamp.size)
            number = 1 if head is None else head.number + 1
            packed = _HEAD.pack(_MAGIC, number, stamp.size, stamp.time_ns, stamp.inode, counter, boot)
            os.pwrite(fd, packed + _SUM.pack(crc32(packed)), 0)
        finally:
            os.close(fd)
    _seen[database] = (stamp, counter)


def _follow(source: int, target: int, size: int) -> None:
    """Make the target's content the source's; only what differs is written."""
    for offset in range(0, size, _CHUNK):
        wanted = os.pread(source, _CHUNK, offset)
        if os.pread(target, len(wanted), _START + offset) != wanted:
            os.pwrite(target, wanted, _START + offset)
    os.ftruncate(target, _START + size)


def _opened(database: Path) -> int:
    """Return a descriptor of the database, for reading."""
    fd = _open.get(database)
    if fd is not None and os.fstat(fd).st_ino == database.stat().st_ino:
        return fd
    if fd is not None:
        os.close(fd)
    _open[database] = os.open(database, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    return _open[database]


def _newest(database: Path) -> tuple[int, Head] | None:
    """Return the copy that was made last: which it is, and its head."""
    heads = [(place, _head(database.with_name(name))) for place, name in enumerate(_NAMES)]
    whole = [(place, head) for place, head in heads if head is not None]
    return max(whole, key=lambda found: found[1].number, default=None)


def _head(path: Path) -> Head | None:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return None
    try:
        return _parsed(os.pread(fd, _HEAD.size + _SUM.size, 0))
    finally:
        os.close(fd)


def _parsed(data: bytes) -> Head | None:
    head = data[: _HEAD.size]
    if len(data) != _HEAD.size + _SUM.size or data[_HEAD.size :] != _SUM.pack(crc32(head)):
        return None
    magic, number, size, time_ns, inode, counter, boot = _HEAD.unpack(head)
    if magic != _MAGIC:
        return None
    return Head(number=number, stamp=Stamp(size=size, time_ns=time_ns, inode=inode), counter=counter, boot=boot)


def _content(path: Path, head: Head) -> bytes | None:
    """Return what a copy holds; None when it was made another meanwhile."""
    try:
        with path.open("rb") as stream:
            stream.seek(_START)
            content = stream.read(head.stamp.size)
    except OSError:
        return None
    return content if _head(path) == head and len(content) == head.stamp.size else None


def _is_whole(content: bytes, head: Head) -> bool:
    """Whether a copy can be believed: nothing of it is flushed, and one of before the power went is looked through."""
    if head.boot == _boot():
        return True
    with contextlib.suppress(sqlite3.Error), contextlib.closing(sqlite3.connect(":memory:")) as connection:
        connection.deserialize(content)
        return connection.execute("PRAGMA quick_check(1)").fetchone() == ("ok",)
    return False


def _stamp(database: Path) -> Stamp:
    there = database.stat()
    return Stamp(size=there.st_size, time_ns=there.st_mtime_ns, inode=there.st_ino)


def _state(database: Path) -> tuple[Stamp, int]:
    # SQLite's file change counter (https://sqlite.org/fileformat2.html, 1.3.8).
    return _stamp(database), int.from_bytes(os.pread(_opened(database), 4, 24))


def _boot() -> int:
    from vmm.host.identity import boot_id

    return crc32(boot_id().encode())
