"""The bridge and the taps."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import struct
import time
from pathlib import Path

from vmm import TYPE_CHECKING
from vmm.errors import NetworkError
from vmm.host import process
from vmm.model.network import Subnet, lease_for
from vmm.network import netlink, policy, tap_filter

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from ipaddress import IPv4Network

    from vmm.model.network import Lease
    from vmm.network.ownership import Owner

# linux/if_tun.h and linux/sockios.h
_TUNSETIFF, _TUNSETPERSIST, _TUNSETOWNER = 0x400454CA, 0x400454CB, 0x400454CC
_IFF_TAP, _IFF_NO_PI, _IFF_VNET_HDR = 0x0002, 0x1000, 0x4000
_SIOCGIFADDR, _SIOCGIFNETMASK = 0x8915, 0x891B
# Of an engine that was killed, the last thread closes the tap: a moment after the first one is seen to be gone.
_CLOSING_S, _POLL_S = 2.0, 0.002
_ROUTES = Path("/proc/net/route")
_SYSCTL = Path("/proc/sys/net/ipv4")
_SYSCTL_6 = Path("/proc/sys/net/ipv6/conf")


def bridge_differences(name: str, subnet: Subnet, owner: Owner) -> list[str]:
    """Return what of the bridge is not as this vmm makes it, in words: four questions to the kernel."""
    try:
        found = netlink.look(name)
        if found is None or found.kind != "bridge":
            return ["was gone"]
        lacks = {
            "was not marked as this vmm's": found.alias != owner.mark,
            "was down": not found.is_up,
            f"was without {subnet.gateway}": address_of(name) != subnet.gateway,
            "was not closed by routing rules": not policy.stand(name, subnet),
            "was in another link's hands": found.master != 0,
            f"had an MTU of {found.mtu}": found.mtu != netlink.MTU,
            f"had another {' and '.join(found.otherwise)}": found.otherwise != (),
            "had IPv6 on": has_ipv6(name),
        }
    except OSError as error:
        # Whatever keeps us from looking is told by whoever mends it.
        return [f"cannot be seen: {error}"]
    return [what for what, is_so in lacks.items() if is_so]


def address_of(name: str) -> str | None:
    """Return a link's first IPv4 address, None where it has none."""
    return _asked(_SIOCGIFADDR, name)


def _asked(number: int, name: str) -> str | None:
    request = struct.pack("=16s24x", name.encode())
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as probe:
            return socket.inet_ntoa(fcntl.ioctl(probe, number, request)[20:24])
    except OSError:
        return None


def network_of(name: str) -> tuple[str, str] | None:
    """Return the network of a link's first IPv4 address (CIDR), and that address; None where it has none."""
    from ipaddress import IPv4Interface

    address, netmask = address_of(name), _asked(_SIOCGIFNETMASK, name)
    return (str(IPv4Interface(f"{address}/{netmask}").network), address) if address and netmask else None


def bridge_mac(subnet: Subnet) -> str:
    """The MAC of the bridge: one of its own, for a bridge without one takes its ports', and changes it with them."""
    from ipaddress import IPv4Address

    return lease_for(IPv4Address(subnet.gateway)).mac


def mend_bridge(name: str, subnet: Subnet, owner: Owner) -> None:
    """Make the bridge, or what it lacks of address and being up.

    What stands under this name must be known to be this vmm's.

    Raises:
        NetworkError: the subnet is in use elsewhere on the host, or the kernel refuses.
    """
    from ipaddress import IPv4Address

    try:
        if netlink.look(name) is None:
            _refuse_clash(name, subnet.network)
            with contextlib.suppress(FileExistsError):
                netlink.make_bridge(name, bytes.fromhex(bridge_mac(subnet).replace(":", "")))
            # Someone removed it under running machines: they get their cable back.
            for tap in taps(owner):
                connect(lease_for(IPv4Address(bytes.fromhex(tap.removeprefix("vmm-")))), name, owner)
        netlink.settle_bridge(name)
        _without_ipv6(name)
        netlink.set_up(name, alias=owner.mark)
        netlink.add_address(name, subnet.gateway, subnet.prefix_length, str(subnet.network.broadcast_address))
        for key in ("accept_redirects", "send_redirects"):
            (_SYSCTL / "conf" / name / key).write_text("0", encoding="ascii")
        policy.mend(name, subnet)
    except OSError as error:
        raise netlink.told(error, f"The bridge {name} cannot be made.") from error


