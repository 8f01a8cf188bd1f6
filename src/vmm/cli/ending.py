"""How every command ends: with an exit code, and an error in three parts on stderr."""

from __future__ import annotations

import errno

from vmm import TYPE_CHECKING
from vmm.cli import output
from vmm.cli.output import OutputLostError
from vmm.errors import ExitCode, HostError, VmmError, without_numbers
from vmm.model.text import LINES, harmless

if TYPE_CHECKING:
    from collections.abc import Callable

# What the kernel says when it cannot or may not give what was asked for: no bug of vmm's.
_LACKS = frozenset(
    (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN, errno.EPERM, errno.EACCES, errno.EIO, errno.ENOSPC,
     errno.EDQUOT, errno.EROFS, errno.ENOLCK, errno.EFBIG)
)  # fmt: skip
# Of what proves an error no more than a screen's worth is shown.
_MOST_LETTERS = 4000


def guarded(act: Callable[[], int]) -> int:
    """Return the exit code of `act`, whatever a user or a signal did to it. The only `except VmmError` of the faces."""
    try:
        return act()
    except VmmError as error:
        return fail(error)
    except KeyboardInterrupt as error:
        return interrupted(error)
    except OutputLostError as error:
        return lost(error)
    except (OSError, MemoryError, RuntimeError) as error:
        return _failed(error)


def _failed(error: Exception) -> int:
    if isinstance(error, OSError) and error.errno in (errno.EPIPE, errno.EBADF):
        # What click prints by itself: help.
        return lost(OutputLostError(error))
    if not is_the_hosts(error):
        raise error
    return fail(lacking(error))


def lost(error: OutputLostError) -> int:
    """Return the exit code for a result that could not be written; that whoever read it has gone is no error."""
    # Nothing may try to flush it once more.
    output.give_up_stdout()
    if error.nobody_reads:
        return ExitCode.DONE
    complain(
        "The output cannot be written.",
        without_numbers(str(error)),
        "Give stdout somewhere to go: a terminal, or a file where there is room (df -h).",
    )
    return ExitCode.FAILED


def is_the_hosts(error: Exception) -> bool:
    """Whether an error says that this host lacks memory, files, threads or rights, wherever it came up."""
    if isinstance(error, OSError):
        from vmm.remedy import MISNAMED

        return error.errno in _LACKS or error.errno in MISNAMED
    return isinstance(error, MemoryError) or "start new thread" in str(error)


def lacking(error: Exception) -> HostError:
    """Return the error for what `is_the_hosts`."""
    from vmm.remedy import MISNAMED, RIGHTS, named, remedy

    if not isinstance(error, OSError):
        error = OSError(errno.ENOMEM, "There is not enough memory." if isinstance(error, MemoryError) else str(error))
    brief = "The host does not give this command what it needs."
    if error.errno in RIGHTS:
        brief = "The host does not allow this."
    elif named(error) and (error.errno in MISNAMED or error.errno == errno.EFBIG):
        brief = f"What lies at {named(error)} does not belong there."
    return HostError(brief, details=str(error), resolution=remedy(error))


def interrupted(error: BaseException | None) -> int:
    """Say so; a signal other than Ctrl-C's has its number, which the exit code tells as shells do."""
    output.raw_complaint("\nInterrupted; what was under way was undone or can be repeated.\n")
    number = getattr(error, "number", None)
    return ExitCode.INTERRUPTED if number is None else 128 + int(number)


def fail(error: VmmError) -> int:
    """Print an error's three parts and return its exit code."""
    complain(error.brief, error.details, error.resolution)
    return error.exit_code


def complain(brief: str, details: str, resolution: str) -> None:
    """Print the three parts of an error, none of which can be taken for another; colours where a person looks."""
    from vmm.cli import hints

    error, mend = (
        output.coloured(text, colour, on_stderr=True)
        for text, colour in (("Error:", "alarm"), ("To mend it:", "strong"))
    )
    # What a program or a guest said may have lines of its own: each stands deeper than ours.
    proof = harmless(details.replace("\r\n", "\n").strip(), keep=LINES, most=_MOST_LETTERS).replace("\n", "\n    ")
    parts = [
        f"{error} {harmless(brief)}",
        *([f"  {proof}"] if proof else []),
        f"  {mend} {harmless(hints.fit(resolution))}",
    ]
    output.raw_complaint("\n".join(parts) + "\n")
