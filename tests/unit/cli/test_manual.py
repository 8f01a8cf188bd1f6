"""The manual page is made from the parser: it has every command, and each of its options."""

import click

from vmm.cli import manual
from vmm.cli.main import COMMANDS, cli


def test_every_command_and_option_is_in_the_manual() -> None:
    page = manual.manual().replace("\\-", "-")
    context = click.Context(cli, info_name="vmm")
    assert page.startswith(".TH VMM 1 ")
    # What vmm and systemd call, and no person, has no section.
    shown = [name for name, (_, _, section) in COMMANDS.items() if section]
    assert len(shown) > 20
    for name in shown:
        command = cli.get_command(context, name)
        assert command is not None
        assert f"vmm {name}" in page, name
        for option in command.params:
            if isinstance(option, click.Option) and not option.hidden:
                assert option.opts[-1] in page, (name, option.opts)
