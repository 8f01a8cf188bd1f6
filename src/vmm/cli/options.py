"""What commands share: the options that stand anywhere, types of values, and completion of names."""

from __future__ import annotations

import errno
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from vmm.cli import hints
from vmm.cli.output import raw, say

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

    from vmm.app import HostSite
    from vmm.model.progress import Progress


@dataclass(slots=True)
class Settings:
    """The global options, as far as they were given."""

    data_dir: Path | None = None
    config_file: Path | None = None
    output: str = "table"
    verbose: bool = False
    quiet: bool = False

    def site(self, *, read_only: bool = False) -> HostSite:
        from vmm.app import open_site
        from vmm.cli.output import complain

        if not read_only:
            from vmm.cli.signals import end_in_good_order

            end_in_good_order()
        if self.verbose:
            import logging

            logging.basicConfig(level=logging.DEBUG, format="%(levelname)s %(name)s: %(message)s")
        told: set[str] = set()

        def tell(what: str) -> None:
            if what not in told:
                told.add(what)
                complain(f"vmm: {what}")

        site = open_site(data_dir=self.data_dir, config_file=self.config_file, read_only=read_only, tell=tell)
        site.revive_supervisor()
        return site

    def progress(self) -> Progress:
        from vmm.cli.progress import choose

        return choose(quiet=self.quiet)

    def say(self, text: str) -> None:
        """Print a result for people, unless --quiet; beside a listing for programs it goes to stderr."""
        if not self.quiet:
            say(hints.fit(text), aside=self.output != "table")


def settings() -> Settings:
    """Return the settings of the command line at work."""
    return click.get_current_context().find_root().ensure_object(Settings)


def _store(ctx: click.Context, param: click.Parameter, value: Any) -> None:  # noqa: ANN401  # click's own type
    # Given twice, before and after the command, the one that was given wins over the default of the other.
    if value not in (None, False):
        if isinstance(value, Path):
            hints.remember(param.opts[0], str(value))
        setattr(ctx.find_root().ensure_object(Settings), str(param.name), value)


def global_options() -> list[click.Parameter]:
    """Return the options that every command takes, before or after its name."""
    path = FilePath(plain=True)
    return [
        click.Option(
            ["--output"], type=click.Choice(["table", "json", "name"]), callback=_store, expose_value=False,
            help="How listings are written.",
        ),
        click.Option(
            ["--data-dir"], type=path, callback=_store, expose_value=False, help="Where vmm keeps all (VMM_DATA_DIR)."
        ),
        click.Option(
            ["--config", "config_file"], type=path, callback=_store, expose_value=False,
            help="The configuration file (VMM_CONFIG).",
        ),
        click.Option(
            ["-v", "--verbose"], is_flag=True, callback=_store, expose_value=False, help="Show every program that runs."
        ),
        click.Option(
            ["-q", "--quiet"], is_flag=True, callback=_store, expose_value=False, help="Say nothing but errors."
        ),
    ]  # fmt: skip


class Command(click.Command):
    """A command that takes the global options too."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401  # click's own types
        super().__init__(*args, **kwargs)
        self.params.extend(global_options())


class Group(click.Group):
    """A group that takes the global options too, and whose commands are `Command`s."""

    command_class = Command

    def __init__(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401  # click's own types
        super().__init__(*args, **kwargs)
        self.params.extend(global_options())

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        # Where people look for help who do not know `--help`.
        if args[:1] == ["help"] and self.get_command(ctx, "help") is None:
            show_help(ctx, args[1:])
            ctx.exit()
        return super().resolve_command(ctx, args)


def show_help(ctx: click.Context, words: Sequence[str]) -> None:
    """Print the help of the command that `words` name below the context's own, or of that one itself.

    Raises:
        UsageError: there is no such command.
    """
    for word in words:
        command = ctx.command.get_command(ctx, word) if isinstance(ctx.command, click.Group) else None
        if command is None:
            from vmm.model.words import quoted

            raise click.UsageError(f"There is no command {quoted(word)} in {ctx.command_path}.", ctx)
        ctx = click.Context(command, info_name=command.name, parent=ctx)
    raw(ctx.get_help() + "\n")


class Size(click.ParamType[int]):
    """Plain MB, or 512M, 2G; gives MiB."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:  # noqa: ANN401
        from vmm.model.sizes import parse_mib

        return value if isinstance(value, int) else parse_mib(str(value))


