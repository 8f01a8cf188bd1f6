"""The ways out of vmm: all that it writes to stdout and stderr passes here, so that nothing in it drives a terminal.

What others said (guests, engines, programs) or named (files, images) is foreign; no caller need know which part is.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import sys

from vmm import TYPE_CHECKING
from vmm.model.text import LINES, harmless

if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

# SGR parameters (ECMA-48).
_COLOURS = {"red": "31", "green": "32", "yellow": "33", "strong": "1", "alarm": "1;31"}


class OutputLostError(Exception):
    """A result cannot be written: stdout is closed, is on a full disk, or nobody reads it any more."""

    def __init__(self, error: OSError | ValueError) -> None:
        super().__init__(str(error))
        self.nobody_reads = isinstance(error, OSError) and error.errno == errno.EPIPE


def lines(found: Iterable[str]) -> None:
    """Print lines of a result; of none nothing, which whoever reads them line by line would take for a name."""
    raw("".join(f"{harmless(line)}\n" for line in found))


def as_json(value: object) -> None:
    raw(json_text(value, indent=2) + "\n")


def json_text(value: object, *, indent: int | None = None) -> str:
    """Return a value as JSON in ASCII; no text in it drives a terminal when a program takes it out and prints it."""
    text = json.dumps(value, indent=indent)
    # json writes what is ASCII and printable as it is, and DEL.
    return json.dumps(_harmless(value), indent=indent) if "\\" in text or "\x7f" in text else text


def _harmless(value: Any) -> Any:  # noqa: ANN401  # JSON's
    match value:
        case str():
            return harmless(value, keep=LINES)
        case dict():
            return {key: _harmless(item) for key, item in value.items()}  # pyright: ignore[reportUnknownVariableType]
        case list() | tuple():
            return [_harmless(item) for item in value]  # pyright: ignore[reportUnknownVariableType]
        case _:
            return value


def raw(text: str) -> None:
    """Print what is vmm's own or was made harmless; OutputLostError when it cannot be."""
    # Flushed here, where it can be told.
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except (OSError, ValueError) as error:
        raise OutputLostError(error) from error


def bytes_as_they_are(data: bytes) -> None:
    """Print what was asked for raw."""
    try:
        sys.stdout.buffer.write(data)
        sys.stdout.flush()
    except (OSError, ValueError) as error:
        raise OutputLostError(error) from error


def say(text: str, *, aside: bool = False) -> None:
    """Tell what was done; `aside` on stderr. That nobody hears it undoes nothing, and is no failure."""
    if aside:
        complain(text)
        return
    try:
        lines([text])
    except OutputLostError:
        give_up_stdout()


def complain(text: str) -> None:
    """Write a line to stderr, whatever becomes of it."""
    raw_complaint(harmless(text) + "\n")


def raw_complaint(text: str) -> None:
    """Write to stderr what is vmm's own or was made harmless, whatever becomes of it."""
    try:
        sys.stderr.write(text)
        sys.stderr.flush()
    except (OSError, ValueError):
        # There is no one left to tell.
        pass


def coloured(text: str, colour: str, *, on_stderr: bool = False) -> str:
    """Return text in a colour, where a person looks."""
    stream = sys.stderr if on_stderr else sys.stdout
    return f"\x1b[{_COLOURS[colour]}m{text}\x1b[0m" if stream.isatty() and "NO_COLOR" not in os.environ else text


def give_up_stdout() -> None:
    """Let what is still to be written go nowhere, so that nothing tries and fails once more."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC), sys.stdout.fileno())
