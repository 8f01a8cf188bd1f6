"""The ground that faults are tried on: a network and a data directory of its own, seen and put back without vmm's help.

The data directory is a tmpfs of this process's own mount namespace: it can be filled to its last byte and made read-only
for real, flushing costs nothing, and nobody else sees it.
"""

import contextlib
import ctypes
import fcntl
import json
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

import failpoints

from vmm.network import netlink

_CLONE_NEWNS, _CLONE_NEWNET = 0x00020000, 0x40000000
_MS_BIND, _MS_REC, _MS_PRIVATE = 1 << 12, 1 << 14, 1 << 18
_MNT_DETACH = 2
ROOM = "size=512m,nr_inodes=20000"
# Tables that grow with what happened, and are to.
_HISTORY = {"events", "meta", "notes"}
_HISTORY_ROWS = re.compile(r"INSERT INTO \"(events|meta|notes|sqlite_sequence)\"")
# Times, pids, ticks: what a number says is seen elsewhere.
_NUMBERS = re.compile(r"[0-9]{3,}[0-9:TZ-]*")
# Copies of the database that a migration kept, and the journal of a write that was cut off, which the next one uses.
_OF_THE_DATABASE = re.compile(r"state/(backups(/vmm-[^/]*)?|vmm\.db-journal)")
_ID = re.compile(r"[0-9a-f]{32}")
_libc = ctypes.CDLL(None, use_errno=True)


def enter(namespace: str, root: Path) -> None:
    """Bring this process into a network namespace, and mount a tmpfs at `root` that only it and its children see.

    Not by `ip netns exec`: that hides the host's cgroups.
    """
    with Path(f"/run/netns/{namespace}").open("rb") as there:
        _checked(_libc.setns(there.fileno(), _CLONE_NEWNET), "setns")
    _checked(_libc.unshare(_CLONE_NEWNS), "unshare")
    _mount("none", "/", None, _MS_REC | _MS_PRIVATE, None)
    root.mkdir(parents=True, exist_ok=True)
    _mount("tmpfs", str(root), "tmpfs", 0, f"{ROOM},mode=755")


def bind(source: Path, target: Path) -> None:
    _mount(str(source), str(target), None, _MS_BIND, None)


def _mount(source: str, target: str, kind: str | None, flags: int, options: str | None) -> None:
    texts = [None if text is None else text.encode() for text in (source, target, kind, options)]
    _checked(_libc.mount(texts[0], texts[1], texts[2], ctypes.c_ulong(flags), texts[3]), f"mount {target}")


def _checked(result: int, what: str) -> None:
    if result:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


