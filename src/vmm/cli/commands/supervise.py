"""`vmm settle`, `vmm supervise` and `vmm mend-network`: what vmm and systemd call, and no person needs to."""

import click

from vmm.cli.options import Command, settings

_SOON_S = 1.0


@click.command("settle", cls=Command)
@click.argument("name")
@click.option("--owner", type=click.Choice(["unit"]), hidden=True)
def settle_command(name: str, owner: str | None) -> int:
    """Record how a machine ended, and start it again where it is to be."""
    from vmm.app import require_root
    from vmm.errors import NotFoundError
    from vmm.model.names import valid_name

    valid_name(name)
    require_root("settle")
    site = settings().site()
    if owner == "unit":
        from vmm.app.units import ended_in_unit

        return ended_in_unit(site, name)
    from vmm.operations.settle import due_in_s, restart_waiting, settle

    try:
        found = settle(site, name)
    except NotFoundError:
        # Deleted meanwhile: that settles it.
        return 0
    # One that is due later is called for then: nobody waits for it with an interpreter of its own.
    if found.waits and due_in_s(found.machine) <= _SOON_S:
        restart_waiting(site, name, owner=None)
    return 0


@click.command("supervise", cls=Command)
def supervise_command() -> None:
    """Watch the machines that run, until none does."""
    from vmm.app import require_root
    from vmm.app.supervise import supervise

    require_root("supervise")
    supervise(settings().site())


@click.command("mend-network", cls=Command)
def mend_network_command() -> None:
    """Put the running machines' network back as it was made."""
    from vmm.app import require_root
    from vmm.operations.reconcile import mend_network

    require_root("mend-network")
    mend_network(settings().site())
