"""`vmm show`."""

import click

from vmm.cli.options import Command, machine_argument, settings


@click.command("show", cls=Command)
@machine_argument
def show_command(name: str) -> None:
    """Show one machine."""
    from vmm.cli import render
    from vmm.model.names import valid_name
    from vmm.operations.observe import view

    render.machine(view(settings().site(read_only=True), valid_name(name)), settings().output)
