"""`vmm autostart` and `vmm autostop`: what the systemd unit calls when the host comes up and goes down."""

from __future__ import annotations

from vmm import TYPE_CHECKING
from vmm.model.lifecycle import LIVE
from vmm.model.machine import Machine, UnreadableRecord
from vmm.operations.observe import observed
from vmm.operations.start import Mode, start
from vmm.operations.stop import STOP_TIMEOUT_S, stop
from vmm.operations.together import each

if TYPE_CHECKING:
    from vmm.model.site import Site
    from vmm.operations.together import Outcome


def autostart(site: Site) -> tuple[Outcome, ...]:
    """Start every machine that is to start by itself and was running when its host went down."""
    names = [m.name for m in _machines(site) if m.spec.auto_start and m.wanted and observed(site, m).state not in LIVE]
    return each(names, lambda name: start(site, name, Mode(overcommit=True)), workers=4) if names else ()


def autostop(site: Site, *, timeout_s: float = STOP_TIMEOUT_S) -> tuple[Outcome, ...]:
    """Stop every running machine, and keep the wish that it runs."""
    names = [m.name for m in _machines(site) if observed(site, m).state in LIVE]
    return (
        each(names, lambda name: stop(site, name, timeout_s=timeout_s, keep_wanted=True), workers=256) if names else ()
    )


def _machines(site: Site) -> list[Machine]:
    return [record for record in site.store.machines() if not isinstance(record, UnreadableRecord)]
