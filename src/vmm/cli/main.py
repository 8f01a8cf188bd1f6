"""The parser's root."""

from __future__ import annotations

import contextlib
import importlib
import os
from typing import TYPE_CHECKING

import click

from vmm.cli import hints, output
from vmm.cli.ending import complain, guarded, interrupted
from vmm.cli.options import Command, Group
from vmm.errors import ExitCode

if TYPE_CHECKING:
    from collections.abc import Sequence

# Every command: its module, its one-line help, and the section it is listed under. Here and not in the modules, so
# that neither `vmm --help` nor completion imports them; a test holds the helps equal to the commands' own.
COMMANDS: dict[str, tuple[str, str, str]] = {
    "setup": ("host", "Make this host ready: programs, Firecracker, a kernel, an image.", "Begin"),
    "doctor": ("host", "Check this host, a line a check.", "Begin"),
    "run": ("run", "Create and start a machine, and run a command or a shell in it.", "Begin"),
    "create": ("create", "Create a machine.", "Machines"),
    "start": ("power", "Start machines.", "Machines"),
    "stop": ("power", "Stop machines: ask the guest, wait, then kill.", "Machines"),
    "restart": ("power", "Stop machines and start them again.", "Machines"),
    "delete": ("delete", "Delete machines with their disks and addresses.", "Machines"),
    "list": ("listing", "List machines.", "Machines"),
    "show": ("show", "Show one machine.", "Machines"),
    "set": ("change", "Change a stopped machine.", "Machines"),
    "ssh": ("ssh", "Open a shell in a machine, or run a command in it.", "Inside"),
    "exec": ("ssh", "Run a command in a machine, without a terminal.", "Inside"),
    "console": ("console", "Show what a machine wrote to its serial console.", "Inside"),
    "port-forward": ("port_forward", "Lead ports of this host to a machine.", "Inside"),
    "image": ("image", "Root file systems that machines are made from.", "Library"),
    "kernel": ("kernel", "Kernels that machines boot.", "Library"),
    "events": ("events", "Show what happened to machines, and why.", "Host"),
    "reconcile": ("reconcile", "Compare what is remembered with the host, and mend what differs.", "Host"),
    "db": ("db", "Check, back up and restore the database.", "Host"),
    "config": ("config", "This host's configuration.", "Host"),
    "autostart": ("host", "Start the machines that a reboot brought down (for the systemd unit).", "Host"),
    "autostop": ("host", "Stop every machine because the host goes down (for the systemd unit).", "Host"),
    "completion": ("shell", "Print the completion script of a shell.", "Host"),
    "help": ("shell", "Show the help of vmm, or of one of its commands.", "Host"),
    "version": ("shell", "Print the version.", "Host"),
    "settle": ("supervise", "Record how a machine ended, and start it again where it is to be.", ""),
    "supervise": ("supervise", "Watch the machines that run, until none does.", ""),
    "mend-network": ("supervise", "Put the running machines' network back as it was made.", ""),
    "teardown": ("host", "Take bridge, taps and firewall tables off this host.", ""),
}
ALIASES = {"ls": "list", "rm": "delete"}
# What other tools of this kind call it, where nothing here is spelled alike or something else is.
_ELSEWHERE = {
    "ps": "list", "status": "list", "logs": "console", "log": "console", "attach": "console", "inspect": "show",
    "info": "show", "kill": "stop", "down": "stop", "up": "run", "launch": "run", "shell": "ssh", "connect": "ssh",
    "destroy": "delete", "remove": "delete", "images": "image", "pull": "image", "import": "image", "init": "setup",
    "install": "setup", "check": "doctor", "forward": "port-forward", "port": "port-forward", "edit": "set",
}  # fmt: skip
SECTIONS = ("Begin", "Machines", "Inside", "Library", "Host")

_WELCOME = """\
vmm: real virtual machines on this host, booted in well under a second.

First steps:
"""
_MORE = "\nAll commands: vmm help. One of them: vmm help COMMAND. Something wrong: vmm doctor\n"
_FIRST_STEPS = {
    "sudo vmm setup --install-packages": "make this host ready (once)",
    "sudo vmm run dev": "create a machine, start it, open a shell in it",
    "sudo vmm run --rm -- uname -a": "a machine for one command",
    "vmm list": "what there is",
    "sudo vmm port-forward dev 8080:80": "reach its port 80 as this host's 8080",
    "sudo vmm delete --force dev": "gone, though it runs",
}


class Root(Group):
    """The root of the parser, which imports a command's module when the command is named."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        name = ALIASES.get(cmd_name, cmd_name)
        if name not in COMMANDS:
            return None
        module = importlib.import_module(f"vmm.cli.commands.{COMMANDS[name][0]}")
        command: click.Command = getattr(module, name.replace("-", "_") + "_command")
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for section in SECTIONS:
            rows = [(name, text) for name, (_, text, where) in COMMANDS.items() if where == section]
            with formatter.section(section):
                formatter.write_dl(rows)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        with contextlib.suppress(IndexError):
            if args[0] not in COMMANDS and args[0] not in ALIASES and not args[0].startswith("-"):
                raise click.UsageError(f"There is no command {args[0]!r}.{_meant(args[0])}", ctx)
        return super().resolve_command(ctx, args)


@click.command(cls=Root, invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(None, "-V", "--version", message="vmm %(version)s", package_name="baremetalvmm")
@click.pass_context
def cli(ctx: click.Context) -> None:
    """Real virtual machines on this host, booted by Firecracker in well under a second."""
    if ctx.invoked_subcommand is None:
        output.raw(_welcome())


def run(arguments: Sequence[str]) -> int:
    """Run the command line and return its exit code."""
    return guarded(lambda: _parsed(list(arguments)))


def _parsed(arguments: list[str]) -> int:
    if "_VMM_COMPLETE" in os.environ:
        # A shell asks what could stand here, in click's own way.
        cli.main(args=arguments, prog_name="vmm")
    try:
        # Not by `cli.main`, which takes a reader that has gone for its own business. The program's name is given: click
        # would look at what surrounds the process for it.
        with cli.make_context("vmm", arguments) as context:
            result = cli.invoke(context)
    except click.exceptions.Exit as error:
        return error.exit_code
    except click.ClickException as error:
        return _wrong_usage(error)
    except (click.Abort, EOFError) as error:
        # What click makes of an interruption.
        return interrupted(error.__cause__)
    return result if isinstance(result, int) else ExitCode.DONE


def _wrong_usage(error: click.ClickException) -> int:
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        # A group alone: what it is for is what was asked.
        output.raw(error.format_message() + "\n")
        return ExitCode.DONE
    context = error.ctx if isinstance(error, click.UsageError) else None
    path = context.command_path if context is not None else "vmm"
    usage = context.get_usage() if context is not None and isinstance(context.command, Command) else ""
    complain(error.format_message(), usage, f"{path} --help")
    return ExitCode.USAGE


def _welcome() -> str:
    # As wide as they are for whoever reads them, with sudo or without.
    steps = {hints.fit(command): what for command, what in _FIRST_STEPS.items()}
    width = max(map(len, steps))
    lines = [f"  {command:{width}}  {what}\n" for command, what in steps.items()]
    return "".join([_WELCOME, *lines, hints.fit(_MORE)])


def _meant(word: str) -> str:
    import difflib

    known = [name for name, row in COMMANDS.items() if row[2]]
    close = [_ELSEWHERE[word]] if word in _ELSEWHERE else difflib.get_close_matches(word, known, n=2)
    return f" Did you mean {' or '.join(repr(name) for name in close)}?" if close else ""
