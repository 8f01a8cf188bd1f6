"""Files that are whole or not there: atomic writes, sparse and reflink copies, confined paths, locks."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import stat
import time
from pathlib import Path

from vmm import TYPE_CHECKING
from vmm.errors import ConflictError, HostError

if TYPE_CHECKING:
    from collections.abc import Generator
    from typing import BinaryIO

# A directory of `staging_dir`: PREFIX-PID-RANDOM.
_STAGING = r"[.a-z0-9]+-[0-9]+-[0-9a-f]{8}"
# What `write_atomic` writes to before it renames.
_TEMPORARY = r"\..+\.[0-9a-f]{12}"


def confined(root: Path, name: str) -> Path:
    """Return `root/name`, sure to be a direct child of `root`; a name that would lead elsewhere is a bug above."""
    if not name or name in (".", "..") or "/" in name or "\0" in name:
        raise ValueError(f"{name!r} leads out of {root}")
    return root / name


def make_dir(path: Path, *, mode: int = 0o755) -> Path:
    """Make a directory with exactly `mode`, whatever the umask, parents included; one that exists keeps its content."""
    try:
        path.mkdir(parents=True, exist_ok=True, mode=0o755)
        there = path.lstat()
        if stat.S_ISLNK(there.st_mode):
            # Root's own may lead to another disk; someone else's would have us change what they choose.
            if there.st_uid not in (0, os.geteuid()):
                raise OSError(errno.ELOOP, "It is a link of another user's", str(path))
            there = path.stat()
        if there.st_mode & 0o777 != mode:
            path.chmod(mode)
    except OSError as error:
        raise _told(error, f"The directory {path} cannot be made.") from error
    return path


def refuse_unsafe(base: Path) -> None:
    """Raise HostError where anyone but root could put something into `base`, or something else in its place.

    Root alone is asked: for anyone else it is their own.
    """
    if os.geteuid() != 0:
        return
    real = base.resolve()
    for path in (real, *real.parents, *base.parents):
        try:
            there = path.lstat()
        except FileNotFoundError:
            continue
        shared = 0 if stat.S_ISLNK(there.st_mode) else there.st_mode & 0o022
        # In a sticky directory (/tmp) nobody can replace what is root's.
        if there.st_uid != 0 or (shared and (path == real or not there.st_mode & stat.S_ISVTX)):
            raise HostError(
                "The data directory is open to other users.",
                details=f"{path} is {stat.filemode(there.st_mode)}, of user {there.st_uid}: others can write there.",
                resolution=f"Make it root's alone (chown root {path}; chmod go-w {path}), or give another --data-dir.",
            )


# How long what a program has started may go on writing once it was ended itself, and how long between two looks.
_WRITERS_S, _APART_S = 2.0, 0.02
# Network file systems by their name in /proc/mounts: locks and SQLite cannot be trusted on them.
_NETWORK_FILE_SYSTEMS = ("nfs", "nfs4", "cifs", "smb3", "ceph", "9p", "fuse.sshfs", "fuse.glusterfs", "lustre", "afs")


def network_file_system(path: Path, table: Path = Path("/proc/self/mounts")) -> str | None:
    """Return the kind of network file system that `path` lies on, or would lie on; None for a local one."""
    from vmm.host import ceilings

    best, kind = "", ""
    for line in ceilings.table_lines(table):
        target, found = line.split(" ")[1:3]
        target = ceilings.unescaped(target).rstrip("/") + "/"
        if f"{path}/".startswith(target) and len(target) >= len(best):
            best, kind = target, found
    return kind if kind in _NETWORK_FILE_SYSTEMS else None


def refuse_network_file_system(path: Path) -> None:
    """Raise HostError when two hosts could share what lies at `path`."""
    kind = network_file_system(path)
    if kind is not None:
        raise HostError(
            f"The data directory cannot lie on {kind}.",
            details=f"{path} would be on a network file system, where locks and the database cannot be trusted.",
            resolution="Choose a local one: --data-dir, or VMM_DATA_DIR.",
        )


def write_atomic(path: Path, content: bytes | str, *, mode: int = 0o644, durable: bool = True) -> None:
    """Write a file under a temporary name with exactly `mode`, flush it (when `durable`) and rename it into place."""
    data = content.encode() if isinstance(content, str) else content
    temporary: Path | None = None
    try:
        fd, temporary = _new_temporary(path)
        with os.fdopen(fd, "wb") as stream:
            os.fchmod(fd, mode)
            stream.write(data)
            stream.flush()
            if durable:
                os.fsync(fd)
            temporary.replace(path)
    except OSError as error:
        raise _told(error, f"{path} cannot be written.") from error
    finally:
        if temporary is not None:
            # A read-only file system refuses to remove even what is not there.
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)


def _new_temporary(path: Path) -> tuple[int, Path]:
    """Make a file beside `path` and lock it: while the lock is held, nobody takes it for what a killed command left."""
    while True:
        # tempfile would do; importing it costs more than the write.
        temporary = path.with_name(f".{path.name}.{os.urandom(6).hex()}")
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        fcntl.flock(fd, fcntl.LOCK_EX)
        if temporary.exists():
            return fd, temporary
        # Before it was locked, another command took it for one.
        os.close(fd)


def copy_disk(source: Path, destination: Path, *, size_mib: int, mode: int = 0o600) -> None:
    """Copy a disk image: by reflink where the file system can, else only its data, then grow it to `size_mib`.

    `destination` appears whole or not at all. Data is flushed by the caller's file system in its own time: the copy can
    be made again from the image as long as the machine never ran.
    """
    from vmm.host import copy, reading

    temporary = destination.with_name(f".{destination.name}.partial")
    try:
        temporary.unlink(missing_ok=True)
        with os.fdopen(reading.open_plain(source), "rb") as reader, _new_file(temporary) as writer:
            copy.copy_content(reader.fileno(), writer.fileno())
            os.ftruncate(writer.fileno(), max(size_mib * 1024 * 1024, os.fstat(reader.fileno()).st_size))
            os.fchmod(writer.fileno(), mode)
        temporary.replace(destination)
    except OSError as error:
        raise _told(error, f"The disk {destination} cannot be made.") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def _new_file(path: Path) -> BinaryIO:
    """Make a file that is its maker's alone from its first moment on: who opens it once reads it for ever."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
    return os.fdopen(os.open(path, flags, 0o600), "wb")