@dataclass
class Ground:
    """`ids` are those of every machine that was ever seen here: what carries one is ours."""

    root: Path
    kept: Path
    ids: set[str] = field(default_factory=set)
    _supervisor: int | None = None

    def lift(self) -> None:
        """Give back the room that a fault took, and the right to write."""
        while [line.split(" ")[1] for line in _mounts()].count(str(self.root)) > 1:
            _checked(_libc.umount2(str(self.root).encode(), _MNT_DETACH), f"umount {self.root}")
        failpoints.remount(str(self.root), ROOM)

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
        """Return the argument lists of living processes that are of this data directory, by pid."""
        found: dict[int, list[str]] = {}
        root = str(self.root)
        for pid in _pids():
            line = _read(f"/proc/{pid}/cmdline")
            arguments = line.split("\0")[:-1]
            if root in line or any(argument.strip("/").removesuffix(".sock") in self.ids for argument in arguments):
                found[pid] = arguments
        return found

    def engines(self, name: str, identity: str, processes: dict[int, list[str]]) -> list[int]:
        """Return the pids of the engines of one machine: its socket's path or its id is an argument of theirs."""
        marks = {str(self.root / "sockets" / f"{name}.sock"), identity, f"/{identity}.sock"}
        return [pid for pid, arguments in processes.items() if marks & set(arguments)]

    def quiet(self, session: int, timeout_s: float = 20.0) -> list[int]:
        """Wait for the programs that a killed vmm left at work; return those that stay."""
        deadline = time.monotonic() + timeout_s
        while left := _of_session(session):
            if time.monotonic() > deadline:
                return left
            time.sleep(0.002)
        return []

    def links(self) -> dict[str, str]:
        """Return what every link but lo is: up, its address, its bridge, and whether it is isolated there."""
        done = subprocess.run(["ip", "-j", "-d", "address"], capture_output=True, check=True)
        return {link["ifname"]: _link_words(link) for link in json.loads(done.stdout) if link["ifname"] != "lo"}

    def settled(self, timeout_s: float = 20.0) -> None:
        """Wait until the supervisor has done what it does about an engine that has ended."""
        deadline = time.monotonic() + timeout_s
        while any("settle" in arguments for arguments in self.processes().values()):
            assert time.monotonic() < deadline, f"vmm settle goes on: {self.processes()}"
            time.sleep(0.01)

    def has_link(self, name: str) -> bool:
        return name in {link for _, link in socket.if_nameindex()}

    def rules(self) -> str:
        """Return the whole ruleset, in one order whatever the order of a set's elements in the kernel."""
        done = subprocess.run(["nft", "-j", "list", "ruleset"], capture_output=True, check=True)
        return json.dumps(_plain_rules(json.loads(done.stdout)["nftables"]), sort_keys=True)

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
                size = f" {seen.st_size}" if sized else ""
                found[_plain(relative)] = f"{stat.filemode(seen.st_mode)} {seen.st_uid}:{seen.st_gid}{size}"
        return found

    def rows(self) -> dict[str, int]:
        """Return how many rows each table has that is no history."""
        path = self.root / "state" / "vmm.db"
        if not path.exists():
            return {}
        with contextlib.closing(sqlite3.connect(path)) as connection:
            tables = [row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
            counted = [table for table in tables if table not in _HISTORY and not table.startswith("sqlite_")]
            return {table: connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0] for table in counted}

    def records(self) -> str:
        """Return what the database says, without what differs from run to run, and without its history."""
        found: list[str] = []
        path = self.root / "state" / "vmm.db"
        if path.exists():
            with contextlib.closing(sqlite3.connect(path)) as connection:
                found = [line for line in connection.iterdump() if not _HISTORY_ROWS.match(line)]
        return _NUMBERS.sub("N", failpoints.steady("\n".join(found)))

    def ids_now(self) -> set[str]:
        """Return the ids of the machines that are recorded now."""
        path = self.root / "state" / "vmm.db"
        with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as connection:
            return {row[0] for row in connection.execute("SELECT id FROM machines")}

    def mounts(self) -> list[str]:
        points = [line.split(" ")[1] for line in _mounts()]
        return [_plain(point) for point in points if point.startswith(f"{self.root}/")]

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
            "links": self.links(),
            "rules": self.rules(),
            "rows": self.rows(),
            "mounts": self.mounts(),
            "cgroups": [_plain(path) for path in self.cgroups()],
        }

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
        """End every process, link, rule, cgroup and mount of ours, whatever made it."""
        for pid in self.processes():
            with contextlib.suppress(ProcessLookupError):
                fd = os.pidfd_open(pid)
                signal.pidfd_send_signal(fd, signal.SIGKILL)
                select.select([fd], [], [], 10)
                os.close(fd)
        for point in reversed([line.split(" ")[1] for line in _mounts()]):
            if point.startswith(f"{self.root}/"):
                _libc.umount2(point.encode(), _MNT_DETACH)
        for path in self.cgroups():
            with contextlib.suppress(OSError):
                Path(path).rmdir()
        for _, link in socket.if_nameindex()[1:]:
            netlink.remove_link(link)
        subprocess.run(["nft", "flush", "ruleset"], check=True)

    def keep(self, name: str) -> "Kept":
        """Remember the whole data directory as it is now."""
        copy = self.kept / name
        shutil.rmtree(copy, ignore_errors=True)
        copy.mkdir(parents=True)
        kept = Kept(root=self.root, copy=copy)
        kept.take()
        return kept


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
            same = known is not None and (stat.S_ISDIR(now.st_mode) or _signature(now) == known[1])
            if not same:
                (os.rmdir if stat.S_ISDIR(now.st_mode) else os.unlink)(self.root / path)
        for path, (seen, _) in self.entries.items():
            target = self.root / path
            if not os.path.lexists(target):
                self._make(path, target, seen)
            elif stat.S_IMODE(os.lstat(target).st_mode) != stat.S_IMODE(seen.st_mode):
                target.chmod(stat.S_IMODE(seen.st_mode))

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


def _plain(path: str) -> str:
    return _ID.sub("ID", path)


def _mounts() -> list[str]:
    return Path("/proc/self/mounts").read_text().splitlines()


def _pids() -> list[int]:
    own = os.getpid()
    names = os.listdir("/proc")  # noqa: PTH208  # it is done after every command
    return [int(name) for name in names if name.isdigit() and int(name) != own]


def _read(path: str) -> str:
    """Return a file of /proc, by the shortest way: it is done for every process after every command."""
    try:
        fd = os.open(path, os.O_RDONLY)
    except OSError:
        return ""
    try:
        return os.read(fd, 65536).decode(errors="replace")
    except OSError:
        return ""
    finally:
        os.close(fd)


def _of_session(session: int) -> list[int]:
    found = []
    for pid in _pids():
        fields = _read(f"/proc/{pid}/stat").rpartition(")")[2].split()
        if fields and fields[0] != "Z" and int(fields[3]) == session:
            found.append(pid)
    return found


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


def _link_words(link: dict) -> str:
    addresses = [f"{found['local']}/{found['prefixlen']}" for found in link["addr_info"] if found["family"] == "inet"]
    isolated = link.get("linkinfo", {}).get("info_slave_data", {}).get("isolated", False)
    kind = link.get("linkinfo", {}).get("info_kind", "")
    # A bridge's MAC is given to it, a tap's own is the kernel's choice.
    words = ["up" if "UP" in link["flags"] else "down", *addresses, *([link["address"]] if kind == "bridge" else [])]
    return " ".join(
        [*words, *([f"on {link['master']}"] if "master" in link else []), *(["isolated"] if isolated else [])]
    )


def _plain_rules(value):
    """Return nft's JSON without handles and counters, a set's elements sorted."""
    if isinstance(value, dict):
        plain = {key: _plain_rules(item) for key, item in value.items() if key not in ("handle", "index", "metainfo")}
        if isinstance(plain.get("elem"), list):
            plain["elem"].sort(key=json.dumps)
        return plain
    return [_plain_rules(item) for item in value] if isinstance(value, list) else value
