"""`vmm run`: from nothing to a command or a shell in a machine."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import click

from vmm.cli.commands.create import machine_options, request_of
from vmm.cli.commands.power import overcommit_option
from vmm.cli.options import Seconds, settings
from vmm.cli.words import ONE_RULE, WordsCommand, session_of, session_options
from vmm.errors import EngineError, GuestError

if TYPE_CHECKING:
    from vmm.app import HostSite

_LAST_LINES = 20


@click.command(
    "run",
    cls=WordsCommand,
    words_metavar="[-- COMMAND...]",
    help=f"""Create and start a machine, and run a command or a shell in it.

    Without NAME the machine is given one. {ONE_RULE} A command has a terminal where stdin and stdout are both one.

    The exit code is the command's own; 255 is ssh's.
    """,
)
@click.argument("name", required=False)
@machine_options
@click.option("--rm", "remove", is_flag=True, help="Delete the machine afterwards.")
@click.option("--timeout", type=Seconds(), default=120.0, show_default=True, help="Seconds to wait for ssh.")
@overcommit_option
@session_options
def run_command(  # one parameter an option
    name: str | None,
    remove: bool,
    timeout: float,
    overcommit: bool,
    **given: Any,  # noqa: ANN401
) -> int:
    from vmm.app import require_root
    from vmm.cli import render
    from vmm.host.process import attached
    from vmm.operations.create import create
    from vmm.operations.ssh import check, ssh_command
    from vmm.operations.start import Mode, Wait, start
    from vmm.operations.stop import delete

    name = name if name is not None else f"run-{os.urandom(3).hex()}"
    session = session_of(given, asks_terminal=True)
    check(session)
    request = request_of(name, given)
    require_root("run")
    site = settings().site()
    create(site, request)
    try:
        with settings().progress().step(f"Starting {name} and waiting for its ssh"):
            started = start(site, name, Mode(wait=Wait.SSH, timeout_s=timeout, overcommit=overcommit))
        render.warnings(started)
        return attached(ssh_command(site, name, session))
    except (EngineError, GuestError) as error:
        if not remove or not _show_end(site, name):
            raise
        # What it says leads to the machine, which is about to go.
        raise type(error)(
            error.brief,
            details=error.details,
            resolution="See the end of its console above; to keep the machine and look into it, leave --rm out.",
        ) from error
    finally:
        if remove:
            delete(site, name, force=True)


def _show_end(site: HostSite, name: str) -> bool:
    """Show the last words of a machine that is not kept; False where it said nothing."""
    from vmm.cli.output import complain

    words = site.files.last_words(name) or site.files.engine_words(name)
    lines = words.splitlines()[-_LAST_LINES:]
    for line in [f"--- the end of the console of {name}", *lines, "---"] if lines else []:
        complain(line)
    return bool(lines)