def flush_directory(path: Path) -> None:
    """Bring the names in a directory to disk: a rename alone is only in memory."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def remove_tree(path: Path, *, unmount: bool = False) -> None:
    """Remove a directory and all below it, never following a link and never crossing a mount; none is no error.

    `unmount` takes mounts off first: for a directory whose mounts are vmm's own.
    """
    try:
        if path.is_symlink() or not path.is_dir():
            path.unlink(missing_ok=True)
            return
        from vmm.host import mounts

        if unmount:
            mounts.unmount_below(path)
        found = mounts.below(path)
        if found:
            raise OSError(errno.EBUSY, f"{found[0]} is a mount; unmount it first")
        _remove_all(path)
    except FileNotFoundError:
        return
    except OSError as error:
        raise _told(error, f"{path} cannot be removed.") from error


def _remove_all(path: Path) -> None:
    """Remove a directory, whoever is still at work in it: a program's own children outlive it by a moment."""
    import shutil

    deadline = time.monotonic() + _WRITERS_S
    while True:
        try:
            shutil.rmtree(path)
            return
        except OSError as error:
            if error.errno == errno.ENOENT and not path.exists():
                return
            if error.errno not in (errno.ENOTEMPTY, errno.ENOENT) or time.monotonic() > deadline:
                raise
        time.sleep(_APART_S)


@contextlib.contextmanager
def staging_dir(root: Path, *, prefix: str) -> Generator[Path]:
    """A private directory (0700) for work in progress; it is gone when the block ends, however it ends.

    What a killed process left of its own in `root` goes now: each holds a lock on its directory while it lives.
    """
    if not root.is_dir():
        make_dir(root, mode=0o700)
    try:
        path, lock = _new_staging(root, prefix)
    except OSError as error:
        raise _told(error, f"No working directory can be made in {root}.") from error
    try:
        yield path
    finally:
        remove_tree(path)
        os.close(lock)


