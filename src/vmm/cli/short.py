"""The shortest way to a listing: `vmm list` in its plain forms, without the parser.

Prompts, scripts and people ask for it all the time, and a parser takes longer to import than the answer. What is not
plain (a filter, another data directory, help, a mistake) goes to the parser, which does the same with the same parts.
"""

from __future__ import annotations

import sys

from vmm import TYPE_CHECKING
from vmm.errors import ExitCode, VmmError

if TYPE_CHECKING:
    from collections.abc import Sequence

_OUTPUTS = ("table", "json", "name")


def run_short(arguments: Sequence[str]) -> int | None:
    """Return the exit code, or None for a command line that the parser is to read."""
    output = _listing(arguments)
    if output is None:
        return None
    from vmm.app import open_site
    from vmm.cli import render
    from vmm.operations.observe import view_all

    try:
        render.machines(view_all(open_site(read_only=True)), output)
    except VmmError as error:
        from vmm.cli.main import fail

        return fail(error)
    except BrokenPipeError:
        from vmm.cli.main import reader_gone

        return reader_gone()
    except KeyboardInterrupt:
        sys.stderr.write("\nInterrupted.\n")
        return ExitCode.INTERRUPTED
    return ExitCode.DONE


def _listing(arguments: Sequence[str]) -> str | None:
    """Return how the listing is asked for, None when it is something else, or not plain."""
    if not arguments or arguments[0] not in ("list", "ls"):
        return None
    match list(arguments[1:]):
        case [] | ["-a"] | ["--all"]:
            return "table"
        case ["--output", output] if output in _OUTPUTS:
            return output
        case [text] if text.startswith("--output=") and text.removeprefix("--output=") in _OUTPUTS:
            return text.removeprefix("--output=")
        case _:
            return None
