"""`vmm ssh` and `vmm exec`."""

from typing import Any

import click

from vmm.cli.options import machine_argument, settings
from vmm.cli.words import ONE_RULE, WordsCommand, session_of, session_options

_start = click.option("--start", "start_it", is_flag=True, help="Start it first, if it does not run.")
_INPUT = (
    "One that boots is waited for. The command reads stdin; in a loop that reads a list, give -n, or it takes the rest "
    "of the list."
)


@click.command(
    "ssh",
    cls=WordsCommand,
    words_metavar="[-- COMMAND...]",
    help=f"""Open a shell in a machine, or run a command in it.

    {ONE_RULE} A command has a terminal where stdin and stdout are both one. {_INPUT}

    The exit code is the command's own; 255 is ssh's.
    """,
)
@machine_argument
@session_options
@_start
def ssh_command(name: str, start_it: bool, **given: Any) -> None:  # noqa: ANN401
    _become(name, given, start_it=start_it, asks_terminal=True)


@click.command(
    "exec",
    cls=WordsCommand,
    words_metavar="-- COMMAND...",
    needs_words=True,
    help=f"""Run a command in a machine, without a terminal.

    {ONE_RULE} {_INPUT}

    The exit code is the command's own; 255 is ssh's.
    """,
)
@machine_argument
@session_options
@_start
def exec_command(name: str, start_it: bool, **given: Any) -> None:  # noqa: ANN401
    _become(name, given, start_it=start_it, asks_terminal=False)


def _become(name: str, given: dict[str, Any], *, start_it: bool, asks_terminal: bool) -> None:
    from vmm.host.process import replace
    from vmm.model.names import valid_name
    from vmm.operations.ssh import await_boot, check, missing_key
    from vmm.operations.ssh import ssh_command as argv_for

    session = session_of(given, asks_terminal=asks_terminal)
    valid_name(name)
    check(session)
    if start_it:
        _start_first(name, verb=click.get_current_context().info_name or "ssh")
    site = settings().site(read_only=True)
    argv = argv_for(site, name, session)  # before the wait: what ssh could not be called with is told at once
    machine = await_boot(site, name, progress=settings().progress())
    missing = missing_key(site, machine, session)
    if missing is not None:
        from vmm.cli import hints, output

        output.complain(f"Warning: {hints.fit(missing)}")
    replace(argv)


def _start_first(name: str, *, verb: str) -> None:
    from vmm.app import require_root
    from vmm.cli import render
    from vmm.operations.start import start

    require_root(f"{verb} --start")
    render.warnings(start(settings().site(), name))
