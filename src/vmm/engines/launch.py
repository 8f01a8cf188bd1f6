"""What both engines do alike: start a process beside a fresh socket, and wait until it reports a running guest."""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path

from vmm import TYPE_CHECKING
from vmm.errors import EngineError, HostError, VmmError
from vmm.host import identity
from vmm.host import process as hands
from vmm.model.engine import BootPlan, EngineStatus
from vmm.model.value import Value, replace

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Sequence

    from vmm.model.machine import ProcessIdentity

# The engine's API comes up some 4 ms after exec (lab notes); asking costs a fraction of a millisecond.
_POLL_S = 0.001
_ASK_S = 2.0
_WORDS_BYTES = 2000
# The jailer takes 5 ms, most of them to copy Firecracker; a busy host gives it its time.
_DETOUR_S = 20.0
_SOCKET_S = 1.0


def spawn(argv: Sequence[str], plan: BootPlan, *, marker: str) -> ProcessIdentity:
    """Start an engine: stdout is the console, stderr the log. A socket that an earlier one left is removed."""
    with _told(plan), _streams(plan) as streams:
        _bring_into_memory(plan, argv)
        return hands.spawn(argv, marker=marker, streams=streams)


class Detour(Value):
    """How an engine is started by another program: `prepare` first, then `argv`, which ends when the engine is there.

    `pid` is then the engine's, and `ready` whether its socket is in its place.
    """

    prepare: Callable[[], None]
    argv: Callable[[], Sequence[str]]
    pid: Callable[[], int]
    ready: Callable[[], bool]


def spawn_through(plan: BootPlan, detour: Detour, *, marker: str) -> ProcessIdentity:
    """Start an engine by way of another program."""
    with _told(plan):
        with _streams(plan) as streams:
            detour.prepare()
            argv = detour.argv()
            _bring_into_memory(plan, argv)
            if hands.spawn_through(argv, streams=streams, timeout_s=_DETOUR_S) != 0:
                raise _ended(plan)
        process = identity.of(detour.pid(), marker=marker)
        deadline = time.monotonic() + _SOCKET_S
        # One that ended, or is late with its socket, is told by whoever waits for it.
        while not detour.ready() and time.monotonic() < deadline and _is_there(process):
            time.sleep(_POLL_S)
    return process


@contextlib.contextmanager
def _streams(plan: BootPlan) -> Generator[hands.Streams]:
    """Open what an engine writes to, and the cgroup that it is to be in."""
    plan.socket.unlink(missing_ok=True)
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
    join: tuple[int, ...] = ()
    # Root's alone from their first moment on, should one not be there yet: who opens it once reads it for ever.
    console_fd = os.open(plan.console, flags & ~os.O_TRUNC, 0o600)
    with os.fdopen(console_fd, "ab") as console, os.fdopen(os.open(plan.log, flags, 0o600), "wb") as log:
        try:
            if plan.cgroup:
                from vmm.host import cgroups

                ceiling = cgroups.ceiling(plan.limits, guest_memory_mib=plan.memory_mib, disk=plan.disks[0].path)
                join = cgroups.join(cgroups.make(plan.id, ceiling))
            # A guest is asked to shut down; SIGTERM would pull its plug (qemu) or do nothing (Firecracker in its jail).
            yield hands.Streams(output=console, errors=log, join=join, shielded=True)
        finally:
            for fd in join:
                os.close(fd)


def _bring_into_memory(plan: BootPlan, argv: Sequence[str]) -> None:
    """Read the engine's program, kernel and initrd where reading will be limited.

    They are other machines' as well: a page of theirs that waits for a limit keeps everyone waiting who needs it.
    """
    if plan.limits.io_read_bps is None and plan.limits.io_read_iops is None:
        return
    from vmm.host import reading

    initrd = () if plan.initrd is None else (plan.initrd,)
    for path in (plan.kernel, *initrd, *(Path(word) for word in argv if word.startswith("/"))):
        with contextlib.suppress(OSError):
            reading.bring_into_memory(path)


@contextlib.contextmanager
def _told(plan: BootPlan) -> Generator[None]:
    try:
        yield
    except (OSError, ValueError) as error:
        raise EngineError(
            f"The engine of {plan.name!r} cannot be started.",
            details=str(error),
            resolution="Check the data directory and the room in it: vmm doctor",
        ) from error
    except HostError as error:
        raise EngineError(error.brief, details=error.details, resolution=error.resolution) from error


def await_running(
    plan: BootPlan,
    process: ProcessIdentity,
    *,
    timeout_s: float,
    ask: Callable[[float], EngineStatus],
    ready: Callable[[], bool],
    hollow: Callable[[], bool] = lambda: False,
) -> None:
    """Return when `ask` (given its time limit in seconds) says running; EngineError has the engine's words.

    It is asked as soon as its socket is `ready`; one that does not answer and is `hollow` is ended.
    """
    deadline = time.monotonic() + timeout_s
    last: VmmError | None = None
    while time.monotonic() < deadline:
        if ready():
            try:
                if ask(min(_ASK_S, deadline - time.monotonic())) is EngineStatus.RUNNING:
                    return _share_socket(plan)
            except EngineError as error:
                last = error
                if hollow():
                    identity.kill(process)
                    raise _ended(plan) from error
        if not _is_there(process):
            raise _ended(plan)
        time.sleep(_POLL_S)
    raise EngineError(
        f"The engine of {plan.name!r} did not run its guest within {timeout_s:.0f} s.",
        details=last.details if last else words(plan) or "It said nothing.",
        resolution=f"See its log: {plan.log}; vmm doctor checks the host.",
    )


def _share_socket(plan: BootPlan) -> None:
    """Let the group that is configured use the API, which is made for its owner alone."""
    if plan.socket_group is not None:
        os.chown(plan.socket, 0, plan.socket_group)
        plan.socket.chmod(0o660)


def words(plan: BootPlan) -> str:
    """Return the end of the engine's log, or of the console where an engine that failed early writes too."""
    return _end_of(plan.log) or _end_of(plan.console)


def has_spoken(plan: BootPlan) -> bool:
    """Whether anything is on the console of this boot."""
    return _end_of(plan.console) != ""


def _end_of(path: Path) -> str:
    with contextlib.suppress(OSError), path.open("rb") as stream:
        # What an engine may write, it may also make as large as it likes. A console holds earlier boots too, each
        # behind its mark.
        stream.seek(max(0, stream.seek(0, os.SEEK_END) - _WORDS_BYTES))
        return stream.read(_WORDS_BYTES).decode(errors="replace").rpartition(" ===\n")[2].strip()
    return ""


def _is_there(process: ProcessIdentity) -> bool:
    """Whether the process lives, be it between fork and exec: its command line is not yet the engine's, or empty."""
    return identity.is_alive(process) or identity.is_alive(replace(process, marker=""))


def _ended(plan: BootPlan) -> EngineError:
    return EngineError(
        f"The engine of {plan.name!r} ended at its start.",
        details=words(plan) or "It said nothing.",
        resolution=f"Mend what it names; its log is {plan.log}, and vmm doctor checks the host.",
    )
