"""`vmm config`."""

import click

from vmm.cli.options import Command, Group, settings


@click.group("config", cls=Group)
def config_command() -> None:
    """This host's configuration."""


@config_command.command("show", cls=Command)
def show() -> None:
    """Show the configuration in force."""
    from vmm.app import load_config
    from vmm.cli import render
    from vmm.config import values_of

    given = settings()
    config = load_config(data_dir=given.data_dir, config_file=given.config_file)
    values = values_of(config)
    if given.output == "json":
        render.to_json(values)
        return
    render.table([("file", str(config.file)), *((key, str(value)) for key, value in values.items())])


@config_command.command("init", cls=Command)
def init() -> None:
    """Make the directories and a configuration file; one that is there is left as it is."""
    from vmm.app.configure import initialise

    given = settings()
    path, made = initialise(data_dir=given.data_dir, config_file=given.config_file)
    given.say(f"{path} {'is made' if made else 'was there already'}.")


@config_command.command("set", cls=Command)
@click.argument("pairs", nargs=-1, required=True, metavar="KEY VALUE ...")
def set_(pairs: tuple[str, ...]) -> None:
    """Set keys of the configuration file; nothing is written unless the whole result is right."""
    from vmm.app.configure import set_config

    if len(pairs) % 2:
        raise click.UsageError("Give a value for each key.", click.get_current_context())
    given = settings()
    changes = dict(zip(pairs[::2], pairs[1::2], strict=True))
    path = set_config(changes, data_dir=given.data_dir, config_file=given.config_file)
    given.say(f"{path}: {', '.join(f'{key} = {value}' for key, value in changes.items())}")
