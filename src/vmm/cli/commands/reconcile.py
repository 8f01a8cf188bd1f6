"""`vmm reconcile`."""

import click

from vmm.cli.options import Command, settings


@click.command("reconcile", cls=Command)
def reconcile_command() -> int:
    """Compare what is remembered with the host, and mend what differs."""
    from vmm.app import require_root
    from vmm.cli import render
    from vmm.operations.reconcile import reconcile

    require_root("reconcile")
    given = settings()
    repairs = reconcile(given.site())
    if given.output == "json" or (repairs and not given.quiet):
        render.repairs(repairs, given.output)
    if not repairs:
        given.say("All is as it is remembered.")
    return 0 if all(repair.done for repair in repairs) else 1