def route_localnet(bridge: str, *, on: bool) -> None:
    """Let answers to 127.0.0.0/8 come in over the bridge, which forwards from localhost need, or keep them out."""
    try:
        (_SYSCTL / "conf" / bridge / "route_localnet").write_text("1" if on else "0", encoding="ascii")
    except FileNotFoundError as error:
        # Without its bridge nothing comes in over it.
        if on:
            raise NetworkError(
                f"The machines' bridge {bridge} is gone.",
                details=str(error),
                resolution="Make it anew, and what else was removed from under the machines: sudo vmm reconcile",
            ) from error
    except OSError as error:
        raise netlink.told(error, f"Whether {bridge} takes answers to localhost cannot be set.") from error


def routes_localnet(bridge: str) -> bool:
    try:
        return (_SYSCTL / "conf" / bridge / "route_localnet").read_text(encoding="ascii").strip() == "1"
    except OSError:
        return False


def make_tap(lease: Lease, bridge: str, owner: Owner, *, uid: int) -> None:
    """Make a tap that stays, and put it on the bridge, isolated from the other ports. Only root and `uid` may open it.

    It lets in only what its machine may send: `tap_filter`.

    Raises:
        NetworkError: there is no /dev/net/tun, the tap is in use or someone else's, or the kernel refuses.
    """
    tap = lease.tap
    try:
        there = netlink.look(tap)
        if there is not None and not _may_be(there, owner):
            raise _foreign(there)
        # No child of ours may have it open a moment longer than we do: it would be busy for the engine. And one at a
        # time, because the sysctl of a link takes the kernel's lock on all links by trying again and again: 50 taps by
        # 50 threads took 300 ms and more, one after the other 20.
        with process.forking:
            fd = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC)
            try:
                # Both engines open it with these flags; a tap with others would be refused to them.
                request = struct.pack("=16sH22x", tap.encode(), _IFF_TAP | _IFF_NO_PI | _IFF_VNET_HDR)
                fcntl.ioctl(fd, _TUNSETIFF, request)
                # Without an owner, any user of the host may attach to a tap that no one has open.
                fcntl.ioctl(fd, _TUNSETOWNER, uid)
                fcntl.ioctl(fd, _TUNSETPERSIST, 1)
            finally:
                os.close(fd)
            connect(lease, bridge, owner)
    except OSError as error:
        if error.errno == errno.EBUSY:
            raise NetworkError(
                f"The tap {tap} is in use.",
                details="Another process has it open.",
                resolution=f"See which: sudo sh -c 'grep -l {tap} /proc/[0-9]*/fdinfo/*'; end it, then try again.",
            ) from error
        raise netlink.told(error, f"The tap {tap} cannot be made.") from error


def connect(lease: Lease, bridge: str, owner: Owner) -> None:
    """Put a tap that is there on its bridge as it should be. May raise OSError."""
    _without_ipv6(lease.tap)
    tap_filter.attach(netlink.index_of(lease.tap), lease)
    netlink.join_bridge(lease.tap, bridge, alias=owner.mark)


def reconnect(lease: Lease, bridge: str, owner: Owner) -> None:
    """Put a running machine's tap back as it was made, and have it pass frames. May raise OSError."""
    # A link that was too small for IPv6 gets it anew, and switched on: so its size comes first.
    netlink.set_mtu(lease.tap)
    connect(lease, bridge, owner)
    netlink.unblock(lease.tap)


def tap_differences(lease: Lease, bridge: str, known: Mapping[str, netlink.Link]) -> list[str]:
    """Return what of a running machine's tap is not as it was made, a sentence each; `known` are the host's links."""
    tap, link, master = lease.tap, known.get(lease.tap), known.get(bridge)
    if link is None:
        return [f"the tap {tap} is gone"]
    if link.kind != "tun":
        return [f"the link {tap} is no tap"]
    if not link.has_carrier and link.is_up:
        return [f"the tap {tap} is not the one that its machine has open"]
    is_port = master is not None and link.master == master.index
    # While either of them is down, so is the port.
    is_passing = is_port and link.is_up and master is not None and master.is_up
    others = [name for name in link.otherwise if name != "isolated"]
    lacks = {
        f"the tap {tap} was down": not link.is_up,
        f"the tap {tap} was off the bridge": master is not None and not is_port,
        f"the tap {tap} was not isolated": is_port and not link.isolated,
        f"the tap {tap} was blocked on the bridge": is_passing and link.is_blocked,
        f"the tap {tap} had another {' and '.join(others)}": is_port and others != [],
        f"the tap {tap} had an MTU of {link.mtu}": link.mtu != netlink.MTU,
        f"the tap {tap} had IPv6 on": has_ipv6(tap),
        f"the tap {tap} lacked its filter": not _is_filtered(link.index, lease),
    }
    return [what for what, is_so in lacks.items() if is_so]


def _is_filtered(index: int, lease: Lease) -> bool:
    try:
        # Where the kernel has no such filters, none is missing.
        return tap_filter.is_attached(index, lease) or not tap_filter.attach(index, lease)
    except OSError:
        return False


