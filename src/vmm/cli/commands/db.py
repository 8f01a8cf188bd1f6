"""`vmm db`."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from vmm.cli import hints
from vmm.cli.options import Command, FilePath, Group, settings
from vmm.cli.output import complain, lines

if TYPE_CHECKING:
    from pathlib import Path

    from vmm.app.database import Restored


@click.group("db", cls=Group)
def db_command() -> None:
    """Check, back up and restore the database."""


@db_command.command("check", cls=Command)
def check() -> int:
    """Check the database, and compare it with what lies on disk."""
    from vmm.app.database import check
    from vmm.cli import render
    from vmm.model.readiness import CheckStatus

    found = check(settings().site(read_only=True))
    render.checks(found, settings().output)
    return 1 if any(one.status is CheckStatus.FAILURE for one in found) else 0


@db_command.command("backup", cls=Command)
def backup() -> None:
    """Keep a copy of the database beside it; of those, the newest ten stay."""
    from vmm.app import require_root
    from vmm.app.database import save

    require_root("db backup")
    lines([str(save(settings().site()))])


@db_command.command("restore", cls=Command)
@click.option("--from", "source", type=FilePath(), metavar="FILE", help="The copy to put back.")
@click.option("--rebuild", is_flag=True, help="Make the database from what lies on disk instead.")
@click.option("-f", "--force", is_flag=True, help="Replace a good database too, and do not ask.")
def restore(source: Path | None, rebuild: bool, force: bool) -> int:
    """Put the newest good copy of the database back. Machines that run go on; what was there is kept."""
    from vmm.app import require_root
    from vmm.app.database import Wish, is_good, restore

    if source is not None and rebuild:
        raise click.UsageError("Give --from or --rebuild, not both.", click.get_current_context())
    require_root("db restore")
    site = settings().site()
    if not force and sys.stdin.isatty() and is_good(site):
        if not click.confirm("The database is good. Replace it all the same?"):
            complain("Nothing was restored.")
            return 1
        force = True
    _tell(restore(site, Wish(source=source, again=rebuild, force=force)))
    return 0


def _tell(done: Restored) -> None:
    from vmm.cli import render

    given = settings()
    if given.output == "json":
        render.to_json(
            {
                "source": done.source,
                "kept": None if done.kept is None else str(done.kept),
                "machines": done.machines,
                "running": list(done.running),
                "left": [{"name": left.name, "why": left.why} for left in done.left],
            }
        )
    else:
        given.say(f"The database is restored from {done.source}: {done.machines} machine(s).")
        if done.kept is not None:
            given.say(f"The one that was there is kept: {done.kept}")
        if done.running:
            given.say(f"Running, and found: {', '.join(done.running)}")
        given.say("Compare it with what lies on disk: vmm db check")
    # What is not as it should be is told whatever was asked for.
    for left in done.left:
        complain(f"Left out: {left.name}: {left.why}")
    if done.network is not None:
        complain(f"The firewall was not brought up to date: {done.network.brief} {done.network.details}")
        complain(f"To mend it: {hints.fit(done.network.resolution)}")
