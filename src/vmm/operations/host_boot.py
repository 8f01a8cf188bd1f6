"""`vmm autostart` and `vmm autostop`: what the systemd unit calls when the host comes up and goes down."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import repeat
from typing import TYPE_CHECKING

from vmm.errors import VmmError
from vmm.model.lifecycle import LIVE
from vmm.model.machine import Machine, UnreadableRecord
from vmm.operations.observe import observed
from vmm.operations.start import Wait, start
from vmm.operations.stop import STOP_TIMEOUT_S, stop

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from vmm.model.site import Site


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
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

    with ThreadPoolExecutor(max_workers=max(1, min(workers, len(names)))) as pool:
        return tuple(pool.map(_outcome, names, repeat(act)))


def autostart(site: Site) -> tuple[Outcome, ...]:
    """Start every machine that is to start by itself and was running when its host went down."""
    names = [m.name for m in _machines(site) if m.spec.auto_start and m.wanted and observed(site, m).state not in LIVE]
    return each(names, lambda name: start(site, name, wait=Wait.RUNNING), workers=4) if names else ()


def autostop(site: Site, *, timeout_s: float = STOP_TIMEOUT_S) -> tuple[Outcome, ...]:
    """Stop every running machine, and keep the wish that it runs."""
    names = [m.name for m in _machines(site) if observed(site, m).state in LIVE]
    return each(names, lambda name: stop(site, name, timeout_s=timeout_s, keep_wanted=True)) if names else ()


def _machines(site: Site) -> list[Machine]:
    return [record for record in site.store.machines() if not isinstance(record, UnreadableRecord)]


def _outcome(name: str, act: Callable[[str], object]) -> Outcome:
    try:
        return Outcome(name=name, result=act(name))
    except VmmError as error:
        return Outcome(name=name, error=error)
