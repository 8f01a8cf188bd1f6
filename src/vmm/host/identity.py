"""Which process is which: told apart by boot, pid, start time and marker, never by pid alone."""

from __future__ import annotations

import functools
import os
import time
from pathlib import Path

from vmm import TYPE_CHECKING
from vmm.errors import HostError
from vmm.model.machine import ProcessIdentity

if TYPE_CHECKING:
    from collections.abc import Collection

    from vmm.host.recognition import Recognition
# Sixteen times the longest that an engine has: qemu, with a kernel's whole command line in it.
_LINE_BYTES = 64 * 1024


@functools.cache
def boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


def is_alive(process: ProcessIdentity) -> bool:
    """Whether this very process runs: same boot, same start time, its own marker in its command line, no zombie."""
    _reap(process.pid)
    stat = _stat(process.pid)
    if stat is None:
        return process.boot_id == boot_id() and _is_hidden(process.pid)
    if stat[0] == "Z" or stat[1] != process.start_ticks or boot_id() != process.boot_id:
        return False
    return not process.marker or _has_marker(process.pid, process.marker)


def wait_gone(process: ProcessIdentity, *, timeout_s: float) -> bool:
    """Wait until the process has ended; False when it still runs after `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    try:
        fd = os.pidfd_open(process.pid)
    except ProcessLookupError:
        return True
    try:
        # The pidfd was opened first: whatever is_alive sees now is what the fd stands for.
        if not is_alive(process):
            return True
        import select

        poller = select.poll()
        poller.register(fd, select.POLLIN)
        ended = bool(poller.poll(max(0.0, deadline - time.monotonic()) * 1000))
        if ended:
            _reap(process.pid)
        return ended
    finally:
        os.close(fd)


def kill(process: ProcessIdentity) -> None:
    """Kill exactly this process (SIGKILL through a pidfd opened before it is recognised); none is no error.

    Raises:
        HostError: the kernel does not let us.
    """
    try:
        fd = os.pidfd_open(process.pid)
        try:
            import signal

            if is_alive(process):
                signal.pidfd_send_signal(fd, signal.SIGKILL)
        finally:
            os.close(fd)
    except ProcessLookupError:
        return
    except OSError as error:
        raise HostError(
            f"The process {process.pid} cannot be ended.",
            details=str(error),
            resolution=f"Look at it (ps {process.pid}) and at this shell's limits (ulimit -a), then try again.",
        ) from error


def find(*markers: str, known: Recognition | None = None) -> ProcessIdentity | None:
    """Return the engine whose command line has one of these as an argument, or None. Walks /proc: for repairs only."""
    found = find_all(markers, known=known)
    return next((found[marker] for marker in markers if marker in found), None)


def find_all(markers: Collection[str], *, known: Recognition | None = None) -> dict[str, ProcessIdentity]:
    """Return the engines that have one of the markers in their command line, by it: one walk over /proc.

    What is in a command line is anybody's to choose. So with `known` only processes count that it takes for engines;
    and the path of a socket, which another machine of that name may have had, does not where the command line says that
    it is another machine's. Of several the youngest: the jailer, which has it too, is older than what it starts.
    """
    wanted = {marker.encode(): marker for marker in markers}
    found: dict[str, tuple[int, int]] = {}
    for entry in os.listdir("/proc"):  # noqa: PTH208  # names are all that is needed, of thousands
        if not entry.isdigit() or int(entry) == os.getpid():
            continue
        try:
            line = command_line(int(entry))
        except OSError:
            continue
        # qemu has its socket within an option's value; every other engine has its marker as a word of its own.
        words = {word for word in line.split(b"\0") if word in wanted}
        if b"unix:" in line:
            words |= {word for word in wanted if word in line.replace(b",,", b",") and _is_in(line, word)}
        if known is not None and words:
            words = _its_own(line, words, markers)
        stat = _stat(int(entry)) if words else None
        if stat is not None and stat[0] != "Z" and (known is None or known.is_engine(int(entry))):
            for word in words:
                found[wanted[word]] = max(found.get(wanted[word], (0, 0)), (stat[1], int(entry)))
    return {marker: of(pid, marker=marker) for marker, (_, pid) in found.items()}


def _its_own(line: bytes, words: set[bytes], markers: Collection[str]) -> set[bytes]:
    """Return the markers that count, where a command line says whose it is."""
    from vmm.host.recognition import own_id

    own = own_id(line)
    if own is None or any(own in marker.replace("-", "") for marker in markers):
        return words
    return {word for word in words if not word.endswith(b".sock")}


def _is_in(line: bytes, wanted: bytes) -> bool:
    return any(_names(argument, wanted) for argument in line.split(b"\0"))


def of(pid: int, *, marker: str) -> ProcessIdentity:
    """Return the identity of the process that has this pid now."""
    stat = _stat(pid)
    return ProcessIdentity(boot_id=boot_id(), pid=pid, start_ticks=stat[1] if stat else 0, marker=marker)


def this_process() -> ProcessIdentity:
    """Return the identity of the vmm command at work, for rows that say who is at it."""
    return of(os.getpid(), marker="")


def command_line(pid: int) -> bytes:
    """Return a process's command line, empty for one longer than any engine's: its size is its user's to choose.

    Raises:
        OSError: there is no such process, or it is not shown.
    """
    fd = os.open(f"/proc/{pid}/cmdline", os.O_RDONLY | os.O_CLOEXEC)
    try:
        line = os.read(fd, _LINE_BYTES + 1)
    finally:
        os.close(fd)
    return line if len(line) <= _LINE_BYTES else b""


def group_id(name: str) -> int:
    """Return a group's id. Raises HostError when the host has none of that name."""
    import grp

    try:
        return grp.getgrnam(name).gr_gid
    except KeyError as error:
        raise HostError(
            f"There is no group {name!r} on this host.",
            details="It is the socket_group of the configuration.",
            resolution=f"Make it (sudo groupadd --system {name}), or: sudo vmm config set socket_group ''",
        ) from error


def _stat(pid: int) -> tuple[str, int] | None:
    """Return (state, start time in clock ticks) from /proc/PID/stat, None when no such process is to be seen."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return None
    # The command name may hold spaces and parentheses; what follows the last one does not (proc(5)).
    fields = text.rpartition(")")[2].split()
    return fields[0], int(fields[19])


def _is_hidden(pid: int) -> bool:
    """Whether there is a process with this pid that /proc does not show to this user (`hidepid`)."""
    try:
        os.kill(pid, 0)
    except PermissionError:
        return True
    except ProcessLookupError:
        pass
    # One that may be signalled is ours, and shown.
    return False


def _has_marker(pid: int, marker: str) -> bool:
    try:
        arguments = command_line(pid).split(b"\0")
    except OSError:
        return False
    return any(_names(argument, marker.encode()) for argument in arguments)


def _names(argument: bytes, wanted: bytes) -> bool:
    """Whether an argument is `wanted`, or has it as a value of an option list, where qemu writes a comma twice."""
    plain = argument.replace(b",,", b",")
    start = plain.find(wanted)
    if start < 0:
        return False
    before, after = plain[max(0, start - 1) : start], plain[start + len(wanted) : start + len(wanted) + 1]
    return before in (b"", b":", b"=") and after in (b"", b",")


def _reap(pid: int) -> None:
    """Collect a child of ours that has ended; a process that is not our child is none of our business."""
    try:
        os.waitpid(pid, os.WNOHANG)
    except ChildProcessError:
        return
