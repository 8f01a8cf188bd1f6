"""What commands share: the options that stand anywhere, types of values, and completion of names."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from vmm.cli.output import say

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
                click.echo(f"vmm: {what}", err=True)

        site = open_site(data_dir=self.data_dir, config_file=self.config_file, read_only=read_only, tell=tell)
        site.revive_supervisor()
        return site

    def progress(self) -> Progress:
        from vmm.cli.progress import choose

        return choose(quiet=self.quiet)

    def say(self, text: str) -> None:
        """Print a result for people, unless --quiet; beside a listing for programs it goes to stderr."""
        if not self.quiet:
            say(text, aside=self.output != "table")


def settings() -> Settings:
    """Return the settings of the command line at work."""
    return click.get_current_context().find_root().ensure_object(Settings)


def _store(ctx: click.Context, param: click.Parameter, value: Any) -> None:  # noqa: ANN401  # click's own type
    # Given twice, before and after the command, the one that was given wins over the default of the other.
    if value not in (None, False):
        setattr(ctx.find_root().ensure_object(Settings), str(param.name), value)


def global_options() -> list[click.Parameter]:
    """Return the options that every command takes, before or after its name."""
    path = click.Path(path_type=Path)
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


class Size(click.ParamType[int]):
    """Plain MB, or 512M, 2G; gives MiB."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:  # noqa: ANN401
        from vmm.model.sizes import parse_mib

        return value if isinstance(value, int) else parse_mib(str(value))


class Rate(click.ParamType[int]):
    """Bytes: a plain number, or 512K, 10M, 1G; gives bytes."""

    name = "rate"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:  # noqa: ANN401
        text = str(value).upper()
        scale = {"K": 1024, "M": 1024**2, "G": 1024**3}.get(text[-1:], 1)
        number = text.rstrip("KMG") if scale > 1 else text
        if not (number.isascii() and number.isdigit()) or len(text) - len(number) > 1:
            self.fail(f"{value!r} is not a number of bytes, such as 10M.", param, ctx)
        return int(number) * scale


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
        try:
            seconds = float(value)
        except ValueError:
            seconds = -1.0
        # NaN compares false with everything, and no command waits for a year.
        if not 0 < seconds <= 86400 * 365:
            self.fail(f"{value!r} is not a number of seconds above 0.", param, ctx)
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
