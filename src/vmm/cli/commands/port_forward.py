"""`vmm port-forward`."""

import click

from vmm.cli.options import Command, Group, machine_argument, settings

_protocol = click.option(
    "--protocol", type=click.Choice(["tcp", "udp"]), default="tcp", show_default=True, help="Of both ports."
)
_ports = click.argument("ports", metavar="[ADDRESS:]HOST:GUEST[/PROTOCOL]")


class OldForm(Group):
    """Takes the older `port-forward NAME HOST:GUEST` as `port-forward add NAME HOST:GUEST`."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if len(args) >= 2 and args[0] not in self.commands and ":" in args[1]:
            args = ["add", *args]
        elif len(args) >= 2 and args[0] not in self.commands and args[1].isdecimal():
            raise click.UsageError("The ports are HOST:GUEST: vmm port-forward add NAME HOST:GUEST", ctx)
        return super().resolve_command(ctx, args)


@click.group("port-forward", cls=OldForm)
def port_forward_command() -> None:
    """Lead ports of this host to a machine."""


@port_forward_command.command("add", cls=Command)
@machine_argument
@_ports
@_protocol
def add(name: str, ports: str, protocol: str) -> None:
    """Lead a port of this host to a port of a machine, now and at every start."""
    from vmm.app import require_root
    from vmm.operations.forwards import add_forward

    forward = _forward(name, ports, protocol)
    require_root("port-forward add")
    add_forward(settings().site(), forward)
    where = "" if forward.host_address == "0.0.0.0" else f"{forward.host_address}:"  # noqa: S104
    settings().say(f"{where}{forward.host_port}/{forward.protocol} of this host leads to {name}:{forward.guest_port}.")


@port_forward_command.command("list", cls=Command)
@machine_argument
def list_(name: str) -> None:
    """List a machine's forwards."""
    from vmm.cli import render
    from vmm.model.names import valid_name
    from vmm.operations.forwards import list_forwards

    render.forwards(list_forwards(settings().site(read_only=True), valid_name(name)), settings().output)


@port_forward_command.command("remove", cls=Command)
@machine_argument
@_ports
@_protocol
def remove(name: str, ports: str, protocol: str) -> None:
    """Take a forward back."""
    from vmm.app import require_root
    from vmm.operations.forwards import remove_forward

    forward = _forward(name, ports, protocol)
    require_root("port-forward remove")
    remove_forward(settings().site(), forward)
    settings().say(f"{forward.host_port}/{forward.protocol} of this host leads to {name} no more.")


def _forward(name: str, ports: str, protocol: str):  # noqa: ANN202  # the type is imported where it is needed
    from vmm.model.names import valid_name
    from vmm.model.network import Protocol, parse_forward

    return parse_forward(valid_name(name), ports, Protocol(protocol))
