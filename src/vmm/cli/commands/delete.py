"""`vmm delete`."""

import sys
from collections.abc import Sequence

import click

from vmm.cli.commands.power import choose, each
from vmm.cli.options import MACHINES, Command, settings


@click.command("delete", cls=Command)
@click.argument("names", nargs=-1, metavar="NAME...", shell_complete=MACHINES)
@click.option("--all", "every", is_flag=True, help="Every machine.")
@click.option("-f", "--force", is_flag=True, help="Do not ask, and kill what runs.")
def delete_command(names: Sequence[str], every: bool, force: bool) -> int:
    """Delete machines with their disks and addresses."""
    from vmm.app import require_root
    from vmm.model.text import harmless
    from vmm.operations.stop import delete

    given = settings()
    chosen = choose(names, every)
    require_root("delete")
    site = given.site()
    if chosen and not force and sys.stdin.isatty():
        # A name that is not there is told before anything is asked.
        for name in chosen:
            site.store.machine(name)
        click.confirm(f"Delete {harmless(', '.join(chosen))}, with disks and all that is on them?", abort=True)

    def act(name: str) -> None:
        delete(site, name, force=force)
        given.say(f"{name} is deleted.")

    return each(chosen, act)
