"""The machines' network on this host: bridge, taps and firewall as one."""

from __future__ import annotations

import contextlib
import errno
import socket
from collections.abc import Callable, Generator, Sequence

from vmm.errors import NetworkError
from vmm.model.network import Lease, PortForward, Protocol, Subnet
from vmm.model.value import Value
from vmm.network import links, netlink
from vmm.network.firewall import Firewall

Attached = Sequence[tuple[Lease, Sequence[PortForward]]]


class HostNetwork(Value):
    """`running` returns what every running machine holds; it is asked only when the whole firewall must be rendered."""

    bridge_name: str
    subnet: Subnet
    host_interface: str | None
    running: Callable[[], Attached]

    @property
    def _firewall(self) -> Firewall:
        return Firewall(bridge=self.bridge_name, subnet=self.subnet, host_interface=self.host_interface)

    @contextlib.contextmanager
    def attaching(self, lease: Lease, forwards: Sequence[PortForward], *, uid: int = 0) -> Generator[None]:
        self._look_at_bridge()
        admitted = self._firewall.begin_admit(lease, forwards)
        try:
            yield
        finally:
            # Also when the block failed: what is taken back next must not race with what is being added.
            worked = admitted()
        if not worked:
            self.reconcile([*self.running(), (lease, forwards)])
        # Rules first: a tap never stands on the bridge without what keeps its machine honest.
        links.make_tap(lease.tap, self.bridge_name, uid=uid)

    def detach(self, lease: Lease, forwards: Sequence[PortForward]) -> None:
        links.remove_link(lease.tap)
        # Without our tables there is nothing to remove; those of an older vmm do not know all that is taken out.
        if not self._firewall.dismiss(lease, forwards) and self._firewall.exists():
            self.reconcile([(other, theirs) for other, theirs in self.running() if other != lease])

    def open_forward(self, lease: Lease, forward: PortForward) -> None:
        if not self._firewall.open(lease, forward):
            self.reconcile(self.running())

    def close_forward(self, lease: Lease, forward: PortForward) -> None:
        self._firewall.close(lease, forward)

    def reconcile(self, attached: Attached) -> None:
        # Whole or not: one that an older vmm made gets what it lacks.
        links.mend_bridge(self.bridge_name, self.subnet)
        # A machine that is both running and about to be attached would stand in it twice.
        wanted = _by_address(attached)
        while True:
            self._firewall.replace(wanted.values())
            # Another command's machine or forward may have come into the tables just before they were replaced. It was
            # recorded before that, so it is known by now; what is recorded later comes into the tables that stand.
            known = _by_address(self.running())
            if known.items() <= wanted.items():
                break
            wanted |= known
        self._firewall.accept_where_others_drop()

    def differences(self, attached: Attached) -> list[str]:
        """Return what of bridge, firewall and taps is not as these machines need it, a sentence each."""
        if not attached and not links.taps() and not self._firewall.exists():
            # Nothing runs, and nothing was ever set up: the first start does.
            return []
        found: list[str] = []
        if not links.bridge_is_whole(self.bridge_name, self.subnet):
            found.append(f"the bridge {self.bridge_name} was gone, down, or without its address")
        found += self._firewall.differences(attached)
        if self._firewall.is_dropped_by_others():
            found.append("another firewall dropped what machines send")
        there = set(links.taps())
        found += [f"the tap {lease.tap} is gone" for lease, _ in attached if lease.tap not in there]
        return found

    def restore(self) -> None:
        """Make bridge and firewall what the machines that run now need, whoever comes and goes meanwhile."""
        links.mend_bridge(self.bridge_name, self.subnet)
        wanted = None
        while (known := _by_address(self.running())) != wanted:
            self._firewall.replace(known.values())
            wanted = known
        self._firewall.accept_where_others_drop()

    def taps(self) -> list[str]:
        return links.taps()

    def remove_tap(self, tap: str) -> bool:
        """Remove a tap; False when it is not there."""
        if tap not in links.taps():
            return False
        links.remove_link(tap)
        return True

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

    def remove_all(self) -> None:
        """Take everything that is vmm's off this host's network: taps, bridge, tables, and rules in others' chains."""
        for tap in links.taps():
            links.remove_link(tap)
        links.remove_link(self.bridge_name)
        self._firewall.remove()

    def is_dropped_by_others(self) -> bool:
        """Whether another firewall of this host drops what machines send."""
        return self._firewall.is_dropped_by_others()

    def mend_bridge(self) -> None:
        """Make the bridge what it should be, and let the host forward."""
        links.mend_bridge(self.bridge_name, self.subnet)

    def accept_where_others_drop(self) -> None:
        """Let the machines' traffic pass where another firewall of this host drops it and a rule of ours can help."""
        self._firewall.accept_where_others_drop()

    def _look_at_bridge(self) -> None:
        if not links.bridge_is_whole(self.bridge_name, self.subnet):
            links.mend_bridge(self.bridge_name, self.subnet)
            self._firewall.accept_where_others_drop()


def _by_address(attached: Attached) -> dict[str, tuple[Lease, tuple[PortForward, ...]]]:
    return {lease.address: (lease, tuple(forwards)) for lease, forwards in attached}
