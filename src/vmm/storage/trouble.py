"""What SQLite has to say of a database, in three parts."""

from __future__ import annotations

import contextlib
import errno
import os
import sqlite3

from vmm import TYPE_CHECKING
from vmm.errors import StateError

if TYPE_CHECKING:
    from collections.abc import Generator
    from pathlib import Path


@contextlib.contextmanager
def told(path: Path, *, busy_s: float) -> Generator[None]:
    """Convert SQLite's errors, once, at the edge."""
    try:
        yield
    except sqlite3.OperationalError as error:
        raise _operational(path, error, busy_s=busy_s) from error
    except sqlite3.DatabaseError as error:
        raise damaged(path, str(error)) from error
    except UnicodeDecodeError as error:
        # What SQLite quotes of a damaged page need not be text, and then Python cannot read even the message.
        raise damaged(path, error.object.decode(errors="replace")) from error
    except OSError as error:
        from vmm.remedy import MISNAMED, RIGHTS

        # Of what lies at its path, or of who may have it; anything else is the host's.
        if error.errno not in MISNAMED | RIGHTS:
            raise
        raise _unopened(path, error) from error


def damaged(path: Path, details: str) -> StateError:
    return StateError(
        f"The database {path} is damaged.",
        details=f"{details}. Running machines go on; nothing was changed.",
        resolution="See what is left: vmm db check; then: sudo vmm db restore",
    )


def unreadable(path: Path, why: str) -> StateError:
    import shlex

    at = shlex.quote(str(path))
    return StateError(
        f"The database {path} cannot be read, and was not backed up.",
        details=why,
        resolution=f"See what lies there (ls -ld {at}) and who holds it (sudo fuser -v {at}), then try again.",
    )


def lost(path: Path, machines: Path, count: int) -> StateError:
    what = "is empty" if path.exists() else "is not there"
    return StateError(
        f"The database {path} is lost.",
        details=f"It {what}, though {count} machine(s) lie in {machines}. Those that run go on.",
        resolution="See what is left: vmm db check; then: sudo vmm db restore",
    )


def _operational(path: Path, error: sqlite3.OperationalError, *, busy_s: float) -> StateError:
    text = str(error)
    if "malformed" in text or "decode" in text:
        return damaged(path, text)
    if "locked" in text or "busy" in text:
        return StateError(
            "The database is in use.",
            details=f"{path} was held by another process for more than {busy_s:.0f} s.",
            resolution=f"See who holds it (fuser {path}), then try again.",
        )
    if "readonly" in text or "unable to open" in text:
        return _unopened(path, _as_the_system_says(path, error))
    if "full" in text:
        return StateError(
            "The database cannot be written: the disk is full.",
            details=f"{path}: {text}",
            resolution="Make room: vmm delete NAME works on a full disk.",
        )
    return StateError(
        "The database cannot be used.",
        details=f"{path}: {text}",
        resolution="Check the disk it lies on, then try again.",
    )


def _unopened(path: Path, error: OSError) -> StateError:
    from vmm.remedy import remedy

    return StateError(f"The database {path} cannot be opened for this.", details=str(error), resolution=remedy(error))


def _as_the_system_says(path: Path, error: sqlite3.OperationalError) -> OSError:
    """Return what the system itself says of a database that SQLite could not open, or not for writing."""
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK))
        os.close(os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
        if not os.access(path.parent, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path.parent))
    except OSError as said:
        return said
    return OSError(0, str(error), str(path))
