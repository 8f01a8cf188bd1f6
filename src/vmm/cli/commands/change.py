"""`vmm set`."""

from collections.abc import Callable, Sequence
from typing import Any

import click

from vmm.cli.commands.create import confinement_options, limits_of
from vmm.cli.options import KERNELS, Command, Size, Whole, machine_argument, settings


def with_confinement(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that say what a machine's engine may have."""
    for option in reversed(confinement_options()):
        function = option(function)
    return function


@click.command("set", cls=Command)
@machine_argument
@click.option("--cpus", type=Whole(), help="Number of vCPUs (1-32).")
@click.option("--memory", type=Size(), help="Memory: MB, or 512M, 2G.")
@click.option("--disk", type=Size(), help="A larger root disk: MB, or 10G.")
@click.option("--kernel", help="The kernel to boot.", shell_complete=KERNELS)
@click.option("--dns", multiple=True, help="A name server; may be repeated.")
@click.option("--label", "labels", multiple=True, help="KEY=VALUE; KEY= with nothing behind it takes the label off.")
@click.option("--auto-start/--no-auto-start", default=None, help="Come back after a reboot of the host.")
@click.option("--jail/--no-jail", default=None, help="Confine its engine; without, whoever breaks out of it is root.")
@with_confinement
def set_command(  # one parameter an option
    *,
    name: str,
    cpus: int | None,
    memory: int | None,
    disk: int | None,
    kernel: str | None,
    dns: Sequence[str],
    labels: Sequence[str],
    auto_start: bool | None,
    jail: bool | None,
    restart: str | None,
    **limits: Any,  # noqa: ANN401  # click's own
) -> None:
    """Change a stopped machine.

    A limit is taken off by `none`.
    """
    from vmm.app import require_root
    from vmm.model.machine import RestartPolicy
    from vmm.model.names import parse_label, valid_name
    from vmm.operations.change import Changes, change

    pairs = {key: value or None for key, value in map(parse_label, labels)}
    changes = Changes(
        cpus=cpus,
        memory_mib=memory,
        disk_mib=disk,
        kernel=kernel,
        auto_start=auto_start,
        labels=pairs or None,
        dns=tuple(dns) or None,
        jail=jail,
        restart=None if restart is None else RestartPolicy(restart),
        limits=limits_of(limits) or None,
    )
    if changes == Changes():
        raise click.UsageError("Say what to change, such as --memory 2G.", click.get_current_context())
    valid_name(name)
    require_root("set")
    change(settings().site(), name, changes)
    settings().say(f"{name} is changed.")
