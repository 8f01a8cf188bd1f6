"""Writes the manual page vmm(1) from the parser itself: `python -m vmm.cli.manual`."""

from __future__ import annotations

import inspect
import sys
from typing import TYPE_CHECKING

import click

from vmm import VERSION
from vmm.cli.main import ALIASES, COMMANDS, SECTIONS, cli
from vmm.cli.options import global_options

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_HEAD = r""".TH VMM 1 "" "vmm {version}" "User Commands"
.SH NAME
vmm \- virtual machines on this host, booted by Firecracker or qemu
.SH SYNOPSIS
.B vmm
.I COMMAND
.RI [ OPTIONS ]
.SH DESCRIPTION
A machine is a row in a database plus one process; no daemon holds it. Whatever is killed, the next command repairs.
.PP
Make a host ready once, and then a machine:
.PP
.EX
sudo vmm setup \-\-install\-packages
sudo vmm run dev
.EE
.SH OPTIONS
Every command takes these, before or after its name.
"""
_FEET = r""".SH EXIT STATUS
0 done, 1 failed, 2 wrong usage, 130 interrupted; 128 and a signal's number where that ended it.
.BR "vmm ssh" ", " "vmm exec" " and " "vmm run"
give the remote command's own; 255 is that of ssh.
.SH ENVIRONMENT
.TP
.B VMM_DATA_DIR
Where vmm keeps all, as with
.BR \-\-data\-dir .
.TP
.B VMM_CONFIG
The configuration file, as with
.BR \-\-config .
.TP
.B NO_COLOR
No colours.
.SH FILES
.TP
.I /var/lib/vmm
The data directory.
.TP
.I /var/lib/vmm/config/config.toml
The configuration of this host.
.SH SEE ALSO
.BR ssh (1),
.BR systemd (1),
.BR nft (8)
"""


def manual() -> str:
    """Return the page, in the man(7) macros."""
    context = click.Context(cli, info_name="vmm")
    lines = [_HEAD.format(version=VERSION).rstrip(), *_options(global_options(), context)]
    for section in SECTIONS:
        lines.append(f".SH {section.upper()} COMMANDS")
        for name, (_, _, where) in COMMANDS.items():
            command = cli.get_command(context, name)
            if where == section and command is not None:
                lines += _command(command, context, name)
    return "\n".join([*lines, _FEET.rstrip()]) + "\n"


def _command(command: click.Command, parent: click.Context, name: str) -> Iterator[str]:
    context = click.Context(command, info_name=name, parent=parent)
    if isinstance(command, click.Group):
        for inner, sub in sorted(command.commands.items()):
            yield from _command(sub, context, inner)
        return
    usage = " ".join(command.collect_usage_pieces(context))
    yield f'.SS "{_text(context.command_path)} {_text(usage)}"'
    for number, paragraph in enumerate(inspect.cleandoc(command.help or "").split("\n\n")):
        yield from ([".PP"] if number else [])
        yield _text(" ".join(paragraph.split()))
    aliases = [f"vmm {alias}" for alias, meant in ALIASES.items() if meant == name and parent.parent is None]
    if aliases:
        yield from [".PP", f"Also: {', '.join(aliases)}."]
    shared = {option.name for option in global_options()}
    yield from _options([option for option in command.params if option.name not in shared], context)


def _options(parameters: Sequence[click.Parameter], context: click.Context) -> Iterator[str]:
    for record in (parameter.get_help_record(context) for parameter in parameters):
        # An argument says all in the usage line.
        if record is not None and record[1]:
            yield from [".TP", f".B {_text(record[0])}", _text(record[1])]


def _text(text: str) -> str:
    """Return a text as roff takes it: a backslash, a dash and a line that begins with a dot or a quote are its own."""
    plain = text.replace("\\", r"\e").replace("-", r"\-").replace('"', r"\(dq")
    return rf"\&{plain}" if plain[:1] in (".", "'") else plain


if __name__ == "__main__":
    sys.stdout.write(manual())
