"""The only door to processes: argument lists, a closed environment, stdin from /dev/null."""

import functools
import logging
import os
import select
import shlex
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, NoReturn

from vmm.errors import HostError
from vmm.model.machine import ProcessIdentity

logger = logging.getLogger(__name__)

# sbin first: a user's own PATH often lacks it, and root's tools live there.
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_TIMEOUT_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Completed:
    """What a program that has ended left: its exit code (negative: the signal) and its output, decoded."""

    argv: tuple[str, ...]
    code: int
    stdout: str
    stderr: str

    @property
    def words(self) -> str:
        """The program's own words, for the details of an error: at most its last 2,000 characters."""
        said = (self.stderr.strip() or self.stdout.strip())[-2000:]
        return said or f"{self.argv[0]} ended with exit code {self.code} and said nothing."


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the closed environment that programs are given, with `extra` on top."""
    return {"PATH": _PATH, "LC_ALL": "C.UTF-8", "HOME": "/root", "DEBIAN_FRONTEND": "noninteractive", **(extra or {})}


def run(  # each is a plain fact of one exec; a type would only rename subprocess's own
    argv: Sequence[str],
    *,
    stdin: str | None = None,
    timeout_s: float = _TIMEOUT_S,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    stdout: IO[bytes] | None = None,
    check: bool = True,
) -> Completed:
    """Run a program to its end. `stdout` given: its output goes there and `Completed.stdout` is empty.

    Raises:
        HostError: the program is missing, took longer than `timeout_s`, or (with `check`) did not end with code 0.
    """
    logger.debug("run: %s", shlex.join(argv))
    try:
        done = subprocess.run(
            list(argv),
            # An empty input is an end of file at once: what /dev/null would give.
            input=(stdin or "").encode(),
            stdout=stdout if stdout is not None else subprocess.PIPE,
            stderr=subprocess.PIPE,
            timeout=timeout_s,
            env=environment(env),
            cwd=cwd,
            check=False,
        )
    except FileNotFoundError as error:
        raise _missing(argv[0]) from error
    except PermissionError as error:
        raise HostError(
            f"{argv[0]} may not be run.", details=str(error), resolution=f"Check it: ls -l {argv[0]}"
        ) from error
    except subprocess.TimeoutExpired as error:
        raise HostError(
            f"{Path(argv[0]).name} did not end within {timeout_s:.0f} s.",
            details=shlex.join(argv),
            resolution="Run the command by hand to see what it waits for, then try again.",
        ) from error
    raw: bytes | None = done.stdout
    completed = Completed(
        argv=tuple(argv),
        code=done.returncode,
        stdout=(raw or b"").decode(errors="replace"),
        stderr=done.stderr.decode(errors="replace"),
    )
    if check and completed.code != 0:
        raise HostError(
            f"{Path(argv[0]).name} failed with exit code {completed.code}.",
            details=f"{shlex.join(argv)}: {completed.words}",
            resolution="Mend what it names, then try again; -v shows every program that vmm runs.",
        )
    return completed


def spawn(argv: Sequence[str], *, marker: str, output: IO[bytes], errors: IO[bytes] | None = None) -> ProcessIdentity:
    """Start a program that outlives us, in a session of its own, and return its identity.

    `output` gets its stdout, `errors` its stderr (default: the same). `marker` must be one of its arguments.
    """
    logger.debug("spawn: %s", shlex.join(argv))
    try:
        child = subprocess.Popen(
            list(argv),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=errors if errors is not None else output,
            env=environment(),
            cwd="/",
            start_new_session=True,
            # What it makes, its API socket above all, is its owner's alone. In the child: ours has other threads.
            umask=0o077,
        )
    except FileNotFoundError as error:
        raise _missing(argv[0]) from error
    except OSError as error:
        raise HostError(
            f"{argv[0]} cannot be started.", details=str(error), resolution=f"Check it: ls -l {argv[0]}"
        ) from error
    # It is meant to outlive this process: the interpreter must not warn that it still runs. While this process lives it
    # stays the parent, so a child that ended is a zombie until `reap`.
    child.returncode = 0
    stat = _stat(child.pid)
    return ProcessIdentity(boot_id=boot_id(), pid=child.pid, start_ticks=stat[1] if stat else 0, marker=marker)


def replace(argv: Sequence[str], *, env: Mapping[str, str] | None = None) -> NoReturn:
    """Become another program, in this terminal and with this environment (the user's own ssh needs their agent)."""
    logger.debug("exec: %s", shlex.join(argv))
    try:
        os.execvpe(argv[0], list(argv), {**os.environ, **(env or {})})  # noqa: S606  # no shell is wanted
    except FileNotFoundError as error:
        raise _missing(argv[0]) from error


def attached(argv: Sequence[str]) -> int:
    """Run a program in this terminal and environment; return its exit code (128 + n when signal n ended it)."""
    logger.debug("attached: %s", shlex.join(argv))
    try:
        code = subprocess.run(list(argv), check=False).returncode
    except FileNotFoundError as error:
        raise _missing(argv[0]) from error
    return code if code >= 0 else 128 - code


@functools.cache
def boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


def is_alive(process: ProcessIdentity) -> bool:
    """Whether this very process runs: same boot, same start time, its own marker in its command line, no zombie."""
    _reap(process.pid)
    stat = _stat(process.pid)
    if stat is None or stat[0] == "Z" or stat[1] != process.start_ticks or boot_id() != process.boot_id:
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
        poller = select.poll()
        poller.register(fd, select.POLLIN)
        ended = bool(poller.poll(max(0.0, deadline - time.monotonic()) * 1000))
        if ended:
            _reap(process.pid)
        return ended
    finally:
        os.close(fd)


def kill(process: ProcessIdentity) -> None:
    """Kill exactly this process (SIGKILL through a pidfd opened before it is recognised); none is no error."""
    try:
        fd = os.pidfd_open(process.pid)
    except ProcessLookupError:
        return
    try:
        if is_alive(process):
            signal.pidfd_send_signal(fd, signal.SIGKILL)
    except ProcessLookupError:
        return
    finally:
        os.close(fd)


def find(marker: str) -> ProcessIdentity | None:
    """Return the process whose command line has `marker` as one argument, or None. Walks /proc: for repairs only."""
    for entry in os.listdir("/proc"):  # noqa: PTH208  # names are all that is needed, of thousands
        if not entry.isdigit():
            continue
        pid = int(entry)
        if pid != os.getpid() and _has_marker(pid, marker):
            stat = _stat(pid)
            if stat is not None and stat[0] != "Z":
                return ProcessIdentity(boot_id=boot_id(), pid=pid, start_ticks=stat[1], marker=marker)
    return None


def this_process() -> ProcessIdentity:
    """Return the identity of the vmm command at work, for rows that say who is at it."""
    stat = _stat(os.getpid())
    return ProcessIdentity(boot_id=boot_id(), pid=os.getpid(), start_ticks=stat[1] if stat else 0, marker="")


def _stat(pid: int) -> tuple[str, int] | None:
    """Return (state, start time in clock ticks) from /proc/PID/stat, None when there is no such process."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The command name may hold spaces and parentheses; what follows the last one does not (proc(5)).
    fields = text.rpartition(")")[2].split()
    return fields[0], int(fields[19])


def _has_marker(pid: int, marker: str) -> bool:
    try:
        arguments = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    wanted = marker.encode()
    # qemu takes its socket inside a longer argument, between ':' or '=' and ','.
    return any(wanted == part for argument in arguments for part in _parts(argument))


def _parts(argument: bytes) -> list[bytes]:
    return [argument, *argument.replace(b"=", b",").replace(b":", b",").split(b",")]


def _reap(pid: int) -> None:
    """Collect a child of ours that has ended; a process that is not our child is none of our business."""
    try:
        os.waitpid(pid, os.WNOHANG)
    except ChildProcessError:
        return


def _missing(program: str) -> HostError:
    return HostError(
        f"The program {program!r} is not on this host.",
        details=f"It was looked for in {_PATH}.",
        resolution="Install what is missing: sudo vmm setup --install-packages",
    )
