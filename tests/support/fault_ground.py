"""The ground that faults are tried on: a network and a data directory of its own, seen and put back without vmm's help.

The data directory is a tmpfs of this process's own mount namespace: it can be filled to its last byte and made read-only
for real, flushing costs nothing, and nobody else sees it.
"""

import contextlib
import fcntl
import functools
import os
import re
import select
import shutil
import signal
import socket
import sqlite3
import stat
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import fault_family
import fault_mounts
from failpoints import steady
from fault_kept import Kept
from fault_network import Network

from vmm.config import CONNECTIONS, SUBNET
from vmm.network import netlink, ownership, tables

# Tables that grow with what happened, and are to.
_HISTORY = {"events", "meta", "notes"}
_HISTORY_ROWS = re.compile(r"INSERT INTO \"(events|meta|notes|sqlite_sequence)\"")
# Times, pids, ticks: what a number says is seen elsewhere.
_NUMBERS = re.compile(r"[0-9]{3,}[0-9:TZ-]*")
# Copies of the database that a migration kept, and the journal of a write that was cut off, which the next one uses.
# The reserve is made again by the next write that finds the room for it. Of the two copies for users each commit writes
# the one that the last did not.
_OF_THE_DATABASE = re.compile(r"state/(backups(/vmm-[^/]*)?|vmm\.db-journal|reserve|readable\.[01])")
_ID = re.compile(r"[0-9a-f]{32}")


