"""How every command ends: with an exit code, and an error in three parts on stderr."""

from __future__ import annotations

import errno
import os
import sys

from vmm import TYPE_CHECKING
from vmm.errors import ExitCode, HostError, VmmError

if TYPE_CHECKING:
    from collections.abc import Callable

# What the kernel says when it cannot or may not give what was asked for: no bug of vmm's.
_LACKS = frozenset(
    (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN, errno.EPERM, errno.EACCES, errno.EIO, errno.ENOSPC,
     errno.EDQUOT, errno.EROFS, errno.ENOLCK, errno.EFBIG)
)  # fmt: skip
_RED, _BOLD, _PLAIN = "\x1b[1;31m", "\x1b[1m", "\x1b[0m"


def guarded(act: Callable[[], int]) -> int:
    """Return the exit code of `act`, whatever a user or a signal did to it. The only `except VmmError` of the faces."""
    try:
        return act()
    except VmmError as error:
        return fail(error)
    except KeyboardInterrupt as error:
        return interrupted(error)
    except BrokenPipeError:
        # Whoever read our output has gone, which is no error; nothing may try to flush it once more.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return ExitCode.DONE
    except (OSError, MemoryError, RuntimeError) as error:
        if not is_the_hosts(error):
            raise
        return fail(lacking(error))


def is_the_hosts(error: Exception) -> bool:
    """Whether an error says that this host lacks memory, files, threads or rights, wherever it came up."""
    if isinstance(error, OSError):
        return error.errno in _LACKS
    return isinstance(error, MemoryError) or "start new thread" in str(error)


def lacking(error: Exception) -> HostError:
    return HostError(
        "The host does not give this command what it needs.",
        details=str(error) or type(error).__name__,
        resolution="See the limits (ulimit -a) and the room (free -h, df -h), then give the command again: it repairs.",
    )


def interrupted(error: BaseException | None) -> int:
    """Say so; a signal other than Ctrl-C's has its number, which the exit code tells as shells do."""
    sys.stderr.write("\nInterrupted; what was under way was undone or can be repeated.\n")
    number = getattr(error, "number", None)
    return ExitCode.INTERRUPTED if number is None else 128 + int(number)


def fail(error: VmmError) -> int:
    """Print an error's three parts and return its exit code."""
    complain(error.brief, error.details, error.resolution)
    return error.exit_code


def complain(brief: str, details: str, resolution: str) -> None:
    """Print the three parts of an error; colours where a person looks."""
    red, bold, plain = (_RED, _BOLD, _PLAIN) if sys.stderr.isatty() and "NO_COLOR" not in os.environ else ("", "", "")
    lines = [f"{red}Error:{plain} {brief}", *([f"  {details}"] if details else [])]
    sys.stderr.write("\n".join([*lines, f"  {bold}To mend it:{plain} {resolution}"]) + "\n")
    sys.stderr.flush()
