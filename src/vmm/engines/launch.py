"""What both engines do alike: start a process beside a fresh socket, and wait until it reports a running guest."""

from __future__ import annotations

import contextlib
import os
import time

from vmm import TYPE_CHECKING
from vmm.errors import EngineError, HostError, VmmError
from vmm.host import identity
from vmm.host import process as hands
from vmm.model.engine import BootPlan, EngineStatus
from vmm.model.machine import ProcessIdentity

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

# The engine's API comes up some 4 ms after exec (lab notes); asking costs a fraction of a millisecond.
_POLL_S = 0.001
_ASK_S = 2.0
_WORDS_BYTES = 2000


def spawn(argv: Sequence[str], plan: BootPlan) -> ProcessIdentity:
    """Start an engine: stdout is the console, stderr the log. A socket that an earlier one left is removed."""
    try:
        plan.socket.unlink(missing_ok=True)
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
        with plan.console.open("ab") as console, os.fdopen(os.open(plan.log, flags, 0o600), "wb") as log:
            return hands.spawn(argv, marker=str(plan.socket), output=console, errors=log)
    except OSError as error:
        raise EngineError(
            f"The engine of {plan.name!r} cannot be started.",
            details=str(error),
            resolution="Check the data directory and the room in it: vmm doctor",
        ) from error
    except HostError as error:
        raise EngineError(error.brief, details=error.details, resolution="sudo vmm setup") from error


def await_running(
    plan: BootPlan, process: ProcessIdentity, *, timeout_s: float, ask: Callable[[float], EngineStatus]
) -> None:
    """Return when `ask` (given its time limit in seconds) says running; EngineError has the engine's words."""
    deadline = time.monotonic() + timeout_s
    last: VmmError | None = None
    while time.monotonic() < deadline:
        if plan.socket.exists():
            try:
                if ask(min(_ASK_S, deadline - time.monotonic())) is EngineStatus.RUNNING:
                    return
            except EngineError as error:
                last = error
        if not identity.is_alive(process) and not _still_becoming(process):
            raise _ended(plan)
        time.sleep(_POLL_S)
    raise EngineError(
        f"The engine of {plan.name!r} did not run its guest within {timeout_s:.0f} s.",
        details=last.details if last else words(plan) or "It said nothing.",
        resolution=f"See its log: {plan.log}; vmm doctor checks the host.",
    )


def words(plan: BootPlan) -> str:
    """Return the end of the engine's log, or of the console where an engine that failed early writes too."""
    for path in (plan.log, plan.console):
        with contextlib.suppress(OSError):
            text = path.read_bytes()[-_WORDS_BYTES:].decode(errors="replace").strip()
            if text:
                return text
    return ""


def _still_becoming(process: ProcessIdentity) -> bool:
    """Whether the child is between fork and exec: alive, but its command line not yet the engine's."""
    return identity.is_alive(
        ProcessIdentity(boot_id=process.boot_id, pid=process.pid, start_ticks=process.start_ticks, marker="")
    )


def _ended(plan: BootPlan) -> EngineError:
    return EngineError(
        f"The engine of {plan.name!r} ended at its start.",
        details=words(plan) or "It said nothing.",
        resolution=f"Mend what it names; its log is {plan.log}, and vmm doctor checks the host.",
    )