@dataclass
class Ground:
    """`ids` are those of every machine that was ever seen here: what carries one is ours."""

    root: Path
    kept: Path
    ids: set[str] = field(default_factory=set)
    network: Network = field(default_factory=Network)
    _supervisor: int | None = None

    @contextlib.contextmanager
    def held_database(self) -> Iterator[None]:
        """Hold the database as another process at work on it would."""
        path = self.root / "state" / "vmm.db"
        if not path.exists():
            yield
            return
        with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
            connection.execute("BEGIN EXCLUSIVE")
            yield
            connection.execute("ROLLBACK")

    def be_supervisor(self) -> None:
        """Hold the lock of vmm's supervisor, so that none starts: what it does on its own would be seen at random."""
        state = self.root / "state"
        if state.is_dir():
            self._supervisor = os.open(state / "supervisor.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            # Whoever has it now ends within this, or is one too many.
            with _alarm(10):
                fcntl.flock(self._supervisor, fcntl.LOCK_EX)

    def be_none(self) -> None:
        if self._supervisor is not None:
            os.close(self._supervisor)
            self._supervisor = None

    def processes(self) -> dict[int, list[str]]:
        """Return the argument lists of all that was started here and lives, by pid."""
        return fault_family.living()

    def engines(self, name: str, identity: str, processes: dict[int, list[str]]) -> list[int]:
        """Return the pids of the engines of one machine: its socket's path or its id is an argument of theirs."""
        marks = {str(self.root / "sockets" / f"{name}.sock"), identity, f"/{identity}.sock"}
        return [pid for pid, arguments in processes.items() if marks & set(arguments)]

    def quiet(self, session: int, timeout_s: float = 20.0) -> list[list[str]]:
        """Wait for the programs that a killed vmm left at work; return those that stay.

        Jailers have sessions of their own, and so have their children that are no engine yet.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            there = self.processes()
            left = [
                a for pid, a in there.items() if a[0].endswith("/jailer") or fault_family.session_of(pid) == session
            ]
            if not left or time.monotonic() > deadline:
                return left
            time.sleep(0.002)

    def settled(self, timeout_s: float = 20.0) -> None:
        """Wait until the supervisor has done what it does about an engine that has ended."""
        deadline = time.monotonic() + timeout_s
        while any("settle" in arguments for arguments in self.processes().values()):
            assert time.monotonic() < deadline, f"vmm settle goes on: {self.processes()}"
            time.sleep(0.01)

    def files(self) -> dict[str, str]:
        """Return what lies below the data directory: its kind, mode, owner, and size where that is no history."""
        found: dict[str, str] = {}
        root = str(self.root)
        for directory, names, others in os.walk(root):
            for name in (*names, *others):
                path = f"{directory}/{name}"
                seen = os.lstat(path)
                relative = path.removeprefix(f"{root}/")
                if _OF_THE_DATABASE.fullmatch(relative):
                    continue
                sized = stat.S_ISREG(seen.st_mode) and not relative.startswith(("logs/", "state/"))
                # A pid has as many digits as it has.
                sized = sized and not relative.endswith(".pid")
                # What is beside a disk for the day the database is lost is written as well as may be, and never waited for.
                sized = sized and not relative.endswith("/machine.json")
                size = f" {seen.st_size}" if sized else ""
                found[_plain(relative)] = f"{stat.filemode(seen.st_mode)} {seen.st_uid}:{seen.st_gid}{size}"
        return found

    def rows(self) -> dict[str, int]:
        """Return how many rows each table has that is no history."""
        with self._database() as connection:
            tables = [row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
            counted = [table for table in tables if table not in _HISTORY and not table.startswith("sqlite_")]
            return {table: connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0] for table in counted}

    def records(self) -> str:
        """Return what the database says, without what differs from run to run, and without its history."""
        with self._database() as connection:
            found = [line for line in connection.iterdump() if not _HISTORY_ROWS.match(line)]
        return _NUMBERS.sub("N", steady("\n".join(found)))

    def ids_now(self) -> set[str]:
        """Return the ids of the machines that are recorded now."""
        with self._database() as connection:
            return {row[0] for row in connection.execute("SELECT id FROM machines")}

    @contextlib.contextmanager
    def _database(self) -> Iterator[sqlite3.Connection]:
        """Open a copy of the database, with the journal of a write that was cut off: the next command finds both."""
        copy = self.kept / "database" / "vmm.db"
        copy.parent.mkdir(parents=True, exist_ok=True)
        for name in ("vmm.db", "vmm.db-journal"):
            copy.with_name(name).unlink(missing_ok=True)
            with contextlib.suppress(FileNotFoundError):
                shutil.copyfile(self.root / "state" / name, copy.with_name(name))
        with contextlib.closing(sqlite3.connect(copy)) as connection:
            yield connection

    def mounts(self) -> list[str]:
        return [_plain(point) for point in fault_mounts.points() if point.startswith(f"{self.root}/")]

    def cgroups(self) -> list[str]:
        """Return the cgroups that bear the id of a machine of ours."""
        found: list[str] = []
        # Version 1 has a directory for each controller, version 2 has none of them.
        for top in (*Path("/sys/fs/cgroup").glob("*/vmm"), Path("/sys/fs/cgroup/vmm")):
            with contextlib.suppress(FileNotFoundError):
                found += [entry.path for entry in os.scandir(top) if entry.name in self.ids]
        return found

    def inventory(self) -> dict[str, object]:
        return {
            "files": self.files(),
            "links": self.network.links(),
            "rules": self._without_id(self.network.rules()),
            "routing": self.network.routing(),
            "rows": self.rows(),
            "mounts": self.mounts(),
            "cgroups": [_plain(path) for path in self.cgroups()],
        }

    def _without_id(self, rules: str) -> str:
        """Return rules that show the names this data directory's id gives as if it had no other id in any run.

        Another id's stay as they are, and so do those of tables that are not what they should be.
        """
        owner = ownership.owner_at(self.root, make=False)
        return rules.replace(owner.chain, "of_OURS").replace(_stamp(owner.chain), "is_OURS") if owner.id else rules

    @contextlib.contextmanager
    def a_neighbour(self) -> Iterator[None]:
        """Have another group among those of vmm's, so that the one above them neither comes nor goes with ours."""
        made: list[Path] = []
        for hierarchy in Path("/sys/fs/cgroup").iterdir():
            if (hierarchy / "cgroup.procs").exists() and not hierarchy.is_symlink():
                neighbour = hierarchy / "vmm" / f"neighbour-{os.getpid()}"
                neighbour.mkdir(parents=True)
                made.append(neighbour)
        try:
            yield
        finally:
            for neighbour in made:
                neighbour.rmdir()
                with contextlib.suppress(OSError):
                    neighbour.parent.rmdir()

    def sweep(self) -> None:
        """End every process, link, rule, routing rule, cgroup and mount of ours, whatever made it."""
        for pid in self.processes():
            with contextlib.suppress(ProcessLookupError):
                fd = os.pidfd_open(pid)
                signal.pidfd_send_signal(fd, signal.SIGKILL)
                select.select([fd], [], [], 10)
                os.close(fd)
        for point in reversed(fault_mounts.points()):
            if point.startswith(f"{self.root}/"):
                fault_mounts.take_off(point)
        for path in self.cgroups():
            with contextlib.suppress(OSError):
                Path(path).rmdir()
        for _, link in socket.if_nameindex()[1:]:
            netlink.remove_link(link)
        subprocess.run(["nft", "flush", "ruleset"], check=True)
        self.network.put_routing_back()

    def keep(self, name: str) -> Kept:
        """Remember the whole data directory as it is now."""
        copy = self.kept / name
        shutil.rmtree(copy, ignore_errors=True)
        copy.mkdir(parents=True)
        kept = Kept(root=self.root, copy=copy)
        kept.take()
        return kept


@functools.cache
def _stamp(owner: str) -> str:
    """Return the stamp that the tables bear which this owner makes with the configuration that there is by itself."""
    ipv6 = Path("/proc/sys/net/ipv6").exists()
    return tables.stamp(
        tables.rendered(owner=owner, bridge="vmm-br0", subnet=SUBNET, allowed=(), connections=CONNECTIONS, ipv6=ipv6)
    )


def _plain(path: str) -> str:
    return _ID.sub("ID", path)


@contextlib.contextmanager
def _alarm(seconds: int) -> Iterator[None]:
    """Raise what SIGALRM raises when the block takes longer."""
    before = signal.signal(signal.SIGALRM, _too_long)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def _too_long(_number: int, _frame: object) -> None:
    raise TimeoutError("it takes too long")
