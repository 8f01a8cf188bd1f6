"""Copies of the database: kept before each migration and by `vmm db backup`, put back by `vmm db restore`."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import sqlite3
import time

from vmm import TYPE_CHECKING
from vmm.errors import StateError, VmmError
from vmm.host import files, reading
from vmm.model.value import Value
from vmm.storage import readable, schema, trouble
from vmm.storage.copies import copies, stamp

if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from pathlib import Path

# Of each kind: those that were asked for, and those that migrations made.
MOST = 10
# What SQLite keeps beside a database, and takes for its own wherever it finds it under that name.
_COMPANIONS = ("-journal", "-wal", "-shm")
_BUSY_S = 5.0
_POLL_S = 0.02
# Where SQLite locks a database, whatever is in the file (sqlite3.c: PENDING_BYTE and the 511 bytes behind it).
_LOCK_BYTES = (0x40000000, 512)
_PROBLEMS = 5


class Condition(Value):
    """What was found in a database; a version of 0 is a file that holds nothing.

    `problems` are SQLite's own words for what is damaged, `orphans` the number of forwards that lead to no machine.
    `unreachable` is why nothing could be found out, empty where it could.
    """

    version: int = 0
    machines: int = 0
    orphans: int = 0
    problems: tuple[str, ...] = ()
    unreachable: str = ""

    @property
    def is_good(self) -> bool:
        return not self.problems and not self.orphans and 0 < self.version <= schema.VERSION


def keep(connection: sqlite3.Connection, path: Path, *, version: int) -> Path:
    """Keep a copy of the open database of schema `version` beside it, in `backups/`; return the copy's path."""
    return _copy(connection, path, prefix=f"vmm-v{version}-")


def save(path: Path) -> Path:
    """Keep a copy of the database because it was asked for; return its path.

    Raises:
        StateError: there is none, it is damaged or empty (a copy would only take the place of a good one), or there is
            no room.
    """
    if not path.exists():
        raise StateError(
            "There is no database to back up.",
            details=f"{path} is not there: no machine was created yet, or it was removed.",
            resolution="See what lies on disk: vmm db check",
        )
    found = examine(path)
    if found.unreachable:
        raise trouble.unreadable(path, found.unreachable)
    if found.problems:
        raise StateError(
            f"The database {path} is damaged, and was not backed up.",
            details=found.problems[0],
            resolution="See what is left of it: vmm db check; put an earlier one back: sudo vmm db restore",
        )
    if found.orphans or not found.version:
        # It could not be put back, and ten of its kind would leave none that can.
        why = f"{found.orphans} forward(s) in it have no machine." if found.orphans else "There is nothing in it."
        raise StateError(
            f"The database {path} was not backed up.",
            details=f"{why} A copy of it could not be put back, and would take the place of one that can.",
            resolution="See what is left of it: vmm db check; put an earlier one back: sudo vmm db restore",
        )
    with _told(path), contextlib.closing(open_for_reading(path)) as connection:
        return _copy(connection, path, prefix="vmm-")


def examine(path: Path) -> Condition:
    """Look through a database file, from its first page to its last; nothing in it is changed."""
    try:
        reading.refuse_unplain(path)
        if not os.access(path, os.R_OK) and (found := readable.image(path)) is not None and not found.is_current:
            return Condition(unreachable=readable.why_old(path))
        with contextlib.closing(open_for_reading(path)) as connection:
            return _condition(connection, path)
    except FileNotFoundError:
        return Condition()
    except OSError as error:
        return Condition(unreachable=str(error))
    except UnicodeDecodeError as error:
        # SQLite's message quotes what it could not read, and Python cannot read the message.
        return Condition(problems=(error.object.decode(errors="replace"),))
    except sqlite3.Error as error:
        return _trouble(error)


def _trouble(error: sqlite3.Error) -> Condition:
    """Tell a database that cannot be opened from one that is damaged."""
    code = _code(error)
    if code == sqlite3.SQLITE_READONLY_ROLLBACK:
        return Condition(unreachable="a vmm command was killed while it wrote; the next one of root takes that back")
    # The low byte of an extended code is the code itself.
    if code & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY):
        return Condition(unreachable=str(error))
    return Condition(problems=(str(error),))


def _code(error: sqlite3.Error) -> int:
    """Return SQLite's own code; 0 for what Python itself has against a row."""
    return int(getattr(error, "sqlite_errorcode", 0))


