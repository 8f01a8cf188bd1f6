"""`vmm ssh` and `vmm exec`."""

from collections.abc import Sequence

import click

from vmm.cli.options import Command, machine_argument, settings

_user = click.option("-u", "--user", default="root", show_default=True, help="The user inside.")


@click.command("ssh", cls=Command)
@machine_argument
@_user
@click.argument("words", nargs=-1, metavar="[-- COMMAND...]", type=click.UNPROCESSED)
def ssh_command(name: str, user: str, words: Sequence[str]) -> None:
    """Open a shell in a machine, or run a command in it.

    The exit code is the command's own; 255 is ssh's.
    """
    _become(name, user, words)


@click.command("exec", cls=Command)
@machine_argument
@_user
@click.argument("words", nargs=-1, required=True, metavar="-- COMMAND...", type=click.UNPROCESSED)
def exec_command(name: str, user: str, words: Sequence[str]) -> None:
    """Run a command in a machine, without a terminal.

    The words reach the command as they are given here, spaces and all; the exit code is the command's own.
    """
    import shlex

    # ssh hands one line to a shell inside: quoted, it gives the words back.
    _become(name, user, [shlex.join(words)])


def _become(name: str, user: str, words: Sequence[str]) -> None:
    from vmm.host.process import replace
    from vmm.model.names import valid_name
    from vmm.operations.ssh import ssh_command as argv_for

    replace(argv_for(settings().site(read_only=True), valid_name(name), user=user, arguments=words))
