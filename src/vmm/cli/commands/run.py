"""`vmm run`: from nothing to a command or a shell in a machine."""

import os
import sys
from collections.abc import Sequence
from typing import Any

import click

from vmm.cli.commands.create import machine_options, request_of
from vmm.cli.commands.power import overcommit_option
from vmm.cli.options import Command, Seconds, settings


@click.command("run", cls=Command, context_settings={"ignore_unknown_options": False})
@machine_options
@click.option("--rm", "remove", is_flag=True, help="Delete the machine afterwards.")
@click.option("--timeout", type=Seconds(), default=120.0, show_default=True, help="Seconds to wait for ssh.")
@overcommit_option
@click.option("-u", "--user", default="root", show_default=True, help="The user inside.")
@click.argument("words", nargs=-1, metavar="[NAME] [-- COMMAND...]", type=click.UNPROCESSED)
def run_command(  # one parameter an option
    words: Sequence[str],
    remove: bool,
    timeout: float,
    user: str,
    overcommit: bool,
    **given: Any,  # noqa: ANN401
) -> int:
    """Create and start a machine, and run a command or a shell in it.

    The exit code is the command's own. Without NAME the machine is given one.
    """
    from vmm.app import require_root
    from vmm.cli import render
    from vmm.host.process import attached
    from vmm.model.names import valid_user
    from vmm.operations.create import create
    from vmm.operations.ssh import ssh_command
    from vmm.operations.start import Mode, Wait, start
    from vmm.operations.stop import delete

    name, command = _split(words)
    valid_user(user)
    request = request_of(name, given)
    require_root("run")
    site = settings().site()
    create(site, request)
    try:
        with settings().progress().step(f"Starting {name} and waiting for its ssh"):
            started = start(site, name, Mode(wait=Wait.SSH, timeout_s=timeout, overcommit=overcommit))
        render.warnings(started)
        return attached(ssh_command(site, name, user=user, arguments=command))
    finally:
        if remove:
            delete(site, name, force=True)


def _split(words: Sequence[str]) -> tuple[str, Sequence[str]]:
    """Return the machine's name (a made-up one when none was given) and the command behind `--`.

    click has taken the `--` away; the first word is the name only when it stood before it.
    """
    arguments = sys.argv[1:]
    before = arguments[: arguments.index("--")] if "--" in arguments else arguments
    if words and words[0] in before:
        return words[0], words[1:]
    return f"run-{os.urandom(3).hex()}", words
