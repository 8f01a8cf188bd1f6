"""Which copies of the database there are: told by their names, for what is in them need not be readable."""

from __future__ import annotations

import contextlib
import os
import re
import time

from vmm import TYPE_CHECKING
from vmm.model.value import Value

if TYPE_CHECKING:
    from pathlib import Path

_NAME = re.compile(r"vmm-(v[0-9]+-)?([0-9]{8}T[0-9]{6}Z)-[0-9a-f]{6}\.db", re.ASCII)
_TIME = "%Y%m%dT%H%M%SZ"


class Copy(Value):
    """A copy of the database: `made_at` is part of its name, `by_hand` whether it was asked for."""

    path: Path
    made_at: str
    by_hand: bool


def copies(path: Path) -> list[Copy]:
    """Return the copies of the database `path`, the newest first; what only has a name like one's is none.

    Raises:
        PermissionError: this user may not see them.
    """
    found: list[tuple[str, int, Copy]] = []
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        for entry in (path.parent / "backups").iterdir():
            match = _NAME.fullmatch(entry.name)
            if match is None:
                continue
            with contextlib.suppress(ValueError, FileNotFoundError):
                made_at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.strptime(match[2], _TIME))
                # Within one second the file's own time decides.
                found.append(
                    (match[2], entry.stat().st_mtime_ns, Copy(path=entry, made_at=made_at, by_hand=match[1] is None))
                )
    return [copy for _, _, copy in sorted(found, key=lambda row: row[:2], reverse=True)]


def stamp() -> str:
    """Return what makes a copy's name its own: when it is made, and something random."""
    return f"{time.strftime(_TIME, time.gmtime())}-{os.urandom(3).hex()}"
