"""How long work reports how far it is, without knowing who watches."""

from contextlib import AbstractContextManager
from typing import Protocol


class Step(Protocol):
    """One piece of long work under way."""

    def advance(self, amount: int) -> None:
        """Say that `amount` more of the step's total is done (bytes, packages: the step's own unit)."""
        ...


class Progress(Protocol):
    """What watches long work: a progress bar, plain lines, or nothing."""

    def step(self, title: str, *, total: int | None = None) -> AbstractContextManager[Step]:
        """Open a step; `total` in the unit that `advance` counts, None where it is not known."""
        ...

    def note(self, text: str) -> None:
        """Say one line that a person wants to keep."""
        ...
