"""`vmm completion`, `vmm help` and `vmm version`."""

from collections.abc import Sequence

import click

from vmm import VERSION
from vmm.cli.options import Command, settings, show_help
from vmm.cli.output import lines, raw


@click.command("completion", cls=Command)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion_command(shell: str) -> None:
    """Print the completion script of a shell."""
    from click.shell_completion import get_completion_class

    from vmm.cli.main import cli

    kind = get_completion_class(shell)
    if kind is None:
        raise click.UsageError(f"click knows no completion for {shell}.", click.get_current_context())
    raw(kind(cli, {}, "vmm", "_VMM_COMPLETE").source() + "\n")


@click.command("help", cls=Command)
@click.argument("words", nargs=-1, metavar="[COMMAND...]")
def help_command(words: Sequence[str]) -> None:
    """Show the help of vmm, or of one of its commands."""
    show_help(click.get_current_context().find_root(), words)


@click.command("version", cls=Command)
@click.option("--json", "as_json", is_flag=True, help="As JSON, with the versions of the engines.")
def version_command(as_json: bool) -> None:
    """Print the version."""
    if not as_json and settings().output != "json":
        lines([f"vmm {VERSION}"])
        return
    from vmm.app.doctor import engine_versions
    from vmm.cli import render

    render.to_json({"version": VERSION, **engine_versions(settings().site(read_only=True))})
