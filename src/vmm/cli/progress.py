"""What is shown while long work goes on: bars on a terminal, plain lines elsewhere, nothing with --quiet."""

import contextlib
import sys
from collections.abc import Generator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vmm.cli.output import complain
from vmm.model.progress import Progress, Step
from vmm.model.text import harmless

if TYPE_CHECKING:
    from rich.progress import Progress as Bars
    from rich.progress import TaskID


def choose(*, quiet: bool) -> Progress:
    """Return what fits where stderr goes."""
    if quiet:
        return Silent()
    return OnTerminal() if sys.stderr.isatty() else PlainLines()


@dataclass(frozen=True, slots=True)
class NoStep:
    def advance(self, amount: int) -> None:
        pass


@dataclass(frozen=True, slots=True)
class Silent:
    @contextlib.contextmanager
    def step(self, title: str, *, total: int | None = None) -> Generator[Step]:
        yield NoStep()

    def note(self, text: str) -> None:
        pass


@dataclass(frozen=True, slots=True)
class PlainLines:
    @contextlib.contextmanager
    def step(self, title: str, *, total: int | None = None) -> Generator[Step]:
        self.note(f"{title} ...")
        yield NoStep()

    def note(self, text: str) -> None:
        complain(text)


@dataclass(frozen=True, slots=True)
class BarStep:
    bars: "Bars"
    task: "TaskID"

    def advance(self, amount: int) -> None:
        self.bars.advance(self.task, amount)


@dataclass(frozen=True, slots=True)
class OnTerminal:
    @contextlib.contextmanager
    def step(self, title: str, *, total: int | None = None) -> Generator[Step]:
        from rich.console import Console
        from rich.progress import BarColumn, DownloadColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

        measured = [BarColumn(), DownloadColumn()] if total is not None else []
        # Names of files are in it: brackets are no markup of ours.
        words = TextColumn("{task.description}", markup=False)
        columns = (SpinnerColumn(), words, *measured, TimeElapsedColumn())
        with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
            yield BarStep(bars, bars.add_task(harmless(title), total=total))

    def note(self, text: str) -> None:
        complain(text)
