"""One verb on many machines, side by side."""

from __future__ import annotations

from vmm import TYPE_CHECKING
from vmm.errors import VmmError
from vmm.model.value import Value

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


class Outcome(Value):
    """What became of one machine of many; `error` is None when it was done."""

    name: str
    result: object | None = None
    error: VmmError | None = None


def each(names: Sequence[str], act: Callable[[str], object], *, workers: int = 8) -> tuple[Outcome, ...]:
    """Do one thing to many machines side by side; an error of one does not keep it from the others."""
    if len(names) == 1:
        # The usual case goes without threads, and without importing them.
        return (_outcome(names[0], act),)
    from concurrent.futures import ThreadPoolExecutor
    from itertools import repeat

    with ThreadPoolExecutor(max_workers=max(1, min(workers, len(names)))) as pool:
        return tuple(pool.map(_outcome, names, repeat(act)))


def _outcome(name: str, act: Callable[[str], object]) -> Outcome:
    try:
        return Outcome(name=name, result=act(name))
    except VmmError as error:
        return Outcome(name=name, error=error)
