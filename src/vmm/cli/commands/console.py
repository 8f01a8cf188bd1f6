"""`vmm console`: what a machine wrote to its serial console, over all its boots."""

import re
import sys
import time
from pathlib import Path

import click

from vmm.cli import output
from vmm.cli.options import Command, Whole, machine_argument, settings
from vmm.model.text import harmless

_POLL_S = 0.2
# Consoles turn over at half of this.
_MOST_BYTES = 16 * 1024 * 1024
# Colours are of no use without the rest.
_COLOUR = re.compile(r"\x1b\[[0-9;:]*m")


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
    try:
        older = site.files.older_console(name)
        position = _show(path, older, None if full else lines, raw=raw or not sys.stdout.isatty())
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
        _follow(path, position, raw=raw or not sys.stdout.isatty())


def write(text: str, *, raw: bool) -> None:
    """Print a part of a console; unless `raw`, a guest must not drive the terminal of who looks at it."""
    output.raw(text if raw else harmless(_COLOUR.sub("", text), keep="\n\r\t"))


def _show(path: Path, older: Path, lines: int | None, *, raw: bool) -> int:
    """Show the end of a console, or with None for `lines` all of it; return the size of the part that still grows."""
    size, data = _tail(path)
    before = _tail(older)[1] if older.exists() else b""
    # Whole lines only are counted; what the guest has not ended yet belongs to the last.
    text = (before + data).decode(errors="replace")
    if lines is not None:
        text = "".join(text.splitlines(keepends=True)[-lines:]) if lines else ""
    write(text, raw=raw)
    return size


def _tail(path: Path) -> tuple[int, bytes]:
    """Return a file's size and its newest part: an engine may make what it writes to as large as it likes."""
    with path.open("rb") as stream:
        size = stream.seek(0, 2)
        stream.seek(max(0, size - _MOST_BYTES))
        return size, stream.read(_MOST_BYTES)


def _follow(path: Path, position: int, *, raw: bool) -> None:
    while True:
        try:
            with path.open("rb") as stream:
                size = stream.seek(0, 2)
                # Turned over meanwhile: what is there now is new.
                stream.seek(position if size >= position else 0)
                text = stream.read(_MOST_BYTES).decode(errors="replace")
                position = stream.tell()
        except FileNotFoundError:
            text = ""
        if text:
            write(text, raw=raw)
        time.sleep(_POLL_S)
