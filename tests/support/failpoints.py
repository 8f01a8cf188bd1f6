"""Failpoints: a vmm that is ended, interrupted or met by an error at one chosen boundary of its work.

A boundary is the instant before a side effect: all before it has happened, it has not. Python's own audit events mark
nearly all of them, so that nothing of vmm's has to know of this; what they do not tell (a flush, a write at an offset, a
SQL statement, a netlink message, the return of a started program, the end of the process) is wrapped in the process at
work. Boundaries are named by what happens and its occurrence, so that a name means the same in every run.
"""

import errno
import json
import os
import re
import resource
import signal
import socket
import sqlite3
import sys
import threading
from dataclasses import dataclass
from enum import StrEnum

import fault_mounts
import fault_wraps
from fault_wraps import name_of, whole_path

KILLED = 73
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
# Reading a link's flags, its address and its index changes nothing (linux/sockios.h).
_ASKING_IOCTLS = {0x8913, 0x8915, 0x8933}
# What differs from run to run: a machine's id, the pid and random part of a working directory, of a temporary file.
_VARYING = (
    (re.compile(r"[0-9a-f]{32}"), "ID"),
    (re.compile(r"-[0-9]+-[0-9a-f]{8}\b"), "-*"),
    (re.compile(r"\.[0-9a-f]{12}\b"), ".*"),
    (re.compile(r"/proc/[0-9]+"), "/proc/PID"),
    (re.compile(r"/proc/self/fd/[0-9]+"), "/proc/self/fd/N"),
)
# Which of the two copies a commit writes for users, and what of it, depends on what the last commits wrote.
_COPY = re.compile(r"^\w+ state/readable\.[01].*")
# What fills a working directory, or takes a jail apart, counts as one piece of work: its first step of each kind.
_ONE_PIECE = re.compile(r"(staging/[a-z]+-\*/tree/|(?:remove|rmdir) jails/[a-z]+/ID/root/).+")
_LOCK = re.compile(r"open \S+\.lock$")
_SQL_WRITES = re.compile(
    r"\s*(BEGIN|COMMIT|END|INSERT|UPDATE|DELETE|REPLACE|CREATE|DROP|ALTER|VACUUM|PRAGMA \w+ ?=)", re.IGNORECASE
)
# Of the connection, not of the file.
_SQL_SETTINGS = re.compile(
    r"\s*PRAGMA (foreign_keys|busy_timeout|synchronous|temp_store|cache_size|query_only)", re.IGNORECASE
)
# Taken before anything is wrapped.
_exit, _write, _kill, _killpg = os._exit, os.write, os.kill, os.killpg


class Mode(StrEnum):
    """What happens at the boundary; the last two are so from the start, with no boundary of their own."""

    KILL = "kill -9"
    INT = "Ctrl-C"
    TERM = "SIGTERM"
    EIO = "one EIO"
    EROFS = "read-only from there on"
    ENOSPC = "full from there on"
    EMFILE = "no descriptor from there on"
    READ_ONLY = "a read-only file system"
    HELD = "a database that another process holds"


class Kind(StrEnum):
    """What is about to happen."""

    FILE = "a change below the data directory"
    SQL = "a write to the database"
    PROGRAM = "a program, about to be started or just started"
    OTHER = "another side effect"
    END = "the end of the process"
    START = "all of it"


_KINDS = {
    Mode.KILL: set(Kind) - {Kind.START},
    Mode.INT: set(Kind) - {Kind.START},
    Mode.TERM: set(Kind) - {Kind.START},
    Mode.EIO: {Kind.FILE, Kind.SQL},
    # What holds on from there begins anew only where the data directory is touched, by vmm or by what it starts.
    Mode.EROFS: {Kind.FILE, Kind.SQL, Kind.PROGRAM},
    Mode.ENOSPC: {Kind.FILE, Kind.SQL, Kind.PROGRAM},
    Mode.EMFILE: {Kind.FILE, Kind.SQL, Kind.PROGRAM, Kind.OTHER},
    Mode.READ_ONLY: {Kind.START},
    Mode.HELD: {Kind.START},
}


def happens_at(mode: Mode, kind: Kind) -> bool:
    return kind in _KINDS[mode]