class FilePath(click.ParamType[Path]):
    """A path; an empty one is none, and would be taken for the directory that one stands in.

    `plain`: others go by it too, and read it from a line; it must be printable.
    """

    name = "path"

    def __init__(self, *, plain: bool = False) -> None:
        self._plain = plain

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:  # noqa: ANN401
        from vmm.model.words import quoted

        text = str(value)
        if not text or "\0" in text or (self._plain and not text.isprintable()):
            self.fail("it is no path that a file can have." if text else "an empty text is no path.", param, ctx)
        try:
            path = Path(text).expanduser()
        except RuntimeError:
            self.fail(f"{quoted(text)}: there is no such user; a file named so is given as './~...'.", param, ctx)
        try:
            absolute = path.absolute()
        except FileNotFoundError:
            gone = "is relative, and the directory that this shell stands in was removed"
            self.fail(f"{quoted(text)} {gone}: give a path that begins with '/'.", param, ctx)
        if _is_too_long(path):
            self.fail(f"{quoted(text)} is longer than a path or a name may be.", param, ctx)
        return absolute if self._plain else path

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        from click.shell_completion import CompletionItem

        return [CompletionItem(incomplete, type="file")]


def _is_too_long(path: Path) -> bool:
    try:
        path.lstat()
    except OSError as error:
        return error.errno == errno.ENAMETOOLONG
    return False


class Whole(click.ParamType[int]):
    """A whole number in plain digits. click's own takes `1_0`, ` 1` and the digits of other scripts."""

    name = "number"

    def __init__(self, *, least: int = 0, most: int = 10**18) -> None:
        self._least, self._most = least, most

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:  # noqa: ANN401
        from vmm.model.sizes import parse_whole
        from vmm.model.words import quoted

        number = value if isinstance(value, int) else parse_whole(str(value))
        if number is None or not self._least <= number <= self._most:
            bound = f"of {self._least} or more" if self._most >= 10**18 else f"from {self._least} to {self._most}"
            self.fail(f"{quoted(value)} is not a whole number {bound}.", param, ctx)
        return number


class Decimal(click.ParamType[float]):
    """A number such as `2` or `1.5`, in plain digits."""

    name = "number"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:  # noqa: ANN401
        from vmm.model.sizes import parse_decimal
        from vmm.model.words import quoted

        number = float(value) if isinstance(value, int | float) else parse_decimal(str(value))
        if number is None:
            self.fail(f"{quoted(value)} is not a number, such as 1.5.", param, ctx)
        return number


class Rate(click.ParamType[int]):
    """Bytes: a plain number, or 512K, 10M, 1G; gives bytes."""

    name = "rate"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:  # noqa: ANN401
        from vmm.model.sizes import parse_whole
        from vmm.model.words import quoted

        text = str(value).upper()
        scale = {"K": 1024, "M": 1024**2, "G": 1024**3}.get(text[-1:], 1)
        number = parse_whole(text[:-1] if scale > 1 else text)
        if number is None:
            self.fail(f"{quoted(value)} is not a number of bytes, such as 10M.", param, ctx)
        return number * scale


# What takes a limit off.
NONE = "none"


class Limit(click.ParamType[Any]):
    """A limit of some type, or `none`, which is no limit."""

    name = "limit"

    def __init__(self, kind: Any) -> None:  # noqa: ANN401  # a type, or click's own
        self._kind: click.ParamType[Any] = click.types.convert_type(kind)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:  # noqa: ANN401
        return NONE if value == NONE else self._kind.convert(value, param, ctx)


class Seconds(click.ParamType[float]):
    """A time in seconds, more than none; `90`, `1.5`."""

    name = "seconds"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:  # noqa: ANN401
        from vmm.model.sizes import parse_decimal
        from vmm.model.words import quoted

        seconds = float(value) if isinstance(value, int | float) else parse_decimal(str(value))
        # No command waits for longer than a year.
        if seconds is None or not 0 < seconds <= 86400 * 365:
            self.fail(f"{quoted(value)} is not a number of seconds above 0.", param, ctx)
        return seconds


Complete = Callable[[click.Context, click.Parameter, str], "list[CompletionItem]"]


def complete(names: Callable[[Settings], list[str]]) -> Complete:
    """Return a completion from a function that lists names; whatever goes wrong completes nothing."""

    def completer(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:  # noqa: ARG001
        from click.shell_completion import CompletionItem

        try:
            known = names(ctx.find_root().ensure_object(Settings))
        except Exception:  # noqa: BLE001  # a shell's prompt is no place for an error
            return []
        return [CompletionItem(name) for name in known if name.startswith(incomplete)]

    return completer


MACHINES = complete(lambda given: [record.name for record in given.site(read_only=True).store.machines()])
IMAGES = complete(lambda given: [image.name for image in given.site(read_only=True).images.all()])
KERNELS = complete(lambda given: [kernel.name for kernel in given.site(read_only=True).kernels.all()])

machine_argument = click.argument("name", shell_complete=MACHINES)
