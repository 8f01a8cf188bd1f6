"""`vmm console`: what a machine wrote to its serial console, over all its boots."""

import codecs
import contextlib
import re
import sys
import time
from pathlib import Path
from typing import BinaryIO

import click

from vmm.cli import output
from vmm.cli.options import Command, Whole, machine_argument, settings
from vmm.model.text import harmless

_POLL_S = 0.2
# Consoles turn over at half of this.
_MOST_BYTES = 16 * 1024 * 1024
# Colours are of no use without the rest.
_COLOUR = re.compile(r"\x1b\[[0-9;:]*m")
# One whose rest is still to come.
_CUT, _COLOUR_LETTERS = re.compile(r"\x1b(\[[0-9;:]*)?\Z"), 64
# Escapes take up to ten times the room of what they stand for.
_PIECE_BYTES = 64 * 1024
# A file that is open, and from where to where it is shown.
_Part = tuple[BinaryIO, int, int]


@click.command("console", cls=Command)
@machine_argument
@click.option("--full", is_flag=True, help="All that is kept.")
@click.option("-f", "--follow", is_flag=True, help="Go on with what comes.")
@click.option("-n", "--lines", type=Whole(), default=50, show_default=True, help="The last lines.")
@click.option("--raw", is_flag=True, help="Keep control characters, which a guest can use to drive your terminal.")
def console_command(name: str, full: bool, follow: bool, lines: int, raw: bool) -> None:
    """Show what a machine wrote to its serial console."""
    from vmm.model.names import valid_name

    site = settings().site(read_only=True)
    site.store.machine(valid_name(name))
    path = site.files.console(name)
    screen = Screen(raw=raw or not sys.stdout.isatty())
    try:
        position = _show(screen, path, site.files.older_console(name), None if full else lines)
    except FileNotFoundError:
        position = 0
        if not follow:
            settings().say(f"{name} has written nothing yet; it was never started, or its console is silent.")
    except PermissionError as error:
        from vmm.errors import HostError

        raise HostError(
            f"The console of {name!r} may not be read.",
            details=str(error),
            resolution=f"Run it as root: sudo vmm console {name}",
        ) from error
    if follow:
        _follow(screen, path, position)
    screen.end()


class Screen:
    """Where a console is shown, piece by piece; unless `raw`, nothing in it drives the terminal of who looks."""

    def __init__(self, *, raw: bool) -> None:
        self._raw = raw
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._held = ""

    def write(self, data: bytes) -> None:
        """Show what follows; a letter or a colour that is cut off waits for its rest."""
        for at in range(0, len(data), _PIECE_BYTES):
            self._show(self._held + self._decoder.decode(data[at : at + _PIECE_BYTES]))

    def end(self) -> None:
        """Show what waits."""
        self._show(self._held + self._decoder.decode(b"", final=True), last=True)

    def _show(self, text: str, *, last: bool = False) -> None:
        self._held = ""
        if not self._raw:
            if not last and (cut := _CUT.search(text, max(0, len(text) - _COLOUR_LETTERS))):
                text, self._held = text[: cut.start()], cut[0]
            text = harmless(_COLOUR.sub("", text), keep="\n\r\t")
        if text:
            output.raw(text)


def _show(screen: Screen, path: Path, older: Path, lines: int | None) -> int:
    """Show the end of a console, or with None for `lines` all of it; return the size of the part that still grows."""
    with contextlib.ExitStack() as opened:
        newest = opened.enter_context(path.open("rb"))
        size = newest.seek(0, 2)
        parts: list[_Part] = [(newest, _oldest(size), size)]
        with contextlib.suppress(FileNotFoundError):
            before = opened.enter_context(older.open("rb"))
            end = before.seek(0, 2)
            parts.insert(0, (before, _oldest(end), end))
        for stream, start, end in parts if lines is None else _last_lines(parts, lines):
            stream.seek(start)
            left = end - start
            while left and (data := stream.read(min(_PIECE_BYTES, left))):
                left -= len(data)
                screen.write(data)
    return size


def _oldest(size: int) -> int:
    """Return where what is shown of a file begins: an engine may make what it writes to as large as it likes."""
    return max(0, size - _MOST_BYTES)


def _last_lines(parts: list[_Part], lines: int) -> list[_Part]:
    """Return what of the parts has the last lines. What the guest has not ended yet is one."""
    found: list[_Part] = []
    wanted = lines
    for stream, begin, end in reversed(parts if lines else []):
        at = end
        while at > begin:
            start = max(begin, at - _PIECE_BYTES)
            stream.seek(start)
            data = stream.read(at - start)
            if not found and at == end and data.endswith(b"\n"):
                wanted += 1  # the end of the last line, and not of the one before it
            if (there := data.count(b"\n")) >= wanted:
                place = len(data)
                for _ in range(wanted):
                    place = data.rindex(b"\n", 0, place)
                return [(stream, start + place + 1, end), *found]
            wanted -= there
            at = start
        if end > begin:
            found.insert(0, (stream, begin, end))
    return found


def _follow(screen: Screen, path: Path, position: int) -> None:
    while True:
        with contextlib.suppress(FileNotFoundError), path.open("rb") as stream:
            size = stream.seek(0, 2)
            # Turned over meanwhile: what is there now is new.
            stream.seek(position if size >= position else 0)
            left = _MOST_BYTES
            while left > 0 and (data := stream.read(_PIECE_BYTES)):
                left -= len(data)
                screen.write(data)
            position = stream.tell()
        time.sleep(_POLL_S)