@dataclass(frozen=True)
class Fault:
    mode: Mode
    key: str


class Failpoints:
    """The boundaries of this process. With a fault, it strikes at its key; without, they are only noted.

    `report` is a descriptor that gets an F when the fault strikes, and at the end what was reached, as JSON.
    """

    def __init__(self, root: str, names: dict[str, str], *, fault: Fault | None, report: int) -> None:
        self._root = root
        self._names = names
        self._fault = fault
        self._report = report
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._busy: set[int] = set()
        self._count: dict[str, int] = {}
        self._last: dict[int, str] = {}
        self._reached: list[tuple[str, Kind]] = []
        self._announced: list[str] = []
        self._traced = ""
        self.missed: list[str] = []
        self._struck = False

    def install(self) -> None:
        """From here on this process strikes; there is no way back."""
        sys.addaudithook(self._heard)
        fault_wraps.wrap_calls(self)
        fault_wraps.wrap_sqlite(self)
        fault_wraps.wrap_netlink(self)
        os._exit = self.leave

    def leave(self, code: int) -> None:
        """End the process, in the place of os._exit."""
        if os.getpid() == self._pid:
            self.reached("end", Kind.END)
            told = {"reached": self._reached, "missed": self.missed}
            _write(self._report, b"\n" + json.dumps(told).encode())
        _exit(code)

    def reached(self, label: str, kind: Kind, *, once: bool = False) -> None:
        """A boundary; `once` for what is done again and again until it works: only the first time counts."""
        thread = threading.get_ident()
        if os.getpid() != self._pid or thread in self._busy:
            return
        for found, shown in self._names.items():
            label = label.replace(found, shown)
        label = steady(label)
        label, in_piece = _ONE_PIECE.subn(r"\1...", label)
        label, in_copy = _COPY.subn("write state/readable.*", label)
        once = once or in_piece > 0 or in_copy > 0
        with self._lock:
            # A lock that another process holds is opened again and again, and nothing happens meanwhile.
            last, self._last[thread] = self._last.get(thread), label
            if label == last and _LOCK.match(label):
                return
            number = self._count[label] = self._count.get(label, 0) + 1
            key = label if number == 1 else f"{label} #{number}"
            if once and number > 1:
                return
            self._reached.append((key, kind))
        if self._fault is None:
            return
        if key == self._fault.key and not self._struck:
            self._struck = True
            _write(self._report, b"F")
            self._busy.add(thread)
            try:
                self._strike(label, kind)
            finally:
                self._busy.discard(thread)

    def _strike(self, label: str, kind: Kind) -> None:
        match self._fault.mode:
            case Mode.KILL:
                _exit(KILLED)
            case Mode.INT:
                # A terminal sends it to all of the foreground: the programs that vmm runs are hit too.
                _killpg(self._pid, signal.SIGINT)
            case Mode.TERM:
                _kill(self._pid, signal.SIGTERM)
            case Mode.EIO if kind is Kind.SQL:
                # A trace callback may not raise, and SQLite's own files cannot be broken for it: its own words must do.
                raise sqlite3.OperationalError("disk I/O error")
            case Mode.EIO:
                raise OSError(errno.EIO, os.strerror(errno.EIO), label)
            case Mode.EROFS:
                fault_mounts.make_read_only(self._root)
            case Mode.ENOSPC:
                fault_mounts.fill(self._root)
            case Mode.EMFILE:
                lowest = os.dup(self._report)
                os.close(lowest)
                resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, lowest))

    def _heard(self, event: str, arguments: tuple) -> None:
        told = _EVENTS.get(event)
        if told is not None and os.getpid() == self._pid:
            told(self, event, arguments)

    def opened(self, _event: str, arguments: tuple) -> None:
        path, _, flags = arguments
        if flags & _WRITES and not isinstance(path, int):
            self.changed("open", path)

    def path_event(self, event: str, arguments: tuple) -> None:
        """An event of os: a path first, the descriptor of the directory it is relative to last where there is one."""
        at = arguments[-1] if len(arguments) > 1 and event in ("os.mkdir", "os.rmdir", "os.remove") else -1
        self.changed(event.removeprefix("os."), arguments[0], at=at)

    def path_pair(self, event: str, arguments: tuple) -> None:
        target = whole_path(arguments[1])
        # What a symbolic link holds is a text, and no path from here.
        shown = os.fsdecode(arguments[0]) if event == "os.symlink" else self._shown(whole_path(arguments[0]))
        where = Kind.FILE if self._is_inside(target) else Kind.OTHER
        self.reached(f"{event.removeprefix('os.')} {shown} -> {self._shown(target)}", where)

    def changed(self, what: str, path, *, at: int = -1) -> None:
        whole = whole_path(path, at)
        if whole.startswith(("/dev/null", "/dev/tty", "pipe:", "/memfd:", "socket:", "anon_inode:")):
            return
        where = Kind.FILE if self._is_inside(whole) else Kind.OTHER
        # A group is gone when the kernel has let go of its processes: it is tried until then.
        self.reached(f"{what} {self._shown(whole)}", where, once=whole.startswith("/sys/fs/cgroup/"))

    def started(self, _event: str, arguments: tuple) -> None:
        self.reached(f"exec {name_of(arguments[0])}", Kind.PROGRAM)

    def was_started(self, program: str) -> None:
        self.reached(f"started {name_of(program)}", Kind.PROGRAM)

    def sent(self, kinds: str) -> None:
        self.reached(f"netlink {kinds}", Kind.OTHER)

    def ioctl(self, _event: str, arguments: tuple) -> None:
        if arguments[1] not in _ASKING_IOCTLS:
            self.reached(f"ioctl {arguments[1]:#x}", Kind.OTHER)

    def connected(self, _event: str, arguments: tuple) -> None:
        family = arguments[0].family
        where = whole_path(arguments[1]) if family == socket.AF_UNIX else family.name
        self.reached(f"connect {self._shown(where)}", Kind.OTHER, once=True)

    def bound(self, _event: str, arguments: tuple) -> None:
        if arguments[0].family == socket.AF_UNIX:
            self.changed("bind", arguments[1])

    def signalled(self, event: str, arguments: tuple) -> None:
        # Signal 0 only asks.
        if arguments[1]:
            self.reached(f"{event.removeprefix('os.')} {arguments[1]}", Kind.OTHER)

    def announced(self, statement: str) -> None:
        """A SQL statement is about to run."""
        if _SQL_WRITES.match(statement) and not _SQL_SETTINGS.match(statement):
            self._announced.append(statement)
            self.reached(f"sql {' '.join(statement.split()[:3])}", Kind.SQL)

    def traced(self, statement: str) -> None:
        """SQLite runs a statement: one that nobody announced would have escaped the failpoints."""
        # Told with its values in place of the question marks, and again for each table that it cascades to.
        if statement != self._traced and _SQL_WRITES.match(statement) and not _SQL_SETTINGS.match(statement):
            self._traced = statement
            if self._announced and _first_word(self._announced[-1]) == _first_word(statement):
                self._announced.pop()
            else:
                self.missed.append(statement)

    def _is_inside(self, path: str) -> bool:
        return path.startswith(f"{self._root}/")

    def _shown(self, path: str) -> str:
        return path.removeprefix(f"{self._root}/") if self._is_inside(path) else path


_EVENTS = {
    "open": Failpoints.opened,
    **dict.fromkeys(
        ("os.mkdir", "os.rmdir", "os.remove", "os.chmod", "os.chown", "os.truncate", "os.setxattr", "os.removexattr"),
        Failpoints.path_event,
    ),
    **dict.fromkeys(("os.rename", "os.link", "os.symlink"), Failpoints.path_pair),
    "subprocess.Popen": Failpoints.started,
    "os.exec": Failpoints.started,
    "fcntl.ioctl": Failpoints.ioctl,
    "socket.connect": Failpoints.connected,
    "socket.bind": Failpoints.bound,
    "os.kill": Failpoints.signalled,
    "os.killpg": Failpoints.signalled,
    "signal.pthread_kill": Failpoints.signalled,
}


def steady(text: str) -> str:
    """Return a text with all that differs from run to run shown alike."""
    for pattern, shown in _VARYING:
        text = pattern.sub(shown, text)
    return text


def _first_word(statement: str) -> str:
    return statement.split(maxsplit=1)[0].upper()