def _condition(connection: sqlite3.Connection, path: Path) -> Condition:
    # What is damaged may not even be text.
    connection.text_factory = _text
    connection.execute("BEGIN")
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    (page_bytes,) = connection.execute("PRAGMA page_size").fetchone()
    said = [str(row[0]) for row in connection.execute(f"PRAGMA integrity_check({_PROBLEMS})")]
    problems = [line for line in said if line != "ok"]
    size = path.stat().st_size
    # SQLite takes a piece of a page for a page, and a piece of the first for a database that is still empty.
    if size % page_bytes or (size and not version):
        problems.append(f"it was cut: {size} bytes are no whole database")
    if problems or not 0 < version <= schema.VERSION:
        return Condition(version=version, problems=tuple(problems))
    (machines,) = connection.execute("SELECT count(*) FROM machines").fetchone()
    orphans = len(connection.execute("PRAGMA foreign_key_check").fetchall())
    return Condition(version=version, machines=machines, orphans=orphans)


def open_for_reading(path: Path) -> sqlite3.Connection:
    """Open a database for reading. One that a killed command left within a write is mended, where we may write it."""
    if not os.access(path, os.R_OK) and (found := readable.image(path)) is not None:
        return readable.connected(found)
    # What a URI takes for its own is written as its code.
    quoted = str(path.absolute()).replace("%", "%25").replace("?", "%3f").replace("#", "%23")
    connection = sqlite3.connect(f"file:{quoted}?mode=ro", uri=True, timeout=_BUSY_S, isolation_level=None)
    try:
        connection.execute("PRAGMA schema_version").fetchone()
    except sqlite3.OperationalError as error:
        connection.close()
        if _code(error) != sqlite3.SQLITE_READONLY_ROLLBACK or not os.access(path, os.W_OK):
            raise
        return sqlite3.connect(path, timeout=_BUSY_S, isolation_level=None)
    except sqlite3.DatabaseError:
        connection.close()
        raise
    return connection


@contextlib.contextmanager
def draft_of(source: Path, database: Path) -> Generator[Path]:
    """A copy of `source`, brought to this vmm's schema, to be put in the place of `database` within the block.

    Raises:
        StateError: `source` is damaged, no database of vmm's, or of a newer vmm; or the copy cannot be written.
    """
    found = examine(source)
    if not found.is_good:
        raise unusable(source, _why_unusable(found))

    def fill(draft: Path) -> None:
        with contextlib.closing(open_for_reading(source)) as connection:
            connection.execute("VACUUM INTO ?", (str(draft),))
        with contextlib.closing(sqlite3.connect(draft, isolation_level=None)) as connection:
            schema.migrate(connection, str(source))

    with draft_by(fill, database) as draft:
        yield draft


@contextlib.contextmanager
def draft_by(fill: Callable[[Path], None], database: Path) -> Generator[Path]:
    """A database that `fill` makes of an empty file, flushed; it is gone after the block unless it was put in place."""
    files.make_dir(database.parent)
    with files.staging_dir(database.parent, prefix=".restore") as staging:
        draft = staging / database.name
        with _told(database):
            _empty(draft)
            fill(draft)
            draft.chmod(0o600)
            _flush(draft)
        yield draft


def put_in_place(draft: Path, database: Path) -> Path | None:
    """Put a draft in the place of the database; return where the one that was there is kept, None where there was none.

    Killed at any step, either the old one is in place or the new one, and nothing of the old one is lost.
    """
    kept = database.with_name(f"{database.name}.damaged-{stamp()}") if database.exists() else None
    with _told(database), _held(database):
        try:
            _put_in_place(draft, database, kept)
        except BaseException:
            if kept is not None and _is_same(kept, database):
                _take_back(database, kept)
            raise
    return kept


def _put_in_place(draft: Path, database: Path, kept: Path | None) -> None:
    if kept is not None:
        os.link(database, kept)
    for companion in _COMPANIONS:
        beside = database.with_name(database.name + companion)
        if beside.exists():
            # Left in place, SQLite would play it back into the new one.
            if kept is not None:
                os.link(beside, kept.with_name(kept.name + companion))
            beside.unlink()
    files.flush_directory(database.parent)
    draft.replace(database)
    files.flush_directory(database.parent)


def _take_back(database: Path, kept: Path) -> None:
    """Undo what a restoration has done that came to nothing: its database is in place still, and has its journal."""
    with contextlib.suppress(OSError):
        for companion in _COMPANIONS:
            second = kept.with_name(kept.name + companion)
            if second.exists():
                second.replace(database.with_name(database.name + companion))
        kept.unlink()