def remove_link(name: str) -> None:
    """Remove a link that is known to be vmm's; none is no error."""
    try:
        netlink.remove_link(name)
    except OSError as error:
        raise netlink.told(error, f"The link {name} cannot be removed.") from error


def remove_tap(tap: str, owner: Owner) -> bool:
    """Remove a tap of this vmm's that no process has open; False when there is none, or it is left alone."""
    deadline = time.monotonic() + _CLOSING_S
    while True:
        try:
            there = netlink.look(tap)
        except OSError as error:
            raise netlink.told(error, f"The tap {tap} cannot be looked at.") from error
        if there is None or not _may_be(there, owner):
            return False
        if not there.is_open:
            remove_link(tap)
            return True
        if time.monotonic() > deadline:
            return False
        time.sleep(_POLL_S)


def taps(owner: Owner) -> list[str]:
    """Return the names of this vmm's taps on this host."""
    return [link.name for link in every() if is_tap_name(link.name) and _may_be(link, owner)]


def every() -> list[netlink.Link]:
    """Return every link of this host."""
    try:
        return list(netlink.links().values())
    except OSError as error:
        raise netlink.told(error, "This host's links cannot be listed.") from error


def _may_be(link: netlink.Link, owner: Owner) -> bool:
    """Whether a link with a name of ours is a tap of this vmm's.

    The version before left no mark, and so does a command that is killed between making a tap and marking it.
    """
    return link.kind == "tun" and (owner.has_made(link) or not link.alias)


def _foreign(link: netlink.Link) -> NetworkError:
    return NetworkError(
        f"The link {link.name} is not this vmm's.",
        details=f"It stands where the machine's tap is to be: {link.kind or 'a device'}, alias {link.alias!r}.",
        resolution=f"Look at it (ip -d link show {link.name}); if nobody needs it: sudo ip link delete {link.name}",
    )


def _without_ipv6(name: str) -> None:
    """Keep the host from speaking IPv6 on a link: machines have none, and so even without a firewall it hears none."""
    # A kernel without IPv6 has nothing to switch off.
    with contextlib.suppress(FileNotFoundError):
        (_SYSCTL_6 / name / "disable_ipv6").write_text("1", encoding="ascii")


def has_ipv6(name: str) -> bool:
    """Whether the host speaks IPv6 on a link."""
    try:
        return (_SYSCTL_6 / name / "disable_ipv6").read_text(encoding="ascii").strip() == "0"
    except OSError:
        return False


def is_tap_name(name: str) -> bool:
    """Whether a link has the name of one of vmm's taps."""
    suffix = name.removeprefix("vmm-")
    return len(suffix) == 8 and name != suffix and all(letter in "0123456789abcdef" for letter in suffix)


def _refuse_clash(name: str, network: IPv4Network) -> None:
    """Refuse a subnet that the host reaches some other way: a VPN, a LAN, Docker's networks."""
    routes = _routes(besides=name)
    for link, other in routes:
        if other.overlaps(network):
            raise NetworkError(
                f"The machines' subnet {network} is in use on this host.",
                details=f"The route to {other} goes over {link}.",
                resolution=f"Choose a free one{_free_subnet([route for _, route in routes])}. Machines that hold"
                " addresses of this one must be deleted first.",
            )


def _routes(*, besides: str) -> list[tuple[str, IPv4Network]]:
    """Return where the routes of the host lead, each with its link."""
    from ipaddress import IPv4Address, IPv4Network

    found: list[tuple[str, IPv4Network]] = []
    # A link's name is bytes to the kernel.
    for line in _ROUTES.read_text(encoding="ascii", errors="surrogateescape").split("\n")[1:]:
        fields = line.split("\t")
        if len(fields) < 8:
            continue
        address = IPv4Address(socket.ntohl(int(fields[1], 16)))
        mask = IPv4Address(socket.ntohl(int(fields[7], 16)))
        other = IPv4Network(f"{address}/{mask}")
        # A VPN that takes everything often writes its default route as two halves.
        if fields[0] != besides and other.prefixlen > 1:
            found.append((fields[0], other))
    return found


def _free_subnet(routes: Sequence[IPv4Network]) -> str:
    """Return the command that chooses a private subnet which no route leads to, nothing where there is none of ours."""
    from ipaddress import IPv4Network

    for text in ("10.77.0.0/16", "172.16.0.0/16", "172.29.0.0/16", "192.168.176.0/20", "100.77.0.0/16"):
        if not any(route.overlaps(IPv4Network(text)) for route in routes):
            return f": sudo vmm config set subnet {text} gateway {IPv4Network(text)[1]}"
    return " (ip route shows those that are taken): sudo vmm config set subnet CIDR gateway ADDRESS"


def is_root() -> bool:
    """Whether this process may change links and rules, as far as its user tells."""
    return os.geteuid() == 0
