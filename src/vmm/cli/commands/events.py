"""`vmm events`: what happened to machines."""

from __future__ import annotations

import time

import click

from vmm.cli.options import MACHINES, Command, Whole, settings

_POLL_S = 0.5


@click.command("events", cls=Command)
@click.argument("name", required=False, shell_complete=MACHINES)
@click.option(
    "-n", "--lines", type=Whole(least=1, most=10_000), default=50, show_default=True, help="The newest lines."
)
@click.option("-f", "--follow", is_flag=True, help="Go on with what comes.")
def events_command(name: str | None, lines: int, follow: bool) -> None:
    """Show what happened to machines, and why."""
    from vmm.cli import render
    from vmm.model.names import valid_name

    given = settings()
    store = given.site(read_only=True).store
    machine = None if name is None else valid_name(name)
    found = store.events(machine, most=lines)
    if not found and machine is not None:
        # One that was deleted has events; one that never was is a mistake.
        store.machine(machine)
    render.events(found, given.output, stream=follow)
    last = found[-1].id if found else 0
    while follow:
        time.sleep(_POLL_S)
        found = store.events(machine, after=last)
        render.events(found, given.output, stream=True)
        last = found[-1].id if found else last