def sweep(database: Path) -> list[str]:
    """Remove what copies and restorations that were killed have left beside the database; return the names."""
    swept = [*files.sweep_staging(database.parent / "backups"), *files.sweep_staging(database.parent)]
    for kept in sorted(database.parent.glob(f"{database.name}.damaged-*")):
        # One with a journal may be all that completes a write that was cut off: it stays.
        if _is_same(kept, database) and not any(kept.with_name(kept.name + each).exists() for each in _COMPANIONS):
            with contextlib.suppress(OSError, StateError), _held(database):
                # Not that of a restoration at work, which holds the database.
                if _is_same(kept, database):
                    kept.unlink()
                    swept.append(kept.name)
    return swept


def _is_same(one: Path, other: Path) -> bool:
    try:
        return one.samefile(other)
    except OSError:
        return False


def _text(raw: bytes) -> str:
    return raw.decode(errors="replace")


def _copy(connection: sqlite3.Connection, path: Path, *, prefix: str) -> Path:
    directory = files.make_dir(path.parent / "backups", mode=0o700)
    copy = directory / f"{prefix}{stamp()}.db"
    with files.staging_dir(directory, prefix=".copy") as staging, _told(path):
        partial = staging / copy.name
        _empty(partial)
        connection.execute("VACUUM INTO ?", (str(partial),))
        # SQLite flushes no copy that it makes by VACUUM INTO.
        _flush(partial)
        partial.replace(copy)
        try:
            files.flush_directory(directory)
        except BaseException:
            # It was said that there is none.
            copy.unlink(missing_ok=True)
            raise
    by_hand = prefix == "vmm-"
    for old in [found for found in copies(path) if found.by_hand is by_hand][MOST:]:
        old.path.unlink(missing_ok=True)
    return copy


def _why_unusable(found: Condition) -> str:
    if found.version > schema.VERSION:
        return f"A newer vmm wrote it: its schema has version {found.version}, this vmm knows {schema.VERSION}."
    if found.problems or found.unreachable:
        return found.unreachable or found.problems[0]
    if found.orphans:
        return f"{found.orphans} forward(s) in it have no machine."
    return "There is nothing in it."


def unusable(source: Path, details: str) -> StateError:
    """Return the error for a copy that cannot be put back."""
    return StateError(
        f"{source} cannot be put back.",
        details=details,
        resolution="Choose another (vmm db check lists them), or: sudo vmm db restore --rebuild",
    )


def _empty(path: Path) -> None:
    """Make an empty file that is ours alone: VACUUM INTO fills one, but would make its own as the umask has it."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    os.fchmod(fd, 0o600)
    os.close(fd)


def _flush(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


@contextlib.contextmanager
def _held(database: Path) -> Generator[None]:
    """Keep every other process from reading or writing the database for the block, however damaged it is.

    A process that had opened it before finds at its next write that the file has moved, and SQLite refuses that write.
    """
    with contextlib.suppress(VmmError, OSError, sqlite3.Error):
        readable.make_private(database)
    try:
        fd = os.open(database, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        yield
        return
    try:
        deadline = time.monotonic() + _BUSY_S
        start, length = _LOCK_BYTES
        while True:
            try:
                fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB, length, start)
                break
            except (BlockingIOError, PermissionError) as error:
                if time.monotonic() > deadline:
                    raise StateError(
                        "The database is in use.",
                        details=f"{database} was held by another process for more than {_BUSY_S:.0f} s.",
                        resolution=f"See who holds it (fuser {database}), then try again.",
                    ) from error
                time.sleep(_POLL_S)
        yield
    finally:
        os.close(fd)


@contextlib.contextmanager
def _told(database: Path) -> Generator[None]:
    """Convert what SQLite and the system say of a copy that cannot be made."""
    try:
        yield
    except sqlite3.OperationalError as error:
        raise _cannot(database, str(error), full=_code(error) == sqlite3.SQLITE_FULL) from error
    except (sqlite3.DatabaseError, UnicodeDecodeError) as error:
        raise StateError(
            f"The database {database} is damaged.",
            details=f"{error}. Running machines go on; nothing was changed.",
            resolution="See what is left: vmm db check; then: sudo vmm db restore",
        ) from error
    except OSError as error:
        raise _cannot(database, str(error), full=error.errno in (errno.ENOSPC, errno.EDQUOT)) from error


def _cannot(database: Path, details: str, *, full: bool) -> StateError:
    return StateError(
        f"A copy of the database {database} cannot be made.",
        details=f"{details}. The database itself is as it was.",
        resolution="Make room on that file system: df -h shows it, vmm delete NAME frees some."
        if full
        else "Check the file system: is it mounted read-only? Then try again.",
    )
