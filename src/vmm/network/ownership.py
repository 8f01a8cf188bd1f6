"""Whose the links and tables of this host are: what one vmm made, no other takes, changes or removes.

A data directory has an id. Each link that vmm makes carries it in its alias, and each table in the name of a chain. A
link of the version before carries nothing: it is known by what it is, and by the machines that run here.
"""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path
from zlib import crc32

from vmm import TYPE_CHECKING
from vmm.errors import ConflictError, HostError, NetworkError
from vmm.host import files
from vmm.model.value import Value

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vmm.network.netlink import Link

_ID = r"[0-9a-f]{16}"
_MARK = rf"vmm ({_ID}) (.*)"
_MOST_BYTES = 8192


class Owner(Value):
    """The vmm of one data directory. An `id` that is empty is that of one which has made nothing yet."""

    id: str
    place: Path

    @property
    def mark(self) -> str:
        """What the alias of its links says."""
        return f"vmm {self.id} {self.place}"

    @property
    def chain(self) -> str:
        """The name of the chain, an empty one, that its tables have and no others."""
        return f"of_{self.id}"

    def has_made(self, link: Link) -> bool:
        other = owner_of(link.alias)
        return other is not None and self.is_same(other)

    def is_same(self, other: Owner) -> bool:
        """Whether both are one vmm, which may have been moved since."""
        return bool(self.id) and self.id == other.id


def owner_of(alias: str) -> Owner | None:
    """Return who made a link with this alias; None when it is no mark of vmm's."""
    match = re.fullmatch(_MARK, alias, re.DOTALL)
    return Owner(id=match[1], place=Path(match[2])) if match else None


def id_file(data_dir: Path) -> Path:
    return data_dir / "state" / "id"


def place_file(data_dir: Path) -> Path:
    return data_dir / "state" / "place"


def original_of(data_dir: Path) -> Path | None:
    """Return the data directory that this one was copied from, if it is there as well; None where there is none.

    Machines of both have the same ids, and so the same engines, units and cgroups: what the one stops is the other's.
    """
    known = _read(place_file(data_dir))
    if not known or known == os.fsencode(data_dir):
        return None
    original = Path(os.fsdecode(known))
    # One that was moved is not at its old place any more, or by another name only.
    if _is_same_file(original, data_dir) or _read(id_file(original)) != _read(id_file(data_dir)):
        return None
    return original


def refuse_copy(data_dir: Path) -> None:
    """Refuse a copy of a data directory that is there as well; else remember where this one lies.

    Raises:
        ConflictError: it is a copy. One that takes its original's place is none, once that is gone.
    """
    # Without an id nothing was ever started from here.
    if _read(place_file(data_dir)) == os.fsencode(data_dir) or not _read(id_file(data_dir)):
        return
    original = original_of(data_dir)
    if original is not None:
        raise ConflictError(
            "This data directory is a copy of another one, which is there as well.",
            details=f"{data_dir} was copied from {original}: the machines of both are the same. Nothing was touched.",
            resolution=f"Use that one (--data-dir {original}). Is this one to take its place? Then move that one away.",
        )
    _remember_place(data_dir)


def _remember_place(data_dir: Path) -> None:
    # Where it cannot be written, whatever is asked next says so.
    with contextlib.suppress(HostError):
        files.write_atomic(place_file(data_dir), os.fsencode(data_dir), mode=0o600)


def owner_at(data_dir: Path, *, make: bool) -> Owner:
    """Return the owner that a data directory is; with `make` one that has no id yet is given one."""
    path = id_file(data_dir)
    found = _read_id(path)
    if not found and make:
        _remember_place(data_dir)
        _make_id(path)
        found = _read_id(path)
    return Owner(id=found, place=data_dir)


def is_gone(other: Owner, ours: Owner) -> bool:
    """Whether the data directory of another vmm is not there any more, as far as can be seen from here."""
    return _is_same_file(other.place, ours.place) or _read_id(id_file(other.place)) != other.id


def refused(other: Owner, *, what: str) -> NetworkError:
    """Return the error for a network that another vmm has."""
    return NetworkError(
        "Another vmm has this host's network.",
        details=f"{what} was made by the vmm whose data directory is {other.place}. Nothing of it was touched.",
        resolution=f"Use that one (--data-dir {other.place}), or take its network off first:"
        f" sudo vmm --data-dir {other.place} teardown",
    )


def living(other: Owner, links: Sequence[Link]) -> list[str]:
    """Return the taps of another vmm that a process has open."""
    return [link.name for link in links if link.kind == "tun" and link.is_open and owner_of(link.alias) == other]


def _make_id(path: Path) -> None:
    """Give a data directory its id; of two commands that do so at once the first one's counts."""
    # Its directory is not made: a data directory that was removed under machines that run stays removed.
    # As `files.write_atomic` names what it has not renamed yet: what a killed command leaves is removed in time.
    draft = path.with_name(f".{path.name}.{os.urandom(6).hex()}")
    files.write_atomic(draft, f"{os.urandom(8).hex()}\n")
    try:
        os.link(draft, path)
    except FileExistsError:
        if not _read_id(path):
            draft.replace(path)
    except OSError as error:
        raise NetworkError(
            "The id of this data directory cannot be kept.",
            details=str(error),
            resolution=f"Check the file system that {path} lies on: vmm doctor",
        ) from error
    finally:
        with contextlib.suppress(OSError):
            draft.unlink(missing_ok=True)


def _read_id(path: Path) -> str:
    """Return the id that a file stands for, empty for none.

    A data directory that is moved keeps its id; one that is copied gets another with the copy's inode.
    """
    with contextlib.suppress(OSError):
        text = _read(path).decode("ascii", errors="replace").strip()
        if re.fullmatch(_ID, text):
            return f"{int(text, 16) ^ crc32(str(path.lstat().st_ino).encode()):016x}"
    return ""


def _read(path: Path) -> bytes:
    """Return the first bytes of a small file, none where it cannot be read."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return b""
    try:
        return os.read(fd, _MOST_BYTES)
    except OSError:
        return b""
    finally:
        os.close(fd)


def _is_same_file(one: Path, other: Path) -> bool:
    try:
        return one.samefile(other)
    except OSError:
        return False
