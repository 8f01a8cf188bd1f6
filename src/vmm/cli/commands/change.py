"""`vmm set`."""

from collections.abc import Sequence

import click

from vmm.cli.options import KERNELS, Command, Size, machine_argument, settings


@click.command("set", cls=Command)
@machine_argument
@click.option("--cpus", type=int, help="Number of vCPUs (1-32).")
@click.option("--memory", type=Size(), help="Memory: MB, or 512M, 2G.")
@click.option("--disk", type=Size(), help="A larger root disk: MB, or 10G.")
@click.option("--kernel", help="The kernel to boot.", shell_complete=KERNELS)
@click.option("--dns", multiple=True, help="A name server; may be repeated.")
@click.option("--label", "labels", multiple=True, help="KEY=VALUE; KEY= with nothing behind it takes the label off.")
@click.option("--auto-start/--no-auto-start", default=None, help="Come back after a reboot of the host.")
def set_command(  # one parameter an option
    name: str,
    cpus: int | None,
    memory: int | None,
    disk: int | None,
    kernel: str | None,
    dns: Sequence[str],
    labels: Sequence[str],
    auto_start: bool | None,
) -> None:
    """Change a stopped machine."""
    from vmm.app import require_root
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
    )
    if changes == Changes():
        raise click.UsageError("Say what to change, such as --memory 2G.", click.get_current_context())
    valid_name(name)
    require_root("set")
    change(settings().site(), name, changes)
    settings().say(f"{name} is changed.")
