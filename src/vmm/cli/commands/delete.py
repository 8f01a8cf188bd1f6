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
    from vmm.cli.output import complain
    from vmm.model.lifecycle import Verb, check_legal
    from vmm.model.text import harmless
    from vmm.operations.observe import observed
    from vmm.operations.stop import delete

    given = settings()
    chosen = choose(names, every)
    require_root("delete")
    site = given.site()
    if chosen and not force and sys.stdin.isatty():
        # A name that is not there, and a machine that runs, is told before anything is asked.
        for name in chosen:
            check_legal(Verb.DELETE, observed(site, site.store.machine(name)))
        if not click.confirm(f"Delete {harmless(', '.join(chosen))}, with disks and all that is on them?"):
            complain("Nothing was deleted.")
            return 1

    def act(name: str) -> None:
        delete(site, name, force=force)
        given.say(f"{name} is deleted.")

    return each(chosen, act)