def _new_staging(root: Path, prefix: str) -> tuple[Path, int]:
    """Return a new directory and the descriptor that holds its lock."""
    sweep_staging(root)
    while True:
        path = root / f"{prefix}-{os.getpid()}-{os.urandom(4).hex()}"
        path.mkdir(mode=0o700)
        try:
            lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError:
            continue
        fcntl.flock(lock, fcntl.LOCK_EX)
        if path.is_dir():
            return path, lock
        # Before it was locked, another command took it for one that was left behind.
        os.close(lock)


def sweep_staging(root: Path) -> list[str]:
    """Remove the staging directories in `root` that no living process holds; return their names."""
    try:
        entries = [entry for entry in root.iterdir() if re.fullmatch(_STAGING, entry.name)]
    except (FileNotFoundError, NotADirectoryError):
        return []
    return [entry.name for entry in entries if _sweep(entry)]


def sweep_temporaries(root: Path) -> list[str]:
    """Remove what killed commands had begun to write into `root` and not renamed yet; return the names."""
    swept: list[str] = []
    try:
        entries = [entry for entry in root.iterdir() if re.fullmatch(_TEMPORARY, entry.name)]
    except (FileNotFoundError, NotADirectoryError):
        return []
    for entry in entries:
        with contextlib.suppress(OSError):
            fd = os.open(entry, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                entry.unlink()
                swept.append(entry.name)
            finally:
                os.close(fd)
    return swept


def _sweep(entry: Path) -> bool:
    """Remove a staging directory unless a living process holds it; return whether it did."""
    with contextlib.suppress(FileNotFoundError, NotADirectoryError, BlockingIOError):
        fd = os.open(entry, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            remove_tree(entry)
        finally:
            os.close(fd)
        return True
    return False


@contextlib.contextmanager
def locked(path: Path, *, what: str, timeout_s: float) -> Generator[None]:
    """Hold an exclusive lock on `path` (made when missing, 0600) for the block.

    Raises:
        ConflictError: another process held it for longer than `timeout_s`.
    """
    if not path.parent.is_dir():
        make_dir(path.parent)
    fd = _acquire(path, what=what, timeout_s=timeout_s)
    try:
        yield
    finally:
        os.close(fd)


def try_lock(path: Path) -> int | None:
    """Return a descriptor that holds the lock on `path` until it is closed; None where another process has it."""
    if not path.parent.is_dir():
        make_dir(path.parent)
    return _try_lock(path)


def is_locked(path: Path) -> bool:
    """Whether a process holds the lock on `path`."""
    fd = try_lock(path)
    if fd is not None:
        os.close(fd)
    return fd is None


def remove_lock(path: Path) -> None:
    """Remove the lock at `path` unless a process holds it: nobody may ever hold a lock that has no name any more."""
    fd = try_lock(path)
    if fd is not None:
        try:
            path.unlink(missing_ok=True)
        finally:
            os.close(fd)


def _acquire(path: Path, *, what: str, timeout_s: float) -> int:
    deadline = time.monotonic() + timeout_s
    while True:
        fd = _try_lock(path)
        if fd is not None:
            return fd
        if time.monotonic() > deadline:
            raise ConflictError(
                f"Another vmm command is working on {what}.",
                details=f"{path} has been held for more than {timeout_s:.0f} s.",
                resolution="Wait until it has ended (sudo pgrep -af vmm shows it), then try again.",
            )
        time.sleep(0.005)


def _try_lock(path: Path) -> int | None:
    """Return a descriptor that holds the lock, None when another has it."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise _told(error, f"The lock {path} cannot be opened.") from error
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Whoever held it may have removed the file with what it stood for: a lock on a nameless file locks nothing.
        if path.stat().st_ino == os.fstat(fd).st_ino:
            return fd
    except (BlockingIOError, FileNotFoundError):
        pass
    except OSError as error:
        os.close(fd)
        raise _told(error, f"The lock {path} cannot be taken.") from error
    os.close(fd)
    return None


def _told(error: OSError, brief: str) -> HostError:
    from vmm.remedy import remedy

    return HostError(brief, details=str(error), resolution=remedy(error))
