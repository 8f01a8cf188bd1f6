"""The one place that knows what guests need of this host.

`doctor`, `setup`, `start`, `reconcile` and the supervisor ask here. A new fact is an entry of `facts_of`: its question,
when it is asked first, how it is answered, how it is mended. The answers are given by the room that can see them
(`vmm.network`, `vmm.host`); here is only which there are.
"""

from __future__ import annotations

from vmm import TYPE_CHECKING
from vmm.errors import VmmError
from vmm.model.facts import Answer, Fact, Moment, Standing, unseen
from vmm.model.value import replace

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vmm.app import HostSite


def facts_of(site: HostSite) -> tuple[Fact, ...]:
    """Return every fact of this host, in the order in which they are told and mended."""
    from vmm.network import facts as network

    return (
        Fact(
            name="ip forwarding",
            question="Does this host pass on what machines send?",
            first=Moment.START,
            ask=lambda: network.forwarding(site.network),
            mend=site.network.mend_bridge,
        ),
        Fact(
            name="bridge",
            question="Is the machines' bridge up, with its address?",
            first=Moment.WATCH,
            ask=lambda: network.bridge(site.network),
            mend=site.network.mend_bridge,
        ),
        Fact(
            name="link managers",
            question="Do networkd and NetworkManager leave the machines' links alone?",
            first=Moment.LOOK,
            ask=lambda: network.managers(site.network),
            mend=site.network.tell_managers,
        ),
        Fact(
            name="forward policy",
            question="Does no other firewall drop what machines send?",
            first=Moment.WATCH,
            ask=lambda: network.others(site.network),
            mend=site.network.accept_where_others_drop,
        ),
    )


class HostFacts:
    """What operations ask of this host's facts (`vmm.model.site.HostFacts`)."""

    def __init__(self, site: HostSite) -> None:
        self._site = site

    def ask(self, moment: Moment) -> Sequence[Answer]:
        """Answer every fact that this moment asks; none is changed, and one that cannot be asked keeps no other."""
        return tuple(_answer(fact) for fact in self._asked(moment))

    def mend(self, moment: Moment) -> Sequence[Answer]:
        """Answer every fact that this moment asks, and mend what is not ok and can be mended."""
        return tuple(_mended(fact) for fact in self._asked(moment))

    def _asked(self, moment: Moment) -> list[Fact]:
        return [fact for fact in facts_of(self._site) if fact.first <= moment]


def _answer(fact: Fact) -> Answer:
    try:
        return fact.ask()
    except VmmError as error:
        return unseen(fact.name, f"{error.brief} {error.details}", error.resolution)
    except OSError as error:
        return unseen(fact.name, str(error), "vmm doctor, as root")


def _mended(fact: Fact) -> Answer:
    found = _answer(fact)
    if found.standing is not Standing.NOT_OK or fact.mend is None:
        return found
    try:
        fact.mend()
    except VmmError as error:
        return replace(found, proof=f"{found.proof}; it cannot be mended: {error.brief} {error.details}")
    now = _answer(fact)
    # What it was is what its reader wants to know; what it is now may be another trouble.
    return replace(found, mended=True) if now.standing is Standing.OK else now
