"""`vmm list`: for any user, whatever the number of machines, without a process or a socket for each."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from vmm.cli import render
from vmm.cli.options import Command, settings
from vmm.errors import UsageError
from vmm.model.machine import MachineState
from vmm.operations.observe import view_all

if TYPE_CHECKING:
    from collections.abc import Sequence


@click.command("list", cls=Command)
@click.option(
    "-a", "--all", "every", is_flag=True, help="Also engines that run though the database does not know them."
)
@click.option("--filter", "filters", multiple=True, help="label=KEY[=VALUE] or state=STATE; several by commas.")
def list_command(every: bool, filters: Sequence[str]) -> None:
    """List machines."""
    labels, states = _parse(filters)
    found = view_all(settings().site(read_only=True), labels=labels, states=states, strays=every)
    render.machines(found, settings().output, chosen=bool(filters))


def _parse(filters: Sequence[str]) -> tuple[dict[str, str | None], list[MachineState]]:
    labels: dict[str, str | None] = {}
    states: list[MachineState] = []
    # A list of them may end in a comma; none at all would be every machine.
    for text in (part for whole in filters for part in whole.rstrip(",").split(",")):
        kind, _, rest = text.partition("=")
        key, separator, value = rest.partition("=")
        if kind == "label" and key:
            labels[key] = value if separator else None
        elif kind == "state" and rest in list(MachineState):
            states.append(MachineState(rest))
        else:
            raise UsageError(
                f"{text!r} is not a filter.",
                details=f"Filters are label=KEY, label=KEY=VALUE and state=STATE; states: {', '.join(MachineState)}.",
                resolution="Write it such as --filter state=running or --filter label=project=web.",
            )
    return labels, states
