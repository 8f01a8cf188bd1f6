"""The shortest ways: `vmm list` and `vmm start NAME` in their plain forms, without the parser.

Prompts and scripts ask for the one all the time, and the other is the way from a command to a running guest; a parser
takes longer to import than either takes. What is not plain (an option, another data directory, help, a mistake) goes to
the parser, which does the same with the same parts.
"""

from __future__ import annotations

import gc

from vmm import TYPE_CHECKING
from vmm.cli.ending import guarded
from vmm.errors import ExitCode

if TYPE_CHECKING:
    from collections.abc import Sequence

_OUTPUTS = ("table", "json", "name")


def run_short(arguments: Sequence[str]) -> int | None:
    """Return the exit code, or None for a command line that the parser is to read."""
    # Over before a collection of garbage would pay.
    gc.disable()
    match list(arguments):
        case ["list" | "ls"]:
            return guarded(lambda: _list("table"))
        case ["list" | "ls", "--output", output] if output in _OUTPUTS:
            return guarded(lambda: _list(output))
        case ["--data-dir", data_dir, *config, "supervise"] if config[:1] in ([], ["--config"]) and len(config) in (
            0,
            2,
        ):
            return guarded(lambda: _supervise(data_dir, *config[1:]))
        case ["start", name] if not name.startswith("-"):
            return guarded(lambda: _start(name))
        case _:
            gc.enable()
            return None


def _list(output: str) -> int:
    from vmm.app import open_site
    from vmm.cli import render
    from vmm.cli.output import complain
    from vmm.operations.observe import view_all

    told: set[str] = set()

    def tell(what: str) -> None:
        if what not in told:
            told.add(what)
            complain(f"vmm: {what}")

    site = open_site(read_only=True, tell=tell)
    render.machines(view_all(site), output)
    site.revive_supervisor()
    return ExitCode.DONE


def _supervise(data_dir: str, config_file: str | None = None) -> int:
    # It stays while machines run: what it does not import is memory that it does not take.
    from pathlib import Path

    from vmm.app import open_site, require_root
    from vmm.app.supervise import supervise

    require_root("supervise")
    supervise(open_site(data_dir=Path(data_dir), config_file=None if config_file is None else Path(config_file)))
    return ExitCode.DONE


def _start(name: str) -> int:
    from vmm.app import open_site, require_root
    from vmm.cli.signals import end_in_good_order
    from vmm.model.names import valid_name
    from vmm.operations.start import start

    valid_name(name)
    require_root("start")
    end_in_good_order()
    started = start(open_site(), name)
    from vmm.cli import output, render

    render.warnings(started)
    output.say(render.started(started))
    return ExitCode.DONE
