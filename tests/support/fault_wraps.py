"""What has a side effect and no audit event, wrapped so that it is told before it happens."""

import os
import signal
import sqlite3
import subprocess
from typing import Protocol


class Points(Protocol):
    """Who is told; see failpoints.py."""

    def changed(self, what: str, path: str) -> None: ...

    def signalled(self, event: str, arguments: tuple) -> None: ...

    def was_started(self, program: str) -> None: ...

    def announced(self, statement: str) -> None: ...

    def traced(self, statement: str) -> None: ...

    def sent(self, kinds: str) -> None: ...


def name_of(program) -> str:
    return os.fsdecode(program).rpartition("/")[2]


def whole_path(given, at: int = -1) -> str:
    """Return the whole path of what a call was given: a path, one relative to a descriptor, or a descriptor."""
    if isinstance(given, int):
        return _target(given)
    path = os.fsdecode(given)
    if at >= 0 and not path.startswith("/"):
        path = f"{_target(at)}/{path}"
    # As text: nothing is asked of the file system in the middle of what is tried.
    return os.path.abspath(path)  # noqa: PTH100


def _target(fd: int) -> str:
    return os.readlink(f"/proc/self/fd/{fd}")  # noqa: PTH115  # a text, which need not be a path


def wrap_calls(points: Points) -> None:
    """Wrap what has a side effect and no audit event."""

    def before(module, name: str) -> None:
        call = getattr(module, name)

        def wrapped(fd, *arguments, **named):
            path = whole_path(fd)
            if path.startswith("/"):
                points.changed(name, path)
            return call(fd, *arguments, **named)

        setattr(module, name, wrapped)

    for name in ("fsync", "fdatasync", "write", "writev", "pwrite", "pwritev", "posix_fallocate", "sendfile", "mknod"):
        before(os, name)
    send_signal = signal.pidfd_send_signal

    def signalled(fd: int, number: int, *more) -> None:
        points.signalled("pidfd_send_signal", (fd, int(number)))
        send_signal(fd, number, *more)

    signal.pidfd_send_signal = signalled
    begin = subprocess.Popen.__init__

    def begun(self, argv, *arguments, **named) -> None:
        begin(self, argv, *arguments, **named)
        points.was_started(argv[0])

    subprocess.Popen.__init__ = begun


def wrap_sqlite(points: Points) -> None:
    class Announcing(sqlite3.Connection):
        def execute(self, statement, *arguments):
            points.announced(statement)
            return super().execute(statement, *arguments)

        def executemany(self, statement, *arguments):
            points.announced(statement)
            return super().executemany(statement, *arguments)

        def backup(self, target, **named):
            points.announced("BEGIN backup")
            return super().backup(target, **named)

    connect = sqlite3.connect

    def connected(database, *arguments, **named):
        if str(database) == ":memory:":
            return connect(database, *arguments, **named)
        connection = connect(database, *arguments, **{"factory": Announcing, **named})
        connection.set_trace_callback(points.traced)
        return connection

    sqlite3.connect = connected


def wrap_netlink(points: Points) -> None:
    from vmm.network import netlink

    send = netlink.send

    def sent(messages, **how):
        points.sent("+".join(str(message[0]) for message in messages))
        return send(messages, **how)

    netlink.send = sent
