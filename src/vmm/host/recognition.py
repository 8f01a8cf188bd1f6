"""Which processes are engines of this very vmm: what is in a command line is anybody's to choose, and is not enough.

An engine runs as a user of the engines' or as root, by all of its ids; it sees the root of this host and its pids, or
it is in one of this data directory's jails and in a pid namespace that is a child of this host's; and out of a jail it
is the engine's program, has a disk of this data directory's open, or is in the cgroup of a machine.
"""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path

from vmm import TYPE_CHECKING
from vmm.model.value import Value

if TYPE_CHECKING:
    from collections.abc import Iterator

# Below `user@UID.service` a user names groups as they like, and has setuid programs run in them.
_GROUP = re.compile(r"^(?!.*/user@[1-9][0-9]*\.service/).*(?:/vmm/[0-9a-f]{32}|/vmm-[^/]+\.service)$", re.MULTILINE)
_DELETED = " (deleted)"
_OWN_ID = re.compile(rb"(?:^|\0)(?:--id[=\0]|-uuid\0)([0-9a-f-]{32,36})(?:\0|$)")
_JAILED = re.compile(rb"\0/([0-9a-f]{32})\.sock\0")


class Recognition(Value):
    """What an engine of this data directory is known by: user ids (first, last), programs, and where its files lie."""

    uids: tuple[int, int]
    programs: tuple[Path, ...]
    jails: Path
    machines: Path

    def is_engine(self, pid: int) -> bool:
        """Whether a process may be one; where only root could tell, and we are not, its ids alone decide."""
        try:
            return self._has_ids(pid) and (os.geteuid() != 0 or self._is_at_home(pid))
        except (OSError, ValueError):
            # It has ended meanwhile.
            return False

    def is_jailed(self, pid: int) -> bool:
        """Whether a process has its root in one of this data directory's jails."""
        with contextlib.suppress(OSError):
            return self._is_root(Path(f"/proc/{pid}/root"), self.jails.glob("*/*/root"))
        return False

    def _has_ids(self, pid: int) -> bool:
        """Whether each of its eight ids is root's or an engine's; one of root's leads a session."""
        found = _status(pid, "Uid:") + _status(pid, "Gid:")
        first, last = self.uids
        if len(found) != 8 or any(number and not first <= number <= last for number in found):
            return False
        return any(found[:4]) or os.getsid(pid) == pid

    def _is_at_home(self, pid: int) -> bool:
        below = _status(pid, "NSpid:")
        if self.is_jailed(pid):
            return len(below) == 2 and below[-1] == 1
        if not self._is_root(Path(f"/proc/{pid}/root"), iter([Path("/")])):
            return False
        # The jailer's child has another root in a moment.
        if len(below) != 1 and (len(below) != 2 or below[-1] != 1):
            return False
        return self._is_program(pid) or self._has_disk(pid) or self._has_group(pid)

    def _is_root(self, root: Path, places: Iterator[Path]) -> bool:
        there = root.stat()
        for place in places:
            with contextlib.suppress(OSError):
                other = place.stat()
                if (other.st_dev, other.st_ino) == (there.st_dev, there.st_ino):
                    return True
        return False

    def _is_program(self, pid: int) -> bool:
        exe = Path(f"/proc/{pid}/exe")
        # One that was replaced by a newer release runs on without a name.
        name = str(exe.readlink())
        if name.endswith(_DELETED) and Path(name.removesuffix(_DELETED)) in {path.resolve() for path in self.programs}:
            return True
        return self._is_root(exe, iter(self.programs))

    def _has_disk(self, pid: int) -> bool:
        disks: set[tuple[int, int]] = set()
        for disk in self.machines.glob("*/disk.ext4"):
            with contextlib.suppress(OSError):
                there = disk.stat()
                disks.add((there.st_dev, there.st_ino))
        for entry in os.listdir(f"/proc/{pid}/fd"):  # noqa: PTH208  # names are all that is needed
            with contextlib.suppress(OSError):
                there = Path(f"/proc/{pid}/fd/{entry}").stat()
                if (there.st_dev, there.st_ino) in disks:
                    return True
        return False

    def _has_group(self, pid: int) -> bool:
        return _GROUP.search(Path(f"/proc/{pid}/cgroup").read_text(encoding="utf-8", errors="replace")) is not None


def own_id(line: bytes) -> str | None:
    """Return the id of the machine that a command line names as its own, None for none."""
    match = _JAILED.search(b"\0" + line) or _OWN_ID.search(line)
    return match[1].decode().replace("-", "") if match else None


def _status(pid: int, key: str) -> list[int]:
    text = Path(f"/proc/{pid}/status").read_text(encoding="utf-8", errors="replace")
    line = next((line for line in text.splitlines() if line.startswith(key)), key)
    return [int(word) for word in line.removeprefix(key).split()]
