"""Writes the reference of the command line from the parser itself: `python -m vmm.cli.reference`."""

from __future__ import annotations

import inspect
import sys
from typing import TYPE_CHECKING

import click

from vmm.cli.main import ALIASES, COMMANDS, SECTIONS, cli
from vmm.cli.options import global_options

if TYPE_CHECKING:
    from collections.abc import Iterator

_HEAD = """# The command line

<!-- Written by `make docs` from the parser; a test holds it current. Change the commands, not this file. -->

`vmm COMMAND [OPTIONS]`. Exit codes: 0 done, 1 failed, 2 wrong usage, 130 interrupted; 128 and a signal's number where
that ended it. `vmm ssh`, `vmm exec` and `vmm run` give the remote command's own; 255 is that of ssh. Errors go to
stderr in three parts: what happened, what proves it, what to do. What `--output json` prints is described in
[json.md](json.md).
"""


def reference() -> str:
    """Return the whole reference as Markdown."""
    context = click.Context(cli, info_name="vmm")
    lines = [_HEAD, "## Options that every command takes\n", *_options(global_options(), context), ""]
    for section in SECTIONS:
        lines.append(f"## {section}\n")
        for name, (_, _, where) in COMMANDS.items():
            command = cli.get_command(context, name)
            if where == section and command is not None:
                lines += _command(command, context, name)
    return "\n".join(lines).rstrip() + "\n"


def _command(command: click.Command, parent: click.Context, name: str) -> Iterator[str]:
    context = click.Context(command, info_name=name, parent=parent)
    if isinstance(command, click.Group):
        yield f"### {context.command_path}\n"
        yield f"{inspect.cleandoc(command.help or '')}\n"
        for inner, sub in sorted(command.commands.items()):
            yield from _command(sub, context, inner)
        return
    yield f"### {context.command_path}\n"
    yield f"```\n{' '.join([context.command_path, *command.collect_usage_pieces(context)])}\n```\n"
    yield f"{inspect.cleandoc(command.help or '')}\n"
    aliases = [alias for alias, meant in ALIASES.items() if meant == name and parent.parent is None]
    if aliases:
        yield f"Also: {', '.join(f'`vmm {alias}`' for alias in aliases)}.\n"
    shared = {option.name for option in global_options()}
    rows = list(_options([option for option in command.params if option.name not in shared], context))
    if rows:
        yield from [*rows, ""]


def _options(parameters: list[click.Parameter], context: click.Context) -> Iterator[str]:
    for record in (parameter.get_help_record(context) for parameter in parameters):
        # An argument says all in the usage line.
        if record is not None and record[1]:
            yield f"- `{record[0]}`: {record[1]}"


if __name__ == "__main__":
    sys.stdout.write(reference())
