"""The machines' network on this host: bridge, taps and firewall as one."""

from __future__ import annotations

import contextlib
import errno
import socket
from collections.abc import Callable, Generator, Sequence
from pathlib import Path

from vmm import TYPE_CHECKING
from vmm.errors import HostError, NetworkError
from vmm.host import files
from vmm.model.network import Lease, PortForward, Protocol, Subnet
from vmm.model.value import Value
from vmm.network import conntrack, links, managers, netlink, policy, uplinks
from vmm.network.claim import is_unmarked_tap, refuse_foreign, refuse_moved, take
from vmm.network.firewall import Firewall, Whose
from vmm.network.forwarding import Forwarding
from vmm.network.ownership import Owner, owner_at

if TYPE_CHECKING:
    from vmm.network.others import Others

# Of the host, whatever network namespace or data directory is meant: it is held for some milliseconds.
_LOCK = Path("/run/vmm.lock")
_LOCK_S = 30.0
Attached = Sequence[tuple[Lease, Sequence[PortForward]]]


class HostNetwork(Value):
    """`running` returns what every running machine holds; it is asked only when the whole firewall must be rendered.

    `host_interface` is the one way out, where it is given; `allowed` are networks (CIDR) that machines reach over any
    other link; `resolvers` what they may ask for names wherever it lies; `connections` the most that one may have.
    """

    bridge_name: str
    subnet: Subnet
    host_interface: str | None
    running: Callable[[], Attached]
    data_dir: Path
    allowed: tuple[str, ...] = ()
    resolvers: Callable[[], Sequence[str]] = tuple
    connections: int = 8192

    @property
    def _firewall(self) -> Firewall:
        """The firewall, for what comes and goes by elements alone."""
        return Firewall(bridge=self.bridge_name, subnet=self.subnet, owner=self._owner().chain)

    def _owner(self, *, make: bool = False) -> Owner:
        return owner_at(self.data_dir, make=make)

    def _whole_firewall(self, resolvers: Sequence[str] | None = None) -> Firewall:
        """Return the firewall with what it depends on of the host; `resolvers` stand in place of all machines'."""
        try:
            ways = (self.host_interface,) if self.host_interface else uplinks.uplinks(self.bridge_name, self.subnet)
        except OSError as error:
            raise netlink.told(error, "The host's routes cannot be read.") from error
        return Firewall(
            bridge=self.bridge_name,
            subnet=self.subnet,
            owner=self._owner().chain,
            uplinks=ways,
            allowed=self.allowed,
            # Machines speak IPv4 alone.
            resolvers=tuple(each for each in (self.resolvers() if resolvers is None else resolvers) if "." in each),
            connections=self.connections,
        )

    @contextlib.contextmanager
    def attaching(
        self, lease: Lease, forwards: Sequence[PortForward], *, uid: int = 0, resolvers: Sequence[str] = ()
    ) -> Generator[None]:
        owner = self._owner(make=True)
        firewall = self._whole_firewall(resolvers)
        self._look_at_bridge(owner, coming=lease.tap)
        self.forwarding.turn_on(published=_is_published(forwards), ways=firewall.uplinks)
        admitted = firewall.begin_admit(lease, forwards)
        try:
            yield
        finally:
            # Also when the block failed: what is taken back next must not race with what is being added.
            worked = admitted()
        if not worked:
            self.reconcile([*self.running(), (lease, forwards)])
        self._begin_forwards(lease, forwards)
        # Rules first: a tap never stands on the bridge without what keeps its machine honest.
        links.make_tap(lease, self.bridge_name, owner, uid=uid)

    def detach(self, lease: Lease, forwards: Sequence[PortForward]) -> None:
        links.remove_tap(lease.tap, self._owner())
        # Without our tables there is nothing to remove; those of an older vmm do not know all that is taken out.
        if not self._firewall.dismiss(lease, forwards):
            if self._firewall.whose() not in (Whose.OURS, Whose.BEFORE):
                return
            self._make_anew_without(lease)
        with _told("What the kernel remembers of a machine's connections cannot be deleted."):
            conntrack.forget_machine(lease)
        self._end_forwards(forwards)

    def _make_anew_without(self, lease: Lease) -> None:
        try:
            self._owner(make=True)
        except HostError:
            # No room for the id of a data directory of before: the next start makes the rules anew.
            return
        self.reconcile([(other, theirs) for other, theirs in self.running() if other != lease])

    def open_forward(self, lease: Lease, forward: PortForward) -> None:
        self.forwarding.turn_on(published=_is_published([forward]))
        if not self._firewall.open(lease, forward):
            self.reconcile(self.running())
        self._begin_forwards(lease, [forward])

    def close_forward(self, lease: Lease, forward: PortForward) -> None:
        self._firewall.close(lease, forward)
        with _told("What the kernel remembers of a forward's connections cannot be deleted."):
            conntrack.forget_forward(lease, forward)
        self._end_forwards([forward], besides=forward)

    def _begin_forwards(self, lease: Lease, forwards: Sequence[PortForward]) -> None:
        """Have forwards that are in the rules now meet those who have been sending there before."""
        if not forwards:
            return
        if any(_is_for_localhost(forward) for forward in forwards):
            links.route_localnet(self.bridge_name, on=True)
        with _told("What the kernel remembers of a forward's connections cannot be deleted."):
            conntrack.forget_before(lease, forwards)

    def _end_forwards(self, forwards: Sequence[PortForward], besides: PortForward | None = None) -> None:
        """Close what forwards from localhost and from outside need, each with the last of them."""
        left = [forward for forward in self._all_forwards() if forward != besides] if forwards else []
        if any(map(_is_for_localhost, forwards)):
            self._settle_localhost(left)
        if _is_published(forwards) and not _is_published(left):
            self.forwarding.turn_off_needless(published=False)

    def _settle_localhost(self, forwards: Sequence[PortForward]) -> None:
        links.route_localnet(self.bridge_name, on=any(map(_is_for_localhost, forwards)))

    def reconcile(self, attached: Attached) -> None:
        # Whole or not: one that an older vmm made gets what it lacks.
        self._take_bridge(self._owner(make=True))
        self.forwarding.turn_on(published=any(_is_published(forwards) for _, forwards in attached))
        # A machine that is both running and about to be attached would stand in it twice.
        wanted = _by_address(attached)
        while True:
            self._whole_firewall().replace(wanted.values())
            # Another command's machine or forward may have come into the tables just before they were replaced. It was
            # recorded before that, so it is known by now; what is recorded later comes into the tables that stand.
            known = _by_address(self.running())
            if known.items() <= wanted.items():
                break
            wanted |= known
        self._follow(list(wanted.values()))

    def restore(self) -> None:
        """Make bridge, firewall and taps what the machines that run now need, whoever comes and goes meanwhile."""
        owner = self._owner(make=True)
        self._take_bridge(owner)
        self.forwarding.turn_on(published=_is_published(self._all_forwards()))
        wanted = None
        while (known := _by_address(self.running())) != wanted:
            self._whole_firewall().replace(known.values())
            wanted = known
        self._follow(list(known.values()))
        with _told("The taps cannot be mended."):
            there = netlink.links()
            for lease, _ in known.values():
                link = there.get(lease.tap)
                if link and link.kind == "tun" and (link.has_carrier or not link.is_up):
                    links.reconnect(lease, self.bridge_name, owner)

    def _follow(self, attached: Attached) -> None:
        """Do what the rules that were just made anew bring with them."""
        self.others.accept()
        self._settle_localhost([forward for _, forwards in attached for forward in forwards])
        with _told("What the kernel remembers of a forward's connections cannot be deleted."):
            for lease, forwards in attached:
                conntrack.forget_before(lease, forwards)
            conntrack.forget_strangers(lease for lease, _ in attached)

    def differences(self, attached: Attached) -> list[str]:
        """Return what of bridge, firewall and taps is not as these machines need it, a sentence each."""
        owner = self._owner()
        if not attached and not links.taps(owner) and self._firewall.whose() not in (Whose.OURS, Whose.BEFORE):
            # Nothing runs, and nothing was ever set up: the first start does.
            return []
        trouble = self.trouble()
        if trouble is not None:
            return [f"{trouble.brief} {trouble.details} To mend it: {trouble.resolution}"]
        found: list[str] = []
        lacks = links.bridge_differences(self.bridge_name, self.subnet, owner)
        if lacks:
            found.append(f"the bridge {self.bridge_name} {', '.join(lacks)}")
        found += self._whole_firewall().differences(attached)
        localhost = any(_is_for_localhost(forward) for _, forwards in attached for forward in forwards)
        routed = links.routes_localnet(self.bridge_name)
        if localhost != routed:
            found.append("forwards from localhost were " + ("open, and there are none" if routed else "cut off"))
        return found + self.link_differences([lease for lease, _ in attached])

    def link_differences(self, leases: Sequence[Lease]) -> list[str]:
        """Return what of the running machines' taps is not as it was made, a sentence each."""
        with _told("This host's links cannot be listed."):
            there = netlink.links()
        return [what for lease in leases for what in links.tap_differences(lease, self.bridge_name, there)]

    def ways_out(self) -> tuple[str, ...]:
        """Return the names of the links that machines may leave the host by, as things are now."""
        return self._whole_firewall().uplinks

    def renew_ways(self) -> None:
        """Let machines leave by the links that lead out now, and by no other, and answers come back by them."""
        firewall = self._whole_firewall()
        self.forwarding.turn_on(published=_is_published(self._all_forwards()), ways=firewall.uplinks)
        firewall.renew_ways()

    def taps(self) -> list[str]:
        return links.taps(self._owner())

    def remove_tap(self, tap: str) -> bool:
        """Remove a tap of ours that no process has open; False when there is none."""
        return links.remove_tap(tap, self._owner())

    def port_is_bound(self, forward: PortForward) -> bool:
        kind = socket.SOCK_STREAM if forward.protocol is Protocol.TCP else socket.SOCK_DGRAM
        try:
            with socket.socket(socket.AF_INET, kind | socket.SOCK_CLOEXEC) as probe:
                if forward.protocol is Protocol.TCP:
                    # A port whose last connection is in TIME_WAIT is free; a listener still makes this fail.
                    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind((forward.host_address, forward.host_port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                return True
            if error.errno == errno.EADDRNOTAVAIL:
                raise NetworkError(
                    f"{forward.host_address} is not an address of this host.",
                    details=str(error),
                    resolution="Give one that is (ip address), or leave it out for all of them.",
                ) from error
            where = f"{forward.host_port}/{forward.protocol} at {forward.host_address}"
            raise netlink.told(error, f"Whether the port {where} is free cannot be seen.") from error
        return False

    def remove_all(self) -> list[str]:
        """Take everything that is vmm's off this host's network: taps, bridge, tables, and rules in others' chains.

        Return what was left alone because someone else made it.
        """
        owner, found, trouble = self._owner(), links.every(), self.trouble()
        gone = {link.name for link in found if owner.has_made(link)}
        if trouble is None:
            # What bears no mark is taken for ours only where nothing of someone else's is about.
            gone |= {self.bridge_name, *(link.name for link in found if is_unmarked_tap(link))}
        for name in sorted(gone):
            links.remove_link(name)
        firewall = self._firewall
        if trouble is None or firewall.whose() is Whose.OURS:
            with _told("The routing rules cannot be removed."):
                for name in sorted(gone):
                    policy.remove(name)
            firewall.remove()
            managers.forget(self.bridge_name)
            from vmm.network import accepts

            accepts.remove()
            self.forwarding.give_back()
        return [] if trouble is None else [f"{trouble.brief} {trouble.details}"]

    def bridge_differences(self) -> list[str]:
        """Return what of the bridge is not as it was made, in words."""
        return links.bridge_differences(self.bridge_name, self.subnet, self._owner())

    def trouble(self) -> NetworkError | None:
        """Return why bridge, taps and tables are not this vmm's to change, None when they are."""
        try:
            refuse_foreign(self._owner(), self.bridge_name, self.subnet, self._firewall, self._known_taps)
        except NetworkError as error:
            return error
        return None

    def refuse_moved(self) -> None:
        """Raise NetworkError when machines are on a bridge of ours that this configuration would move."""
        refuse_moved(self._owner(), self.bridge_name, self.subnet, links.every())

    @property
    def others(self) -> Others:
        """This host's other firewalls, as its machines meet them."""
        from vmm.network.others import Others

        ways = [self.host_interface] if self.host_interface else uplinks.uplinks(self.bridge_name, self.subnet)
        return Others(
            bridge=self.bridge_name,
            machines=self.subnet.cidr,
            machine=str(self.subnet.network.broadcast_address - 1),
            gateway=self.subnet.gateway,
            way_out=ways[0] if ways else None,
            resolvers=lambda: [each for each in self.resolvers() if _is_of_this_host(each)],
            forwards=lambda: sorted(
                {(f.protocol.value, f.guest_port) for f in self._all_forwards() if _is_published([f])}
            ),
        )

    @property
    def forwarding(self) -> Forwarding:
        return Forwarding(
            bridge=self.bridge_name,
            subnet=self.subnet,
            host_interface=self.host_interface,
            record=self.data_dir / "state" / "forwarding",
            reaches_more=bool(self.allowed),
        )

    def missing_forwarding(self) -> list[str]:
        """Return the links that do not pass on what the machines that run send or are sent."""
        return self.forwarding.missing(published=_is_published(self._all_forwards()))

    def localhost_trouble(self) -> str:
        """Return what is wrong with the way from localhost to machines; nothing where there is nothing."""
        routed = links.routes_localnet(self.bridge_name)
        if any(map(_is_for_localhost, self._all_forwards())) == routed:
            return ""
        return "open, and no forward needs it" if routed else "cut off, and forwards need it"

    def tell_managers(self) -> None:
        """Tell networkd and NetworkManager to leave vmm's links alone."""
        managers.tell(self.bridge_name)

    def mend_bridge(self) -> None:
        """Make the bridge what it should be, and let it and the links to the world forward."""
        self._take_bridge(self._owner(make=True))
        self.forwarding.turn_on(published=_is_published(self._all_forwards()))
        self._settle_localhost(self._all_forwards())

    def is_set_up(self) -> bool:
        """Whether the machines' bridge is there, whole or not."""
        return netlink.look(self.bridge_name) is not None

    def _all_forwards(self) -> list[PortForward]:
        return [forward for _, forwards in self.running() for forward in forwards]

    def _look_at_bridge(self, owner: Owner, *, coming: str) -> None:
        if links.bridge_differences(self.bridge_name, self.subnet, owner):
            self._take_bridge(owner, coming=coming)
            self.others.accept()

    def _take_bridge(self, owner: Owner, *, coming: str = "") -> None:
        """Make the bridge whole, where that is this vmm's to do; of two data directories that begin at once, one is.

        `coming` is a tap that this vmm is about to make: one that stands under its name is not known to be ours.
        """

        def known() -> set[str]:
            return self._known_taps() - {coming}

        with files.locked(_LOCK, what="this host's network", timeout_s=_LOCK_S):
            refuse_foreign(owner, self.bridge_name, self.subnet, self._firewall, known)
            take(owner, self.bridge_name, self.subnet)
            links.mend_bridge(self.bridge_name, self.subnet, owner)

    def _known_taps(self) -> set[str]:
        return {lease.tap for lease, _ in self.running()}


def _is_of_this_host(address: str) -> bool:
    """Whether machines that ask this address ask the host itself."""
    if "." not in address:
        return False
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as probe:
        try:
            probe.bind((address, 0))
        except OSError:
            return False
    return True


def _is_published(forwards: Sequence[PortForward]) -> bool:
    """Whether one of these lets in what comes from outside."""
    return any(not forward.host_address.startswith("127.") for forward in forwards)


@contextlib.contextmanager
def _told(brief: str) -> Generator[None]:
    try:
        yield
    except OSError as error:
        raise netlink.told(error, brief) from error


def _is_for_localhost(forward: PortForward) -> bool:
    # A forward for every address of the host is for this one too.
    return forward.host_address == "0.0.0.0" or forward.host_address.startswith("127.")  # noqa: S104


def _by_address(attached: Attached) -> dict[str, tuple[Lease, tuple[PortForward, ...]]]:
    return {lease.address: (lease, tuple(forwards)) for lease, forwards in attached}
