"""The supervisor's eye on the host: what machines need of it is asked every few seconds, and mended where it can be."""

from __future__ import annotations

import contextlib
import sys
import time

from vmm import TYPE_CHECKING
from vmm.errors import VmmError
from vmm.model.event import EventKind, Happening
from vmm.model.facts import Moment, Standing
from vmm.model.text import harmless

if TYPE_CHECKING:
    from vmm.app import HostSite

_EVERY_S = 5.0


class HostWatch:
    """Says each change once, into the supervisor's log; what it mended is an event as well."""

    def __init__(self, site: HostSite) -> None:
        self._site = site
        self._looked = -_EVERY_S
        self._told: dict[str, str] = {}

    def look(self) -> None:
        """Ask and mend, unless that was done a moment ago."""
        if time.monotonic() - self._looked < _EVERY_S:
            return
        for answer in self._site.facts.mend(Moment.WATCH):
            if answer.standing is Standing.OK:
                self._told.pop(answer.name, None)
                continue
            said = f"{answer.name}: {answer.proof}" + ("; mended" if answer.mended else f"; {answer.fix}")
            if answer.mended:
                with contextlib.suppress(VmmError):
                    self._site.store.happened(
                        Happening(kind=EventKind.REPAIRED, detail=f"{answer.name}: {answer.proof}")
                    )
            if answer.mended or self._told.get(answer.name) != said:
                print(harmless(said), file=sys.stderr, flush=True)  # noqa: T201  # its own log
            self._told[answer.name] = said
        self._looked = time.monotonic()
