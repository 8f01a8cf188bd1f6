"""Commands that end in words for a guest: those are split off before anything is parsed."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from vmm.cli.options import Command, FilePath

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from vmm.model.session import Session

ONE_RULE = (
    "One word is a line for the shell inside, as with ssh ('cd /srv && make'); several are a program and its words, "
    "which arrive as they are given here."
)


class WordsCommand(Command):
    """A command whose `words` are what stands behind `--`, or without one what follows NAME and the options.

    Nothing of them is ever taken for an option or for the name of a machine.
    """

    def __init__(self, *args: Any, words_metavar: str, needs_words: bool = False, **kwargs: Any) -> None:  # noqa: ANN401  # click's own types
        super().__init__(*args, **kwargs)
        self._metavar = words_metavar
        self._needs_words = needs_words

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        before, words = self._split(ctx, args)
        try:
            super().parse_args(ctx, before)
        except click.MissingParameter as error:
            if words:
                raise click.UsageError("The name of the machine stands before --.", ctx) from error
            raise
        if self._needs_words and not words and not ctx.resilient_parsing:
            raise click.UsageError("Give the command behind --.", ctx)
        ctx.params["words"] = words
        return []

    def collect_usage_pieces(self, ctx: click.Context) -> list[str]:
        return [*super().collect_usage_pieces(ctx), self._metavar]

    def _split(self, ctx: click.Context, args: list[str]) -> tuple[list[str], tuple[str, ...]]:
        if "--" in args:
            place = args.index("--")
            return args[:place], tuple(args[place + 1 :])
        # The command begins with the second word that is none of our options, nor the value of one.
        name = len(args) - len(self._behind_options(ctx, args))
        rest = self._behind_options(ctx, args[name + 1 :])
        place = len(args) - len(rest)
        return args[:place], tuple(args[place:])

    def _behind_options(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Return what is left of the arguments from the first on that is no option."""
        options = [param for param in self.get_params(ctx) if isinstance(param, click.Option)]
        parser = click.Command(None, params=list(options), add_help_option=False).make_parser(ctx)
        parser.allow_interspersed_args = False
        return parser.parse_args(list(args))[1]


def session_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that say how a session in a guest is to be."""
    for option in reversed(
        [
            click.option("-u", "--user", default="root", show_default=True, help="The user inside."),
            click.option(
                "-i",
                "--identity",
                type=FilePath(),
                help="A private key of yours, offered alone [those that the machine was given].",
            ),
            click.option(
                "-t", "terminal", flag_value=True, type=bool, default=None, help="Give it a terminal, whatever ours is."
            ),
            click.option("-T", "terminal", flag_value=False, type=bool, default=None, help="Give it no terminal."),
            click.option(
                "-n",
                "--no-stdin",
                "no_input",
                is_flag=True,
                help="Leave stdin alone: a loop around it may need it.",
            ),
        ]
    ):
        function = option(function)
    return function


def session_of(given: dict[str, Any], *, asks_terminal: bool) -> Session:
    """Return the session that `session_options` and the words ask for.

    `asks_terminal`: a command gets a terminal where both our ends are one, unless an option says otherwise.
    """
    from vmm.model.session import Session

    words: tuple[str, ...] = given["words"]
    terminal: bool | None = given["terminal"]
    if terminal is None and words:
        terminal = asks_terminal and sys.stdin.isatty() and sys.stdout.isatty()
    identity: Path | None = given["identity"]
    return Session(
        user=given["user"],
        words=words,
        terminal=terminal,
        has_input=not given["no_input"],
        identity=None if identity is None else identity.absolute(),
    )
