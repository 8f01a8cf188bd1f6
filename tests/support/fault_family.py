"""The processes that descend from this one: none gets lost, for this process takes in every orphan among them."""

import contextlib
import ctypes
import os
import threading
from pathlib import Path

_PR_SET_CHILD_SUBREAPER = 36


def take_in_orphans() -> None:
    """From now on a descendant whose parent has ended is a child of this process, whatever session it is in."""
    assert Path(f"/proc/self/task/{threading.get_native_id()}/children").exists(), (
        "a kernel without CONFIG_PROC_CHILDREN"
    )
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl")


def living() -> dict[int, list[str]]:
    """Return the argument lists of all living descendants, by pid, and let go of those that have ended.

    No program may be under way that this process waits for itself.
    """
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    found: dict[int, list[str]] = {}
    parents = [os.getpid()]
    while parents:
        parent = parents.pop()
        for thread in _names(f"/proc/{parent}/task"):
            for child in map(int, _read(f"/proc/{parent}/task/{thread}/children").split()):
                parents.append(child)
                if arguments := _arguments(child):
                    found[child] = arguments
    return found


def _arguments(pid: int) -> list[str]:
    """Return a process's arguments; none of one that has ended."""
    # Within an exec there are none either, for a moment.
    while not (line := _read(f"/proc/{pid}/cmdline")) and session_of(pid):
        pass
    return line.split("\0")[:-1]


def session_of(pid: int) -> int:
    """Return a process's session; 0 when it has ended."""
    fields = _read(f"/proc/{pid}/stat").rpartition(")")[2].split()
    return int(fields[3]) if fields and fields[0] != "Z" else 0


def _names(directory: str) -> list[str]:
    try:
        return os.listdir(directory)  # noqa: PTH208  # it is done after every command
    except OSError:
        return []


def _read(path: str) -> str:
    """Return a file of /proc, by the shortest way; nothing of a process that is gone."""
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
