"""`vmm create`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from vmm.cli.options import (
    IMAGES,
    KERNELS,
    NONE,
    Command,
    Decimal,
    FilePath,
    Limit,
    Rate,
    Seconds,
    Size,
    Whole,
    settings,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from vmm.operations.create import CreateRequest

ENGINES = click.Choice(["auto", "firecracker", "qemu"])


def machine_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that say what a new machine is like."""
    path = FilePath()
    for option in reversed(
        [
            click.option("--cpus", type=Whole(), help="Number of vCPUs (1-32) [1]."),
            click.option("--memory", type=Size(), help="Memory: MB, or 512M, 2G [512]."),
            click.option("--disk", type=Size(), help="Size of the root disk: MB, or 10G [1024, or the image's]."),
            click.option("--image", help="The image to make it from [default].", shell_complete=IMAGES),
            click.option("--kernel", help="The kernel to boot [default].", shell_complete=KERNELS),
            click.option("--engine", type=ENGINES, help="What runs it [auto: firecracker where KVM can run guests]."),
            click.option("--ssh-key", type=path, multiple=True, help="A public key file for root, besides vmm's own."),
            click.option("--dns", multiple=True, help="A name server [the host's]; may be repeated."),
            click.option("--label", "labels", multiple=True, help="KEY=VALUE; may be repeated."),
            click.option("--user-data", type=path, help="cloud-init user data, for images that have cloud-init."),
            click.option("--auto-start/--no-auto-start", default=True, help="Come back after a reboot [yes]."),
            *confinement_options(),
            click.option(
                "--jail/--no-jail",
                default=True,
                help="Confine its engine [yes]; without, whoever breaks out of it is root.",
            ),
        ]
    ):
        function = option(function)
    return function


def confinement_options() -> list[Callable[..., Any]]:
    """Return the options that say what a machine's engine may have, and what becomes of it when it ends."""
    return [
        click.option(
            "--restart",
            type=click.Choice(["no", "on-failure", "always"]),
            help="When it ends by itself (at first: no).",
        ),
        click.option(
            "--cpu-limit", type=Limit(Decimal()), metavar="CPUS", help="CPUs that its engine may use, such as 1.5."
        ),
        click.option(
            "--memory-limit", type=Limit(Size()), metavar="SIZE", help="Memory over the guest's own, such as 64M."
        ),
        click.option("--pids-limit", type=Limit(Whole()), metavar="COUNT", help="Processes and threads of its engine."),
        click.option("--io-read-bps", type=Limit(Rate()), metavar="BYTES", help="Bytes a second from the disk; 10M."),
        click.option("--io-write-bps", type=Limit(Rate()), metavar="BYTES", help="Bytes a second to the disk; 10M."),
        click.option("--io-read-iops", type=Limit(Whole()), metavar="COUNT", help="Reads a second."),
        click.option("--io-write-iops", type=Limit(Whole()), metavar="COUNT", help="Writes a second."),
    ]


# The options' names, and the fields of Limits that they set.
LIMITS = {
    "cpu_limit": "cpus",
    "memory_limit": "memory_mib",
    "pids_limit": "pids",
    "io_read_bps": "io_read_bps",
    "io_write_bps": "io_write_bps",
    "io_read_iops": "io_read_iops",
    "io_write_iops": "io_write_iops",
}


def limits_of(given: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of Limits that were given; None for one that is to be taken off."""
    found = {field: given[option] for option, field in LIMITS.items() if given[option] is not None}
    return {field: None if value == NONE else value for field, value in found.items()}


def request_of(name: str, given: dict[str, Any]) -> CreateRequest:
    """Return the request that these options make; `given` are the values of `machine_options`."""
    from vmm.model.machine import Limits, RestartPolicy
    from vmm.model.names import parse_label
    from vmm.operations.create import CreateRequest

    defaults = settings().site(read_only=True).defaults
    keys = given["ssh_key"] or ([Path(defaults.ssh_key_path)] if defaults.ssh_key_path else [])
    return CreateRequest(
        name=name,
        cpus=given["cpus"],
        memory_mib=given["memory"],
        disk_mib=given["disk"],
        image=given["image"],
        kernel=given["kernel"],
        engine=given["engine"],
        auto_start=given["auto_start"],
        labels=dict(parse_label(label) for label in given["labels"]),
        ssh_keys=tuple(_public_key(path) for path in keys),
        dns=given["dns"],
        user_data=read_file(given["user_data"], what="user data") if given["user_data"] else None,
        jail=given["jail"],
        limits=Limits(**limits_of(given)),
        restart=RestartPolicy(given["restart"] or "no"),
    )


def read_file(path: Path, *, what: str) -> str:
    """Return a file's text; raise UsageError when it cannot be read, is no text, or too large for what it is for."""
    from vmm.errors import UsageError
    from vmm.host.reading import read_text

    try:
        text = read_text(path)
    except OSError as error:
        raise UsageError(
            f"The file of the {what} cannot be read.",
            details=str(error),
            resolution="Give the path of a file that is there, plain, and yours to read.",
        ) from error
    if "\0" in text:
        raise UsageError(
            f"The file of the {what} is no text.",
            details=f"{path} holds a NUL.",
            resolution="Give a plain text file.",
        )
    return text


def _public_key(path: Path) -> str:
    from vmm.guest.keys import checked_public_key

    return checked_public_key(read_file(path, what="ssh key"), source=str(path))


@click.command("create", cls=Command)
@click.argument("name")
@machine_options
@click.option("--start", "start_it", is_flag=True, help="Start it as well.")
@click.option("--timeout", type=Seconds(), help="With --start: seconds to wait [60, which is the most].")
@click.option("--overcommit", is_flag=True, help="With --start: even if the host has not that much memory.")
def create_command(name: str, start_it: bool, timeout: float | None, overcommit: bool, **given: Any) -> None:  # noqa: ANN401
    """Create a machine."""
    from vmm.app import require_root
    from vmm.operations.create import create

    request = request_of(name, given)
    require_root("create")
    site = settings().site()
    machine = create(site, request)
    address = machine.lease.address
    settings().say(f"{name} is created, with the address {address} ({machine.spec.engine}).")
    if start_it:
        from vmm.cli.commands.power import mode_of, start_one

        start_one(settings(), site, name, mode_of(wait="running", timeout=timeout, overcommit=overcommit))
    else:
        settings().say(f"Start it: vmm start {name}")
