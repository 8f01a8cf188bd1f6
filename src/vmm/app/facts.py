"""The one place that knows what guests need of this host.

`doctor`, `setup`, `start`, `reconcile` and the supervisor ask here. A new fact is an entry of `facts_of`: its question,
when it is asked first, how it is answered, how it is mended. The answers are given by the room that can see them
(`vmm.network`, `vmm.host`); here is only which there are.
"""

from __future__ import annotations

import contextlib

from vmm import TYPE_CHECKING
from vmm.errors import VmmError
from vmm.model.facts import Answer, Fact, Moment, Standing, not_ok, ok, unseen
from vmm.model.machine import Machine
from vmm.model.value import replace

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Generator, Sequence

    from vmm.app import HostSite


RULES = "rules"


def facts_of(site: HostSite) -> tuple[Fact, ...]:
    """Return every fact of this host, in the order in which they are told and mended."""
    return (*_of_the_host(site), *_of_links(site), *_of_rules(site))


def _of_the_host(site: HostSite) -> tuple[Fact, ...]:
    from vmm.host import facts as host
    from vmm.network import facts as network

    return (
        Fact(
            name="data directory",
            question="Do jails work where the data directory lies: devices, programs, locks?",
            first=Moment.LOOK,  # a start that it breaks asks it then
            ask=lambda: _data_directory(site),
        ),
        Fact(
            name="kernel settings",
            question="Can the kernel's settings be set?",
            first=Moment.LOOK,
            ask=host.settings,
        ),
        Fact(
            name="processes",
            question="Does a user see which machines run?",
            first=Moment.LOOK,
            ask=host.processes,
        ),
        Fact(
            name="addresses",
            question="Has every machine an address of the configured subnet?",
            first=Moment.LOOK,  # a start asks it for its own machine, and refuses
            ask=lambda: _addresses(site),
        ),
        Fact(
            name="resolvers",
            question="Can machines ask the host's own resolvers?",
            first=Moment.WATCH,
            ask=lambda: network.resolvers(site.defaults.dns),
        ),
    )


def _data_directory(site: HostSite) -> Answer:
    from vmm.host import facts as host
    from vmm.network.ownership import original_of

    path = site.config.paths.data_dir
    original = original_of(path)
    if original is None:
        return host.data_directory(path)
    what = f"{path} is a copy of {original}, which is there as well: the machines of both are the same"
    return not_ok("data directory", what, f"use that one (--data-dir {original}), or move it away", fatal=True)


def _of_links(site: HostSite) -> tuple[Fact, ...]:
    from vmm.network import facts as network

    net = site.network
    return (
        Fact(
            name="bridge",
            question="Is the machines' bridge up, with its address?",
            first=Moment.WATCH,
            ask=lambda: network.bridge(net),
            mend=net.mend_bridge,
        ),
        Fact(
            name="ip forwarding",
            question="Do the bridge and the links to the world pass on what machines send and are sent?",
            first=Moment.WATCH,
            ask=lambda: network.forwarding(net),
            mend=net.mend_bridge,
        ),
        Fact(
            name="link managers",
            question="Do networkd and NetworkManager leave the machines' links alone?",
            first=Moment.LOOK,
            ask=lambda: network.managers(net),
            mend=net.tell_managers,
        ),
    )


def _of_rules(site: HostSite) -> tuple[Fact, ...]:
    from vmm.network import facts as network

    net = site.network
    return (
        Fact(
            name="forward policy",
            question="Does no other firewall drop what machines need?",
            first=Moment.START,
            ask=lambda: network.other_firewalls(net),
            mend=net.others.accept,
        ),
        Fact(
            name=RULES,
            question="Are the rules and taps of the machines that run as they were made, by this configuration?",
            first=Moment.LOOK,  # the supervisor hears of every change itself: `network_watch`
            ask=lambda: _rules(site),
            mend=net.restore,
        ),
    )


def _addresses(site: HostSite) -> Answer:
    name, subnet = "addresses", site.subnet
    machines = [record for record in site.store.machines() if isinstance(record, Machine)]
    strangers = [f"{each.name} ({each.lease.address})" for each in machines if not subnet.holds(each.lease.address)]
    if not strangers:
        return ok(name, f"all machines have theirs in {subnet.cidr}")
    what = f"{', '.join(strangers)}: not in {subnet.cidr} with the gateway {subnet.gateway}, and cannot be started"
    return not_ok(name, what, "sudo vmm config set subnet ... gateway ... (those that they were created with)")


def _rules(site: HostSite) -> Answer:
    """Compare the tables and taps with what the records say; whoever is at one of them now is left to it."""
    from vmm.network import links

    if not links.is_root():
        return unseen(RULES, "only root can see them", "sudo vmm doctor")
    from vmm.operations.reconcile import network_differences

    found = network_differences(site)
    if found:
        return not_ok(RULES, "; ".join(found), "sudo vmm reconcile")
    return ok(RULES, "tables and taps are those of the machines that run")


class HostFacts:
    """What operations ask of this host's facts (`vmm.model.site.HostFacts`)."""

    def __init__(self, site: HostSite) -> None:
        self._site = site

    def ask(self, moment: Moment) -> Sequence[Answer]:
        """Answer every fact that this moment asks; none is changed, and one that cannot be asked keeps no other."""
        return tuple(_answer(fact) for fact in self._asked(moment))

    def mend(self, moment: Moment, *, but: Collection[str] = ()) -> Sequence[Answer]:
        """Answer every fact that this moment asks, and mend what is not ok and can be mended."""
        return tuple(_mended(fact) for fact in self._asked(moment) if fact.name not in but)

    @contextlib.contextmanager
    def beside_start(self) -> Generator[Callable[[], Sequence[Answer]]]:
        """Begin to ask what a start asks, beside it; give what waits for the answers, and mends what can be.

        Bridge and forwarding the start itself looks at, and the engine's own files: what it cannot mend it refuses.
        """
        from vmm.network import glance

        with glance.listing() as listed:
            yield lambda: self._at_start(listed())

    def _at_start(self, listed: str) -> Sequence[Answer]:
        from vmm.network import glance

        network = self._site.network
        return self.mend(Moment.START) if glance.is_dropped(lambda: network.others, listed) else ()

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
